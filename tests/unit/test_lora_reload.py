"""Files of ours in diffusers' pipelines of every transformer, and files of theirs read by us."""

import re

import diffusers
import pytest
import torch
from diffusers.loaders import lora_pipeline
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from tiny_transformers import NETWORKS, build, layers, pipeline

from lcm_core.lora import Factors, LoRAVector
from lcm_core.lora.fusion import part_rows
from lcm_core.lora.metadata import family_names
from lcm_core.lora.names import read_names
from lcm_core.lora.names.table import families
from lcm_core.lora.names.writing import write_names

# What diffusers' own converters of trainers' names have a place for. They take Flux' widths to be the real ones, so its
# `linear1` has a test of its own.
BLOCKS = r"transformer_blocks|single_.*(norm|proj_out)"
KOHYA = {
    "Flux": BLOCKS,
    "Chroma": BLOCKS,
    "Flux.2": r"(single_)?transformer_blocks|x_embedder|context_embedder|time_guidance_embed.timestep|proj_out",
    "Qwen-Image": r"",
    "Wan": r"blocks",
    "Z-Image": r"layers|noise_refiner|context_refiner|t_embedder|cap_embedder",
}


def of_network(network):
    """Name of a family."""
    return network.removesuffix(" VACE")


def readable(transformer, chosen=""):
    return {name for name in layers(transformer) if re.match(chosen, name)}


def spelled(name, families):
    return read_names([f"transformer.{name}"], families)[f"transformer.{name}"]


def vector_of(network, transformer, names, alpha=3.0):
    """A vector with a LoRA of rank 2 for each of these layers: q, k and v that one weight of the original network holds
    have one `down`, as a fused LoRA's have, and alpha is not the rank."""
    generator = torch.Generator().manual_seed(0)
    spellings = {name: spelled(name, [of_network(network)]) for name in sorted(names)}
    parts = {part: name for name, spelling in spellings.items() for part in spelling.parts}
    modules = {}
    for place in write_names(parts, "native", [of_network(network)]):
        for part in place.parts:
            weight = transformer.get_submodule(parts[part]).weight
            count = len(spellings[parts[part]].parts)
            rows = part_rows(part, count, len(weight), weight[0].numel()) if count > 1 else [len(weight)]
            up = torch.randn(rows[spellings[parts[part]].parts.index(part)], 2, *[1] * (weight.ndim - 2),
                             generator=generator)  # fmt: skip
            down = torch.randn(2, *weight.shape[1:], generator=generator)
            down = modules[place.parts[0]].down if place.parts[0] in modules else down
            modules[part] = Factors(down, up, alpha)
    return LoRAVector(modules, {}, {"lcm_lora.families": of_network(network)})


