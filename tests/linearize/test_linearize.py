"""The linearization is the least-squares solution: against NumPy, other LoRAs, and in the model it is exported for."""

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from token_batches import token_batches
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import cera
from cera.adapters import ACTIVATIONS
from cera.linearize import least_squares
from cera.linearize.command import main
from cera.spectral import NonFiniteError, SpectrumAccumulator

Q_PROJ_1 = "model.layers.1.self_attn.q_proj"


def random_layer(
    seed: int, tokens: int, inputs: int, r: int, outputs: int, activation: str
) -> tuple[torch.Tensor, ...]:
    """Return inputs, W_up and W_down of a CeRA layer, and its update; its pre-activations make it non-linear."""
    generator = torch.Generator().manual_seed(seed)
    x, up, down = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, inputs), (r, inputs), (outputs, r))
    )
    return x, up, down, ACTIVATIONS[activation]()(x @ up.T) @ down.T


def residual(x: torch.Tensor, weight: torch.Tensor, u: torch.Tensor) -> float:
    return (u - x @ weight.T).square().sum().item()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 60),
    inputs=st.integers(1, 12),
    r=st.integers(1, 8),
    outputs=st.integers(1, 12),
    rank=st.integers(1, 8),
    activation=st.sampled_from(["relu", "silu", "tanh", "identity"]),
    log_size=st.floats(-6, 0),
)
def test_never_worse_than_any_lora_of_that_rank(seed, tokens, inputs, r, outputs, rank, activation, log_size):
    x, w_up, w_down, u = random_layer(seed, tokens, inputs, r, outputs, activation)
    [(up, down)] = least_squares(x, u)
    best = residual(x, down[:, :rank] @ up[:rank], u)
    bound = best - 1e-9 * u.square().sum().item()
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    others = [noise(down[:, :rank]) @ noise(up[:rank]), torch.zeros(u.shape[1], inputs, dtype=torch.float64)]
    for product in (w_down @ w_up, np.linalg.lstsq(x, u, rcond=None)[0].T):  # the truncated SVD of either
        left, sigma, right = torch.linalg.svd(torch.as_tensor(product), full_matrices=False)
        others.append((left[:, :rank] * sigma[:rank]) @ right[:rank])
    for _ in range(5):  # neighbours of the solution, of the same rank
        size = 10**log_size
        others.append((down[:, :rank] + size * noise(down[:, :rank])) @ (up[:rank] + size * noise(up[:rank])))
    b = noise(down[:, :rank])
    for _ in range(10):  # alternating least squares from a random start: the strongest competitor
        a = torch.linalg.pinv(x) @ u @ torch.linalg.pinv(b).T
        b = (torch.linalg.pinv(x @ a) @ u).T
        others.append(b @ a.T)
    for other in others:
        scale = (u * (x @ other.T)).sum() / (x @ other.T).square().sum().clamp_min(1e-300)
        assert residual(x, other, u) >= bound
        assert residual(x, scale * other, u) >= bound


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    inputs=st.integers(1, 12),
    dependent=st.integers(0, 6),
    activation=st.sampled_from(["silu", "relu"]),
)
def test_full_rank_is_numpys_least_squares_whatever_the_rank_of_the_data(seed, tokens, inputs, dependent, activation):
    x, w_up, w_down, _ = random_layer(seed, tokens, inputs, 4, 6, activation)
    x[:, :dependent] = x[:, :dependent].mean(dim=1, keepdim=True) if dependent else x[:, :dependent]
    u = ACTIVATIONS[activation]()(x @ w_up.T) @ w_down.T
    [(up, down)] = least_squares(x, u)
    expected = np.linalg.lstsq(x, u, rcond=1e-12)[0].T
    np.testing.assert_allclose(down @ up, expected, atol=1e-7 * max(1, np.abs(expected).max()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), activation=st.sampled_from(["silu", "relu"]))
