import pickle
import weakref
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file

from lcm_core.lora import Factors, LoRAVector, spell
from lcm_core.lora.extract import extract
from lcm_core.lora.lowrank import decompose

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"
SHORTCUT = "up_blocks.0.resnets.0.conv_shortcut"
UP = "up_blocks.0.upsamplers.0.conv"
SHAPES = {Q: (24, 16), CONV: (12, 4, 3, 3), SHORTCUT: (12, 8, 1, 1), UP: (8, 8, 3, 3)}


def unet(seed=0, dtype=torch.float32):
    """A few layers of a diffusers UNet: weights, biases and a norm."""
    g = torch.Generator().manual_seed(seed)
    state = {f"{name}.weight": torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    state |= {f"{name}.bias": torch.randn(shape[0], generator=g) for name, shape in SHAPES.items()}
    state |= {"mid_block.resnets.0.norm1.weight": torch.randn(4, generator=g)}
    return {key: value.to(dtype) for key, value in state.items()}


def tuned_with(vector, base):
    return {
        key: value + vector.delta(f"unet.{name}") if kind == "weight" and f"unet.{name}" in vector.modules else value
        for key, value in base.items()
        for name, _, kind in [key.rpartition(".")]
    }


def random_lora(rank, seed=1):
    g = torch.Generator().manual_seed(seed)
    factors = {
        f"unet.{name}": Factors(
            torch.randn(rank, *shape[1:], generator=g),
            torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g),
            1.0,
        )
        for name, shape in SHAPES.items()
    }
    return LoRAVector(factors)


def files(folder, **states):
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in states]


def test_what_was_added_comes_back(tmp_path):
    base, lora = unet(), random_lora(2)
    tuned, base = files(tmp_path, tuned=tuned_with(lora, base), base=base)
    steps = []
    vector, report = extract(tuned, base, rank=5, progress=lambda done, total: steps.append((done, total)))
    assert vector.modules.keys() == lora.modules.keys()
    for name in lora.modules:
        assert vector.modules[name].shape == lora.modules[name].shape
        assert (vector.delta(name) - lora.delta(name)).norm() < 1e-5 * lora.delta(name).norm()
    assert vector.rank == 2
    assert report.energy == pytest.approx(1.0)
    assert report.equal == len(SHAPES) + 1
    assert report.left_out == ()
    assert steps == [(i, 9) for i in range(1, 10)]
    assert not vector.diffs


@pytest.mark.parametrize("rank, energy", [(3, None), (None, 0.7), (2, 0.99), (None, 1.0)])
def test_is_the_truncated_svd(rank, energy):
    tuned, base = unet(1), unet(2)
    vector, report = extract(tuned, base, rank=rank, energy=energy)
    for layer in report.layers:
        delta = (tuned[f"{layer.name[5:]}.weight"] - base[f"{layer.name[5:]}.weight"]).double().flatten(1)
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        expected = min(rank or len(s), int((share < (energy or 1.0) - 1e-12).sum()) + 1)
        best = (u[:, :expected] * s[:expected]) @ vh[:expected]
        assert layer.rank == vector.modules[layer.name].rank == expected
        assert (vector.delta(layer.name).flatten(1) - best).norm() < 1e-5 * delta.norm()
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-6)
        assert layer.energy == pytest.approx(float(share[expected - 1]), rel=1e-6)
        assert layer.shape == SHAPES[layer.name[5:]]
    assert min(layer.energy for layer in report.layers) <= report.energy <= max(layer.energy for layer in report.layers)


@pytest.mark.parametrize("decay", ["flat", "power", "exponential", "low rank"])
@pytest.mark.parametrize("shape", [(160, 400), (400, 160)])
def test_decompose_is_optimal_for_every_spectrum(decay, shape):
    torch.manual_seed(0)
    n = min(shape)
    i = torch.arange(1.0, n + 1).double()
    spectra = {"flat": i**0, "power": 1 / i, "exponential": 10 ** (-i / 20), "low rank": (i < 20) * 10 ** (-i / 5)}
    u, v = (torch.linalg.qr(torch.randn(side, n).double())[0] for side in shape)
    delta = ((u * spectra[decay]) @ v.T).float()
    factors, share = decompose(delta, 16)
    assert factors.rank == 16
    s = torch.linalg.svdvals(delta.double())
    best = s[16:].square().sum().sqrt()
    error = (factors.delta().double() - delta.double()).norm()
    assert error < best + 1e-6 * s.norm()
    assert share == pytest.approx(float(s[:16].square().sum() / s.square().sum()), abs=1e-9)
    torch.testing.assert_close(factors.down.norm(), factors.up.norm())


def test_decompose_zero():
    factors, share = decompose(torch.zeros(4, 6), 3)
    assert (factors.rank, share) == (1, 1.0)
    assert not factors.delta().any()


