import json
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from cera.data import ReasoningGymWordProblems
from cera.evaluation import overlap_command
from cera.evaluation.overlap import Match, Overlap, fold_numbers, overlap, tokens
from cera.evaluation.overlap_command import find_set, main
from cera.evaluation.tasks import GSM8K

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
OTHER = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take, and what "
    "would 3 such robes cost at 1,250 dollars a bolt?"
)
few_words = st.lists(st.sampled_from(["a", "b", "c", "7", "30"]), max_size=9).map(" ".join)
rows = st.lists(few_words, max_size=6)


def compare(train: str, test: str, **options) -> tuple[Match, Match]:
    """The match of one row with one row, as written and with numbers folded."""
    result = overlap([train], [test], **options)
    return result.as_written[0], result.numbers_folded[0]


def grams(words: list[str], n: int) -> list[list[str]]:
    return [words[i : i + n] for i in range(len(words) - n + 1)]


def reference(train: list[list[str]], row: list[str], n: int) -> tuple[bool, float, int | None, float]:
    """(exact, share, nearest, its share), every n-gram of the row held against every n-gram of every training row."""
    if not row:
        return False, 0.0, None, 0.0
    mine = grams(row, min(n, len(row)))
    result = [[gram in grams(other, len(gram)) for gram in mine] for other in train]
    shares = [sum(row_matches) / len(mine) for row_matches in result]
    share = sum(any(row_matches[i] for row_matches in result) for i in range(len(mine))) / len(mine)
    best = max(range(len(train)), key=lambda i: (train[i] == row, shares[i], -i), default=None)
    if best is None or shares[best] == 0:
        return False, 0.0, None, 0.0
    return row in train, share, best, shares[best]


def figures(match: Match) -> tuple[bool, float, int | None, float]:
    return match.exact, match.share, match.nearest, match.nearest_share


@settings(max_examples=300, deadline=None)
@given(rows, rows, st.integers(1, 6))
def test_is_what_comparing_each_pair_of_rows_gives(train, test, n):
    result = overlap(iter(train), test, n)
    assert result.train_rows == len(train)
    split = [[row.split() for row in side] for side in (train, test)]
    folded = [[["0" if word.isdigit() else word for word in row] for row in side] for side in split]
    for matches, (trained, tested) in ((result.as_written, split), (result.numbers_folded, folded)):
        assert [figures(match) for match in matches] == [reference(trained, row, n) for row in tested]
        assert [m.nearest_text for m in matches] == [None if m.nearest is None else train[m.nearest] for m in matches]


@settings(max_examples=100, deadline=None)
@given(rows, rows, st.integers(1, 6), st.randoms(use_true_random=False))
def test_order_of_the_training_set_does_not_matter(train, test, n, random):
    shuffled = random.sample(train, len(train))
    ordered, other = overlap(train, test, n), overlap(shuffled, test, n)
    assert ordered.counts() == other.counts()
    assert ordered.flagged() == other.flagged()
    for a, b in zip(ordered.as_written + ordered.numbers_folded, other.as_written + other.numbers_folded, strict=True):
        assert (a.exact, a.share, a.nearest_share) == (b.exact, b.share, b.nearest_share)


@settings(max_examples=100, deadline=None)
@given(rows, rows, st.integers(1, 6))
def test_folding_numbers_only_adds(train, test, n):
    result = overlap(train, test, n)
    for written, folded in zip(result.as_written, result.numbers_folded, strict=True):
        assert written.exact <= folded.exact
        assert written.share <= folded.share


def test_exact_copy_is_found_among_others():
    result = overlap([OTHER, QUESTION, OTHER], [QUESTION])
    assert result.as_written == [Match(True, 1.0, 1, 1.0, QUESTION)]


def test_exact_copy_is_nearer_than_a_longer_row_that_has_it_all():
    longer = f"{QUESTION} Explain."
    assert overlap([longer, QUESTION], [QUESTION]).as_written[0].nearest == 1
    assert not overlap([longer], [QUESTION]).as_written[0].exact


