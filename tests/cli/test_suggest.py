"""A mistake on a command line is one line that says what was meant; nothing is abbreviated."""

import pytest
from command_line import command, run_here
from conftest import REPOSITORY

from cera.cli.main import COMMANDS, main
from cera.cli.shipped import similar_files
from cera.cli.similar import closest
from cera.cli.suggest import CLASSES, ELSEWHERE, explained, import_class, subclass_paths

SMOL = "--config=configs/smol_cera.yaml"

NEAR_MISSES = [
    # abbreviations, and names as other programs have them
    (f"{SMOL} --trainer.max_step=3", "Did you mean --trainer.max_steps?"),
    (f"{SMOL} --trainer.max-steps=3", "Did you mean --trainer.max_steps?"),
    (f"{SMOL} --data.batch=3", "Did you mean --data.batch_size?"),
    (f"{SMOL} --conf=configs/smol_lora.yaml", "Did you mean --config?"),
    (f"{SMOL} --model.lr=1e-3", "Did you mean --model.learning_rate?"),
    (f"{SMOL} --lr 1e-3", "Did you mean --model.learning_rate?"),
    (f"{SMOL} --epochs=3", "Did you mean --trainer.max_epochs?"),
    (f"{SMOL} --seed=3", "Did you mean --seed_everything?"),
    (f"{SMOL} --rank=3", "Did you mean --model.adapter.init_args.r?"),
    (f"{SMOL} --ckpt-path=last", "Did you mean --ckpt_path?"),
    # a key of another group, or without its group
    (f"{SMOL} --max_steps=3", "Did you mean --trainer.max_steps?"),
    (f"{SMOL} --model.batch_size=3", "Did you mean --data.batch_size?"),
    (f"{SMOL} --data.learning_rte=3", "Did you mean --model.learning_rate?"),
    (f"{SMOL} --something=3", "`--help` and `--print_config` list all."),
    # arguments of classes
    (f"{SMOL} --model.adapter.init_args.rank=3", "Option 'rank' is not accepted. Use r."),
    (f"{SMOL} --model.adapter.dropot=3", "Did you mean dropout? It takes"),
    (f"{SMOL} --data.dataset.init_args.sise=3", "Did you mean size? It takes"),
    # classes
    (f"{SMOL} --model.adapter=cera.CeraConfg", "there is no class cera.CeraConfg. Did you mean cera.CeraConfig?"),
    (f"{SMOL} --model.adapter=CERAConfg", "Did you mean cera.CeraConfig?"),
    (f"{SMOL} --model.adapter=peft.LoRAConfig", "peft.LoRAConfig. Did you mean peft.LoraConfig"),
    (f"{SMOL} --model.adapter=cera.LoraConfig", "Did you mean peft.LoraConfig?"),
    (f"{SMOL} --data.dataset=GSM8K", "Did you mean cera.data.GSM8KSolutions?"),
    (f"{SMOL} --trainer.callbacks+=cera.callbacks.LRRobustnes", "Did you mean cera.callbacks.LRRobustness?"),
    (f"{SMOL} --trainer.logger=WandBLogger", "Did you mean lightning.pytorch.loggers.WandbLogger?"),
    # configurations
    ("configs/smol_cera.yaml", "Did you mean --config configs/smol_cera.yaml?"),
    ("fit cera://smol_cera", "Did you mean --config cera://smol_cera?"),
    ("--config configs/smol_cer.yaml", "/configs/smol_cera.yaml?"),
    ("--config smol_cera", "Did you mean cera://smol_cera?"),
    ("--config cera://smol_cer", "Did you mean smol_cera?"),
    ("validat --config configs/smol_cera.yaml", "Did you mean validate?"),
    ("", "error: model.base is not set: give --config FILE"),
    ("--config configs/parts/smol.yaml", "error: model.adapter is not set"),
    # values
    (f"{SMOL} --trainer.max_steps=ten", "error: trainer.max_steps must be int, got ten."),
    (f"{SMOL} --model.quantization=nf3", "error: model.quantization must be nf4, int8 or null, got nf3."),
    (f"{SMOL} --data.overlong=cut", "error: data.overlong must be truncate, drop, got cut."),
    (f"{SMOL} --evaluation.name=x", "Evaluation: the following arguments are required: task."),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), NEAR_MISSES, ids=lambda text: text.removeprefix(SMOL).strip()[:40])
def test_a_near_miss_is_one_line_with_what_was_meant(monkeypatch, capsys, line, expected) -> None:
    status, printed = run_here(monkeypatch, capsys, ["", "", *line.split()])
    assert status == 2, printed
    (error,) = printed.splitlines()
    assert error.startswith("error: ")
    assert expected in error


