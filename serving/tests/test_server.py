"""cera-serve over HTTP: two slots and room for three adapters in memory, more of them by name."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from material import CONTROLS, NAMES, NEARLY_LINEAR, Answer, changed, differs, make_adapter, prompts, reference
from servers import Refused, Server
from test_adapter_files import MALFORMED, make
from test_loading import UNFIT, UNFIT_CERA

STATIC = ("silu", "lora", "tanh")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory from which the server may load adapters."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def server(base: Path, adapters: dict[str, Path], root: Path, tmp_path_factory: Any) -> Iterator[Server]:
    """A server with three adapters from the start, and a fourth that is malformed."""
    folder = tmp_path_factory.mktemp("server")
    malformed = make(adapters, folder / "malformed", "cera-nan")
    given = [f"--adapter={name}={adapters[name]}" for name in STATIC] + [f"--adapter=malformed={malformed}"]
    rest = ["--adapter-root", str(root), "--max-loras", "2", "--max-cpu-loras", "3", "--max-lora-rank", "16"]
    with Server(base, folder / "log", *given, *rest) as running:
        yield running


def check(server: Server, name: str, prompt: list[int], model: Any) -> Answer:
    """Check that an answer is the one of ``model``, and return it."""
    answer = server.answer(name, prompt)
    assert differs(answer, prompt, model) is None, name
    return answer


def check_is_no_line(answer: Answer, prompt: list[int], base: Path, adapters: dict[str, Path], name: str) -> None:
    """Check that an answer is not the one with a line in place of the adapter's activation."""
    if name not in NEARLY_LINEAR:
        for control in CONTROLS.values():
            assert differs(answer, prompt, reference(base, adapters[name], control)) is not None, name


def test_the_adapters_of_the_command_line_are_served(server: Server, base: Path, adapters: dict[str, Path]) -> None:
    """And the malformed one is not, for the reason that the log gives, and stops nothing."""
    assert server.models() == [str(base), *STATIC]
    (prompt,) = prompts(1)
    for name in STATIC:
        answer = check(server, name, prompt, reference(base, adapters[name]))
        check_is_no_line(answer, prompt, base, adapters, name)
    check(server, str(base), prompt, reference(base, None))
    with pytest.raises(Refused) as refused:
        server.answer("malformed", prompt)
    assert refused.value.status == 404
    assert "The adapter malformed from" in server.log.read_text()
    assert "not finite" in server.log.read_text()


def test_chat(server: Server) -> None:
    message = {"role": "user", "content": "hello"}
    answered = json.loads(server.post("/v1/chat/completions", model="tanh", messages=[message], max_tokens=3))
    assert answered["model"] == "tanh"
    assert answered["usage"]["completion_tokens"] == 3


def test_more_adapters_than_slots_in_mixed_batches(
    server: Server, base: Path, adapters: dict[str, Path], root: Path
) -> None:
    """All adapters at once, in turns of two; those that do not fit in memory are read again from their copies."""
    for name in NAMES:
        if name not in STATIC:
            shutil.copytree(adapters[name], root / name)
            server.load(name, name)
            shutil.rmtree(root / name)
    asked = prompts(2 * len(NAMES), seed=2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda index: server.answer(NAMES[index % len(NAMES)], asked[index]), range(len(asked)))
        )
    models = [reference(base, adapters[name]) for name in NAMES]
    for index, answer in enumerate(answers):
        name = NAMES[index % len(NAMES)]
        assert differs(answer, asked[index], models[index % len(NAMES)]) is None, name
        if index < len(NAMES):
            check_is_no_line(answer, asked[index], base, adapters, name)
    for name in NAMES:
        if name not in STATIC:
            server.unload(name)
    assert server.models() == [str(base), *STATIC]


@pytest.mark.parametrize("name", [*MALFORMED, *UNFIT, *UNFIT_CERA, *(f"lora-{name}" for name in UNFIT)])
def test_a_malformed_adapter_is_refused_each_time(
    server: Server, base: Path, adapters: dict[str, Path], root: Path, name: str
) -> None:
    """With status 400 and the reason; no request can name it, and others are served."""
    if name in MALFORMED:
        make(adapters, root / name, name)
        message = MALFORMED[name][3]
    else:
        source = "lora" if name.startswith("lora-") else "silu"
        tensors, settings, message = {**UNFIT, **UNFIT_CERA}[name.removeprefix("lora-")]
        changed(adapters[source], root / name, tensors, **settings)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            server.load("bad", name)
        assert refused.value.status == 400
        assert message in json.loads(str(refused.value).partition(": ")[2])["error"]["message"]
        with pytest.raises(Refused) as unknown:
            server.answer("bad", [5, 6, 7])
        assert unknown.value.status == 404
    (prompt,) = prompts(1, seed=3)
    check(server, "silu", prompt, reference(base, adapters["silu"]))


