"""Trains one contender on GSM8K for a few steps, in a process of its own.

    python -m benchmarks.contender cera --base DIRECTORY --data train.jsonl --steps 4 --out measured.json

Each contender is set up as its documentation recommends, on the same model, data and recipe: q_proj and v_proj, bf16,
the tokenizer's chat template, loss on the answers only. ``--settings`` changes that, see ``benchmarks.peers``. A
framework is only imported for its own contenders. ``authors`` is the loop of CeRA's authors, made anew from its
description: rows padded to ``max_length``, loss on questions and answers, 16 micro-batches a step.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.clock import StepClock
from benchmarks.process import REPOSITORY

NAMES = (
    *("cera", "cera_compiled", "lora", "lora_compiled", "dora"),
    *("trl_packed", "trl_packed_recomputing", "trl_padded", "trainer", "trainer_compiled", "trainer_dora"),
    *("trl", "authors"),
)
ACCUMULATED = 16
"""Micro-batches of a step of the authors' loop."""


@dataclass(frozen=True)
class TrainingTask:
    """The training task that all contenders share.

    Attributes:
        base: A directory in transformers' format.
        data: GSM8K's ``train.jsonl``.
        steps: Optimizer steps.
        r: Rank of the adapter.
        max_length: Maximum tokens of a document and of a packed row.
        batch_size: Rows of a batch: packs or documents.
        seed: Seed of the order of the data.
        learning_rate: Learning rate; it does not affect speed.
        device: ``cpu`` or ``cuda``.
        settings: Of ``train.py``, its options by name. Of TRL and the Trainer, arguments of ``SFTConfig`` or
            ``TrainingArguments``, and ``adapter_dtype`` (``float32`` or ``bfloat16``) and ``attn_implementation``.
    """

    base: str
    data: str
    steps: int
    r: int = 64
    max_length: int = 512
    batch_size: int = 4
    seed: int = 42
    learning_rate: float = 3e-4
    device: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)


def ours(task: TrainingTask, adapter: str, out: Path, compile_layers: bool = False, profile: bool = False) -> None:
    """Train as ``train.py`` does, with the demo's configuration and callbacks, without validation and saving.

    Args:
        task: The training task.
        adapter: One of ``configs/adapters``.
        out: File for the measurements.
        compile_layers: Option of ``CausalLM``.
        profile: Record the time by operation instead of the clock.
    """
    from cera.cli.train import main as train

    configs = REPOSITORY / "configs"
    adapter_file = configs / "adapters" / f"{adapter}.yaml"
    scaling = {} if adapter == "cera" else {"lora_alpha": 2 * task.r}
    config = {
        "include": [str(configs / "parts" / "smol.yaml"), str(adapter_file), str(configs / "parts" / "gsm8k.yaml")],
        "seed_everything": task.seed,
        "model": {
            "base": task.base,
            "learning_rate": task.learning_rate,
            "compile_layers": compile_layers,
            "adapter": {
                "class_path": yaml.safe_load(adapter_file.read_text())["model"]["adapter"]["class_path"],
                "init_args": {"r": task.r, **scaling},
            },
        },
        "data": {
            "dataset": {"class_path": "cera.data.GSM8KSolutions", "init_args": {"data_files": task.data}},
            "batch_size": task.batch_size,
            "max_length": task.max_length,
        },
        "trainer": {
            "accelerator": task.device,
            "max_steps": task.steps,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
        "answer_tokens": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        clock = f"benchmarks.lightning_clock.{'OperationClock' if profile else 'LightningClock'}"
        callback = [f"--trainer.callbacks+={clock}", f"--trainer.callbacks.path={out}"]
        texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in task.settings.items()}
        options = [f"--{name}={text}" for name, text in texts.items()]
        arguments = ["--config", str(file), f"--runs={folder}", *options, *callback]
        status = train(arguments)
    if status:
        sys.exit(status)


def trl(task: TrainingTask, out: Path, **options: Any) -> None:
    """Train TRL's SFTTrainer on prompts and completions; ``options`` are passed to its ``SFTConfig``."""
    from datasets import load_dataset
    from peft import get_peft_model
    from trl import SFTConfig, SFTTrainer

    def split(row: dict[str, str]) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }

    rows = load_dataset("json", data_files=task.data, split="train")
    model, adapter = base_model(task), lora(task)
    if dtype := task.settings.get("adapter_dtype"):  # otherwise TRL applies the adapter, as it likes it
        model, adapter = get_peft_model(model, adapter, autocast_adapter_dtype=dtype == "float32"), None
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{"max_length": task.max_length, **arguments(task, out), **options, **passed_on(task)}),
        train_dataset=rows.map(split, remove_columns=rows.column_names),
        processing_class=tokenizer(task),
        peft_config=adapter,
    )
    measure(trainer, out)


