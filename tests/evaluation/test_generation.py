"""Answers: the same in any batch, the model's own, sampled as asked, ended where they should be."""

import copy
import io
import logging
import math
import warnings
from collections.abc import Generator

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cera import CeraConfig
from cera.evaluation.generation import InverseCDF, Sample, Sampling, TransformersBackend, uniforms
from cera.models.generate import generate
from cera.progress import StatusBar

PROMPTS = [
    "<|im_start|>user\nHow much is two and two?<|im_end|>\n<|im_start|>assistant\n",
    "A",
    "The rain in Spain",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "One, two",
]
KEYS = ["chat", "one token", "rain", "clips", "count"]
SAMPLED = Sampling(samples=3, temperature=1.3, max_new_tokens=7)


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def adapted(tiny_llama):
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return get_peft_model(base, CeraConfig(r=4, init_weights=False, dropout=0.3, task_type="CAUSAL_LM"))


@pytest.fixture(scope="module")
def lora(tiny_llama):
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, lora_dropout=0.3, task_type="CAUSAL_LM"))


@pytest.fixture(scope="module", params=["plain", "adapted", "lora"])
def model(request):
    return request.getfixturevalue(request.param)


def answers(model, tokenizer, sampling, batch_size=16, prompts=PROMPTS, keys=KEYS) -> list[list[Sample]]:
    """The samples of each prompt, in the prompts' order."""
    generated = list(TransformersBackend(model, tokenizer, batch_size).generate(prompts, keys, sampling))
    assert sorted(position for position, _ in generated) == list(range(len(prompts)))
    return [samples for _, samples in sorted(generated)]


def alone(model, tokenizer, prompt: str, max_new_tokens: int) -> list[int]:
    """What ``model.generate`` makes of one prompt."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    settings = {"do_sample": False, "use_cache": True, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        output = model.eval().generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **settings
        )
    return output[0, ids.shape[1] :].tolist()


def words(size: int, pad: int | None = None, end: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of the words ``w0``, ``w1``, ..., of which two may be the padding and the end token."""
    vocabulary = {f"w{i}": i for i in range(size)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": pad, "eos_token": end}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: f"w{token}" for name, token in special.items() if token is not None}
    )


# Greedy


def test_greedy_answers_are_those_of_plain_generate(model, tokenizer) -> None:
    for prompt, (sample,) in zip(PROMPTS, answers(model, tokenizer, Sampling(max_new_tokens=9), 2), strict=True):
        tokens = alone(model, tokenizer, prompt, 9)
        assert sample == Sample(
            tokenizer.decode(tokens, skip_special_tokens=True), len(tokens), tokenizer.eos_token_id in tokens
        )
        assert generate(model, tokenizer, prompt, 9) == sample.text
        ids = torch.tensor(tokenizer(prompt)["input_ids"])
        assert generate(model, tokenizer, ids, 9) == sample.text


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=8), SAMPLED], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_the_batches(model, tokenizer, sampling) -> None:
    single, two, five = (answers(model, tokenizer, sampling, batch_size) for batch_size in (1, 2, 5))
    assert single == two == five == answers(model, tokenizer, sampling, 100)
    order = [3, 0, 4]
    some = answers(model, tokenizer, sampling, 100, [PROMPTS[i] for i in order], [KEYS[i] for i in order])
    assert some == [single[i] for i in order]
    assert all(len(samples) == sampling.samples for samples in single)
    assert len({sample.text for samples in single for sample in samples}) > len(PROMPTS) - 1


@pytest.mark.parametrize(
    ("model_type", "settings"), [("mistral", {"sliding_window": 4}), ("qwen2", {}), ("gpt2", {"n_positions": 32})]
)
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=8), SAMPLED], ids=["greedy", "sampled"])
def test_other_architectures_pad_on_the_left_too(model_type, settings, sampling) -> None:
    model, tokenizer = build(model_type, **settings), words(64, pad=0)
    prompts = ["w5 w6 w7 w8 w9 w10 w11 w12 w13", "w20 w21", "w33 w4 w3 w50 w49", "w60 w8 w9"]
    keys = list("abcd")
    assert answers(model, tokenizer, sampling, 100, prompts, keys) == answers(
        model, tokenizer, sampling, 1, prompts, keys
    )
    if sampling.temperature == 0:
        for prompt, (sample,) in zip(prompts, answers(model, tokenizer, sampling, 3, prompts, keys), strict=True):
            tokens = alone(model, tokenizer, prompt, 8)
            text = " ".join(f"w{token}" for token in tokens if token not in (0, 2))  # padding and end
            assert (sample.text, sample.tokens) == (text, len(tokens))


