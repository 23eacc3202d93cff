"""Which recipe a file is recognised as: names as the hubs have them, names that only look so, and what disagrees."""

import re
from dataclasses import replace

import pytest

from lcm_core.accelerators import SAMPLING, load_recipes, recognize, sampling_record
from lcm_core.accelerators.naming import BASES, bases_in, file_words
from lcm_core.accelerators.recognition import UNKNOWN

RECIPES = load_recipes()[0]
# Recipe -> published file names.
NAMES = {
    "lcm-lora": [
        "lcm-lora-sdv1-5.safetensors", "lcm-lora-sdxl.safetensors", "lcm-lora-ssd-1b.safetensors",
        "LCM_LoRA_Weights_SD15.safetensors", "lcm/sdxl/pytorch_lora_weights.safetensors",
        "lcm\\sd1.5\\pytorch_lora_weights.safetensors", "SDXL - LCM LoRA.safetensors",
        "lcm-lora-sdxl/pytorch_lora_weights.safetensors",
    ],
    "animatelcm": [
        "AnimateLCM_sd15_t2v_lora.safetensors", "animatelcm-sd15-t2v-lora.safetensors", "sd15_lora_beta.safetensors",
    ],
    "tcd": [
        "TCD-SD15-LoRA.safetensors", "TCD-SDXL-LoRA.safetensors",
        "h1t/TCD-SD21-base-LoRA/pytorch_lora_weights.safetensors", "tcd_lora_sdxl.safetensors",
    ],
    "hyper-sd": [
        "Hyper-SD15-2steps-lora.safetensors", "Hyper-SD15-8steps-lora.safetensors",
        "Hyper-SDXL-4steps-lora.safetensors", "hyper sdxl 8 steps lora.safetensors",
    ],
    "hyper-sd-1step": [
        "Hyper-SD15-1step-lora.safetensors", "Hyper-SDXL-1step-lora.safetensors", "hyper_sdxl_1step_lora.safetensors",
    ],
    "hyper-sd-cfg": [
        "Hyper-SD15-8steps-CFG-lora.safetensors", "Hyper-SDXL-8steps-CFG-lora.safetensors",
        "Hyper-SDXL-12steps-CFG-lora.safetensors",
    ],
    "hyper-flux": [
        "Hyper-FLUX.1-dev-8steps-lora.safetensors", "Hyper-FLUX.1-dev-16steps-lora.safetensors",
        "Hyper-FLUX.1-dev-8steps-lora-fp16.safetensors",
    ],
    "sdxl-lightning": [
        "sdxl_lightning_2step_lora.safetensors", "sdxl_lightning_4step_lora.safetensors",
        "SDXL-Lightning/sdxl_lightning_8step_lora.safetensors", "SDXL_Lightning_LoRA_8steps.safetensors",
    ],
    "dmd2": [
        "dmd2_sdxl_4step_lora.safetensors", "dmd2_sdxl_4step_lora_fp16.safetensors",
        "DMD2/dmd2_sdxl_4step_lora_fp16.safetensors",
    ],
    "flash": [
        "FlashSDXL.safetensors", "jasperai/flash-sdxl/pytorch_lora_weights.safetensors",
        "flash-sd/pytorch_lora_weights.safetensors", "flash_sdxl_lora.safetensors",
    ],
    "pcm-smallcfg": [
        "pcm_sdxl_smallcfg_2step_converted.safetensors", "pcm_sd15_smallcfg_4step_converted.safetensors",
        "pcm_sd15_smallcfg_16step_converted.safetensors",
    ],
    "pcm-normalcfg-4": [
        "pcm_sdxl_normalcfg_4step_converted.safetensors", "pcm_sd15_normalcfg_4step_converted.safetensors",
    ],
    "pcm-normalcfg-8": [
        "pcm_sdxl_normalcfg_8step_converted.safetensors", "pcm_sd15_normalcfg_8step_converted.safetensors",
    ],
    "pcm-normalcfg-16": [
        "pcm_sdxl_normalcfg_16step_converted.safetensors", "pcm_sd15_normalcfg_16step_converted.safetensors",
    ],
    "pcm-lcmlike": [
        "pcm_sdxl_lcmlike_lora_converted.safetensors", "pcm_sd15_lcmlike_lora_converted.safetensors",
    ],
    "sdxl-turbo": [
        "sd_xl_turbo_lora_v1.safetensors", "sd_xl_turbo_lora_v1-64dim.safetensors",
        "sd_xl_turbo_lora_v1-16dim.safetensors",
    ],
    "flux-turbo-alpha": [
        "FLUX.1-Turbo-Alpha.safetensors", "flux.1-turbo-alpha-lora.safetensors",
        "alimama-creative/FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors",
    ],
    "qwen-lightning": [
        "Qwen-Image-Lightning-4steps-V1.0.safetensors", "Qwen-Image-Lightning-8steps-V1.1-bf16.safetensors",
        "Qwen-Image-Edit-2509-Lightning-4steps-V1.0-fp32.safetensors",
        "Qwen-Image-2512-Lightning-8steps-V1.0-bf16.safetensors",
    ],
    "wan21-lightx2v": [
        "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors",
        "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
        "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors",
        "lightx2v_14B_T2V_cfg_step_distill_lora_adaptive_rank_quantile_0.15_bf16.safetensors",
        "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors",
    ],
    "wan22-lightning-high": [
        "Wan2.2-Lightning_T2V-v1.1-A14B-4steps-lora_HIGH_fp16.safetensors",
        "Wan2.2_I2V_A14B_HIGH_4steps_lora_rank64_Seko_V1_forKJ.safetensors",
        "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors",
        "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217.safetensors",
        "Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_250928_rank128_fp16.safetensors",
        "Wan2.2_I2V_A14B_HIGH_lightx2v_MoE_distill_lora_rank_64_bf16.safetensors",
        "Wan2.2-Lightning/Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/high_noise_model.safetensors",
    ],
    "wan22-lightning-low": [
        "Wan2.2-Lightning_T2V-v1.1-A14B-4steps-lora_LOW_fp16.safetensors",
        "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors",
        "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/low_noise_model.safetensors",
    ],
    "ltx2-distilled": [
        "ltx-2-19b-distilled-lora-384.safetensors", "ltx-2.3-22b-distilled-lora-384.safetensors",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    ],
}  # fmt: skip
# Those whose files take the number of steps in their names.
STEPS_IN_NAME = ("hyper-sd", "hyper-sd-cfg", "hyper-flux", "sdxl-lightning", "pcm-smallcfg", "qwen-lightning")
STRANGERS = [
    "sdxl_turbo_lora_snail_style.safetensors", "my_girl_sd15_lora_beta.safetensors",
    "a_sdxl_lightning_lora.safetensors", "lightning_bolt_style_sdxl.safetensors",
    "sdxl_lightning_bolt_4steps_of_rage.safetensors",
    "lightning.safetensors", "turbocharged_cars_flux.safetensors", "flux_turbo_racer.safetensors",
    "sdxl_turbo_snail.safetensors", "camera_flash_sdxl.safetensors", "flash_gordon_sdxl.safetensors",
    "sdxl-flash-lora.safetensors", "hyperrealism_sdxl_lora.safetensors", "Hyper-Detailed-SD15.safetensors",
    "dmd2_poster_style.safetensors", "lcm_monitor_photography.safetensors", "welcome_lora.safetensors",
    "tcdance.safetensors", "pcm_audio_waves.safetensors", "sdxl_lightning_6step_lora.safetensors",
    "ltx-2-19b-ic-lora-canny-control.safetensors", "Hyper-SDXL.safetensors", "pytorch_lora_weights.safetensors",
    "wan2.2_t2v_dance_high_noise.safetensors", "FireRed-Image-Edit-1.0-Lightning-8steps-v1.0.safetensors",
]  # fmt: skip
PUBLISHED = [(recipe, name) for recipe, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("recipe", "name"), PUBLISHED, ids=[name for _, name in PUBLISHED])
def test_published_files_are_recognised_however_their_names_are_spelled(recipe, name):
    expected = RECIPES[recipe]
    if recipe in STEPS_IN_NAME:
        steps = int(re.search(r"(\d+) ?steps?", name)[1])
        expected = replace(expected, steps=(steps,), default_steps=steps)
    for spelled in (
        name,
        name.upper(),
        name.replace("_", "-"),
        name.replace("-", " "),
        name.removesuffix(".safetensors"),
    ):
        found = recognize(spelled)
        assert (found.recipe, found.evidence) == (expected, "file name"), found.why
        assert expected.label in found.why


