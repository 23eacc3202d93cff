"""Help pages and translations, as the server hands them to the front end, against the nodes that it describes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tools.parts.docs import nodes as node_table
from tools.parts.locale import english
from tools.parts.pictures.help import LIMIT, Studio

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}  # where the front end looks, in the order zh, en for a Chinese user
HEADINGS = {"en": ("Inputs", "Outputs"), "zh": ("输入", "输出")}
MESSAGE_SYNTAX = set("{}|@")  # what the front end's translation library does not show as it is
PICTURE = re.compile(r"!\[(.+)\]\((.+)\)")
NUMBER = re.compile(r"-?\d[\d.]*(?:e-?\d+)?")

languages = pytest.mark.parametrize("language", PAGES)


@pytest.fixture(scope="module")
def nodes(host):
    return {key: node for key, node in host.object_info().items() if key.startswith("LCMLoRA_")}


@pytest.fixture(scope="module")
def translations(host):
    return json.loads(host.get("/i18n"))


@pytest.fixture(scope="module")
def docs(host, nodes):
    """docs(path): a file of web/docs."""
    (module,) = {node["python_module"] for node in nodes.values()}
    return lambda path: host.get(f"/extensions/{module.partition('.')[2]}/docs/{path}")


@pytest.fixture(scope="module")
def pages(nodes, docs):
    """language -> node -> its help page."""
    return {language: {node: docs(path.format(node)).decode() for node in nodes} for language, path in PAGES.items()}


def texts(entry, path=()):
    """(path, text) of every text in nested dicts."""
    if isinstance(entry, str):
        return {path: entry}
    return {key: text for name, part in entry.items() for key, text in texts(part, (*path, name)).items()}


def inputs(node):
    """name -> (type, options) of an /object_info entry, without the growing ones that only newer hosts have."""
    both = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return {name: spec for name, spec in both.items() if spec[0] != "COMFY_AUTOGROW_V3"}


def items(page, heading):
    """(name in bold, name in code, text) of each list item of a part of a page."""
    part = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^- \*\*(.+?)\*\*(?: `(\w+)`)?(.+)", part, re.MULTILINE)


def stated(options):
    """The numbers or the word that a page gives of an input in parentheses: its range and default."""
    default = options.get("default")
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, (int, float)):
        return [default] if options["max"] >= 2**32 - 1 else [options["min"], options["max"], default]
    return None if options.get("multiline") else default or None


def test_english_is_what_the_nodes_say(nodes, translations):
    found = translations["en"]["nodeDefs"]
    assert found == english(nodes, found), "run `python tools/make.py locale`"


@languages
def test_every_node_input_and_output_is_translated(language, nodes, translations):
    found, wanted = texts(translations[language]["nodeDefs"]), texts(english(nodes, {}))
    assert found.keys() ^ wanted.keys() == set()
    assert [path for path, text in found.items() if not text.strip() or MESSAGE_SYNTAX & set(text)] == []


def test_chinese_is_chinese(nodes, translations):
    untranslated = [
        path
        for path, text in texts(translations["zh"]["nodeDefs"]).items()
        if path[-1] in ("display_name", "description", "tooltip") and not re.search("[\u4e00-\u9fff]", text)
    ]
    categories = {part for node in nodes.values() for part in node["category"].split("/")[1:]}
    assert (untranslated, categories - translations["zh"]["nodeCategories"].keys()) == ([], set())


@languages
def test_every_page_has_the_nodes_title_and_lists_its_inputs_and_outputs(language, nodes, translations, pages):
    for node in nodes:
        names, page = translations[language]["nodeDefs"][node], pages[language][node]
        listed_inputs, listed_outputs = (items(page, heading) for heading in HEADINGS[language])
        code = {name: name if language == "zh" else "" for name in names["inputs"]}
        assert page.startswith(f"# {names['display_name']}\n")
        assert {item[:2] for item in listed_inputs} == {(e["name"], code[name]) for name, e in names["inputs"].items()}
        assert [item[0] for item in listed_outputs] == [output["name"] for output in names["outputs"].values()]


@languages
def test_pages_state_the_inputs_ranges_and_defaults(language, nodes, pages):
    wrong = []
    for node, description in nodes.items():
        listed = {code or name: text for name, code, text in items(pages[language][node], HEADINGS[language][0])}
        for name, (_, options) in inputs(description).items():
            said = re.search(r"[(（](.*?)[)）]", listed[name])
            said = said[1].replace("−", "-") if said else ""
            wanted = stated(options)
            if isinstance(wanted, list):
                right = [float(number) for number in NUMBER.findall(said)] == wanted
            else:
                right = wanted is None or wanted in said
            wrong += [] if right else [(node, name, wanted, said)]
    assert wrong == []


@languages
def test_pictures_are_there_and_small(language, docs, pages):
    for node, page in pages[language].items():
        shown = PICTURE.findall(page)
        assert [path for _, path in shown] == ([f"{node}/example.jpg"] if hasattr(Studio, node) else [])
        for _, path in shown:
            data = docs(path)
            assert len(data) <= LIMIT
            assert Image.open(io.BytesIO(data)).width <= 1000


def test_no_page_or_picture_is_of_a_node_that_is_gone(nodes):
    expected = {path.format(node) for node in nodes for path in PAGES.values()}
    expected |= {f"{node}/example.jpg" for node in nodes if hasattr(Studio, node)}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.*")} == expected


def test_the_list_of_nodes_is_current(nodes):
    written = node_table.FILE.read_text(encoding="utf-8")
    assert written == node_table.page(nodes), "run `python tools/make.py docs`"
