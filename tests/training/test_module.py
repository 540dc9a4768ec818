import math

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, PromptTuningConfig
from torch.nn import functional as F

import cera
from cera.callbacks import Checkpoints
from cera.data import ChatData, ReasoningGymWordProblems
from cera.data.chat import IGNORE
from cera.runs.checkpoint_io import AtomicCheckpointIO
from cera.training.module import CausalLM


def trainer(**options) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **{**quiet, "max_steps": 4, "num_sanity_val_steps": 0, **options})


def data(base: str, **options) -> ChatData:
    return ChatData(
        ReasoningGymWordProblems(size=40), base, **{"validation_rows": 8, "max_length": 192, "batch_size": 2, **options}
    )


def module(base: str, adapter=None, **options) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(base, adapter or cera.CeraConfig(r=4, dropout=0.0), **{"learning_rate": 0.01, **options})


@pytest.fixture
def loaded(tiny_llama):
    """A module with its model in place, and one batch."""
    made, fit = module(tiny_llama, cera.CeraConfig(r=4, dropout=0.0, init_weights=False)), trainer()
    made.trainer = fit
    made.configure_model()
    source = data(tiny_llama)
    source.setup()
    return made, next(iter(source.train_dataloader()))


def test_loss_is_that_of_the_full_logits(loaded):
    made, batch = loaded
    losses, labelled = made.answer_nll(batch)
    logits = made.model(batch["input_ids"], position_ids=batch["position_ids"]).logits
    targets = batch["labels"][:, 1:]
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    assert torch.allclose(losses, expected[labelled], atol=1e-5)
    assert losses.numel() == (batch["labels"] != IGNORE).sum() == batch["step_labels"]


def test_logits_are_computed_only_where_there_is_a_label(loaded, monkeypatch):
    made, batch = loaded
    seen = []
    head = made.model.get_base_model().get_output_embeddings()
    linear = F.linear

    def watched(states, weight, bias=None):
        if weight is head.weight:
            seen.append((*states.shape[:-1], len(weight)))
        return linear(states, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    made.answer_nll(batch)
    empty, *chunks = seen
    assert empty == (*batch["labels"].shape[:1], 0, head.out_features)
    assert sum(rows for rows, _ in chunks) == batch["step_labels"]


def test_a_batch_without_labels_has_loss_zero_and_gradients(loaded):
    made, batch = loaded
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    losses, _ = made.answer_nll(batch)
    losses.sum().backward()
    assert losses.numel() == 0
    assert all(p.grad is not None and not p.grad.any() for p in made.trainable().values())


def test_only_the_adapter_is_trained_and_the_base_stays_as_it_was(tiny_llama):
    made = module(tiny_llama)
    fit = trainer()
    fit.fit(made, data(tiny_llama))
    untouched = module(tiny_llama)
    untouched.trainer = fit
    untouched.configure_model()
    theirs = dict(untouched.named_parameters())
    for name, parameter in made.named_parameters():
        changed = not torch.equal(parameter, theirs[name])
        assert parameter.requires_grad == ("cera_" in name)
        assert changed == (name in made.trainable())


def test_perplexity_is_the_token_mean_over_the_whole_set(tiny_llama):
    made, source = module(tiny_llama), data(tiny_llama)
    fit = trainer(num_sanity_val_steps=-1, limit_train_batches=1)
    fit.fit(made, source)
    batches = list(source.val_dataloader())
    assert len(batches) > 1
    made.model.disable_adapter_layers()
    with torch.no_grad():
        losses = torch.cat([made.answer_nll(batch)[0] for batch in batches])
    assert math.isclose(made.base_perplexity, losses.double().mean().exp().item(), rel_tol=1e-6)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_gradient_does_not_depend_on_how_a_step_is_split(tiny_llama, batch_size, accumulate):
    def adapter_after_two_steps(batch_size: int, accumulate: int) -> torch.Tensor:
        made = module(tiny_llama, warmup=0.0)
        # SGD: Adam would hide a gradient of the wrong size
        made.configure_optimizers = lambda: torch.optim.SGD(made.trainable().values(), lr=1.0)
        fit = trainer(max_steps=2, accumulate_grad_batches=accumulate)
        fit.fit(made, data(tiny_llama, batch_size=batch_size))
        return torch.cat([p.detach().flatten() for p in made.trainable().values()])

    assert torch.allclose(
        adapter_after_two_steps(batch_size, accumulate), adapter_after_two_steps(4, 1), rtol=1e-4, atol=1e-6
    )


def test_schedule_warms_up_linearly_then_follows_a_cosine_to_zero(tiny_llama):
    made = module(tiny_llama, learning_rate=1.0, warmup=0.1)
    made.trainer = trainer(max_steps=100)
    made.configure_model()
    configured = made.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(91)])