# Sampling


@given(
    logits=st.lists(st.floats(-4, 4), min_size=2, max_size=9),
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.2, 1),
    seed=st.integers(0, 2**32),
)
def test_tokens_are_drawn_as_often_as_they_are_probable(logits, temperature, top_k, top_p, seed) -> None:
    draws = 4000
    scores = torch.tensor([logits], dtype=torch.float64)
    left = TemperatureLogitsWarper(temperature)(None, scores)
    left = TopKLogitsWarper(top_k)(None, left) if top_k else left
    left = TopPLogitsWarper(top_p)(None, left) if top_p < 1 else left
    expected = left.softmax(-1)[0].numpy() * draws

    streams = uniforms(seed, "key", 0, draws)[:, None]
    processor = InverseCDF(Sampling(temperature=temperature, top_k=top_k, top_p=top_p), streams, start=1)
    picked = processor(torch.zeros(draws, 1, dtype=torch.long), scores.expand(draws, -1))
    assert torch.equal((picked == 0).sum(-1), torch.ones(draws, dtype=torch.long))
    assert picked[picked != 0].eq(-math.inf).all()
    counts = torch.bincount(picked.argmax(-1), minlength=len(logits)).numpy()
    assert not counts[expected == 0].any()
    often = expected > 5  # where chi-square holds
    if often.sum() > 1:
        scale = counts[often].sum() / expected[often].sum()
        assert stats.chisquare(counts[often], expected[often] * scale).pvalue > 1e-7
        assert abs(counts[~often].sum() - expected[~often].sum()) < 40


def test_the_models_own_next_tokens_have_the_models_frequencies() -> None:
    model, tokenizer = build("llama"), words(64, pad=0)
    samples = 3000
    (generated,) = answers(model, tokenizer, Sampling(samples, 0.8, max_new_tokens=1), 1000, ["w9 w3"], ["key"])
    probabilities = (model(torch.tensor([[9, 3]])).logits[0, -1].double() / 0.8).softmax(-1).detach().numpy()
    names = [int(sample.text.removeprefix("w")) if sample.text else 2 for sample in generated]  # w2 is the end token
    counts = torch.bincount(torch.tensor(names), minlength=64).numpy()
    probabilities[2] += probabilities[0]  # padding is not text either
    probabilities[0] = 0
    often = probabilities * samples > 5
    pooled = [*counts[often], counts[~often].sum()], [*probabilities[often], probabilities[~often].sum()]
    assert stats.chisquare(pooled[0], torch.tensor(pooled[1]).numpy() * samples).pvalue > 1e-6


def test_the_largest_uniform_takes_a_token_that_is_possible() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -math.inf]]).expand(2, -1)
    processor = InverseCDF(Sampling(temperature=0.7), torch.tensor([[1 - 2**-53], [0.0]], dtype=torch.float64), 1)
    assert processor(torch.zeros(2, 1, dtype=torch.long), scores).argmax(-1).tolist() == [2, 0]


def test_a_sample_has_its_own_stream() -> None:
    first = uniforms(0, "key", 0, 20)
    assert first.dtype == torch.float64
    assert torch.equal(uniforms(0, "key", 0, 5), first[:5])
    others = [uniforms(1, "key", 0, 20), uniforms(0, "kez", 0, 20), uniforms(0, "key", 1, 20), first]
    assert len({tuple(stream.tolist()) for stream in others}) == 4


