"""Optional dependencies: which extra of the package brings them, and one line for a user who lacks one.

Importing a room of the package that needs more than the core fails with a message such as
``cera.callbacks needs lightning: pip install 'cera[train]'``.
"""

import importlib.util

TRAIN = (
    "lightning", "torchmetrics", "datasets", "jsonargparse", "omegaconf", "jinja2", "matplotlib", "reasoning_gym",
    "scipy",
    "tabulate", "tensorboard", "tqdm", "yaml", "gguf",
)  # fmt: skip
EXTRAS = {
    "train": TRAIN,
    "eval": (*TRAIN, "math_verify", "latex2sympy2_extended", "sympy"),
    "studies": (*TRAIN, "ray"),
    "deepspeed": ("deepspeed",),
    "quantization": ("bitsandbytes",),
    "trl": ("trl",),
    "lm-eval": ("lm_eval",),
}
"""Extra -> the packages that it brings and this one imports, by the name under which they are imported."""


class MissingExtra(ModuleNotFoundError):
    """An optional dependency is not installed."""


def require(room: str, extra: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        room: What needs them, such as ``cera.callbacks``.
        extra: Name of the extra.

    Raises:
        MissingExtra: A package is missing; the message names it and the extra.
    """
    for package in EXTRAS[extra]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(missing(room, package, extra), name=package)


def install_command(package: str) -> str:
    """Return the command that installs a package: the extra that brings it, or the package itself."""
    extra = extra_of(package)
    return f"pip install {package}" if extra is None else f"pip install 'cera[{extra}]'"


def missing(what: str, package: str, extra: str) -> str:
    """Return the line for a user who lacks a package."""
    return f"{what} needs {package}: pip install 'cera[{extra}]'"


def extra_of(package: str | None, preferred: str = "train") -> str | None:
    """Return the extra that brings a package: ``preferred`` if it does; ``None`` if no extra brings it."""
    extras = sorted(EXTRAS, key=lambda extra: extra != preferred)
    return next((extra for extra in extras if package in EXTRAS[extra]), None)