def test_epochs_are_counted_where_no_number_of_steps_is_given(tiny_llama):
    source = data(tiny_llama)
    made = module(tiny_llama)
    fit = trainer(max_steps=-1, max_epochs=2)
    fit.fit(made, source)
    assert made.total_steps == 2 * source.steps_per_epoch()
    assert fit.global_step == pytest.approx(made.total_steps, abs=2)  # another order may pack a little differently


def test_an_epoch_that_is_cut_short_has_fewer_steps(tiny_llama):
    made = module(tiny_llama)
    fit = trainer(max_steps=-1, max_epochs=2, limit_train_batches=4, accumulate_grad_batches=2)
    fit.fit(made, data(tiny_llama))
    assert made.total_steps == fit.global_step == 4
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)  # the schedule ends with the run


@pytest.mark.parametrize(
    ("precision", "adapter_dtype", "base", "adapter"),
    [
        ("32-true", None, torch.float32, torch.float32),
        ("bf16-mixed", None, torch.float32, torch.float32),
        ("bf16-true", None, torch.bfloat16, torch.bfloat16),
        ("bf16-true", "float32", torch.bfloat16, torch.float32),
    ],
)
def test_precision(tiny_llama, precision, adapter_dtype, base, adapter):
    made = module(tiny_llama, adapter_dtype=adapter_dtype)
    fit = trainer(precision=precision, num_sanity_val_steps=-1)
    fit.fit(made, data(tiny_llama))
    assert {p.dtype for p in made.parameters() if not p.requires_grad} == {base}
    assert {p.dtype for p in made.trainable().values()} == {adapter}
    moments = [state["exp_avg"] for state in fit.optimizers[0].state.values()]
    assert {m.dtype for m in moments} == {adapter}
    assert made.perplexity.nll.dtype == torch.float64
    assert math.isfinite(fit.callback_metrics["train/loss"])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_base_trains(tiny_llama, quantization):
    pytest.importorskip("bitsandbytes")
    made = module(tiny_llama, quantization=quantization)
    fit = trainer(precision="bf16-true")
    fit.fit(made, data(tiny_llama))
    assert math.isfinite(fit.callback_metrics["train/loss"])
    assert any("4bit" in type(m).__name__ or "8bit" in type(m).__name__ for m in made.modules())
    assert all(p.abs().max() > 0 for n, p in made.trainable().items() if "cera_down" in n)


def test_gradient_checkpointing_changes_nothing(tiny_llama):
    def losses(checkpointing: bool) -> float:
        made = module(tiny_llama, gradient_checkpointing=checkpointing)
        fit = trainer()
        fit.fit(made, data(tiny_llama))
        return fit.callback_metrics["train/loss"].item()

    assert losses(True) == pytest.approx(losses(False), rel=1e-6)