def test_biases_and_norms_on_request(tmp_path):
    vector, report = extract(unet(1), unet(2), rank=1, diffs=True)
    assert len(vector.diffs) == len(SHAPES) + 1
    expected = unet(1)[f"{CONV}.bias"] - unet(2)[f"{CONV}.bias"]
    assert torch.equal(vector.diffs[f"unet.{CONV}.bias"], expected)
    assert report.left_out == ()
    vector.save(tmp_path / "a.safetensors")
    assert LoRAVector.load(tmp_path / "a.safetensors").diffs.keys() == vector.diffs.keys()
    left_out = extract(unet(1), unet(2), rank=1)[1].left_out
    assert set(left_out) == set(vector.diffs)


@pytest.mark.bits
def test_every_layout_gives_one_vector():
    base, tuned = unet(2), unet(3)
    native = spell([f"unet.{name}" for name in (*SHAPES, "mid_block.resnets.0.norm1")], "native")
    native |= {f"unet.{UP}": "diffusion_model.output_blocks.2.1.conv"}

    def single_file(state):
        renamed = {}
        for key, value in state.items():
            module, _, kind = key.rpartition(".")
            renamed[f"model.{native[f'unet.{module}']}.{kind}"] = value
        return {**renamed, "first_stage_model.encoder.conv_in.weight": torch.randn(4, 3, 3, 3), "betas": torch.ones(3)}

    expected, _ = extract(tuned, base, rank=2)
    comfy = {key.removeprefix("model."): value for key, value in single_file(base).items()}
    for a, b in ((single_file(tuned), base), (tuned, single_file(base)), (single_file(tuned), comfy)):
        vector, report = extract(a, b, rank=2)
        assert vector.modules.keys() == expected.modules.keys()
        assert all(torch.equal(vector.delta(name), expected.delta(name)) for name in expected.modules)
        assert not any("first_stage" in name for name in report.left_out)


LAYERS = "text_model.encoder.layers.0"


@pytest.mark.parametrize("prefix, component, fused", [
    ("cond_stage_model.transformer.text_model.encoder.layers", "text_encoder", False),
    ("conditioner.embedders.0.transformer.text_model.encoder.layers", "text_encoder", False),
    ("text_model.encoder.layers", "text_encoder", False),
    ("cond_stage_model.model.transformer.resblocks", "text_encoder", True),
    ("conditioner.embedders.1.model.transformer.resblocks", "text_encoder_2", True),
])  # fmt: skip
def test_text_encoders_of_checkpoints(prefix, component, fused):
    torch.manual_seed(0)
    attention = {f"self_attn.{x}_proj": torch.randn(6, 6) for x in "qkv"}
    rest = {"self_attn.out_proj": torch.randn(6, 6), "mlp.fc1": torch.randn(9, 6), "mlp.fc2": torch.randn(6, 9)}
    names = {**attention, **rest}
    if fused:
        old = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
        tuned = {f"{prefix}.0.{old[name]}.weight": value for name, value in rest.items()}
        tuned[f"{prefix}.0.attn.in_proj_weight"] = torch.cat(list(attention.values()))
        tuned[f"{prefix}.0.attn.in_proj_bias"] = torch.arange(18.0)
    else:
        tuned = {f"{prefix}.0.{name}.weight": value for name, value in names.items()}
        tuned |= {f"{prefix}.0.self_attn.{x}_proj.bias": torch.arange(6.0) + 6 * i for i, x in enumerate("qkv")}
    vector, _ = extract(tuned, {key: torch.zeros_like(value) for key, value in tuned.items()}, rank=6, diffs=True)
    assert vector.modules.keys() == {f"{component}.{LAYERS}.{name}" for name in names}
    for name, value in names.items():
        torch.testing.assert_close(vector.delta(f"{component}.{LAYERS}.{name}"), value)
    assert vector.diffs[f"{component}.{LAYERS}.self_attn.k_proj.bias"].tolist() == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("key, shape, names", [
    ("double_blocks.0.img_attn.qkv", (12, 4), [f"transformer_blocks.0.attn.to_{each}" for each in "qkv"]),
    ("model.diffusion_model.layers.1.attention.qkv", (8, 4), [f"layers.1.attention.to_{each}" for each in "qkv"]),
    ("final_layer.linear", (3, 4), ["proj_out"]),
    ("norm_out.linear", (8, 4), ["final_layer.adaLN_modulation.1"]),
    ("transformer_blocks.0.attn.to_q", (3, 4), ["transformer_blocks.0.attn.to_q"]),
])  # fmt: skip
def test_other_architectures(key, shape, names):
    """Fused layers are parts, the halves of diffusers' norm_out are exchanged."""
    weight = torch.arange(shape[0] * shape[1]).reshape(shape) + 1.0
    base = {f"{key}.weight": torch.zeros(shape), f"{key}.bias": torch.zeros(shape[0])}
    vector, _ = extract({f"{key}.weight": weight, f"{key}.bias": weight[:, 0]}, base, rank=4, diffs=True)
    assert list(vector.modules) == [f"transformer.{name}" for name in names]
    weight = weight.roll(4, 0) if key == "norm_out.linear" else weight
    torch.testing.assert_close(torch.cat([vector.delta(f"transformer.{name}") for name in names]), weight)
    assert torch.equal(torch.cat([vector.diffs[f"transformer.{name}.bias"] for name in names]), weight[:, 0])


