"""The sampler in a real server: one node or its parts, alone or in a batch, with core's LoRA nodes or ours."""

import copy

import numpy as np
import pytest


@pytest.fixture
def graph(workflow):
    graph = workflow("lcm_lora_txt2img")
    graph["5"]["inputs"]["batch_size"] = 3
    return graph


def set_inputs(graph, **inputs):
    """A copy with inputs of LCM Sampler set."""
    graph = copy.deepcopy(graph)
    graph["6"]["inputs"] |= inputs
    return graph


def in_parts(graph):
    """The same picture by core's SamplerCustom with our sampler, schedule and model sampling."""
    graph = copy.deepcopy(graph)
    whole = graph["6"]["inputs"]
    grid = {name: whole[name] for name in ("steps", "denoise", "original_steps", "timesteps")}
    choice = {name: whole[name] for name in ("gamma", "guidance_until", "guidance_from")}
    graph["20"] = {"class_type": "LCMLoRA_ModelSampling", "inputs": {"model": whole["model"]}}
    graph["21"] = {"class_type": "LCMLoRA_SamplerSelect", "inputs": choice}
    graph["22"] = {"class_type": "LCMLoRA_Schedule", "inputs": {"model": ["20", 0], **grid}}
    linked = {"model": ["20", 0], "sampler": ["21", 0], "sigmas": ["22", 0], "latent_image": whole["latent"]}
    conditioning = {name: whole[name] for name in ("positive", "negative", "cfg")}
    graph["6"] = {
        "class_type": "SamplerCustom",
        "inputs": {"add_noise": True, "noise_seed": whole["seed"], **conditioning, **linked},
    }
    return graph


