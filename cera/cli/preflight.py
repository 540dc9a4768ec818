"""Checks within seconds, before anything is loaded, that this machine has what a training run needs."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from cera.cli.trainer_arguments import as_list
from cera.extras import install_command
from cera.models.backbone import PACKAGE, PRETRAINED
from cera.models.weight_files import check_weight_files

ALTERNATIVE = (
    "configs/smol_cera.yaml runs on a CPU and needs no hub: cera train --config cera://smol_cera "
    "(in a clone: python train.py --config configs/smol_cera.yaml)"
)
"""What a user without the hardware can run."""

LOGGER_PACKAGES = {
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "TrackioLogger": "trackio",
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
}
"""Class of a logger -> the package that it needs, which no extra brings."""


class MissingRequirement(RuntimeError):
    """This machine lacks something that the configuration needs."""


def check(config: Any) -> None:
    """Check GPU, C++ compiler, optional packages, and access to the model and the datasets on the hub.

    Args:
        config: Parsed configuration of a subcommand, with ``model``, ``data`` and ``trainer``.

    Raises:
        MissingRequirement: The message lists everything that is missing, and a configuration that needs none of it.
        BackboneError: The base model is a local directory with broken or missing weights.
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
        raise MissingRequirement(f"this machine lacks {'; '.join(missing)}. {ALTERNATIVE}")
    check_weight_files(config.model.base)


def _hardware(trainer: Any) -> list[str]:
    accelerator = trainer.accelerator
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        return [f"a CUDA GPU (trainer.accelerator={accelerator}; torch {torch.__version__} detects none)"]
    return []


def _compiler(config: Any) -> list[str]:
    if not config.model.compile_layers:
        return []
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = []
    if not shutil.which(compiler):
        missing.append(f"the C++ compiler {compiler} (model.compile_layers=true; or set CXX)")
    if not header.is_file():
        missing.append(f"Python's headers (model.compile_layers=true; there is no {header})")
    return missing


def _packages(config: Any) -> list[str]:
    strategy = config.trainer.strategy
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    needed = {"deepspeed": "deepspeed" in name.lower(), "bitsandbytes": config.model.quantization is not None}
    loggers = [getattr(logger, "class_path", "").rpartition(".")[2] for logger in as_list(config.trainer.logger)]
    needed |= {package: logger in loggers for logger, package in LOGGER_PACKAGES.items()}
    return [
        f"the Python package {package}: {install_command(package)}"
        for package, is_needed in needed.items()
        if is_needed and importlib.util.find_spec(package) is None
    ]


def on_hub(repo: str, kind: str, file: str) -> list[str]:
    """Return one line if a repository on the Hugging Face hub cannot be read, otherwise an empty list.

    Args:
        repo: Name of the repository. Local paths, names with ``://`` and repositories in the local cache need no hub.
        kind: ``model`` or ``dataset``.
        file: A file of the repository, whose metadata is requested.
    """
    if repo.startswith((PACKAGE, PRETRAINED)) or repo.endswith(".gguf") or Path(repo).exists():
        return []
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        if isinstance(try_to_load_from_cache(repo, file, repo_type=kind), str):
            return []
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind), timeout=5)  # one request, no retries
    except HFValidationError:
        return [f"the {kind} {repo!r}: neither a local directory nor a name on the Hugging Face hub"]
    except GatedRepoError:
        return [f"the licence of {repo}: accept it at {page}, then log in with `hf auth login`"]
    except RepositoryNotFoundError:
        return [f"the {kind} {repo}: the hub has none of that name, or it is private; try `hf auth login` ({page})"]
    except Exception as error:  # the hub's client may use one of several HTTP libraries
        return [f"access to the Hugging Face hub, for the {kind} {repo} ({type(error).__name__}; {page})"]
    return []
