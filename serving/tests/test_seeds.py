"""A seeded request whose prompt is read in several steps: it ends nothing, and its answer is the one of its seed."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines import Engine
from material import prompts
from servers import Server
from vllm import SamplingParams


def test_the_answer_is_that_of_the_seed(engine: Engine, base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    asked = [prompt * 3 for prompt in prompts(20, seed=11) if len(prompt) > 20][:4]
    assert len(asked) == 4
    sampling = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 8, "ignore_eos": True}
    in_one_step = engine.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in asked],
        SamplingParams(seed=3, **sampling),
        lora_request=engine.request(adapters["silu"]),
        use_tqdm=False,
    )
    expected = [list(output.outputs[0].token_ids) for output in in_one_step]
    options = [f"--adapter=silu={adapters['silu']}", "--max-num-seqs=4", "--max-num-batched-tokens=16"]
    with Server(base, tmp_path / "log", *options) as server:
        for seed, same in ((3, True), (4, False)):
            given = {"model": "silu", "seed": seed, "return_token_ids": True, **sampling}
            answers = [json.loads(server.post("/v1/completions", prompt=prompt, **given)) for prompt in asked]
            assert ([answer["choices"][0]["token_ids"] for answer in answers] == expected) is same


def test_so_is_that_of_a_request_which_is_preempted_and_read_again(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    asked = [prompt * 3 for prompt in prompts(20, seed=11) if len(prompt) > 20][:4]
    options = [f"--adapter=silu={adapters['silu']}", "--max-num-seqs=4", "--max-num-batched-tokens=16"]
    too_few = ["--block-size=32", "--num-gpu-blocks-override=13"]  # for four answers at a time
    with Server(base, tmp_path / "log", *options, *too_few) as server:

        def answer(prompt: list[int], seed: int = 3) -> list[int]:
            sampling = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 120, "ignore_eos": True, "seed": seed}
            given = server.post("/v1/completions", model="silu", prompt=prompt, return_token_ids=True, **sampling)
            return json.loads(given)["choices"][0]["token_ids"]

        def preemptions() -> float:
            (count,) = re.findall(r"^vllm:num_preemptions_total.* (\S+)$", server.get("/metrics"), re.MULTILINE)
            return float(count)

        alone = [answer(prompt) for prompt in asked]
        assert preemptions() == 0
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(answer, asked))
        assert preemptions() > 0
        assert together == alone
        assert answer(asked[0], seed=4) != alone[0]
