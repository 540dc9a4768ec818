"""The asynchronous engine with the plugin alone: what vLLM's own server, or a program of one's own, does with it."""

import asyncio
import shutil
from pathlib import Path

import pytest
from engines import SETTINGS
from material import CONTROLS, Answer, changed, differs, make_adapter, prompts, reference
from test_loading import UNFIT
from vllm import AsyncEngineArgs, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM


async def answer(engine: AsyncLLM, prompt: list[int], request: LoRARequest | None, number: str) -> Answer:
    """Return the greedy answer to a prompt."""
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=5)
    outputs = engine.generate({"prompt_token_ids": prompt}, sampling, number, lora_request=request)
    found = [output async for output in outputs][-1].outputs[0]
    return Answer(
        list(found.token_ids), [{token: entry.logprob for token, entry in row.items()} for row in found.logprobs]
    )


def test_a_bad_request_ends_nothing_and_a_directory_may_go(
    base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two adapters fit in memory; a third takes the place of one whose directory is gone, twice."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    names = ("silu", "tanh", "lora")
    for name in names:
        shutil.copytree(adapters[name], tmp_path / name)
    tensors, settings, message = UNFIT["narrow"]
    unfit = changed(adapters["silu"], tmp_path / "unfit", tensors, **settings)
    other = make_adapter(base, tmp_path / "other", "silu", seed=1)
    asked = prompts(4, seed=10)
    requests = {name: LoRARequest(name, number, str(tmp_path / name)) for number, name in enumerate(names, 1)}
    models = {name: reference(base, adapters[name]) for name in names}
    lines = [(name, reference(base, adapters[name], control)) for name in names[:2] for control in CONTROLS.values()]
    changed_model = reference(base, other)

    async def ask() -> None:
        settings = {**SETTINGS, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": 16}
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(str(base), **settings))
        try:
            for number in range(2):
                rows = [answer(engine, asked[0], requests[name], f"{name}-{number}") for name in names]
                answers = dict(zip(names, await asyncio.gather(*rows), strict=True))
                for name, found in answers.items():
                    assert differs(found, asked[0], models[name]) is None, name
                for name, line in lines:
                    assert differs(answers[name], asked[0], line) is not None, name
                for path, reason in ((unfit, message), (tmp_path / "nowhere", "nowhere")):
                    for again in range(2):
                        with pytest.raises(Exception, match=reason):
                            await answer(engine, asked[1], LoRARequest("bad", 9, str(path)), f"bad-{number}-{again}")
                assert not engine.errored
                if number == 0:
                    shutil.rmtree(tmp_path / "silu")
                    (tmp_path / "tanh" / "adapter_model.safetensors").write_bytes(b"nothing")
            shutil.copytree(other, tmp_path / "silu")
            found = await answer(engine, asked[2], requests["silu"], "as-loaded")
            assert differs(found, asked[2], models["silu"]) is None
            await engine.add_lora(LoRARequest("silu", 1, str(tmp_path / "silu"), load_inplace=True))
            found = await answer(engine, asked[2], requests["silu"], "in-place")
            assert differs(found, asked[2], changed_model) is None
            found = await answer(engine, asked[3], None, "base")
            assert differs(found, asked[3], reference(base, None)) is None
        finally:
            engine.shutdown()

    asyncio.run(ask())