def test_a_key_in_a_file_is_suggested_too(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_step: 3}\n")
    status, printed = run_here(monkeypatch, capsys, ["", "", SMOL, f"--config={tmp_path / 'mine.yaml'}"])
    assert status == 2
    assert "Did you mean trainer.max_steps?" in printed


def test_an_included_file_is_suggested(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "mine.yaml").write_text("include: recip.yaml\n")
    status, printed = run_here(monkeypatch, capsys, ["", "", f"--config={tmp_path / 'mine.yaml'}"])
    assert status == 2
    assert f"Did you mean {tmp_path / 'recipe.yaml'}?" in printed


OTHERS = {
    "compare": ["a", "b", "--nam=x"],
    "overlap": ["--train=a.jsonl", "--test=b.jsonl", "--thresh=0.5"],
    "spectra": ["runs/a", "--quantit=latent"],
    "import": ["a.pt", "--base=b", "--out=c", "--activatio=silu"],
    "linearize": ["runs/a", "--row=3"],
    "intervene": ["runs/a", "--fit-row=3"],
    "lr-robustness": ["runs", "--ou=x.png"],
    "compare-adapters": ["a.yaml", "b.yaml", "--run=x"],
    "study": ["plan", "configs/studies/smol_lr.yaml", "--shel"],
    "train-together": ["--log=x"],
    "pretrain": ["--config=configs/pretraining/tunnel.yaml", "--pretraining.step=3"],
    "estimate": [SMOL, "--device=3"],
    "evaluate": ["--config=configs/eval_gsm8k.yaml", "--adapte=runs/a"],
}
"""An abbreviated option of each other command; those of lm-eval and of vLLM (serve) are their own."""


def test_every_command_is_tried() -> None:
    assert OTHERS.keys() == COMMANDS.keys() - {"train", "lm-eval", "serve"}


@pytest.mark.parametrize("name", OTHERS)
def test_no_command_takes_abbreviations(name, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    *_, abbreviated = OTHERS[name]
    try:
        status = main([name, *OTHERS[name]])
    except SystemExit as left:
        status = left.code
    assert status == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "unrecognized arguments" in error
    assert abbreviated.partition("=")[0] in error
    assert "Did you mean --" in error


def test_names_of_other_programs_lead_to_keys_that_exist(monkeypatch, capsys) -> None:
    known = command("x", "runs")
    for key in set(ELSEWHERE.values()):
        value = {"model.base": "x", "trainer.precision": "32", "runs": "x", "ckpt_path": "last"}.get(key, "1")
        status, printed = run_here(monkeypatch, capsys, [*known, f"--{key}={value}", "--print_config"])
        assert status == 0, printed


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_suggested_by_paths_that_exist(name) -> None:
    paths = subclass_paths(import_class(CLASSES[name]))
    assert paths
    for path in paths:
        assert issubclass(import_class(path), import_class(CLASSES[name]))


def test_closest() -> None:
    assert closest("max_step", ["max_steps", "max_time"]) == ["max_steps"]
    assert closest("smol", ["smol_cera", "smol_lora"], cutoff=0.5) == ["smol_lora", "smol_cera"]
    assert closest("x", ["abc"]) == []


def test_similar_files(tmp_path) -> None:
    (tmp_path / "recipe.yaml").touch()
    assert similar_files(tmp_path / "recipes.yaml") == f"Did you mean {tmp_path / 'recipe.yaml'}?"
    assert similar_files(tmp_path / "none" / "smol_lora.yaml") == "Did you mean cera://smol_lora?"
    assert similar_files(tmp_path / "none" / "xyz.yaml") == ""


def test_a_message_that_is_not_known_is_put_on_one_line() -> None:
    assert explained("something\n  else", []) == "something else"


def test_help_shows_ours_first_and_lightnings_behind_help_all(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, short = run_here(monkeypatch, capsys, ["", "", "fit", "--help"])
    assert status == 0
    assert len(short.splitlines()) < 135
    assert "known subclasses" not in short
    order = ["usage: cera train [fit] --config FILE", "--name ", "--model.base", "--data.dataset", "--ckpt_path"]
    assert sorted(order, key=short.index) == order
    assert "--trainer.max_steps" not in short
    assert "--help-all" in short
    assert run_here(monkeypatch, capsys, ["", "", "--help"]) == (0, short)
    status, everything = run_here(monkeypatch, capsys, ["", "", "fit", "--help-all"])
    assert status == 0
    order += ["--trainer.accelerator", "--trainer.model_registry"]
    assert sorted(order, key=everything.rindex) == order
    status, validate = run_here(monkeypatch, capsys, ["", "", "validate", "--help"])
    assert "usage: cera train validate" in validate
    assert "default: the newest one" in " ".join(validate.split())
