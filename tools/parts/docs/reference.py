"""docs/python-api.md: the reference below its hand-written opening, from the docstrings of lcm_core.

A signature is its source. (griffe2md loses the names that lcm_core imports when first used, annotations and lines.)
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from tools.workshop import ROOT, Product, Workshop

from .links import definition

FILE = ROOT / "docs" / "python-api.md"
MARK = "<!-- What follows is written by tools/make.py. -->\n"
MODULES = ("lcm_core", "lcm_core.accelerators", "lcm_core.lora", "lcm_core.distill")
DECORATORS = {"classmethod", "contextmanager", "property"}
# Of a docstring's lines those that say what one argument or value is: `x: …`, `a, b: …`, `12 values: …`, `f(x) -> …`.
ENTRY = re.compile(r"^(?:\d+ )?\w+(?:, \w+)*(?=:\s)|^\w+(?=\([^)]*\)(?: ->| is |,))", re.MULTILINE)


def products(workshop: Workshop) -> Iterator[Product]:
    opening = FILE.read_text(encoding="utf-8").partition(MARK)[0]
    yield Product.text(FILE, lambda: f"{opening}{MARK}\n{reference()}")


def reference() -> str:
    """The public names of MODULES with a link to the source, the signature and the docstring."""
    parts = []
    for module in map(importlib.import_module, MODULES):
        names = " · ".join(f"[`{name}`](#{name.lower()})" for name in module.__all__)
        parts += [f"## {module.__name__}", str(inspect.getdoc(module)), names]
        for name in module.__all__:
            path = source(module, name)
            text = path.read_text(encoding="utf-8")
            link = f"../{path.relative_to(ROOT).as_posix()}#L{definition(path, name)}"
            parts += [f"### [`{name}`]({link})"]
            if found := [node for node in ast.parse(text).body if getattr(node, "name", None) == name]:
                parts += described(found[-1], text.splitlines(), name)
            elif isinstance(values := getattr(module, name), Mapping):
                parts += ["\n".join(f"- **{key}** {markdown(value.about)}" for key, value in values.items())]
            else:
                parts += [", ".join(f"`{value}`" for value in values)]
    return "\n\n".join(parts) + "\n"


def source(module: ModuleType, name: str) -> Path:
    """The file that defines a public name of a package."""
    if home := getattr(getattr(module, name), "__module__", None):
        return Path(str(sys.modules[home].__file__)).resolve()
    files = Path(str(module.__file__)).resolve().parent.rglob("*.py")
    return next(file for file in files if re.search(rf"^{name}\b.*=", file.read_text(encoding="utf-8"), re.MULTILINE))


def described(node: ast.stmt, lines: list[str], name: str) -> Iterator[str]:
    """Signature and docstring of a function, or of a class and its public methods."""
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    inside = node.body if isinstance(node, ast.ClassDef) else []
    fields = [part for part in inside if isinstance(part, ast.AnnAssign)]
    methods = [part for part in inside if isinstance(part, ast.FunctionDef)]
    heads = [node, *(method for method in methods if method.name == "__init__")]
    wanted = [line for line in node.decorator_list if ast.unparse(line) in DECORATORS]
    spans = [(part.lineno, part.end_lineno) for part in (*wanted, *fields)]
    spans += [(head.lineno, head.body[0].lineno - 1) for head in heads]
    shown = textwrap.dedent("\n".join(line for start, end in sorted(spans) for line in lines[start - 1 : end]))
    yield "```python\n" + shown.replace("  # fmt: skip", "").removesuffix(":") + "\n```"
    if text := ast.get_docstring(node):
        first, *rest = text.split("\n\n")
        yield markdown(first)
        yield from (
            f"```pycon\n{part}\n```" if part[:3] == ">>>" else ENTRY.sub(r"- **\g<0>**", markdown(part))
            for part in rest
        )
    for method in methods:
        if not method.name.startswith("_"):
            yield f"#### `{name}.{method.name}`"
            yield from described(method, lines, f"{name}.{method.name}")


def markdown(text: str) -> str:
    """The text with *, _ and < escaped where they stand for themselves: inside words, before them, outside of code."""
    words = re.split("(`[^`]*`)", text)
    words[::2] = [re.sub(r"(?<=\w)\*(?=\w)|(?<!\w)_|_(?!\w)|<", r"\\\g<0>", word) for word in words[::2]]
    return "".join(words)