def test_dropout_is_on_in_training(tiny_llama):
    def loss(dropout: float) -> float:
        made = module(tiny_llama, cera.CeraConfig(r=4, dropout=dropout, init_weights=False))
        fit = trainer(max_steps=1)
        fit.fit(made, data(tiny_llama))
        return fit.callback_metrics["train/loss"].item()

    assert loss(0.5) != loss(0.0)


@pytest.mark.parametrize("adapter", [LoraConfig(r=4), LoraConfig(r=4, use_dora=True)])
def test_any_peft_adapter_trains(tiny_llama, adapter):
    made = module(tiny_llama, adapter)
    fit = trainer()
    fit.fit(made, data(tiny_llama))
    assert all("lora_" in name for name in made.trainable())
    assert math.isfinite(fit.callback_metrics["train/loss"])


def test_check_counts_what_training_trains(tiny_llama):
    made = module(tiny_llama)
    counted = made.check()
    made.trainer = trainer()
    made.configure_model()
    assert counted == sum(p.numel() for p in made.trainable().values())


class PowerCut(Exception):
    pass


class FailAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise PowerCut


@pytest.mark.parametrize(
    ("precision", "adapter_dtype"),
    [("32-true", None), ("bf16-true", None), ("bf16-true", "float32"), ("bf16-mixed", None)],
)
@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_steps": -1, "max_epochs": 1}])
def test_resumed_training_ends_with_the_same_adapter(tiny_llama, tmp_path, precision, adapter_dtype, length):
    def fit(folder, *callbacks, ckpt_path=None):
        made = module(tiny_llama, cera.CeraConfig(r=4, dropout=0.1), adapter_dtype=adapter_dtype)
        checkpoints = Checkpoints(folder, every_n_steps=3)
        plugins = [AtomicCheckpointIO()]
        fit = trainer(precision=precision, callbacks=[checkpoints, *callbacks], plugins=plugins, **length)
        fit.fit(made, data(tiny_llama), ckpt_path=ckpt_path)
        return made

    whole = fit(tmp_path / "whole")
    with pytest.raises(PowerCut):
        fit(tmp_path / "parts", FailAfter(4))
    assert [p.name for p in (tmp_path / "parts").glob("*.ckpt")] == ["step=3.ckpt"]
    resumed = fit(tmp_path / "parts", ckpt_path=tmp_path / "parts" / "step=3.ckpt")
    assert resumed.total_steps == whole.total_steps
    for name, parameter in whole.trainable().items():
        assert torch.equal(parameter, resumed.trainable()[name])


def test_training_ends_with_a_validation(tiny_llama):
    made = module(tiny_llama)
    seen = []
    made.on_validation_epoch_end = lambda: seen.append(fit.global_step)
    fit = trainer(max_steps=5, val_check_interval=3, check_val_every_n_epoch=None)
    fit.fit(made, data(tiny_llama))
    assert seen == [3, 5]


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        (PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), "PromptTuningConfig is not supported"),
        (cera.CeraConfig(target_modules=["q_proj", "v_prj"]), "target_modules: 'v_prj' matches nothing"),
        (cera.CeraConfig(target_modules=["q_proj"], rank_pattern={"nope": 4}), "rank_pattern: 'nope' matches nothing"),
        (cera.CeraConfig(modules_to_save=["nope"]), "modules_to_save: 'nope' matches nothing"),
        (cera.CeraConfig(target_modules=".*nope"), "Its linear modules are"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_without_loading(tiny_llama, adapter, expected):
    with pytest.raises(ValueError, match=expected):
        module(tiny_llama, adapter).check()


def test_checkpoints_delete_only_their_own(tiny_llama, tmp_path):
    (tmp_path / "best.ckpt").write_text("a user's own")
    fit = trainer(callbacks=[Checkpoints(tmp_path, every_n_steps=2)], plugins=[AtomicCheckpointIO()])
    fit.fit(module(tiny_llama), data(tiny_llama))
    assert {p.name for p in tmp_path.iterdir()} == {"best.ckpt", "step=4.ckpt", "step=4.json"}
