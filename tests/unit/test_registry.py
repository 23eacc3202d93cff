"""What the Comfy registry asks of this repository, checked by its own comfy-cli."""

import os
import re
import subprocess
import sys
from pathlib import Path

from comfy_cli.registry.config_parser import extract_node_configuration
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RAW = "https://raw.githubusercontent.com/somebody/lcm-lora/main/"


def test_comfy_cli_has_nothing_to_say(tmp_path):
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    environment = os.environ | {"HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    said = (run.stdout + run.stderr).splitlines()
    assert run.returncode == 0, said
    assert said == [
        "Validating node configuration...",
        "Running security checks...",
        "✓ All validation checks passed successfully",
    ]


def test_an_account_completes_what_the_registry_needs(tmp_path, capsys):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") if re.match(r"# (\[|\w+ = )", line) else line for line in text.splitlines()]
    published = tmp_path / "pyproject.toml"
    published.write_text("\n".join(lines).replace("<account>", "somebody"), encoding="utf-8")
    found = extract_node_configuration(str(published))
    assert capsys.readouterr().out == ""
    project, comfy = found.project, found.tool_comfy
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", project.name) and "comfyui" not in project.name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version)
    assert project.dependencies == []
    assert (ROOT / project.license.file).is_file()
    assert project.supported_os == ["OS Independent"]
    assert project.supported_comfyui_version == ">=0.3.75"
    assert project.urls.repository == "https://github.com/somebody/lcm-lora"
    assert (comfy.publisher_id, comfy.display_name) == ("lcm-lora", "LCM-LoRA")
    for address, ratio, widest in ((comfy.icon, (1, 1), 400), (comfy.banner_url, (21, 9), 1260)):
        assert address.startswith(RAW)
        path = ROOT / address.removeprefix(RAW)
        with Image.open(path) as picture:
            assert picture.width * ratio[1] == picture.height * ratio[0] and picture.width <= widest
        assert path.stat().st_size < 60_000
