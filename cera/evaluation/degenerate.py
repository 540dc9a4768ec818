"""Counts samples that are no whole answers: cut off at the longest length, or ending in a loop.

    degenerate_shares(records)  # {"cut_off": 0.02, "loops": 0.05, "complete_accuracy": 0.61}

An adapter that loops more often than another one is worse at greedy decoding rather than at reasoning: the authors of
CeRA name loops of LoRA and DoRA as a confound of their accuracies. So accuracies are compared with and without them.
"""

from collections.abc import Sequence

from cera.evaluation.records import Record

REPETITIONS = 4
"""Minimum number of times that a loop repeats its unit."""

SHORTEST_LOOP = 40
"""Minimum length of a loop in characters, so that ``0.3333`` is none."""

LONGEST_UNIT = 200
"""Maximum length in characters of what a loop repeats."""


def ends_in_loop(text: str) -> bool:
    """Return whether the text ends in a unit that is repeated, the last time perhaps in part."""
    for unit in range(1, LONGEST_UNIT + 1):
        length = max(REPETITIONS * unit, SHORTEST_LOOP)
        if length > len(text):
            return False
        tail = text[-length:]
        if tail[unit:] == tail[:-unit]:
            return True
    return False


def degenerate_shares(records: Sequence[Record]) -> dict[str, float]:
    """Return how many samples are degenerate, and the accuracy of the others.

    Args:
        records: Records with ``samples``, ``correct`` and ``finished``.

    Returns:
        ``cut_off``, the share of samples that reached the longest length; ``loops``, the share that end in a loop; and
        ``complete_accuracy``, the mean score of the samples that do neither, which is left out where there are none.
    """
    samples = [
        (float(correct), not finished, ends_in_loop(text))
        for record in records
        for text, correct, finished in zip(record["samples"], record["correct"], record["finished"], strict=True)
    ]
    complete = [correct for correct, cut_off, loop in samples if not (cut_off or loop)]
    shares = {
        "cut_off": sum(cut_off for _, cut_off, _ in samples) / len(samples),
        "loops": sum(loop for *_, loop in samples) / len(samples),
    }
    return shares | ({"complete_accuracy": sum(complete) / len(complete)} if complete else {})
