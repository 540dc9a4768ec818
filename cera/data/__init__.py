"""Datasets, chat rendering, packing, and the resumable stream of batches."""

from cera.extras import require

require("cera.data", "train")

from cera.data.chat import ChatEncoder, Document, TemplateError
from cera.data.datamodule import ChatData
from cera.data.datasets import ChatDataset, GSM8KSolutions, MathInstruct, ReasoningGymWordProblems, SlimOrca
from cera.data.packing import Packer, collate
from cera.data.rows import DataError, Rows
from cera.data.stream import BatchStream, ShuffledRows

__all__ = [
    "BatchStream",
    "ChatData",
    "ChatDataset",
    "ChatEncoder",
    "DataError",
    "Document",
    "GSM8KSolutions",
    "ReasoningGymWordProblems",
    "MathInstruct",
    "Packer",
    "Rows",
    "ShuffledRows",
    "SlimOrca",
    "TemplateError",
    "collate",
]