@pytest.mark.parametrize(
    "copy",
    [
        QUESTION.upper(),
        QUESTION.replace(",", " --").replace(".", "!\n\n\t").replace("?", ""),
        QUESTION.replace("48", "４８"),  # noqa: RUF001  # full-width digits
        f"**{QUESTION}**",
    ],
)
def test_copy_with_other_case_and_punctuation_is_exact(copy):
    assert compare(copy, QUESTION)[0].exact


def test_paraphrase_that_keeps_thirteen_words_shares_one_n_gram():
    copied = " ".join(QUESTION.split()[:13])
    match, _ = compare(f"Think of this. {copied}, which was less.", QUESTION)
    assert not match.exact
    assert match.share == pytest.approx(1 / (len(QUESTION.split()) - 12))
    shorter = " ".join(QUESTION.split()[:12])
    assert compare(f"Think of this. {shorter}, which was less.", QUESTION)[0].share == 0


def test_copy_with_other_numbers_is_exact_once_they_are_folded():
    copy = OTHER.replace("2", "17", 1).replace("1,250", "99.50").replace("3 such", "1,000,000 such")
    written, folded = compare(copy, OTHER)
    assert not written.exact
    assert written.share < 0.5
    assert folded.exact
    result = overlap([copy], [OTHER])
    assert result.flagged() == [0]
    assert list(result.counts().values()) == [0, 1, 0, 1, 1, 1]


def test_disjoint_sets_share_nothing():
    assert compare(QUESTION, OTHER) == (Match(), Match())
    assert overlap([QUESTION], [OTHER]).flagged() == []


def test_n_grams_of_several_training_rows_add_up():
    result = overlap(["a b c x", "y c d e"], ["a b c d e"], n=2)
    assert figures(result.as_written[0]) == (False, 1.0, 0, 0.5)


def test_row_shorter_than_n_is_found_whole_or_not_at_all():
    short = "What is half of 48?"
    assert compare(f"Well. {short} Tell me.", short)[0] == Match(False, 1.0, 0, 1.0, f"Well. {short} Tell me.")
    assert compare("What is half of it?", short)[0] == Match()
    assert compare("half of 48", short)[0] == Match()


@pytest.mark.parametrize("empty", ["", " \n", "?!"])
def test_row_without_words_matches_nothing(empty):
    assert compare(empty, empty) == (Match(), Match())


def test_threshold_is_reached_by_equality():
    train, test = ["a b x"], ["a b c"]  # one of its two 2-grams
    assert overlap(train, test, n=2, threshold=0.5).flagged() == [0]
    assert overlap(train, test, n=2, threshold=0.51).flagged() == []


def test_flagged_rows_come_with_most_in_common_first():
    test = [OTHER.replace("2", "4"), "nothing of it", QUESTION + " And in June?", QUESTION]
    assert overlap([QUESTION, OTHER], test, n=5).flagged() == [3, 0, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 1,000.50 dollars.", "it s 1000.50 dollars"),
        ("1,2,3 and 12,34", "1 2 3 and 12 34"),
        ("5km, 5 km", "5 km 5 km"),
        ("a six-sided or 6-sided die", "a six sided or 6 sided die"),
        (r"$z^4 - z^2 + 1 = 0$", "z ^ 4 z ^ 2 + 1 = 0"),
        ("x-1, x − 1", "x -1 x -1"),  # noqa: RUF001
        ("$.25 is 0.25, 8*.25, -.5. 5", "0.25 is 0.25 8 * 0.25 -0.5 5"),
        ("½ and 1/2", "1 / 2 and 1 / 2"),
        ("and/or **this**", "and or this"),
        ("snake_case", "snake case"),
        ("STRASSE straße", "strasse strasse"),
    ],
)
def test_tokens(text, expected):
    assert " ".join(tokens(text)) == expected


