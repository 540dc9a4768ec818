"""``cera import``: files in the layout of the authors' code, against a forward of their formula written here."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import cera
from cera.runs.import_command import main
from cera.runs.saved_adapter import SavedAdapter

IDS = torch.randint(3, 1000, (2, 16), generator=torch.Generator().manual_seed(0))
CONFIG = {"model_type": "CeRA", "rank": 4, "act_fn": "silu", "dropout": 0.1, "target_modules": "q_proj,v_proj"}
UNIT = {"alpha": 4, "scale": 1.0}
ALIGNED = {**CONFIG, "cera_variant": "peft_aligned", "alpha": 12, "scale": 3.0, "cera_format_version": 3}


def targets(model, names=("q_proj", "v_proj")):
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in names and isinstance(m, nn.Linear)}


def weights_of(base, method="CeRA", rank=4, names=("q_proj", "v_proj"), old=False, extra=(), width_ranks=False):
    """Random trained weights by the names of their files."""
    torch.manual_seed(1)
    state = {}
    for name, linear in targets(base, names).items():
        out, width = linear.weight.shape
        r = rank * width // base.config.hidden_size if width_ranks else rank
        if method == "CeRA":
            up, down = ("up_proj", "down_proj") if old else ("A", "B")
            state[f"{name}.cera.{up}.weight"] = torch.randn(r, width) / 4
            state[f"{name}.cera.{down}.weight"] = torch.randn(out, r) / 4
            if "gamma" in extra:
                state[f"{name}.cera.gamma"] = torch.randn(())
            if "recurrent" in extra:
                state[f"{name}.cera.recurrent_inner.weight"] = torch.randn(r, r)
                state[f"{name}.cera.recurrent_outer.weight"] = torch.randn(r, r)
        else:
            state[f"{name}.lora_A"] = torch.randn(width, r) / 4
            state[f"{name}.lora_B"] = torch.randn(r, out) / 4
            if method == "DoRA":
                state[f"{name}.m"] = linear.weight.detach().norm(dim=1) * (1 + torch.rand(out))
    return state


def wrote(path, state, config=None, method="CeRA", **entries):
    content = {"step": 30, "data_count": 1000, "model_type": method, "model_state_dict": state, "metrics": {}}
    torch.save({**content, **({} if config is None else {"config": config}), **entries}, path)
    return path


def expected_logits(base, state, formula):
    """The logits of the base with each target's output replaced by ``formula(linear, x, part)``."""

    def replace(name):
        def hook(linear, args, output):
            part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            return formula(linear, args[0], part)

        return hook

    names = {key.partition(".cera.")[0].removesuffix(".lora_A") for key in state}
    handles = [module.register_forward_hook(replace(name)) for name, module in base.named_modules() if name in names]
    with torch.no_grad():
        logits = base(IDS).logits
    for handle in handles:
        handle.remove()
    return logits


def cera_formula(activation, scale=1.0, steps=0):
    def formula(linear, x, part):
        up = part.get("cera.A.weight", part.get("cera.up_proj.weight"))
        down = part.get("cera.B.weight", part.get("cera.down_proj.weight"))
        latent = activation(x @ up.T, part)
        for _ in range(steps):
            mean_square = latent.square().mean(-1, keepdim=True)
            hidden = latent / (mean_square + torch.finfo(torch.float32).eps).sqrt()
            hidden = F.silu(hidden @ part["cera.recurrent_inner.weight"].T)
            latent = latent + hidden @ part["cera.recurrent_outer.weight"].T / steps
        return F.linear(x, linear.weight) + latent @ down.T * scale

    return formula


def lora_formula(linear, x, part, scale=8.0):
    delta = scale * part["lora_A"] @ part["lora_B"]
    if "m" not in part:
        return F.linear(x, linear.weight) + x @ delta
    weight = linear.weight + delta.T
    return F.linear(x, part["m"][:, None] * weight / weight.norm(dim=1, keepdim=True))


