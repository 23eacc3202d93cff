"""The ways into a ComfyUI and out of it: the registry's package under a name of the user's, pip, uninstalling."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("install.py")
# Where the host itself notes what it has loaded and listed.
REGISTERS = {
    "folder_paths.filename_list_cache", "nodes.EXTENSION_WEB_DIRS", "nodes.LOADED_MODULE_DIRS",
    "nodes.NODE_CLASS_MAPPINGS", "nodes.NODE_DISPLAY_NAME_MAPPINGS",
}  # fmt: skip


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of this repository's files, known to git."""
    folder = tmp_path_factory.mktemp("checkout") / "lcm-lora"
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").replace("/", "").split()
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    run(["git", "init", "-q"], folder)
    run(["git", "-c", "core.compression=0", "add", "-A"], folder)
    return folder


@pytest.fixture(scope="module")
def package(checkout, tmp_path_factory) -> Path:
    """The registry's package, unpacked as custom nodes are, under another name."""
    home = str(tmp_path_factory.mktemp("home"))
    run([sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "pack"], checkout, HOME=home, DO_NOT_TRACK="1")
    folder = tmp_path_factory.mktemp("comfyui") / "custom_nodes" / "my folder-2"
    with zipfile.ZipFile(checkout / "node.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def facts(base, package, tmp_path_factory):
    empty = tmp_path_factory.mktemp("base")
    command = [os.environ["LCM_HOST_PYTHON"], str(SCRIPT), os.environ["LCM_HOST_DIR"]]
    return json.loads(run([*command, str(empty), str(base / "models"), str(package)], ROOT).splitlines()[-1])


def test_the_package_holds_what_a_user_needs(checkout, package):
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {path.split("/")[0] for path in files} <= {
        "CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "docs", "lcm_core", "locales", "nodes",
        "pyproject.toml", "scripts", "subgraphs", "web", "workflows",
    }  # fmt: skip
    parts = ("lcm_core", "locales", "nodes", "subgraphs", "web", "workflows")
    wanted = {path for part in parts for path in (checkout / part).rglob("*") if path.is_file()}
    assert {path.relative_to(checkout).as_posix() for path in wanted} <= files
    pictures = re.findall(r"!\[.*?\]\((\S+?)\)", (package / "README.md").read_text(encoding="utf-8"))
    assert {path for path in pictures if "://" not in path} <= files
    assert sum((package / path).stat().st_size for path in files) < 8_000_000


def test_the_package_loads_whole_under_another_name(facts, package):
    declared = {
        node_id
        for path in (package / "nodes").glob("*.py")
        for node_id in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert facts["loaded"] and facts["warnings"] == []
    assert facts["added"] == sorted(declared)
    assert facts["works"]


def test_installing_changes_nothing_of_the_host(facts):
    assert facts["replaced"] == []
    assert set(facts["rebound"]) <= REGISTERS
    assert facts["rebound by use"] == []
    assert facts["as set"]
    assert facts["files"] == []
    assert facts["same picture"]


def test_drawing_needs_no_package_that_comfyui_lacks(facts):
    assert facts["comparison"][-1] == 3


def test_pip_installs_the_library_alone(checkout, tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "-w", str(tmp_path), "."], checkout)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name.split("/")[0].split("-")[0] for name in names} == {"lcm_core", "lcm_lora"}
        code = {path.relative_to(checkout).as_posix() for path in (checkout / "lcm_core").rglob("*.py")}
        assert code <= names
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "lcm-lora = lcm_core.cli:main" in archive.read(entry).decode()
