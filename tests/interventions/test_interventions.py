"""Interventions on a model: what each part computes, what is measured of it, and that the model is left as it was."""

import re

import numpy as np
import pytest
import torch
from families import build
from peft import LoraConfig, PeftModel, get_peft_model
from token_batches import token_batches
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import cera
import cera.interventions
from cera.interventions import LEVELS, InterventionError, Replacement, Summarizer, conditions, fit, intervened, measure
from cera.interventions.exact_match import CONDITIONS
from cera.interventions.summary import decile_numbers

Q_PROJ_1 = "model.layers.1.self_attn.q_proj"


def adapted(base: str, config: type = cera.CeraConfig, dtype: torch.dtype = torch.float32, **options) -> PeftModel:
    """Return a model as after training: W_down is not zero, and pre-activations are in the non-linear range."""
    torch.manual_seed(0)
    settings = config(**{"r": 8, "init_weights": False, "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), settings)
    for name, parameter in model.named_parameters():
        if name.endswith("up.default.weight"):
            parameter.data *= 4
    return model.eval()


@pytest.fixture(scope="module")
def batches():
    """Eight batches of three documents, whose first nine tokens are the prompt."""
    batches = token_batches(8, vocabulary=1000, length=40, padded_from=25)
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(~batch["tokens"] | (batch["position_ids"] < 9), -100)
        padding = (torch.arange(40) - 25).expand(3, -1)
        batch["position_ids"] = torch.where(batch["tokens"], batch["position_ids"], padding)
    return batches


def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        result = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    return result[batch["tokens"]].double()


def latents(model: PeftModel, batch: dict, fits: dict, part: str, level: str, name: str = Q_PROJ_1) -> torch.Tensor:
    """What the activation of a layer gives in an intervention."""
    seen = []
    with intervened(model, fits, part, level):
        activation = model.get_submodule(f"base_model.model.{name}").branch_activation["default"]
        handle = activation.register_forward_hook(lambda _, args, output: seen.append(output[batch["tokens"]]))
        logits(model, batch)
        handle.remove()
    return torch.cat(seen).double()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_the_fit_is_that_of_the_pre_activations_in_the_model(tiny_llama, batches):
    model = adapted(tiny_llama)
    up = model.get_submodule(f"base_model.model.{Q_PROJ_1}").branch_up["default"]
    seen = []
    handle = up.register_forward_hook(lambda _, args, z: seen.append(z[batch["tokens"]].double().detach()))
    for batch in batches[:6]:
        logits(model, batch)
    handle.remove()
    z = torch.cat(seen)
    design = np.hstack([z, np.ones((len(z), 1))])
    solution, *_ = np.linalg.lstsq(design, F.silu(z), rcond=None)
    fitted = fit(model, batches[:6], batches[6:])[Q_PROJ_1]
    np.testing.assert_allclose(fitted.maps["full"].matrix, solution[:-1].T, atol=1e-5)
    np.testing.assert_allclose(fitted.maps["full"].offset, solution[-1], atol=1e-5)
    assert fitted.tokens == len(z)
    residual = F.silu(z) - fitted.maps["full"](z)
    assert fitted.calibration["full"].curvature == pytest.approx(
        (residual.square().sum() / F.silu(z).square().sum()).item(), rel=1e-4
    )
    assert 0 < fitted.held_out["full"].curvature != fitted.calibration["full"].curvature


@pytest.mark.parametrize("level", LEVELS)
def test_with_the_identity_all_parts_but_the_gain_are_zero(tiny_llama, batches, level):
    model = adapted(tiny_llama, activation="identity")
    fits = fit(model, batches[:6], batches[6:])
    for fitted in fits.values():
        energies, matrix = fitted.held_out[level], fitted.maps[level].matrix
        identity = torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(matrix if level == "full" else matrix * identity, identity, atol=1e-6, rtol=0)
        assert energies.r_squared == pytest.approx(1, abs=1e-12)
        assert energies.gain == pytest.approx(1, abs=1e-9)
        assert max(energies.offset, energies.curvature) < 1e-12
    whole, none = (latents(model, batches[7], fits, part, level) for part in ("whole", "none"))
    for part in ("offset", "curvature"):
        assert (latents(model, batches[7], fits, part, level) - none).norm() < 1e-6 * whole.norm()
    for part in ("gain", "affine"):
        assert relative(latents(model, batches[7], fits, part, level), whole) < 1e-6
    scores = measure(model, batches[6:], fits, conditions([level]))
    assert max(scores.kl[f"gain {level}"].max(), scores.kl[f"affine {level}"].max()) < 1e-8
    np.testing.assert_allclose(scores.nll[f"curvature {level}"], scores.base, atol=1e-4)
    assert scores.kl["none"].mean() > 0.01  # the adapter does something


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_non_linear_activation_has_curvature(tiny_llama, batches, activation):
    model = adapted(tiny_llama, activation=activation)
    fits = fit(model, batches[:6], batches[6:])
    for fitted in fits.values():
        assert all(energies.curvature > 0.01 for energies in fitted.held_out.values())
    scores = measure(model, batches[6:], fits, conditions(["full"]))
    assert scores.kl["affine full"].mean() > 1e-3
    assert scores.kl["curvature full"].mean() > 1e-3


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu_new"])
def test_affine_plus_curvature_is_the_whole(tiny_llama, batches, activation, level):
    """In the first layers, which see the same input in every condition: the latent, and the layer's update."""
    model = adapted(tiny_llama, activation=activation)
    fits = fit(model, batches[:6])
    first = {"model.layers.0.self_attn.v_proj": fits["model.layers.0.self_attn.v_proj"]}
    (name,) = first
    parts = {part: latents(model, batches[7], first, part, level, name) for part in cera.interventions.PARTS}
    assert relative(parts["affine"] + parts["curvature"], parts["whole"]) < 1e-6
    assert relative(parts["gain"] + parts["offset"], parts["affine"]) < 1e-6
    assert relative(parts["affine"], parts["whole"]) > 0.01
    layer = model.get_submodule(f"base_model.model.{name}")
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    updates = {}
    for part in cera.interventions.PARTS:
        with intervened(model, first, part, level), torch.no_grad():
            updates[part] = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(updates["affine"] + updates["curvature"], updates["whole"], atol=1e-5, rtol=1e-5)
    assert updates["none"].abs().max() == 0


def test_none_is_the_base_and_whole_the_adapter(tiny_llama, batches):
    model = adapted(tiny_llama)
    fits = fit(model, batches[:2])
    unchanged = logits(model, batches[7])
    with model.disable_adapter():
        base = logits(model, batches[7])
    with intervened(model, fits, "none"):
        torch.testing.assert_close(logits(model, batches[7]), base, rtol=0, atol=0)
    with intervened(model, fits, "whole"):
        torch.testing.assert_close(logits(model, batches[7]), unchanged, rtol=0, atol=0)
    assert not torch.equal(base, unchanged)


def test_scores_are_those_of_a_direct_computation(tiny_llama, batches):
    model = adapted(tiny_llama)
    fits = fit(model, batches[:6])
    scores = measure(model, batches[6:], fits, conditions(["scalar"]))
    expected: dict[str, list[torch.Tensor]] = {"base": [], "whole": [], "gain": [], "kl": [], "problem": []}
    problem = 0
    for batch in batches[6:]:
        predictions = {}
        with torch.no_grad():
            for part in ("whole", "gain"):
                with intervened(model, fits, part, "scalar"):
                    predictions[part] = model(batch["input_ids"], position_ids=batch["position_ids"]).logits
            with model.disable_adapter():
                predictions["base"] = model(batch["input_ids"], position_ids=batch["position_ids"]).logits
        for row in range(3):
            labels = batch["labels"][row, 1:]
            mask = labels != -100
            for part, predicted in predictions.items():
                expected[part].append(F.cross_entropy(predicted[row, :-1][mask], labels[mask], reduction="none"))
            p, q = (predictions[part][row, :-1][mask].double().softmax(dim=-1) for part in ("whole", "gain"))
            expected["kl"].append((p * (p.log() - q.log())).sum(dim=-1))
            expected["problem"].append(torch.full((int(mask.sum()),), problem))
            problem += 1
    direct = {name: torch.cat(parts).numpy() for name, parts in expected.items()}
    np.testing.assert_allclose(scores.base, direct["base"], atol=1e-4)
    np.testing.assert_allclose(scores.nll["whole"], direct["whole"], atol=1e-4)
    np.testing.assert_allclose(scores.nll["gain scalar"], direct["gain"], atol=1e-4)
    np.testing.assert_allclose(scores.kl["gain scalar"], direct["kl"], atol=1e-6)
    np.testing.assert_array_equal(scores.problem, direct["problem"])
    np.testing.assert_allclose(cera.interventions.adapter_nll(model, batches[6:]), scores.nll["whole"])


def test_one_layer_alone(tiny_llama, batches):
    model = adapted(tiny_llama)
    fits = fit(model, batches[:4], layers=[1])
    assert list(fits) == [f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")]
    seen = []
    with intervened(model, {Q_PROJ_1: fits[Q_PROJ_1]}, "none"):
        for name, module in model.named_modules():
            if isinstance(module, Replacement):
                seen.append(name)
    assert [Q_PROJ_1 in name for name in seen] == [True]


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (cera.CeraConfig, {"granularity": "module"}),
        (cera.CeraConfig, {"use_dora": True}),
        (cera.ParallelConfig, {}),
        (cera.HoulsbyConfig, {}),
    ],
)
def test_other_adapters_with_branches(tiny_llama, batches, config, options):
    model = adapted(tiny_llama, config, **options)
    fits = fit(model, batches[:6], batches[6:])
    assert all(0 < fitted.held_out["full"].r_squared < 0.9999 for fitted in fits.values())
    scores = measure(model, batches[6:], fits, conditions(["full"]))
    assert scores.kl["affine full"].mean() < scores.kl["gain full"].mean()


@pytest.mark.parametrize("options", [{"activation": "learned_mix"}, {"activation": "identity", "recurrent_steps": 2}])
def test_a_latent_with_weights_of_its_own(tiny_llama, batches, options):
    """At the start both are the identity: the mix has gamma 0, and the outer map of the recurrence is zero."""
    model = adapted(tiny_llama, **options)
    trained = [weight for name, weight in model.named_parameters() if "gamma" in name or "outer" in name]
    assert len(trained) == 8
    for weight in trained:
        weight.data.zero_()
    for fitted in fit(model, batches[:6], batches[6:]).values():
        assert max(fitted.held_out["full"].offset, fitted.held_out["full"].curvature) < 1e-12
    for weight in trained:
        weight.data.fill_(0.7)
    fits = fit(model, batches[:6], batches[6:])
    assert all(fitted.held_out["full"].curvature > 1e-3 for fitted in fits.values())
    first = {"model.layers.0.self_attn.v_proj": fits["model.layers.0.self_attn.v_proj"]}
    parts = {part: latents(model, batches[7], first, part, "full", *first) for part in cera.interventions.PARTS}
    assert relative(parts["affine"] + parts["curvature"], parts["whole"]) < 1e-6


def test_a_bf16_model(tiny_llama, batches):
    model = adapted(tiny_llama, dtype=torch.bfloat16)
    fits = fit(model, batches[:6])
    for part in cera.interventions.PARTS:
        with intervened(model, fits, part):
            assert torch.isfinite(logits(model, batches[7])).all()


def test_the_model_is_left_as_it_was(tiny_llama, batches):
    model = adapted(tiny_llama, dropout=0.5).train()
    before = {name: type(module) for name, module in model.named_modules()}
    fits = fit(model, batches[:4])
    assert all(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError), intervened(model, fits, "affine"):
        raise ZeroDivisionError
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    again = fit(model.eval(), batches[:4])  # dropout is off in training mode, too
    assert fits[Q_PROJ_1].calibration == again[Q_PROJ_1].calibration


def test_deciles_have_the_easiest_tokens_first():
    numbers = decile_numbers(np.arange(95)[::-1] / 95)
    assert np.bincount(numbers)[1:].tolist() == [10, 9, 10, 9, 10, 9, 10, 9, 10, 9]
    assert numbers[0] == 10
    assert numbers[-1] == 1
    assert (np.diff(numbers) <= 0).all()
    assert decile_numbers(np.zeros(10)).tolist() == list(range(1, 11))
    with pytest.raises(ValueError, match="at least 10 answer tokens, got 9"):
        decile_numbers(np.zeros(9))


def test_the_summary_is_of_the_tokens(tiny_llama, batches):
    model = adapted(tiny_llama)
    scores = measure(model, batches[6:], fit(model, batches[:6]), conditions(["full"]))
    other = scores.nll["whole"] + np.linspace(-1, 1, len(scores.base))
    summarizer = Summarizer(scores, resamples=200)
    summaries = {summary.label: summary for summary in summarizer.conditions()}
    assert list(summaries) == ["whole", "none", *(f"{part} full" for part in cera.interventions.PARTS[2:])]
    gain = summaries["gain full"]
    assert gain.nll.value == pytest.approx(scores.nll["gain full"].mean())
    assert gain.difference.value == pytest.approx(gain.nll.value - summaries["whole"].nll.value)
    assert gain.difference.low < gain.difference.value < gain.difference.high
    assert gain.kl.value == pytest.approx(scores.kl["gain full"].mean())
    assert vars(summaries["whole"].difference) == vars(summaries["whole"].kl) == {"value": 0, "low": 0, "high": 0}
    deciles = summarizer.deciles(other)
    where = decile_numbers(scores.base) == 3
    assert deciles[2].tokens == where.sum()
    assert deciles[2].base.value == pytest.approx(scores.base[where].mean())
    assert deciles[2].difference["none"].value == pytest.approx(
        (scores.nll["none"] - scores.nll["whole"])[where].mean()
    )
    assert deciles[2].benefit.value == pytest.approx((other - scores.nll["whole"])[where].mean())
    assert Summarizer(scores, resamples=200).conditions() == summarizer.conditions()  # seeded


def test_what_is_refused(tiny_llama, batches):
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InterventionError, match="no branch of an adapter 'default' with an activation"):
        fit(lora, batches)
    model = adapted(tiny_llama)
    with pytest.raises(InterventionError, match="no branch of an adapter 'other'"):
        fit(model, batches, adapter="other")
    with pytest.raises(InterventionError, match="layers must be among 0, 1, 2, 3, got 4"):
        fit(model, batches, layers=[1, 4])
    few = {name: value[:1, :9] for name, value in batches[0].items()}
    with pytest.raises(InterventionError, match="have 9 tokens, which a full map of r=8 fits whatever"):
        fit(model, [few])
    fits = fit(model, batches[:2])
    with (
        pytest.raises(InterventionError, match=r"part must be one of whole, .* got 'slope' and 'full'"),
        intervened(model, fits, "slope"),
    ):
        pass
    with (
        pytest.raises(InterventionError, match="no adapted layer nowhere"),
        intervened(model, {"nowhere": fits[Q_PROJ_1]}, "gain"),
    ):
        pass
    unlabelled = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches[:1]]
    with pytest.raises(InterventionError, match="no answer token"):
        measure(model, unlabelled, fits, [])
    with pytest.raises(InterventionError, match="in training mode"):
        measure(model.train(), batches, fits, [])
    model.get_submodule(f"base_model.model.{Q_PROJ_1}").cera_up["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=re.escape(Q_PROJ_1)):
        fit(model, batches[:2])


def test_experts_are_refused():
    mixtral = build("mixtral")
    model = get_peft_model(
        mixtral, cera.CeraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    )
    with pytest.raises(InterventionError, match="experts are not supported"):
        fit(model, [])


def test_the_task_has_the_whole_adapter_first():
    assert CONDITIONS[0].part == "whole"
