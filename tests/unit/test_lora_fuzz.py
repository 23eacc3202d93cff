"""The laws of a vector space on random vectors, and state dicts of any tensors; damaged files are in test_fuzz.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcm_core.lora import Factors, LoRAVector
from lcm_core.lora.file import LoRAFile

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

SHAPES = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (5, 6),
    "unet.mid_block.resnets.0.conv1": (4, 3, 3, 3),
    "unet.mid_block.resnets.0.conv_shortcut": (4, 3, 1, 1),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (7, 2),
}
DIFFS = {"unet.conv_norm_out.weight": (4,), "unet.conv_out.bias": (3,)}
SCALES = st.floats(-4, 4, allow_subnormal=False)


@st.composite
def vectors(draw):
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    modules = {}
    for name in draw(st.sets(st.sampled_from(list(SHAPES)))):
        (out, *rest), rank = SHAPES[name], draw(st.integers(1, 4))
        down = torch.randn(rank, *rest, generator=g)
        up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=g)
        modules[name] = Factors(down, up, draw(st.floats(-8, 8)))
    diffs = {name: torch.randn(DIFFS[name], generator=g) for name in draw(st.sets(st.sampled_from(list(DIFFS))))}
    return LoRAVector(modules, diffs)


def dense(vector):
    parts = []
    for name, shape in SHAPES.items():
        parts.append(vector.delta(name).reshape(shape) if name in vector.modules else torch.zeros(shape))
    parts += [vector.diffs.get(name, torch.zeros(shape)) for name, shape in DIFFS.items()]
    return torch.cat([part.flatten().double() for part in parts])


def assert_equal(a, b):
    x, y = dense(a), dense(b)
    assert (x - y).abs().max() <= 2e-5 * max(1.0, float(x.abs().max()))


@given(vectors(), vectors(), vectors())
def test_addition(a, b, c):
    assert torch.allclose(dense(a + b), dense(a) + dense(b), rtol=1e-5, atol=1e-4)
    assert_equal(a + b, b + a)
    assert_equal((a + b) + c, a + (b + c))
    assert_equal(a + LoRAVector(), a)
    assert_equal(a - a, LoRAVector())
    assert_equal(a - b, a + -b)


@given(vectors(), vectors(), SCALES, SCALES)
def test_scaling(a, b, x, y):
    assert torch.allclose(dense(x * a), x * dense(a), rtol=1e-5, atol=1e-5)
    assert_equal(1 * a, a)
    assert_equal(0 * a, LoRAVector())
    assert_equal(x * (a + b), x * a + x * b)
    assert_equal((x + y) * a, x * a + y * a)
    assert_equal(x * (y * a), (x * y) * a)
    if abs(x) > 1e-3:
        assert_equal((x * a) / x, a)


@given(vectors(), vectors(), vectors(), SCALES)
def test_inner_product(a, b, c, x):
    size = 1e-5 * (1 + a.norm()) * (1 + b.norm() + c.norm()) * (1 + abs(x))
    assert a.dot(b) == pytest.approx(float(dense(a) @ dense(b)), abs=size)
    assert a.dot(b) == pytest.approx(b.dot(a), abs=size)
    assert a.dot(x * b + c) == pytest.approx(x * a.dot(b) + a.dot(c), abs=size)
    assert abs(a.dot(b)) <= a.norm() * b.norm() + size
    assert a.norm() == pytest.approx(float(dense(a).norm()), rel=1e-5, abs=1e-6)
    assert (a + b).norm() <= a.norm() + b.norm() + size
    assert (x * a).norm() == pytest.approx(abs(x) * a.norm(), rel=1e-5, abs=1e-6)
    assert -1 <= a.cosine(b) <= 1


@given(vectors(), vectors(), st.integers(1, 6))
def test_compress(a, b, rank):
    total = a + b
    assert_equal(total.compress(), total)
    small = total.compress(rank=rank)
    assert small.rank <= rank
    assert (total - small).norm() <= total.norm() + 1e-4
    assert_equal(small.compress(rank=rank), small)
    assert (total - small).norm() >= (total - total.compress(rank=rank + 1)).norm() - 1e-4 * (1 + total.norm())


@given(vectors(), st.sampled_from(["kohya", "peft", "native"]))
def test_every_dialect_reads_back(a, dialect):
    if dialect == "peft":
        a = LoRAVector(a.modules)
    assert_equal(LoRAVector.from_state_dict(a.state_dict(dialect)), a)


ROLES = [
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "diff", "diff_b", "dora_scale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "oft_blocks", "oft_R.weight", "oft_R", "rescale"),
    *("lora_B.bias", "set_weight", "reshape_weight"),
]
KINDS = [
    *(ROLES[:6], ROLES[:3], ROLES[:2] + ["dora_scale"], ROLES[7:13], ROLES[7:11], ROLES[13:20]),
    *(["lokr_w1", "lokr_w2_a", "lokr_w2_b"], ROLES[20:24], ["oft_blocks", "alpha"], ["oft_R"], ROLES),
]
SIZES = st.lists(st.sampled_from([0, 1, 2, 2, 2, 2, 3, 4]), max_size=5)
DTYPES = [torch.float32] * 6 + [torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64]


@settings(max_examples=800)
@given(st.data())
def test_any_mixture_of_tensors_is_read_or_refused(data):
    roles = data.draw(st.sampled_from(KINDS))
    chosen = data.draw(st.one_of(st.just(roles), st.lists(st.sampled_from(roles), unique=True)))
    shape = data.draw(st.sampled_from([(2, 2), (2, 2, 3, 3), None]))
    sizes = {role: shape if shape and data.draw(st.booleans()) else tuple(data.draw(SIZES)) for role in chosen}
    state = {
        f"lora_unet_conv_in.{role}": torch.ones(size).to(data.draw(st.sampled_from(DTYPES)))
        for role, size in sizes.items()
    }
    for rank in (None, 1):
        try:
            vector = LoRAVector.from_state_dict(state, rank=rank)
        except ValueError as error:
            assert "conv_in" in str(error)
        else:
            assert math.isfinite((vector + 2 * vector).norm())
            assert math.isfinite(vector.compress().norm())
    try:
        native = LoRAFile.of(state).native()
    except ValueError as error:
        assert "conv_in" in str(error)
    else:
        assert LoRAFile.of(native).native().keys() == native.keys()
        assert LoRAFile.of(native).sizes.keys() <= {"unet.conv_in.weight", "unet.conv_in.bias"}


def test_some_of_the_mixtures_are_valid():
    """The fuzzing above reaches both outcomes."""
    outcomes = set()
    for shapes in itertools.product([(2, 2), (2, 2, 3, 3), (3, 2)], repeat=2):
        state = {f"lora_unet_conv_in.lokr_w{i + 1}": torch.ones(shape) for i, shape in enumerate(shapes)}
        try:
            outcomes.add(bool(LoRAVector.from_state_dict(state)))
        except ValueError:
            outcomes.add(False)
    assert outcomes == {True, False}
