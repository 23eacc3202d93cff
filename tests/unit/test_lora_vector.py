import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

from lcm_core.lora import Factors, LoRAVector, canonical_name

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
KOHYA_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TARGETS = ["to_q", "to_k", "to_out.0", "ff.net.2", "conv1", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]


def random_vector(seed, rank, alpha, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g).to(dtype)

    return LoRAVector(
        {
            Q: Factors(normal(rank, 6), normal(5, rank), alpha),
            CONV: Factors(normal(rank, 4, 3, 3), normal(7, rank, 1, 1), alpha),
            TEXT: Factors(normal(rank, 3), normal(8, rank), alpha),
        },
        {"unet.conv_norm_out.weight": normal(4), "unet.conv_out.bias": normal(3)},
    )


def dense(vector):
    """All of a vector as one float64 row, the test's own way."""
    deltas = [
        f.alpha / f.down.shape[0] * torch.einsum("or,ri->oi", f.up.double().flatten(1), f.down.double().flatten(1))
        for _, f in sorted(vector.modules.items())
    ]
    return torch.cat([t.flatten() for t in deltas] + [d.double() for _, d in sorted(vector.diffs.items())])


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def adapted_unet(**config):
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(target_modules=TARGETS, init_lora_weights=False, **config))
    return unet


def peft_deltas(unet):
    (adapter,) = unet.peft_config
    return {
        f"unet.{name}": module.get_delta_weight(adapter).detach()
        for name, module in unet.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def assert_same_deltas(vector, deltas):
    assert vector.modules.keys() == deltas.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(vector.delta(name), delta, rtol=1e-5, atol=1e-6)


CONFIGS = [
    {"r": 4, "lora_alpha": 4},
    {"r": 4, "lora_alpha": 8},
    {"r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 2, "conv1": 6}, "alpha_pattern": {"to_q": 5, "conv1": 6}},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_reads_what_diffusers_saves(tmp_path, config):
    unet = adapted_unet(**config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    vector = LoRAVector.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert_same_deltas(vector, peft_deltas(unet))
    assert "lora_adapter_metadata" not in vector.metadata


@pytest.mark.parametrize("config", CONFIGS)
def test_reads_a_model_s_own_adapter_file(tmp_path, config):
    unet = adapted_unet(**config)
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    assert_same_deltas(LoRAVector.load(tmp_path / "pytorch_lora_weights.safetensors"), peft_deltas(unet))


def test_reads_peft_s_state_dicts():
    unet = adapted_unet(r=4, lora_alpha=4)
    state = get_peft_model_state_dict(unet)
    raw = {key: value for key, value in unet.state_dict().items() if ".lora_" in key}
    assert all(".default." in key for key in raw)
    for spelled in (state, raw, {f"base_model.model.{key}": value for key, value in state.items()}):
        assert_same_deltas(LoRAVector.from_state_dict(spelled), peft_deltas(unet))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_diffusers_reads_what_we_write(tmp_path, config, dialect):
    unet = adapted_unet(**config)
    metadata = {"lora_adapter_metadata": json.dumps(unet.peft_config["default"].to_dict(), default=list)}
    vector = LoRAVector.from_state_dict(get_peft_model_state_dict(unet), metadata)
    vector.save(tmp_path / "ours.safetensors", dialect)
    state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path, weight_name="ours.safetensors")
    reader = tiny_unet()
    reader.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    read = peft_deltas(reader)
    for name, delta in peft_deltas(unet).items():
        torch.testing.assert_close(read[name], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_reads_what_peft_saves(tmp_path, config):
    model = get_peft_model(tiny_unet(), LoraConfig(target_modules=TARGETS, init_lora_weights=False, **config))
    model.save_pretrained(tmp_path)
    deltas = {name.replace("unet.base_model.model", "unet"): d for name, d in peft_deltas(model).items()}
    assert_same_deltas(LoRAVector.load(tmp_path / "adapter_model.safetensors"), deltas)


def test_reads_what_peft_saves_of_any_module(tmp_path):
    net = torch.nn.ModuleDict({"fc": torch.nn.Linear(6, 5), "head": torch.nn.Conv2d(3, 4, 3)})
    model = get_peft_model(net, LoraConfig(r=2, lora_alpha=3, target_modules=["fc", "head"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    deltas = {name.replace("unet.base_model.model.", ""): d for name, d in peft_deltas(model).items()}
    assert_same_deltas(LoRAVector.load(tmp_path / "adapter_model.safetensors"), deltas)


def tiny_pipeline():
    sizes = {"hidden_size": 12, "intermediate_size": 16, "projection_dim": 12, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=2, vocab_size=32, max_position_embeddings=8))
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "text_encoder": text, "tokenizer": None, "unet": tiny_unet(), "scheduler": scheduler}
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def pipeline_deltas(pipeline):
    deltas = {**peft_deltas(pipeline.unet), **peft_deltas(pipeline.text_encoder)}
    return {canonical_name(name.replace("unet.encoder", "text_encoder.encoder")): d for name, d in deltas.items()}


def test_a_pipeline_s_file_is_read_and_ours_loads_into_a_pipeline(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
    text_config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    pipeline.text_encoder.add_adapter(text_config)
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipeline.text_encoder.peft_config["default"].to_dict(),
    )
    vector = LoRAVector.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert_same_deltas(vector, pipeline_deltas(pipeline))
    vector.save(tmp_path / "ours.safetensors", "peft")
    reader = tiny_pipeline()
    reader.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    assert_same_deltas(vector, pipeline_deltas(reader))


@pytest.mark.parametrize("dialect", ["kohya", "peft", "native"])
def test_a_sum_of_dialects_reads_back(tmp_path, dialect):
    a = LoRAVector.from_state_dict(adapter := get_peft_model_state_dict(adapted_unet(r=4, lora_alpha=4)))
    b = LoRAVector.from_state_dict(LoRAVector.from_state_dict(adapter).state_dict("native"))
    total = 0.8 * a + 0.5 * b
    assert total.modules.keys() == a.modules.keys()
    total.save(tmp_path / "sum.safetensors", dialect)
    read = LoRAVector.load(tmp_path / "sum.safetensors")
    assert_same_deltas(read, {name: 1.3 * a.delta(name) for name in a.modules})


def test_sum_on_literals():
    a = LoRAVector({Q: Factors(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0], [0], [0], [2]]), 0.5)})
    b = LoRAVector({Q: Factors(torch.eye(4)[:2], torch.eye(4)[:, :2], 4.0)})
    total = 0.8 * a - b / 4
    expected = torch.tensor([[-0.1, 0.8, 1.2, 1.6], [0, -0.5, 0, 0], [0, 0, 0, 0], [0.8, 1.6, 2.4, 3.2]])
    torch.testing.assert_close(total.delta(Q), expected)
    assert total.modules[Q].rank == total.modules[Q].alpha == 3
    assert torch.equal(total.modules[Q].down, torch.cat([a.modules[Q].down, b.modules[Q].down]))
    assert torch.equal(a.delta(Q), 0.5 * torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0], [2, 4, 6, 8]]))