OPTIONS = [
    {},
    {"gamma": 0.3},
    {"gamma": 0.0, "cfg": 1.5, "guidance_until": 0.5},
    {"cfg": 1.5, "guidance_from": 0.25},
    {"steps": 3, "original_steps": 25},
    {"timesteps": "999, 500, 20"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_parts_give_the_same_picture(graph, host, options):
    graph = set_inputs(graph, seed=21, **options)
    whole, parts = (host.images(host.queue(g)) for g in (graph, in_parts(graph)))
    assert len(whole) == 3
    np.testing.assert_array_equal(whole, parts)


def test_gamma_and_seed_change_the_picture(graph, host):
    pictures = [
        host.images(host.queue(set_inputs(graph, **options)))[0]
        for options in ({}, {"gamma": 0.5}, {"seed": 8}, {"steps": 2})
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other).mean() > 0.5


def test_image_of_a_batch_is_the_same_by_itself(graph, host):
    whole = host.images(host.queue(set_inputs(graph, seed=22)))
    alone = set_inputs(graph, seed=22, latent=["30", 0])
    alone["30"] = {"class_type": "LatentFromBatch", "inputs": {"samples": ["5", 0], "batch_index": 2, "length": 1}}
    (picture,) = host.images(host.queue(alone))
    assert np.abs(picture.astype(int) - whole[2]).max() <= 1


def test_denoise_keeps_the_picture(graph, host):
    """Image to image stays near its input at a low strength, and leaves it at full strength."""
    graph = set_inputs(graph, seed=23, steps=4)
    start = host.images(host.queue(graph))
    again = copy.deepcopy(graph)
    again["40"] = copy.deepcopy(graph["6"])
    again["40"]["inputs"] |= {"latent": ["6", 0], "seed": 24, "steps": 1}
    again["7"]["inputs"]["samples"] = ["40", 0]
    change = {}
    for denoise in (0.1, 1.0):
        again["40"]["inputs"]["denoise"] = denoise
        change[denoise] = np.abs(np.subtract(host.images(host.queue(again)), start, dtype=float)).mean()
    assert change[0.1] < 0.5 * change[1.0]


def test_our_vector_in_cores_loader(workflow, host):
    graph = workflow("lcm_lora_style_mix")
    ours = host.images(host.queue(graph))
    graph["5"] = {
        "class_type": "LoraModelLoader",
        "inputs": {"model": ["1", 0], "lora": ["4", 0], "strength_model": 1.0},
    }
    np.testing.assert_array_equal(ours, host.images(host.queue(graph)))


def test_saved_vector_loads_with_the_same_effect(workflow, host, base):
    graph = workflow("lcm_lora_txt2img")
    before = host.images(host.queue(graph))
    save = {"lora": ["2", 1], "filename_prefix": "loras/test_saved", "dialect": "peft", "dtype": "float16"}
    entry = host.queue(graph | {"50": {"class_type": "LCMLoRA_SaveVector", "inputs": save}})
    (path,) = entry["outputs"]["50"]["text"]
    name = path.replace("\\", "/").rpartition("/loras/")[2]
    graph["2"]["inputs"]["lora_name"] = name
    after = host.images(host.queue(graph))
    assert np.abs(np.subtract(before, after, dtype=float)).max() <= 2


def test_too_small_a_strength_is_explained(graph, host):
    from tools.comfy_client import PromptError

    with pytest.raises(PromptError, match="steps 8 is more than the 5 points that strength 0.1 leaves"):
        host.queue(set_inputs(graph, steps=8, denoise=0.1))


def test_core_lcm_patch_is_taken_over(graph, host):
    """Before our loader, where people have it."""
    alone = host.images(host.queue(set_inputs(graph, seed=26)))
    patched = set_inputs(graph, seed=26)
    patched["60"] = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": ["1", 0], "sampling": "lcm", "zsnr": False},
    }
    patched["2"]["inputs"]["model"] = ["60", 0]
    np.testing.assert_array_equal(alone, host.images(host.queue(patched)))


def test_what_nodes_tell_is_in_the_jobs_history(graph, host):
    graph = set_inputs(graph, seed=28, cfg=2.5, steps=2)
    graph["2"]["inputs"]["strength"] = 0.99  # so that the loader isn't cached
    entry = host.queue(graph)
    loaded, sampled = (entry["outputs"][node] for node in ("2", "6"))
    assert "modules" in loaded["text"][0] and set(loaded["levels"]) == {"info"}
    told = dict(zip(sampled["text"], sampled["levels"], strict=True))
    assert [level for text, level in told.items() if text.startswith("cfg 2.5 burns the picture")] == ["warning"]
    assert [level for text, level in told.items() if text.startswith("timesteps 999, ")] == ["info"]


def test_two_samplers_in_a_row_make_what_one_makes(graph, host):
    """As with KSampler (Advanced), and with SplitSigmas before two SamplerCustom."""
    whole = host.images(host.queue(set_inputs(graph, seed=27)))
    nodes = set_inputs(graph, seed=27, start_at_step=2, add_noise=False, latent=["70", 0])
    first = {"end_at_step": 2, "return_with_leftover_noise": True, "latent": ["5", 0], "start_at_step": 0}
    nodes["70"] = {"class_type": "LCMLoRA_Sampler", "inputs": nodes["6"]["inputs"] | first | {"add_noise": True}}
    parts = in_parts(set_inputs(graph, seed=27))
    parts["80"] = {"class_type": "SplitSigmas", "inputs": {"sigmas": ["22", 0], "step": 2}}
    parts["81"] = copy.deepcopy(parts["6"])
    parts["81"]["inputs"]["sigmas"] = ["80", 0]
    parts["6"]["inputs"] |= {"sigmas": ["80", 1], "latent_image": ["81", 0], "add_noise": False}
    for staged in (nodes, parts):
        assert np.abs(np.subtract(whole, host.images(host.queue(staged)), dtype=float)).max() <= 1


def test_previews_come_at_each_step(graph, host):
    previews = []
    host.queue(set_inputs(graph, seed=31), on_preview=previews.append)
    assert len(previews) == graph["6"]["inputs"]["steps"]
    assert np.ptp(previews[-1]) > 0
    assert (previews[0] != previews[-1]).any()


def test_an_interrupt_ends_the_run_and_the_next_is_as_before(graph, host):
    from tools.comfy_client import PromptError

    before = host.images(host.queue(set_inputs(graph, seed=32)))
    seen = []

    def stop_at_second(value, total):
        seen.append(value)
        if value == 2:
            host.interrupt()

    with pytest.raises(PromptError, match="interrupted"):
        host.queue(set_inputs(graph, seed=33, steps=50), on_progress=stop_at_second)
    assert max(seen) < 10
    np.testing.assert_array_equal(before, host.images(host.queue(set_inputs(graph, seed=32))))


def test_a_stream_of_frames_is_what_the_sampler_makes(graph, host):
    one_by_one = host.images(host.queue(set_inputs(graph, seed=34)))
    graph["6"]["class_type"] = "LCMLoRA_StreamBatch"
    inputs = host.object_info()["LCMLoRA_StreamBatch"]["input"]
    graph["6"]["inputs"] = {
        name: value for name, value in graph["6"]["inputs"].items() if any(name in kind for kind in inputs.values())
    }
    streamed = host.images(host.queue(set_inputs(graph, seed=34)))
    assert np.abs(np.subtract(one_by_one, streamed, dtype=float)).max() <= 2
