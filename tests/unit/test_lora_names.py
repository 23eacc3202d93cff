"""Modules of every transformer family under the names that diffusers, the original networks and trainers give them."""

import diffusers
import pytest
import torch
from diffusers.pipelines.ltx2 import connectors
from full_transformers import NETWORKS, full
from tiny_transformers import LAYERS

from lcm_core.lora import LoRAVector
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.fusion import part_rows
from lcm_core.lora.names import flat, read_name, read_names
from lcm_core.lora.names.family import each
from lcm_core.lora.names.table import canonical_paths, families, is_shared
from lcm_core.lora.names.writing import write_names

FAMILIES = {family.name: family for family in families()}


@pytest.mark.parametrize("family", NETWORKS)
def test_every_layer_of_diffusers_network_is_known_and_written_back(family):
    layers = list(full(family))
    assert all(canonical_paths(layer) or is_shared(layer) for layer in layers)
    for prefix in ("transformer.", "", "base_model.model.", "transformer.base_model.model."):
        read = list(read_names(prefix + layer for layer in layers).values())
        assert [spelling.dotted for spelling in read] == [f"transformer.{layer}" for layer in layers]
    for prefix in ("lora_transformer_", "lycoris_"):
        assert list(read_names(prefix + flat(layer) for layer in layers).values()) == read
    parts = [part for spelling in read for part in spelling.parts]
    assert len(set(parts)) == len(parts)
    written = {place.name for place in write_names(parts, "peft", [family])}
    assert written == {f"transformer.{layer}" for layer in layers}


@pytest.mark.parametrize(("family", "part", "kind", "config"), [
    ("Anima", "text_conditioner", "AnimaTextConditioner", {"source_dim": 32, "target_dim": 16}),
    ("LTX-2", "connectors", "LTX2TextConnectors", {
        "video_gated_attn": True, "audio_gated_attn": True, "caption_channels": 8, "text_proj_in_factor": 1,
    }),
])  # fmt: skip
def test_what_diffusers_keeps_beside_the_transformer_is_the_network_s(family, part, kind, config):
    module = getattr(diffusers, kind, None) or getattr(connectors, kind)
    with torch.device("meta"):
        network = module(**config)
    layers = [f"{part}.{name}" for name, layer in network.named_modules() if isinstance(layer, LAYERS)]
    layers = [name for name in layers if "text_proj_in" not in name]  # of ComfyUI's text encoder
    parts = [part for layer in layers for part in read_name(layer).parts]
    assert {place.name for place in write_names(parts, "peft", [family])} == set(layers)
    written = {place.name for place in write_names(parts, "native", [family])}
    assert all(name.startswith(("diffusion_model.llm_adapter.", "diffusion_model.video_embeddings_connector.",
                                "diffusion_model.audio_embeddings_connector.")) for name in written)  # fmt: skip


