import math

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model

from lcm_core.lora import LoRAVector, read_lora
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.kinds.dora import rescaled
from lcm_core.lora.kinds.oft_peft import rotated

CONV = "lora_unet_mid_block_resnets_0_conv1"
NATIVE_CONV = "diffusion_model.middle_block.0.in_layers.2"
NAME = "unet.mid_block.resnets.0.conv1"
TARGETS = ["fc", "conv", "small"]
COMMON = {"target_modules": TARGETS, "init_weights": False}


def net():
    torch.manual_seed(0)
    layers = {"fc": torch.nn.Linear(24, 40), "conv": torch.nn.Conv2d(16, 24, 3), "small": torch.nn.Conv2d(16, 24, 1)}
    return torch.nn.ModuleDict(layers)


def saved(config, folder):
    """What PEFT saves of an adapter with random weights, and the weights that it merges."""
    model = get_peft_model(net(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_R" in name or "magnitude" in name or name.endswith("lora_B.default.bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return read_lora(folder / "adapter_model.safetensors"), {n: p.detach() for n, p in merged.named_parameters()}


VECTORS = [
    LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False),
    LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_rslora=True, lora_bias=True,
               rank_pattern={"fc": 3}, alpha_pattern={"conv": 1}),
    LoHaConfig(r=3, alpha=6, use_effective_conv2d=True, alpha_pattern={"fc": 1}, rank_pattern={"conv": 2}, **COMMON),
    LoKrConfig(r=2, alpha=6, decompose_both=True, decompose_factor=2, **COMMON),
    LoKrConfig(r=100, alpha=6, rank_pattern={"fc": 200}, **COMMON),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*have invalid shape")
@pytest.mark.parametrize("config", VECTORS, ids=["lora", "rslora with bias", "loha", "lokr", "whole lokr"])
def test_native_tensors_alone_are_the_whole_of_a_peft_file(tmp_path, config):
    (state, metadata), merged = saved(config, tmp_path)
    vector = LoRAVector.from_state_dict(LoRAFile.of(state, metadata).native())
    base = dict(net().named_parameters())
    for name, weight in merged.items():
        module = name.rpartition(".")[0]
        delta = vector.delta(module) if name.endswith("weight") else vector.diffs.get(name, torch.tensor(0.0))
        torch.testing.assert_close(base[name] + delta.reshape(weight.shape if delta.ndim else ()), weight)


def test_a_lora_s_bias_is_scaled_as_its_weight():
    state = {f"{NAME}.lora_A.weight": torch.ones(2, 6), f"{NAME}.lora_B.weight": torch.ones(5, 2)}
    state |= {f"{NAME}.lora_B.bias": torch.ones(5), f"{NAME}.alpha": torch.tensor(6.0)}
    vector = LoRAVector.from_state_dict(state)
    assert torch.equal(vector.diffs[f"{NAME}.bias"], torch.full((5,), 3.0))
    with pytest.raises(ValueError, match="but no down factor"):
        LoRAVector.from_state_dict({f"{NAME}.lora_B.bias": torch.ones(5)})
    with pytest.raises(ValueError, match="adapted in more than one way"):
        LoRAVector.from_state_dict({**state, f"{NAME}.diff_b": torch.ones(5)})


def test_dora_is_peft_s(tmp_path):
    config = LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, use_dora=True)
    (state, metadata), merged = saved(config, tmp_path)
    with pytest.raises(ValueError, match="DoRA weights can't be summed as a vector"):
        LoRAVector.from_state_dict(state, metadata)
    native = LoRAFile.of(state, metadata).native()
    assert native.keys() == {
        f"{name}.{role}" for name in TARGETS for role in ("lora_down.weight", "lora_up.weight", "dora_scale", "alpha")
    }
    base = dict(net().named_parameters())
    for name in TARGETS:
        delta = LoRAVector.from_state_dict({k: v for k, v in native.items() if "dora" not in k}).delta(name)
        weight = rescaled(base[f"{name}.weight"] + delta, native[f"{name}.dora_scale"])
        torch.testing.assert_close(weight, merged[f"{name}.weight"])