SILU = cera_formula(lambda z, _: F.silu(z))
MIX = cera_formula(lambda z, part: z + part["cera.gamma"] * (F.silu(z) - z))
CASES = {
    "legacy": ({}, CONFIG, [], SILU),
    "legacy without a config": ({}, None, ["--activation=silu"], SILU),
    "old names": ({"old": True}, None, ["--activation=relu"], cera_formula(lambda z, _: z.relu())),
    "legacy with its scale": ({}, {**CONFIG, "scale": 1.0, "alpha": 16, "cera_variant": "legacy"}, [], SILU),
    "aligned without alpha": ({}, {**ALIGNED, "alpha": None}, [], cera_formula(lambda z, _: F.silu(z), 3.0)),
    "attention and feed-forward": (
        {"names": ("q_proj", "o_proj", "up_proj", "down_proj"), "width_ranks": True, "old": True}, CONFIG, [], SILU
    ),
    "aligned": ({}, ALIGNED, [], cera_formula(lambda z, _: F.silu(z), 3.0)),
    "learned mix": ({"extra": ["gamma"]}, {**ALIGNED, "cera_mix_mode": "learned_mix", **UNIT}, [], MIX),
    "learned mix without a config": ({"extra": ["gamma"]}, None, [], MIX),
    "recurrent": (
        {"extra": ["recurrent"]}, {**ALIGNED, "act_fn": "identity", "recurrent_steps": 3}, [],
        cera_formula(lambda z, _: z, 3.0, 3),
    ),
    "recurrent without a config": (
        {"extra": ["recurrent"]}, None, ["--recurrent-steps=2", "--alpha=8"], cera_formula(lambda z, _: z, 2.0, 2)
    ),
    "LoRA": ({"method": "LoRA"}, None, [], lora_formula),
    "LoRA with its alpha": (
        {"method": "LoRA"}, {"alpha": 4, "rank": 4}, [], lambda *args: lora_formula(*args, scale=1.0)
    ),
    "DoRA": ({"method": "DoRA"}, None, [], lora_formula),
}  # fmt: skip


