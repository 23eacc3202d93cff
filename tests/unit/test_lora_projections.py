"""LoHa and LoKr files have lost the kernels of convolutions; diffusers takes only the shapes of its own layers."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft.tuners.tuners_utils import BaseTunerLayer

from lcm_core.lora import LoRAVector
from lcm_core.lora.architecture import projects_by_convolution

TARGETS = ("proj_in", "proj_out", "to_q", "conv1", "conv2", "conv_shortcut", "ff.net.2")


def pipeline(**options):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    return StableDiffusionPipeline(
        vae, None, None, unet, DDIMScheduler(clip_sample=False, steps_offset=1), None, None, None, False
    )


def lycoris_file(unet, kind):
    """(what LyCORIS saves, module -> the difference that it makes) of random adapters on the targets."""
    state, deltas = {}, {}
    for name, layer in unet.named_modules():
        if name.endswith(TARGETS):
            module = kind(f"lora_unet_{name.replace('.', '_')}", layer.requires_grad_(False), lora_dim=2, alpha=2)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                state |= {f"{module.lora_name}.{key}": value.clone() for key, value in module.state_dict().items()}
                deltas[name] = module.get_diff_weight(shape=layer.weight.shape)[0]
    return state, deltas


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
@pytest.mark.parametrize("kind", [LohaModule, LokrModule])
@pytest.mark.parametrize(
    ("options", "metadata"),
    [
        ({"cross_attention_dim": 768}, {}),
        ({"cross_attention_dim": 12}, {"ss_base_model_version": "sd_v1"}),
        ({"cross_attention_dim": 12}, {}),
        ({"cross_attention_dim": 1024, "use_linear_projection": True}, {}),
        ({"cross_attention_dim": 12, "use_linear_projection": True}, {"modelspec.architecture": "stable-diffusion-v2"}),
    ],
)
def test_diffusers_reads_them_in_its_own_shapes(tmp_path, options, metadata, kind, dialect):
    state, deltas = lycoris_file(pipeline(**options).unet, kind)
    width = options["cross_attention_dim"]
    to_k = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    state |= {f"{to_k}.lokr_w1": torch.zeros(1, 1), f"{to_k}.lokr_w2": torch.zeros(32, width)}
    LoRAVector.from_state_dict(state, metadata).save(tmp_path / "ours.safetensors", dialect)
    reader = pipeline(**options)
    reader.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    found = {
        name: module.get_delta_weight("default_0")
        for name, module in reader.unet.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    found.pop("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-4, atol=1e-6)


K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FIRST = "unet.down_blocks.0.attentions.0.proj_in"


@pytest.mark.parametrize("sizes, metadata, by_convolution", [
    ({K: (640, 768)}, {}, True),
    ({K: (640, 1024), FIRST: (320, 320)}, {}, False),
    ({K: (640, 2048)}, {}, False),
    ({K: (640, 768), "unet.x.attn2.to_k": (640, 2048)}, {}, False),
    ({FIRST: (320, 320)}, {}, True),
    ({"unet.mid_block.attentions.0.proj_in": (1280, 1280)}, {}, False),
    ({K: (640, 2048)}, {"ss_base_model_version": "sd_1.5"}, True),
    ({K: (640, 768)}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, True),
    ({FIRST: (320, 320)}, {"ss_base_model_version": "sdxl_base_v1-0"}, False),
    ({FIRST: (320, 320)}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, False),
    ({FIRST: (320, 320)}, {"ss_base_model_version": "a name of their own"}, True),
])  # fmt: skip
def test_by_what_the_projections_are_known(sizes, metadata, by_convolution):
    assert projects_by_convolution(sizes, metadata) is by_convolution