@pytest.mark.parametrize("shape", [(5, 6), (5, 5), (5, 6, 3, 3)])
def test_dora_per_input(shape):
    weight, magnitude = torch.randn(shape), torch.rand(1, *[shape[1]], *[1] * (len(shape) - 2))
    norms = rescaled(weight, magnitude).transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, magnitude.flatten())


@pytest.mark.parametrize("options", [
    {"oft_block_size": 4}, {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 3},
    {"oft_block_size": 8, "use_cayley_neumann": False}, {"oft_block_size": 4, "block_share": True},
    {"oft_block_size": 4, "num_cayley_neumann_terms": 2}, {"oft_block_size": 4, "num_cayley_neumann_terms": 1},
])  # fmt: skip
def test_oft_is_peft_s(tmp_path, options):
    (state, metadata), merged = saved(OFTConfig(target_modules=TARGETS, **options), tmp_path)
    native = LoRAFile.of(state, metadata).native()
    base = dict(net().named_parameters())
    for name in TARGETS:
        weight = rotated(base[f"{name}.weight"], native[f"{name}.oft_R"])
        torch.testing.assert_close(weight, merged[f"{name}.weight"])
    again = LoRAFile.of(native).native()
    assert all(torch.equal(again[key], native[key]) for key in native)
    with pytest.raises(ValueError, match="OFT weights can't be summed as a vector: OFT rotates"):
        LoRAVector.from_state_dict(native)


def adapter(shapes, module=CONV):
    return {f"{module}.{role}": torch.ones(shape) for role, shape in shapes.items()}


LORA = {"lora_down.weight": (2, 4, 3, 3), "lora_up.weight": (5, 2, 1, 1), "alpha": ()}
LOHA = {"hada_w1_a": (5, 2), "hada_w1_b": (2, 36), "hada_w2_a": (5, 2), "hada_w2_b": (2, 36)}
LOKR = {"lokr_w1": (5, 2), "lokr_w2": (1, 2, 3, 3)}
GLORA = {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (5, 2), "b2.weight": (2, 4, 3, 3)}


@pytest.mark.parametrize("shapes, sizes", [
    (LORA, {"weight": (5, 36)}),
    ({**LORA, "diff_b": (5,)}, {"weight": (5, 36), "bias": (5, 1)}),
    ({**LORA, "dora_scale": (5, 1, 1, 1)}, {"weight": (5, 36)}),
    ({**LORA, "dora_scale": (1, 4, 1, 1)}, {"weight": (5, 36)}),
    ({"lora_down.weight": (2, 4, 1, 1), "lora_mid.weight": (3, 2, 3, 3), "lora_up.weight": (5, 3, 1, 1)},
     {"weight": (5, 36)}),
    (LOHA, {"weight": (5, 36)}),
    (LOKR, {"weight": (5, 36)}),
    (GLORA, {"weight": (5, 36)}),
    ({"a1.weight": (2, 6), "a2.weight": (6, 2), "b1.weight": (2, 6), "b2.weight": (5, 2)}, {"weight": (5, 6)}),
    ({"oft_blocks": (2, 3, 3), "alpha": ()}, {"weight": (6, None)}),
    ({"oft_blocks": (3, 4, 4, 4), "rescale": (16, 1), "alpha": ()}, {"weight": (16, None)}),
    ({"oft_R": (2, 3, 3)}, {"weight": (None, 6)}),
    ({"oft_R.weight": (1, 3)}, {"weight": (None, None)}),
    ({"diff": (5, 4)}, {"weight": (5, 4)}),
    ({"w_norm": (5,), "b_norm": (5,)}, {"weight": (5, 1), "bias": (5, 1)}),
    ({"set_weight": (5, 4, 3, 3)}, {"weight": (5, 36)}),
])  # fmt: skip
def test_sizes_of_every_kind(shapes, sizes):
    native = LoRAFile.of(adapter(shapes)).native()
    assert all(key.startswith(f"{NATIVE_CONV}.") for key in native)
    assert LoRAFile.of(native).sizes == {f"{NAME}.{parameter}": size for parameter, size in sizes.items()}
    assert LoRAFile.of(native).native().keys() == native.keys()


