"""LoRA files of every dialect and kind reach every module of the host's models, with the effect that they say."""

import copy
import re
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import save_file

from lcm_core.distill.adapters import LCM_TARGETS
from tests.host.report import report_of

SD15 = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 48, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (2, 4, 8),
    "cross_attention_dim": 64,
    "use_linear_projection": True,
}
SSD1B = SDXL | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
UNETS = {"SD15": SD15, "SDXL": SDXL, "SSD1B": SSD1B}
# Modules in the UNet, in the text encoders, and what core's loader found of the former in ComfyUI 0.3.75.
FAMILIES = {"SD15": (278, 72, 150), "SDXL": (788, 264, 228), "SSD1B": (423, 264, 151)}
DIALECTS = ("peft", "base_model", "base_model in unet", "diffusers", "kohya", "kohya ldm", "lycoris", "native")
COMMON = {"target_modules": ["to_q", "ff.net.2", "proj_in", "conv1", "conv_shortcut"], "init_weights": False}
LORA = {"target_modules": COMMON["target_modules"], "init_lora_weights": False}
PEFT = {
    "lora": LoraConfig(r=2, lora_alpha=3, **LORA),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, rank_pattern={"conv1": 2}, **LORA),
    "dora": LoraConfig(r=2, lora_alpha=3, use_dora=True, **LORA),
    "loha": LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, **COMMON),
    "lokr": LoKrConfig(r=2, alpha=3, rank_pattern={"to_q": 100}, **COMMON),
    "oft": OFTConfig(oft_block_size=16, target_modules=COMMON["target_modules"]),
}
# A linear layer, and convolutions with and without a kernel.
LYCORIS_TARGETS = [
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.proj_in",
    "down_blocks.1.resnets.0.conv1",
]
# Kind -> (module, options).
LYCORIS = {
    "locon": (LoConModule, {"use_tucker": True}),
    "locon dora": (LoConModule, {"use_tucker": True, "weight_decompose": True}),
    "loha": (LohaModule, {"use_tucker": True}),
    "loha dora": (LohaModule, {"use_tucker": True, "weight_decompose": True}),
    "lokr": (LokrModule, {"use_tucker": True}),
    "lokr dora": (LokrModule, {"use_tucker": True, "weight_decompose": True, "decompose_both": True}),
    "lokr whole": (LokrModule, {"full_matrix": True, "factor": 8}),
    "oft": (DiagOFTModule, {}),
    "oft rescaled": (DiagOFTModule, {"rescaled": True}),
    "oft constrained": (DiagOFTModule, {"constraint": 0.01}),
    "boft": (ButterflyOFTModule, {"rescaled": True}),
    "boft constrained": (ButterflyOFTModule, {"constraint": 0.01}),
    "glora": (GLoRAModule, {"use_tucker": True}),
}