@pytest.fixture
def base(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_formula(base, tiny_llama, tmp_path, case, capsys):
    made, config, options, formula = CASES[case]
    state = weights_of(base, **made)
    file = wrote(tmp_path / "best.pt", state, config, made.get("method", "CeRA"))
    out = tmp_path / "adapter"
    assert main([str(file), f"--base={tiny_llama}", f"--out={out}", *options]) == 0, capsys.readouterr().err
    expected = expected_logits(base, state, formula)
    plain = base(IDS).logits
    saved = SavedAdapter.find(out)  # reads, checks and loads it as every command does
    logits = saved.load(torch.float32, "cpu")(IDS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert "authors' own code" in (out / "README.md").read_text()
    assert "no part in it" not in (out / "README.md").read_text()
    # negative control: with one matrix changed it is not the formula
    changed = {name: weight * (1.5 if i == 1 else 1) for i, (name, weight) in enumerate(state.items())}
    assert not torch.allclose(logits, expected_logits(base, changed, formula), atol=1e-3)


def test_plain_peft_loads_it_and_it_trains_on(base, tiny_llama, tmp_path):
    file = wrote(tmp_path / "best.pt", weights_of(base, extra=["gamma"]), ALIGNED | {"cera_mix_mode": "learned_mix"})
    assert main([str(file), f"--base={tiny_llama}", f"--out={tmp_path / 'adapter'}"]) == 0
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    config = model.peft_config["default"]
    assert isinstance(config, cera.CeraConfig)
    assert (config.alpha, config.dropout_on, config.activation) == (12.0, "input", "learned_mix")
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_ranks_that_differ_are_a_pattern(base, tiny_llama, tmp_path):
    state = weights_of(base, names=("q_proj", "down_proj"), width_ranks=True)
    file = wrote(tmp_path / "a.pt", state, CONFIG)
    assert main([str(file), f"--base={tiny_llama}", f"--out={tmp_path / 'out'}"]) == 0
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["r"] != next(iter(settings["rank_pattern"].values()))
    assert settings["init"] == "kaiming_normal"
    assert settings["target_modules"] == ["down_proj", "q_proj"]


def test_mistakes_are_one_line(base, tiny_llama, tmp_path, capsys):
    good = weights_of(base)

    def refused(message, state=None, config=CONFIG, options=(), method="CeRA", **entries):
        file = wrote(tmp_path / "a.pt", dict(good) if state is None else state, config, method, **entries)
        status = main([str(file), f"--base={tiny_llama}", f"--out={tmp_path / 'out'}", *options])
        printed = capsys.readouterr().err
        assert status == 2, printed
        assert message in printed
        assert len(printed.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / ".out.unfinished").exists()

    def without(text):
        return {name: weight for name, weight in good.items() if text not in name}

    def renamed(old, new):
        return {name.replace(old, new): weight for name, weight in good.items()}

    first = next(iter(good))
    refused("does not say its activation: give --activation silu|relu|identity", config=None)
    refused("lacks the weight that is cera_down.weight", without(first.replace("A.", "B.")))
    refused("adapts 6 of the base's 8 modules", without("layers.3"))
    refused("adapts model.layers.5.self_attn", renamed("layers.3", "layers.5"))
    refused("is no weight of an adapter", {**good, "model.norm.weight": torch.ones(3)})
    refused("has values that are no finite", {**good, first: torch.full_like(good[first], float("nan"))})
    refused("has values that are no finite", {**good, first: good[first].int()})
    refused("does not fit a layer of", {**good, first: good[first][:, :-1]})
    refused("does not fit a layer of", {**good, first: good[first][0]})
    refused("under two names", {**good, first.replace(".A.", ".up_proj."): good[first]})
    with_gamma = {**good, first.replace("A.weight", "gamma"): torch.ones(1)}
    refused("lacks the weight that is cera_activation.gamma", with_gamma)
    refused("--activation=relu contradicts", options=["--activation=relu"])
    refused("act_fn must be one of silu, relu, identity, got 'gelu'", config={**CONFIG, "act_fn": "gelu"})
    refused("cera_variant must be legacy or peft_aligned", config={**CONFIG, "cera_variant": "new"})
    refused("recurrent_steps 2, and no weights", config={**ALIGNED, "recurrent_steps": 2})
    refused("give --recurrent-steps", weights_of(base, extra=["recurrent"]), config=None)
    refused("scale 2.0 is not that of its variant, 1", config={**CONFIG, "scale": 2.0})
    refused("scale 2.0 is not that of its variant, 3", config={**ALIGNED, "scale": 2.0})
    refused("a CeRA of the variant legacy, is 1", options=["--alpha=8"])
    refused("model_type must be one of CeRA, LoRA, DoRA, got 'IA3'", method="IA3")
    refused("it has no model_state_dict of tensors", model_state_dict=None)
    refused("config must be a mapping", config=[1])
    refused("CeraConfig.dropout must be in [0, 1)", config={**CONFIG, "dropout": 1.5})
    refused("no checkpoint of tensors and plain values", metrics={"net": nn.Linear(1, 1)})


def test_files_that_are_none_and_directories_that_exist(base, tiny_llama, tmp_path, capsys):
    (tmp_path / "junk.pt").write_bytes(b"nothing")
    out = f"--out={tmp_path / 'out'}"
    assert main([str(tmp_path / "junk.pt"), f"--base={tiny_llama}", out]) == 2
    assert main([str(tmp_path / "absent.pt"), f"--base={tiny_llama}", out]) == 2
    assert "absent.pt is missing" in capsys.readouterr().err
    file = wrote(tmp_path / "a.pt", weights_of(base), CONFIG)
    assert main([str(file), f"--base={tiny_llama}", out]) == 0
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir())
    assert main([str(file), f"--base={tiny_llama}", out]) == 2
    assert "exists already; give a new directory" in capsys.readouterr().err
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()) == before


def test_lora_is_an_ordinary_one(base, tiny_llama, tmp_path):
    file = wrote(tmp_path / "a.pt", weights_of(base, "DoRA"), method="DoRA")
    assert main([str(file), f"--base={tiny_llama}", f"--out={tmp_path / 'out'}"]) == 0
    config = LoraConfig.from_pretrained(tmp_path / "out")
    assert (config.r, config.lora_alpha, config.use_dora) == (4, 32, True)
