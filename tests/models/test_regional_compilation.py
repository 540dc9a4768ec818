"""Compiled layers compute what the layers compute, dropout included, and only where compiled code can be used."""

import pytest
import torch
from command_line import STRATEGIES, command, losses, run_here
from fitting import fit
from peft import get_peft_model
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

import cera
from cera.callbacks import SpectralTracker
from cera.models.compiled_layers import compile_layers
from cera.spectral.files import spectra_files

ADAPTER = cera.CeraConfig(r=8, dropout=0.1, target_modules=["q_proj", "v_proj"], init_weights=False)


def adapted(base: str):
    model = AutoModelForCausalLM.from_pretrained(base).requires_grad_(False)
    model.config.use_cache = False
    torch.manual_seed(0)
    return get_peft_model(model, ADAPTER).train()


def passes(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits and gradients of one forward and backward, by name."""
    torch.manual_seed(1)
    logits = model(input_ids=ids).logits
    model.zero_grad()
    logits.log_softmax(-1)[..., 0].sum().backward()
    return {"logits": logits.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}}


def compiled_frames() -> int:
    return counters["frames"]["ok"]


@pytest.fixture
def pair(tiny_llama):
    """The same model plain, and with compiled layers."""
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = adapted(tiny_llama), adapted(tiny_llama)
    assert compile_layers(compiled) == compiled.config.num_hidden_layers
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    return plain, compiled


@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_the_plain_layers(pair, checkpointing):
    ids = torch.randint(200, (2, 24), generator=torch.Generator().manual_seed(0))
    if checkpointing:
        for model in pair:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    before = compiled_frames()
    plain, compiled = (passes(model, ids) for model in pair)
    assert compiled_frames() > before
    assert not counters["graph_break"]
    assert plain.keys() == compiled.keys()
    for name, expected in plain.items():
        assert torch.allclose(compiled[name], expected, rtol=1e-4, atol=1e-5), name


def test_layers_run_plain_in_eval_mode_and_where_a_hook_listens(pair):
    plain, compiled = pair
    ids = torch.randint(200, (2, 24))
    before, heard = compiled_frames(), []
    with torch.no_grad():
        assert torch.equal(compiled.eval()(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)
    ups = [module for name, module in compiled.named_modules() if name.endswith("cera_up.default")]
    handles = [up.register_forward_hook(lambda module, args, output: heard.append(output.shape)) for up in ups]
    compiled.train()(input_ids=ids)
    assert len(heard) == len(ups) > 0
    assert compiled_frames() == before
    for handle in handles:
        handle.remove()
    compiled(input_ids=ids)
    assert compiled_frames() > before


@pytest.mark.slow
def test_fifty_steps_are_those_of_the_plain_layers(tiny_llama, tmp_path):
    torch._dynamo.reset()
    options = {"max_steps": 50, "val_check_interval": 25}
    before = compiled_frames()
    fit(tiny_llama, tmp_path / "plain", [], **options)
    assert compiled_frames() == before
    tracker = SpectralTracker(batches=1, every_n_steps=25)  # which listens to two of the steps
    fit(tiny_llama, tmp_path / "compiled", [tracker], compile_layers=True, **options)
    assert compiled_frames() > before
    for column in ("train/loss", "val/perplexity"):
        plain, compiled = losses(tmp_path / "plain", column), losses(tmp_path / "compiled", column)
        assert list(compiled.values()) == pytest.approx(list(plain.values()), rel=1e-3)
    assert len(losses(tmp_path / "compiled")) == 50
    assert list(spectra_files(tmp_path / "compiled")) == [25, 50]


def test_a_missing_compiler_is_told_before_anything_is_loaded(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, printed = run_here(monkeypatch, capsys, [*command(tiny_llama, tmp_path), "--model.compile_layers=true"])
    assert status == 2
    assert "the C++ compiler no-such-compiler (model.compile_layers=true" in printed
    assert not list(tmp_path.iterdir())


def test_zero_3_is_refused(tiny_llama, tmp_path, monkeypatch, capsys):
    arguments = command(tiny_llama, tmp_path, "--model.compile_layers=true", *STRATEGIES["zero3"])
    status, printed = run_here(monkeypatch, capsys, arguments)
    assert status == 2
    assert "model.compile_layers: ZeRO-3 gathers" in printed
    assert not list(tmp_path.iterdir())
