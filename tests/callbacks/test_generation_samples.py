import json

import pytest
from fitting import fit
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cera.callbacks import Checkpoints, GenerationSamples
from cera.models.generate import generate


class Forget(Callback):
    """Takes the embeddings away after three steps: what is sampled must be the model of its step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 3:
            pl_module.model.get_input_embeddings().weight.data.zero_()


class StopAfterTwoSteps(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = trainer.global_step == 2


def samples(folder):
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / "samples").iterdir())
    }


def test_answers_of_the_base_and_at_each_validation(tiny_llama, tmp_path):
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    module, data, _ = fit(
        tiny_llama, tmp_path, [GenerationSamples(max_new_tokens=6), Forget()], logger=logger, num_sanity_val_steps=-1
    )
    written = samples(tmp_path)
    assert written.keys() == {"step=0.jsonl", "step=2.jsonl", "step=4.jsonl"}
    questions = list(data.questions())
    assert len(questions) == 8
    for records in written.values():
        assert [r["problem"] for r in records] == [q.problem for q in questions[:2]]
        assert [r["reference"] for r in records] == [q.reference for q in questions[:2]]
        assert all(r.keys() == {"problem", "reference", "answer"} for r in records)
    assert questions[0].prompt.startswith("<|im_start|>")
    assert questions[0].problem in questions[0].prompt
    assert questions[0].reference not in questions[0].prompt

    last = [record["answer"] for record in written["step=4.jsonl"]]
    assert last == [generate(module.model, module.tokenizer, q.prompt, 6) for q in questions[:2]]
    assert last != [record["answer"] for record in written["step=2.jsonl"]]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Tensors("samples/2/text_summary")
    assert [event.step for event in shown] == [0, 2, 4]
    assert questions[1].problem.split("\n")[0][:40] in shown[0].tensor_proto.string_val[0].decode()


def test_the_first_answers_are_the_bases_and_a_resumed_run_asks_no_more_for_them(tiny_llama, tmp_path):
    callbacks = [
        Checkpoints(tmp_path / "checkpoints", every_n_steps=2),
        GenerationSamples(problems=1, max_new_tokens=4),
    ]
    module, data, _ = fit(tiny_llama, tmp_path, [*callbacks, StopAfterTwoSteps()])
    before = samples(tmp_path)
    question = next(data.questions())
    with module.model.disable_adapter():
        base = generate(module.model, module.tokenizer, question.prompt, 4)
    assert before["step=0.jsonl"][0]["answer"] == base
    (tmp_path / "samples" / "step=0.jsonl").unlink()
    fit(tiny_llama, tmp_path, callbacks, tmp_path / "checkpoints" / "step=2.ckpt")
    assert samples(tmp_path).keys() == {"step=2.jsonl", "step=4.jsonl"}


def test_errors():
    with pytest.raises(ValueError, match=r"GenerationSamples\.problems must be at least 1, got 0"):
        GenerationSamples(problems=0)
    with pytest.raises(ValueError, match=r"GenerationSamples\.max_new_tokens must be at least 1, got 0"):
        GenerationSamples(max_new_tokens=0)
