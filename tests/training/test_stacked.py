"""One pass of several adapters equals one of each: losses and gradients, with dropout on and rows of other lengths."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cera import CeraConfig
from cera.data.chat import IGNORE
from cera.models.backbone import load_model
from cera.training.loss import answer_nll
from cera.training.stacked import Share, StackedModel, branches, shared_copy

SETTINGS = {
    "cera": [CeraConfig(r=4, dropout=p, scaling=s) for p, s in ((0.1, 1.0), (0.3, 2.0), (0.0, 0.5))],
    "cera, dropout on the input": [
        CeraConfig(r=4, dropout=0.1, dropout_on="input", scaling=s) for s in (1.0, 1.0, 1.0)
    ],
    "lora": [LoraConfig(r=4, lora_dropout=p, lora_alpha=a) for p, a in ((0.1, 8), (0.3, 4), (0.0, 16))],
}
SHAPES = ((2, 12), (1, 9), (2, 15))
"""Rows and positions of each adapter's micro-batch."""


def batch(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of two documents, with labels at more than half of the positions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, (rows, length), generator=generator)
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.6, ids, IGNORE)
    half = length // 2
    positions = torch.cat([torch.arange(half), torch.arange(length - half)]).expand(rows, -1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def random_numbers(seed: int):
    """A context that goes on with the random numbers of a seed each time that it is entered."""
    states = [torch.Generator().manual_seed(seed).get_state()]

    @contextmanager
    def drawing() -> Iterator[None]:
        torch.set_rng_state(states[0])
        yield
        states[0] = torch.get_rng_state()

    return drawing


@pytest.fixture(scope="module", params=SETTINGS)
def models(request, tiny_llama) -> list:
    base = load_model(tiny_llama, torch.float32)
    models = []
    for seed, settings in enumerate(SETTINGS[request.param]):
        torch.manual_seed(seed)
        settings.target_modules, settings.task_type = {"q_proj", "v_proj"}, "CAUSAL_LM"
        model = get_peft_model(shared_copy(base), settings).train()
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        models.append(model)
    return models


def passes(
    models, chosen: list[int], seeds: dict[int, int] | None = None
) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Losses and gradients of the chosen adapters in one pass; each loss has a weight of its own."""
    shares = [
        Share(branches(models[i]), batch(*SHAPES[i], seed=i), random_numbers((seeds or {}).get(i, 10 + i)))
        for i in chosen
    ]
    losses, numbers = StackedModel(models[chosen[0]], chunked=True).losses(shares)
    parameters = [[p for p in models[i].parameters() if p.requires_grad] for i in chosen]
    parts = losses.split(numbers)
    total = sum(part.sum() * (i + 1) for part, i in zip(parts, chosen, strict=True))
    gradients = iter(torch.autograd.grad(total, [p for each in parameters for p in each]))
    return [(part.detach(), [next(gradients) for _ in each]) for part, each in zip(parts, parameters, strict=True)]


def alone(model, i: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses and gradients of an adapter in its own model."""
    torch.manual_seed(10 + i)
    losses, _ = answer_nll(
        lambda ids, **kwargs: model(input_ids=ids, **kwargs).logits,
        model.get_output_embeddings(),
        batch(*SHAPES[i], i),
        True,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    return losses.detach(), list(torch.autograd.grad(losses.sum() * (i + 1), parameters))


def error(ours, theirs) -> float:
    """The largest relative error of losses and gradients."""
    pairs = [(ours[0], theirs[0]), *zip(ours[1], theirs[1], strict=True)]
    return max(float(torch.linalg.norm(a - b) / torch.linalg.norm(b)) for a, b in pairs)


def test_a_pass_of_several_adapters_equals_one_of_each(models) -> None:
    for i, ours in enumerate(passes(models, [0, 1, 2])):
        assert error(ours, alone(models[i], i)) < 1e-5


def test_another_mask_is_found_out(models) -> None:
    wrong = passes(models, [0, 1, 2], seeds={1: 12})
    assert error(wrong[0], alone(models[0], 0)) < 1e-5
    assert error(wrong[1], alone(models[1], 1)) > 1e-3


def test_an_adapter_that_is_not_finite_leaves_the_others_alone(models) -> None:
    expected = passes(models, [0, 1, 2])
    weight = next(p for p in models[1].parameters() if p.requires_grad)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    first, second, third = passes(models, [0, 1, 2])
    with torch.no_grad():
        weight.copy_(kept)
    assert not torch.isfinite(second[0]).all()
    for ours, theirs in ((first, expected[0]), (third, expected[2])):
        assert torch.equal(ours[0], theirs[0])
        assert all(map(torch.equal, ours[1], theirs[1]))


def test_copies_share_the_weights_of_the_base(models) -> None:
    pointers = [{p.data_ptr() for p in model.parameters() if not p.requires_grad} for model in models]
    assert pointers[0] == pointers[1] == pointers[2]
