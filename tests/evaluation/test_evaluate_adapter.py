"""An evaluation in this process is that of ``cera evaluate``: the command finds it finished, and says the same."""

import json

import pytest
import torch
from conftest import REPOSITORY
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import cera
from cera.data import ReasoningGymWordProblems
from cera.evaluation.command import main
from cera.evaluation.evaluate import Evaluation
from cera.evaluation.evaluate_adapter import evaluate_adapter
from cera.evaluation.generation import Sampling
from cera.evaluation.records import RecordError, read
from cera.evaluation.tasks import Chats
from cera.runs.saved_adapter import SavedAdapter


def test_the_command_takes_its_records_as_its_own(tiny_llama, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = cera.CeraConfig(r=8, init_weights=False, scaling=8.0, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    saved = SavedAdapter.find(tmp_path / "adapter")
    task = Chats(dataset=ReasoningGymWordProblems(size=3, skip=4000))
    evaluation = Evaluation(task, sampling=Sampling(max_new_tokens=8), name="smol")
    folder = tmp_path / "eval" / "smol"
    report = evaluate_adapter(evaluation, saved, folder)
    assert report["problems"] == 3
    records = read(folder / "records.jsonl")

    arguments = ["--config=configs/eval_smol.yaml", f"--adapter={tmp_path / 'adapter'}", f"--out={tmp_path}"]
    arguments += ["--evaluation.task.init_args.dataset.init_args.size=3", "--evaluation.sampling.max_new_tokens=8"]
    assert main(arguments) == 0
    assert "loading" not in capsys.readouterr().err
    assert read(folder / "records.jsonl") == records
    assert json.loads((folder / "eval.json").read_text()) == report

    with pytest.raises(RecordError, match="dtype"):
        evaluate_adapter(evaluation, saved, folder, torch.float32)
