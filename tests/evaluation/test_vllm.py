"""``--backend vllm`` without vLLM: what goes over HTTP, what is refused, and how it stops and resumes.

Where the environment of `make test-serving` is installed, its answers are compared with those of transformers; these
tests are slow.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from command_line import environment, run
from conftest import REPOSITORY, SMOL
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

import cera
from cera.evaluation.command import main
from cera.evaluation.generation import ModelServer, Sampling, ServedBackend, ServerError, TransformersBackend
from cera.evaluation.generation.model_server import ServedModel
from cera.evaluation.generation.sampling import NotANumberError, seed_of_sample
from cera.evaluation.local_server import LocalServer
from cera.evaluation.records import read
from cera.evaluation.served_adapter import served_digest, served_model
from cera.models.backbone import load_generation_config, load_tokenizer
from cera.models.generate import encode

ROWS = [{"problem": f"{i} + {i}?", "answer": str(2 * i), "level": 1 + i % 2, "subject": "Algebra"} for i in range(8)]
SERVING_PYTHON = REPOSITORY / "serving" / ".venv" / "bin" / "python"


class Protocol:
    """A server that speaks vLLM's protocol without a model: it answers each prompt with the tokens of ``text``.

    Args:
        tokenizer: Its tokenizer.
        text: What it answers.
        replies: Path -> what it answers there instead: text, a status and text, or a function of the request.
        key: The key that it wants.
    """

    def __init__(self, tokenizer, text="The answer is 4.", replies=None, key=None):
        self.requests, self.replies = [], replies or {}
        self.models = [{"id": "base", "root": "somewhere", "parent": None, "max_model_len": 2048}]
        answer = [*encode(tokenizer, text), tokenizer.eos_token_id]
        protocol = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                status, answered = 200, None
                if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                    status, answered = 401, {"error": "Unauthorized"}
                elif self.path in protocol.replies:
                    reply = protocol.replies[self.path]
                    reply = reply(body) if callable(reply) else reply
                    status, answered = reply if isinstance(reply, tuple) else (200, reply)
                if answered is None:
                    answered = self.usual(body)
                protocol.requests.append((self.path, body))
                data = (answered if isinstance(answered, str) else json.dumps(answered)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def usual(self, body):
                if self.path == "/v1/models":
                    return {"data": protocol.models}
                if self.path == "/tokenize":
                    return {"tokens": encode(tokenizer, body["prompt"])}
                return {"choices": [{"token_ids": answer, "logprobs": {"token_logprobs": [-0.5]}}]}

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def completions(self):
        """The requests for answers, without the first question of one token."""
        return [body for path, body in self.requests if path == "/v1/completions" and "seed" in body]


@pytest.fixture
def protocol(tokenizer):
    started = []

    def start(**settings):
        started.append(Protocol(tokenizer, **settings))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def backend(protocol, tokenizer):
    def make(positions=2048, batch_size=4, **settings):
        server = protocol(**settings)
        model = ServedModel("base", "somewhere", False, positions)
        config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        return server, ServedBackend(ModelServer(server.url), model, tokenizer, config, batch_size)

    return make


@pytest.fixture
def problems(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


def given(problems, *more):
    return [
        "--config=configs/eval_math.yaml", f"--evaluation.task.init_args.data_files={problems}",
        "--evaluation.sampling.max_new_tokens=12", "--dtype=float32", "--backend=vllm", *map(str, more),
    ]  # fmt: skip


def adapter_of(base, folder, config):
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """A CeRA adapter that changes what the tiny Llama says."""
    config = cera.CeraConfig(r=8, init_weights=False, scaling=8.0, task_type="CAUSAL_LM")
    return adapter_of(tiny_llama, tmp_path_factory.mktemp("adapter"), config)


# Requests and answers


def test_seeds_are_a_samples_own():
    assert seed_of_sample(3, "math/1", 2) == seed_of_sample(3, "math/1", 2)
    seeds = {seed_of_sample(*arguments) for arguments in ((3, "math/1", 2), (4, "math/1", 2), (3, "m", 2), (3, "m", 1))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_all_that_decides_an_answer_is_in_its_request(backend, tokenizer):
    server, generates = backend(text="Four ends here STOP and more")
    sampling = Sampling(samples=3, temperature=0.7, top_p=0.9, top_k=5, max_new_tokens=9, stop=["STOP"], seed=2)
    generated = dict(generates.generate(["one", "a longer one"], ["a", "b"], sampling))
    assert {key: len(samples) for key, samples in generated.items()} == {0: 3, 1: 3}
    (sample,) = set(generated[0])
    whole = encode(tokenizer, "Four ends here STOP and more")
    assert (sample.text, sample.tokens, sample.finished) == ("Four ends here ", len(whole) + 1, True)
    asked = server.completions()
    expected = {(key, seed_of_sample(2, key, number)) for key in "ab" for number in range(3)}
    keys = {tuple(encode(tokenizer, "one")): "a", tuple(encode(tokenizer, "a longer one")): "b"}
    assert {(keys[tuple(body["prompt"])], body["seed"]) for body in asked} == expected
    for body in asked:
        settings = {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "top_k", "stop")}
        assert settings == {
            "model": "base", "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "stop": ["STOP"]
        }  # fmt: skip
        assert body["repetition_penalty"] == 1.0
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in body["stop_token_ids"]
        assert body["ignore_eos"]


def test_no_more_than_the_batch_is_asked_at_a_time(backend):
    running, most, lock = 0, 0, threading.Lock()

    def slowly(body):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1

    _, generates = backend(batch_size=3, replies={"/v1/completions": slowly})
    keys = [str(i) for i in range(12)]
    assert len(dict(generates.generate(keys, keys, Sampling()))) == 12
    assert 1 < most <= 3


def test_who_stops_does_not_wait_for_the_answers_that_are_asked_for(backend):
    def late(body):
        if body["prompt"] == last:
            time.sleep(60)

    _, generates = backend(replies={"/v1/completions": late})
    last = encode(generates.tokenizer, "b")
    answers = generates.generate(["a longer one", "b"], ["a", "b"], Sampling())
    assert next(answers)[0] == 0
    begun = time.monotonic()
    answers.close()
    assert time.monotonic() - begun < 30


# Refused


@pytest.mark.parametrize(
    ("replies", "error", "message"),
    [
        (
            {"/v1/completions": "<html>"},
            ServerError,
            "/v1/completions answers no JSON object, as vLLM does, but '<html>'",
        ),
        ({"/v1/completions": "[1]"}, ServerError, "answers no JSON object"),
        ({"/v1/completions": {"choices": [{"text": "4"}]}}, ServerError, "answers without 'logprobs'"),
        (
            {"/v1/completions": (400, {"error": {"message": "no top_k"}})},
            ServerError,
            "refuses with status 400: no top_k",
        ),
        ({"/v1/completions": (500, "broken")}, ServerError, "refuses with status 500: broken"),
        ({"/tokenize": {"tokens": [1, 2]}}, ServerError, "has another tokenizer .* Does it serve another base model"),
        ({"/tokenize": (404, {"detail": "Not Found"})}, ServerError, "/tokenize refuses with status 404: Not Found"),
        (
            {"/v1/completions": {"choices": [{"token_ids": [0], "logprobs": {"token_logprobs": [None]}}]}},
            NotANumberError,
            "logits are not numbers",
        ),
        (
            {"/v1/completions": (400, {"error": {"message": "Out of range float values are not JSON compliant"}})},
            NotANumberError,
            "logits are not numbers",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_before_the_first_answer(backend, replies, error, message):
    server, generates = backend(replies=replies)
    with pytest.raises(error, match=message):
        generates.generate(["one"], ["a"], Sampling())
    assert server.completions() == []


def test_a_prompt_that_the_server_has_no_room_for_is_named(backend):
    server, generates = backend(positions=10)
    with pytest.raises(ServerError, match=r"prompt of b .* no room for sampling.max_new_tokens=9 in the server's 10"):
        generates.generate(["one", "a much longer prompt"], ["a", "b"], Sampling(max_new_tokens=9))
    assert server.requests == []


def test_a_server_that_is_not_there_is_one_error(tokenizer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerError, match=f"{url} cannot be reached: Connection refused. Is `cera serve` running"):
        ModelServer(url).models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://u:p@host"])
def test_a_url_of_something_else_is_refused(url):
    with pytest.raises(ServerError, match=r"URL is like http://127\.0\.0\.1:8000"):
        ModelServer(url)


def test_the_key(protocol):
    server = protocol(key="secret")
    for wrong in (None, "other"):
        with pytest.raises(ServerError, match="set VLLM_API_KEY"):
            ModelServer(server.url, wrong).models()
    (model,) = ModelServer(f"{server.url}/v1/", "secret").models()
    assert model == ServedModel("base", "somewhere", False, 2048)


def test_an_adapter_is_found_by_its_content(protocol, adapter):
    server = protocol()
    asked = ModelServer(server.url)
    with served_model(asked, None) as model:
        assert model.name == "base"
    with pytest.raises(ServerError, match=r"No adapter of .* is the one in .* \(its adapters: none\)"):
        served_model(asked, adapter).__enter__()
    server.models += [
        {"id": "other", "root": "0" * 64, "parent": "base"},
        {"id": "tenant", "root": served_digest(adapter), "parent": "base"},
    ]
    with served_model(asked, adapter) as model:
        assert (model.name, model.positions) == ("tenant", 2048)
    assert [path for path, _ in server.requests if "lora" in path] == []


@pytest.mark.parametrize("fails", [False, True])
def test_an_adapter_is_loaded_for_the_time_of_the_evaluation(protocol, adapter, fails):
    def load(body):
        server.models.append({"id": body["lora_name"], "root": served_digest(adapter), "parent": "base"})
        return "Success"

    server = protocol(replies={"/v1/load_lora_adapter": load, "/v1/unload_lora_adapter": "Success"})
    try:
        with served_model(ModelServer(server.url), adapter, "tenant/adapter") as model:
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    asked = [(path, body) for path, body in server.requests if "lora" in path]
    assert asked == [
        ("/v1/load_lora_adapter", {"lora_name": model.name, "lora_path": "tenant/adapter"}),
        ("/v1/unload_lora_adapter", {"lora_name": model.name}),
    ]


def test_a_server_without_a_root_loads_nothing(protocol, adapter):
    server = protocol(replies={"/v1/load_lora_adapter": (404, {"detail": "Not Found"})})
    with pytest.raises(ServerError, match="loads no adapters while it runs: start it with --adapter-root"):
        served_model(ModelServer(server.url), adapter, "tenant").__enter__()


# A server that is started


def test_a_server_that_ends_at_its_start_is_one_error(tmp_path):
    """The interpreter here has no vLLM, so that the server ends with an error of its own."""
    log = tmp_path / "server.log"
    with pytest.raises(ServerError, match=rf"ended with status 1 at its start: .*No module named cera_vllm See {log}"):
        LocalServer(sys.executable, "nowhere", None, [], log).__enter__()


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`cera evaluate --backend vllm` needs --vllm.python FILE"),
        (["--vllm.python=nowhere"], "--vllm.python must be an interpreter, got nowhere"),
        (["--vllm.adapter_path=a"], "--vllm.adapter_path is a path of a --vllm.server"),
        (["--vllm.server=host"], "URL is like http://127.0.0.1:8000, got 'host'"),
        (["--vllm.server=http://127.0.0.1:9", "--vllm.options=--seed=1"], "are for a server that is started"),
        (["--vllm.server=http://127.0.0.1:9", "--vllm.adapter_path=a"], "needs --adapter"),
        (["--vllm.server=http://127.0.0.1:9"], "http://127.0.0.1:9 cannot be reached"),
        (["--vllm.server=http://127.0.0.1:9", "--evaluation.sampling.temperature=0.001"], "at least 0.01"),
        (["--vllm.server=http://127.0.0.1:9", "--backend=transformers"], "is for --backend vllm"),
        (["--backend=vlm"], "vlm"),
    ],
)
def test_mistakes_end_with_one_error(problems, tiny_llama, tmp_path, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert main(given(problems, f"--base={tiny_llama}", f"--out={tmp_path}", *arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: ")
    assert message in printed


def test_other_methods_and_launchers_are_refused(problems, tiny_llama, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    parallel = cera.ParallelConfig(r=4, task_type="CAUSAL_LM")
    other = adapter_of(tiny_llama, tmp_path / "other", parallel)
    assert main(given(problems, f"--adapter={other}", "--vllm.server=http://127.0.0.1:9")) == 2
    assert "serves CERA and LORA, and the adapter is" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(given(problems, f"--adapter={adapter}", "--vllm.server=http://127.0.0.1:9")) == 2
    assert "--backend vllm is one process" in capsys.readouterr().err


def test_records_verdicts_and_resuming(problems, tiny_llama, tokenizer, protocol, tmp_path, monkeypatch, capsys):
    """A server that fails after five answers; the same command then asks for the rest, and for nothing again."""
    monkeypatch.chdir(REPOSITORY)
    answered, room = [], 5

    def reply(body):
        if "seed" in body and len(answered) >= room:
            return 503, {"error": {"message": "shutting down"}}
        if "seed" in body:
            answered.append(tuple(body["prompt"]))
        return None

    server = protocol(replies={"/v1/completions": reply})
    arguments = given(
        problems, f"--base={tiny_llama}", f"--out={tmp_path}", f"--vllm.server={server.url}",
        "--evaluation.batch_size=1",
    )  # fmt: skip
    assert main(arguments) == 2
    assert "refuses with status 503: shutting down" in capsys.readouterr().err
    folder = tmp_path / "eval" / "math"
    before = read(folder / "records-0.jsonl")
    assert len(before) == 5
    room = 100
    assert main(arguments) == 0
    assert "pass@1" in capsys.readouterr().out
    assert len(set(answered)) == 8
    recorded = {tuple(encode(tokenizer, record["prompt"])) for record in before}
    assert recorded == set(answered[:5])
    assert not recorded & set(answered[5:])
    after = {record["key"]: record for record in read(folder / "records.jsonl")}
    assert all(after[record["key"]] == record for record in before)
    assert [record["correct"] for record in after.values()] == [[row["answer"] == "4"] for row in ROWS]
    assert main([*arguments[:-1], "--vllm.server=http://127.0.0.1:9"]) == 0  # nothing is left to ask
    assert main([*arguments, "--backend=transformers", "--vllm.server=null"]) == 2
    assert "holds another evaluation (backend: vllm there, None here" in capsys.readouterr().err


# With vLLM


needs_vllm = pytest.mark.skipif(
    not SERVING_PYTHON.exists(), reason="needs the environment that `make test-serving` makes"
)


@pytest.fixture(scope="module")
def wider_llama(tmp_path_factory):
    """A random Llama with SmolLM2's tokenizer and heads of 32, the least that vLLM takes on a CPU."""
    folder = tmp_path_factory.mktemp("wider_llama")
    tokenizer = load_tokenizer(SMOL)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def wider_adapter(wider_llama, tmp_path_factory):
    """A CeRA adapter that changes what it says."""
    config = cera.CeraConfig(r=8, init_weights=False, scaling=8.0, task_type="CAUSAL_LM")
    return adapter_of(wider_llama, tmp_path_factory.mktemp("wider_adapter"), config)