def loaded(transformer):
    """Path -> Delta W of every layer that has an adapter."""
    return {
        name: module.get_delta_weight(*module.scaling).detach()
        for name, module in transformer.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def expected(vector, name):
    """Delta W of a layer of diffusers: its parts' rows, the halves exchanged where diffusers has them the other way."""
    spelling = spelled(name, family_names(vector.metadata))
    delta = torch.cat([vector.delta(part) for part in spelling.parts])
    return delta.roll(len(delta) // 2, 0) if spelling.swapped and len(delta) == 2 * delta[0].numel() else delta


def load(network, transformer, path):
    """By the pipeline, or by the transformer of a pipeline that loads no LoRAs."""
    pipe = pipeline(network, transformer)
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    else:
        transformer.load_lora_adapter(path, prefix="transformer")


def assert_loaded(transformer, vector, names):
    found = loaded(transformer)
    assert found.keys() == names
    for name, delta in found.items():
        torch.testing.assert_close(delta, expected(vector, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pipeline_loads_every_layer_of_a_peft_file(network, tmp_path):
    transformer = build(network)
    names = readable(transformer)
    vector = vector_of(network, transformer, names)
    vector.save(tmp_path / "lora.safetensors", "peft")
    load(network, transformer, tmp_path / "lora.safetensors")
    assert_loaded(transformer, vector, names)


@pytest.mark.parametrize("alphas", ["one alpha", "an alpha each"])
@pytest.mark.parametrize("network", KOHYA)
def test_a_pipeline_loads_what_it_knows_of_a_kohya_file(network, alphas, tmp_path):
    """Their converters split q, k and v, and exchange halves, by themselves."""
    transformer = build(network)
    names = readable(transformer, KOHYA[network])
    vector = vector_of(network, transformer, names)
    if alphas == "an alpha each":
        vector = vector + LoRAVector(dict(list(vector.modules.items())[::2]))
    vector.save(tmp_path / "lora.safetensors", "kohya")
    load(network, transformer, tmp_path / "lora.safetensors")
    assert_loaded(transformer, vector, names)


@pytest.mark.parametrize("shared", [True, False])
def test_diffusers_splits_flux_linear1_as_we_do(shared, tmp_path):
    rows = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
    down = torch.randn(2, 3072)
    vector = LoRAVector({
        f"transformer.single_transformer_blocks.37.{leaf}": Factors(
            down if shared else torch.randn(2, 3072), torch.randn(count, 2), 3.0
        )
        for leaf, count in rows.items()
    }, {}, {"lcm_lora.families": "Flux"})  # fmt: skip
    vector.save(tmp_path / "lora.safetensors", "kohya")
    theirs = diffusers.FluxPipeline.lora_state_dict(tmp_path, weight_name="lora.safetensors")
    assert theirs.keys() == {f"{name}.lora_{factor}.weight" for name in vector.modules for factor in "AB"}
    assert (LoRAVector.from_state_dict(theirs) - vector).norm() < 1e-5 * vector.norm()


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_pipeline_saves_is_read_back(network, tmp_path):
    """With ranks and alphas of some modules, in the metadata, by diffusers' paths."""
    torch.manual_seed(0)
    transformer = build(network)
    names = sorted(readable(transformer))
    patterns = {name if i % 2 else f"^{re.escape(name)}$": 5 for i, name in enumerate(names[::3])}
    config = LoraConfig(
        r=3,
        lora_alpha=2,
        target_modules=names,
        init_lora_weights=False,
        rank_pattern=dict.fromkeys(names[::2], 2),
        alpha_pattern=patterns,
    )
    transformer.add_adapter(config)
    pipe = pipeline(network, transformer)
    if hasattr(pipe, "save_lora_weights"):
        metadata = {key: value for key, value in config.to_dict().items() if key != "task_type"}
        weights = get_peft_model_state_dict(transformer)
        pipe.save_lora_weights(tmp_path, weights, transformer_lora_adapter_metadata=metadata)
    else:
        transformer.save_lora_adapter(tmp_path)
    vector = LoRAVector.load(tmp_path / "pytorch_lora_weights.safetensors")
    found = loaded(transformer)
    assert vector.modules.keys() == {part for name in names for part in spelled(name, [of_network(network)]).parts}
    for name in names:
        torch.testing.assert_close(found[name], expected(vector, name), rtol=1e-4, atol=1e-4)


# The reader, the prefix of the original's names, and which of its layers the reader has a place for.
ORIGINALS = {
    "LTX-Video": (diffusers.LTXPipeline, "diffusion_model.", r"transformer_blocks"),
    "LTX-2": (diffusers.LTX2Pipeline, "diffusion_model.", r"(?!.*connector)"),
    "HiDream": (diffusers.HiDreamImagePipeline, "diffusion_model.", r"\w+_stream_blocks"),
    "Anima": (lora_pipeline.AnimaLoraLoaderMixin, "diffusion_model.", r""),
    "Krea 2": (diffusers.Krea2Pipeline, "diffusion_model.", r""),
    "ACE-Step 1.5": (diffusers.AceStepPipeline, "base_model.model.", r"layers"),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_diffusers_renames_the_original_names_as_we_do(name):
    """Of networks without fused weights, so that names are all there is to it."""
    pipe, prefix, known = ORIGINALS[name]
    (family,) = (family for family in families() if family.name == name)
    paths = [path.format(3, 1) for path in family.paths() if re.match(known, path)]
    vector = LoRAVector(
        {f"transformer.{path}": Factors(torch.randn(2, 4), torch.randn(6, 2), 2.0) for path in paths},
        {},
        {"lcm_lora.families": name},
    )
    file = {
        key.replace("diffusion_model.decoder.", prefix).replace(".lora_down", ".lora_A").replace(".lora_up", ".lora_B"):
        tensor for key, tensor in vector.state_dict("native").items() if not key.endswith("alpha")
    }  # fmt: skip
    theirs, ours = pipe.lora_state_dict(dict(file)), vector.state_dict("peft")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert (LoRAVector.from_state_dict(file) - vector).norm() == 0


def factors(blocks, down, up, rank=2):
    """Random factors under these names' keys; blocks: name -> (rows, columns)."""
    file = {}
    for name, (rows, columns) in blocks.items():
        file |= {name + down: torch.randn(rank, columns), name + up: torch.randn(rows, rank)}
    return file


@pytest.mark.parametrize("single", [False, True], ids=["XLabs", "USO"])
def test_diffusers_and_we_read_loras_of_attention_processors_alike(single):
    """XLabs' have the double blocks, USO's the single ones too, whose q, k and v are the first rows of `linear1`."""
    torch.manual_seed(0)
    leaves = {"qkv_lora1": (24, 8), "qkv_lora2": (24, 8), "proj_lora1": (8, 8), "proj_lora2": (8, 8)}
    blocks = {f"double_blocks.18.processor.{leaf}": size for leaf, size in leaves.items()}
    if single:
        blocks |= {"single_blocks.37.processor.qkv_lora": (24, 8), "single_blocks.37.processor.proj_lora": (8, 40)}
    file = factors(blocks, ".down.weight", ".up.weight")
    theirs = LoRAVector.from_state_dict(diffusers.FluxPipeline.lora_state_dict(dict(file)))
    ours = LoRAVector.from_state_dict(file)
    assert ours.modules.keys() == theirs.modules.keys()
    assert len(ours.modules) == (12 if single else 8)
    assert (ours - theirs).norm() == 0


def test_wan_fun_s_two_underscores_are_musubi_s_one():
    torch.manual_seed(0)
    leaves = ("self_attn_q", "cross_attn_k", "cross_attn_v_img", "ffn_0")
    blocks = dict.fromkeys((f"lora_unet__blocks_0_{leaf}" for leaf in leaves), (8, 8))
    fun = factors(blocks, ".lora_down.weight", ".lora_up.weight") | {
        f"{name}.alpha": torch.tensor(1.0) for name in blocks
    }
    musubi = {key.replace("lora_unet__", "lora_unet_"): tensor for key, tensor in fun.items()}
    vector = LoRAVector.from_state_dict(fun)
    assert (vector - LoRAVector.from_state_dict(musubi)).norm() == 0
    assert vector.state_dict("kohya").keys() == musubi.keys()
