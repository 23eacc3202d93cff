"""The examples as a person runs them: queue_prompt.py on the session's host, ray_fleet.py on hosts of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.queue_prompt import PromptError, customise
from tools.host_process import HostProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "queue_prompt.py"
PROMPTS = 40


@pytest.fixture
def on_pocket(workflow, tmp_path_factory) -> str:
    """A file with the text-to-image template on the pocket model."""
    file = tmp_path_factory.mktemp("workflow") / "on_pocket.json"
    file.write_text(json.dumps(workflow("lcm_lora_txt2img")), encoding="utf-8")
    return str(file)


def queue_prompt(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, env=environment)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_queue_prompt_sets_the_inputs_and_saves_the_pictures(host, workflow, on_pocket, tmp_path):
    arguments = ["--url", host.url, "--workflow", on_pocket, "--output", str(tmp_path / "new" / "dog.png")]
    done = queue_prompt(*arguments, "--prompt", "dog", "--seed", "11", "--strength", "0.9", "--set", "6.steps=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "node 3 (Prompt): text = 'dog'",
        "node 6 (LCM Sampler): seed = 11",
        "node 2 (Load Acceleration LoRA): strength = 0.9",
        "node 6 (LCM Sampler): steps = 3",
    ]
    assert "step 3 of 3" in lines
    files = sorted(tmp_path.glob("new/*"))
    assert [file.name for file in files] == [f"dog_{i}.png" for i in (1, 2, 3, 4)]

    graph = workflow("lcm_lora_txt2img")
    graph["3"]["inputs"]["text"] = "dog"
    graph["6"]["inputs"] |= {"seed": 11, "steps": 3}
    graph["2"]["inputs"]["strength"] = 0.9
    expected = host.images(host.queue(graph))  # the host has it all in its cache, and queue_prompt then too
    again = queue_prompt(*arguments, "--prompt", "dog", "--seed", "11", "--strength", "0.9", "--set", "6.steps=3")
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal([pixels(file) for file in files], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "6.steps=-1"], "node 6 (LCMLoRA_Sampler): Value -1 smaller than min of 0: steps"),
        (["--set", "6.timesteps=5, 9"], "node 6 (LCMLoRA_Sampler): ValueError: timestep 9 follows 5"),
        (["--set", "6.stepz=4"], "'6.stepz' fits 0 inputs of the workflow"),
        (["--workflow", str(ROOT / "workflows" / "lcm_lora_txt2img.json")], "not in API format"),
    ],
)
def test_queue_prompt_says_what_is_wrong(host, on_pocket, tmp_path, arguments, message):
    output = str(tmp_path / "picture.png")
    done = queue_prompt("--url", host.url, "--workflow", on_pocket, "--output", output, *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_queue_prompt_copied_alone_makes_a_picture_of_each_line(host, tmp_path):
    """The template comes from the host, which has none of its models: the pocket model's are set."""
    script, prompts, words = tmp_path / "queue.py", tmp_path / "prompts.txt", ("cat", "dog", "fox")
    shutil.copyfile(SCRIPT, script)
    prompts.write_text("\n\n".join(words), encoding="utf-8")
    small = ["--set", "1.ckpt_name=pocket.safetensors", "--set", "2.lora_name=pocket_lcm.safetensors"]
    small += ["--set", "5.width=128", "--set", "5.height=128", "--set", "5.batch_size=1", "--set", "6.steps=1"]
    done = queue_prompt(
        "--url", host.url, "--prompts", str(prompts), "--output", str(tmp_path / "made.png"), *small, script=script
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [f"node 3 (Prompt): text = {word!r}" in done.stdout for word in words] == [True] * 3
    files = sorted(tmp_path.glob("*.png"))
    assert [file.name for file in files] == ["made_001.png", "made_002.png", "made_003.png"]
    assert len({pixels(file).tobytes() for file in files}) == 3


def test_queue_prompt_refuses_a_file_without_prompts(host, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n \n", encoding="utf-8")
    done = queue_prompt("--url", host.url, "--prompts", str(prompts))
    assert done.returncode == 1 and "has no prompt" in done.stderr


def test_queue_prompt_says_that_nobody_listens():
    url = f"http://127.0.0.1:{free_port()}"
    done = queue_prompt("--url", url)
    assert done.returncode == 1
    assert url in done.stderr and "--url" in done.stderr and "Traceback" not in done.stderr


def test_the_prompt_is_found_where_both_text_nodes_have_the_usual_title(workflow):
    graph = workflow("lcm_lora_txt2img")
    for key in ("3", "4"):
        graph[key]["_meta"]["title"] = "CLIP Text Encode (Prompt)"
    changed, lines = customise(graph, {"prompt": "dog"})
    assert changed["3"]["inputs"]["text"] == "dog" and changed["4"]["inputs"]["text"] == ""
    assert lines == ["node 3 (CLIP Text Encode (Prompt)): text = 'dog'"]
    assert graph["3"]["inputs"]["text"] == "cat"
    graph["9"] = graph["6"]
    with pytest.raises(PromptError, match="'seed' fits 2 inputs"):
        customise(graph, {"seed": 1})


def run_fleet(base: Path, output: Path, workflow: str, *arguments: str) -> Iterator[tuple[str, int, int]]:
    """Make the 40 pictures in `output`; yields ("host", -1, process) for each host and ("picture", index, process)."""
    command = [sys.executable, str(ROOT / "scripts" / "ray_fleet.py"), "--output", str(output), "--workflow", workflow]
    command += [*arguments]
    command += ["--prompt", "cat", "--prompt", "dog", "--seeds", f"0:{PROMPTS // 2}"]
    command += ["--set", "5.batch_size=1", "--set", "6.steps=2", "--", *host_arguments(base)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment) as driver:
        stop = threading.Timer(300, driver.terminate)
        stop.start()
        for line in driver.stdout:
            if found := re.match(r"host: .*?(?:process (\d+))?$", line):
                yield "host", -1, int(found[1] or 0)
            if found := re.match(rf"\d+ of {PROMPTS}: .*(\d{{5}})\.png from .*?(?:process (\d+))?$", line):
                yield "picture", int(found[1]), int(found[2] or 0)
        stop.cancel()
    assert driver.returncode == 0


def host_arguments(base: Path) -> list[str]:
    return ["--cpu", "--base-directory", str(base), "--disable-api-nodes"]


@pytest.mark.alone
def test_fleet_loses_and_doubles_nothing_when_a_host_is_killed(base, on_pocket, tmp_path, monkeypatch):
    """40 prompts on 2 hosts; one host is killed after 10 pictures; each picture equals a single host's, bit for bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in every host: another number of threads may round differently
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())  # so that Ray writes none into the home folder
    comfyui, python = Path(os.environ["LCM_HOST_DIR"]), os.environ["LCM_HOST_PYTHON"]
    folders = ["--database-url", f"sqlite:///{(tmp_path / 'comfyui.db').as_posix()}"]
    for name in ("output", "temp", "user"):
        (tmp_path / name).mkdir()
        folders += [f"--{name}-directory", str(tmp_path / name)]
    arguments = [*host_arguments(base), *folders]
    with HostProcess(comfyui, python, base, tmp_path / "single.log", arguments) as single:
        processes, made, makers = [], [], set()
        start = ["--comfyui", str(comfyui), "--python", python, "--hosts", "2"]
        for kind, index, process in run_fleet(base, tmp_path / "fleet", on_pocket, *start):
            if kind == "host":
                processes.append(process)
                continue
            made.append(index)
            makers.add(process)
            if len(made) == 10:
                os.kill(processes[0], getattr(signal, "SIGKILL", signal.SIGTERM))
        single.wait_ready()
        again = run_fleet(base, tmp_path / "single", on_pocket, "--url", single.url)
        alone = [index for _, index, _ in again if index >= 0]
    assert sorted(made) == sorted(alone) == list(range(PROMPTS))
    assert len(processes) == 2 and makers > set(processes), "the killed host did not come back"
    pictures = [pixels(tmp_path / "fleet" / f"{i:05}.png") for i in range(PROMPTS)]
    assert len({picture.tobytes() for picture in pictures}) == PROMPTS
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(picture, pixels(tmp_path / "single" / f"{i:05}.png"), err_msg=f"prompt {i}")
