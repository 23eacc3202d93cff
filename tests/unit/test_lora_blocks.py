import math

import pytest
import torch

from lcm_core.lora import Factors, LoRAVector
from lcm_core.lora.blocks import block_cosines, block_norms, block_of, preset_weights, scale_blocks

TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
DOWN = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
MID = "unet.mid_block.resnets.0.conv1"
UP = "unet.up_blocks.1.upsamplers.0.conv"
TIME = "unet.time_embedding.linear_1"


def factors(*diagonal):
    return Factors(torch.eye(4), torch.diag(torch.tensor(diagonal)), 4.0)


VECTOR = LoRAVector(
    {
        UP: factors(3.0, 4, 0, 0),
        TIME: factors(1.0, 0, 0, 0),
        TEXT: factors(2.0, 0, 0, 0),
        DOWN: factors(0.0, 0, 0, 0),
        MID: factors(1.0, 2, 2, 0),
    },
    {f"{MID}.bias": torch.tensor([4.0, 0, 0, 0]), "unet.conv_norm_out.weight": torch.tensor([0.0, 1, 0, 0])},
    {"author": "x", "ss_network_dim": "4"},
)


@pytest.mark.parametrize("name, label", [
    (TEXT, "BASE"),
    ("text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj", "BASE"),
    ("unet.conv_in", "IN00"),
    ("unet.down_blocks.0.resnets.0.conv1", "IN01"),
    ("unet.down_blocks.0.attentions.1.proj_in", "IN02"),
    ("unet.down_blocks.0.downsamplers.0.conv", "IN03"),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.9.ff.net.2", "IN04"),
    ("unet.down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q", "IN08"),
    ("unet.down_blocks.2.downsamplers.0.conv", "IN09"),
    ("unet.down_blocks.3.resnets.1.time_emb_proj", "IN11"),
    ("unet.mid_block.attentions.0.proj_out", "M00"),
    ("unet.mid_block.resnets.1.conv2", "M00"),
    ("unet.up_blocks.0.resnets.0.conv_shortcut", "OUT00"),
    ("unet.up_blocks.0.upsamplers.0.conv", "OUT02"),
    ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "OUT03"),
    ("unet.up_blocks.2.upsamplers.0.conv", "OUT08"),
    ("unet.up_blocks.3.attentions.2.proj_in", "OUT11"),
    (TIME, "other"),
    ("unet.add_embedding.linear_1", "other"),
    ("unet.conv_out", "other"),
    ("unet.octo_blocks.0.img_attn.proj", "other"),
    ("transformer.single_transformer_blocks.3.proj_out", "single_blocks.3"),
    ("transformer.transformer_blocks.7.attn.to_q", "transformer_blocks.7"),
    ("transformer.blocks.39.attn1.to_q", "blocks.39"),
    ("transformer.noise_refiner.1.attention.to_k", "noise_refiner.1"),
    ("transformer.condition_embedder.time_proj", "time_projection"),
    ("transformer.octo.3.proj", "octo.3"),
    ("blocks", "other"),
])  # fmt: skip
def test_labels(name, label):
    assert block_of(name) == label


def test_a_transformers_labels_are_its_familys_own_in_order():
    torch.manual_seed(0)
    state = {}
    for block in ("double_blocks.10.img_mlp.0", "double_blocks.2.img_mlp.0", "single_blocks.0.linear2", "img_in"):
        state |= {f"{block}.lora_A.weight": torch.randn(1, 4), f"{block}.lora_B.weight": torch.randn(4, 1)}
    vector = LoRAVector.from_state_dict(state)
    assert list(block_norms(vector)) == ["double_blocks.2", "double_blocks.10", "img_in", "single_blocks.0"]
    assert set(block_cosines(vector, 2 * vector).values()) == {1.0}
    weighted = scale_blocks(vector, {"double_blocks.*": 0.5, "single*": 0})
    assert list(block_norms(weighted)) == ["double_blocks.2", "double_blocks.10", "img_in"]
    assert block_of("transformer.transformer_blocks.7.attn.to_q", ["Stable Diffusion 3"]) == "joint_blocks.7"