def test_values_are_unchanged():
    state = {key: torch.randn_like(value) for key, value in adapter({**LOHA, "dora_scale": (5, 1, 1, 1)}).items()}
    native = LoRAFile.of(state).native()
    assert all(torch.equal(native[key.replace(CONV, NATIVE_CONV)], value) for key, value in state.items())


def test_reshape_goes_with_its_lora():
    state = adapter(LORA) | {f"{CONV}.reshape_weight": torch.tensor([5, 4, 3, 3])}
    assert LoRAFile.of(LoRAFile.of(state).native()).sizes == {f"{NAME}.weight": (None, None)}


@pytest.mark.parametrize("shapes, message", [
    ({"lora_up.weight": (5, 2)}, "has .*lora_up.weight but no down factor; the file is incomplete"),
    ({**LORA, "lora_up.weight": (5, 3)}, "don't fit each other"),
    ({**LOHA, **LOKR}, "adapted in more than one way"),
    ({**LOHA, "hada_w2_b": (3, 36)}, "don't fit each other"),
    ({**LORA, "oft_blocks": (2, 3, 3)}, "adapted in more than one way .*; save each in a file of its own"),
    ({**LORA, "reshape_weight": (4,), "dora_scale": (5, 1, 1, 1)}, "don't fit each other"),
    ({"reshape_weight": (4,)}, "but no down factor"),
    ({"dora_scale": (5, 1)}, "but no down factor"),
    ({**LORA, "dora_scale": (7, 1, 1, 1)}, "don't fit each other: .*dora_scale"),
    ({**GLORA, "b1.weight": (5, 3)}, "don't fit each other"),
    ({**GLORA, "a2.weight": (3, 4)}, "don't fit each other"),
    ({**GLORA, "b1.weight": (5,)}, "don't fit each other"),
    ({"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (5, 2)}, "but no b2 factor"),
    ({"oft_blocks": (2, 3, 4)}, "don't fit each other"),
    ({"oft_blocks": (3, 2, 4, 4)}, "don't fit each other"),
    ({"oft_blocks": (1, 2, 3, 3)}, "don't fit each other"),
    ({"oft_blocks": (2, 3, 3), "rescale": (5, 1)}, "don't fit each other"),
    ({**LORA, "reshape_weight": (4,)}, "don't fit each other: .*reshape_weight"),
    ({**GLORA, "bm.weight": (2, 3, 3, 3)}, "don't fit each other: .*bm.weight"),
    ({"boft_R": (1, 2, 3, 3), "boft_s": (1, 6)}, "boft_R, .*boft_s, an adapter that ComfyUI can't apply; merge it"),
    ({"oft_R.weight": (2, 5)}, "don't fit each other"),
    ({"diff_b": ()}, "don't fit each other"),
])  # fmt: skip
def test_what_can_not_be_applied(shapes, message):
    with pytest.raises(ValueError, match=message):
        LoRAFile.of(adapter(shapes)).native()


def test_what_is_damaged():
    with pytest.raises(ValueError, match="oft_blocks has NaN or infinite values"):
        LoRAFile.of({f"{CONV}.oft_blocks": torch.full((2, 3, 3), math.nan)}).native()
    with pytest.raises(ValueError, match="no LoRA weights that are known: x"):
        LoRAFile.of({"x": torch.ones(1)}).native()
    with pytest.raises(ValueError, match="are the same module"):
        LoRAFile.of(adapter(LORA) | adapter(LORA, NAME)).native()


@pytest.mark.parametrize("config, message", [
    ('{"coft": true}', "is constrained OFT, which isn't read; merge it"),
    ('{"num_cayley_neumann_terms": 1000000}', "num_cayley_neumann_terms is 1000000 .*; it is 1 to 100"),
])  # fmt: skip
def test_oft_settings_that_are_not_read(config, message):
    with pytest.raises(ValueError, match=message):
        LoRAFile.of(adapter({"oft_R.weight": (2, 3)}), {"lora_adapter_metadata": config}).native()