def test_a_higher_rank_keeps_more(seed, activation):
    x, _, _, u = random_layer(seed, 50, 10, 6, 8, activation)
    [(up, down)] = least_squares(x, u)
    left = [residual(x, down[:, :rank] @ up[:rank], u) for rank in range(len(up) + 1)]
    assert all(more >= less - 1e-9 for more, less in pairwise(left))


def test_the_streamed_factor_is_accurate_where_moments_are_not():
    """Condition number 1e9, as for massive activations: that of the moments is 1e18, beyond fp64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator, dtype=torch.float64) * torch.logspace(0, -9, 20, dtype=torch.float64)
    weight = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    stream = SpectrumAccumulator()
    for part in torch.cat([x, x @ weight.T], dim=1).split(30):
        stream.update(part)
    [(up, down)] = least_squares(*stream.factor.split([20, 5], dim=1))
    assert (down @ up - weight).abs().max() < 1e-4
    by_moments = torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ (x @ weight.T))
    assert (by_moments.T - weight).abs().max() > 0.1


@pytest.fixture(scope="module")
def batches():
    return token_batches(8, vocabulary=1000, length=40, padded_from=25)


def adapted(base: str, dtype: torch.dtype = torch.float32, name: str = "default", **options) -> PeftModel:
    """Return a model as after training: W_down is not zero, and pre-activations are in the non-linear range."""
    torch.manual_seed(0)
    config = cera.CeraConfig(**{"r": 8, "scaling": 0.5, "init_weights": False, "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), config, adapter_name=name)
    for module, parameter in model.named_parameters():
        if "cera_up" in module:
            parameter.data *= 4
    return model.eval()


def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        result = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    return result[batch["tokens"]].double()


def loaded(base: str, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()


def test_exact_where_the_activation_is_the_identity(tiny_llama, batches, tmp_path):
    model = adapted(tiny_llama, activation="identity")
    result = cera.linearize(model, batches)
    assert len(result.layers) == 8
    for layer in result.layers:
        assert layer.rank == 8
        assert [layer.fit_share, layer.held_out_share, layer.any_rank_share] == pytest.approx([1, 1, 1], abs=1e-12)
        adapted_layer = model.get_submodule(f"base_model.model.{layer.name}")
        expected = 0.5 * adapted_layer.cera_down["default"].weight @ adapted_layer.cera_up["default"].weight
        torch.testing.assert_close(layer.down @ layer.up, expected, rtol=1e-5, atol=1e-5)
    result.save(tmp_path)
    torch.testing.assert_close(
        logits(loaded(tiny_llama, tmp_path), batches[0]), logits(model, batches[0]), rtol=1e-4, atol=2e-5
    )


def test_a_bf16_model_is_not_less_linear_for_its_rounding(tiny_llama, batches):
    result = cera.linearize(adapted(tiny_llama, torch.bfloat16, activation="identity"), batches)
    assert [result.fit_share, result.held_out_share] == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_shares_and_weights_are_those_of_the_layers_in_the_model(tiny_llama, batches, activation):
    model = adapted(tiny_llama, activation=activation)
    layer = model.get_submodule(f"base_model.model.{Q_PROJ_1}")
    seen = {"x": [], "u": []}
    handles = [
        layer.base_layer.register_forward_hook(lambda _, args, output: seen.update(base=output)),
        layer.register_forward_hook(lambda _, args, output: seen["u"].append((output - seen["base"])[mask].double())),
        layer.register_forward_pre_hook(lambda _, args: seen["x"].append(args[0][mask].double())),
    ]
    for batch in batches:
        mask = batch["tokens"]
        logits(model, batch)
    for handle in handles:
        handle.remove()
    held = {key: np.concatenate(seen[key][::4]) for key in "xu"}
    fit = {key: np.concatenate([part for i, part in enumerate(seen[key]) if i % 4]) for key in "xu"}

    result = cera.linearize(model, batches, rank=3)
    mine = next(layer for layer in result.layers if layer.name == Q_PROJ_1)
    assert result.tokens == (len(fit["x"]), len(held["x"]))
    solution = np.linalg.lstsq(fit["x"], fit["u"], rcond=None)[0]
    right = np.linalg.svd(fit["x"] @ solution)[2][:3]
    expected = solution @ right.T @ right

    def share(data: dict, weight: np.ndarray) -> float:
        return 1 - np.square(data["u"] - data["x"] @ weight).sum() / np.square(data["u"]).sum()

    np.testing.assert_allclose((mine.down @ mine.up).T, expected, atol=1e-4 * np.abs(expected).max())
    assert mine.fit_share == pytest.approx(share(fit, expected), abs=1e-5)
    assert mine.held_out_share == pytest.approx(share(held, expected), abs=1e-5)
    assert mine.any_rank_share == pytest.approx(share(held, solution), abs=1e-5)
    assert 0.1 < mine.held_out_share < mine.any_rank_share < 0.99
    assert result.fit_share == pytest.approx(np.mean([layer.fit_share for layer in result.layers]))


def test_the_result_does_not_depend_on_batching(tiny_llama, batches):
    model = adapted(tiny_llama)
    fit, held = batches[1:], batches[:1]
    whole = cera.linearize(model, [joined(fit)], held_out=held)
    pieces = [{name: part[None] for name, part in zip(batch, row, strict=True)}
              for batch in fit for row in zip(*batch.values(), strict=True)]  # fmt: skip
    unsplit = {**joined(fit), "input_ids": joined(fit)["input_ids"].masked_fill(~joined(fit)["tokens"], 7)}
    for result in (
        cera.linearize(model, iter(pieces), held_out=iter(held)),
        cera.linearize(model, fit, held_out=held, layers_at_a_time=1),
        cera.linearize(model, fit, held_out=held, layers_at_a_time=3),
        cera.linearize(model, [unsplit], held_out=held),  # the ids in the padding do not count
    ):
        assert [layer.name for layer in result.layers] == [layer.name for layer in whole.layers]
        for ours, theirs in zip(result.layers, whole.layers, strict=True):
            torch.testing.assert_close(ours.down @ ours.up, theirs.down @ theirs.up, rtol=1e-3, atol=1e-4)
            assert [ours.fit_share, ours.held_out_share] == pytest.approx(
                [theirs.fit_share, theirs.held_out_share], abs=1e-5
            )
        assert result.tokens == whole.tokens


def test_layers_with_the_same_input_share_its_factor(tiny_llama, batches, monkeypatch):
    """Otherwise the fit would take twice the documented memory."""
    names = []

    def accumulator(name: str) -> SpectrumAccumulator:
        names.append(name)
        return SpectrumAccumulator(name)

    monkeypatch.setattr(sys.modules["cera.linearize.fit"], "SpectrumAccumulator", accumulator)
    cera.linearize(adapted(tiny_llama, target_modules=["q_proj", "v_proj", "o_proj"]), batches)
    prefixes = [f"model.layers.{i}.self_attn" for i in range(4)]
    assert sorted(names) == sorted(f for p in prefixes for f in (f"{p}.q_proj, {p}.v_proj", f"{p}.o_proj"))


def joined(batches: list[dict]) -> dict:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_fewer_tokens_than_inputs(tiny_llama, batches, tmp_path):
    """Chance explains the whole update, which the held-out share reveals."""
    small = {name: value[:1, :5] for name, value in batches[0].items()}
    result = cera.linearize(adapted(tiny_llama), [small], held_out=batches[1:])
    assert result.fit_share == pytest.approx(1, abs=1e-9)
    assert result.held_out_share < 0.5
    assert {layer.rank for layer in result.layers} == {5}
    result.save(tmp_path)
    loaded(tiny_llama, tmp_path)


def test_plain_batches_with_an_attention_mask(tiny_llama, batches):
    model = adapted(tiny_llama)
    plain = [{"input_ids": b["input_ids"], "attention_mask": b["tokens"].long()} for b in batches]
    result, expected = cera.linearize(model, plain), cera.linearize(model, batches)
    assert result.tokens == expected.tokens
    assert [layer.fit_share for layer in result.layers] == pytest.approx(
        [layer.fit_share for layer in expected.layers], abs=1e-5
    )


def test_the_model_is_left_as_it_was(tiny_llama, batches):
    model = adapted(tiny_llama, dropout=0.5).train()
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    result = cera.linearize(model, batches, rank=2)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
    again = cera.linearize(model.eval(), batches, rank=2)  # dropout is off in training mode, too
    assert [layer.fit_share for layer in result.layers] == [layer.fit_share for layer in again.layers]


EXPORTS = {
    "default": {},
    "rank": {"rank": 3},
    "ranks": {"rank": 6, "rank_pattern": {"v_proj": 4, r"layers\.2\.self_attn\.q_proj": 12}},
    "some layers": {"layers_to_transform": [1, 3]},
    "wider than its output": {"r": 48},
    "whole modules": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_export_loads_in_plain_peft_and_merges(tiny_llama, batches, tmp_path, name):
    options = dict(EXPORTS[name])
    rank = options.pop("rank", None)
    model = adapted(tiny_llama, activation="identity", **options)
    if name == "whole modules":
        model.get_submodule("base_model.model.model.norm.modules_to_save.default").weight.data *= 1.5
    result = cera.linearize(model, batches, rank)
    result.save(tmp_path)
    lora = loaded(tiny_llama, tmp_path)
    names = {module.rpartition(".")[0] for module, _ in lora.named_modules() if module.endswith("lora_A")}
    assert names == {f"base_model.model.{layer.name}" for layer in result.layers}
    for layer in result.layers:
        ours, theirs = (peft_model.get_submodule(f"base_model.model.{layer.name}") for peft_model in (lora, model))
        assert ours.r["default"] == layer.rank == min(rank or 99, theirs.r["default"], theirs.out_features)
        torch.testing.assert_close(ours.get_delta_weight("default"), layer.down @ layer.up)
    unmerged = logits(lora, batches[0])
    if rank is None:
        torch.testing.assert_close(unmerged, logits(model, batches[0]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits(lora.merge_and_unload(), batches[0]), unmerged, rtol=1e-4, atol=1e-4)


def test_the_export_needs_neither_this_package_nor_its_adapter(tiny_llama, batches, tmp_path):
    model = adapted(tiny_llama)
    result = cera.linearize(model, batches)
    result.save(tmp_path)
    assert result.config.target_modules == {"q_proj", "v_proj"}
    script = f"""
