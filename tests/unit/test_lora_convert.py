import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from lcm_core.lora import LoRAVector
from lcm_core.lora.convert import apart, why_not_a_vector
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.kinds import change

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
NAMES = {
    LINEAR: "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    CONV: "unet.mid_block.resnets.0.conv1",
}


def adapter(module, alpha=None, seed=0, **shapes):
    """Random tensors of one module under LyCORIS's names."""
    g = torch.Generator().manual_seed(seed)
    state = {f"{module}.{role}": torch.randn(shape, generator=g) for role, shape in shapes.items()}
    return state if alpha is None else {**state, f"{module}.alpha": torch.tensor(alpha)}


def tucker(core, a, b):
    return torch.einsum("ij...,ip,jr->pr...", core, a, b)


def error(vector, dense):
    ((name, _),) = vector.modules.items()
    return float((vector.delta(name).flatten(1) - dense.flatten(1)).norm() / dense.norm())


LOHA = [
    (LINEAR, {"w1_a": (20, 3), "w1_b": (3, 16), "w2_a": (20, 2), "w2_b": (2, 16)}, 6, (20, 16)),
    (LINEAR, {"w1_a": (20, 5), "w1_b": (5, 16), "w2_a": (20, 5), "w2_b": (5, 16)}, 16, (20, 16)),
    (CONV, {"w1_a": (20, 3), "w1_b": (3, 36), "w2_a": (20, 3), "w2_b": (3, 36)}, 9, (20, 4, 3, 3)),
    (CONV, {"w1_a": (20, 3), "w1_b": (3, 4, 3, 3), "w2_a": (20, 3), "w2_b": (3, 4, 3, 3)}, 9, (20, 4, 3, 3)),
    (
        CONV,
        {"t1": (2, 2, 3, 3), "w1_a": (2, 20), "w1_b": (2, 4), "t2": (2, 2, 3, 3), "w2_a": (2, 20), "w2_b": (2, 4)},
        4,
        (20, 4, 3, 3),
    ),
]


@pytest.mark.parametrize("module, shapes, rank, shape", LOHA)
def test_hadamard_is_exact(module, shapes, rank, shape):
    state = adapter(module, 1.5, **{f"hada_{part}": size for part, size in shapes.items()})
    t = {key.removeprefix(f"{module}.hada_"): value for key, value in state.items()}
    if "t1" in t:
        dense = tucker(t["t1"], t["w1_a"], t["w1_b"]) * tucker(t["t2"], t["w2_a"], t["w2_b"])
    else:
        dense = (t["w1_a"] @ t["w1_b"].flatten(1)) * (t["w2_a"] @ t["w2_b"].flatten(1))
    vector = LoRAVector.from_state_dict(state)
    assert error(vector, 1.5 / len(t["w1_b"]) * dense) < 1e-6
    factors = vector.modules[NAMES[module]]
    assert (factors.rank, factors.shape) == (rank, shape)


LOKR = [
    (LINEAR, {"w1": (4, 2), "w2_a": (5, 3), "w2_b": (3, 8)}, 6, 3, (20, 16)),
    (LINEAR, {"w1_a": (4, 1), "w1_b": (1, 2), "w2_a": (5, 3), "w2_b": (3, 8)}, 3, 3, (20, 16)),
    (LINEAR, {"w1_a": (4, 1), "w1_b": (1, 2), "w2": (5, 8)}, 5, 1, (20, 16)),
    (LINEAR, {"w1": (4, 2), "w2": (5, 8)}, 10, None, (20, 16)),
    (LINEAR, {"w1": (4, 4), "w2": (5, 4)}, 16, None, (20, 16)),
    (CONV, {"w1": (4, 2), "w2": (5, 2, 3, 3)}, 10, None, (20, 4, 3, 3)),
    (CONV, {"w1": (4, 2), "w2_a": (5, 3), "w2_b": (3, 18)}, 6, 3, (20, 4, 3, 3)),
    (CONV, {"w1": (4, 2), "t2": (2, 2, 3, 3), "w2_a": (2, 5), "w2_b": (2, 2)}, 4, 2, (20, 4, 3, 3)),
]


