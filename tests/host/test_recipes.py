"""Acceleration LoRAs from the file to the picture: recipes found, followed, contradicted and recorded."""


import pytest

from tests.host.report import facts_of

HYPER, WAN = "Hyper-SD15-4steps-lora", "Wan2.1-T2V-14B-lightx2v-cfg-step-distill-lora"
QWEN = "Qwen-Image-Lightning-8steps-V1.1"
FILES = {
    "lcm-lora-sdv1-5": ("lcm-lora", 4),
    HYPER: ("hyper-sd", 4),
    "Hyper-SD15-8steps-CFG-lora": ("hyper-sd-cfg", 8),
    "Hyper-SD15-1step-lora": ("hyper-sd-1step", 1),
    "TCD-SD15-LoRA": ("tcd", 4),
    "pcm_sd15_smallcfg_2step_converted": ("pcm-smallcfg", 2),
}

SOCKETS = {"model", "positive", "negative", "latent", "clip"}
STEPS = "steps cfg denoise original_steps gamma"
STAGES = "seeds start_at_step end_at_step add_noise return_with_leftover_noise"
# Node -> its widgets before it knew of recipes, and those that were added.
FORMER = {
    "Loader": ("lora_name strength leave_out_misfits", "recipe"),
    "Sampler": (f"seed {STEPS} guidance_until timesteps {STAGES} guidance_from", "grid"),
    "StreamBatch": (f"seed {STEPS} timesteps", "grid"),
    "Schedule": ("steps denoise original_steps timesteps", "grid"),
    "SamplerSelect": ("gamma guidance_until guidance_from", ""),
}


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, "-m", "tests.host.accelerators")


@pytest.mark.parametrize("name", FILES)
def test_three_inputs_follow_the_recipe_of_the_file(facts, name):
    found, (recipe, steps) = facts["known_files"][name], FILES[name]
    assert found["recipe"] == recipe and len(found["levels"]) == steps
    assert found["timesteps"] == found["levels"]
    assert found["by hand"] == 0, "the same run, each setting given by hand"
    assert found["guided"] == (recipe == "hyper-sd-cfg")
    assert (found["from an LCM's"] == 0) == (recipe == "lcm-lora")
    assert found["recorded"]
    assert "the file name" in found["report"] and f"{steps} step" in found["report"]


def test_what_fits_is_not_warned_of(facts):
    assert facts["known_files"]["warnings"] == []


def test_a_graph_without_the_new_inputs_makes_its_picture(facts):
    assert set(facts["old_graphs"]["apart"].values()) == {0}
    assert facts["old_graphs"]["three inputs"] == 0, "without a recipe the sampler is an LCM's"


@pytest.mark.parametrize("node", FORMER)
def test_former_widgets_keep_their_places(facts, node):
    """Saved graphs have the values of widgets by their order."""
    former, added = FORMER[node]
    found = [name for name in facts["old_graphs"]["widgets"][node] if name not in SOCKETS]
    assert found == [*former.split(), *added.split()]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("steps", ["8 steps do not fit Hyper-SD, which takes 4"]),
        ("cfg", ["cfg 7 does not fit Hyper-SD"]),
        ("gamma", ["gamma 1 does not fit Hyper-SD, which takes 0"]),
        ("grid", ["the LCM grid does not fit Hyper-SD, which is sampled on the trailing grid"]),
        ("old", ["the LCM grid does not fit", "gamma 1 does not fit"]),
        ("two steps on either grid", ["2 steps do not fit"]),
        ("half", []),
        ("own", []),
        ("nothing", []),
    ],
)
def test_a_setting_that_contradicts_the_recipe_is_followed_and_warned_of(facts, name, said):
    found = facts["overrides"][name]["warnings"]
    assert len(found) == len(said) and all(part in text for part, text in zip(said, found, strict=True)), found


def test_settings_stand_beside_the_recipes(facts):
    timesteps = {name: found["timesteps"] for name, found in facts["overrides"].items() if not name.startswith("too")}
    trailing, lcm = [999, 749, 499, 249], [999, 759, 499, 259]
    assert timesteps["steps"] == [999, 874, 749, 624, 499, 374, 249, 124]
    assert timesteps["cfg"] == timesteps["gamma"] == timesteps["nothing"] == trailing
    assert timesteps["grid"] == timesteps["old"] == lcm
    assert timesteps["half"] == [499, 249], "of a trailing grid the last steps are left"
    assert "denoise 0.2 leaves none of the 4 steps; raise it to 0.25" in facts["overrides"]["too little"]
    assert "steps 1000000000 is more than 1000" in facts["overrides"]["too many"]