def test_samples_depend_on_seed_key_and_number_and_not_on_the_global_generator(plain, tokenizer) -> None:
    torch.manual_seed(3)
    first = answers(plain, tokenizer, SAMPLED)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    assert answers(plain, tokenizer, SAMPLED) == first
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)
    (more,) = answers(
        plain, tokenizer, Sampling(samples=5, temperature=1.3, max_new_tokens=7), 2, PROMPTS[2:3], KEYS[2:3]
    )
    assert more[:3] == first[2]
    assert len(set(more)) == 5
    other = Sampling(samples=3, temperature=1.3, max_new_tokens=7, seed=1)
    assert all(a != b for a, b in zip(answers(plain, tokenizer, other), first, strict=True))
    same = answers(plain, tokenizer, SAMPLED, 16, [PROMPTS[2]] * 2, ["rain", "snow"])
    assert same[0] == first[2] != same[1]


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(max_new_tokens=3)], ids=["sampled", "greedy"])
def test_logits_that_are_not_numbers_are_an_error(sampling, tiny_llama, tokenizer) -> None:
    broken = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    broken.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="not numbers"):  # which commands print as one line
        answers(broken, tokenizer, sampling)
    assert not broken.training


# A prompt is computed once


@pytest.mark.parametrize(("batch_size", "samples"), [(12, 6), (4, 6), (6, 6)])
def test_a_prompt_is_computed_once_for_all_its_samples(adapted, tokenizer, batch_size, samples) -> None:
    computed = []
    hook = adapted.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: computed.append(inputs[0].numel())
    )
    sampling = Sampling(samples=samples, temperature=1.0, max_new_tokens=3)
    try:
        (generated,) = answers(adapted, tokenizer, sampling, batch_size, PROMPTS[3:4], KEYS[3:4])
    finally:
        hook.remove()
    assert [sample.tokens for sample in generated] == [3] * samples
    length = len(tokenizer(PROMPTS[3])["input_ids"])
    assert sum(computed) == (length - 1) + samples * 3  # the prompt but its last token, which each sample goes on from


def test_the_longest_prompts_are_first(plain, tokenizer) -> None:
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    generated = TransformersBackend(plain, tokenizer, 2).generate(PROMPTS, KEYS, Sampling(max_new_tokens=1))
    assert [lengths[position] for position, _ in generated] == sorted(lengths, reverse=True)


# Where an answer ends


def test_stop_strings_end_each_row_by_itself(plain, tokenizer) -> None:
    whole = [samples[0] for samples in answers(plain, tokenizer, Sampling(max_new_tokens=24))]
    assert all(len(sample.text) > 12 for sample in whole)
    stops = [whole[0].text[7:10], whole[3].text[9:11]]
    for batch_size in (1, 5):
        generated = answers(plain, tokenizer, Sampling(max_new_tokens=24, stop=stops), batch_size)
        for uncut, (sample,) in zip(whole, generated, strict=True):
            places = [uncut.text.find(stop) for stop in stops if stop in uncut.text]
            assert sample.text == uncut.text[: min(places, default=None)]
            assert sample.finished == bool(places)
            assert sample.tokens <= 24
    first = answers(plain, tokenizer, Sampling(max_new_tokens=24, stop=stops))[0][0]
    tokens = alone(plain, tokenizer, PROMPTS[0], 24)
    assert any(stop in tokenizer.decode(tokens[: first.tokens]) for stop in stops)
    assert not any(stop in tokenizer.decode(tokens[: first.tokens - 1]) for stop in stops)
    assert first.tokens < 24


def test_a_stop_string_is_looked_for_in_the_answer_alone() -> None:
    model, tokenizer = build("llama"), words(64, pad=0)
    model.generation_config.eos_token_id = None  # nothing else ends it
    tokens = alone(model, tokenizer, "w9 w3", 6)
    across = f"w3 w{tokens[0]}"  # ends in the answer, begins in the prompt
    ((sample,),) = answers(model, tokenizer, Sampling(max_new_tokens=6, stop=[across]), 1, ["w9 w3"], ["key"])
    assert sample == Sample(" ".join(f"w{token}" for token in tokens), 6, finished=False)
    stop = [f"w{tokens[4]}"]
    ((sample,),) = answers(model, tokenizer, Sampling(max_new_tokens=6, stop=stop), 1, ["w9 w3"], ["key"])
    place = tokens.index(tokens[4])
    assert sample.text.split() == [f"w{token}" for token in tokens[:place]]
    assert (sample.tokens, sample.finished) == (place + 1, True)