def write_lora(unet, text_layers, path):
    """Rank-1 factors in PEFT's names for the targets of an LCM-LoRA and all linear layers of the text encoders."""
    endings = tuple(f".{target}" for target in LCM_TARGETS)
    shapes = {f"unet.{name}": module.weight.shape for name, module in unet.named_modules() if name.endswith(endings)}
    for component, layers in text_layers.items():
        for layer in range(layers):
            prefix = f"{component}.text_model.encoder.layers.{layer}"
            shapes |= {f"{prefix}.self_attn.{name}_proj": (16, 16) for name in ("q", "k", "v", "out")}
            shapes |= {f"{prefix}.mlp.fc1": (32, 16), f"{prefix}.mlp.fc2": (16, 32)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (out, *rest) in shapes.items():
        state[f"{name}.lora_A.weight"] = torch.randn(1, *rest, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(out, 1, *[1] * (len(rest) - 1), generator=generator)
    save_file(state, path)


def write_peft(folder):
    """PEFT's own adapters of one UNet, and the weights that each gives it when it is merged."""
    torch.manual_seed(0)
    base = UNet2DConditionModel(**SD15)
    weights = dict(base.named_parameters())
    save_file({name: tensor.detach() for name, tensor in weights.items()}, folder / "base.safetensors")
    for kind, config in PEFT.items():
        model = get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "oft_R" in name or "magnitude" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder / "models" / "loras" / kind)
        merged = model.merge_and_unload().named_parameters()
        different = {name: tensor.detach() for name, tensor in merged if not torch.equal(tensor, weights[name])}
        save_file(different, folder / f"merged {kind}.safetensors")


def write_lycoris(folder):
    """LyCORIS's own adapters of one UNet in every form that matters, and the weights that each gives it."""
    torch.manual_seed(1)
    base = UNet2DConditionModel(**SD15).requires_grad_(False)
    save_file({name: tensor for name, tensor in base.named_parameters()}, folder / "lycoris base.safetensors")
    for kind, (module_type, options) in LYCORIS.items():
        state, merged = {}, {}
        for name in LYCORIS_TARGETS:
            layer = base.get_submodule(name)
            alpha = {} if "oft" in kind else {"alpha": 3}
            module = module_type(f"lora_unet_{name.replace('.', '_')}", layer, lora_dim=3, **alpha, **options)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                state |= {f"{module.lora_name}.{key}": value.clone() for key, value in module.state_dict().items()}
                merged[f"{name}.weight"] = module.get_merged_weight(1.0, layer.weight.shape)[0]
        save_file(state, folder / "models" / "loras" / f"lycoris {kind}.safetensors")
        save_file(merged, folder / f"lycoris merged {kind}.safetensors")


@pytest.fixture(scope="module")
def reports(base):
    """What dialects.py reports, from a process of its own with the host in it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        loras = folder / "models" / "loras"
        loras.mkdir(parents=True)
        with torch.device("meta"):
            unets = {family: UNet2DConditionModel(**config) for family, config in UNETS.items()}
        for family, unet in unets.items():
            encoders = {"text_encoder": 12} | ({} if family == "SD15" else {"text_encoder_2": 32})
            write_lora(unet, encoders, loras / f"{family}.safetensors")
        write_peft(folder)
        write_lycoris(folder)
        return report_of("dialects", name, timeout=600)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_dialect_reaches_every_module(reports, family, dialect):
    found = reports[family]["dialects"][dialect]
    unet, texts, _ = FAMILIES[family]
    assert found["modules"] == [unet, texts]
    assert max(found["errors"]) < 1e-6
    assert f"{unet} of {unet} modules, rank 1" in found["report"]
    assert f"{texts} of {texts} text encoder modules" in found["report"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lora_output_has_the_same_effect(reports, family):
    assert max(reports[family]["applied"]) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_clip_the_report_says_what_is_left_out(reports, family):
    apart, text, no_clip = reports[family]["without clip"]
    assert apart < 1e-6 and no_clip
    assert f"{FAMILIES[family][1]} text encoder modules are left out, connect a CLIP" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_core_finds_less_of_pefts_names_and_all_of_what_we_save(reports, family):
    unet, _, core = FAMILIES[family]
    found = reports[family]["core"]
    print(f"core's Load LoRA on PEFT names: {found['peft']['modules']} of {unet} ({core} in ComfyUI 0.3.75)")
    assert found["peft"]["modules"] < unet
    assert found["base_model"]["modules"] < unet
    for dialect in ("our kohya", "our native"):
        assert found[dialect]["modules"] == unet
        assert max(found[dialect]["errors"]) < 1e-6
    assert reports[family]["left alone"]


KINDS = {
    "loha": 2, "lokr": 2, "tucker": 1, "flattened": 2, "dora per input": 2, "glora": 1, "dense": 8,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_effect_that_core_gives_it_in_kohyas_names(reports, kind):
    found = reports["kinds"][kind]
    assert found["parameters"] == KINDS[kind]
    assert len(found["errors"]) == 8
    assert max(found["errors"]) < 1e-5


@pytest.mark.parametrize("kind", PEFT)
def test_pefts_files_have_the_effect_of_pefts_merge(reports, kind):
    found = reports["peft"][kind]
    assert found["error"] < 2e-5
    reasons = {"dora": "DoRA rescales the whole weight after adding", "oft": "OFT rotates the base weight"}
    assert ("sum" in found) == (kind in reasons)
    assert reasons.get(kind, "") in found.get("sum", "")


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoriss_files_have_the_effect_of_its_merge(reports, kind):
    found = reports["lycoris"][kind]
    print(f"core's Load LoRA of LyCORIS's {kind} is {found['core']:.1%} off")
    assert max(found["errors"]) < 2e-5
    assert f"{len(LYCORIS_TARGETS)} of {len(LYCORIS_TARGETS)} modules" in found["report"]


@pytest.mark.parametrize(
    "kind", ["locon dora", "lokr", "lokr dora", "oft rescaled", "oft constrained", "boft constrained"]
)
def test_what_core_does_not_do(reports, kind):
    assert reports["lycoris"][kind]["core"] > 0.01


def test_the_report_counts_what_the_host_took(reports):
    assert "1 of 2 modules" in reports["not taken"]
    left = "not applied, without a place in the model of their own: unet.down_blocks.0.resnets.0.time_emb_proj"
    assert left in reports["not taken"]


def test_a_bias_of_one_part_of_a_fused_weight(reports):
    assert reports["bias"]["error"] < 1e-6
    assert "1 of 1 modules" in reports["bias"]["report"]


def test_dora_is_the_papers_where_cores_is_not(reports):
    found = reports["peft"]["dora"]
    assert found["half"] < 2e-5
    print(f"core's DoRA is {found['core']:.1%} from PEFT's")
    assert found["core"] > 0.01


@pytest.mark.parametrize("dialect", ["peft", "base_model", "kohya", "lycoris"])
def test_names_of_other_architectures(reports, dialect):
    found = reports["transformer"]
    assert f"{found['count']} of {found['count']} modules" in found[dialect]["report"]
    assert ("took alpha = rank" in found[dialect]["report"]) == (dialect in ("peft", "base_model"))
    assert found[dialect]["error"] < 1e-6


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("other family", ["bad other family", "context width 64", "SD15", "use a LoRA made for this architecture"]),
        ("bias", ["attn1.to_q.bias is (128, 1) in the LoRA and missing in the model"]),
        ("dora", ["don't fit each other", "dora_scale (7, 1, 1, 1)"]),
        ("oft", ["down_blocks.0.resnets.0.conv1.weight is (48, None) in the LoRA and (32, 288) in the model"]),
        ("nothing", ["none of the 1 modules", "use one made for it"]),
        ("text alone", ["none of the 72 modules", "connect a CLIP"]),
        ("boft of peft", ["bad boft of peft", "conv_in.boft_R", "an adapter that ComfyUI can't apply"]),
    ],
)
def test_what_does_not_fit_is_explained(reports, kind, said):
    text = reports["refusals"][kind]
    assert [part for part in said if part not in text] == []
    assert reports["refusals"]["left alone"] == "True"


def test_what_does_not_fit_is_left_out_on_request(reports):
    text = reports["refusals"]["left out"]
    assert re.search(r"; left out, of another size than the model's: unet\.\S+, .* more", text), text
    applied, of = map(int, re.search(r": (\d+) of (\d+) modules", text).groups())
    assert 0 < applied < of
    assert str(applied) == reports["refusals"]["left out count"]


def test_flux_control_loras_are_cores(reports):
    found = reports["control"]
    assert len(found["core"]) == 8 and max(found["core"]) < 1e-5
    assert found["first layer"] < 1e-4 and found["norms"] == [12, 0.0] and found["left alone"]
    for text in found["text"]:
        assert "12 weights set, 1 reshaped, whatever the strength" in text
        assert "left out" not in text and "alpha" not in text
    assert "48 of 48 modules, rank 2" in found["text"][0]
    assert "62 of 62 modules, rank 2" in found["text"][1]
    assert found["after a LoRA"] < 1e-5


def test_what_a_control_lora_can_not_be_is_explained(reports):
    said = reports["control"]["refused"]
    assert "transformer.x_embedder.weight to (128, 128), apply that one after this" in said["before a LoRA"]
    assert "x_embedder.weight is padded to (128, 64) by the LoRA and (128, 128) in the model" in said["narrow"]
    assert "replacement weights can't be summed as a vector: the file gives a weight another shape" in said["sum"]
    assert "img_in.lora_A.weight" in said["sum"] and "Apply the file alone, after a sum of the others" in said["sum"]


def test_parameters_that_are_no_layers_weight_are_changed_as_core_does(reports):
    found = reports["wan"]
    assert max(found["errors"]) < 1e-5 and found["modulations"] == 3
    assert found["changed"] == 64
    assert "39 of 39 modules, rank 2" in found["text"]


def test_a_first_layer_of_other_inputs_is_named(reports):
    found = reports["wan"]
    assert "transformer.patch_embedding.weight is (128, 144) in the LoRA and (128, 64) in the model" in found["refused"]
    assert "39 of 40 modules" in found["left out"]
    assert "left out, of another size than the model's: transformer.patch_embedding;" in found["left out"]
    assert "1 tensors are no LoRA weights and left out (diffusion_model.blocks.0.diff_m)" in found["left out"]


def test_packed_weights_keep_their_places(reports):
    found = reports["packed"]
    assert found["fused"] == 8 and found["4-bit"] and found["flat"] and found["fp8"]
    assert found["unsized"]["whole"] and found["unsized"]["parts"] == 0
    assert "is packed as torch.uint8" in found["unsized"]["said"]


def test_a_fused_lora_finds_layers_that_are_apart(reports):
    found = reports["apart"]
    assert found["layers"] == 16 and found["fused"] > 0 and max(found["errors"]) < 1e-5
    assert all(f"{found['layers']} of {found['layers']} modules" in text for text in found["text"])
