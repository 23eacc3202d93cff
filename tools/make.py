"""Makes what is made of other things here: templates, pictures, tables, the reference, links, the English texts.

python tools/make.py --list               the parts, and what each makes
python tools/make.py workflows docs       makes these; `docs` is every part whose name begins with `docs.`
python tools/make.py all --check          writes nothing, and exits with 1 if a file is not what would be made
python tools/make.py pictures.help --only LCMLoRA_Sampler      makes the files with that in their path alone

It makes the environment, ComfyUI and the pocket model where a part needs them and they are missing, as run.py does.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path

from host_process import HostError
from run import replace_by
from setup_env import BASE, COMFYUI, ROOT, VENV, StepError, ensure_base, ensure_comfyui, ensure_venv, venv_python

PARTS = ROOT / "tools" / "parts"


def parts() -> dict[str, str]:
    """Name of a part, which is its file's place below tools/parts -> its docstring's first line."""
    files = {".".join(file.relative_to(PARTS).with_suffix("").parts): file for file in sorted(PARTS.rglob("*.py"))}
    texts = {name: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for name, file in files.items()}
    return {name: (text or "").splitlines()[0] for name, text in texts.items()}


def chosen(names: list[str], known: dict[str, str]) -> list[str]:
    """The parts that names of parts and folders mean, in the order of `known`."""
    meant = {name: [part for part in known if name in (part, part.partition(".")[0], "all")] for name in names}
    if unknown := [name for name, found in meant.items() if not found]:
        raise StepError(f"there is no part {', '.join(unknown)}; there are {', '.join(known)}, docs, pictures and all")
    return [part for part in known if any(part in found for found in meant.values())]


def lay_out() -> tuple[Path, Path]:
    ensure_comfyui()
    ensure_base(sys.executable)
    return COMFYUI, BASE


def make(names: list[str], only: str, check: bool) -> int:
    """Makes the parts, and returns how many files were not what is made."""
    sys.path.append(str(ROOT))
    from tools.workshop import Workshop, shown

    different = 0
    with Workshop(lay_out) as workshop:
        for name in names:
            for product in importlib.import_module(f"tools.parts.{name}").products(workshop):
                if only not in shown(product.path):
                    continue
                content = product.content()
                same = product.path.exists() and product.path.read_bytes() == content
                if not same and not check:
                    product.path.parent.mkdir(parents=True, exist_ok=True)
                    product.path.write_bytes(content)
                different += not same
                state = "as it was" if same else "is not what is made" if check else f"written, {len(content):,} bytes"
                print(f"{name}: {shown(product.path)}: {state}", flush=True)
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="a part, the folder of several, or all")
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files with this in their path")
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if anything would change")
    arguments = parser.parse_args()
    known = parts()
    if arguments.list or not arguments.parts:
        print(*(f"{name:<26}{about}" for name, about in known.items()), sep="\n")
        return 0
    names = chosen(arguments.parts, known)
    if Path(sys.prefix).resolve() != VENV.resolve():
        ensure_venv()
        replace_by([venv_python(), str(Path(__file__).resolve()), *sys.argv[1:]], {})
    different = make(names, arguments.only, arguments.check)
    return 1 if arguments.check and different else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (StepError, HostError, ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