@pytest.mark.parametrize("module, shapes, rank, inner, shape", LOKR)
def test_kronecker_is_exact(module, shapes, rank, inner, shape):
    state = adapter(module, 1.5, **{f"lokr_{part}": size for part, size in shapes.items()})
    t = {key.removeprefix(f"{module}.lokr_"): value for key, value in state.items()}
    w1 = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    product = tucker(t["t2"], t["w2_a"], t["w2_b"]) if "t2" in t else t.get("w2")
    w2 = t["w2_a"] @ t["w2_b"] if product is None else product
    dense = torch.kron(w1, w2.flatten(1)) * (1.5 / inner if inner else 1.0)
    vector = LoRAVector.from_state_dict(state)
    assert error(vector, dense) < 1e-6
    factors = vector.modules[NAMES[module]]
    assert (factors.rank, factors.shape) == (rank, shape)
    plain = {key: value for key, value in state.items() if not key.endswith("alpha")}
    assert error(LoRAVector.from_state_dict(plain), dense / (1.5 / inner if inner else 1.0)) < 1e-6


@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (7, 4, 3, 3), (40, 4, 3, 3)])
def test_dense_difference_is_exact(shape):
    state = {f"{CONV}.diff": torch.randn(shape), f"{CONV}.diff_b": torch.ones(shape[0])}
    vector = LoRAVector.from_state_dict(state)
    assert torch.equal(vector.delta(NAMES[CONV]), state[f"{CONV}.diff"])
    assert list(vector.diffs) == [f"{NAMES[CONV]}.bias"]


@pytest.mark.parametrize("state", [
    adapter(LINEAR, 1.0, hada_w1_a=(20, 3), hada_w1_b=(3, 16), hada_w2_a=(20, 3), hada_w2_b=(3, 16)),
    adapter(LINEAR, 1.0, hada_w1_a=(20, 5), hada_w1_b=(5, 16), hada_w2_a=(20, 5), hada_w2_b=(5, 16)),
    adapter(LINEAR, 1.0, lokr_w1=(4, 2), lokr_w2_a=(5, 3), lokr_w2_b=(3, 8)),
    adapter(LINEAR, lokr_w1=(4, 4), lokr_w2=(5, 4)),
    adapter(LINEAR, diff=(16, 20)),
])  # fmt: skip
def test_rank_on_reading_is_the_truncated_svd(state):
    (name,) = LoRAVector.from_state_dict(state).modules
    dense = LoRAVector.from_state_dict(state).delta(name).double()
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    small = LoRAVector.from_state_dict(state, rank=2)
    assert small.rank == 2
    assert error(small, (u[:, :2] * s[:2]) @ vh[:2]) < 1e-5
    assert LoRAVector.from_state_dict(state, rank=100).rank == LoRAVector.from_state_dict(state).rank
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        LoRAVector.from_state_dict(state, rank=0)


def test_rank_on_reading_leaves_plain_factors_alone():
    state = adapter(LINEAR, **{"lora_down.weight": (4, 6), "lora_up.weight": (5, 4)})
    assert LoRAVector.from_state_dict(state, rank=2).rank == 4


TARGETS = ["fc", "conv", "small"]


def net():
    torch.manual_seed(0)
    layers = {"fc": torch.nn.Linear(24, 40), "conv": torch.nn.Conv2d(16, 24, 3), "small": torch.nn.Conv2d(16, 24, 1)}
    return torch.nn.ModuleDict(layers)


@pytest.mark.parametrize("config", [
    LoHaConfig(r=3, alpha=6, target_modules=TARGETS, init_weights=False),
    LoHaConfig(r=3, alpha=6, target_modules=TARGETS, init_weights=False, use_effective_conv2d=True,
               alpha_pattern={"fc": 1}, rank_pattern={"conv": 2}),
    LoKrConfig(r=2, alpha=6, target_modules=TARGETS, init_weights=False),
    LoKrConfig(r=2, alpha=6, target_modules=TARGETS, init_weights=False, use_effective_conv2d=True, decompose_both=True,
               decompose_factor=2),
    LoKrConfig(r=100, alpha=6, target_modules=TARGETS, init_weights=False, rank_pattern={"fc": 200}),
])  # fmt: skip
def test_reads_what_peft_saves(tmp_path, config):
    model = get_peft_model(net(), config)
    model.save_pretrained(tmp_path)
    vector = LoRAVector.load(tmp_path / "adapter_model.safetensors")
    layers = {name.removeprefix("base_model.model."): m for name, m in model.named_modules()}
    deltas = {name: m.get_delta_weight("default") for name, m in layers.items() if isinstance(m, BaseTunerLayer)}
    assert vector.modules.keys() == deltas.keys()
    for name, delta in deltas.items():
        assert (vector.delta(name).flatten(1) - delta.flatten(1)).norm() < 1e-5 * delta.norm()


LOHA_SHAPES = {"hada_w1_a": (5, 2), "hada_w1_b": (2, 6), "hada_w2_a": (5, 2), "hada_w2_b": (2, 6)}
LOKR_SHAPES = {"lokr_w1": (2, 2), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 6)}


