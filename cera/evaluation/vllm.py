"""``--backend vllm``: a server of vLLM generates the answers; it is started for the evaluation, or runs already."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cera.evaluation.evaluate import Evaluation, PromptedProblem
from cera.evaluation.generation.model_server import ModelServer
from cera.evaluation.generation.served_backend import ServedBackend, check_sampling
from cera.evaluation.local_server import LocalServer
from cera.evaluation.served_adapter import served_model
from cera.models.backbone import load_generation_config, locate
from cera.models.generate import encode
from cera.runs.saved_adapter import SavedAdapter
from cera.serving_environment import serving_python

METHODS = ("CERA", "LORA")
KEY = "VLLM_API_KEY"
"""Environment variable with the key of a server that runs."""


@dataclass(frozen=True)
class Vllm:
    """The server of ``--backend vllm``.

    Args:
        python: Python of the environment that has cera-vllm, in which a server is started.
        options: More options of that server, in one string, such as `--tensor-parallel-size=2`.
        server: URL of a `cera serve` that runs, to be used in place of one of its own; its key is in VLLM_API_KEY.
        adapter_path: Path of the adapter within the `--adapter-root` of `server`, which loads it for the evaluation.
    """

    python: str | None = None
    options: str = ""
    server: str | None = None
    adapter_path: str | None = None

    def check(self, evaluation: Evaluation, saved: SavedAdapter | None, world_size: int) -> None:
        """Find mistakes before anything is loaded.

        Raises:
            ValueError: A setting cannot be had with vLLM, or does not go with another; the message names it.
        """
        if world_size > 1:
            raise ValueError(
                "--backend vllm is one process, got a launcher's WORLD_SIZE above 1: its server uses several devices "
                "with --vllm.options=--tensor-parallel-size=N."
            )
        check_sampling(evaluation.sampling)
        if saved is not None and saved.quantization is not None:
            raise ValueError(
                f"--backend vllm serves bases as they are: the base of this run is quantized ({saved.quantization}). "
                "Use --backend transformers."
            )
        if saved is not None and saved.settings["peft_type"] not in METHODS:
            raise ValueError(
                f"--backend vllm serves CERA and LORA, and the adapter is {saved.settings['peft_type']}: use --backend "
                "transformers."
            )
        if self.server is None:
            if self.adapter_path is not None:
                raise ValueError("--vllm.adapter_path is a path of a --vllm.server, which is not given.")
            serving_python(self.python, "cera evaluate --backend vllm", "--vllm.python")
            return
        if self.python is not None or self.options:
            raise ValueError("--vllm.python and --vllm.options are for a server that is started; --vllm.server runs.")
        if self.adapter_path is not None and saved is None:
            raise ValueError("--vllm.adapter_path needs --adapter, the directory of the same adapter here.")
        ModelServer(self.server)

    @contextmanager
    def backend(
        self,
        evaluation: Evaluation,
        prompted: Sequence[PromptedProblem],
        base: str,
        saved: SavedAdapter | None,
        tokenizer: Any,
        dtype: str,
        log: Path,
    ) -> Iterator[ServedBackend]:
        """Yield the backend; a server that was started for it is stopped at the end.

        Args:
            evaluation: The settings.
            prompted: The prompts, of which the longest decides how long a sequence the server must hold.
            base: Name of the base model.
            saved: The adapter, if any.
            tokenizer: The model's tokenizer.
            dtype: Data type of the model in a server that is started.
            log: File for what that server prints.

        Raises:
            ServerError: The server cannot be started or reached, or does not serve the model.
        """
        adapter = saved.folder if saved else None
        config = load_generation_config(base)
        if self.server is not None:
            server = ModelServer(self.server, os.environ.get(KEY))
            with served_model(server, adapter, self.adapter_path) as model:
                yield ServedBackend(server, model, tokenizer, config, evaluation.batch_size)
            return
        longest = max(len(encode(tokenizer, prompt)) for _, prompt in prompted) + evaluation.sampling.max_new_tokens
        options = [f"--dtype={dtype}", f"--max-model-len={longest}", *shlex.split(self.options)]
        python = serving_python(self.python, "cera evaluate --backend vllm", "--vllm.python")
        with LocalServer(python, locate(base), adapter, options, log) as server, served_model(server, adapter) as model:
            yield ServedBackend(server, model, tokenizer, config, evaluation.batch_size)
