import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from cera import CeraConfig
from cera.memory.activations import activations
from cera.memory.roofline import GATHERS, H100, MicroBatch, Operation, Operations, communication_seconds, trace
from cera.models.backbone import load_model
from cera.training.module import CausalLM
from cera.training.throughput import TrainingFlops
from scripts import scaling_page

ROWS, LENGTH = 2, 96
TARGETS = {"qv": ["q_proj", "v_proj"], "down": ["q_proj", "down_proj"]}


def build(base: str, targets: str = "qv", r: int = 8, checkpointing: bool = True, attention: str = "sdpa") -> CausalLM:
    adapter = CeraConfig(r=r, dropout=0.1, target_modules=TARGETS[targets])
    return CausalLM(base, adapter, gradient_checkpointing=checkpointing, attn_implementation=attention)


def counted_by_torch(base: str, **settings) -> int:
    module = build(base, attention="eager", **settings)
    model = get_peft_model(load_model(base, torch.float32, None, "eager"), module.peft_config()).train()
    if module.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module.model, module._trainer = model, None
    _ = module.head_is_last  # runs a skeleton once, which must not be counted
    ids = torch.randint(1000, (ROWS, LENGTH))
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    with FlopCounterMode(display=False) as counted:
        module.answer_nll({"input_ids": ids, "labels": ids, "position_ids": positions})[0].sum().backward()
    return counted.get_total_flops()


@pytest.mark.parametrize("targets", TARGETS)
def test_flops_are_those_that_torch_counts(tiny_llama, targets):
    def ours(**settings) -> float:
        return trace(build(tiny_llama, targets, attention="eager", **settings), "32-true", ROWS, LENGTH).flops

    counts = [
        (ours(**settings), counted_by_torch(tiny_llama, targets=targets, **settings))
        for settings in ({}, {"checkpointing": False}, {"r": 16})
    ]
    for traced, counted in counts:
        assert traced == counted
    assert len({traced for traced, _ in counts}) == 3  # the count would notice another setting


@pytest.mark.parametrize("targets", TARGETS)
def test_flops_by_hand(tiny_llama, targets):
    """4 N + 6 T and the head for training, and what checkpointing repeats; attention of causal pairs alone."""
    module = build(tiny_llama, targets)
    traced = trace(module, "32-true", ROWS, LENGTH).flops
    flops, tokens, pairs = TrainingFlops.from_model(module.model), ROWS * LENGTH, ROWS * LENGTH * (LENGTH + 1) / 2
    required = flops.count(tokens, ROWS * (LENGTH - 1), pairs)
    recomputed = 2 * tokens * (flops.frozen + flops.trained) + pairs * flops.attention / 3
    last_product = {"qv": 128 * 64, "down": 8 * 64}[targets]  # of a layer: its output is not needed again
    expected = required + recomputed - 2 * tokens * 4 * last_product
    assert traced == expected
    assert traced != expected - 2 * tokens