def test_presets():
    for count in (12, 17, 20, 26):
        weights = preset_weights([0.5] * count)
        assert [*weights.values()].count(0.5) == count and len(weights) == 26
        assert set(preset_weights([1] * count, rest=1).values()) == {1.0}
    assert preset_weights(range(26)) == {label: i for i, label in enumerate(preset_weights([0] * 26))}
    wanted = {
        12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
        17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
        20: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 "
        "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    }
    for count, labels in wanted.items():
        weights = preset_weights(range(1, count + 1))
        assert [weights[label] for label in labels.split()] == list(range(1, count + 1))
    with pytest.raises(ValueError, match=r"13 block weights; give 12 \(SDXL\), 17 \(SD1.5\), 20 .* or 26"):
        preset_weights([1.0] * 13)
    with pytest.raises(ValueError, match="0 block weights"):
        preset_weights([])
    with pytest.raises(ValueError, match="a block weight is nan"):
        preset_weights([math.nan] * 12)


def test_scales_modules_and_their_diffs():
    scaled = scale_blocks(VECTOR, {"M00": 0.5, "BASE": 0.0, "OUT*": -2})
    assert scaled.modules.keys() == VECTOR.modules.keys() - {TEXT}
    torch.testing.assert_close(scaled.delta(MID), 0.5 * VECTOR.delta(MID))
    torch.testing.assert_close(scaled.delta(UP), -2 * VECTOR.delta(UP))
    torch.testing.assert_close(scaled.delta(TIME), VECTOR.delta(TIME))
    assert torch.equal(scaled.diffs[f"{MID}.bias"], torch.tensor([2.0, 0, 0, 0]))
    assert torch.equal(scaled.diffs["unet.conv_norm_out.weight"], torch.tensor([0.0, 1, 0, 0]))
    assert scaled.metadata == {"author": "x"}
    assert torch.equal(scaled.delta(DOWN), torch.zeros(4, 4))
    assert VECTOR.modules[MID].alpha == 4


def test_the_first_pattern_counts_and_names_match_too():
    for weights, factor in (
        ({"*.upsamplers.*": 3.0, "OUT05": 7.0}, 3.0),
        ({"OUT0?": 7.0, UP: 3.0}, 7.0),
        ({"*": 0.25}, 0.25),
        ({"unet.*": 2.0, "text_encoder.*": 0.5}, 2.0),
        ({}, 1.0),
    ):
        torch.testing.assert_close(scale_blocks(VECTOR, weights).delta(UP), factor * VECTOR.delta(UP))
    assert scale_blocks(VECTOR, {"other": 0}).modules.keys() == VECTOR.modules.keys() - {TIME}


def test_presets_fit_files_without_some_blocks():
    only_out = scale_blocks(VECTOR, preset_weights([0.0] * 8 + [1.0] * 9))
    assert only_out.modules.keys() == {UP, TIME} and only_out.diffs.keys() == {"unet.conv_norm_out.weight"}
    assert scale_blocks(VECTOR, preset_weights([1.0] * 26)).cosine(VECTOR) == pytest.approx(1.0)
    assert not scale_blocks(LoRAVector(), preset_weights([1.0] * 12))
    flux = LoRAVector({"unet.double_blocks.0.img_attn.proj": factors(1.0, 1, 1, 1)})
    with pytest.raises(ValueError, match="'BASE' matches nothing of this vector; it has the blocks other and names"):
        scale_blocks(flux, preset_weights([1.0] * 12))


@pytest.mark.parametrize("weights, message", [
    ({"M00": 1, "IN12": 1}, "'IN12' matches nothing of this vector; it has the blocks BASE, IN04, M00, OUT05, other"),
    ({"m00": 1}, "'m00' matches nothing"),
    ({"*.to_v": 1, "*": 1}, r"'\*.to_v' matches nothing"),
    ({"M00": math.nan}, "lambda is nan"),
    ({"M00": math.inf}, "lambda is inf"),
])  # fmt: skip
def test_bad_tables(weights, message):
    with pytest.raises(ValueError, match=message):
        scale_blocks(VECTOR, weights)


def test_norms_and_cosines():
    norms = block_norms(VECTOR)
    assert list(norms) == ["BASE", "IN04", "M00", "OUT05", "other"]
    assert list(norms.values()) == pytest.approx([2, 0, 5, 5, math.sqrt(2)])
    assert math.hypot(*norms.values()) == pytest.approx(VECTOR.norm())
    other = LoRAVector(
        {
            MID: factors(-1.0, -2, -2, 0),
            UP: factors(4.0, -3, 0, 0),
            DOWN: factors(1.0, 0, 0, 0),
            "unet.conv_in": factors(1.0, 1, 1, 1),
        },
        {f"{MID}.bias": torch.tensor([-4.0, 0, 0, 0])},
    )
    cosines = block_cosines(VECTOR, other)
    assert list(cosines) == ["BASE", "IN00", "IN04", "M00", "OUT05", "other"]
    assert list(cosines.values()) == pytest.approx([0, 0, 0, -1, 0, 0])
    assert block_cosines(VECTOR, 2 * VECTOR)["M00"] == pytest.approx(1.0)
    assert block_norms(LoRAVector()) == block_cosines(LoRAVector(), LoRAVector()) == {}
