"""A run's settings by recipe and user, and the recipe that our own files, sums and trainings record."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcm_core.accelerators import (
    SAMPLING,
    SEVERAL,
    described,
    lcm_recipe,
    levels,
    load_recipes,
    read_sampling,
    recognize,
    sampling_record,
    settled,
    summary,
)
from lcm_core.cli import main
from lcm_core.lora import METHODS, LoRAVector, combine
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.lowrank import Factors
from lcm_core.lora.sampling import distilled, recipe_of, recorded
from lcm_core.schedule import NoiseSchedule

RECIPES = load_recipes()[0]
SD = NoiseSchedule.scaled_linear()
NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def vector(recipe=None, seed=0, **metadata):
    g = torch.Generator().manual_seed(seed)
    factors = Factors(torch.randn(2, 768, generator=g), torch.randn(8, 2, generator=g), 2.0)
    return LoRAVector({NAME: factors}, {}, {**metadata, **(sampling_record(RECIPES[recipe]) if recipe else {})})


def kept(total):
    recipe = read_sampling(total.metadata)
    return recipe and recipe.name


def test_what_is_not_set_is_the_recipes():
    run = settled(RECIPES["hyper-sd-1step"])
    assert (run.default_steps, run.grid, run.gamma.default, run.cfg.default) == (1, "lcm", 0.999, 1)
    assert levels(settled(RECIPES["dmd2"]), None, SD) == [999, 749, 499, 249]
    assert settled(RECIPES["animatelcm"]).cfg.default == 1.5


def test_without_a_recipe_it_is_lcm_loras():
    assert summary(settled(None)) == "4 steps on the LCM grid, gamma 1, cfg 1"
    assert levels(settled(None), None, SD) == [999, 759, 499, 259]


def test_what_is_set_stands():
    run = settled(RECIPES["sdxl-lightning"], steps=8, gamma=0.0, cfg=0.0)
    assert (run.steps, run.grid, run.gamma.default, run.cfg.default) == ((8,), "trailing", 0, 0)
    assert settled(RECIPES["sdxl-lightning"], original_steps=20).grid == "lcm"
    trailing = settled(RECIPES["dmd2"], steps=2, grid="trailing", original_steps=20)
    assert levels(trailing, None, SD) == [999, 499]
    with pytest.raises(ValueError, match="steps 8 do not fit DMD2"):
        levels(settled(RECIPES["dmd2"], steps=8), None, SD)


def test_an_lcm_lora_is_sampled_on_its_own_grid():
    assert levels(settled(lcm_recipe(4)), None, SD) == [999, 749, 499, 249]
    assert lcm_recipe(1).steps == (1,) and lcm_recipe(3).default_steps == 3
    assert read_sampling(sampling_record(lcm_recipe(1))).original_steps == 1, "it can be read again"
    assert lcm_recipe(50, ("SD1.5",)).bases == RECIPES["lcm-lora"].bases and lcm_recipe(50, ("SD2.1",)).bases == (
        "SD2.1",
    )


def test_a_distilled_vector_says_its_grid():
    made = distilled(vector(), 20)
    assert read_sampling(made.metadata).original_steps == 20
    found = recognize("anything.safetensors", made.metadata, base="SD1.5")
    assert (found.evidence, found.recipe.original_steps) == ("metadata", 20)


def test_a_sum_with_styles_keeps_the_accelerators_recipe():
    style, lcm = vector(), vector("lcm-lora", 1)
    for total in (
        0.8 * style + 1.0 * lcm,
        combine([style, lcm], [0.8, 1.0]),
        combine([style, lcm], [0.8, 1.0], "ties"),
        (style + lcm).compress(1),
        lcm / 2 - style,
        combine([lcm, style], [1, 1], "project_out"),
    ):
        assert kept(total) == "lcm-lora"
    assert kept(lcm + vector("lcm-lora", 2)) == "lcm-lora", "two that are sampled alike"


def test_a_sum_of_several_accelerators_says_so_and_has_no_recipe():
    lcm, lightning = vector("lcm-lora"), vector("sdxl-lightning", 1)
    for total in (lcm + lightning, combine([lcm, lightning], [1, 0.5]), (lcm + lightning) + vector("dmd2", 2)):
        assert total.metadata[SAMPLING] == SEVERAL
        found = recognize("lcm-lora.safetensors", total.metadata)
        assert found.recipe is None and "sum of accelerators that are sampled differently" in found.why


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_an_accelerator_that_is_not_added_is_not_in_the_record(weight):
    style = vector()
    lcm = vector("lcm-lora", 1, **{"modelspec.title": "LCM-LoRA", "modelspec.author": "someone"})
    for total in (style + weight * lcm, combine([style, lcm], [1, weight])):
        assert SAMPLING not in total.metadata and "modelspec.title" not in total.metadata
        assert total.metadata["modelspec.author"] == "someone"
    assert kept(combine([style, lcm], [1, 1], "project_out")) is None
    assert [name for name, method in METHODS.items() if method.removes] == ["project_out"]


def test_a_released_file_is_known_by_its_name_and_what_is_made_of_it_says_so(tmp_path, capsys):
    for name, each in (
        ("sdxl_lightning_4step_lora", vector()),
        ("style", vector(seed=1)),
        ("lcm-lora", vector(seed=2)),
    ):
        each.save(tmp_path / f"{name}.safetensors", dtype=torch.float16)
    names = [str(tmp_path / f"{name}.safetensors") for name in ("sdxl_lightning_4step_lora", "style", "lcm-lora")]
    found = recipe_of(names[0], LoRAFile.scan(names[0]))
    assert (found.recipe.name, found.recipe.steps, found.evidence) == ("sdxl-lightning", (4,), "file name")
    out = tmp_path / "out.safetensors"

    def merged(expression):
        assert main(["merge", expression, "-o", str(out), "--force"]) == 0
        return LoRAVector.load(out).metadata

    assert read_sampling(merged(f"0.8*'{names[1]}' + 1*'{names[0]}'")).steps == (4,)
    assert SAMPLING not in merged(f"1*'{names[1]}' + 0*'{names[0]}'")
    assert merged(f"1*'{names[0]}' + 1*'{names[2]}'")[SAMPLING] == SEVERAL
    assert "sum of accelerators that are sampled differently" in capsys.readouterr().err


def test_modules_alone_are_no_record():
    modules = {f"unet.module.{i}": 64 for i in range(278)}
    found = recognize("mine.safetensors", modules=modules)
    assert found.recipe.name == "lcm-lora" and recorded(found) == {}


def test_a_recipe_is_described_by_its_settings():
    assert described(RECIPES["wan22-lightning-high"]) == {
        "name": "wan22-lightning-high", "bases": ["Wan 2.2"], "steps": 4, "grid": "trailing", "gamma": 0.0, "cfg": 1.0,
        "shift": 5.0, "shift_range": [3.0, 5.0], "strength": 1.0, "expert": "high",
    }  # fmt: skip
    lcm, dmd2 = described(RECIPES["lcm-lora"]), described(RECIPES["dmd2"])
    assert (lcm["steps_allowed"], lcm["original_steps"], lcm["cfg_range"]) == ([2, 3, 4, 5, 6, 7, 8], 50, [1.0, 2.0])
    assert dmd2["levels"] == [999, 749, 499, 249] and dmd2["grid"] == "timesteps"


def test_inspect_says_the_recipe_and_what_speaks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, each in (
        ("sdxl_lightning_4step_lora", vector()), ("style", vector(seed=1)), ("saved", vector("dmd2")),
        ("lcm-lora-and-hyper-sd15-4steps", vector()),
    ):  # fmt: skip
        each.save(f"{name}.safetensors", dtype=torch.float16)
    names = sorted(path.name for path in tmp_path.iterdir())
    found = {entry["file"].removesuffix(".safetensors"): entry for entry in inspected(capsys, *names)["files"]}
    assert found["sdxl_lightning_4step_lora"]["recipe"] == {
        "evidence": "file name", **described(replace(RECIPES["sdxl-lightning"], steps=(4,)))
    }  # fmt: skip
    assert found["sdxl_lightning_4step_lora"]["accelerator"] == "SDXL-Lightning"
    assert (found["saved"]["recipe"]["evidence"], found["saved"]["recipe"]["name"]) == ("metadata", "dmd2")
    assert found["style"]["recipe"] is None and found["style"]["recognized"].startswith("not known")
    two = found["lcm-lora-and-hyper-sd15-4steps"]
    assert two["recipe"] is None and "names more than one accelerator" in two["recognized"]
    assert main(["inspect", "sdxl_lightning_4step_lora.safetensors"]) == 0
    assert "recipe            evidence: file name" in capsys.readouterr().out


def inspected(capsys, *arguments):
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_recipes_of_ones_own_on_the_command_line(tmp_path, monkeypatch, capsys):
    """By name and by SHA-256, in what is made of the file too; a bad entry is a warning."""
    monkeypatch.chdir(tmp_path)
    vector().save("speedy.safetensors", dtype=torch.float16)
    vector(seed=1).save("renamed.safetensors", dtype=torch.float16)
    digest = hashlib.sha256(Path("renamed.safetensors").read_bytes()).hexdigest()
    entry = {"family": "Speedy", "bases": ["SD1.5"], "grid": "trailing", "steps": 3, "gamma": 0.5}
    table = {
        "speedy": {**entry, "files": ["speedy"]}, "hashed": {**entry, "sha256": {digest: "quick"}},
        "broken": {**entry, "gamma": 7},
    }  # fmt: skip
    Path("mine.json").write_text(json.dumps(table), encoding="utf-8")
    files = ["speedy.safetensors", "renamed.safetensors"]
    assert [entry["recipe"] for entry in inspected(capsys, *files)["files"]] == [None, None]
    result = inspected(capsys, *files, "--recipes", "mine.json")
    found = [(entry["recipe"]["name"], entry["recipe"]["evidence"]) for entry in result["files"]]
    assert found == [("speedy", "file name"), ("hashed", "sha256")]
    assert len(result["warnings"]) == 1 and "recipe 'broken': gamma is 7" in result["warnings"][0]
    for name in files:
        assert main(["convert", name, "-o", "out.safetensors", "--force", "--recipes", "mine.json", "--quiet"]) == 0
        assert read_sampling(LoRAVector.load("out.safetensors").metadata).family == "Speedy"
    assert main(["inspect", files[0], "--recipes", "none.json"]) == 1
    assert "none.json" in capsys.readouterr().err
