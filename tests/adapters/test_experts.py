"""CeRA on fused experts: against added weights, by hand, as an exact no-op, saved, refused where it cannot be."""

import pytest
import torch
from families import INPUT_IDS, LLAMA, MOE, build
from fitting import fit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from cera import CeraConfig
from cera.adapters import CeraExperts
from cera.adapters.experts import IMPLEMENTATIONS, PARAMETERS
from cera.callbacks import SpectralTracker
from cera.models.backbone import load_model
from cera.spectral.hooks import find_branches
from cera.training.module import CausalLM

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
R, E, HIDDEN, LAYERS = 4, 4, 32, 2
INTER = dict.fromkeys(MOE, 48) | {"qwen2_moe": 24, "qwen3_moe": 24}


def config(**settings):
    """Of an adapter on experts only that is not a no-op."""
    defaults = {"r": R, "init_weights": False, "target_modules": [], "target_parameters": EXPERTS}
    return CeraConfig(**{**defaults, "task_type": "CAUSAL_LM", **settings})


def adapted(model_type="mixtral", base=None, **settings):
    torch.manual_seed(1)
    return get_peft_model(base or build(model_type), config(**settings)).eval()


@torch.no_grad()
def logits(model):
    return model(INPUT_IDS).logits


def layers(model):
    return [module for module in model.modules() if isinstance(module, CeraExperts)]


def branches_of(layer):
    """Parameter -> the branch beside it."""
    return {name: layer.branches(name)["default"] for name in PARAMETERS if "default" in layer.branches(name)}


# The numbers


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("model_type", MOE)
def test_linear_branches_equal_added_weights(model_type, implementation):
    """LoRA's way, W[e] + s W_down[e] W_up[e], in fp64: whether experts are stored (E, out, in) or (E, in, out)."""
    base = build(model_type).double()
    base.set_experts_implementation(implementation)
    model = adapted(base=base, activation="identity", dropout=0.0, scaling=1.5)
    result = logits(model)
    by_layer = layers(model)
    assert len(by_layer) == LAYERS
    expected = build(model_type).double()
    expected.set_experts_implementation("eager")  # torch's kernel for groups has no fp64
    for layer, block in zip(by_layer, expected.model.layers, strict=True):
        for name, branch in branches_of(layer).items():
            weight = getattr(block.mlp.experts, name).data
            update = 1.5 * branch.down.detach() @ branch.up.detach()  # (E, out, in)
            weight += update.mT if block.mlp.experts.is_transposed else update
    torch.testing.assert_close(result, logits(expected), rtol=1e-6, atol=1e-6)  # norms and routers compute in fp32
    assert (result - logits(build(model_type))).abs().max() > 0.01


@pytest.mark.parametrize("r", [3, 8])  # with and without torch's kernel for groups, which wants multiples of 16 bytes
@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_output_and_gradients_equal_a_loop_over_tokens_and_experts(activation, r):
    model = adapted(r=r, activation=activation, dropout=0.0, scaling=0.7)
    layer = layers(model)[0]
    experts, branches = layer.base_layer, branches_of(layer)
    act = {"silu": F.silu, "tanh": torch.tanh}[activation]
    x = torch.randn(7, HIDDEN, requires_grad=True)
    index = torch.tensor([[0, 2], [2, 0], [2, 3], [0, 3], [3, 2], [2, 0], [0, 2]])  # none goes to expert 1
    weights = torch.rand(7, 2, requires_grad=True)

    def project(name, x, e):
        branch = branches[name]
        return getattr(experts, name)[e] @ x + 0.7 * branch.down[e] @ act(branch.up[e] @ x)

    def token(x, chosen, weights):
        total = torch.zeros(HIDDEN)
        for e, weight in zip(chosen.tolist(), weights, strict=True):
            gate, up = project("gate_up_proj", x, e).chunk(2)
            total = total + weight * project("down_proj", F.silu(gate) * up, e)
        return total

    expected = torch.stack([token(*row) for row in zip(x, index, weights, strict=True)])
    output = layer(x, index, weights)
    torch.testing.assert_close(output, expected)
    inputs = [x, weights, *(p for branch in branches.values() for p in branch.parameters())]
    ours, theirs = (torch.autograd.grad(h.square().sum(), inputs) for h in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(not gradient[1].any() and gradient[0].any() for gradient in ours[2:])


def test_dropout_is_on_the_latent_and_in_training_only():
    model = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


# What an adapter must leave alone


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", MOE)
def test_a_new_adapter_is_an_exact_no_op(model_type, dtype, training):
    base = build(model_type).to(dtype)
    expected = logits(base)
    model = get_peft_model(base, config(init_weights=True, target_modules=None)).train(training)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_a_new_adapter_equals_other_implementations_up_to_rounding(implementation):
    base = build("olmoe")
    base.set_experts_implementation(implementation)
    expected = logits(base)
    model = get_peft_model(base, config(init_weights=True))
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


# Training, saving, sizes


@pytest.mark.parametrize("model_type", MOE)
def test_train_save_load_disable(model_type, tmp_path):
    base = logits(build(model_type))
    model = get_peft_model(build(model_type), config(init_weights=True, target_modules=None)).train()

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    of_experts = sum(p.numel() for name, p in trained if ".experts." in name)
    inter = INTER[model_type]
    assert of_experts == LAYERS * E * R * ((HIDDEN + 2 * inter) + (inter + HIDDEN))
    queries_and_values = LAYERS * R * ((32 + 32) + (32 + 16))
    assert model.get_nb_trainable_parameters()[0] == of_experts + queries_and_values

    optimizer = torch.optim.AdamW([p for _, p in trained], lr=0.05)
    losses = []
    for _ in range(10):
        loss = model(input_ids=INPUT_IDS, labels=INPUT_IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1

    after = logits(model.eval())
    assert not torch.equal(after, base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), after)

    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(build(model_type), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded), after)
        assert loaded.peft_config["default"].target_parameters == EXPERTS

    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ids = model.generate(input_ids=INPUT_IDS[:1], attention_mask=torch.ones(1, 8), **settings)
    assert ids[0, 8] == after[0, -1].index_fill(0, torch.tensor(2), -torch.inf).argmax()


