"""Records of two backends are held against each other, and where answers part, the tokens are weighed."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import cera
from cera.models.generate import encode
from cera.runs.saved_adapter import SavedAdapter
from scripts.compare_backends import compare


def record(key: str, answer: str, correct: bool) -> dict:
    return {"key": key, "prompt": "2 + 2?", "samples": [answer], "correct": [correct]}


@pytest.fixture(scope="module")
def saved(tiny_llama, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    config = cera.CeraConfig(r=8, init_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(folder)
    return SavedAdapter.find(folder, tiny_llama)


def test_answers_verdicts_and_where_they_part(saved, tokenizer) -> None:
    ours = [record("a", "4", True), record("b", "It is four", True), record("c", "5", False)]
    theirs = [record("a", "4", True), record("b", "It is five", False), record("c", "5", False)]
    found = compare(ours, theirs, saved)
    assert (found["problems"], found["same"]) == (3, {"answers": 2, "verdicts": 2})
    (difference,) = found["differences"]
    assert (difference["key"], difference["verdicts"]) == ("b", [True, False])
    first, second = (encode(tokenizer, text) for text in ("It is four", "It is five"))
    place = difference["token"]
    assert first[:place] == second[:place]
    assert first[place] != second[place]
    model = saved.load(torch.float32, "cpu").eval()
    with torch.no_grad():
        logits = model(torch.tensor([encode(tokenizer, "2 + 2?") + first[:place]])).logits[0, -1]
    assert difference["distance"] == pytest.approx(float(logits[first[place]] - logits[second[place]]), abs=1e-5)
    assert abs(difference["distance"]) > 1e-3


def test_records_of_other_problems_are_refused(saved) -> None:
    with pytest.raises(ValueError, match="must be of the same problems, got a and b"):
        compare([record("a", "4", True)], [record("b", "4", True)], saved)