def test_every_recipe_has_names_and_every_family_three():
    assert NAMES.keys() == RECIPES.keys()
    families = {}
    for name, recipe in RECIPES.items():
        families.setdefault(recipe.family, []).extend(NAMES[name])
    assert min(map(len, families.values())) >= 3


@pytest.mark.parametrize("name", STRANGERS)
def test_names_that_only_look_so_are_not_known(name):
    found = recognize(name)
    assert (found.recipe, found.evidence, found.why) == (None, None, UNKNOWN)


@pytest.mark.parametrize(
    ("name", "both"),
    [
        ("dmd2_sdxl_4step_lora_x_lightning.safetensors", ("DMD2", "SDXL-Lightning")),
        ("lcm-lora-sdxl_dmd2_mix.safetensors", ("LCM-LoRA", "DMD2")),
        ("Hyper-SDXL-4steps-lora_and_sdxl_lightning_4step_lora.safetensors", ("Hyper-SD", "SDXL-Lightning")),
        ("lightx2v_T2V_14B_cfg_step_distill_causvid.safetensors", ("Wan 2.1 lightx2v", "CausVid")),
    ],
)
def test_two_families_in_one_name_are_both_named_and_neither_is_chosen(name, both):
    found = recognize(name)
    assert found.recipe is None and found.evidence == "file name"
    assert all(label in found.why for label in both) and found.why.endswith("choose the recipe")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", "CausVid"),
        ("Wan2.1_T2V_14B_FusionX_LoRA.safetensors", "FusionX"),
        ("Wan21_AccVid_T2V_14B_lora_rank32_fp16.safetensors", "AccVid"),
        ("Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors", "FastWan"),
        ("Hyper-SD3-4steps-CFG-lora.safetensors", "Hyper-SD3"),
        ("flash-sd3/pytorch_lora_weights.safetensors", "Flash Diffusion for SD3"),
        ("pcm_deterministic_4step_shift3.safetensors", "PCM for SD3"),
        ("Flux_2-Turbo-LoRA_comfyui.safetensors", "FLUX.2 Turbo"),
        ("ltx-2.5-22b-distilled-lora-450-bf16.safetensors", "LTX-2.5 distilled"),
    ],
)
def test_an_accelerator_without_a_confirmed_recipe_is_named(name, label):
    found = recognize(name)
    assert found.recipe is None and found.evidence == "file name"
    assert label in found.why and "has no confirmed recipe" in found.why