import sys, warnings
warnings.simplefilter("error", UserWarning)
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained({str(tmp_path)!r})
assert "cera" not in sys.modules
print(type(model.peft_config["default"]).__name__)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert done.stdout.strip() == "LoraConfig", done.stderr


def test_transposed_linears(batches, tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=1000))
    base.save_pretrained(tmp_path / "base")
    model = adapted(str(tmp_path / "base"), activation="identity", target_modules=["c_attn"])
    cera.linearize(model, batches).save(tmp_path / "lora")
    lora = loaded(str(tmp_path / "base"), tmp_path / "lora")
    torch.testing.assert_close(logits(lora, batches[0]), logits(model, batches[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        logits(lora.merge_and_unload(), batches[0]), logits(model, batches[0]), rtol=1e-4, atol=1e-4
    )


def test_an_untrained_adapter_has_nothing_to_lose(tiny_llama, batches):
    result = cera.linearize(adapted(tiny_llama, init_weights=True), batches)
    assert (result.fit_share, result.held_out_share) == (1, 1)
    assert all(torch.count_nonzero(layer.up) == 0 for layer in result.layers)


def test_an_adapter_by_name(tiny_llama, batches):
    model = adapted(tiny_llama)
    model.add_adapter("second", cera.CeraConfig(r=4, init_weights=False, activation="relu"))
    with pytest.raises(ValueError, match=r"'second' must be the only active one, .*set_adapter\('second'\)"):
        cera.linearize(model, batches, adapter="second")
    model.set_adapter("second")
    result = cera.linearize(model, batches, adapter="second")
    assert {layer.rank for layer in result.layers} == {4}


def test_an_adapter_inside_of_a_wrapped_module(tiny_llama, batches, tmp_path):
    model = adapted(tiny_llama, granularity="module", name="around")
    inside = cera.CeraConfig(r=4, init_weights=False, activation="identity", target_modules=["q_proj"])
    model.add_adapter("inside", inside)
    model.set_adapter("inside")
    result = cera.linearize(model, batches, adapter="inside")
    assert [layer.name for layer in result.layers] == [f"model.layers.{i}.self_attn.q_proj" for i in range(4)]
    assert result.config.target_modules == {"q_proj"}
    result.save(tmp_path)
    lora = loaded(tiny_llama, tmp_path)
    torch.testing.assert_close(logits(lora, batches[0]), logits(model, batches[0]), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_linearized(tiny_llama, batches):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(ValueError, match="must be a PeftModel with a CeRA adapter, got a LlamaForCausalLM"):
        cera.linearize(base, batches)
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"'default' is a LoraConfig.*cera\.CeraConfig"):
        cera.linearize(lora, batches)
    module_level = cera.CeraConfig(granularity="module", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"has granularity='module'.* CeRA beside linear layers only"):
        cera.linearize(get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), module_level), batches)
    model = adapted(tiny_llama)
    with pytest.raises(ValueError, match="'other' is not in the model, which has default"):
        cera.linearize(model, batches, adapter="other")
    for field in ("rank", "layers_at_a_time"):
        with pytest.raises(ValueError, match=f"{field} must be a positive integer, got 0"):
            cera.linearize(model, batches, **{field: 0})
    with pytest.raises(ValueError, match="0 batches to fit to and 1 to hold out"):
        cera.linearize(model, batches[:1])
    model.get_submodule(f"base_model.model.{Q_PROJ_1}").cera_up["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=re.escape(Q_PROJ_1)):
        cera.linearize(model.train(), batches)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


# The command


def test_command(two_runs, tmp_path, capsys):
    out = tmp_path / "deep" / "lora"
    assert main([str(two_runs / "cera"), "--rows", "40", "--rank", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    rows = re.findall(r"^(model\.\S+|mean) +(\d*) +(\S+) +(\S+) +(\S+)$", printed.out, re.MULTILINE)
    assert len(rows) == 9
    assert rows[-1][0] == "mean"
    assert {row[1] for row in rows[:-1]} == {"4"}
    assert np.mean([float(row[3]) for row in rows[:-1]]) == pytest.approx(float(rows[-1][3]), abs=0.001)
    base, cera_, lora = map(float, re.search(r"base (\S+), CeRA (\S+), LoRA (\S+)\.$", printed.out, re.M).groups())
    assert cera_ < base
    assert lora == pytest.approx(cera_, rel=0.05)
    assert (out / "linearized.png").read_bytes().startswith(b"\x89PNG")
    assert LoraConfig.from_pretrained(out).r == 4
    report = json.loads((out / "linearization.json").read_text())
    assert [f"{100 * report[share]:.3f}" for share in ("fit_share", "held_out_share", "any_rank_share")] == list(
        rows[-1][2:]
    )
    assert [layer["name"] for layer in report["layers"]] == [row[0] for row in rows[:-1]]
    assert {name: f"{value:.4f}" for name, value in report["perplexity"].items()} == {
        "base": f"{base:.4f}", "CeRA": f"{cera_:.4f}", "LoRA": f"{lora:.4f}"
    }  # fmt: skip
    assert main([str(two_runs / "cera"), "--out", str(out)]) == 2
    assert f"--out: {out} exists already" in capsys.readouterr().err
    assert main([str(two_runs / "cera"), "--rows", "40", "--rank", "2", "--out", str(out), "--overwrite"]) == 0
    assert LoraConfig.from_pretrained(out).r == 2
    assert json.loads((out / "linearization.json").read_text())["layers"][0]["rank"] == 2


def test_command_on_an_adapter_directory_and_a_chat_file(two_runs, tmp_path, capsys):
    adapter = shutil.copytree(two_runs / "cera" / "adapter", tmp_path / "my-adapter")
    data = tmp_path / "chats.jsonl"
    turns = '{"role": "user", "content": "How many are %d and 1?"}, {"role": "assistant", "content": "#### 2"}'
    data.write_text("\n".join('{"messages": [' + turns.replace("%d", str(i)) + "]}" for i in range(200)))
    options = ["--data", str(data), "--rows", "150", "--layers-at-a-time", "2", "--out", str(tmp_path / "lora")]
    assert main([str(adapter), *options]) == 0
    assert "Perplexity on the held-out rows" in capsys.readouterr().out


def test_the_accuracy_of_the_lora_is_evaluated_and_compared_like_that_of_any_adapter(two_runs, tmp_path, capsys):
    """As the page on interventions says."""
    from cera.evaluation.command import main as evaluate
    from cera.evaluation.compare_command import main as compare

    lora = tmp_path / "lora"
    assert main([str(two_runs / "cera"), "--rows", "40", "--out", str(lora)]) == 0
    dataset = "{class_path: cera.data.ReasoningGymWordProblems, init_args: {size: 4, skip: 10}}"
    (tmp_path / "task.yaml").write_text(
        "evaluation:\n  name: tiny\n  sampling: {max_new_tokens: 2}\n"
        f"  task: {{class_path: cera.evaluation.tasks.Chats, init_args: {{dataset: {dataset}}}}}\n"
    )
    for adapter, out in ((two_runs / "cera", tmp_path / "cera"), (lora, lora)):
        options = ["--config", str(tmp_path / "task.yaml"), "--adapter", str(adapter), "--out", str(out)]
        assert evaluate(options) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert compare([str(tmp_path / "cera"), str(lora)]) == 0
    assert "McNemar's exact test" in capsys.readouterr().out


def test_perplexity_is_that_of_all_labelled_tokens(tiny_llama, batches):
    from cera.linearize.command import perplexity

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    labelled = [
        {**b, "labels": b["input_ids"].masked_fill(~b["tokens"] | (b["position_ids"] < 9), -100)} for b in batches
    ]
    sums, count = 0.0, 0
    for batch in labelled:
        with torch.no_grad():
            result = model(batch["input_ids"], position_ids=batch["position_ids"]).logits[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        sums += F.cross_entropy(result, labels, reduction="sum").item()
        count += (labels != -100).sum().item()
    assert perplexity(model, labelled) == pytest.approx(np.exp(sums / count), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "holds neither a run nor an adapter"),
        (["{runs}/lora"], "lora/adapter: peft_type LORA, "),
        (["{hybrid}"], "hybrid: peft_type CERA, granularity weight, target_parameters None, use_dora True"),
        (["{runs}/cera", "--rank", "0"], "--rank must be at least 1, got 0"),
        (["{runs}/cera", "--layers-at-a-time", "0"], "--layers-at-a-time must be at least 1, got 0"),
        (["{runs}/cera", "--rows", "0"], "--rows must be at least 1, got 0"),
        (["{runs}/cera", "--rows", "2"], "--rows 2 make 1 batch, too few"),
        (["{runs}/cera", "--base", "{tmp}/nowhere"], "nowhere"),
        (["{runs}/cera", "--data", "{tmp}/missing.jsonl"], "no such file"),
    ],
)
def test_errors(two_runs, tiny_llama, tmp_path, capsys, arguments, message):
    hybrid = tmp_path / "hybrid"
    adapted(tiny_llama, use_dora=True).save_pretrained(hybrid)
    given_ = [argument.format(tmp=tmp_path, runs=two_runs, hybrid=hybrid) for argument in arguments]
    assert main([*given_, "--out", str(tmp_path / "lora")]) == 2
    printed = capsys.readouterr().err
    assert message in printed.splitlines()[-1]
    assert not (tmp_path / "lora").exists()