@pytest.mark.parametrize("name", ["alone", "styled"])
def test_the_parts_for_custom_sampling_follow_the_recipe(facts, name):
    """After core's LoRA loader too; by its gamma of 0.3, and not an LCM's 1."""
    same, other = facts["custom_sampling"][name]
    assert same == 0 < other


def test_a_stream_follows_the_recipe(facts):
    assert facts["custom_sampling"]["stream"] < 1e-3


@pytest.mark.parametrize(("name", "own", "set_to"), [(WAN, "8", "5"), (QWEN, "3.15819", "3")])
def test_a_flow_gets_the_recipes_shift_and_levels(facts, name, own, set_to):
    found = facts["flows"][name]
    assert found["sigmas"] == pytest.approx([*found["levels"], 0], rel=1e-6)
    assert f"shift {set_to}, in place of the model's {own}" in found["report"]
    assert found["warnings"] == [] and found["left alone"]
    assert found["bare"] == 0, "without a recipe the shift is the model's"


@pytest.mark.parametrize("name", [WAN, QWEN])
def test_a_shift_that_a_node_set_stays_and_is_warned_of(facts, name):
    found = facts["flows"][name]
    assert found["evenly"] == pytest.approx([*found["shifted"], 0], rel=1e-6)
    assert "shift 9, as the node before set it" in found["kept"] and "shift 9 does not fit" in found["kept"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fits", None),
        ("style", "metadata of a LoRA for a style"),
        ("chosen", None),
        ("base", "a recipe for SDXL, but the model is SD1.5"),
        ("two names", "names more than one accelerator"),
        ("two", "Hyper-SD15-4steps-lora.safetensors (Hyper-SD) is on this model already"),
        ("strength", "strength 0.2 does not fit Hyper-SD"),
        ("either expert", None),
        ("expert", "low noise is loaded on the high-noise model"),
        ("chosen for another", "SDXL-Lightning is for SDXL and the model is SD1.5"),
        ("steps 0 to 10000", None),
        ("steps 0 to 2", "low noise is loaded on the high-noise model"),
        ("steps 2 to 10000", None),
    ],
)
def test_a_lora_in_the_wrong_place_is_warned_of(facts, name, said):
    found = facts["warnings"][name]
    assert found == [] if said is None else len(found) == 1 and said in found[0]


def test_a_lora_that_is_taken_away_leaves_no_recipe(facts):
    assert not facts["warnings"]["removed"]


def test_a_users_recipes_are_choices_and_a_bad_one_is_named(facts):
    found = facts["user_recipes"]
    assert found["choices"][:3] == ["auto", "none", "LCM-LoRA"] and found["choices"][-1] == "Speedy"
    assert len(found["choices"]) == len(facts["recipes"]) + 3
    assert len(found["log"]) == 1 and "recipe 'broken': gamma is 7" in found["log"][0]
    assert found["timesteps"] == [999, 666, 332] and "Speedy" in found["report"]


def test_sums_record_how_they_are_sampled(facts):
    found = facts["vectors"]
    assert found["timesteps"] == [999, 749, 499, 249] and "Hyper-SD, as the vector's metadata says" in found["report"]
    assert found["saved"] == "hyper-sd"
    assert not found["removed"]
    assert len(found["several"]) == 1 and "sum of accelerators that are sampled differently" in found["several"][0]
    assert found["none of several"]


@pytest.mark.parametrize(
    ("name", "recipe", "sampled"),
    [
        ("file", "Hyper-SD, for SD1.5, SDXL: the file name ('hyper sd15 4steps lora') is one of", "4 steps"),
        ("sum", "Hyper-SD, for SD1.5, SDXL: the file says so in lcm_lora.sampling", "4 steps on the trailing grid"),
        ("several", "it is a sum of accelerators that are sampled differently", None),
        ("style", "not known: sampled as an LCM-LoRA", None),
        ("chosen", "TCD, for SD1.5, SD2.1, SDXL: the file says so in lcm_lora.sampling", "4 steps on the LCM grid"),
        ("core's", "not known: sampled as an LCM-LoRA", None),
    ],
)
def test_inspect_says_the_recipe_and_what_speaks_for_it(facts, name, recipe, sampled):
    said = dict(line.split(": ", 1) for line in facts["vectors"]["inspected"][name] if line[0] != " ")
    assert said["recipe"].startswith(recipe)
    assert said.get("sampled", "").startswith(sampled or "") and ("sampled" in said) == bool(sampled)
    if name == "file":
        assert said["sampled"] == "4 steps on the trailing grid, gamma 0, cfg 1, strength 1"
        assert said["takes"] == "cfg 1 to 1.5, strength 0.75 to 1"
