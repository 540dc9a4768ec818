"""Evaluates an adapter in this process, such as in a notebook; ``cera evaluate`` does it on any number of ranks.

report = evaluate_adapter(Evaluation(LogisticMap(size=8)), SavedAdapter.find("runs/smol_cera"), Path("eval"))
"""

from pathlib import Path
from typing import Any

import torch

from cera.evaluation.evaluate import Evaluation, evaluate, prepare
from cera.evaluation.generation import TransformersBackend
from cera.models.backbone import load_config
from cera.runs.saved_adapter import SavedAdapter


def evaluate_adapter(
    evaluation: Evaluation, saved: SavedAdapter, folder: Path, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Any]:
    """Run or resume an evaluation, and return its report; see ``evaluate``.

    Args:
        evaluation: The settings.
        saved: The adapter, which is loaded only if a problem is left.
        folder: Where the results go.
        dtype: Data type of the model.

    Raises:
        RecordError, DataError, ValueError, DirectoryInUse: See ``prepare`` and ``evaluate``.
    """
    evaluation.task.check()
    model: dict[str, Any] = {"base": saved.base, "dtype": str(dtype).removeprefix("torch.")}
    model |= {"adapter": saved.digest(), "quantization": saved.quantization}
    tokenizer = saved.tokenizer()
    prompted = prepare(evaluation, tokenizer, folder, model, load_config(saved.base))

    def load() -> TransformersBackend:
        return TransformersBackend(saved.load(dtype), tokenizer, evaluation.batch_size)

    return evaluate(evaluation, prompted, load, folder, model)