@pytest.mark.parametrize("shapes, changed, message", [
    (LOHA_SHAPES, {"hada_w2_b": None}, "but no hada_w2_b factor; the file is incomplete"),
    (LOHA_SHAPES, {"hada_w2_b": (3, 6)}, "don't fit each other"),
    (LOHA_SHAPES, {"hada_w2_b": (2, 7)}, "don't fit each other"),
    (LOHA_SHAPES, {"hada_w1_a": (5,)}, "don't fit each other"),
    (LOHA_SHAPES, {"hada_w1_b": ()}, "don't fit each other"),
    (LOHA_SHAPES, {"hada_t1": (2, 2, 3, 3)}, "don't fit each other"),
    (LOHA_SHAPES, {"hada_w1_b": (2, 0)}, r"hada_w1_b is \(2, 0\)"),
    (LOHA_SHAPES, {"lora_up.weight": (5, 1)}, "adapted in more than one way"),
    (LOHA_SHAPES, {"diff": (5, 6)}, "adapted in more than one way"),
    (LOKR_SHAPES, {"lokr_w1": None}, "but no lokr_w1_a factor"),
    (LOKR_SHAPES, {"lokr_w2_b": None}, "but no lokr_w2_b factor"),
    (LOKR_SHAPES, {"lokr_w2_b": (3, 6)}, "don't fit each other"),
    (LOKR_SHAPES, {"lokr_w1": (4,)}, "don't fit each other"),
    (LOKR_SHAPES, {"lokr_w1": (2, 2, 3, 3)}, "don't fit each other"),
    (LOKR_SHAPES, {"lokr_w2": (5, 6)}, "don't fit each other"),
    (LOKR_SHAPES, {"lokr_t2": (2, 3, 3, 3)}, "don't fit each other"),
    (LOKR_SHAPES, {"lokr_w1": (100_000, 1), "lokr_w2_a": (100_000, 1), "lokr_w2_b": (1, 1)}, "10,000,000,000 values"),
    ({"lora_down.weight": (2, 6), "lora_up.weight": (5, 2)}, {"lora_mid.weight": (3, 2, 3, 3)}, "don't fit each other"),
    ({"lora_down.weight": (2, 6, 3, 3), "lora_up.weight": (5, 2)}, {"lora_mid.weight": (2, 2, 3, 3)}, "don't fit"),
])  # fmt: skip
def test_bad_factors(shapes, changed, message):
    sizes = {role: size for role, size in {**shapes, **changed}.items() if size is not None}
    with pytest.raises(ValueError, match=message):
        LoRAVector.from_state_dict(adapter(LINEAR, **sizes))


def test_a_vector_has_no_reason_against_it():
    assert why_not_a_vector(LoRAFile.of(adapter(LINEAR, **LOHA_SHAPES)).modules) is None
    state = adapter(LINEAR, dora_scale=(5, 1), **LOHA_SHAPES)
    assert "DoRA rescales the whole weight" in why_not_a_vector(LoRAFile.of(state).modules)


@pytest.mark.parametrize("pattern, alpha", [
    ("conv1", 50), ("0.conv1", 50), ("^conv1", 2), ("^mid_block.resnets.0.conv1", 50), ("onv1", 2),
])  # fmt: skip
def test_where_a_pattern_of_peft_begins(pattern, alpha):
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 2, "alpha_pattern": {pattern: 50}})}
    state = adapter(NAMES[CONV], **{"lora_A.weight": (4, 6), "lora_B.weight": (5, 4)})
    assert LoRAVector.from_state_dict(state, metadata).modules[NAMES[CONV]].alpha == alpha


def test_a_fused_module_apart_is_its_rows():
    name = "diffusion_model.layers.0.attention.qkv"
    file = {
        f"{name}.lora_A.weight": torch.randn(2, 6),
        f"{name}.lora_B.weight": torch.randn(10, 2),
        f"{name}.diff_b": torch.randn(10),
        f"{name}.alpha": torch.tensor(3.0),
    }
    (module,) = LoRAFile.of(file).normal_modules
    parts = apart(module)
    assert [part.name.rpartition(".")[2] for part in parts] == ["to_q", "to_k", "to_v"]
    whole = change(module, torch.zeros(10, 6))
    rows = [change(part, torch.zeros(len(part.tensors["up"]), 6)) for part in parts]
    torch.testing.assert_close(torch.cat(rows), whole)
    assert torch.equal(torch.cat([part.tensors["diff_b"] for part in parts]), file[f"{name}.diff_b"])
    (dora,) = LoRAFile.of(file | {f"{name}.dora_scale": torch.ones(10, 1)}).normal_modules
    assert apart(dora) == [dora]
