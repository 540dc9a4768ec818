"""Each line of the table in docs/protocols.md, for the four protocols: as configured, and as the small ones behave."""

import re
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from jsonargparse import Namespace
from peft import LoraConfig

import cera
from cera.adapters.gaussian_lora import GaussianLoraConfig
from cera.cli.compose import compose
from cera.cli.parser import ConfigurationParser
from cera.cli.training_run import training_parser
from cera.data import ChatData
from cera.data.chat import IGNORE
from cera.training.documents import split_documents
from cera.training.module import CausalLM

PROTOCOLS = ("paper", "authors_code", "ours", "peft_metamathqa")
QA = "Question: {question}\nAnswer: {answer}"
MATH = "Question: {question} Think step by step.\nAnswer:{answer}"
LINES: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {
    "base": {
        "model.base": (
            "meta-llama/Meta-Llama-3-8B",
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Meta-Llama-3-8B",
            "meta-llama/Llama-3.2-3B",
        )
    },
    "training data": {
        "data.dataset.class_path": (
            "cera.data.SlimOrca",
            "cera.data.MathInstruct",
            "cera.data.SlimOrca",
            "cera.data.MetaMathQA",
        ),
        "data.dataset.init_args.rows": (None, [0, 100000], None, None),
        "data.dataset.init_args.most_characters": (None, None, None, 1300),
    },
    "text": {"data.template": (None, QA, None, MATH)},
    "loss over": {"data.loss_on": ("answer", "all", "answer", "all")},
    "end of an answer": {"data.loss_on_end": (True, False, True, True)},
    "order of the rows": {"data.with_replacement": (False, True, False, False)},
    "rows of a step": {
        "data.batch_size": (2, 4, 2, 4),
        "trainer.accumulate_grad_batches": (8, 16, 8, 1),
        "data.packing": (True, False, True, False),
        "data.max_length": (2048, 512, 2048, 768),
        "data.overlong": ("truncate",) * 4,
    },
    "mean of the loss": {"model.loss_mean": ("step", "micro_batch", "step", "step")},
    "learning rate": {"model.learning_rate": (3e-4, 3e-4, 3e-4, 1e-4)},
    "schedule": {
        "model.schedule": ("cosine", "constant", "cosine", "cosine"),
        "model.warmup": (0.03, 0.0, 0.03, 0.1),
    },
    "AdamW's weight decay": {
        "model.weight_decay": (0.0, 0.01, 0.0, 0.1),
        "model.betas": ([0.9, 0.999],) * 4,
    },
    "gradient clipping": {"trainer.gradient_clip_val": (1.0,) * 4},
    "steps": {"trainer.max_steps": (2000, 4688, 2000, 5000)},
    "validation": {
        "data.validation.class_path": (None, "cera.data.MathInstruct", None, "cera.data.GSM8KSolutions"),
        "data.validation.init_args.rows": (None, [100000, 102000], None, None),
        "data.validation_rows": (1000, 800, 1000, 50),
        "trainer.val_check_interval": (1600, 6256, 1600, 250),
    },
    "precision": {
        "trainer.precision": ("bf16-true",) * 4,
        "model.adapter_dtype": (None, None, None, "float32"),
    },
    "adapter": {
        "model.adapter.class_path": ("cera.CeraConfig",) * 4,
        "model.adapter.init_args.r": (64, 64, 64, 32),
        "model.adapter.init_args.dropout": (0.1,) * 4,
        "model.adapter.init_args.scaling": (1.0,) * 4,
        "model.adapter.init_args.init": ("kaiming_uniform", "kaiming_normal", "calibrated", "kaiming_uniform"),
        "model.adapter.init_args.dropout_on": ("latent",) * 4,
        "model.adapter.init_args.target_modules": (
            {"q_proj", "v_proj"},
            {"q_proj", "v_proj"},
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            None,
        ),
    },
    "LoRA beside it": {},
    "adapter kept": {"best": (False, True, True, False)},
    "forgetting": {"text": ("cera.data.WikiText2",) * 4},
    "evaluation": {"evaluation.task.class_path": (None, None, None, "cera.evaluation.tasks.GSM8K")},
}
"""Line of the table -> settings and their values in each protocol."""


