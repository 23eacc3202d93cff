"""README.md, docs/*.md: links to lines of code, [`name`](../path/file.py#L12), lead to where `name` is defined."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.workshop import ROOT, Product, Workshop

DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "pocket" / "README.md"]
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def products(workshop: Workshop) -> Iterator[Product]:
    for doc in DOCS:
        yield Product.text(doc, lambda doc=doc: mended(doc))


def mended(doc: Path) -> str:
    """The document with right line numbers; ValueError names the links that lead nowhere."""
    problems: list[str] = []
    text = corrected(doc, problems)
    if problems:
        raise ValueError("\n".join(problems))
    return text


def definition(source: Path, name: str) -> int | None:
    """The line, from 1, where a dotted name's last part is defined as a function, class, method or constant."""
    last = re.escape(name.strip("`").removesuffix("()").rpartition(".")[2])
    pattern = re.compile(rf"\s*(?:async )?(?:def|class) {last}\b|{last}\b.*=")
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if pattern.match(line):
            return number
    return None


def corrected(doc: Path, problems: list[str]) -> str:
    """The document with right line numbers; what can't be put right is added to `problems`."""

    def replace(match: re.Match) -> str:
        text, target, anchor = match.groups()
        if "://" in target:
            return match[0]
        path = (doc.parent / target).resolve()
        if not path.exists():
            problems.append(f"{doc.name}: {target} does not exist")
        elif path.suffix == ".py" and anchor:
            line = definition(path, text)
            if line is None:
                problems.append(f"{doc.name}: {target} defines no {text}")
            else:
                return f"[{text}]({target}#L{line})"
        return match[0]

    return LINK.sub(replace, doc.read_text(encoding="utf-8"))
