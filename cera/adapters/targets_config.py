"""Which modules an adapter of this package adapts, in the form PEFT expects of a tuner's configuration."""

from dataclasses import dataclass, field

from peft import PeftConfig


@dataclass
class TargetsConfig(PeftConfig):
    """The settings that all adapters of this package share.

    Args:
        target_modules: Names (matched as suffixes) or one regular expression of the modules to adapt. ``None``
            takes the method's usual targets in the model's architecture.
        exclude_modules: Names or a regular expression of modules to leave alone.
        layers_to_transform: Index or indices of the layers to adapt; ``None`` adapts all.
        layers_pattern: Name of the module list the indices count in, if it has an unusual one.
        modules_to_save: Further modules, trained whole and saved with the adapter.
        trainable_token_indices: Tokens whose embeddings are trained and saved with the adapter, such as new special
            tokens: a list for the input embedding (and the output, if the two are tied), or lists by module name.

    Raises:
        ValueError: A field is out of its range; the message names the field and what would be right.
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Names or a regex of the modules to adapt (default: by method and architecture)."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names or a regex of modules to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the layers to adapt (default: all)."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform counts in."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules, trained whole and saved with the adapter."}
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Tokens whose embeddings are trained as well: a list, or lists by module."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT's own convention
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()

    def _check(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            kinds = (list, set, tuple) if name == "modules_to_save" else (list, set, tuple, str)
            value = getattr(self, name)
            self._demand(name, value is None or isinstance(value, kinds), "a list of module names")
        by_module = self.trainable_token_indices
        lists = list(by_module.values()) if isinstance(by_module, dict) else [by_module]
        valid = by_module is None or (bool(lists) and all(map(_are_tokens, lists)))
        self._demand("trainable_token_indices", valid, "a list of token ids, or such lists by module name")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(f"{self._name}.layers_to_transform needs target_modules as a list, not as a regex.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{self._name}.layers_pattern needs layers_to_transform to be set too.")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _demand(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{self._name}.{name} must be {what}, got {getattr(self, name)!r}.")

    def _demand_one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        self._demand(name, isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def _are_tokens(value: object) -> bool:
    """Return whether ``value`` is a list of one or more distinct token ids."""
    if not isinstance(value, list | tuple) or not value or len(set(map(repr, value))) < len(value):
        return False
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value)
