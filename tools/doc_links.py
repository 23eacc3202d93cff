"""Links from the docs to lines of code: [`name`](../path/file.py#L12) points to where `name` is defined.

python tools/doc_links.py            puts the line numbers right in README.md and docs/*.md
python tools/doc_links.py --check    only says what is wrong, and exits with 1 if anything is
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "pocket" / "README.md"]
LINK = re.compile(r"\[([^\]\n]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


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


def main() -> None:
    problems: list[str] = []
    for doc in DOCS:
        before, after = doc.read_text(encoding="utf-8"), corrected(doc, problems)
        if after != before and "--check" in sys.argv:
            problems.append(f"{doc.name}: line numbers moved; run python tools/doc_links.py")
        elif after != before:
            doc.write_text(after, encoding="utf-8")
    print(*problems, sep="\n", end="\n" if problems else "")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