@pytest.mark.parametrize(("beside", "shared", "name"), [
    ("layers.0.self_attention.to_q", "time_embedding.linear_1",
     "transformer.time_text_embed.timestep_embedder.linear_1"),
    ("layers.0.attn.to_q", "norm_out.linear_1", "transformer.final_layer.adaLN_modulation.1"),
    ("mid_block.resnets.0.conv1", "time_embedding.linear_1", "unet.time_embedding.linear_1"),
])  # fmt: skip
def test_the_other_layers_tell_whose_a_shared_name_is(beside, shared, name):
    base = {f"{beside}.weight": torch.ones(4, 4), f"{shared}.weight": torch.ones(4, 4)}
    vector, _ = extract(base | {f"{shared}.weight": torch.eye(4)}, base, 4)
    assert list(vector.modules) == [name]


def test_parameters_that_one_file_lacks_and_embeddings_are_reported():
    embedding = "text_model.embeddings.token_embedding.weight"
    tuned = {**unet(1), "time_embedding.cond_proj.weight": torch.ones(4, 4), embedding: torch.ones(4, 4)}
    base = {**unet(2), "conv_out.weight": torch.ones(4, 4, 3, 3), embedding: torch.zeros(4, 4)}
    _, report = extract(tuned, base, rank=1, diffs=True)
    assert set(report.left_out) == {
        "unet.time_embedding.cond_proj.weight", "unet.conv_out.weight", f"text_encoder.{embedding}"
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_rounding_of_one_file_is_no_difference(dtype):
    rounded = unet(1)
    rounded[f"{CONV}.weight"] = rounded[f"{CONV}.weight"] + 1
    vector, report = extract({key: value.to(dtype) for key, value in rounded.items()}, unet(1), rank=1)
    assert list(vector.modules) == [f"unet.{CONV}"]
    assert report.equal == 2 * len(SHAPES)
    same = {key: value.to(dtype) for key, value in unet(1).items()}
    other = {**same, f"{CONV}.weight": rounded[f"{CONV}.weight"].to(dtype)}
    assert list(extract(other, same, rank=1)[0].modules) == [f"unet.{CONV}"]


class OneAtATime(Mapping):
    """Tensors made when asked for; remembers how many of them lived at once."""

    def __init__(self, state):
        self.state, self.alive, self.most = state, weakref.WeakSet(), 0

    def __getitem__(self, key):
        tensor = self.state[key].clone()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def test_one_layer_is_in_memory_at_a_time():
    tuned, base = OneAtATime(unet(1)), OneAtATime(unet(2))
    extract(tuned, base, rank=1)
    assert tuned.most <= 2
    assert base.most <= 2


def test_progress_can_interrupt():
    class Interrupt(BaseException):
        pass

    def stop(done, total):
        raise Interrupt

    with pytest.raises(Interrupt):
        extract(unet(1), unet(2), rank=1, progress=stop)


@pytest.mark.parametrize("arguments, message", [
    ({}, "neither rank nor energy is given"),
    ({"rank": 0}, "rank is 0; it must be a whole number, at least 1"),
    ({"energy": 0.0}, r"energy is 0.0; it is a share in \(0, 1\]"),
    ({"energy": 1.1}, r"energy is 1.1; it is a share in \(0, 1\]"),
    ({"energy": float("nan")}, "energy is nan"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        extract(unet(1), unet(2), **arguments)


def test_bad_checkpoints(tmp_path):
    tuned, base, other, wrong = files(
        tmp_path, tuned=unet(1), base=unet(2), other={"x.weight": torch.ones(2, 2)},
        wrong={f"{Q}.weight": torch.ones(24, 99)},
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"tuned.safetensors \(.*other.safetensors \(x.weight\) have no layer in common"
    ):
        extract(tuned, other, rank=1)
    shapes = rf"unet.{Q}.weight is \(24, 16\) in .*tuned.safetensors and \(24, 99\) in .*wrong.safetensors"
    with pytest.raises(ValueError, match=shapes):
        extract(tuned, wrong, rank=1)
    with pytest.raises(ValueError, match="are equal in all 9 parameters"):
        extract(tuned, tuned, rank=1)
    with pytest.raises(ValueError, match=rf"{Q}.weight has NaN"):
        extract({f"{Q}.weight": torch.full((2, 2), torch.nan)}, {f"{Q}.weight": torch.ones(2, 2)}, rank=1)
    with pytest.raises(ValueError, match="are the same parameter"):
        extract({f"{Q}.weight": torch.ones(2, 2), f"unet.{Q}.weight": torch.ones(2, 2)}, unet(), rank=1)
    with pytest.raises(ValueError, match="fp8 with scales"):
        extract({f"{Q}.weight": torch.ones(2, 2), f"{Q}.scale_weight": torch.ones(1)}, unet(), rank=1)
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="is a pickle"):
        extract(tuned, bad, rank=1)
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "gone.safetensors", base, rank=1)