def test_each_layer_adds_the_same(tiny_llama, tmp_path):
    config = json.loads(Path(tiny_llama, "config.json").read_text())

    def costs(layers: int) -> tuple[float, ...]:
        base = tmp_path / str(layers)
        base.mkdir()
        (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        module = build(str(base))
        batch = trace(module, "bf16-true", ROWS, LENGTH)
        assert batch.activations == activations(module, "bf16-true", ROWS, LENGTH)
        return batch.flops, batch.seconds(H100), batch.seconds(H100, products_only=True), batch.activations

    two, three, seven = costs(2), costs(3), costs(7)
    for a, b, c in zip(two, three, seven, strict=True):
        assert b > a
        assert c == pytest.approx(a + 5 * (b - a))


# Operations


def test_operations_that_move_bytes():
    x, w = torch.ones(4, 8), torch.ones(8, 2)
    with Operations() as operations:
        x.view(32).unsqueeze(0)
        torch.empty(100)
        x + 1
        x.add_(1)
        x @ w
        torch.ones(1, 8).expand(4, 8) * 2
    assert operations.ran == [
        Operation(0, 4 * (32 + 32)),
        Operation(0, 4 * (32 + 32)),
        Operation(2 * 4 * 8 * 2, 4 * (32 + 16 + 8)),
        Operation(0, 4 * (8 + 32)),
    ]


@given(st.floats(0, 1e18), st.floats(0, 1e15), st.floats(0.01, 1))
def test_an_operation_is_bound_by_products_or_by_memory(flops, size, attainable):
    device = replace(H100, attainable=attainable)
    seconds = MicroBatch((Operation(flops, size),), 0).seconds(device)
    products, passes = flops / (989.4e12 * attainable), size / (3.35e12 * attainable)
    assert seconds == pytest.approx(max(products, passes))
    assert seconds <= MicroBatch((Operation(2 * flops, size),), 0).seconds(device)
    assert seconds <= MicroBatch((Operation(flops, 2 * size),), 0).seconds(device)
    assert seconds >= MicroBatch((Operation(flops, size),), 0).seconds(replace(device, attainable=1))


def test_time_without_what_is_fused():
    batch = MicroBatch((Operation(1e12, 1), Operation(0, 1e9)), 0)
    assert batch.seconds(H100) == pytest.approx(H100.product_seconds(1e12) + H100.pass_seconds(1e9))
    assert batch.seconds(H100, products_only=True) == pytest.approx(H100.product_seconds(1e12))


# Communication


def test_a_collective_within_a_node_and_across():
    size = 1e9
    times = {ranks: H100.collective_seconds(size, ranks) for ranks in (1, 2, 8, 16, 512, 10**6)}
    assert times[1] == 0
    assert times[8] == pytest.approx(7 / 8 * size / (450e9 * 0.8))
    assert times[16] == pytest.approx(15 / 16 * size / (400e9 * 0.8))
    assert list(times.values()) == sorted(times.values())
    assert times[10**6] == pytest.approx(size / (400e9 * 0.8), rel=1e-5)
    assert replace(H100, network_bandwidth=1e12).collective_seconds(size, 16) < times[16]


def test_what_each_stage_sends():
    weights, trained, ranks = 16e9, 1e8, 8
    gather, reduce = H100.collective_seconds(weights, ranks), H100.collective_seconds(trained, ranks)
    assert communication_seconds(H100, None, ranks, weights, trained) == (0, 2 * reduce)
    assert communication_seconds(H100, 2, ranks, weights, trained) == (reduce, reduce)
    assert communication_seconds(H100, 3, ranks, weights, trained) == (reduce + GATHERS * gather, 0)
    assert communication_seconds(H100, 3, 1, weights, trained) == (0, 0)


# The page


def test_reading_takes_its_budget_at_its_limit():
    way = scaling_page.Reading("a way", shared=1e-6, repeated=1e-7)
    limit = way.limit(speed=10_000, budget=1.02)
    assert way.share(10_000, limit) == pytest.approx(1.02)
    assert way.limit(20_000, 1.02) < limit
    assert way.limit(10_000, 0.005) == 0  # what is shared costs more already


def test_memory_is_that_of_the_command(tmp_path):
    """As ``cera estimate`` says, which traces all layers."""
    from cera.memory.estimate import TrainingRun, estimate

    module = scaling_page.build(str(REPOSITORY / "configs" / "models" / "llama-3-8b"), "q, v", 128)
    run = TrainingRun("page", "CeRA", module, scaling_page.ROWS, scaling_page.LENGTH, "bf16-true", 2, 8)
    one = scaling_page.case("8B", "q, v", 128)
    estimated = {row.stage: row.memory for row in estimate(run)}
    assert [one.memory(8, stage) for stage in (2, 3)] == [estimated[2], estimated[3]]
    assert one.memory(64, 3) != estimated[3]


def test_the_page_is_what_the_script_writes(monkeypatch):
    written = (REPOSITORY / "docs" / "scaling.md").read_text()
    assert scaling_page.page() == written
    monkeypatch.setattr(scaling_page, "PRICE", 2 * scaling_page.PRICE)
    assert scaling_page.page() != written
