"""Writing whole or not at all: at once, after kills, with which mode, and where a file system has no links or locks."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from lcm_core import atomic
from lcm_core.atomic import remove_leftovers, syncing, write_whole
from lcm_core.files import write_lora, write_new

ROOT = Path(__file__).parents[2]
LEFT = ".lcm-lora-0123456789abcdef.part"
POSIX = pytest.mark.skipif(os.name == "nt", reason="modes and locks of POSIX")

SAVE_TEN = """
import sys, torch
from lcm_core.files import write_new
print(flush=True)
sys.stdin.readline()
for i in range(10):
    print(write_new(sys.argv[1], "mix", {"x": torch.full((1000,), float(sys.argv[2]) + i)}).name, flush=True)
"""
WRITE_SLOWLY = """
import sys, time
from pathlib import Path
from lcm_core.atomic import write_whole
def write(file):
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.readline()
write_whole(Path(sys.argv[1]), write)
"""


def start(code, *arguments):
    """A process of this code, when it has written a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "\n"
    return process


def test_processes_that_save_at_once_overwrite_nothing(tmp_path):
    processes = [start(SAVE_TEN, tmp_path, 100 * i) for i in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate(timeout=100)[0].split()]
    assert sorted(names) == [f"mix_{i:05}_.safetensors" for i in range(1, 41)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    values = {load_file(path)["x"].unique().item() for path in tmp_path.iterdir()}
    assert values == {100.0 * i + j for i in range(4) for j in range(10)}


def test_numbers_go_on_after_the_highest_of_the_stem(tmp_path):
    for name in ("mix_00004_.png", "mix_big_00009_.safetensors", "mix_7.safetensors", "other_00020_.safetensors"):
        (tmp_path / name).touch()
    assert write_new(tmp_path, "mix", {}).name == "mix_00005_.safetensors"
    assert write_new(tmp_path, "mix[1]", {}).name == "mix[1]_00001_.safetensors"


def test_a_file_made_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileExistsError, match="is there already; choose another name"):
        write_whole(path, lambda file: path.write_bytes(b"theirs"), replace=False)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_without_hard_links(tmp_path, monkeypatch, meanwhile):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "a.safetensors"
    if meanwhile:
        with pytest.raises(FileExistsError):
            write_whole(path, lambda file: path.write_bytes(b"theirs"), replace=False)
    else:
        write_whole(path, lambda file: file.write(b"ours"), replace=False)
    assert path.read_bytes() == (b"theirs" if meanwhile else b"ours")
    assert write_new(tmp_path, "a", {}).name == "a_00001_.safetensors"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors", "a_00001_.safetensors"]


def test_without_hard_links_a_failure_leaves_no_empty_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="can't be written: Input/output error"):
        write_new(tmp_path, "a", {})
    assert list(tmp_path.iterdir()) == []


@POSIX
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_has_the_umasks_mode_and_a_replaced_one_its_own(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = write_new(tmp_path, "a", {})
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o664)
        write_lora(path, {"x": torch.ones(1)})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664
    assert load_file(path)["x"] == 1


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, order = tmp_path / "a.safetensors", []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(os.fstat(handle).st_ino) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("renamed") or replace(*names))
    write_lora(path, {"x": torch.ones(1)})
    folder = [] if os.name == "nt" else [tmp_path.stat().st_ino]
    assert order == [path.stat().st_ino, "renamed", *folder]


