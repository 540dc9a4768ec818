"""Problems that are generated on the spot, so that they need no network, and whose difficulty is a setting.

dataset = LogisticMapSolutions(size=1000, steps=6, decimals=2)
for raw in dataset.load():
    messages = dataset.parse(raw)
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import numpy as np

from cera.data.chat import Message
from cera.data.datasets import ChatDataset, question_and_answer
from cera.data.logistic_map import problems_but, training_rows
from cera.data.rows import DataError


@dataclass
class GeneratedProblems(ChatDataset):
    """Questions with answers from a generator, which a subclass defines as ``problems``; no question comes twice.

    Args:
        size: Number of problems.
        problem_seed: Seed of the generator. It is not the seed of the run: all runs get the same problems.
        skip: Number of problems to leave out first. The problems after those of a training set of that size share no
            question with it, whereas another seed generates some of them again.
    """

    columns: ClassVar = (("question", "answer"),)
    size: int = 4000
    problem_seed: int = 0
    skip: int = 0

    def check(self) -> None:
        """Check the settings; see ``Rows.check``."""
        name = type(self).__name__
        if self.size <= 0:
            raise DataError(f"{name}.size must be a positive integer, got {self.size}.")
        if self.skip < 0:
            raise DataError(f"{name}.skip must be zero or more, got {self.skip}.")
        if self.data_files is not None:
            raise DataError(f"{name} generates its problems and takes no data_files. For a file, use ChatDataset.")
        if self.rows is not None and self.rows[1] > self.size:
            raise DataError(f"{name}.rows={list(self.rows)}: the set has {self.size} rows.")
        self._check_rows()

    def load(self, streaming: bool | None = None) -> datasets.Dataset:
        """Return the problems in order."""
        return self._part(datasets.Dataset.from_list(list(self._distinct())))

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield problems, each with ``question`` and ``answer``; the same ones in the same order for each seed.

        Args:
            at_most: Number after which the generator may end.
        """
        raise NotImplementedError

    def _distinct(self) -> Iterator[dict[str, str]]:
        """Yield ``size`` problems behind ``skip``."""
        end = self.skip + self.size
        questions: set[str] = set()
        for problem in self.problems(4 * end):
            if problem["question"] in questions:
                continue
            questions.add(problem["question"])
            if len(questions) > self.skip:
                yield problem
            if len(questions) == end:
                return
        raise DataError(
            f"{type(self).__name__}: skip + size is {end}, but the generator has only {len(questions)} problems."
        )

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """Return a question and its answer as messages."""
        return question_and_answer(row["question"], row["answer"])


@dataclass
class ReasoningGymWordProblems(GeneratedProblems):
    """Word problems that ``reasoning-gym`` generates from templates of GSM8K, with new names and numbers.

    Some of the generator's solutions end in another number than its answer; those are left out, and so are repeated
    questions, so that a validation split shares no question with the training split. The generator is called
    ``gsm_symbolic``; Apple's data set of that name is ``cera.evaluation.tasks.GSMSymbolic``.
    """

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield problems with worked solutions."""
        for problem in _reasoning_gym("gsm_symbolic", size=at_most, seed=self.problem_seed):
            solution = problem["metadata"]["answer_cot"]
            if solution.rstrip().endswith(f"#### {problem['answer']}"):
                yield {"question": problem["question"], "answer": solution}


@dataclass
class ReasoningGym(GeneratedProblems):
    """Problems of any family of ``reasoning-gym``, with the bare answer.

    Args:
        family: Name of the family, such as ``chain_sum``.
        options: Settings of the family, the dials of its difficulty, such as ``{min_terms: 2, max_terms: 4}``.
    """

    family: str = "chain_sum"
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check the settings, those of the family, too."""
        super().check()
        try:
            next(iter(self.problems(1)))
        except (TypeError, ValueError, AssertionError) as error:
            raise DataError(f"ReasoningGym: family={self.family!r}, options={self.options}: {error}") from error

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield the family's problems."""
        for problem in _reasoning_gym(self.family, size=at_most, seed=self.problem_seed, **self.options):
            yield {"question": problem["question"], "answer": str(problem["answer"])}


def _reasoning_gym(family: str, **options: Any) -> Any:
    """Return a data set of ``reasoning-gym``, which is imported only where it is needed."""
    import reasoning_gym

    return reasoning_gym.create_dataset(family, **options)


@dataclass
class LogisticMapSolutions(GeneratedProblems):
    """Trajectories of the logistic map with their worked steps, for training (the paper's Table 2 evaluates on it).

    The benchmark is ``cera.evaluation.tasks.LogisticMap``; the problems of one with ``held_out`` problems and the same
    ``steps`` and ``decimals`` are left out.

    Args:
        steps: Number of steps of each trajectory, and
        decimals: decimal places of its values: the dials of difficulty.
        held_out: Number of problems of the benchmark, of its seed 0.
        of_benchmark: Yield the problems of the benchmark in place of the others, such as for validation.
    """

    steps: int = 10
    decimals: int = 4
    held_out: int = 1000
    of_benchmark: bool = False

    def check(self) -> None:
        """Check the settings."""
        super().check()
        try:
            problems_but(self.held_out, self.problem_seed, self.steps, self.decimals, self.of_benchmark)
        except ValueError as error:
            raise DataError(f"LogisticMapSolutions: {error}") from error

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield trajectories in random order."""
        chosen = problems_but(self.held_out, self.problem_seed, self.steps, self.decimals, self.of_benchmark)
        yield from training_rows(chosen[:at_most])


@dataclass
class ChainedArithmetic(GeneratedProblems):
    """Sums and differences of several numbers, worked one step at a time.

    Example: ``17 + 5 - 9`` has the answer ``17 + 5 = 22``, ``22 - 9 = 13``, ``#### 13`` on three lines.

    Args:
        steps: Number of operations, and
        digits: most digits of a number: the dials of difficulty.
    """

    steps: int = 4
    digits: int = 2

    def check(self) -> None:
        """Check the settings."""
        super().check()
        for name in ("steps", "digits"):
            if getattr(self, name) < 1:
                raise DataError(f"ChainedArithmetic.{name} must be at least 1, got {getattr(self, name)}.")

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield problems with worked solutions."""
        random = np.random.default_rng([self.problem_seed, self.steps, self.digits])
        for _ in range(at_most):
            numbers = random.integers(0, 10**self.digits, self.steps + 1).tolist()
            value, question, lines = numbers[0], str(numbers[0]), []
            for number, plus in zip(numbers[1:], random.integers(0, 2, self.steps).tolist(), strict=True):
                sign, after = ("+", value + number) if plus else ("-", value - number)
                question += f" {sign} {number}"
                lines.append(f"{value} {sign} {number} = {after}")
                value = after
            yield {"question": f"{question} = ?", "answer": "\n".join([*lines, f"#### {value}"])}


@dataclass
class RandomFacts(GeneratedProblems):
    """Random codes to memorize, which nothing but memory can tell: a test of capacity, whose dial is ``size``.

    A held-out set has nothing to generalize to, so the validation set of a run should be the training set itself.

    Args:
        digits: Number of digits of a code, 3.32 bits each.
    """

    digits: int = 4

    def problems(self, at_most: int) -> Iterator[dict[str, str]]:
        """Yield keys with their codes."""
        random = np.random.default_rng([self.problem_seed, self.digits])
        letters = list(string.ascii_uppercase)
        for _ in range(at_most):
            key = "".join(random.choice(letters, 3))
            yield {"question": f"Code of {key}?", "answer": f"{random.integers(0, 10**self.digits):0{self.digits}d}"}