def test_unloading_gives_the_base_back():
    model = adapted(target_modules=["q_proj"])
    base = model.unload()
    assert base.state_dict().keys() == build("mixtral").state_dict().keys()
    assert torch.equal(logits(base), logits(build("mixtral")))


def test_merging_is_refused():
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapted().merge_and_unload()
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        layers(adapted())[0].merge()


# Several adapters


def test_adapters_on_other_matrices_and_of_other_ranks_switch_and_go(tmp_path):
    model = adapted(target_parameters=["experts.down_proj"])
    first = logits(model)
    model.add_adapter("other", config(r=2, target_modules=["q_proj"]))
    assert torch.equal(logits(model), first)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".other." in name)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(second, first)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".other." in name
    }
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("mixtral"), tmp_path / "other")
    assert torch.equal(logits(loaded), second)
    loaded.load_adapter(tmp_path, "first")
    loaded.set_adapter("first")
    assert torch.equal(logits(loaded), first)
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    assert not any("other" in name for name, _ in model.named_modules())


def test_mixed_batches_are_refused():
    with pytest.raises(ValueError, match=r"`adapter_names`.*experts"):
        adapted()(INPUT_IDS, adapter_names=["default"] * 3)


# Which experts


def test_names_layers_and_ranks_select():
    model = adapted(target_parameters=["mlp.experts.down_proj"], layers_to_transform=[1])
    (layer,) = layers(model)
    assert list(branches_of(layer)) == ["down_proj"]
    assert layer is model.base_model.model.model.layers[1].mlp.experts
    model = adapted(rank_pattern={"gate_up_proj": 2}, exclude_modules=[r"layers.0.mlp.experts.down_proj"])
    assert [{name: b.r for name, b in branches_of(layer).items()} for layer in layers(model)] == [
        {"gate_up_proj": 2},
        {"gate_up_proj": 2, "down_proj": R},
    ]


# Precision, memory, compilation


def test_fp32_branches_in_a_bf16_model():
    """As PEFT makes them (autocast_adapter_dtype): computed in fp32 alone, in bf16 under autocast."""
    model = adapted(base=build("mixtral").bfloat16(), dropout=0.0)
    branch = layers(model)[0].cera_down_proj["default"]
    assert branch.up.dtype == torch.float32
    assert logits(model).dtype == torch.bfloat16
    dtypes = []
    branch.register_forward_hook(lambda _, args, output: dtypes.append(output.dtype))
    logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(INPUT_IDS, labels=INPUT_IDS).loss
    assert dtypes == [torch.float32, torch.bfloat16]
    loss.backward()
    assert branch.up.grad.dtype == torch.float32
    assert branch.up.grad.isfinite().all()
    assert branch.up.grad.any()


def test_gradient_checkpointing_changes_no_gradient():
    model = adapted(dropout=0.0).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(INPUT_IDS, labels=INPUT_IDS).loss, parameters)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(map(torch.equal, torch.autograd.grad(model(INPUT_IDS, labels=INPUT_IDS).loss, parameters), expected))


def test_layer_compiles_in_one_graph():
    torch._dynamo.reset()
    layer = layers(adapted(dropout=0.0))[0]
    x, index, weights = torch.randn(6, HIDDEN), torch.randint(0, E, (6, 2)), torch.rand(6, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, index, weights), layer(x, index, weights))


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["gate.weight"]}, r"'model\.layers\.0\.mlp\.gate\.weight' in a MixtralTopKRouter"),
        ({"target_parameters": ["q_proj.weight"]}, r"in a Linear\. .*linear layers are named in target_modules"),
        ({"target_modules": ["experts"]}, r"'.*experts', a MixtralExperts.*target_parameters=\['experts.gate_up_proj'"),
        ({"target_parameters": "experts"}, r"^CeraConfig\.target_parameters must be a list of names, got 'experts'"),
        ({"granularity": "module"}, "target_parameters needs granularity='weight'"),
    ],
)
def test_what_is_not_experts_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        adapted(**settings)