@pytest.mark.parametrize("l1, l2", [(1.0, 1.0), (0.8, 1.0), (-0.3, 2.5), (0.0, 1.0), (1e-6, -1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sum_is_exact_for_different_ranks_and_alphas(l1, l2, dtype):
    a, b = random_vector(1, 2, 1.0, dtype), random_vector(2, 3, 8.0, dtype)
    expected = l1 * dense(a) + l2 * dense(b)
    torch.testing.assert_close(dense(l1 * a + b * l2), expected, rtol=1e-6, atol=1e-6 * expected.abs().max())


def test_operators_are_linear():
    a, b = random_vector(1, 2, 1.0), random_vector(2, 3, 8.0)
    for result, expected in (
        (-a, -dense(a)),
        (a - b, dense(a) - dense(b)),
        (a / 3, dense(a) / 3),
        (sum([a, b, a], LoRAVector()), 2 * dense(a) + dense(b)),
    ):
        torch.testing.assert_close(dense(result), expected, rtol=1e-6, atol=1e-6)
    assert (a - a).norm() < 1e-6 * a.norm()


def test_scaling_copies_no_factor_and_zero_adds_no_rank():
    a, b = random_vector(1, 2, 1.0), random_vector(2, 3, 8.0)
    assert (0.8 * a).modules[Q].down is a.modules[Q].down
    assert (0.8 * a).modules[Q].up is a.modules[Q].up
    assert (0 * a + b).rank == 3
    assert (0 * a + 0 * b).rank == 2
    assert torch.equal((0 * a + 0 * b).delta(Q), torch.zeros(5, 6))
    assert torch.equal((0 * a).delta(Q), torch.zeros(5, 6))


def test_empty_vector():
    zero, a = LoRAVector(), random_vector(1, 2, 1.0)
    assert not zero and len(zero) == zero.rank == zero.parameters == 0
    assert torch.equal(dense(zero + a), dense(a)) and torch.equal(dense(a - zero), dense(a))
    assert zero.norm() == zero.dot(a) == zero.cosine(a) == 0
    assert zero.state_dict() == {} and not LoRAVector.from_state_dict({}) and not zero.compress(rank=1)
    assert repr(a) == "LoRAVector(3 modules, 2 diffs, rank 2, 137 parameters)"


def test_kohya_writes_one_alpha_for_all_modules_or_none():
    a, b = random_vector(1, 2, 1.0), random_vector(2, 3, 8.0)
    only_q = LoRAVector({Q: b.modules[Q]})
    assert {float(t) for key, t in (a + b).state_dict().items() if key.endswith(".alpha")} == {5.0}
    mixed = a + 0.5 * only_q
    assert not any(key.endswith(".alpha") for key in mixed.state_dict())
    assert sum(key.endswith(".alpha") for key in mixed.state_dict("native")) == 3
    for dialect in ("kohya", "native"):
        read = LoRAVector.from_state_dict(mixed.state_dict(dialect))
        torch.testing.assert_close(dense(read), dense(mixed), rtol=1e-6, atol=1e-6)


def test_modules_of_one_vector_alone_are_carried_along():
    a = random_vector(1, 2, 1.0)
    b = LoRAVector({"text_encoder_2.text_model.encoder.layers.0.mlp.fc2": a.modules[Q]})
    total = a + 0.5 * b
    assert total.modules.keys() == a.modules.keys() | b.modules.keys()
    torch.testing.assert_close(total.delta(*b.modules), 0.5 * a.delta(Q))
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in total.state_dict()


def test_flattened_names_and_convolutions_meet():
    name = "unet.double_blocks.0.img_attn.proj"
    down, up = torch.arange(36.0).reshape(1, 4, 3, 3), torch.ones(2, 1, 1, 1)
    a = LoRAVector({name: Factors(down, up, 1.0)})
    b = LoRAVector({"unet.double_blocks_0_img_attn_proj": Factors(down.flatten(1), up.flatten(1), 1.0)})
    for total in (a + b, b + a):
        assert list(total.modules) == [name]
        assert torch.equal(total.delta(name), 2 * a.delta(name))
    assert a.cosine(b) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_norm_dot_and_cosine_equal_the_dense_ones(seed):
    a, b = random_vector(seed, 2, 3.0), random_vector(seed + 10, 4, 1.0)
    x, y = dense(a), dense(b)
    assert a.norm() == pytest.approx(float(x.norm()), rel=1e-9)
    assert a.dot(b) == pytest.approx(float(x @ y), rel=1e-9)
    assert a.cosine(b) == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-9)
    assert a.cosine(-2 * a) == pytest.approx(-1.0)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("name", [Q, CONV])
def test_compress_to_rank_is_the_truncated_svd(rank, name):
    total = random_vector(1, 4, 2.0) + random_vector(2, 4, 8.0)
    small = total.compress(rank=rank)
    matrix = total.delta(name).double().flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    factors = small.modules[name]
    assert factors.rank == factors.alpha == rank
    error = (small.delta(name).double().flatten(1) - best).norm() / matrix.norm()
    assert error < 1e-5
    torch.testing.assert_close(factors.down.norm(), factors.up.norm())


def test_compress_keeps_small_singular_values():
    g = torch.Generator().manual_seed(0)
    down = torch.linalg.qr(torch.randn(1000, 8, generator=g))[0].T
    up = torch.linalg.qr(torch.randn(400, 8, generator=g))[0] * 10 ** -torch.arange(8.0).div(2)
    small = LoRAVector({Q: Factors(down, up, 8.0)}).compress()
    assert small.rank == 8
    assert (small.delta(Q) - up @ down).norm() < 1e-6


def test_compress_without_arguments_removes_redundancy_only():
    a = random_vector(1, 2, 1.0)
    doubled = a + 0.5 * a
    assert doubled.rank == 4
    assert doubled.compress().rank == 2
    torch.testing.assert_close(dense(doubled.compress()), dense(doubled), rtol=1e-5, atol=1e-5)
    assert (0 * a).compress().rank == 1
    wide = LoRAVector({Q: Factors(torch.randn(9, 6), torch.randn(5, 9), 9.0)})
    assert wide.compress().rank == 5


@pytest.mark.parametrize("energy, rank", [(0.5, 1), (0.9, 1), (0.95, 2), (0.995, 3), (1.0, 3)])
def test_compress_by_energy(energy, rank):
    vector = LoRAVector({Q: Factors(torch.eye(4)[:3], torch.eye(4)[:, :3] * torch.tensor([3.0, 0.9, 0.3]), 3.0)})
    assert vector.compress(energy=energy).rank == rank
    assert vector.compress(rank=2, energy=energy).rank == min(rank, 2)


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"rank": -1}, {"energy": 0}, {"energy": 1.5}, {"energy": math.nan}])
def test_compress_refuses(arguments):
    with pytest.raises(ValueError, match="is .*; it (must|is)"):
        random_vector(1, 2, 1.0).compress(**arguments)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_lambda_must_be_finite(scale):
    a = random_vector(1, 2, 1.0)
    with pytest.raises(ValueError, match="lambda is .*; a LoRA vector is scaled by a finite number"):
        scale * a
    with pytest.raises(ValueError, match="can't be divided by 0"):
        a / 0
    a = LoRAVector(a.modules)
    with pytest.raises(ValueError, match="overflows alpha"):
        (a * 1e300) * 1e300
    with pytest.raises(TypeError):
        a * a
    with pytest.raises(TypeError):
        a + 1