def test_signs_of_mathematics_tell_problems_apart():
    assert not compare("the roots of $z^4 - z^2 + 1 = 0$", "the roots of $z^4 + z^2 + 1 = 0$")[0].exact
    assert fold_numbers(tokens("the point (0, 3.5)")) == fold_numbers(tokens("the point (-2, -1,000)"))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"n": 0}, "n must be at least 1, got 0"), ({"threshold": 0}, "threshold"), ({"threshold": 1.5}, "got 1.5")],
)
def test_settings_that_cannot_be(options, named):
    with pytest.raises(ValueError, match=named):
        overlap([], [], **options)


# --- the command -----------------------------------------------------------------------------------------------------


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Two training rows, the second broken in between; a copy of the third, one with other numbers, one of its own."""
    train = [{"question": OTHER, "answer": "3"}, "{broken", {"question": QUESTION, "answer": "48/2=24 #### 72"}]
    test = [
        {"problem": QUESTION.upper(), "answer": "5"},
        {"problem": OTHER.replace("2 bolts", "9 bolts").replace("3", "7"), "answer": "3"},
        {"problem": "Nothing of this kind was ever asked.", "answer": "no"},
    ]
    paths = {"train": write(tmp_path / "train.jsonl", train), "test": write(tmp_path / "test.jsonl", test)}
    return {name: str(path) for name, path in paths.items()}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def counts(printed: str) -> list[int]:
    """The figures of the table, from the row count down."""
    table = printed[printed.rindex("\nrows ") :].splitlines()[1:8]
    return [int(line.split()[-2]) for line in table]


def test_command_counts_shows_and_writes(files, tmp_path, capsys):
    out = tmp_path / "overlap.json"
    status, printed, _ = run(capsys, "--train", files["train"], "--test", files["test"], "--out", out)
    assert status == 0
    assert counts(printed) == [3, 1, 2, 1, 2, 2, 2]
    assert "(3 rows, of which 1 malformed and skipped)" in printed
    assert f"test  0: {QUESTION.upper()}\ntrain 2: {QUESTION}\n" in printed
    written = json.loads(out.read_text())
    assert [flag["row"] for flag in written["flagged"]] == [0, 1]
    assert written["flagged"][0]["as_written"] == {
        "exact": True, "share": 1.0, "nearest": 2, "nearest_share": 1.0, "nearest_text": QUESTION,
    }  # fmt: skip
    assert (written["train_rows"], written["train_skipped"], written["test_rows"]) == (3, 1, 3)


def test_command_compares_the_field_that_is_asked_for(files, capsys):
    sets = ("--train", files["train"], "--test", files["test"])
    _, answers, _ = run(capsys, *sets, "--field", "answer")
    assert counts(answers)[:2] == [3, 1]
    _, both, _ = run(capsys, *sets, "--field", "both")
    assert counts(both)[:2] == [3, 0]
    assert counts(both)[4] == 1


def test_conversations_are_compared_by_their_turns(files, tmp_path, capsys):
    turns = [("system", OTHER), ("user", QUESTION), ("assistant", "72"), ("user", "And now?"), ("assistant", "3")]
    messages = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    train = write(tmp_path / "chat.jsonl", messages)
    _, printed, _ = run(capsys, "--train", train, "--test", files["test"])
    assert counts(printed) == [3, 0, 1, 1, 0, 1, 1]


def test_configurations_name_the_sets(files, tmp_path, capsys):
    common = write(tmp_path / "data.yaml", ["data: {dataset: {class_path: cera.data.GSM8KSolutions}}"])
    run_config = write(tmp_path / "run.yaml", [f"include: {common.name}", "name: test"])
    task = write(tmp_path / "eval.yaml", ["evaluation: {name: own, task: {class_path: cera.evaluation.tasks.MATH}}"])
    status, printed, _ = run(
        capsys, "--train", run_config, "--train-files", files["train"], "--test", task, "--test-files", files["test"]
    )
    assert status == 0
    assert counts(printed) == [3, 1, 2, 1, 2, 2, 2]


def test_configurations_of_this_project_are_read():
    train = find_set(REPOSITORY / "configs" / "smol_cera.yaml", ["data.dataset"])
    assert train == ReasoningGymWordProblems(size=4000)
    task = find_set(REPOSITORY / "configs" / "eval_gsm8k.yaml", ["evaluation.task", "data.dataset"])
    assert isinstance(task, GSM8K)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--n": "0"}, "n must be at least 1, got 0"),
        ({"--threshold": "50"}, "threshold must be in (0, 1], got 50"),
        ({"--out": "test.jsonl"}, "--out: test.jsonl exists already"),
        ({"--train": "none.jsonl"}, "no such file: none.jsonl"),
        ({"--train": "none.yaml"}, "no such configuration: none.yaml"),
        ({"--train": "train.csv"}, "train.csv is neither a configuration"),
        ({"--train": "wrong.yaml"}, "cera.data.GSM9K"),
        ({"--train": "task.yaml"}, "no data.dataset"),
        ({"--train": "columns.jsonl"}, "has the columns text"),
        ({"--test": "broken.jsonl"}, "1 of 2 rows are malformed"),
        ({"--test": "wordless.jsonl"}, "has no question with a word"),
        ({"--train-files": "other.jsonl"}, "is a file itself"),
    ],
)
def test_mistakes_are_told_before_the_training_set_is_read(files, tmp_path, monkeypatch, capsys, change, named):
    monkeypatch.chdir(tmp_path)
    write(Path("wrong.yaml"), ["data: {dataset: {class_path: cera.data.GSM9K}}"])
    write(Path("task.yaml"), ["evaluation: {task: {class_path: cera.evaluation.tasks.GSM8K}}"])
    write(Path("columns.jsonl"), [{"text": "a"}])
    write(Path("broken.jsonl"), [{"question": "a", "answer": "b"}, "{"])
    write(Path("wordless.jsonl"), [{"question": "?", "answer": "b"}])
    monkeypatch.setattr(overlap_command, "overlap", lambda *_: pytest.fail("the training set is read"))
    arguments = {"--train": files["train"], "--test": files["test"], **change}
    status, printed, errors = run(capsys, *(part for pair in arguments.items() for part in pair))
    assert status == 2
    assert errors.count("error: ") == 1
    assert named in errors
    assert printed == ""


def test_training_set_of_malformed_rows_only_is_an_error(files, tmp_path, capsys):
    train = write(tmp_path / "bad.jsonl", ["{", "{"])
    status, _, errors = run(capsys, "--train", train, "--test", files["test"])
    assert status == 2
    assert "all 2 rows are malformed" in errors


def test_training_set_out_of_reach_is_an_error(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    config = write(tmp_path / "hub.yaml", ["data: {dataset: {class_path: cera.data.MathInstruct}}"])
    status, _, errors = run(capsys, "--train", config, "--test", files["test"])
    assert status == 2
    assert "TIGER-Lab/MathInstruct cannot be read" in errors
    assert "--train-files" in errors


def test_gsm8k_test_questions_are_not_in_its_training_set(gsm8k):
    train, test = (
        [json.loads(line)["question"] for line in (gsm8k / f"{split}.jsonl").open()] for split in ("train", "test")
    )
    result = overlap([*train, test[7]], test)
    assert isinstance(result, Overlap)
    assert [row for row, match in enumerate(result.as_written) if match.exact] == [7]


def test_a_row_that_repeats_one_word_takes_no_longer_than_its_length():
    begin = time.process_time()
    result = overlap(["a " * 50] * 2000, ["a " * 100_000])  # 100,000 equal n-grams, met by each row
    assert time.process_time() - begin < 3
    assert result.as_written[0].share == 1
    assert result.as_written[0].nearest_share == 1
