"""A seeded request whose prompt is read in several steps: it ends nothing, and its answer is the one of its seed."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines import Engine
from material import prompts
from servers import Server
from vllm import SamplingParams

SAMPLING = {"temperature": 1.0, "top_p": 0.95, "ignore_eos": True}
AT_ONCE = ("--max-num-seqs=4", "--max-num-batched-tokens=16")
"""Options by which a prompt of ``long_prompts`` is read in several steps."""


def long_prompts() -> list[list[int]]:
    """Return four prompts of more than 60 tokens."""
    asked = [prompt * 3 for prompt in prompts(20, seed=11) if len(prompt) > 20][:4]
    assert len(asked) == 4
    return asked


def answer(server: Server, prompt: list[int], seed: int, tokens: int) -> list[int]:
    """Return the answer of a server's adapter ``silu``, drawn with a seed."""
    given = {"prompt": prompt, "seed": seed, "max_tokens": tokens, "return_token_ids": True, **SAMPLING}
    return json.loads(server.post("/v1/completions", model="silu", **given))["choices"][0]["token_ids"]


def test_the_answer_is_that_of_the_seed(engine: Engine, base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    asked = long_prompts()
    in_one_step = engine.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in asked],
        SamplingParams(seed=3, max_tokens=8, **SAMPLING),
        lora_request=engine.request(adapters["silu"]),
        use_tqdm=False,
    )
    expected = [list(output.outputs[0].token_ids) for output in in_one_step]
    with Server(base, tmp_path / "log", f"--adapter=silu={adapters['silu']}", *AT_ONCE) as server:
        for seed, same in ((3, True), (4, False)):
            assert ([answer(server, prompt, seed, 8) for prompt in asked] == expected) is same


def test_so_is_that_of_a_request_which_is_preempted_and_read_again(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    asked = long_prompts()
    too_few = ["--block-size=32", "--num-gpu-blocks-override=13"]  # for four answers at a time
    with Server(base, tmp_path / "log", f"--adapter=silu={adapters['silu']}", *AT_ONCE, *too_few) as server:

        def preemptions() -> float:
            (count,) = re.findall(r"^vllm:num_preemptions_total.* (\S+)$", server.get("/metrics"), re.MULTILINE)
            return float(count)

        alone = [answer(server, prompt, 3, 120) for prompt in asked]
        assert preemptions() == 0
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda prompt: answer(server, prompt, 3, 120), asked))
        assert preemptions() > 0
        assert together == alone
        assert answer(server, asked[0], 4, 120) != alone[0]
