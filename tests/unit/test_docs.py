"""The documents: links, code, the reference and the messages that they quote are those of the source."""

import ast
import re
import shutil
from runpy import run_path

import pytest

from tools.parts.docs import reference
from tools.parts.docs.links import DOCS, corrected
from tools.workshop import ROOT

CODE = [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "lcm_core").rglob("*.py")]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", reference.FILE.read_text(encoding="utf-8").partition(reference.MARK)[0], re.M | re.S
)


def test_links_of_the_documents():
    problems = []
    for doc in DOCS:
        if corrected(doc, problems) != doc.read_text(encoding="utf-8"):
            problems.append(f"{doc.name}: line numbers moved; run python tools/make.py docs")
    assert problems == []


def test_links_within_a_document_lead_to_its_headings():
    for doc in DOCS:
        text = doc.read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-").lower() for title in titles}
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set(), doc.name


def texts(source: str) -> list[str]:
    """The texts of a Python source, with … for what an f-string fills in."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    filled = [[part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
              for node in nodes if isinstance(node, ast.JoinedStr)]  # fmt: skip
    return plain + ["".join(parts) for parts in filled]


def test_troubleshooting_quotes_messages_as_the_source_has_them():
    known = [text for path in CODE for text in texts(path.read_text(encoding="utf-8"))]
    quoted = re.findall(r"^> `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    assert [message for message in quoted if not any(message in text for text in known)] == []


def test_reference_is_what_the_docstrings_say():
    written = reference.FILE.read_text(encoding="utf-8").partition(f"{reference.MARK}\n")[2]
    assert written == reference.reference(), "run `python tools/make.py docs`"


@pytest.mark.parametrize("code", EXAMPLES, ids=["add", "sample", "distil", "any model"])
def test_examples_run(code, tmp_path, monkeypatch):
    for name in ("style", "lcm"):
        shutil.copyfile(ROOT / "pocket" / "weights" / f"{name}_lora.safetensors", tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    names = run_path("example.py")
    assert len(list(tmp_path.iterdir())) == 4, "the example wrote no file"
    if "after" in names:
        assert names["after"] < 0.75 * names["before"]
