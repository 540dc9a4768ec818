"""Batches whose rows use different adapters, computed in groups: exact, never stale, and looped where they must be."""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from cera import CeraConfig, CeraLayer
from cera.adapters import mixed_batch
from cera.adapters.activations import ACTIVATIONS
from cera.adapters.mixed_batch import Rows, stack_for

IN, OUT = 24, 20
GROUPED = ("silu", "relu", "gelu", "tanh", "identity", "learned_mix", "sine")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def config(**settings):
    return CeraConfig(**{"r": 4, "init_weights": False, **settings})


def layer_with(**adapters):
    """A frozen layer in eval mode with adapters, by name, of these settings; no weight is at its start."""
    first, *others = adapters
    layer = CeraLayer(nn.Linear(IN, OUT), first, adapters[first].get("r", 4), config(**adapters[first]))
    for name in others:
        layer.update_layer(name, adapters[name].get("r", 4), config(**adapters[name]))
    for name, parameter in layer.named_parameters():
        if "gamma" in name:
            nn.init.uniform_(parameter, 0.2, 0.8)
    return layer.eval().requires_grad_(False)


def all_kinds():
    """One adapter of each activation, of different ranks and s."""
    return layer_with(
        **{name: {"activation": name, "r": 2 + 3 * i, "scaling": 0.5 + i} for i, name in enumerate(GROUPED)}
    )


def one_at_a_time(layer, x, names):
    rows = []
    for row, name in zip(x.split(1), names, strict=True):
        output = layer.base_layer(row)
        rows.append(output if name == "__base__" else output + layer.delta(row, output, name).to(output.dtype))
    return torch.cat(rows)