def evaluation_command(problems, adapter, out, *more):
    return [sys.executable, "-m", "cera", "evaluate", *given(problems, f"--adapter={adapter}", f"--out={out}", *more)]


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_verdicts_are_those_of_transformers_also_after_a_kill(problems, wider_adapter, tmp_path, monkeypatch):
    """Greedy in fp32: prompts, samples, answers and verdicts; the server of a killed evaluation ends, too."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    length = "--evaluation.sampling.max_new_tokens=60"
    run(evaluation_command(problems, wider_adapter, tmp_path / "a", length, "--backend=transformers"), timeout=3600)
    arguments = evaluation_command(
        problems, wider_adapter, tmp_path / "b", length, f"--vllm.python={SERVING_PYTHON}", "--evaluation.batch_size=1",
        "--vllm.options=--enforce-eager",
    )  # fmt: skip
    folder = tmp_path / "b" / "eval" / "math"
    process = subprocess.Popen(arguments, cwd=REPOSITORY, env=environment(), stderr=subprocess.DEVNULL)
    records = folder / "records-0.jsonl"
    while not (records.is_file() and records.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read(records)
    deadline = time.monotonic() + 300
    while servers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert servers_of(folder) == []
    run(arguments, timeout=3600)
    assert servers_of(folder) == []
    ours, theirs = (read(tmp_path / name / "eval" / "math" / "records.jsonl") for name in "ba")
    assert all(record in ours for record in before)
    for record in (*ours, *theirs):
        del record["seconds"], record["time"]
    assert ours == theirs


class Half(nn.Module):
    """``z / 2``: what SiLU is near 0."""

    def forward(self, z):
        return z / 2


def reference(base, adapter, activation=None):
    """Return transformers' backend on the adapter, in fp32, with another activation if one is given."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    for layer in model.modules():
        if activation is not None and isinstance(layer, cera.CeraLayer):
            layer.branch_activation["default"] = activation
    return TransformersBackend(model.eval(), load_tokenizer(base), 4)


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_answers_are_those_of_transformers(wider_llama, wider_adapter, tmp_path, monkeypatch):
    """By URL: the adapter is loaded for the time of a block; greedy, with stop strings, and sampled."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    root = tmp_path / "root"
    shutil.copytree(wider_adapter, root / "tenant")
    infinite = load_file(wider_adapter / "adapter_model.safetensors")
    shutil.copytree(wider_adapter, root / "infinite")
    save_file({name: weight * 1e30 for name, weight in infinite.items()}, root / "infinite/adapter_model.safetensors")
    shutil.copytree(wider_adapter, root / "broken")
    (root / "broken/adapter_model.safetensors").write_bytes(b"nothing")
    tokenizer, config = load_tokenizer(wider_llama), load_generation_config(wider_llama)
    prompts = [f"{i} + {i} is" + " and" * i for i in range(8)]
    keys = [f"p{i}" for i in range(8)]

    def answers(backend, **settings):
        return dict(backend.generate(prompts, keys, Sampling(max_new_tokens=24, **settings)))

    options = ["--dtype=float32", "--max-model-len=256", "--enforce-eager", f"--adapter-root={root}"]
    with LocalServer(str(SERVING_PYTHON), wider_llama, None, options, tmp_path / "server.log") as server:
        with served_model(server, root / "tenant", "tenant") as model:
            backend = ServedBackend(server, model, tokenizer, config, 4)
            greedy = answers(backend)
            assert greedy == answers(reference(wider_llama, wider_adapter))
            for activation in (nn.Identity(), Half()):
                assert greedy != answers(reference(wider_llama, wider_adapter, activation))
            stop = re.findall("[a-z]{3}", greedy[3][0].text)[1]
            stopped = answers(backend, stop=[stop])
            assert stopped == answers(reference(wider_llama, wider_adapter), stop=[stop])
            assert stopped[3][0].finished
            sampled = answers(backend, samples=2, temperature=1.0, seed=1)
            assert sampled == answers(
                ServedBackend(server, model, tokenizer, config, 1), samples=2, temperature=1.0, seed=1
            )
            assert sampled != answers(backend, samples=2, temperature=1.0, seed=2)
            assert all(first != second for first, second in sampled.values())
        assert [served.name for served in server.models()] == [wider_llama]
        with served_model(server, None) as model:
            backend = ServedBackend(server, model, tokenizer, config, 4)
            assert answers(backend) != greedy
            tokenizer.add_tokens([" and and"])
            with pytest.raises(ServerError, match="has another tokenizer"):
                answers(backend)
        with pytest.raises(ServerError, match=r"refuses with status 400: The adapter .* is refused"):
            served_model(server, root / "broken", "broken").__enter__()
        with served_model(server, root / "infinite", "infinite") as model, pytest.raises(NotANumberError):
            answers(ServedBackend(server, model, load_tokenizer(wider_llama), config, 4))


def servers_of(folder: Path) -> list[str]:
    """Return the processes that write to the server's log in a folder."""
    log = str(folder / "server.log")
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and os.readlink(process / "fd" / "1") == log:
                found.append(process.name)
        except OSError:
            continue  # it has ended, or is not ours
    return found
