"""Peak memory of a training step where the vocabulary is large: logits at labelled positions only, or everywhere.

    python -m benchmarks.logits {ours,full} --out FILE

measures one step in a process of its own, and is what the benchmark runs.
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

from benchmarks.harness import Goal, Result, Row, interleaved, ratios
from benchmarks.process import forget_peak, memory, worker
from cera import CeraConfig
from cera.data.chat import IGNORE
from cera.training.module import CausalLM

ADAPTER = CeraConfig(r=64, dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
LABELLED = 0.6
"""Share of the tokens that belong to an answer."""


@dataclass(frozen=True)
class Size:
    """Of the model and of its batch."""

    vocabulary: int = 128_256  # Llama-3's
    rows: int = 4
    length: int = 512


def run(quick: bool) -> Result:
    """Goal: at most half of the growth in memory that a step with all logits has.

    Floor of the full way: logits and their gradient in fp32, ``2 * 4 * n * vocabulary`` bytes, 2.1 GB for the
    2048 tokens here; of ours, no more than one row of logits at a time, since a cross-entropy can be computed in
    pieces, and so what the layers below keep.
    """
    size = Size()
    arguments = ["--vocabulary", str(size.vocabulary), "--rows", str(size.rows), "--length", str(size.length)]
    contenders = {way: partial(worker, "benchmarks.logits", way, *arguments) for way in ("ours", "full")}
    found = interleaved(contenders, 1 if quick else 3)
    grown = {way: [one["bytes"] for one in of] for way, of in found.items()}
    what = f"step at vocabulary {size.vocabulary}: peak memory with logits at labels / everywhere"
    row = Row(what, ratios(grown["ours"], grown["full"]), Goal("<=", 0.5))
    return Result("logits", [row], "bfloat16", {**vars(size), "labelled": LABELLED, "bytes": grown, "steps": found})


def module(vocabulary: int, layers: int = 2, adapter: PeftConfig = ADAPTER) -> CausalLM:
    """A random Llama of SmolLM2's width with the adapter, both in bf16, ready for ``answer_nll``."""
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
    # made in bf16: weights made in fp32 first would leave their memory to the step that is measured
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    found = CausalLM(base="random", adapter=adapter)
    found.head_is_last = True  # otherwise read from the skeleton of the named base
    found.model = get_peft_model(base, adapter, autocast_adapter_dtype=False).train()
    return found


def batch(vocabulary: int, rows: int, length: int) -> dict[str, Tensor]:
    """Random tokens, of which the last ``LABELLED`` of each row are labelled."""
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : round((1 - LABELLED) * length)] = IGNORE
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(length).expand(rows, length)}


def loss(way: str, module: CausalLM, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss over the labels: by ``CausalLM.answer_nll`` for ``ours``, by transformers for ``full``."""
    if way == "ours":
        return module.answer_nll(batch)[0].mean()
    assert module.model is not None
    return module.model(**batch).loss


def main() -> None:
    """One step, forward and backward; writes by how much the memory grew at most, and the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=["ours", "full"])
    parser.add_argument("--vocabulary", type=int, default=Size.vocabulary)
    parser.add_argument("--rows", type=int, default=Size.rows)
    parser.add_argument("--length", type=int, default=Size.length)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = module(options.vocabulary)
    loss(options.way, model, batch(options.vocabulary, 1, 8)).backward()  # loads what a first step loads
    model.zero_grad(set_to_none=True)
    before = memory("VmRSS")
    forget_peak()
    value = loss(options.way, model, batch(options.vocabulary, options.rows, options.length))
    value.backward()
    options.out.write_text(json.dumps({"bytes": memory("VmHWM") - before, "before": before, "loss": value.item()}))


if __name__ == "__main__":
    main()
