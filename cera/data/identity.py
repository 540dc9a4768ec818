"""What the documents of a run depend on, as a checkpoint records it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cera.data.datasets import EARLIER_NAMES, ChatDataset
from cera.runs.added import without_added


def dataset_identity(dataset: ChatDataset) -> dict[str, Any]:
    """Return a dataset's class and settings, of its files the names and sizes."""
    files = [(path.name, path.stat().st_size) for path in map(Path, dataset.files())]
    settings = dataclasses.asdict(dataset, dict_factory=without_added)
    return {"class": type(dataset).__name__, **settings, "data_files": files}


def with_current_names(identity: str) -> str:
    """Return a checkpoint's identity with the current name of a dataset class that has been renamed since."""
    settings = json.loads(identity)
    dataset = settings["dataset"]
    dataset["class"] = EARLIER_NAMES.get(dataset["class"], dataset["class"])
    return json.dumps(settings, sort_keys=True)
