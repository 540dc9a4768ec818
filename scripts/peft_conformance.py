"""Runs PEFT's own generic tests, from the source distribution of the installed PEFT, against CeRA.

    python scripts/peft_conformance.py [pytest options]

The sdist is fetched with pip and unpacked in a temporary folder, CeRA is put into the lists of cases that the
tests run over, and beside Lily where they skip what cannot be merged; pytest is given the cases that name CeRA.
Nothing of PEFT's is kept. Needs `pip install diffusers parameterized` besides the dev extra.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import peft
from transformers import AutoConfig, AutoModelForCausalLM

CUSTOM_CASES = """
    ("CeRA MLP 1", "MLP", cera.CeraConfig, {"target_modules": "lin0", "r": 4}),
    ("CeRA MLP 2", "MLP", cera.CeraConfig, {"target_modules": ["lin0", "lin1"], "r": 4, "dropout": 0.0}),
    ("CeRA MLP 3", "MLP", cera.CeraConfig, {"target_modules": ["lin1"], "activation": "relu"}),
    ("CeRA MLP 4", "MLP", cera.CeraConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("CeRA Conv1D", "EmbConv1D", cera.CeraConfig, {"target_modules": ["conv1d"], "dropout": 0.0}),
"""
MULTIPLE_ACTIVE_CASES = """
    ("CeRA Same", "cera", cera.CeraConfig, {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0},
     {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0}),
    ("CeRA Different", "cera", cera.CeraConfig, {"target_modules": ["lin0"], "init_weights": False, "dropout": 0.0},
     {"target_modules": ["lin1"], "init_weights": False, "dropout": 0.0}),
"""
MIXED_BATCH_CASES = """
    ("CeRA mixed adapter", cera.CeraConfig(target_modules=["lin0"], init_weights=False),
     cera.CeraConfig(target_modules=["lin0"], r=16, init_weights=False)),
"""
DECODER_CASES = """
    (cera.CeraConfig, {"task_type": "CAUSAL_LM", "target_modules": None, "r": 8}),
"""
# The one test that merges without asking whether the method can; CeRA's refusal is in tests/adapters/test_cera_peft.py.
CHOSEN = "(CeRA or CeraConfig) and not mixed_adapter_batches_merged_raises"
TINY_MODELS = {
    "tiny-LlamaForCausalLM": ("llama", {"hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 4}),
    "tiny-GPT2LMHeadModel": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    "tiny-OPTForCausalLM": ("opt", {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16}),
}


def fetch_tests(folder: Path) -> Path:
    """Download and unpack the sdist of the installed PEFT; returns its ``tests`` folder."""
    pin = f"peft=={peft.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), pin], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("peft-*/tests"))


def replace_once(path: Path, old: str, new: str) -> None:
    """Replace the one place of ``path`` that reads ``old``; a text that moved is an error, not a smaller test run."""
    source = path.read_text()
    if source.count(old) != 1:
        raise RuntimeError(f"{path.name} of PEFT {peft.__version__} has {source.count(old)} places {old!r}, not one")
    path.write_text(source.replace(old, new))


def insert_after(path: Path, line: str, text: str) -> None:
    """Put ``text`` behind the only line of ``path`` that is ``line``."""
    replace_once(path, f"\n{line}\n", f"\n{line}\n{text}")


def save_tiny_models(folder: Path) -> str:
    """Small random decoders in place of the ones PEFT's tests take from the hub; returns a list literal of paths."""
    paths = []
    for name, (model_type, settings) in TINY_MODELS.items():
        config = AutoConfig.for_model(
            model_type,
            vocab_size=300,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **settings,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        paths.append(str(folder / name))
    return f"PEFT_DECODER_MODELS_TO_TEST = {paths!r}\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        tests = fetch_tests(Path(folder))
        (tests / "__init__.py").touch()  # the sdist leaves it out
        custom, decoder = tests / "test_custom_models.py", tests / "test_decoder_models.py"
        common = tests / "testing_common.py"
        for path in (custom, decoder, common):
            path.write_text("import cera\n" + path.read_text().replace("from __future__ import annotations", ""))
        # what CeRA cannot do is skipped where Lily, which cannot either, is; what it can do is not skipped
        replace_once(
            common, "issubclass(config_cls, LilyConfig)", "issubclass(config_cls, (LilyConfig, cera.CeraConfig))"
        )
        for supported in ("LoraConfig, RoadConfig", "LoraConfig,", "IA3Config, LoHaConfig, LoKrConfig, LoraConfig"):
            replace_once(
                common, f"config_cls not in ({supported})", f"config_cls not in (cera.CeraConfig, {supported})"
            )
        insert_after(custom, "TEST_CASES = [", CUSTOM_CASES)
        insert_after(custom, "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [", MULTIPLE_ACTIVE_CASES)
        insert_after(custom, "MIXED_ADAPTER_TEST_CASES = [", MIXED_BATCH_CASES)
        mixed = 'if config_cls != LoraConfig:\n            pytest.skip("Mixed adapter'
        decoder.write_text(
            decoder.read_text().replace(mixed, mixed.replace("!= LoraConfig", "not in (LoraConfig, cera.CeraConfig)"))
        )
        insert_after(decoder, "ALL_CONFIGS = [", DECODER_CASES)
        source = decoder.read_text()
        start = source.index("PEFT_DECODER_MODELS_TO_TEST = [")
        end = source.index("]\n", start) + 2
        decoder.write_text(source[:start] + save_tiny_models(Path(folder)) + source[end:])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
        command += ["--rootdir", str(tests.parent), "-k", CHOSEN]
        return subprocess.run([*command, str(custom), str(decoder), *sys.argv[1:]], cwd=tests.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
