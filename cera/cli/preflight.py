"""What a run needs that this machine may not have, found out in seconds and before anything is loaded."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from cera.models.backbone import PACKAGE

INSTEAD = "configs/smol_cera.yaml runs on a CPU, without a hub: python train.py --config configs/smol_cera.yaml"


class MissingRequirement(RuntimeError):
    """The machine lacks something that the configuration asks for."""


def check(config: Any) -> None:
    """Look for a GPU, a C++ compiler, DeepSpeed, bitsandbytes, and access to the model and the dataset on the hub.

    Args:
        config: The parsed configuration of one subcommand (``model``, ``data``, ``trainer``).

    Raises:
        MissingRequirement: Names everything that is missing, and a configuration to use instead.
    """
    missing = [
        *_hardware(config.trainer),
        *_compiler(config),
        *_packages(config),
        *on_hub(config.model.base, "model", "config.json"),
    ]
    for dataset in (config.data.dataset, config.data.validation):
        arguments = getattr(dataset, "init_args", None)
        if arguments is not None and not arguments.get("data_files") and arguments.get("path"):
            missing += on_hub(arguments.path, "dataset", ".gitattributes")
    if missing:
        raise MissingRequirement("this machine lacks:\n" + "".join(f"  - {m}\n" for m in missing) + INSTEAD)


def _hardware(trainer: Any) -> list[str]:
    wanted = trainer.accelerator
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        return [f"a CUDA GPU (trainer.accelerator={wanted}; this build of torch {torch.__version__} sees none)"]
    return []


def _compiler(config: Any) -> list[str]:
    if not config.model.compile_layers:
        return []
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    return [
        *([] if shutil.which(compiler) else [f"the C++ compiler {compiler} (model.compile_layers=true; or set CXX)"]),
        *([] if header.is_file() else [f"Python's headers (model.compile_layers=true; there is no {header})"]),
    ]


def _packages(config: Any) -> list[str]:
    strategy = config.trainer.strategy
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    wanted = {"deepspeed": "deepspeed" in name.lower(), "bitsandbytes": config.model.quantization is not None}
    return [
        f"the Python package {package}: pip install {package}"
        for package, needed in wanted.items()
        if needed and importlib.util.find_spec(package) is None
    ]


def on_hub(repo: str, kind: str, file: str) -> list[str]:
    """A line if ``repo`` cannot be read; a local path, a package's file or a copy in the cache need no hub."""
    if repo.startswith(PACKAGE) or repo.endswith(".gguf") or Path(repo).exists():
        return []
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        if isinstance(try_to_load_from_cache(repo, file, repo_type=kind), str):
            return []
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind), timeout=5)  # one question, and no retries
    except HFValidationError:
        return [f"the {kind} {repo!r}: neither a local directory nor a name on the Hugging Face hub"]
    except GatedRepoError:
        return [f"the licence of {repo}: accept it at {page}, then log in with `hf auth login`"]
    except RepositoryNotFoundError:
        return [f"the {kind} {repo}: the hub has none of that name, or it is private; try `hf auth login` ({page})"]
    except Exception as error:  # of whichever HTTP library the hub's client uses
        return [f"access to the Hugging Face hub, for the {kind} {repo} ({type(error).__name__}; {page})"]
    return []