def test_a_users_recipe_for_one_of_those_is_recognised():
    mine = replace(RECIPES["wan21-lightx2v"], name="causvid", family="CausVid", files=("causvid",), words=("causvid",))
    found = recognize("Wan21_CausVid_14B_T2V_lora_rank32.safetensors", recipes={**RECIPES, "causvid": mine})
    assert found.recipe == mine


def test_the_base_of_file_and_model_decides():
    assert recognize("lcm-lora-sdxl.safetensors", base="SDXL").recipe == RECIPES["lcm-lora"]
    assert recognize("lcm-lora.safetensors", base="stable-diffusion-xl-v1-base").recipe == RECIPES["lcm-lora"]
    for name, base, said in [
        ("lcm-lora-sdxl.safetensors", "SD1.5", "the file is for SDXL and the model is SD1.5"),
        ("sdxl_lightning_4step_lora.safetensors", "SD1.5", "a recipe for SDXL, but the model is SD1.5"),
        ("FLUX.1-Turbo-Alpha.safetensors", "Flux.2", "a recipe for Flux.1, but the model is Flux.2"),
        ("dmd2_sdxl_4step_lora.safetensors", "AuraFlow", "the model is AuraFlow"),
    ]:
        found = recognize(name, base=base)
        assert found.recipe is None and said in found.why
    lightx2v = "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"
    for base in ("Wan 2.1", "Wan 2.2", "Wan 2.1 or Wan 2.2"):
        assert recognize(lightx2v, base=base).recipe == RECIPES["wan21-lightx2v"]
    assert recognize(NAMES["wan22-lightning-low"][0], base="Wan 2.1").recipe is None
    assert recognize(NAMES["wan22-lightning-low"][0], base="Wan 2.1 or Wan 2.2").recipe.expert == "low"