def test_shape_conflict_names_module_and_shapes():
    a = random_vector(1, 2, 1.0)
    b = LoRAVector({Q: Factors(torch.ones(1, 9), torch.ones(5, 1), 1.0)})
    for operation in (a.__add__, a.__sub__, a.dot):
        with pytest.raises(ValueError, match=r"attn1.to_q is \(5, 6\) in one vector and \(5, 9\) in the other"):
            operation(b)
    kernel = LoRAVector({CONV: Factors(torch.ones(1, 36, 1, 1), torch.ones(7, 1, 1, 1), 1.0)})
    with pytest.raises(ValueError, match=r"\(7, 4, 3, 3\) in one vector and \(7, 36, 1, 1\)"):
        a + kernel


def pair(module, down="lora_down", up="lora_up", rank=1):
    return {f"{module}.{down}.weight": torch.ones(rank, 6), f"{module}.{up}.weight": torch.ones(5, rank)}


@pytest.mark.parametrize("key, kind", [
    ("dora_scale", "DoRA"), ("a1.weight", "GLoRA"), ("oft_blocks", "OFT"), ("set_weight", "replacement"),
])  # fmt: skip
def test_what_is_not_a_vector_is_refused(key, kind):
    with pytest.raises(ValueError, match=rf"{kind} weights can't be summed.*{KOHYA_Q}\.{key}.*extract a plain LoRA"):
        LoRAVector.from_state_dict({**pair(KOHYA_Q), f"{KOHYA_Q}.{key}": torch.ones(1)})


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match="w0, w1, w2 and 2 more"):
        LoRAVector.from_state_dict({f"w{i}": torch.ones(1) for i in range(5)})


