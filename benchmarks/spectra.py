"""Spectrum of an adapter's update: streamed (``cera.spectral``) against the naive method, which forms H.

    python -m benchmarks.spectra

The naive method multiplies the latent out to H (tokens x d) and computes ``torch.linalg.svdvals`` of it in fp32; the
streamed method never forms H and computes in fp64. Both start from the same latent and down-projection. The floor of
the streamed method is reading the latent once and one QR decomposition of it, 2 n r^2 operations in fp64.
"""

import argparse
import statistics
from dataclasses import dataclass

import torch

from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios, timed
from cera.spectral import SpectrumAccumulator


def naive(latent: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return the singular values of H = latent (n, r) @ down.T, with down (d, r), from H itself."""
    return torch.linalg.svdvals((latent @ down.T).float())


def streamed(latent: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Return the same singular values from the accumulator."""
    stream = SpectrumAccumulator()
    stream.update(latent)
    return stream.singular_values(down)


@dataclass(frozen=True)
class MatrixSize:
    """Size of H, (tokens, features), and its rank."""

    tokens: int = 4096
    features: int = 4096
    rank: int = 128


def compare(size: MatrixSize, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds per round of each method, and the largest relative difference of a singular value."""
    torch.manual_seed(0)
    latent = torch.randn(size.tokens, size.rank) * torch.logspace(0, -3, size.rank)
    down = torch.randn(size.features, size.rank)
    naive(latent[:64], down[:64])  # warm up
    result = streamed(latent, down)
    naive_values: list[torch.Tensor] = []
    contenders = {
        "naive": timed(lambda: naive_values.append(naive(latent, down))),
        "streamed": timed(lambda: streamed(latent, down)),
    }
    times = interleaved(contenders, rounds)
    reference = naive_values[-1][: size.rank].double()
    return times, ((result - reference).abs() / reference).max().item()


def run(quick: bool) -> Result:
    """Goal: the naive method takes at least 50 times as long. Floor: 2 n r^2 operations in fp64, here 134 MFLOP."""
    size, rounds = MatrixSize(), 1 if quick else 5
    times, error = compare(size, rounds)
    what = f"spectrum, n={size.tokens} d={size.features} r={size.rank}: time of `svdvals` of H / streamed"
    row = RatioRow(what, ratios(times["naive"], times["streamed"]), Goal(">=", 50))
    details = {"seconds": times, "relative_difference": error, "floor_flops": 2 * size.tokens * size.rank**2}
    return Result("spectra", [row], "float64 (naive: float32)", details)


def main() -> None:
    """Compare both methods, and print median times, the range of the ratio, and the largest difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times, error = compare(MatrixSize(options.tokens, options.features, options.rank), options.rounds)
    print(f"n={options.tokens} d={options.features} r={options.rank}, {torch.get_num_threads()} threads")
    stored = {"naive": 4 * options.tokens * options.features, "streamed": 8 * options.rank**2}
    for name, seconds in times.items():
        print(f"{name:<9} {statistics.median(seconds):9.4f} s, stores {stored[name]:,} bytes")
    ratio = ratios(times["naive"], times["streamed"])
    print(f"ratio     {statistics.median(ratio):9.0f} x  ({min(ratio):.0f} to {max(ratio):.0f})")
    print(f"largest relative difference of a singular value {error:.1e}")


if __name__ == "__main__":
    main()
