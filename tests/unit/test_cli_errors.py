"""Whatever ends a command is one line without a traceback, also where nobody reads it any more."""

import errno
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lcm_core import cli
from lcm_core.cli import program
from lcm_core.cli.errors import explained
from lcm_core.lora import Factors, LoRAVector, write_lora
from lcm_core.lora.saving import tensors_of
from lcm_core.streaming import TensorFile

ROOT = Path(__file__).parents[2]
MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MERGE = ["merge", "a.safetensors", "-o", "o.safetensors"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LoRAVector({MODULE: Factors(torch.ones(1, 768), torch.ones(12, 1), 1.0)}).save("a.safetensors")
    return tmp_path / "a.safetensors"


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "lcm_core.cli", *arguments], env=ENVIRONMENT, text=True, **options)


def fail(*_):
    raise torch.linalg.LinAlgError("linalg.svd: failed to converge")


def recurse(*_):
    return recurse()


def allocate(*_):
    return torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.parametrize("failure, message", [
    (allocate, "there is not enough memory (.*); close programs or use smaller files"),
    (MemoryError(), "there is not enough memory (for this); close programs or use smaller files"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "there is not enough memory (CUDA out of memory. Tried); "),
    (fail, "a decomposition has no result (linalg.svd: failed to converge); use weights or files of smaller"),
    (recurse, "the input is nested too deeply; make it simpler"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; choose a file and a folder that"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory; give the path of a file"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error; see to that and try again"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "a text is not UTF-8 ("),
    (KeyError("x"), "KeyError at test_cli_errors.py:"),
    (AssertionError("y" * 999), "y; this is a defect of lcm-lora, report this line"),
])  # fmt: skip
def test_every_failure_is_one_line(file, capsys, monkeypatch, failure, message):
    def open_tensors(*_):
        if isinstance(failure, BaseException):
            raise failure
        return failure()

    monkeypatch.setattr("lcm_core.lora.lazy.open_tensors", open_tensors)
    assert cli.main([*MERGE, "--json"]) == 1
    out, err = capsys.readouterr()
    said = json.loads(out)["error"]
    start, _, end = message.partition(".*")
    assert start in said
    assert end in said
    assert err == f"lcm-lora merge: error: {said}\n"
    assert len(said) < 500
    assert [path.name for path in file.parent.iterdir()] == ["a.safetensors"]


def test_a_system_exit_is_no_error_of_ours(file, monkeypatch):
    monkeypatch.setattr("lcm_core.lora.lazy.open_tensors", lambda *_: sys.exit(7))
    with pytest.raises(SystemExit):
        cli.main(MERGE)
    assert explained(KeyboardInterrupt()) == (130, "interrupted")


@pytest.mark.parametrize("arguments", [["inspect", "a.safetensors", "a.safetensors"], [*MERGE, "--json"]])
@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_closed_pipe_is_no_error(file, arguments):
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a full device")
def test_a_full_disk_under_stdout_is_an_error(file):
    with open("/dev/full", "w") as full:
        process = start("inspect", "a.safetensors", stdout=full, stderr=subprocess.PIPE)
        assert process.stderr.read().startswith("lcm-lora inspect: error: stdout: No space left on device; make room")
    assert process.wait() == 1


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["lcm_core.cli.program", "json", "torch", "torch.nn", "lcm_core.lora.vector"])
def test_an_interrupt_while_a_module_is_imported_is_quiet(file, module):
    code = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.modules.pop("json", None)
runpy.run_module("lcm_core.cli", run_name="__main__")
"""
    command = [sys.executable, "-c", code, "inspect", "a.safetensors"]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr in ("lcm-lora: interrupted\n", "lcm-lora inspect: error: interrupted\n")


@pytest.mark.parametrize("warn", [
    lambda: logging.getLogger("lcm_core.lora.vector").warning("the alpha of %s\nis unknown", "a.safetensors"),
    lambda: warnings.warn_explicit("the alpha of a.safetensors is unknown", UserWarning, cli.__file__, 1),
])  # fmt: skip
def test_warnings_are_told_once(file, capsys, monkeypatch, warn):
    load = LoRAVector.load
    monkeypatch.setattr(LoRAVector, "load", lambda *path: [warn(), warn()] and load(*path))
    text = "the alpha of a.safetensors is unknown"
    assert cli.main(["inspect", "--norms", "a.safetensors", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["warnings"] == [text]
    assert err == f"lcm-lora: warning: {text}\n"
    assert cli.main(["inspect", "--norms", "a.safetensors", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["inspect", "--norms", "a.safetensors"]) == 0
    assert capsys.readouterr().err == f"lcm-lora: warning: {text}\n"


@pytest.mark.parametrize("command", [
    ["inspect", "peft.safetensors"], ["inspect", "--norms", "peft.safetensors"],
    ["merge", "0.5*peft.safetensors", "-o", "o.safetensors"],
    ["convert", "peft.safetensors", "-o", "o.safetensors"], ["resize", "peft.safetensors", "-o", "o.safetensors"],
])  # fmt: skip
def test_what_reading_assumed_is_a_warning(file, capsys, command):
    module = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    state = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    write_lora("peft.safetensors", state)
    assert cli.main([*command, "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning.startswith("peft.safetensors: no alpha in the file for 1 modules")


def test_warnings_of_others_are_left_as_they_are(file, capsys, monkeypatch):
    load = LoRAVector.load
    monkeypatch.setattr(LoRAVector, "load", lambda *path: [warnings.warn("theirs", stacklevel=1)] and load(*path))
    with pytest.warns(UserWarning, match="theirs"):
        assert cli.main(["inspect", "--norms", "a.safetensors", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warnings" not in json.loads(out)
    assert err == ""


def test_an_input_that_fails_while_the_output_is_written_is_named(file, capsys, monkeypatch):
    read = TensorFile.read

    def failing(opened, key):
        if not opened.shapes[key][1]:
            return read(opened, key)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(TensorFile, "read", failing)
    assert cli.main(MERGE) == 1
    said = capsys.readouterr().err
    assert "error: a.safetensors can't be read: Input/output error; see to that and try again" in said
    assert [path.name for path in file.parent.iterdir()] == ["a.safetensors"]


def test_a_file_made_meanwhile_is_kept_without_force(file, capsys, monkeypatch):
    output = file.with_name("o.safetensors")

    def late(*arguments):
        output.write_bytes(b"theirs")
        return tensors_of(*arguments)

    monkeypatch.setattr("lcm_core.lora.saving.tensors_of", late)
    assert cli.main(MERGE) == 1
    assert "o.safetensors was made by another program meanwhile; choose another name" in capsys.readouterr().err
    assert output.read_bytes() == b"theirs"
    assert cli.main([*MERGE, "--force"]) == 0
    assert LoRAVector.load(output).rank == 1
    output.unlink()
    output.mkdir()
    assert cli.main([*MERGE, "--force"]) == 1
    assert "o.safetensors is a folder; give the name of a file" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys, lcm_core.cli.program; sys.modules['torch'] = None; lcm_core.cli.main(sys.argv[1:])"
    for command in ((), ("resize",), ("extract",), ("inspect",), ("convert",)):
        arguments = [sys.executable, "-c", code, *command, "--help"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.startswith(" ".join(("usage: lcm-lora", *command)))
        assert done.stderr == ""
    # merge reads its options from the methods themselves, distill from the objectives.
    for command in ("merge", "distill"):
        arguments = [sys.executable, "-c", code, command, "--help"]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == f"lcm-lora {command}: error: torch is not installed; run pip install 'lcm-lora[cli]'\n"
    code = "import sys, lcm_core.cli.program; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_new_module_is_a_new_command():
    assert set(program.COMMANDS) == {"merge", "extract", "resize", "inspect", "convert", "distill"}
    files = {path.stem for path in (ROOT / "lcm_core" / "cli" / "commands").glob("[!_]*.py")}
    assert set(program.COMMANDS) == files
