"""A LoRA of every layer in the original network's names is, in diffusers' names, what diffusers' own converters of
checkpoints make of its rows: which layer they go to, how a fused weight is cut and which halves are exchanged."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from full_transformers import full

from lcm_core.lora import LoRAVector
from lcm_core.lora.fusion import part_rows
from lcm_core.lora.names import read_names
from lcm_core.lora.names.family import each
from lcm_core.lora.names.table import families, match
from lcm_core.lora.names.writing import write_names

FAMILIES = {family.name: family for family in families()}
CONVERTERS = {
    "Flux": "flux_transformer_checkpoint",
    "Flux.2": "flux2_transformer_checkpoint",
    "Chroma": "chroma_transformer_checkpoint",
    "HunyuanVideo": "hunyuan_video_transformer",
    "Stable Diffusion 3": "sd3_transformer_checkpoint",
    "AuraFlow": "auraflow_transformer_checkpoint",
    "LTX-Video": "ltx_transformer_checkpoint",
    "LTX-2": "ltx2_transformer",
    "ERNIE-Image": "ernie_image_transformer_checkpoint",
    "HiDream": "hidream_transformer",
    "Wan": "wan_transformer",
    "Cosmos Predict2": "cosmos_transformer_checkpoint",
    "Krea 2": "krea2_transformer_checkpoint",
    "Lumina 2": "lumina2",
    "Z-Image": "z_image_transformer_checkpoint",
}


class Checkpoint(dict):
    """What a converter takes: where it wants a weight that no LoRA is made for, such as a norm's, there is one."""

    def pop(self, key, *default):
        return super().pop(key, torch.zeros(4))


def original(family, place):
    """The name of a layer in its authors' own checkpoint, where ComfyUI's, which is the native one, differs."""
    path = place.name.removeprefix("diffusion_model.")
    for spelling, paths in family.also.items():
        blocks = match(each(paths)[0], place.parts[0].removeprefix("transformer."))
        if blocks is not None and len(each(paths)) == len(place.parts):
            return spelling.format(*blocks)
    return path


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_lora_goes_where_diffusers_puts_the_rows_of_a_checkpoint(name):
    network, shapes = full(name), {}
    spellings = read_names(f"transformer.{path}" for path in network)
    for path, layer in network.items():
        spelling, columns = spellings[f"transformer.{path}"], layer.weight[0].numel()
        rows = part_rows(path, len(spelling.parts), len(layer.weight), columns)
        shapes |= {part: (count, columns) for part, count in zip(spelling.parts, rows, strict=True)}
    file, checkpoint = {}, Checkpoint()
    for i, place in enumerate(write_names(shapes, "native", [name])):
        rows = sum(shapes[part][0] for part in place.parts)
        path = original(FAMILIES[name], place) if name == "HunyuanVideo" else place.name
        file[f"{path}.lora_A.weight"] = torch.zeros(1, shapes[place.parts[0]][1])
        file[f"{path}.lora_B.weight"] = torch.arange(rows)[:, None] + i / 1024
        for kind in ("weight", "bias"):
            checkpoint[f"{path.removeprefix('diffusion_model.')}.{kind}"] = file[f"{path}.lora_B.weight"][:, 0]
    converted = getattr(single_file_utils, f"convert_{CONVERTERS[name]}_to_diffusers")(checkpoint)
    ours = LoRAVector.from_state_dict(file, {"lcm_lora.families": name}).state_dict("peft")
    ups = {key.removeprefix("transformer."): up for key, up in ours.items() if key.endswith("lora_B.weight")}
    assert ups.keys() == {f"{path}.lora_B.weight" for path in network}
    for path in network:
        assert torch.equal(converted[f"{path}.weight"], ups[f"{path}.lora_B.weight"][:, 0]), path