def test_one_module_in_two_dialects_is_refused_with_both_keys():
    state = {**pair(KOHYA_Q), **pair(Q, "lora_A", "lora_B")}
    with pytest.raises(ValueError, match=rf"{KOHYA_Q}\.lora_down\.weight and {Q}\.lora_A\.weight are the same module"):
        LoRAVector.from_state_dict(state)
    adapters = {**pair(Q, "lora_A.one", "lora_B.one"), **pair(Q, "lora_A.two", "lora_B.two")}
    with pytest.raises(ValueError, match=r"lora_A\.one\.weight and .*lora_A\.two\.weight are the same module"):
        LoRAVector.from_state_dict(adapters)


@pytest.mark.parametrize("missing", ["lora_down", "lora_up"])
def test_incomplete_module(missing):
    state = {key: value for key, value in pair(KOHYA_Q).items() if missing not in key}
    with pytest.raises(ValueError, match=rf"has {KOHYA_Q}.*but no {missing[5:]} factor"):
        LoRAVector.from_state_dict(state)
    with pytest.raises(ValueError, match=r"has .*\.alpha but no down factor"):
        LoRAVector.from_state_dict({f"{KOHYA_Q}.alpha": torch.tensor(1.0)})


@pytest.mark.parametrize("down, up", [((2, 6), (5, 3)), ((6,), (5, 6)), ((2, 6), (5,)), ((2, 6), (5, 2, 3, 3))])
def test_factors_that_do_not_fit(down, up):
    state = {f"{KOHYA_Q}.lora_down.weight": torch.ones(down), f"{KOHYA_Q}.lora_up.weight": torch.ones(up)}
    with pytest.raises(ValueError, match="don't fit each other: .*lora_down.weight"):
        LoRAVector.from_state_dict(state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("key", ["lora_down.weight", "lora_up.weight", "diff_b"])
def test_values_that_are_not_finite(value, dtype, key):
    state = {**pair(KOHYA_Q), f"{KOHYA_Q}.diff_b": torch.ones(5)}
    bad = state[f"{KOHYA_Q}.{key}"].clone()
    bad.flatten()[-1] = value
    with pytest.raises(ValueError, match=rf"{KOHYA_Q}\.{key} has NaN or infinite values"):
        LoRAVector.from_state_dict({**state, f"{KOHYA_Q}.{key}": bad.to(dtype)})


@pytest.mark.parametrize("bad", [torch.ones(0, 6), torch.ones(1, 6, dtype=torch.int8), torch.ones(1, 6) * 1j])
def test_weights_that_are_no_numbers(bad):
    with pytest.raises(ValueError, match=r"lora_down.weight is \(., 6\) of .*floating-point numbers, at least one"):
        LoRAVector.from_state_dict({**pair(KOHYA_Q), f"{KOHYA_Q}.lora_down.weight": bad})


def test_fp8_factors_are_read():
    state = {key: (value * 1.5).to(torch.float8_e4m3fn) for key, value in pair(KOHYA_Q).items()}
    vector = LoRAVector.from_state_dict(state)
    assert torch.equal((vector + vector).delta(Q), torch.full((5, 6), 4.5))


def test_alpha_0_is_the_zero_vector(tmp_path):
    state = {**pair(KOHYA_Q), f"{KOHYA_Q}.alpha": torch.tensor(0.0)}
    zero, other = LoRAVector.from_state_dict(state), LoRAVector.from_state_dict(pair(KOHYA_Q))
    assert zero.norm() == 0 == zero.cosine(other)
    assert torch.equal((zero + other).delta(Q), other.delta(Q))
    for dialect in ("kohya", "peft", "native"):
        zero.save(tmp_path / "zero.safetensors", dialect)
        assert not LoRAVector.load(tmp_path / "zero.safetensors").delta(Q).any()


def test_alpha():
    state = pair(KOHYA_Q, rank=2)
    assert LoRAVector.from_state_dict(state).modules[Q].alpha == 2
    assert LoRAVector.from_state_dict({**state, f"{KOHYA_Q}.alpha": torch.tensor(0.5)}).modules[Q].alpha == 0.5
    with pytest.raises(ValueError, match="alpha of .*to_q is nan"):
        LoRAVector.from_state_dict({**state, f"{KOHYA_Q}.alpha": torch.tensor(math.nan)})
    with pytest.raises(ValueError, match="don't fit each other"):
        LoRAVector.from_state_dict({**state, f"{KOHYA_Q}.alpha": torch.ones(2)})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", "[" * 100_000, '{"lora_alpha": 1, "alpha_pattern": {".*to_q": 2}}', '{"lora_alpha": "8"}'),
        *('{"lora_alpha": NaN}', '{"lora_alpha": 1e999}', f'{{"lora_alpha": {"9" * 400}}}'),
    ],
)
def test_bad_adapter_metadata(text):
    with pytest.raises(ValueError, match="is not (JSON|a JSON object|a module path)|must be a finite number"):
        LoRAVector.from_state_dict(pair(Q, "lora_A", "lora_B"), {"lora_adapter_metadata": text})