def parsed(name: str) -> Namespace:
    return training_parser().parse_args([f"--config={REPOSITORY}/configs/protocols/{name}.yaml"])


@pytest.fixture(scope="module")
def configured() -> dict[str, Namespace]:
    """The protocols for Llama, with the values of all settings."""
    return {name: parsed(name) for name in PROTOCOLS}


def value(config: Namespace, name: str) -> Any:
    """A setting by dotted name; ``None`` if the configuration has no such class or argument."""
    found: Any = config
    for key in name.split("."):
        found = getattr(found, key, None) if not isinstance(found, dict) else found.get(key)
        if found is None:
            return None
    return set(found) if name.endswith("target_modules") else list(found) if isinstance(found, tuple) else found


def callbacks(config: Namespace) -> dict[str, Any]:
    return {callback["class_path"].rpartition(".")[2]: callback for callback in config.trainer.callbacks}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_table_is_what_is_configured(configured, line) -> None:
    for name, expected in LINES[line].items():
        for protocol, wanted in zip(PROTOCOLS, expected, strict=True):
            config = configured[protocol]
            if name == "best":
                found: Any = "BestAdapter" in callbacks(config)
            elif name == "text":
                found = callbacks(config)["Forgetting"]["init_args"]["text"]["class_path"]
            else:
                found = value(config, name)
            assert found == wanted, (protocol, name)


def test_the_documentation_has_these_lines() -> None:
    page = (REPOSITORY / "docs" / "protocols.md").read_text()
    table = page.partition("| what |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^|-][^|]*?) \|", table, re.MULTILINE) == list(LINES)
    shipped = {path.stem for path in (REPOSITORY / "configs" / "protocols").glob("*.yaml")}
    assert shipped == set(re.findall(r"`((?:smol_)?(?:paper|authors_code\w*|ours|peft_metamathqa))(?:\.yaml)?`", page))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_small_one_has_the_same_recipe(configured, name) -> None:
    small, large = parsed(f"smol_{name}"), configured[name]
    for line in ("text", "loss over", "end of an answer", "order of the rows", "mean of the loss", "learning rate",
                 "schedule", "AdamW's weight decay", "adapter"):  # fmt: skip
        for setting in LINES[line]:
            assert value(small, setting) == value(large, setting)
    assert callbacks(small).keys() == callbacks(large).keys()
    assert small.model.base.startswith("package://")
    assert small.trainer.max_steps == 50


def test_slimorca_as_in_the_authors_code() -> None:
    data = compose("cera://protocols/authors_code_slimorca")["data"]
    assert data["template"] == "User: {question}\nAssistant: {answer}"
    for name, rows in (("dataset", [0, 100000]), ("validation", [100000, 102000])):
        assert data[name] == {
            "class_path": "cera.data.SlimOrca",
            "init_args": {"streaming": False, "rows": rows, "turns": "first"},
        }


# Behaviour, on the small protocols


def made(name: str) -> tuple[CausalLM, ChatData]:
    """Module and data of a protocol, as the command line makes them."""
    config = parsed(name)
    parser = ConfigurationParser()
    parser.add_class_arguments(CausalLM, "model")
    parser.add_class_arguments(ChatData, "data")
    objects = parser.instantiate(Namespace(model=config.model, data=config.data))
    return objects.model, objects.data


@pytest.fixture(scope="module")
def authors_data() -> ChatData:
    _, data = made("smol_authors_code")
    data.setup()
    return data