def check(layer, names, x=None, **tolerances):
    """The rows are those of their adapters; returns the stack that was used."""
    x = torch.randn(len(names), 3, IN) if x is None else x
    tolerances = tolerances or {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(layer(x, adapter_names=names), one_at_a_time(layer, x, names), **tolerances)
    return mixed_batch._STACKS.get(layer)


def test_every_activation_of_the_package_is_grouped_and_tested():
    assert set(GROUPED) == set(ACTIVATIONS)
    assert check(all_kinds(), [*GROUPED]).looped == ()


@pytest.mark.parametrize(
    "names",
    [
        [*GROUPED, "__base__", *reversed(GROUPED), "silu", "silu"],
        ["silu"] * 13 + ["tanh", "__base__", "relu"],  # many rows of one adapter: several groups
        ["__base__", "learned_mix"],
        ["__base__"] * 3,
        ["gelu"],
        ["relu", "learned_mix", "relu", "learned_mix"],
    ],
)
@pytest.mark.parametrize("shape", [(IN,), (1, IN), (5, IN), (2, 3, IN), (0, IN)])
def test_rows_equal_those_of_one_adapter_at_a_time(names, shape):
    stack = check(all_kinds(), names, torch.randn(len(names), *shape))
    assert stack.looped == ()


@pytest.mark.parametrize("block", [1, 3 * 4 * IN * 3, 10 * 4 * IN * 3])
def test_blocks_of_groups_change_nothing(block, monkeypatch):
    """Blocks of one group and of several, which cut through the groups of one activation."""
    monkeypatch.setattr(mixed_batch, "BLOCK_BYTES", block)
    mixes = {f"mix{i}": {"activation": "learned_mix", "r": i} for i in (1, 2, 3)}
    layer = layer_with(**mixes, silu={}, silu2={"r": 9}, tanh={"activation": "tanh"})
    names = [*mixes, "silu", "tanh", "__base__", "silu2", *["mix2"] * 5, "silu"]
    assert check(layer, names).looped == ()


@pytest.mark.parametrize("target", ["hook", "alias"])
def test_what_others_keep_of_the_base_is_not_overwritten(target):
    layer = layer_with(one={}, two={})
    kept = []
    if target == "hook":
        layer.base_layer.register_forward_hook(lambda module, args, output: kept.append(output))
    else:
        layer.base_layer = nn.Identity()
        layer.branch_down["one"], layer.branch_down["two"] = (nn.Linear(4, IN, bias=False) for _ in range(2))
        layer.out_features = IN
        layer.requires_grad_(False)
    x = torch.randn(3, 2, IN)
    before = x.clone()
    output = layer(x, adapter_names=["one", "two", "__base__"])
    assert not torch.equal(output, layer.base_layer(x))
    assert torch.equal(x, before)
    assert all(torch.equal(tensor, layer.base_layer(x)) for tensor in [*kept])


def test_each_learned_mix_has_its_own_gamma():
    layer = layer_with(one={"activation": "learned_mix"}, two={"activation": "learned_mix", "r": 2})
    gammas = [layer.branch_activation[name].gamma.item() for name in ("one", "two")]
    assert abs(gammas[0] - gammas[1]) > 0.05
    assert check(layer, ["one", "two", "two", "one", "two"]).looped == ()


@pytest.mark.parametrize("change", ["identity", "half"])
def test_the_comparison_sees_another_activation(change):
    """Negative control of ``check``."""
    layer = layer_with(one={}, two={"r": 3})
    names = ["one", "two", "one"]
    x = torch.randn(3, 3, IN)
    right = layer(x, adapter_names=names)
    for name in ("one", "two"):
        layer.branch_activation[name] = nn.Identity()
        if change == "half":
            layer.branch_up[name].weight.mul_(0.5)  # silu is close to x / 2 near 0
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(one_at_a_time(layer, x, names), right, rtol=1e-5, atol=1e-5)


def test_bf16_rows_equal_those_of_one_adapter_at_a_time():
    layer = all_kinds().to(torch.bfloat16)
    names = [*GROUPED, "__base__", *GROUPED]
    x = torch.randn(len(names), 3, IN, dtype=torch.bfloat16)
    expected = one_at_a_time(copy.deepcopy(layer).float(), x.float(), names)
    assert layer(x, adapter_names=names).dtype == torch.bfloat16
    assert check(layer, names, x, rtol=0.02, atol=0.05).looped == ()
    torch.testing.assert_close(layer(x, adapter_names=names).float(), expected, rtol=0.02, atol=0.05)


def test_fp32_adapters_on_a_bf16_base_and_autocast():
    layer = all_kinds()
    layer.base_layer.to(torch.bfloat16)
    x = torch.randn(7, 3, IN, dtype=torch.bfloat16)
    check(layer, [*GROUPED], x, rtol=0.01, atol=0.01)
    layer.base_layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        check(layer, [*GROUPED], x.float(), rtol=0.02, atol=0.05)


def test_a_row_does_not_touch_others_whatever_their_adapters_hold():
    layer = layer_with(one={}, broken={"r": 9})
    layer.branch_up["broken"].weight.fill_(float("nan"))
    x = torch.randn(5, 2, IN)
    output = layer(x, adapter_names=["one", "broken", "__base__", "one", "one"])
    assert output[1].isnan().all()
    assert torch.equal(output[2], layer.base_layer(x)[2])
    torch.testing.assert_close(output[3:], one_at_a_time(layer, x[3:], ["one", "one"]))


@pytest.mark.parametrize("counts", [(1, 1, 1), (9, 1, 1), (4, 3, 7), (16, 1)])
def test_less_than_half_of_the_places_are_padding(counts):
    adapters = [f"a{i}" for i in range(len(counts))]
    names = [name for name, count in zip(adapters, counts, strict=True) for _ in range(count)]
    rows = Rows.of(names, adapters, torch.device("cpu"))
    assert len(names) <= len(rows.order) == len(rows.groups) * rows.size < 2 * len(names)
    assert sorted(rows.rows.tolist()) == list(range(len(names)))
    assert torch.equal(rows.order[rows.places], rows.rows)
    assert all(names[row] == rows.groups[place // rows.size] for place, row in enumerate(rows.order.tolist()))


# Staleness


def sgd(layer):
    """An optimizer step in eval mode."""
    parameters = [p.requires_grad_() for name, p in layer.named_parameters() if "cera_" in name]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    layer.requires_grad_(False)


def fused_adam(layer):
    parameters = [p.requires_grad_() for name, p in layer.named_parameters() if "cera_" in name]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(parameters, lr=0.5, fused=True).step()
    layer.requires_grad_(False)


def optimizer_without_versions(layer):
    """Like those that write to ``data`` or to raw pointers, after ``train()``."""
    layer.train()
    layer.branch_down["one"].weight.data.mul_(3)
    layer.eval()


def load(layer):
    layer.load_state_dict({name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()})


def load_by_assignment(layer):
    layer.load_state_dict({n: torch.randn_like(t) for n, t in layer.state_dict().items()}, assign=True)
    layer.requires_grad_(False)


def replace(layer):
    layer.update_layer("two", 7, config(r=7, activation="relu", scaling=3.0))
    layer.requires_grad_(False)


def delete_and_add(layer):
    layer.delete_adapter("two")
    layer.update_layer("two", 3, config(r=3))
    layer.requires_grad_(False)


def there_and_back(layer):
    layer.to(torch.bfloat16)
    layer.to(torch.float32)


def part_there_and_back(layer):
    """Moves that the layer does not hear of."""
    for _ in range(3):
        layer.branch_up["one"].to(torch.bfloat16)
        layer.branch_up["one"].to(torch.float32)


def another_scaling(layer):
    layer.scaling["one"] = 5.0


def another_activation(layer):
    layer.branch_activation["two"] = nn.ReLU()


def another_gamma(layer):
    with torch.no_grad():
        layer.branch_activation["mix"].gamma.add_(1)


def data_of_another(layer):
    layer.branch_down["one"].weight.data = torch.randn(OUT, 4)


CHANGES = [
    sgd, fused_adam, optimizer_without_versions, load, load_by_assignment, replace, delete_and_add, there_and_back,
    part_there_and_back, another_scaling, another_activation, another_gamma, data_of_another,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_result_is_stale_after(change, context):
    layer = layer_with(one={}, two={"r": 3, "activation": "tanh"}, mix={"activation": "learned_mix"})
    names, x = ["one", "two", "mix", "__base__", "one"], torch.randn(5, 3, IN)
    with context():
        before = layer(x, adapter_names=names)
    change(layer)
    with context():
        stack = check(layer, names, x)
        assert stack.looped == ()
        assert not torch.equal(layer(x, adapter_names=names), before)  # there was something to see


def test_a_deleted_adapter_adds_nothing_and_frees_its_copy():
    layer = layer_with(one={}, two={})
    x = torch.randn(2, IN)
    layer(x, adapter_names=["one", "two"])
    layer.delete_adapter("two")
    assert layer not in mixed_batch._STACKS
    output = layer(x, adapter_names=["one", "two"])  # as PEFT: a layer without the adapter leaves the row alone
    torch.testing.assert_close(output, one_at_a_time(layer, x, ["one", "__base__"]))


@pytest.mark.parametrize("move", [CeraLayer.half, CeraLayer.train])
def test_a_move_and_training_free_the_copy(move):
    layer = layer_with(one={}, two={})
    check(layer, ["one", "two"])
    move(layer)
    assert layer not in mixed_batch._STACKS


def test_a_list_of_names_that_is_changed_is_read_again():
    layer = layer_with(one={}, two={})
    names, x = ["one", "two"], torch.randn(2, IN)
    check(layer, names, x)
    names.reverse()
    check(layer, names, x)


def test_weights_are_copied_once_for_batches_of_the_same_adapters():
    layer = layer_with(one={}, two={}, three={})
    first = check(layer, ["one", "two", "__base__"])
    assert check(layer, ["one", "two", "__base__"]).up is first.up
    assert check(layer, ["__base__", "two", "one"]).up is first.up  # other rows
    assert check(layer, ["three", "two", "one"]).up is not first.up


def test_copies_of_a_layer_are_independent():
    layer = layer_with(one={}, two={})
    names = ["one", "two"]
    check(layer, names)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert clone not in mixed_batch._STACKS
        clone.branch_up["one"].weight.mul_(2)
        check(clone, names)
    check(layer, names)


# What is looped


def hooked(layer):
    seen = []
    layer.branch_up["odd"].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"recurrent_steps": 2},
        {"activation": "sigmoid"},
        {"activation": "gelu_new"},
    ],
)
def test_what_cannot_be_grouped_is_computed_beside_the_groups(settings):
    layer = layer_with(one={}, odd=settings, two={"r": 2})
    for name, parameter in layer.named_parameters():
        if "magnitude" in name or "outer" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    stack = check(layer, ["odd", "one", "__base__", "two", "odd"])
    assert stack.looped == ("odd",)
    assert set(stack.rows.groups) == {"one", "two"}
    assert check(layer, ["odd", "odd"]).rows is None


def test_hooks_on_a_branch_run_as_before():
    layer = layer_with(one={}, odd={})
    names = ["odd", "one", "odd"]
    assert check(layer, names).looped == ()
    seen = hooked(layer)
    layer(torch.randn(3, IN), adapter_names=names)
    assert seen == [2]


def test_adapters_of_another_dtype_are_looped():
    layer = layer_with(one={}, odd={})
    layer.branch_up["odd"].double()
    layer.branch_down["odd"].double()
    assert check(layer, ["odd", "one"]).looped == ("one",)  # the first of the names decides


def test_weights_made_in_inference_mode_are_looped_since_their_changes_are_not_counted():
    with torch.inference_mode():
        layer = layer_with(one={}, two={})
        assert check(layer, ["one", "two"]).looped == ("one", "two")
        layer.branch_up["one"].weight.mul_(2)
        check(layer, ["one", "two"])


def test_gradients_are_those_of_the_loop():
    layer = layer_with(one={}, two={})
    x = torch.randn(3, IN)
    names = ["one", "two", "one"]
    with torch.no_grad():
        check(layer, names, x)
    layer.requires_grad_(True)
    weights = [layer.branch_up["one"].weight, layer.branch_down["two"].weight]
    actual = torch.autograd.grad(layer(x, adapter_names=names).square().sum(), weights)
    expected = torch.autograd.grad(one_at_a_time(layer, x, names).square().sum(), weights)
    torch.testing.assert_close(actual, expected)
    layer.requires_grad_(False)
    (grad,) = torch.autograd.grad(layer(x.requires_grad_(), adapter_names=names).sum(), x)
    assert stack_for(layer, x, x, names) is None
    assert grad.abs().sum() > 0


def test_a_layer_compiles():
    layer = layer_with(one={}, two={})
    names, x = ["one", "two", "__base__"], torch.randn(3, IN)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, adapter_names=names), one_at_a_time(layer, x, names))


