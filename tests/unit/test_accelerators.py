"""Recipes as data: the package's table, a user's file with all that can be wrong in it, and a file's own entry."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lcm_core.accelerators import SAMPLING, Span, load_recipes, read_sampling, recognize, sampling_record
from lcm_core.accelerators.fields import READERS
from lcm_core.accelerators.reading import read_recipe, without_recipe, write_recipe
from lcm_core.accelerators.recognition import _compiled
from tools.parts.docs import recipes as recipe_table

ROOT = Path(__file__).resolve().parents[2]
RECIPES = load_recipes()[0]
ENTRY = {"family": "Speedy", "bases": ["SDXL"], "grid": "trailing", "steps": 4, "gamma": 0}
EXAMPLE = re.search(r"^```json\n(.*?)^```", recipe_table.FILE.read_text(encoding="utf-8"), re.M | re.S)[1]


def extend(tmp_path, text):
    path = tmp_path / "recipes.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return load_recipes(path)


def test_each_row_has_two_sources_and_what_finds_its_files():
    for name, recipe in RECIPES.items():
        assert recipe.name == name and recipe.files
        publishers = {re.match(r"https://([^/]+/[^/]+)", address)[1] for address in recipe.sources}
        assert len(publishers) >= 2, name
        assert recipe.default_steps in recipe.steps and len(recipe.note) < 200


def test_the_table_and_its_recognition_do_without_torch():
    code = (
        "import sys; from lcm_core.accelerators import load_recipes, recognize; load_recipes(); "
        "print(recognize('sdxl_lightning_4step_lora').recipe.name, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert run.stdout.split() == ["sdxl-lightning", "False"], run.stderr


def test_the_table_belongs_to_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    data = re.search(r"^\[tool\.setuptools\.package-data\]\nlcm_core = (\[.+\])$", text, re.M)
    assert "accelerators/*.json" in json.loads(data[1])


def test_the_documents_table_is_the_data():
    text = recipe_table.FILE.read_text(encoding="utf-8")
    assert recipe_table.written(text) == text, "run `python tools/make.py docs`"
    assert all(f"| `{name}` " in text for name in RECIPES)


def test_the_documents_example_adds_a_recipe(tmp_path):
    recipes, faults = extend(tmp_path, EXAMPLE)
    assert faults == [] and recipes.keys() - RECIPES.keys() == {"speedy"}
    found = recognize("Speedy-SDXL_4steps.safetensors", recipes=recipes)
    assert found.recipe == replace(recipes["speedy"], steps=(4,), default_steps=4)
    assert recipes["speedy"].cfg == Span(1, 1, 2) and recipes["speedy"].strength == Span(0.9, 0.9, 0.9)


def test_the_documents_list_every_field():
    text = recipe_table.FILE.read_text(encoding="utf-8").partition("| field |")[2]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", text, re.M)))) == READERS.keys()


def test_a_users_entry_replaces_the_tables_of_its_name(tmp_path):
    recipes, faults = extend(tmp_path, {"sdxl-lightning": ENTRY})
    assert faults == [] and recipes["sdxl-lightning"].family == "Speedy" and recipes["sdxl-lightning"].files == ()
    assert {name: recipe for name, recipe in recipes.items() if name != "sdxl-lightning"} == {
        name: recipe for name, recipe in RECIPES.items() if name != "sdxl-lightning"
    }
    assert load_recipes()[0] == RECIPES, "the table itself is as it was"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": ""}, "family is '' and must be a text"),
        ({"bases": []}, "bases is [] and must be a list of these bases: SSD-1B, SDXL"),
        ({"bases": ["SDLX"]}, "bases is ['SDLX'] and must be a list of these bases"),
        ({"bases": [["SDXL"]]}, "bases is [['SDXL']] and must be a list of these bases"),
        ({"grid": "karras"}, 'grid is \'karras\' and must be "lcm", "trailing"'),
        ({"grid": {"sigmas": [0.5, 0.7]}, "steps": 2}, "grid is {'sigmas': [0.5, 0.7]} and must be"),
        ({"grid": {"sigmas": [1.5]}, "steps": 1}, "grid is {'sigmas': [1.5]} and must be"),
        ({"grid": {"timesteps": [999.5]}, "steps": 1}, "grid is {'timesteps': [999.5]} and must be"),
        ({"grid": {"timesteps": []}}, "grid is {'timesteps': []} and must be"),
        ({"grid": {"timesteps": [999, 499]}}, "steps allows 4, but grid gives 2 timesteps"),
        ({"steps": 0}, "steps is 0 and must be a whole number from 1 to 1000"),
        ({"steps": True}, "steps is True and must be"),
        ({"steps": 4.0}, "steps is 4.0 and must be"),
        ({"steps": {"default": 3, "allowed": [2, 4]}}, "with default among them"),
        ({"steps": {"default": 2}}, "steps is {'default': 2} and must be"),
        ({"grid": "lcm", "steps": 60}, "steps allows 60, more than the 50 of original_steps"),
        ({"gamma": 1.5}, "gamma is 1.5 and must be a number from 0 to 1"),
        ({"gamma": float("nan")}, "gamma is nan and must be a number from 0 to 1"),
        ({"cfg": 0}, "cfg is 0 and must be a number from 1 to 100"),
        ({"cfg": {"default": 3, "low": 1, "high": 2}}, "with low ≤ default ≤ high"),
        ({"cfg": {"default": 1, "low": 1, "top": 2}}, "cfg is {'default': 1, 'low': 1, 'top': 2} and must be"),
        ({"cfg": "7"}, "cfg is '7' and must be a number"),
        ({"shift": 0}, "shift is 0 and must be a number from 0.001 to 1000"),
        ({"strength": float("inf")}, "strength is inf and must be a number from -10 to 10"),
        ({"expert": "middle"}, 'expert is \'middle\' and must be "high", "low" or null'),
        ({"files": ["("]}, "files is ['('] and must be a list of regular expressions"),
        ({"files": ["x*"]}, "files is ['x*'] and must be a list of regular expressions"),
        ({"files": ["(?P<stages>4)"]}, "with no other named group than steps"),
        ({"files": "speedy"}, "files is 'speedy' and must be a list"),
        ({"files": ["x" * 201]}, "of up to 200 characters"),
        ({"words": ["Two words"]}, "words is ['Two words'] and must be a list of words of lower-case"),
        ({"sha256": {"AB": "x"}}, "sha256 is {'AB': 'x'} and must be an object, SHA-256 in 64 lower-case"),
        ({"modules": [[788, 64]]}, "modules is [[788, 64]] and must be a list of [number of modules, rank, base]"),
        ({"sources": ["a friend"]}, "sources is ['a friend'] and must be a list of addresses"),
        ({"original_steps": -1}, "original_steps is -1 and must be a whole number from 1 to 1000"),
        ({"strenght": 1}, "'strenght' is no field (the fields are grid, steps, family"),
    ],
)
def test_a_bad_entry_is_named_with_its_field_and_skipped(tmp_path, change, said):
    recipes, faults = extend(tmp_path, {"bad": ENTRY | change, "good": ENTRY})
    assert recipes.keys() - RECIPES.keys() == {"good"}
    (fault,) = faults
    assert "recipe 'bad'" in fault and said in fault and "\n" not in fault
    assert fault.endswith("recipes.json, where the entry is skipped")


def test_all_faults_of_an_entry_are_named(tmp_path):
    (fault,) = extend(tmp_path, {"bad": {"family": 3, "grid": "x"}})[1]
    for part in ("family is 3", "grid is 'x'", "bases is missing", "steps is missing", "gamma is missing"):
        assert part in fault


@pytest.mark.parametrize("entry", [None, 3, [], "recipe"])
def test_an_entry_that_is_no_object_is_named(tmp_path, entry):
    recipes, faults = extend(tmp_path, {"bad": entry})
    assert recipes == RECIPES and "recipe 'bad' is" in faults[0] and "must be an object" in faults[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON (Expecting property name"),
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "must be an object, name of a recipe -> its fields"),
        ('{"": {}}', "recipe '' has no name"),
    ],
)
def test_a_file_that_is_no_table_leaves_the_packages_own(tmp_path, text, said):
    recipes, faults = extend(tmp_path, text)
    assert recipes == RECIPES and len(faults) == 1 and said in faults[0]


def test_a_name_that_is_there_twice_is_told(tmp_path):
    one = json.dumps(ENTRY)
    recipes, faults = extend(tmp_path, f'{{"a": {one}, "a": {one.replace("Speedy", "Other")}}}')
    assert recipes["a"].family == "Other" and faults[0].startswith("'a' is twice in ")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_recipes(tmp_path / "none.json")


@pytest.mark.parametrize("name", RECIPES)
def test_a_files_own_entry_says_all_that_sampling_needs(name):
    recipe = RECIPES[name]
    record = sampling_record(recipe)
    assert record.keys() == {SAMPLING} and json.loads(record[SAMPLING])["name"] == name
    assert read_sampling(record) == replace(recipe, files=(), words=(), sha256={}, modules=())


def test_what_a_recipe_writes_is_what_it_reads():
    recipe = replace(RECIPES["wan22-lightning-high"], given=(1.0, 0.5), grid="sigmas", steps=(2,), default_steps=2)
    entry = json.loads(json.dumps(write_recipe(recipe)))
    assert entry["grid"] == {"sigmas": [1.0, 0.5]} and entry["expert"] == "high" and "files" not in entry
    assert read_recipe(recipe.name, entry) == replace(recipe, files=(), words=())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LCM", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[]", "no recipe with a name"),
        ("{}", "no recipe with a name"), ('{"name": 3}', "no recipe with a name"),
        ('{"name": "x"}', "family is missing"),
        (json.dumps({"name": "x", **ENTRY, "gamma": 2}), "gamma is 2 and must be"),
    ],
)  # fmt: skip
def test_a_damaged_entry_of_a_file_is_an_error_that_says_so(text, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_sampling({SAMPLING: text})
    assert str(error.value).startswith(SAMPLING) and str(error.value).endswith(
        "save the LoRA again to put the entry right"
    )
    assert len(str(error.value)) < 700


def test_a_file_that_says_nothing_has_no_entry():
    assert read_sampling({"modelspec.title": "x"}) is None


def test_patterns_answer_long_names_quickly():
    """A name of 4000 characters takes no pattern longer than a moment: none backtracks without end."""
    names = ["wan2 2 " + "t2v a14b " * 400, "lightx2v " + "14b t2v 480p " * 300, "hyper sd" * 500, "a " * 2000]
    patterns = [pattern for recipe in RECIPES.values() for pattern in recipe.files] + [*without_recipe()]
    code = "import re, sys, json; [re.search(p, n) for p in json.loads(sys.argv[1]) for n in json.loads(sys.argv[2])]"
    compiled = [_compiled(pattern).pattern for pattern in patterns]
    subprocess.run([sys.executable, "-c", code, json.dumps(compiled), json.dumps(names)], check=True, timeout=20)