def transformers_trainer(task: TrainingTask, out: Path, use_dora: bool = False, **options: Any) -> None:
    """Train transformers' Trainer on PEFT's LoRA or DoRA, with each batch padded to its longest document.

    ``options`` are passed to its ``TrainingArguments``.
    """
    from datasets import load_dataset
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokens = tokenizer(task)

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        ids = tokens.apply_chat_template(messages, return_dict=True)["input_ids"]
        prompt = tokens.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        return {"input_ids": ids[: task.max_length], "labels": labels[: task.max_length]}

    rows = load_dataset("json", data_files=task.data, split="train")
    fp32 = task.settings.get("adapter_dtype", "float32") == "float32"
    trainer = Trainer(
        model=get_peft_model(base_model(task), lora(task, use_dora), autocast_adapter_dtype=fp32),
        args=TrainingArguments(**{"bf16": True, **arguments(task, out), **options, **passed_on(task)}),
        train_dataset=rows.map(encode, remove_columns=rows.column_names),
        data_collator=DataCollatorForSeq2Seq(tokens, padding=True),
    )
    measure(trainer, out)


def base_model(task: TrainingTask) -> Any:
    """Load the base model in bf16, as in ``train.py``."""
    import torch
    from transformers import AutoModelForCausalLM

    attention = task.settings.get("attn_implementation")
    return AutoModelForCausalLM.from_pretrained(task.base, dtype=torch.bfloat16, attn_implementation=attention)


def passed_on(task: TrainingTask) -> dict[str, Any]:
    """Return the settings that are arguments of a peer's trainer."""
    of_the_model = {"adapter_dtype", "attn_implementation"}
    return {name: value for name, value in task.settings.items() if name not in of_the_model}


def authors(task: TrainingTask, out: Path) -> None:
    """Train CeRA by a plain loop as that of its authors: see the module."""
    import torch
    from peft import get_peft_model

    from cera import CeraConfig

    torch.manual_seed(task.seed)
    tokens = tokenizer(task)
    model = get_peft_model(base_model(task), CeraConfig.authors(r=task.r, task_type="CAUSAL_LM")).to(task.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task.learning_rate, weight_decay=0.01)
    rows = [json.loads(line) for line in Path(task.data).read_text().splitlines()]
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    clock = StepClock()
    model.train()
    for step in range(task.steps):
        chosen = [texts[i] for i in torch.randint(len(texts), (task.batch_size,)).tolist()]  # with replacement
        padded = tokens(chosen, truncation=True, padding="max_length", max_length=task.max_length, return_tensors="pt")
        batch = padded.to(task.device)
        clock.begin(int(batch["attention_mask"].sum()), batch["input_ids"].numel())
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.autocast(task.device, torch.bfloat16):
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        (loss / ACCUMULATED).backward()
        if (step + 1) % ACCUMULATED == 0:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        clock.end()
    clock.save(out)


def tokenizer(task: TrainingTask) -> Any:
    """Load the tokenizer of the base model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(task.base)


def lora(task: TrainingTask, use_dora: bool = False) -> Any:
    """Return LoRA or DoRA as configured in ``configs/adapters``."""
    from peft import LoraConfig

    targets = ["q_proj", "v_proj"]
    return LoraConfig(r=task.r, lora_alpha=2 * task.r, target_modules=targets, use_dora=use_dora, task_type="CAUSAL_LM")


def arguments(task: TrainingTask, out: Path) -> dict[str, Any]:
    """Return the arguments of both ``SFTConfig`` and ``TrainingArguments``; all others have their defaults."""
    return {
        "output_dir": str(out.parent / "trainer"),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "seed": task.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": task.device == "cpu",
        "dataloader_pin_memory": False,
    }


def measure(trainer: Any, out: Path) -> None:
    """Train with the clock at each step. ``training_step`` is wrapped, since callbacks do not receive the batch."""
    from transformers import TrainerCallback

    clock = StepClock()
    training_step = trainer.training_step

    def timed_step(model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
        clock.begin(int(ids.numel() if mask is None else mask.sum()), ids.numel())
        return training_step(model, inputs, *args, **options)

    class EndOfStep(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            clock.end()

    trainer.training_step = timed_step
    trainer.add_callback(EndOfStep())
    trainer.train()
    clock.save(out)


def main() -> None:
    """Train the contender, and write its steps (see ``StepClock``) and peak memory to ``--out``.

    With ``--profile``, which contenders of ``train.py`` accept, write the records of ``OperationClock`` instead.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=TrainingTask.device)
    for name in ("r", "max_length", "batch_size", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(TrainingTask, name))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings by name, in JSON")
    options = vars(parser.parse_args())
    name, out, profile = options.pop("name"), options.pop("out"), options.pop("profile")
    task = TrainingTask(**options)
    kind, _, variant = name.partition("_")
    if kind in ("cera", "lora", "dora"):
        ours(task, kind, out, variant == "compiled", profile)
    elif kind == "trainer":
        transformers_trainer(task, out, use_dora=variant == "dora", torch_compile=variant == "compiled")
    elif name == "authors":
        authors(task, out)
    elif name == "trl":
        trl(task, out)
    elif name == "trl_padded":
        trl(task, out, gradient_checkpointing=False)
    else:  # SFTConfig recomputes activations by default; the other contenders do not
        trl(task, out, packing=True, gradient_checkpointing=name == "trl_packed_recomputing")


if __name__ == "__main__":
    main()