@pytest.mark.parametrize("whose", ["tokenizer", "model", "models list", "stop", "template"])
def test_end_tokens_are_the_tokenizers_and_the_models(whose) -> None:
    model = build("llama")
    model.generation_config.eos_token_id = None
    tokens = alone(model, words(64, pad=0), "w9 w3", 9)
    place = next(i for i in range(2, 9) if tokens[i] not in tokens[:i])
    end, stop, unused = tokens[place], [], next(token for token in range(1, 64) if token not in tokens)
    tokenizer = words(64, pad=0, end=end if whose == "tokenizer" else None)
    if whose in ("stop", "template"):
        tokenizer.add_special_tokens({"additional_special_tokens": [f"w{end}"]})
    if whose == "stop":
        stop = [f"w{end}"]
    elif whose == "template":
        tokenizer.chat_template = "{% for m in messages %}{{ m.role ~ ' ' ~ m.content ~ ' END ' }}{% endfor %}"
        tokenizer.chat_template += "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
        tokenizer.chat_template = tokenizer.chat_template.replace("END", f"w{end}")
    elif whose != "tokenizer":
        model.generation_config.eos_token_id = end if whose == "model" else [unused, end]
    prompts, keys = ["w9 w3", "w5 w6 w7 w8"], ["key", "longer"]
    (sample,), _ = answers(model, tokenizer, Sampling(max_new_tokens=9, stop=stop), 2, prompts, keys)
    text = " ".join(f"w{token}" for token in tokens[:place] if token != 0)
    assert sample == Sample(text, place + 1, finished=True)
    exactly = Sampling(max_new_tokens=place + 1, stop=stop)
    assert answers(model, tokenizer, exactly, 2, prompts, keys)[0] == [sample]
    (short,), _ = answers(model, tokenizer, Sampling(max_new_tokens=place, stop=stop), 2, prompts, keys)
    assert short == Sample(text, place, finished=False)


# The model is left as it was


def test_modes_and_settings_are_put_back_even_if_the_consumer_stops(adapted, tokenizer) -> None:
    adapted.train()
    adapted.get_input_embeddings().eval()
    adapted.config.use_cache = False
    settings = adapted.generation_config.to_dict()

    def modes() -> list[bool]:
        return [module.training for module in adapted.modules()]

    before = modes()
    running = TransformersBackend(adapted, tokenizer, 2).generate(PROMPTS, KEYS, Sampling(max_new_tokens=4))
    assert isinstance(running, Generator)
    first = next(running)
    assert modes() == before  # between two batches, too
    running.close()
    assert modes() == before
    assert adapted.generation_config.to_dict() == settings
    assert not adapted.config.use_cache
    assert answers(adapted, tokenizer, Sampling(max_new_tokens=4))[first[0]] == first[1]  # no dropout
    assert modes() == before
    assert all(parameter.grad is None for parameter in adapted.parameters())