def test_experts_of_another_form_are_refused():
    """Llama 4's take no routing: each expert gets all tokens."""
    config4 = AutoConfig.for_model("llama4_text", **LLAMA, num_local_experts=4, head_dim=8, intermediate_size_mlp=48)
    with pytest.raises(ValueError, match=r"in a Llama4TextExperts\. CeRA adapts .*use_experts_implementation"):
        adapted(base=AutoModelForCausalLM.from_config(config4))


def test_other_implementations_are_refused_before_and_after():
    base = build("mixtral")
    base.config._experts_implementation_internal = "sonicmoe"
    with pytest.raises(ValueError, match=r"not with 'sonicmoe': call model\.set_experts_implementation"):
        adapted(base=base)
    model = adapted()
    model.config._experts_implementation_internal = "deepgemm"
    with pytest.raises(ValueError, match="not with 'deepgemm'"):
        logits(model)


def test_spread_experts_are_refused():
    base = build("mixtral")
    base.model.layers[1].mlp.experts._is_expert_parallel = True
    with pytest.raises(ValueError, match="expert parallelism"):
        adapted(base=base)
    base = build("mixtral")
    base.model.layers[1].mlp.experts.down_proj.ds_id = 7  # which ZeRO-3 gives to each parameter
    with pytest.raises(ValueError, match=r"ZeRO-3.*use ZeRO-2"):
        adapted(base=base)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_experts_beside_quantized_linears(tmp_path, quantization):
    build("mixtral", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = get_peft_model(load_model(str(tmp_path), torch.bfloat16, quantization), config(target_modules=["q_proj"]))
    assert type(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer) is not torch.nn.Linear
    model(INPUT_IDS, labels=INPUT_IDS).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_quantized_experts_are_refused(dtype):
    base = build("mixtral")
    experts = base.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.data.to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=rf"weights are {dtype}\. Load the model with its experts in bf16"):
        adapted(base=base)


# In this framework


@pytest.mark.parametrize("adapter", [config, LoraConfig])
def test_spectra_leave_experts_out(adapter):
    model = get_peft_model(build("mixtral"), adapter(target_modules=["q_proj"], target_parameters=EXPERTS))
    assert [branch.name.rpartition(".")[2] for branch in find_branches(model)] == ["q_proj"] * LAYERS


@pytest.fixture(scope="module")
def tiny_moe(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("tiny_moe")
    build("qwen3_moe", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adapter", [CeraConfig, LoraConfig])
def test_check_counts_experts_without_loading(tiny_moe, adapter):
    settings = {"r": R, "target_modules": ["q_proj", "v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    of_experts = LAYERS * E * R * (HIDDEN + 48)
    assert CausalLM(tiny_moe, adapter(**settings)).check() == of_experts + LAYERS * R * ((32 + 32) + (32 + 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_parameters": ["experts.gate_proj"]},
            r"model\.adapter\.target_parameters: 'experts\.gate_proj' matches nothing in .* Its fused experts' weights "
            r"are experts\.down_proj, experts\.gate_up_proj\.",
        ),
        ({"target_parameters": ["gate.weight"]}, "CeRA adapts the parameters"),
        ({"target_modules": ["embed_tokens"]}, r"'model\.embed_tokens', a Embedding"),
        ({"target_parameters": EXPERTS, "rank_pattern": {"up_proj": 2}}, "rank_pattern: 'up_proj' matches nothing"),
    ],
)
def test_check_refuses_before_loading(tiny_moe, settings, message):
    with pytest.raises(ValueError, match=message):
        CausalLM(tiny_moe, CeraConfig(r=R, **settings)).check()


def test_check_accepts_a_rank_for_experts(tiny_moe):
    adapter = CeraConfig(r=R, target_modules=[], target_parameters=EXPERTS, rank_pattern={"gate_up_proj": 2})
    assert CausalLM(tiny_moe, adapter).check() == LAYERS * E * (2 * (HIDDEN + 48) + R * (24 + HIDDEN))


def test_fits_and_follows_spectra(tiny_moe, tmp_path):
    adapter = CeraConfig(r=R, target_parameters=EXPERTS)
    module, _, trainer = fit(tiny_moe, tmp_path, [SpectralTracker()], adapter=adapter)
    assert trainer.global_step == 4
    downs = [p for name, p in module.trainable().items() if ".experts." in name and name.endswith("down")]
    assert len(downs) == 2 * LAYERS
    assert all(down.any() for down in downs)
    written = load_file(tmp_path / "spectra" / "step=4.safetensors")
    assert {name.rpartition(".")[2] for name in written} == {"q_proj", "v_proj"}
