"""The installed wheel, outside of any checkout: as a library, as a Lightning callback, and as commands."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import REPOSITORY

LIBRARY = """
import torch, cera
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

assert cera.__file__.startswith({site!r}), cera.__file__
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                    vocab_size=32))
state = {{name: tensor.clone() for name, tensor in base.state_dict().items()}}
model = get_peft_model(base, cera.CeraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False))
tokens = torch.arange(8)[None]
expected = model.eval()(tokens).logits
model.save_pretrained("adapter")
again = LlamaForCausalLM(base.config)
again.load_state_dict(state)
torch.testing.assert_close(PeftModel.from_pretrained(again, "adapter").eval()(tokens).logits, expected)
"""

TRACKER = """
import lightning, torch, cera
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from cera.callbacks import SpectralTracker


class Mine(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        base = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                            num_attention_heads=2, vocab_size=32))
        self.model = get_peft_model(base, cera.CeraConfig(r=4, target_modules=["q_proj", "v_proj"]))

    def training_step(self, batch, index):
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

    def validation_step(self, batch, index):
        self.training_step(batch, index)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


rows = [{"input_ids": torch.randint(32, (16,)), "tokens": torch.ones(16, dtype=torch.bool)} for _ in range(8)]
loader = torch.utils.data.DataLoader(rows, batch_size=4)
trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, callbacks=[SpectralTracker()])
trainer.fit(Mine(), loader, loader)
assert trainer.callback_metrics["spectra/effective_rank/mean"] > 1, trainer.callback_metrics
"""


class Environment:
    """A fresh virtual environment and an empty working directory, outside of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        venv.create(folder / "venv")
        self.bin = folder / "venv" / "bin"
        self.site = next((folder / "venv").glob("lib/python*/site-packages"))

    def install(self, *arguments: str) -> None:
        """Install by the pip of the tests' environment."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, *arguments], check=True, timeout=1500)

    def run(self, program: str, *arguments: str, expect: int = 0) -> str:
        """Run a program of the environment in the working directory; return what it prints."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CERA_RUN_DIR")}
        settings = {**inherited, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [self.bin / program, *arguments], cwd=self.work, env=settings, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, links included."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("cera", "callbacks", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source)]
    subprocess.run([sys.executable, "-m", *build], check=True, timeout=300)
    return next(built.glob("cera-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, beside the dependencies of the tests' environment but not the checkout that is installed there."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install("--no-deps", "--no-index", str(wheel))
    (environment.site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_nothing_but_cera_is_in_site_packages(installed: Environment) -> None:
    names = {path.name for path in installed.site.iterdir()}
    assert {name for name in names if not name.endswith((".dist-info", ".pth"))} == {"cera"}
    configurations = {path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").rglob("*.yaml")}
    packaged = installed.site / "cera" / "configs"
    assert {path.relative_to(packaged) for path in packaged.rglob("*.yaml")} == configurations
    assert (packaged / "models" / "llama-3-8b" / "config.json").is_file()


def test_cera_is_a_peft_method(installed: Environment) -> None:
    installed.run("python", "-c", LIBRARY.format(site=str(installed.site)))


def test_the_tracker_works_in_a_trainer_of_ones_own(installed: Environment) -> None:
    installed.run("python", "-c", TRACKER)


def test_commands(installed: Environment, tiny_llama: str) -> None:
    base = f"--model.base={tiny_llama}"
    short = [
        "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.num_sanity_val_steps=0",
        "--model.adapter.init_args.r=4", "--model.learning_rate=0.01", "--data.dataset.init_args.size=60",
        "--data.validation_rows=4", "--data.batch_size=2", "--answer_tokens=0", "--trainer.precision=32-true",
    ]  # fmt: skip
    installed.run("cera", "train", "--config", "cera://smol_cera", base, "--name=mine", *short)
    run = installed.work / "runs" / "mine"
    assert (run / "adapter" / "adapter_config.json").is_file()
    assert (run / "spectra" / "step=2.safetensors").is_file()

    task = ["--evaluation.task.init_args.dataset.init_args.size=3", "--evaluation.sampling.max_new_tokens=4"]
    installed.run("cera", "evaluate", "--config", "cera://eval_smol", "--adapter", "runs/mine", *task)
    assert (run / "eval" / "smol" / "eval.json").is_file()
    assert "McNemar" in installed.run("cera", "compare", "runs/mine", "runs/mine")
    assert "CeRA" in installed.run("cera", "spectra", "runs/mine", "--rows", "8", "--out", "spectra.png")
    assert "Perplexity" in installed.run("cera", "linearize", "runs/mine", "--rows", "40", "--out", "lora")
    assert (installed.work / "lora" / "adapter_model.safetensors").is_file()
    assert "smol_cera" in installed.run("cera", "estimate", "--config", "cera://smol_cera", base)


@pytest.mark.slow
def test_the_core_has_four_dependencies(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("--constraint", str(REPOSITORY / "constraints.txt"), str(wheel))
    environment.run("python", "-c", LIBRARY.format(site=str(environment.site)))
    assert "commands:" in environment.run("cera", "--help")
    missing = environment.run("cera", "train", "--config", "cera://smol_cera", expect=2).splitlines()
    assert missing[-1].startswith("error: `cera train` needs ")
    assert missing[-1].endswith(": pip install 'cera[train]'")
    for room in ("cera.callbacks", "cera.training", "cera.data", "cera.memory", "cera.studies"):
        printed = environment.run("python", "-c", f"import {room}", expect=1)
        assert "pip install 'cera[train]'" in printed.splitlines()[-1]
