"""Flux' control LoRAs of the real size, in Black Forest Labs' names and in diffusers', by their shapes alone."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers
from safetensors.torch import save_file

from lcm_core.lora import LoRAVector
from lcm_core.lora.file import LoRAFile

WIDTH, RANK, HEAD = 3072, 128, 128
EMBEDDERS = {"img_in": (WIDTH, 128), "txt_in": (WIDTH, 4096), "final_layer.linear": (64, WIDTH),
             "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH)}  # fmt: skip
EMBEDDERS |= {f"{name}.out_layer": (WIDTH, WIDTH) for name in ("time_in", "vector_in", "guidance_in")}
EMBEDDERS |= {
    "time_in.in_layer": (WIDTH, 256),
    "guidance_in.in_layer": (WIDTH, 256),
    "vector_in.in_layer": (WIDTH, 768),
}
DOUBLE = {"mod.lin": (6 * WIDTH, WIDTH), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
          "mlp.0": (4 * WIDTH, WIDTH), "mlp.2": (WIDTH, 4 * WIDTH)}  # fmt: skip
SINGLE = {"modulation.lin": (3 * WIDTH, WIDTH), "linear1": (7 * WIDTH, WIDTH), "linear2": (WIDTH, 5 * WIDTH)}
NORMS = ("query_norm", "key_norm")


def control(device="meta", scale=1, blocks=(19, 38)):
    """The names and shapes of flux1-depth-dev-lora; every width over `scale`."""
    shapes = dict(EMBEDDERS)
    norms = []
    for block in range(blocks[0]):
        for stream in ("img", "txt"):
            shapes |= {f"double_blocks.{block}.{stream}_{leaf}": shape for leaf, shape in DOUBLE.items()}
            norms += [f"double_blocks.{block}.{stream}_attn.norm.{norm}" for norm in NORMS]
    for block in range(blocks[1]):
        shapes |= {f"single_blocks.{block}.{leaf}": shape for leaf, shape in SINGLE.items()}
        norms += [f"single_blocks.{block}.norm.{norm}" for norm in NORMS]
    file = {}
    with torch.device(device):
        for name, (rows, columns) in shapes.items():
            file[f"{name}.lora_A.weight"] = torch.ones(RANK // scale, columns // scale)
            file[f"{name}.lora_B.weight"] = torch.ones(rows // scale, RANK // scale)
            file[f"{name}.lora_B.bias"] = torch.ones(rows // scale)
        file |= {f"{norm}.scale": torch.full((HEAD // scale,), 2.0) for norm in norms}
    return file


def by_part(file):
    """(part, parameter) -> (rows, columns) of the weight that the part is in, without the rows of a fused one."""
    sizes = {}
    for name, (rows, columns) in file.sizes.items():
        module, _, parameter = name.rpartition(".")
        parts = module.split(" + ")
        sizes |= {(part, parameter): (rows if len(parts) == 1 else None, columns) for part in parts}
    return sizes


def test_both_spellings_are_one_file():
    ours = LoRAFile.of(control())
    theirs = LoRAFile.of(_convert_bfl_flux_control_lora_to_diffusers(control()))
    assert by_part(ours).keys() == by_part(theirs).keys()
    known = {key: size for key, size in by_part(ours).items() if size[0]}
    assert {key: by_part(theirs)[key] for key in known} == known
    for file in (ours, theirs):
        sets = [module.tensors["set_weight"] for module in file.modules if "set_weight" in module.tensors]
        assert len(sets) == 19 * 4 + 38 * 2 and all(tensor.shape == (HEAD,) for tensor in sets)
        (first,) = (module for module in file.modules if "reshape_weight" in module.tensors)
        assert first.name == "transformer.x_embedder" and first.tensors["reshape_weight"].tolist() == [WIDTH, 128]
        assert file.notes == ()


def test_native_tensors_are_those_of_comfyuis_converter():
    """Its rules for these files: a prefix, `.diff_b` for the biases, norms set, and the first layer's shape."""
    file = control("cpu", 64, (1, 1))
    native = LoRAFile.of(file).native()
    prefix, first = "diffusion_model.", "diffusion_model.img_in.reshape_weight"
    expected = {
        prefix + key.replace(".lora_B.bias", ".diff_b").replace("_norm.scale", "_norm.set_weight")
        .replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor
        for key, tensor in file.items()
    }  # fmt: skip
    assert native.pop(first).tolist() == [WIDTH // 64, 2]
    alphas = {key for key in native if key.endswith(".alpha")}
    assert all(float(native[key]) == RANK // 64 for key in alphas)
    assert native.keys() - alphas == expected.keys()
    assert all(torch.equal(native[key], tensor) for key, tensor in expected.items())


def test_what_was_read_is_read_again(tmp_path):
    file = control("cpu", 64, (1, 1))
    save_file(file, tmp_path / "control.safetensors")
    whole, header = LoRAFile.read(tmp_path / "control.safetensors"), LoRAFile.scan(tmp_path / "control.safetensors")
    assert whole.sizes == header.sizes == LoRAFile.of(whole.native()).sizes
    older = {key.replace("_norm.set_weight", "_norm.scale.set_weight"): value for key, value in whole.native().items()}
    assert LoRAFile.of(older).sizes == whole.sizes and older.keys() != whole.native().keys()


@pytest.mark.parametrize("spelled", [lambda file: file, _convert_bfl_flux_control_lora_to_diffusers])
def test_a_control_lora_is_no_vector(spelled):
    reason = r"replacement weights can't be summed as a vector: the file gives a weight another shape"
    with pytest.raises(ValueError, match=rf"{reason}.*lora_A.weight\). Apply the file alone"):
        LoRAVector.from_state_dict(spelled(control()))


@pytest.mark.parametrize("without", ["img_in.", "single_blocks.0.norm.key_norm"])
def test_norms_of_other_files_are_left_out(without):
    """ComfyUI tells these files by both, and skips norms in others."""
    file = {key: tensor for key, tensor in control().items() if not key.startswith(without)}
    read = LoRAFile.of(file)
    assert not any({"set_weight", "reshape_weight"} & module.tensors.keys() for module in read.modules)
    left = sum(key.endswith(".scale") for key in file)
    assert any(note.startswith(f"{left} tensors are no LoRA weights and left out") for note in read.notes)