def test_the_authors_tokens_and_labels(authors_data) -> None:
    stream = authors_data.train_stream
    assert stream is not None
    tokenizer = stream.encoder.tokenizer
    batch = next(iter(stream))
    assert batch["input_ids"].shape[0] == 2
    texts = []
    for ids, labels in split_documents(batch):
        if not (labels != IGNORE).any():
            continue  # padding
        end = int((labels != IGNORE).nonzero()[-1]) + 1
        assert torch.equal(labels[1:end], ids[1:end])  # the question, too
        assert ids[end] == tokenizer.eos_token_id  # read, but not trained on
        assert labels[end] == IGNORE
        texts.append(tokenizer.decode(ids[:end]))
    assert len(texts) == 2
    assert all(re.fullmatch(r"(?s)Question: .+\nAnswer: .+", text) for text in texts)


def test_the_authors_rows(authors_data) -> None:
    train, held_out = authors_data.train_stream.rows, authors_data.validation_stream.rows
    numbers = [number for number, _, _ in train(0, None)]
    assert len(numbers) == 3800
    assert set(numbers) < set(range(3800))
    assert 2300 < len(set(numbers)) < 2500  # of 3800 draws with replacement, 63% are different
    assert [number for number, _, _ in held_out(0, None)] == list(range(3800, 3832))


@pytest.mark.parametrize(
    ("name", "steps"), [("smol_authors_code", 50), ("smol_paper", 50), ("smol_peft_metamathqa", 50)]
)
def test_the_optimizer_and_its_rates(name, steps) -> None:
    module, _ = made(name)
    module.__dict__["total_steps"] = steps
    module._trainer = Namespace(precision="bf16-true")  # type: ignore[assignment]
    module.trainable = lambda: {"w": torch.nn.Parameter(torch.ones(2, 2))}  # type: ignore[method-assign]
    prepared: Any = module.configure_optimizers()
    optimizer, schedule = prepared["optimizer"], prepared["lr_scheduler"]["scheduler"]
    (group,) = optimizer.param_groups
    assert (type(optimizer).__name__, group["betas"], group["eps"]) == ("AdamW", (0.9, 0.999), 1e-8)
    assert group["weight_decay"] == {"smol_authors_code": 0.01, "smol_paper": 0.0, "smol_peft_metamathqa": 0.1}[name]
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    if name == "smol_authors_code":
        assert rates == [3e-4] * steps
    else:
        rising = 2 if name == "smol_paper" else 5  # 3% and 10% of 50 steps, rounded up
        assert rates[:rising] == pytest.approx([max(rates) * step / rising for step in range(rising)])
        assert rates.index(max(rates)) == rising
        assert rates[-1] < 0.01 * max(rates)


def test_the_authors_cera_is_the_preset() -> None:
    module, _ = made("smol_authors_code")
    assert module.adapter.to_dict() == cera.CeraConfig.authors(64, target_modules=["q_proj", "v_proj"]).to_dict()


def test_the_loras() -> None:
    module, _ = made("smol_authors_code_lora")
    lora = module.adapter
    assert isinstance(lora, GaussianLoraConfig)
    assert (lora.r, lora.lora_alpha, lora.init_std, lora.lora_dropout) == (64, 32, 0.01, 0.1)
    for protocol in ("paper", "ours"):
        baseline = compose(REPOSITORY / "configs" / "adapters" / "lora.yaml")["model"]["adapter"]
        assert baseline["class_path"] == "peft.LoraConfig", protocol
        assert baseline["init_args"]["lora_alpha"] == 2 * baseline["init_args"]["r"]
    assert issubclass(GaussianLoraConfig, LoraConfig)


def test_the_text_of_pefts_benchmark() -> None:
    module, data = made("smol_peft_metamathqa")
    data.setup()
    assert isinstance(module.adapter, cera.CeraConfig)
    stream = data.train_stream
    assert stream is not None
    messages = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "It is 3."}]
    assert stream.encoder.render(messages) == "Question: 1 + 2? Think step by step.\nAnswer:It is 3.<|im_end|>"
    document = stream.encoder(messages)
    assert document is not None
    assert document.labels[1:] == document.input_ids[1:]  # the end, too