def test_tucker_core_is_folded_into_down():
    g = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=g) for shape in [(2, 4, 1, 1), (3, 2, 3, 3), (7, 3, 1, 1)])
    module = "lora_unet_mid_block_resnets_0_conv1"
    state = {f"{module}.lora_{role}.weight": t for role, t in (("down", down), ("mid", mid), ("up", up))}
    vector = LoRAVector.from_state_dict({**state, f"{module}.alpha": torch.tensor(1.0)})
    expected = 0.5 * torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
    torch.testing.assert_close(vector.delta(CONV), expected)


def test_what_the_host_s_trainer_makes_is_read_and_written_back():
    trained = {
        "diffusion_model.middle_block.0.in_layers.2.lora_up.weight": torch.nn.Parameter(torch.ones(7, 2)),
        "diffusion_model.middle_block.0.in_layers.2.lora_down.weight": torch.ones(2, 36),
        "diffusion_model.middle_block.0.in_layers.2.alpha": torch.tensor(1.0),
        "diffusion_model.middle_block.0.in_layers.2.diff_b": torch.ones(7),
        "diffusion_model.middle_block.0.in_layers.0.diff": torch.full((4,), 2.0),
    }
    vector = LoRAVector.from_state_dict(trained)
    assert torch.equal(vector.delta(CONV), torch.ones(7, 36))
    written = vector.state_dict("native")
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[key], trained[key]) for key in trained)
    assert not any(tensor.requires_grad for tensor in written.values())
    half = (0.5 * vector).state_dict("native")
    assert torch.equal(half["diffusion_model.middle_block.0.in_layers.0.diff"], torch.ones(4))
    with pytest.raises(ValueError, match="PEFT has no name for the 2 norm and bias differences"):
        vector.state_dict("peft")


