"""The schedule, the mean of the loss, and the text of a run, as settings."""

from typing import Any

import pytest
import torch
from fitting import fit
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

import cera
from cera.callbacks import AdapterFile, GenerationSamples
from cera.data import ChatData, ReasoningGymWordProblems
from cera.runs.finished import curve
from cera.runs.saved_adapter import SavedAdapter
from cera.training.loss import weights
from cera.training.module import CausalLM

TEXT = "Question: {question}\nAnswer: {answer}"


def rates(base: str, **options: Any) -> list[float]:
    module = CausalLM(base, cera.CeraConfig(r=2), 1e-3, **options)
    module.trainer = Trainer(max_steps=20, logger=False, enable_checkpointing=False, accelerator="cpu")
    module.__dict__["total_steps"] = 20
    module.trainable = lambda: {"w": torch.nn.Parameter(torch.ones(2, 2))}  # type: ignore[method-assign]
    made: Any = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    values = []
    for _ in range(20):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_a_constant_schedule_with_and_without_warmup(tiny_llama) -> None:
    assert rates(tiny_llama, schedule="constant", warmup=0.0) == [1e-3] * 20
    assert rates(tiny_llama, schedule="constant", warmup=0.2) == pytest.approx(
        [0, 0.25e-3, 0.5e-3, 0.75e-3] + [1e-3] * 16
    )
    cosine = rates(tiny_llama)
    assert cosine[0] == 0
    assert cosine[-1] < 1e-5


def test_weights_of_the_two_means() -> None:
    tokens = [[3, 5], [0, 8]]  # by rank and micro-batch
    for mean, expected in (("step", [1 / 16] * 4), ("micro_batch", [1 / 12, 1 / 20, 0.25, 1 / 32])):
        products = []
        for rank in tokens:
            for n in rank:
                within, across = weights(mean, n, 16, accumulate=2, ranks=2)  # type: ignore[arg-type]
                products.append(within * across / 2)  # the mean over ranks
        assert products == pytest.approx(expected)


class Gradient(Callback):
    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.trainable().values()]))


@pytest.mark.parametrize("mean", ["step", "micro_batch"])
def test_the_gradient_is_that_of_the_mean(tiny_llama, tmp_path, mean) -> None:
    torch.manual_seed(0)
    adapter = cera.CeraConfig(r=4, dropout=0.0, init_weights=False)
    module = CausalLM(tiny_llama, adapter, 1e-9, loss_mean=mean)
    data = ChatData(ReasoningGymWordProblems(size=40), tiny_llama, validation_rows=4, packing=False, batch_size=2)
    seen = Gradient()
    trainer = Trainer(
        max_steps=1, accumulate_grad_batches=3, callbacks=[seen], accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    module.zero_grad()
    losses = []
    for batch in seen.batches[:3]:
        logits = module.model(batch["input_ids"], position_ids=batch["position_ids"]).logits[:, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
        )
    counts = [int((batch["labels"][:, 1:] >= 0).sum()) for batch in seen.batches[:3]]
    assert len(set(counts)) > 1
    sums = [loss.sum() for loss in losses]
    total = sum(sums) / sum(counts) if mean == "step" else sum(s / n for s, n in zip(sums, counts, strict=True)) / 3
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in module.trainable().values()])
    assert torch.allclose(seen.gradients[0], expected, atol=1e-6, rtol=1e-4)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_a_saved_adapter_has_the_text_that_it_was_trained_on(tiny_llama, tmp_path) -> None:
    module = CausalLM(tiny_llama, cera.CeraConfig(r=4), 1e-3)
    options = {"template": TEXT, "loss_on": "all", "loss_on_end": False}
    data = ChatData(ReasoningGymWordProblems(size=40), tiny_llama, validation_rows=4, **options)
    trainer = Trainer(
        max_steps=1, callbacks=[AdapterFile(tmp_path), GenerationSamples(max_new_tokens=2)], accelerator="cpu",
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    tokenizer = SavedAdapter.find(tmp_path / "adapter").tokenizer()
    messages = [{"role": "user", "content": "1 + 2?"}]
    expected = "Question: 1 + 2?\nAnswer:"
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "over questions and answers, without their ends" in card
    assert r'| text | "Question: {question}\nAnswer: {answer}" |' in card


def test_an_adapter_of_another_library_keeps_the_bases_template(tiny_llama, tmp_path) -> None:
    fit(tiny_llama, tmp_path, [AdapterFile(tmp_path)], max_steps=1)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / "adapter" / name).unlink(missing_ok=True)
    saved = SavedAdapter.find(tmp_path / "adapter")
    assert saved.chat_template is None
    assert "<|im_start|>" in saved.tokenizer().chat_template
    assert curve(tmp_path / "metrics.csv", "forgetting/kl") == {}