def test_the_base_decides_between_rows_that_fit_one_name():
    rows = {
        base: replace(RECIPES["tcd"], name=base, label=f"speedy {base}", bases=(base,), files=("speedy",), words=())
        for base in ("SD1.5", "SDXL")
    }
    assert recognize("speedy.safetensors", base="SDXL", recipes=rows).recipe == rows["SDXL"]
    found = recognize("speedy.safetensors", recipes=rows)
    assert found.recipe is None and "speedy SD1.5, speedy SDXL" in found.why


def test_a_number_of_steps_that_the_recipe_does_not_take_is_not_its_file():
    rows = {"tcd": replace(RECIPES["tcd"], files=(r"speedy (?P<steps>\w+) ?steps?",))}
    assert recognize("speedy_8step.safetensors", recipes=rows).recipe.steps == (8,)
    assert recognize("speedy_64step.safetensors", recipes=rows).why == UNKNOWN
    assert recognize("speedy_few_steps.safetensors", recipes=rows).why == UNKNOWN


def test_modelspec_speaks_where_it_begins_with_a_name():
    title = {"modelspec.title": "SDXL-Lightning 4 Step LoRA"}
    hint = {"modelspec.usage_hint": "Hyper-SDXL-8steps-LoRA, Euler on sgm_uniform at cfg 1; not for lcm"}
    assert recognize("a.safetensors", title).recipe.steps == (4,)
    assert recognize("a.safetensors", title).evidence == "modelspec"
    assert recognize("a.safetensors", hint).recipe.name == "hyper-sd"
    for text in ("Works with LCM-LoRA and TCD-SDXL-LoRA", "A style", "", "causvid looks"):
        for key in ("modelspec.title", "modelspec.usage_hint"):
            assert recognize("a.safetensors", {key: text}).why == UNKNOWN
    both = recognize("a.safetensors", title | hint)
    assert both.recipe is None and "SDXL-Lightning" in both.why and "Hyper-SD" in both.why
    other_base = title | {"modelspec.architecture": "stable-diffusion-v1/lora"}
    assert "the file is for SD1.5" in recognize("a.safetensors", other_base).why


def test_a_known_hash_speaks_for_a_renamed_file_with_its_steps_and_base():
    (digest,) = [key for key, name in RECIPES["hyper-sd-cfg"].sha256.items() if name == "Hyper-SDXL-12steps-CFG-lora"]
    for given in (digest, digest.upper()):
        found = recognize("speed.safetensors", sha256=given)
        assert (found.recipe.name, found.recipe.steps, found.evidence) == ("hyper-sd-cfg", (12,), "sha256")
    assert recognize("speed.safetensors", sha256=digest, base="SD1.5").recipe is None
    assert recognize("speed.safetensors", sha256="0" * 64).why == UNKNOWN
    disagree = recognize("sdxl_lightning_4step_lora.safetensors", sha256=digest)
    assert disagree.recipe is None and "Hyper-SD CFG" in disagree.why and "SDXL-Lightning" in disagree.why
    other_steps = recognize("Hyper-SDXL-8steps-CFG-lora.safetensors", sha256=digest)
    assert other_steps.recipe is None and "8steps" in other_steps.why and "12steps" in other_steps.why