def test_dtype_of_the_written_factors(tmp_path):
    vector = 0.8 * random_vector(1, 2, 1.0)
    vector.save(tmp_path / "half.safetensors", dtype=torch.float16)
    read = LoRAVector.load(tmp_path / "half.safetensors")
    assert read.modules[Q].down.dtype == torch.float16
    assert read.modules[Q].alpha == pytest.approx(0.8)
    torch.testing.assert_close(dense(read), dense(vector), rtol=5e-3, atol=5e-3)
    large = LoRAVector({Q: Factors(torch.ones(1, 6), torch.full((5, 1), 1e6), 1.0)})
    with pytest.raises(ValueError, match="lora_up.weight reaches 1e\\+06, which torch.float16 can't hold"):
        large.save(tmp_path / "large.safetensors", dtype=torch.float16)
    assert not (tmp_path / "large.safetensors").exists()
    with pytest.raises(ValueError, match="to_q.alpha reaches 1e\\+60, which torch.float32 can't hold"):
        (1e60 * LoRAVector({Q: Factors(torch.ones(1, 6), torch.ones(5, 1), 1.0)})).save(tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match="lora_B.weight reaches inf, which torch.float32 can't hold"):
        (1e35 * large).save(tmp_path / "large.safetensors", "peft")
    assert not list(tmp_path.glob("large*"))


def test_metadata(tmp_path):
    a = LoRAVector(random_vector(1, 2, 1.0).modules, metadata={"author": "x", "title": "a", "ss_network_dim": "2"})
    b = LoRAVector(random_vector(2, 2, 1.0).modules, metadata={"author": "x", "title": "b", "ss_network_dim": "2"})
    assert (a + b).metadata == {"author": "x"}
    tagged = LoRAVector(metadata={"modelspec.architecture": "stable-diffusion-v1/lora", "ss_tag_frequency": "{}"})
    assert (LoRAVector() + tagged + LoRAVector(metadata={"author": "x"})).metadata == {**tagged.metadata, "author": "x"}
    a.save(tmp_path / "a.safetensors", metadata={"title": "new"})
    assert LoRAVector.load(tmp_path / "a.safetensors").metadata == {**a.metadata, "title": "new", "format": "pt"}
