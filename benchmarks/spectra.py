"""The spectrum of an adapter's update: streamed (``cera.spectral``) against the naive way, which collects H.

    python -m benchmarks.spectra

The naive way multiplies the latent out to H (tokens x d) and takes ``torch.linalg.svdvals`` of it in fp32; the
streamed way never forms H and works in fp64. Both start from the same latent and down-projection. The floor of the
streamed way is reading the latent once and one QR decomposition of it, 2 n r^2 operations in fp64.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from cera.spectral import SpectrumAccumulator


def naive(latent: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Singular values of H = latent (n, r) times down (d, r) transposed, from H itself."""
    return torch.linalg.svdvals((latent @ down.T).float())


def streamed(latent: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The same, from the accumulator."""
    stream = SpectrumAccumulator()
    stream.update(latent)
    return stream.singular_values(down)


def seconds(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(time, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Rounds of naive, streamed, naive, streamed, ...; prints medians, the ratio's range, and how far they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    latent = torch.randn(options.tokens, options.rank) * torch.logspace(0, -3, options.rank)
    down = torch.randn(options.features, options.rank)
    seconds(naive, latent[:64], down[:64])  # warm up
    seconds(streamed, latent, down)
    times: dict[str, list[float]] = {"naive": [], "streamed": []}
    for _ in range(options.rounds):
        for name, function in (("naive", naive), ("streamed", streamed)):
            taken, result = seconds(function, latent, down)
            times[name].append(taken)
            if name == "naive":
                reference = result[: options.rank].double()
    ratios = [slow / fast for slow, fast in zip(times["naive"], times["streamed"], strict=True)]
    error = ((result - reference).abs() / reference).max().item()
    print(f"n={options.tokens} d={options.features} r={options.rank}, {torch.get_num_threads()} threads")
    kept = {"naive": 4 * options.tokens * options.features, "streamed": 8 * options.rank**2}
    for name, of in times.items():
        print(f"{name:<9} {statistics.median(of):9.4f} s, keeps {kept[name]:,} bytes")
    print(f"ratio     {statistics.median(ratios):9.0f} x  ({min(ratios):.0f} to {max(ratios):.0f})")
    print(f"largest relative difference of a singular value {error:.1e}")


if __name__ == "__main__":
    main()