# In a model


class Two(nn.Module):
    """A linear layer and a block, for adapters beside the one and around the other."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nn.Linear(IN, IN), nn.Sequential(nn.Linear(IN, IN), nn.Tanh())
        self.config = type("Config", (), {"hidden_size": IN, "model_type": "custom"})()

    def forward(self, hidden_states):
        return self.block(self.first(hidden_states))


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["first"]}, {"target_modules": ["block"], "granularity": "module"}]
)
def test_a_model_checks_at_each_call(settings):
    model = get_peft_model(Two(), config(**settings)).eval()
    model.add_adapter("other", config(**{**settings, "r": 2, "activation": "relu"}))
    model.eval()
    x, names = torch.randn(3, 2, IN), ["default", "other", "__base__"]

    @torch.no_grad()
    def expected():
        rows = []
        for row, name in zip(x.split(1), names, strict=True):
            with model.disable_adapter() if name == "__base__" else torch.no_grad():
                model.set_adapter("default" if name == "__base__" else name)
                rows.append(model(row))
        return torch.cat(rows)

    with torch.no_grad():
        torch.testing.assert_close(model(x, adapter_names=names), expected())
        before = model(x, adapter_names=names)
        state = get_peft_model_state_dict(model, adapter_name="other")
        set_peft_model_state_dict(model, {name: 2 * tensor for name, tensor in state.items()}, "other")
        after = model(x, adapter_names=names)
        torch.testing.assert_close(after, expected())
        assert not torch.equal(after[1], before[1])
        assert torch.equal(after[[0, 2]], before[[0, 2]])