def test_what_the_models_generation_config_brings_changes_nothing_and_warns_of_nothing(
    plain, tokenizer, caplog
) -> None:
    expected = answers(plain, tokenizer, Sampling(max_new_tokens=12)), answers(plain, tokenizer, SAMPLED)
    sampler = copy.deepcopy(plain)
    sampler.generation_config.update(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.8, min_p=0.1, max_length=30, min_length=3
    )
    sampler.generation_config.update(repetition_penalty=3.0, no_repeat_ngram_size=1, num_return_sequences=2)
    sampler.generation_config.update(suppress_tokens=list(range(100, 40000)), cache_implementation="static")
    logger = logging.getLogger("transformers")  # which hands nothing on to the root's
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            generated = (
                answers(sampler, tokenizer, Sampling(max_new_tokens=12)),
                answers(sampler, tokenizer, SAMPLED),
            )
        finally:
            logger.removeHandler(caplog.handler)
    assert generated == expected
    assert not caplog.records


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, r"sampling\.samples must be at least 1, got 0"),
        ({"samples": 2}, r"sampling\.samples must be 1 for greedy .* got 2"),
        ({"temperature": -0.1}, r"sampling\.temperature must be .* got -0\.1"),
        ({"temperature": math.nan}, r"sampling\.temperature must be .* got nan"),
        ({"temperature": math.inf}, r"sampling\.temperature must be .* got inf"),
        ({"top_p": 0.0}, r"sampling\.top_p must be in \(0, 1\], got 0\.0"),
        ({"top_p": 1.1}, r"sampling\.top_p must be in \(0, 1\], got 1\.1"),
        ({"top_k": -1}, r"sampling\.top_k must be at least 0, got -1"),
        ({"max_new_tokens": 0}, r"sampling\.max_new_tokens must be at least 1, got 0"),
        ({"stop": "Question"}, r"sampling\.stop must be a list of strings, none of them empty, got 'Question'"),
        ({"stop": ["Question", ""]}, r"sampling\.stop must be a list of strings"),
        ({"seed": -1}, r"sampling\.seed must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_prompts_that_cannot_be_are_named_before_anything_is_generated(plain, tokenizer) -> None:
    backend = TransformersBackend(plain, tokenizer, 2)
    calls = []
    hook = plain.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    try:
        with pytest.raises(ValueError, match=r"keys must be unique, one for each of the 2 prompts, got \['a', 'a'\]"):
            backend.generate(["x", "y"], ["a", "a"], Sampling())
        with pytest.raises(ValueError, match=r"keys must be .* 2 prompts, got \['a'\]"):
            backend.generate(["x", "y"], ["a"], Sampling())
        with pytest.raises(ValueError, match=r"The prompt of empty has no tokens"):
            backend.generate(["x", ""], ["a", "empty"], Sampling())
        room = plain.config.max_position_embeddings - 10
        with pytest.raises(
            ValueError, match=rf"prompt of long has {room + 1} tokens.*max_new_tokens=10 .*{room + 10} positions"
        ):
            backend.generate(["x", " a" * (room + 1)], ["a", "long"], Sampling(max_new_tokens=10))
        backend.generate(["x", " a" * room], ["a", "long"], Sampling(max_new_tokens=10))
        assert list(backend.generate([], [], Sampling())) == []
        with pytest.raises(ValueError, match=r"The prompt has no tokens"):
            generate(plain, tokenizer, "")
    finally:
        hook.remove()
    assert not calls
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TransformersBackend(plain, tokenizer, 0)


def test_virtual_tokens_are_refused(tokenizer) -> None:
    tuned = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match="virtual tokens are not supported, got PROMPT_TUNING"):
        TransformersBackend(tuned, tokenizer, 1)


def test_the_head_reads_contiguous_states(plain, tokenizer):
    """Given a slice of them, torch copies the head's weight for each row: most of the time and memory of prompts."""
    seen = []
    head = plain.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, output: seen.append(args[0].is_contiguous()))
    answers(plain, tokenizer, Sampling(max_new_tokens=2), prompts=PROMPTS[2:], keys=KEYS[2:])
    handle.remove()
    assert len(seen) >= 2
    assert all(seen)


def test_a_bar_counts_the_tokens_of_a_batch_and_changes_nothing(plain, tokenizer, monkeypatch):
    bars = []

    class Bar(StatusBar):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **{**settings, "disable": False, "file": io.StringIO()})
            bars.append((settings["disable"], self))

    monkeypatch.setattr("cera.evaluation.generation.progress.StatusBar", Bar)
    sampling = Sampling(max_new_tokens=5)
    silent, shown = (
        list(TransformersBackend(plain, tokenizer, 2, progress=progress).generate(PROMPTS, KEYS, sampling))
        for progress in (False, True)
    )
    assert silent == shown
    assert [disabled for disabled, _ in bars] == [True] * (len(bars) // 2) + [False] * (len(bars) // 2)
    batches = [shown[start : start + 2] for start in range(0, len(shown), 2)]
    longest = [max(samples[0].tokens for _, samples in batch) for batch in batches]
    assert [bar.n for _, bar in bars] == longest * 2
    assert {bar.total for _, bar in bars} == {5}
