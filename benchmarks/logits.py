"""Peak memory of a training step with a large vocabulary: logits at labelled positions only, or at all positions.

    python -m benchmarks.logits {ours,full} --out FILE

measures one step in a process of its own; the benchmark runs this command.
"""

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.harness import Goal, RatioRow, Result, interleaved, ratios
from benchmarks.process import peak_bytes, reset_peak, resident_bytes, worker
from cera import CeraConfig
from cera.data.chat import IGNORE
from cera.memory.activations import cpu_trainer
from cera.training.module import CausalLM

ADAPTER = CeraConfig(r=64, dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
LABELLED = 0.6
"""Share of the tokens that carry labels."""


@dataclass(frozen=True)
class StepSize:
    """Vocabulary of the model, and rows and length of its batch."""

    vocabulary: int = 128_256  # Llama-3's
    rows: int = 4
    length: int = 512


def run(quick: bool) -> Result:
    """Goal: at most half of the memory growth of a step that computes all logits.

    Floor with all logits: logits and their gradient in fp32, ``2 * 4 * n * vocabulary`` bytes, 2.1 GB for the 2048
    tokens here. Floor of CeRA Lab: one row of logits at a time, since the cross-entropy can be computed in chunks, and
    the tensors that the layers below save.
    """
    size = StepSize()
    arguments = ["--vocabulary", str(size.vocabulary), "--rows", str(size.rows), "--length", str(size.length)]
    contenders = {way: partial(worker, "benchmarks.logits", way, *arguments) for way in ("ours", "full")}
    steps = interleaved(contenders, 1 if quick else 3)
    growth = {way: [step["bytes"] for step in rounds] for way, rounds in steps.items()}
    what = f"step at vocabulary {size.vocabulary}: peak memory with logits at labels / everywhere"
    row = RatioRow(what, ratios(growth["ours"], growth["full"]), Goal("<=", 0.5))
    return Result("logits", [row], "bfloat16", {**vars(size), "labelled": LABELLED, "bytes": growth, "steps": steps})


def module(vocabulary: int, layers: int = 2, adapter: PeftConfig = ADAPTER) -> CausalLM:
    """Return a random Llama of SmolLM2's width with the adapter, both in bf16, ready for ``answer_nll``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    # created in bf16: the memory of fp32 weights would be reused by the step that is measured
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    model = CausalLM(base="random", adapter=adapter)
    model.trainer = cpu_trainer("bf16-true")
    model.head_is_last = True  # otherwise derived from a skeleton of the named base
    model.model = get_peft_model(base, adapter, autocast_adapter_dtype=False).train()
    return model


def batch(vocabulary: int, rows: int, length: int) -> dict[str, Tensor]:
    """Return random tokens, the last ``LABELLED`` share of each row with labels."""
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : round((1 - LABELLED) * length)] = IGNORE
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(length).expand(rows, length)}


def loss(way: str, module: CausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean loss over the labels: ``CausalLM.answer_nll`` for ``ours``, transformers' loss for ``full``."""
    if way == "ours":
        return module.answer_nll(batch)[0].mean()
    assert module.model is not None
    return module.model(**batch).loss


def main() -> None:
    """Run one forward and backward pass, and write the peak growth in memory and the loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("way", choices=["ours", "full"])
    parser.add_argument("--vocabulary", type=int, default=StepSize.vocabulary)
    parser.add_argument("--rows", type=int, default=StepSize.rows)
    parser.add_argument("--length", type=int, default=StepSize.length)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = module(options.vocabulary)
    loss(options.way, model, batch(options.vocabulary, 1, 8)).backward()  # a first step loads libraries
    model.zero_grad(set_to_none=True)
    before = resident_bytes()
    reset_peak()
    value = loss(options.way, model, batch(options.vocabulary, options.rows, options.length))
    value.backward()
    options.out.write_text(json.dumps({"bytes": peak_bytes() - before, "before": before, "loss": value.item()}))


if __name__ == "__main__":
    main()
