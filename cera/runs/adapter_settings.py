"""Reads an adapter's ``adapter_config.json``, holds each field against the type that its method declares, and sorts it.

Example:
    >>> settings = read_settings(Path("my-adapter"))
    >>> make_config(Path("my-adapter"), settings)
    CeraConfig(...)
"""

import importlib
import json
import types
from dataclasses import fields
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from cera.foreign_files import FileError, one_line, read_json_object

CONFIG_FILE = "adapter_config.json"


class AdapterError(FileError):
    """A directory holds no adapter, or one that cannot be loaded; the message names the file and what is wrong."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``.

    Raises:
        FileError: The file is missing or no JSON object.
        AdapterError: It names no method or no usable base model.
    """
    file = folder / CONFIG_FILE
    settings = read_json_object(file)
    method, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    if not isinstance(method, str):
        raise AdapterError(f"{file}: peft_type must be the name of a method, such as 'CERA', got {short_repr(method)}.")
    if not isinstance(base, str | None):
        raise AdapterError(f"{file}: base_model_name_or_path must be the name of a base model, got {short_repr(base)}.")
    return settings


def make_config(folder: Path, settings: dict[str, Any]) -> PeftConfig:
    """Return the adapter's configuration.

    Args:
        folder: Directory of the adapter, for error messages.
        settings: Result of ``read_settings``; the method must be registered.

    Raises:
        AdapterError: A field has a wrong type, or the method refuses a value; the message names the file.
    """
    file = folder / CONFIG_FILE
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]]
    declared = get_type_hints(config_class)
    for field in fields(config_class):
        value = settings.get(field.name, field.default)
        if field.name in settings and not _fits(declared[field.name], value):
            kind = getattr(declared[field.name], "__name__", None) if isinstance(declared[field.name], type) else None
            wanted = kind or str(declared[field.name]).replace("typing.", "")
            raise AdapterError(f"{file}: {field.name} must be {wanted}, got {short_repr(value)}.")
    try:
        return config_class.from_peft_type(**settings)
    except Exception as error:  # each method checks its fields in its own way
        raise AdapterError(f"{file} cannot be used: {one_line(error)}.") from error


def import_method(folder: Path, method: str, class_path: str | None) -> None:
    """Import the module that registers an adapter's method with PEFT; see ``cera.register_adapter``.

    Args:
        folder: Directory of the adapter, for the error message.
        method: ``peft_type`` of the adapter.
        class_path: Class path of its configuration, which a run directory records.

    Raises:
        AdapterError: The method is unknown, and no module that registers it can be imported.
    """
    reason = f"{folder} holds an adapter of the method {method!r}, which is not registered with PEFT"
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING and class_path is not None:
        module = class_path.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's: importing it may raise anything
            raise AdapterError(f"{reason}, and its module {module!r} cannot be imported: {one_line(error)}.") from error
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterError(
            f"{reason}. Import the module that registers it first: `cera COMMAND --import MODULE ...` or, in code, "
            "before the adapter is loaded."
        )


def _fits(declared: Any, value: Any) -> bool:
    """Return whether a value from JSON can be meant by a declared type.

    Lists stand for sets and tuples, objects for dataclasses, and strings for enumerations. A whole number may be
    declared where PEFT takes any number, as for ``lora_alpha``.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) for argument in arguments)  # PEFT takes further names in places
    kind = origin or declared
    if kind is types.NoneType:
        return value is None
    if not isinstance(kind, type):
        return True
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if issubclass(kind, str):
        return isinstance(value, str)
    if issubclass(kind, list | set | tuple):
        elements = arguments[:1] if kind is not tuple else ()
        return isinstance(value, list) and all(_fits(element, item) for element in elements for item in value)
    if issubclass(kind, dict):
        return isinstance(value, dict) and all(_fits(arguments[1], item) for item in value.values() if arguments)
    return isinstance(value, dict)


def sort_sets(folder: Path, config: PeftConfig) -> None:
    """Sort what is a set in ``config``, such as ``target_modules``, in the ``adapter_config.json`` in ``folder``.

    PEFT has written it in an order that differs between processes: a resumed run would have another file.
    """
    file = folder / CONFIG_FILE
    sets = {name: sorted(value) for name, value in config.to_dict().items() if isinstance(value, set)}
    settings = json.loads(file.read_text(encoding="utf-8")) | sets
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")  # as PEFT does