@pytest.mark.parametrize("dialect", ["native", "kohya", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_reads_back_from_every_dialect(family, dialect):
    parts = [f"transformer.{path.format(3, 1)}" for path in FAMILIES[family].paths()]
    places = write_names(parts, dialect, [family])
    assert sorted(part for place in places for part in place.parts) == sorted(parts)
    read = read_names(place.name for place in places)
    assert [(read[place.name].parts, read[place.name].swapped) for place in places] == [
        (place.parts, place.swapped) for place in places
    ]
    if dialect == "native":
        native = FAMILIES[family].native
        assert {place.name for place in places} == {f"diffusion_model.{path.format(3, 1)}" for path in native}


@pytest.mark.parametrize(("family", "shared", "beside", "canonical"), [
    ("Lumina 2", "norm_out.linear_1", "layers.0.attn.to_q", "transformer.final_layer.adaLN_modulation.1"),
    ("Lumina 2", "norm_out.linear_2", "layers.0.norm1.linear", "transformer.proj_out"),
    ("Cosmos Predict2", "norm_out.linear_2", "transformer_blocks.0.attn1.to_q", "transformer.norm_out.linear_2"),
    ("ERNIE-Image", "time_embedding.linear_1", "layers.0.self_attention.to_q",
     "transformer.time_text_embed.timestep_embedder.linear_1"),
    ("", "time_embedding.linear_1", "mid_block.resnets.0.conv1", "unet.time_embedding.linear_1"),
])  # fmt: skip
def test_the_other_names_tell_what_a_shared_name_is(family, shared, beside, canonical):
    prefix = "transformer." if family else "unet."
    names = [f"{prefix}{beside}", f"{prefix}{shared}"]
    assert read_names(names)[names[1]].name == canonical
    file = LoRAFile.of({key: tensor for name in names for key, tensor in lora(name, 4, 4).items()})
    assert [module.name for module in file.modules][1] == canonical
    metadata = file.lasting_metadata
    assert family in metadata.get("lcm_lora.families", "")
    alone = {key: tensor for key, tensor in lora(names[1], 4, 4).items()}
    assert LoRAFile.of(alone, {"lcm_lora.families": family} if family else {}).modules[0].name == canonical
    vector = file.vector()
    for dialect in ("kohya", "peft", "native"):
        again = LoRAVector.from_state_dict(vector.state_dict(dialect), vector.metadata)
        assert again.modules.keys() == vector.modules.keys()
    assert LoRAFile.of(file.native()).sizes == file.sizes


def test_a_spelling_means_one_thing_in_all_families():
    meaning = {}
    for family in families():
        for spellings in (family.native, family.diffusers, family.also):
            for spelling, paths in spellings.items():
                if spelling in family.shared:
                    continue
                assert meaning.setdefault(spelling, each(paths)) == each(paths), spelling


FUSED = [
    (family.name, spelling, paths)
    for family in families()
    for spelling, paths in (*family.native.items(), *family.also.items())
    if len(each(paths)) > 1
]


@pytest.mark.parametrize(("family", "spelling", "paths"), FUSED, ids=[f"{name} {path}" for name, path, _ in FUSED])
def test_a_fused_lora_is_the_split_one(family, spelling, paths):
    """The same Delta W under the fused name, as one LoRA, and under its parts' names, as LoRAs of other factors."""
    torch.manual_seed(0)
    columns, module = 8, spelling.format(5)
    rows = {2: 16, 3: 24, 4: 48}[len(paths)]
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    fused = LoRAVector.from_state_dict({
        f"diffusion_model.{module}.lora_A.weight": down,
        f"diffusion_model.{module}.lora_B.weight": up,
        f"diffusion_model.{module}.alpha": torch.tensor(1.0),
    })  # fmt: skip
    parts = {}
    turn = torch.linalg.qr(torch.randn(2, 2))[0]
    for path, rest in zip(paths, (up * 0.5).split(part_rows(spelling, len(paths), rows, columns)), strict=True):
        parts[f"transformer.{path.format(5)}.lora_A.weight"] = turn @ down
        parts[f"transformer.{path.format(5)}.lora_B.weight"] = rest @ turn.T
    other = LoRAVector.from_state_dict(parts)
    assert fused.modules.keys() == other.modules.keys() == {f"transformer.{path.format(5)}" for path in paths}
    assert fused.norm() == pytest.approx(float((up @ down / 2).norm()), rel=1e-6)
    assert (fused - other).norm() < 1e-6 * fused.norm()
    assert fused.cosine(other) == pytest.approx(1)
    saved = fused.state_dict("native")
    total = (fused + other).state_dict("native")
    name = f"diffusion_model.{module}" if module in _native(family) else None
    if name:
        assert {key: tuple(t.shape) for key, t in saved.items()} == {
            f"{name}.lora_down.weight": (2, columns), f"{name}.lora_up.weight": (rows, 2), f"{name}.alpha": (),
        }  # fmt: skip
        delta = total[f"{name}.lora_up.weight"] @ total[f"{name}.lora_down.weight"]
        delta *= total[f"{name}.alpha"] / len(total[f"{name}.lora_down.weight"])
        torch.testing.assert_close(delta, up @ down)


def _native(family):
    return {path.format(5) for path in FAMILIES[family].native}


def lora(module, rows, columns, rank=2):
    return {f"{module}.lora_A.weight": torch.randn(rank, columns), f"{module}.lora_B.weight": torch.randn(rows, rank)}


def test_diffusers_norm_out_is_the_originals_with_its_halves_exchanged():
    torch.manual_seed(0)
    theirs, original = "transformer.norm_out.linear", "final_layer.adaLN_modulation.1"
    file = lora(theirs, 8, 4) | {f"{theirs}.diff_b": torch.randn(8)}
    other = {
        key.replace(theirs, original): tensor if key.endswith("lora_A.weight") else tensor.roll(4, 0)
        for key, tensor in file.items()
    }
    one, same = LoRAVector.from_state_dict(file), LoRAVector.from_state_dict(other)
    assert (one - same).norm() == 0
    told = "Flux, Flux.2, HunyuanVideo, HunyuanVideo 1.5, HunyuanImage, Stable Diffusion 3, AuraFlow, Qwen-Image"
    assert one.metadata["lcm_lora.families"] == told
    assert torch.equal(one.state_dict("native")[f"{theirs}.diff_b"], file[f"{theirs}.diff_b"])
    flux = LoRAVector.from_state_dict(file | lora("single_blocks.0.modulation.lin", 12, 4)).state_dict("native")
    assert torch.equal(flux[f"diffusion_model.{original}.diff_b"], other[f"{original}.diff_b"])
    assert torch.equal(flux[f"diffusion_model.{original}.lora_up.weight"], other[f"{original}.lora_B.weight"])


def test_only_a_weight_of_two_rows_a_column_has_halves_to_exchange():
    """SD3's last block has (shift, scale) of 2 rows a column, the others six."""
    module = "transformer_blocks.0.norm1_context.linear"
    for rows, moved in ((8, 4), (24, 0)):
        file = lora(f"transformer.{module}", rows, 4) | lora("joint_blocks.0.x_block.mlp.fc1", 16, 4)
        native = LoRAVector.from_state_dict(file).state_dict("native")
        up = native["diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.lora_up.weight"]
        assert torch.equal(up, file[f"transformer.{module}.lora_B.weight"].roll(moved, 0))


def test_parts_that_are_not_all_there_are_saved_under_diffusers_names():
    torch.manual_seed(0)
    block = "transformer.transformer_blocks.1.attn"
    file = lora(f"{block}.to_q", 4, 4) | lora(f"{block}.to_v", 4, 4) | lora("double_blocks.1.img_mlp.0", 16, 4)
    vector = LoRAVector.from_state_dict(file)
    for dialect, prefix in (("native", f"{block}."), ("kohya", f"lora_transformer_{flat(block.partition('.')[2])}_")):
        saved = vector.state_dict(dialect)
        assert {f"{prefix}{leaf}.lora_down.weight" for leaf in ("to_q", "to_v")} < saved.keys()
        assert (LoRAVector.from_state_dict(saved) - vector).norm() < 1e-6


def test_biases_of_fused_weights_are_split_with_them():
    torch.manual_seed(0)
    module = "single_blocks.0.linear1"
    bias = torch.arange(28.0)
    vector = LoRAVector.from_state_dict(lora(module, 28, 4) | {f"{module}.diff_b": bias})
    assert [len(diff) for diff in vector.diffs.values()] == [4, 4, 4, 16]
    assert torch.equal(vector.state_dict("native")[f"diffusion_model.{module}.diff_b"], bias)
    with pytest.raises(ValueError, match="linear1.diff_b is the bias of a fused weight that the file has no factors"):
        LoRAVector.from_state_dict({f"{module}.diff_b": bias})


def test_modules_of_several_networks_are_not_guessed_at():
    vector = LoRAVector.from_state_dict(lora("transformer.transformer_blocks.0.attn.to_q", 4, 4))
    assert "diffusion_model" not in str([*vector.state_dict("native")])
    with pytest.raises(ValueError, match="other names in each of .*Stable Diffusion 3.*Qwen-Image.*save as native"):
        vector.state_dict("kohya")
    qwen = LoRAVector.from_state_dict(lora("lora_unet_transformer_blocks_0_img_mod_1", 4, 4)) + vector
    assert "lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight" in qwen.state_dict("kohya")


def test_a_module_that_is_there_fused_and_split_is_refused():
    file = lora("double_blocks.0.img_attn.qkv", 12, 4) | lora("transformer.transformer_blocks.0.attn.to_k", 4, 4)
    with pytest.raises(ValueError, match=r"are the same module transformer\.transformer_blocks\.0\.attn\.to_k twice"):
        LoRAVector.from_state_dict(file)


@pytest.mark.parametrize("shape", [(13, 4), (4, 4), (3, 4)])
def test_a_fused_weight_of_other_sizes_is_refused(shape):
    with pytest.raises(ValueError, match="can't be the 3 parts that its name says"):
        LoRAVector.from_state_dict(lora("double_blocks.0.img_attn.qkv", *shape))


def test_parts_that_no_fused_weight_has_are_not_saved_as_one():
    block = "double_blocks.0.img_mlp.0"
    parts = [f"transformer.transformer_blocks.0.attn.to_{leaf}" for leaf in "qkv"]
    for sizes in ([(4, 4), (4, 4), (4, 6)], [(6, 4), (4, 4), (4, 4)]):
        file = lora(block, 16, 4)
        for part, (rows, columns) in zip(parts, sizes, strict=True):
            file |= lora(part, rows, columns)
        vector = LoRAVector.from_state_dict(file)
        with pytest.raises(ValueError, match="which no network has in one weight; save as peft"):
            vector.state_dict("native")
        assert (LoRAVector.from_state_dict(vector.state_dict("peft")) - vector).norm() < 1e-6


@pytest.mark.parametrize(("ratio", "family", "spelling"), [(4, "Flux", "ff.net.0.proj"), (6, "Flux.2", "ff.linear_in")])
def test_an_mlps_size_tells_flux_from_flux_2(ratio, family, spelling):
    vector = LoRAVector.from_state_dict(lora("lora_unet_double_blocks_3_img_mlp_0", 4 * ratio, 4))
    assert family in vector.metadata["lcm_lora.families"].split(", ")
    assert f"transformer.transformer_blocks.3.{spelling}.lora_A.weight" in vector.state_dict("peft")


def test_krea_2_s_output_is_read_without_its_number():
    """As some tools write it, which ComfyUI reads too."""
    for block in ("transformer_blocks.3", "text_fusion.layerwise_blocks.1", "text_fusion.refiner_blocks.0"):
        for name in (f"transformer.{block}.attn.to_out", f"lycoris_{flat(block)}_attn_to_out"):
            assert read_name(name).name == f"transformer.{block}.attn.to_out.0"


def test_stray_tensors_are_left_out_and_counted():
    file = lora("diffusion_model.blocks.0.self_attn.q", 4, 4)
    stray = {"diffusion_model.blocks.0.diff_m": torch.randn(1, 6, 4), "blocks.0.norm.key_norm.scale": torch.ones(4)}
    vector = LoRAVector.from_state_dict(file | stray)
    assert list(vector.modules) == ["transformer.blocks.0.attn1.to_q"] and not vector.diffs
    assert any("2 tensors are no LoRA weights and left out" in note for note in vector.notes)
    assert not any("left out" in note for note in LoRAVector.from_state_dict(file).notes)
    assert len(LoRAFile.of(file | stray).native()) == 2


def test_a_wan_modulation_is_a_difference_like_any_other():
    name, diff = "diffusion_model.blocks.0.modulation", torch.randn(1, 6, 4)
    vector = LoRAVector.from_state_dict({f"{name}.diff": diff})
    torch.testing.assert_close(vector.delta("transformer.blocks.0.scale_shift_table"), diff)
    assert {key.rpartition(".lora_")[0] or key.rpartition(".")[0] for key in vector.state_dict("native")} == {name}