@pytest.mark.parametrize("write", [
    lambda folder: write_lora(folder / "new.safetensors", {}), lambda folder: write_new(folder, "new", {}),
    remove_leftovers,
])  # fmt: skip
@POSIX
def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(tmp_path, write):
    killed, alive = (start(WRITE_SLOWLY, tmp_path / f"{name}.safetensors") for name in ("killed", "alive"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (tmp_path / LEFT).touch()
    others = [".lcm-lora-0123.part", "style.safetensors", ".style.part"]
    for name in others:
        (tmp_path / name).touch()
    assert len(list(tmp_path.glob(".lcm-lora-????????????????.part"))) == 3
    write(tmp_path)
    assert len(list(tmp_path.glob(".lcm-lora-????????????????.part"))) == 1
    assert all((tmp_path / name).exists() for name in others)
    alive.communicate("\n")
    assert alive.returncode == 0
    assert (tmp_path / "alive.safetensors").read_bytes() == b"half"
    assert not list(tmp_path.glob(".lcm-lora-????????????????.part"))


@POSIX
def test_leftovers_are_neither_followed_nor_opened_if_they_are_no_files(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / LEFT).symlink_to(target)
    os.mkfifo(tmp_path / LEFT.replace("0", "1"))
    (tmp_path / LEFT.replace("0", "2")).mkdir()
    remove_leftovers(tmp_path)
    assert target.read_text() == "precious"
    assert remove_leftovers(tmp_path / "nowhere") == 0


@pytest.mark.parametrize("lock", ["no fcntl", "ENOLCK"])
def test_without_locks_age_decides(tmp_path, monkeypatch, lock):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if lock == "no fcntl":
        monkeypatch.setattr(atomic, "fcntl", None)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    new, old = tmp_path / LEFT, tmp_path / LEFT.replace("0", "1")
    for path in (new, old):
        path.touch()
    os.utime(old, (0, time.time() - atomic.LEFT_AFTER - 60))
    write_lora(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEFT, "a.safetensors"]
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


@POSIX
def test_a_part_that_was_taken_for_a_leftover_is_made_anew(tmp_path, monkeypatch):
    lock, taken = atomic.fcntl.flock, []

    def late(file, how):
        if not taken:
            taken.extend(tmp_path.glob(".lcm-lora-*.part"))
            taken[0].unlink()
        lock(file, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    write_lora(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert len(taken) == 1


def test_the_bytes_are_those_that_safetensors_reads(tmp_path):
    state = {
        "b": torch.randn(3, 2, dtype=torch.float16), "a": torch.randn(2, 2).T, "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64), "flags": torch.tensor([True, False, True]),
        "ü\n\"": torch.randn(5, dtype=torch.bfloat16), "tiny": torch.ones(3).to(torch.float8_e5m2),
        "z": torch.tensor([1 + 2j], dtype=torch.complex64), "many": torch.arange(7)[::2],
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    write_lora(path, state, {"title": 'ä \u2028 "x"'})
    read = load_file(path)
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype == tensor.dtype
        assert read[key].shape == tensor.shape
        assert read[key].float().equal(tensor.float()) if key != "z" else read[key].equal(tensor)
    plain = {key: tensor.contiguous() for key, tensor in state.items()}
    theirs = save(plain, {"format": "pt", "title": 'ä \u2028 "x"'})
    lengths = [len(data) - int.from_bytes(data[:8], "little") for data in (theirs, path.read_bytes())]
    assert lengths[0] == lengths[1]
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    write_lora(tmp_path / "again.safetensors", dict(reversed(state.items())), {"title": 'ä \u2028 "x"'})
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("state, metadata, message", [
    ({"\ud800": torch.ones(1)}, {}, "is no character; leave it out"),
    ({}, {"title": "\udc80"}, "is no character; leave it out"),
    ({"__metadata__": torch.ones(1)}, {}, "has no place for '__metadata__'"),
    ({"x": torch.ones(1, dtype=torch.complex128)}, {}, "has no place for 'x' of torch.complex128"),
    ({}, {"x": "y" * 100_000_000}, "shorten the metadata"),
])  # fmt: skip
def test_what_the_format_cannot_hold_is_refused_before_writing(tmp_path, state, metadata, message):
    with pytest.raises(ValueError, match=message):
        write_lora(tmp_path / "a.safetensors", state, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_long_file_goes_onto_the_disk_while_it_is_written(tmp_path, monkeypatch):
    seen, sync = [], os.fsync
    monkeypatch.setattr("lcm_core.atomic.SYNCED_AT_ONCE", 100)
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.fstat(handle).st_size) or sync(handle))

    def write(file):
        with syncing(file) as go_on:
            for _ in range(40):
                file.write(b"x" * 50)
                go_on()
                time.sleep(0.002)

    write_whole(tmp_path / "f", write)
    assert (tmp_path / "f").read_bytes() == b"x" * 2000
    assert seen[0] == 100 and len(seen) >= 3 and sorted(seen[:-1]) == seen[:-1] and 2000 in seen


def test_what_the_disk_refuses_meanwhile_is_an_error_though_the_last_sync_succeeds(tmp_path, monkeypatch):
    failures, sync = [OSError(errno.EIO, "Input/output error")], os.fsync
    monkeypatch.setattr("lcm_core.atomic.SYNCED_AT_ONCE", 100)

    def fsync(handle):
        if failures:
            raise failures.pop()
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)

    def write(file):
        with syncing(file) as go_on:
            for _ in range(40):
                file.write(b"x" * 50)
                go_on()

    with pytest.raises(OSError, match="can't be written: Input/output error"):
        write_whole(tmp_path / "f", write)
    assert list(tmp_path.iterdir()) == []