@pytest.mark.parametrize("source", ["silu", "lora"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [("truncated", "truncated or no safetensors file"), ("pickled", "adapter_model.bin is pickled")],
)
def test_weights_that_cannot_be_read_are_refused_each_time(
    server: Server, base: Path, adapters: dict[str, Path], root: Path, source: str, broken: str, message: str
) -> None:
    folder = changed(adapters[source], root / f"{broken}-{source}")
    weights = folder / "adapter_model.safetensors"
    if broken == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.rename(folder / "adapter_model.bin")
    for _ in range(2):
        with pytest.raises(Refused, match=message) as refused:
            server.load("bad", folder.name)
        assert refused.value.status == 400
    (prompt,) = prompts(1, seed=3)
    check(server, "silu", prompt, reference(base, adapters["silu"]))


@pytest.mark.parametrize("path", ["../outside", "/tmp", "a/../../b", "link", "", "nowhere"])
def test_nothing_outside_of_the_root_is_read(server: Server, adapters: dict[str, Path], root: Path, path: str) -> None:
    if not (root / "link").exists():
        (root / "link").symlink_to(adapters["silu"])
    with pytest.raises(Refused) as refused:
        server.load("outside", path)
    assert refused.value.status == 400
    assert "outside" not in server.models()


def test_an_adapter_whose_directory_is_gone_is_answered_when_it_comes_back(
    server: Server, base: Path, adapters: dict[str, Path], root: Path
) -> None:
    """Deleted, or overwritten with what cannot be read; three others take its place in memory before."""
    for name in ("relu", "scaled"):
        shutil.copytree(adapters[name], root / name)
        server.load(name, name)
    shutil.rmtree(root / "relu")
    (root / "scaled" / "adapter_model.safetensors").write_bytes(b"nothing")
    (prompt,) = prompts(1, seed=4)
    for _ in range(2):
        for name in (*STATIC, "relu", "scaled"):
            answer = check(server, name, prompt, reference(base, adapters[name]))
            check_is_no_line(answer, prompt, base, adapters, name)
    for name in ("relu", "scaled"):
        server.unload(name)


def test_another_adapter_under_the_same_name_has_no_cached_prefix(server: Server, base: Path, root: Path) -> None:
    """Unloaded, overwritten and loaded again, and replaced in place; the prompt fills blocks of the cache."""
    prompt = next(prompt for prompt in prompts(50, seed=5) if len(prompt) > 50)
    models = []
    for seed in range(3):
        make_adapter(base, root / "mine", "silu", seed)
        models.append(reference(base, root / "mine"))
        if seed == 1:
            server.unload("mine")
        server.load("mine", "mine", load_inplace=seed == 2)
        answer = server.answer("mine", prompt)
        assert [differs(answer, prompt, model) is None for model in models] == [False] * seed + [True]
    server.unload("mine")
    with pytest.raises(Refused) as unknown:
        server.answer("mine", prompt)
    assert unknown.value.status == 404


def test_a_request_keeps_the_adapter_that_it_began_with(server: Server, base: Path, root: Path) -> None:
    """Replaced in place, unloaded, and its directory deleted while it answers."""
    (prompt,) = prompts(1, seed=9)
    models = []
    for seed in (5, 6):
        make_adapter(base, root / f"long-{seed}", "silu", seed)
        models.append(reference(base, root / f"long-{seed}"))
    server.load("long", "long-5")
    answer = server.stream("long", prompt, 150)
    tokens = next(answer)
    server.load("long", "long-6", load_inplace=True)
    check(server, "long", prompt, models[1])
    server.unload("long")
    for seed in (5, 6):
        shutil.rmtree(root / f"long-{seed}")
    for name in STATIC:  # which take its slot and its place in memory
        server.answer(name, prompt)
    tokens += [token for part in answer for token in part]
    assert len(tokens) == 150
    assert differs(Answer(tokens, []), prompt, models[0], logprobs=False) is None
    assert differs(Answer(tokens, []), prompt, models[1], logprobs=False) is not None


def test_two_at_once(server: Server, adapters: dict[str, Path], root: Path) -> None:
    """Of two loads, and of two unloads, of one name one succeeds, and the other is told why not."""
    shutil.copytree(adapters["sine"], root / "twice")

    def status(index: int, load: bool) -> int:
        try:
            server.load("twice", "twice") if load else server.unload("twice")
        except Refused as refused:
            return refused.status
        return 200

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(status, range(2), [True] * 2)) == [200, 400]
        assert sorted(pool.map(status, range(2), [False] * 2)) == [200, 404]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/silu"),
        ("POST", "/invocations"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
    ],
)
def test_nothing_is_done_without_the_key(server: Server, method: str, path: str) -> None:
    body = {"lora_name": "silu", "lora_path": "x", "name": "y", "src": "x", "model": "silu", "prompt": "hello"}
    with pytest.raises(Refused) as refused:
        server.ask(method, path, None if method == "GET" else body, key="wrong")
    assert refused.value.status == 401
    assert "silu" in server.models()


def test_names(server: Server, adapters: dict[str, Path], root: Path) -> None:
    shutil.copytree(adapters["gelu"], root / "named")
    for name, message in (("silu", "already been loaded"), ("a@b", "letters, digits"), ("", "must be provided")):
        with pytest.raises(Refused, match=message) as refused:
            server.load(name, "named")
        assert refused.value.status == 400
    with pytest.raises(Refused) as unknown:
        server.unload("nobody")
    assert unknown.value.status == 404


def test_copies_go_when_nobody_needs_them(server: Server, base: Path) -> None:
    """Of what the tests before loaded and had refused, the copies of the three adapters are left."""
    (store,) = Path(tempfile.gettempdir()).glob(f"cera-vllm-{server.process.pid}-*")
    copies = {model["root"] for model in json.loads(server.get("/v1/models"))["data"]} - {str(base)}
    assert len(copies) == len(STATIC)
    deadline = time.monotonic() + 60
    while {path.name for path in store.iterdir()} != copies and time.monotonic() < deadline:
        time.sleep(0.5)  # a request that was answered just now may have needed one
    assert {path.name for path in store.iterdir()} == copies