def test_every_hash_is_of_a_file_that_its_own_recipe_recognises():
    hashes = [(recipe, name) for recipe in RECIPES.values() for name in recipe.sha256.values()]
    assert len(hashes) == 12
    for recipe, name in hashes:
        assert recognize(name).recipe.name == recipe.name


def test_what_the_file_itself_says_stands_above_its_name():
    own = replace(RECIPES["tcd"], name="mine", label="Mine", steps=(3,), default_steps=3, files=(), words=())
    found = recognize("sdxl_lightning_4step_lora.safetensors", sampling_record(own))
    assert (found.recipe, found.evidence) == (own, "metadata")
    assert recognize("a.safetensors", sampling_record(own), base="Flux.1").recipe is None
    broken = recognize("sdxl_lightning_4step_lora.safetensors", {SAMPLING: '{"name": "mine", "family": 3}'})
    assert broken.recipe is None and broken.evidence == "metadata" and "family is 3 and must be a text" in broken.why


@pytest.mark.parametrize(("count", "base"), [(278, "SD1.5"), (788, "SDXL"), (423, "SSD-1B")])
def test_the_modules_of_the_released_lcm_loras_come_last(count, base):
    modules = dict.fromkeys((f"unet.{i}" for i in range(count)), 64)
    name = "pytorch_lora_weights.safetensors"
    found = recognize(name, modules=modules, base=base)
    assert (found.recipe, found.evidence) == (RECIPES["lcm-lora"], "modules")
    assert f"{count} modules of rank 64" in found.why and "choose the recipe" in found.why
    assert recognize(name, modules=modules, base="Flux.1").recipe is None
    assert recognize("sdxl_lightning_4step_lora", modules=modules).recipe.name == "sdxl-lightning"
    for other in ({**modules, "unet.0": 32}, {**modules, "more": 64}, dict.fromkeys(modules, 32), {}):
        assert recognize(name, modules=other).why == UNKNOWN
    assert recognize(name, {"ss_network_module": "networks.lora"}, modules=modules).why == UNKNOWN


@pytest.mark.parametrize(
    ("text", "bases"),
    [
        ("stable-diffusion-v1-5", ("SD1.5",)), ("stable-diffusion-xl-v1-base/lora", ("SDXL",)), ("sd_v1", ("SD1.5",)),
        ("stable-diffusion-v2-768-v", ("SD2.1",)), ("sdxl_base_v1-0", ("SDXL",)), ("FLUX.1-dev", ("Flux.1",)),
        ("Hyper-FLUX 2steps", ("Flux.1",)), ("Flux_2-Turbo", ("Flux.2",)), ("Wan22_A14B", ("Wan 2.2",)),
        ("SSD-1B", ("SSD-1B",)), ("SD3.5", ("SD3",)), ("LTX-2.3", ("LTX-2",)), ("sdxl and sd15", ("SDXL", "SD1.5")),
        ("a cat", ()),
    ],
)  # fmt: skip
def test_bases_that_a_text_names(text, bases):
    assert bases_in(text) == bases


def test_every_base_is_found_by_its_own_label():
    for label in BASES:
        assert bases_in(label) == (label,)


def test_words_of_a_file():
    assert file_words("/loras/SDXL - LCM_LoRA.SafeTensors") == "sdxl lcm lora"
    assert file_words("a/b/lora.safetensors") == "a b lora"
    assert file_words("lora") == "lora"
