"""What tools/make.py lists, chooses, makes and checks."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tools.workshop import ROOT, Product


@pytest.fixture(scope="module")
def make():
    """tools/make.py, which is a script beside what it imports."""
    sys.path.append(str(ROOT / "tools"))
    yield importlib.import_module("make")
    sys.path.remove(str(ROOT / "tools"))


def test_every_part_is_found_by_its_file_and_makes_something(make):
    known = make.parts()
    assert {"workflows", "locale", "docs.links", "docs.reference", "pictures.help", "pictures.icon"} <= known.keys()
    for name, about in known.items():
        assert about, f"tools/parts/{name} does not say what it makes"
        assert callable(importlib.import_module(f"tools.parts.{name}").products)


def test_names_folders_and_all_choose_parts(make):
    known = make.parts()
    assert make.chosen(["locale", "docs.links"], known) == ["docs.links", "locale"], "in the order of the list"
    assert make.chosen(["docs", "docs.links"], known) == [name for name in known if name.startswith("docs.")]
    assert make.chosen(["all"], known) == list(known)
    with pytest.raises(make.StepError, match="no part icons, doc; there are docs.links, "):
        make.chosen(["icons", "doc", "locale"], known)


def test_a_file_is_written_where_it_differs_and_check_writes_nothing(make, monkeypatch, capsys):
    files = [ROOT / "output" / "test_make" / f"{name}.txt" for name in ("one", "two")]
    asked = []

    def products(workshop):
        for file in files:
            yield Product.text(file, lambda file=file: asked.append(file.stem) or "Σ")

    monkeypatch.setitem(sys.modules, "tools.parts.probe", SimpleNamespace(products=products))
    try:
        assert make.make(["probe"], "", check=True) == 2 and not files[0].exists()
        assert make.make(["probe"], "one", check=False) == 1
        assert files[0].read_bytes() == "Σ".encode() and not files[1].exists()
        assert asked == ["one", "two", "one"], "what is not asked for is not made"
        assert make.make(["probe"], "", check=True) == 1
    finally:
        files[0].unlink(missing_ok=True)
        files[0].parent.rmdir()
    said = capsys.readouterr().out
    assert "probe: output/test_make/one.txt: written, 2 bytes" in said and "two.txt: is not what is made" in said


def test_the_list_and_what_needs_no_comfyui_from_the_command_line():
    def run(*arguments):
        command = [sys.executable, str(ROOT / "tools" / "make.py"), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)

    listed = run("--list").stdout
    assert listed == run().stdout and "docs.reference            docs/python-api.md: " in listed
    checked = run("docs.reference", "docs.links", "docs.recipes", "pictures.icon", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "pictures.icon: docs/banner.png: as it was" in checked.stdout
    unknown = run("nothing")
    assert unknown.returncode == 1 and unknown.stderr.startswith("there is no part nothing; there are ")
