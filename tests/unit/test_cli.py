import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcm_core import cli
from lcm_core.cli import command, program
from lcm_core.lora import METHODS, Factors, LoRAVector, combine, conflicts, read_lora, scale_blocks
from lcm_core.lora.names.writing import DIALECTS
from lcm_core.lora.record import EXPRESSION, PARENTS

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.up_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SHAPES = {Q: (12, 768), CONV: (8, 6, 3, 3), TEXT: (10, 7)}
MIX = "0.8*style.safetensors + lcm.safetensors"


def lora(seed, rank, alpha, **metadata):
    g = torch.Generator().manual_seed(seed)
    modules = {
        name: Factors(
            torch.randn(rank, *shape[1:], generator=g),
            torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g),
            alpha,
        )
        for name, shape in SHAPES.items()
    }
    return LoRAVector(modules, {}, metadata)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The working folder, with style (kohya, float16), lcm (PEFT, float32) and other (another architecture's)."""
    monkeypatch.chdir(tmp_path)
    lora(0, 2, 1.0, author="x", title="style", ss_network_dim="2").save("style.safetensors", dtype=torch.float16)
    lora(1, 4, 8.0, author="x", title="lcm").save("lcm.safetensors", dialect="peft")
    LoRAVector({Q: Factors(torch.ones(1, 2048), torch.ones(12, 1), 1.0)}).save("other.safetensors")
    return tmp_path


def run(capsys, *argv):
    """(exit code, the object that --json printed, stderr)"""
    code = cli.main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def distance(a, b):
    return (a - b).norm() / b.norm()


def test_merge_is_the_exact_sum_of_files_in_two_dialects(files, capsys):
    code, result, err = run(capsys, "merge", MIX, "-o", "mix.safetensors", "--measure")
    assert (code, err) == (0, "")
    mix = LoRAVector.load("mix.safetensors")
    expected = 0.8 * LoRAVector.load("style.safetensors") + LoRAVector.load("lcm.safetensors")
    assert distance(mix, expected) == pytest.approx(result["relative_error"], rel=1e-3)
    assert 0 < result["relative_error"] < 1e-3
    assert result["expression"] == mix.metadata[EXPRESSION] == "0.8*style + 1*lcm"
    assert [parent["weight"] for parent in json.loads(mix.metadata[PARENTS])] == [0.8, 1.0]
    assert {key: mix.metadata.get(key) for key in ("author", "title", "ss_network_dim")} == {
        "author": "x",
        "title": None,
        "ss_network_dim": None,
    }
    state, _ = read_lora("mix.safetensors")
    assert (
        state["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight"].dtype == torch.float16
    )
    assert result["bytes"] == (files / "mix.safetensors").stat().st_size
    assert (result["modules"], result["rank"], result["norm"]) == (3, 6, pytest.approx(mix.norm()))


def test_merge_weighs_blocks_and_compresses(files, capsys):
    arguments = ["--rank", "3", "--energy", "0.99", "--blocks", "OUT*: 0.5", "*.fc1:0"]
    arguments += ["--dialect", "peft", "--dtype", "float32"]
    _, result, _ = run(capsys, "merge", MIX, "-o", "mix.safetensors", "--measure", *arguments)
    whole = 0.8 * LoRAVector.load("style.safetensors") + LoRAVector.load("lcm.safetensors")
    whole = scale_blocks(whole, {"OUT*": 0.5, "*.fc1": 0.0})
    mix = LoRAVector.load("mix.safetensors")
    assert distance(mix, whole.compress(3, 0.99)) < 1e-5
    assert "relative_error" not in result
    assert result["expression"] == "blocks(compress(0.8*style + 1*lcm, rank=3, energy=0.99), OUT*=0.5, *.fc1=0.0)"
    assert f"{Q}.lora_A.weight" in load_file("mix.safetensors")


@pytest.mark.parametrize("method, options", [
    ("ties", {"density": 0.3, "majority_sign_method": "frequency"}),
    ("dare_linear", {"density": 0.6, "seed": 7}),
    ("slerp", {"t": 0.25}),
    ("project_out", {"per_module": True}),
    ("np_lora", {"mu": 2.5, "directions": 1}),
    ("della", {"epsilon": 0.1}),
])  # fmt: skip
def test_merge_by_another_method(files, capsys, method, options):
    flags = []
    for name, value in options.items():
        flags += ["--" + name.removesuffix("_method").replace("_", "-"), *([] if value is True else [str(value)])]
    arguments = ["--method", method, *flags, "--rank", "2", "--dtype", "float32"]
    code, result, _ = run(capsys, "merge", MIX, "-o", "mix.safetensors", "--measure", *arguments)
    assert code == 0
    vectors = [LoRAVector.load("style.safetensors"), LoRAVector.load("lcm.safetensors")]
    assert distance(LoRAVector.load("mix.safetensors"), combine(vectors, [0.8, 1], method, rank=2, **options)) < 1e-5
    whole = METHODS[method].resolved(options)
    given = ", ".join(f"{name}={value}" for name, value in whole.items())
    assert result["expression"] == f"compress({method}(0.8*style, 1*lcm, {given}), rank=2)"
    found = conflicts(vectors, [0.8, 1.0])
    assert result["cosines"] == {"style.safetensors, lcm.safetensors": pytest.approx(found.cosines[0, 1])}
    assert result["energy_cancelled"] == pytest.approx(found.cancelled)


def test_extract_finds_what_was_added(files, capsys):
    names = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": Q, "up_blocks.1.resnets.0.conv1": CONV}
    base = {f"{name}.weight": torch.randn(SHAPES[full]) for name, full in names.items()} | {"bias": torch.ones(1)}
    base["up_blocks.1.resnets.0.conv1.bias"] = torch.zeros(8)
    style = lora(0, 2, 1.0)
    tuned = {key: value + style.delta(names[key[:-7]]) if key[:-7] in names else value for key, value in base.items()}
    tuned["up_blocks.1.resnets.0.conv1.bias"] = torch.ones(8)
    save_file(base, "base.safetensors")
    save_file(tuned, "tuned.safetensors")
    arguments = ["extract", "tuned.safetensors", "base.safetensors", "-o", "found.safetensors", "--rank", "2"]
    _, result, _ = run(capsys, *arguments)
    found = LoRAVector.load("found.safetensors")
    assert distance(found, LoRAVector({Q: style.modules[Q], CONV: style.modules[CONV]})) < 1e-3
    assert result["energy_held"] == pytest.approx(1)
    assert result["left_out"] == "unet.up_blocks.1.resnets.0.conv1.bias"
    assert found.metadata[EXPRESSION] == "extract(1*tuned - 1*base, rank=2)"
    _, result, _ = run(capsys, *arguments, "--diffs", "--force")
    assert (result["diffs"], result["left_out"]) == (1, None)


def test_resize_says_how_far_it_is_and_keeps_the_spelling(files, capsys):
    _, result, _ = run(capsys, "resize", "lcm.safetensors", "-o", "small.safetensors", "--rank", "2")
    whole, small = LoRAVector.load("lcm.safetensors"), LoRAVector.load("small.safetensors")
    assert (result["rank_before"], result["rank"], small.rank) == (4, 2, 2)
    assert result["relative_error"] == pytest.approx(distance(small, whole), rel=1e-4)
    assert (result["dialect"], result["dtype"]) == ("peft", "float32")
    double = whole + whole
    double.save("double.safetensors", dialect="native")
    _, result, _ = run(capsys, "resize", "double.safetensors", "-o", "few.safetensors", "--sv-ratio", "2",
                       "--conv-rank", "1", "--sv-cumulative", "0.9", "--device", "cpu")  # fmt: skip
    few = double.compress(sv_ratio=2.0, conv_rank=1, sv_cumulative=0.9)
    assert distance(LoRAVector.load("few.safetensors"), few) < 1e-5
    assert result["expression"] == "compress(double, sv_ratio=2.0, sv_cumulative=0.9, conv_rank=1)"
    _, result, _ = run(capsys, "resize", "double.safetensors", "-o", "single.safetensors")
    assert (result["rank_before"], result["rank"], result["dialect"]) == (8, 4, "native")
    assert result["relative_error"] < 1e-5


@pytest.mark.parametrize("dialect, key", [
    ("kohya", "lora_unet_up_blocks_1_resnets_0_conv1.lora_down.weight"),
    ("peft", "unet.up_blocks.1.resnets.0.conv1.lora_A.weight"),
    ("native", "diffusion_model.output_blocks.3.0.in_layers.2.lora_down.weight"),
])  # fmt: skip
def test_convert_renames_and_keeps_the_dtype(files, capsys, dialect, key):
    before = LoRAVector.load("style.safetensors")
    _, result, _ = run(capsys, "convert", "style.safetensors", "-o", "out.safetensors", "--dialect", dialect)
    state, metadata = read_lora("out.safetensors")
    assert state[key].dtype == torch.float16
    assert result["dtype"] == "float16"
    assert metadata["title"] == "style"
    assert distance(LoRAVector.load("out.safetensors"), before) < 1e-3
    _, result, _ = run(capsys, "inspect", "out.safetensors")
    assert result["files"][0]["dialect"] == dialect


@pytest.mark.parametrize("dtypes, kept", [
    ([torch.float8_e4m3fn], "float16"),
    ([torch.bfloat16], "bfloat16"),
    ([torch.bfloat16, torch.float16], "float32"),
])  # fmt: skip
def test_convert_keeps_what_precision_there_is(files, capsys, dtypes, kept):
    state = load_file("style.safetensors")
    save_file({key: value.to(dtypes[i % len(dtypes)]) for i, (key, value) in enumerate(state.items())}, "a.safetensors")
    assert run(capsys, "convert", "a.safetensors", "-o", "b.safetensors")[1]["dtype"] == kept
    assert load_file("b.safetensors")["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"].dtype == getattr(
        torch, kept
    )


def test_convert_makes_a_lora_of_a_loha(files, capsys):
    shapes = {"hada_w1_a": (12, 2), "hada_w1_b": (2, 9), "hada_w2_a": (12, 2), "hada_w2_b": (2, 9)}
    parts = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file({f"lora_unet_conv_x.{name}": tensor for name, tensor in parts.items()}, "loha.safetensors")
    delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    _, result, _ = run(capsys, "convert", "loha.safetensors", "-o", "lora.safetensors", "--measure")
    (factors,) = LoRAVector.load("lora.safetensors").modules.values()
    torch.testing.assert_close(factors.delta(), delta)
    assert result["relative_error"] < 1e-6
    _, result, _ = run(capsys, "convert", "loha.safetensors", "-o", "small.safetensors", "--rank", "1")
    assert (result["rank"], result["expression"]) == (1, "convert(loha, rank=1)")
    assert run(capsys, "inspect", "loha.safetensors")[1]["files"][0]["kinds"] == ["LoHa"]


def test_inspect_measures_files_and_their_cosines(files, capsys):
    code, result, _ = run(capsys, "inspect", "--norms", "style.safetensors", "lcm.safetensors")
    assert code == 0
    style, lcm = (LoRAVector.load(f"{name}.safetensors") for name in ("style", "lcm"))
    first, second = result["files"]
    assert first["architecture"] == "Stable Diffusion 1.x"
    assert first["modules"] == {"unet": 2, "text_encoder": 1}
    assert (first["modules_by_rank"], second["modules_by_alpha"]) == ({"2": 3}, {"4": 3})
    assert (first["dialect"], second["dialect"], second["dtypes"]) == ("kohya", "peft", ["F32"])
    assert first["norm"] == pytest.approx(style.norm())
    assert sum(norm**2 for norm in first["norm_by_block"].values()) == pytest.approx(style.dot(style))
    assert result["cosines"] == [
        {"a": "style.safetensors", "b": "lcm.safetensors", "cosine": pytest.approx(style.cosine(lcm))}
    ]
    assert list(result["cosine_by_block"]) == ["BASE", "M00", "OUT03"]


def test_inspect_of_files_that_cannot_be_compared(files, capsys):
    code, result, _ = run(capsys, "inspect", "style.safetensors", "other.safetensors", "lcm.safetensors")
    assert code == 0
    assert result["files"][1]["architecture"] == "SDXL"
    assert [pair["cosine"] is None for pair in result["cosines"]] == [True, False, True]
    assert "add only LoRAs of one architecture" in result["cosines"][0]["error"]


def test_text_is_aligned(files, capsys):
    assert cli.main(["inspect", "--norms", "style.safetensors", "lcm.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second, cosines, blocks = out.rstrip("\n").split("\n\n")
    assert {line[: len("modules by alpha  ")].strip() for line in first.splitlines()} >= {"file", "norm by block"}
    assert {line[len("modules by alpha")] for line in (first + "\n" + second).splitlines()} == {" "}
    header, row = cosines.splitlines()
    assert header.split() == ["a", "b", "cosine"]
    assert row.index("lcm") == header.index("b")
    assert blocks.startswith("cosine by block  BASE: ")
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("argv, message", [
    (["merge", "0.8*nix.safetensors", "-o", "o.safetensors"], "there is no file 'nix.safetensors'; correct the path"),
    (["merge", "style-lcm", "-o", "o.safetensors"], "write 'a - b' and 'a / 2' with spaces"),
    (["merge", "0.8*", "-o", "o.safetensors"], "column 5 of the expression: found the end"),
    (["merge", "style.safetensors + other.safetensors", "-o", "o.safetensors"], "add only LoRAs of one architecture"),
    (["merge", MIX, "-o", "o.safetensors", "--density", "0.5"], "sum has no option density"),
    (["merge", MIX, "-o", "o.safetensors", "--rank", "0"], "rank is 0"),
    (["merge", MIX, "-o", "o.safetensors", "--sv-ratio", "0.5"], "sv_ratio is 0.5; it is a finite number of"),
    (["merge", MIX, "-o", "o.safetensors", "--device", "cuda:77"], "device 'cuda:77' can't be used here; use one of"),
    (["resize", "style.safetensors", "-o", "o.safetensors", "--device", "gpu"], "device 'gpu' can't be used here; use"),
    (["extract", "style.safetensors", "lcm.safetensors", "-o", "o.safetensors", "--device", "meta"], "device 'meta'"),
    (["merge", MIX, "-o", "o.safetensors", "--blocks", "IN99: 1"], "the pattern 'IN99' matches nothing"),
    (["merge", MIX, "-o", "o.safetensors", "--blocks", "*: 0"], "nothing is left to write"),
    (["merge", "1e6*style.safetensors + lcm.safetensors", "-o", "o.safetensors"], "save as float32"),
    (["merge", MIX, "-o", "o.pt"], "a LoRA is written as .safetensors only"),
    (["merge", MIX, "-o", "sub/o.safetensors"], "does not exist; make it first"),
    (["merge", MIX, "-o", "lcm.safetensors"], "lcm.safetensors is an input; choose another name"),
    (["merge", MIX, "-o", "other.safetensors"], "other.safetensors is there already; choose another name"),
    (["resize", "nix.safetensors", "-o", "o.safetensors"], "nix.safetensors: No such file or directory"),
    (["resize", "style.safetensors", "-o", "o.safetensors", "--energy", "2"], "energy is 2.0"),
    (["convert", "text.txt", "-o", "o.safetensors"], "text.txt is not a safetensors file"),
    (["extract", "style.safetensors", "lcm.safetensors", "-o", "o.safetensors"], "neither rank nor energy is given"),
    (["inspect", "style.safetensors", "text.txt"], "text.txt is not a safetensors file"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_no_file(files, capsys, argv, message):
    (files / "text.txt").write_text("no LoRA\nat all")
    before = {path: path.read_bytes() for path in files.iterdir()}
    code, result, err = run(capsys, *argv)
    assert code == 1
    assert message in err
    assert err == f"lcm-lora {argv[0]}: error: {result['error']}\n"
    assert {path: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize("argv", [
    [], ["melt"], ["merge", MIX], ["merge", MIX, "-o", "o.safetensors", "--method", "mean"],
    ["merge", MIX, "-o", "o.safetensors", "--blocks", "OUT*"], ["resize", "a", "-o", "b", "--rank", "x"],
])  # fmt: skip
def test_usage_is_exit_code_2(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""


def test_force_replaces_even_an_input(files, capsys):
    code, _, _ = run(capsys, "resize", "lcm.safetensors", "-o", "lcm.safetensors", "--rank", "1", "--force")
    assert (code, LoRAVector.load("lcm.safetensors").rank) == (0, 1)


def test_a_name_that_would_be_read_with_another_config_is_refused(files, capsys):
    (files / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    code, _, err = run(capsys, "convert", "lcm.safetensors", "-o", "adapter_model.safetensors", "--force")
    assert code == 1
    assert "would be read with the alpha of the adapter_config.json beside it" in err


@pytest.mark.parametrize("failure, code, message", [
    (KeyboardInterrupt, 130, "interrupted"),
    (OSError(28, "No space left on device"), 1, "mix.safetensors: can't be written: No space left on device; make"),
    (PermissionError(13, "Permission denied"), 1, "can't be written: Permission denied; choose a folder that you may"),
    (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "torch is not installed; run pip install"),
])  # fmt: skip
def test_a_write_that_fails_leaves_no_file(files, capsys, monkeypatch, failure, code, message):
    before = set(files.iterdir())

    def fail(handle):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    found, result, err = run(capsys, "merge", MIX, "-o", "mix.safetensors")
    assert found == code
    assert message in result["error"]
    assert message in err
    assert set(files.iterdir()) == before


def test_output_is_quiet_and_bars_are_on_stderr_when_asked_for(files, capsys, monkeypatch):
    merge = ["merge", MIX, "-o", "mix.safetensors", "--force"]
    assert cli.main([*merge, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main([*merge, "--rank", "2", "--progress", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rank"] == 2
    assert "merge" in err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main([*merge, "--progress"]) == 0
    out, err = capsys.readouterr()
    assert "0.8*style + 1*lcm" in out
    assert err == ""


def test_bars_are_for_a_terminal(monkeypatch):
    bars = []
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=lambda **_: bars.append(1) or pytest.fail("a bar")))
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    with command.progress(Namespace(progress=False, quiet=True), "merge") as report:
        report(1, 2)
    with pytest.raises(pytest.fail.Exception), command.progress(Namespace(progress=False, quiet=False), "merge"):
        pass
    assert bars == [1]


def test_choices_are_those_of_the_library():
    assert command.DIALECTS == DIALECTS


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "lcm_core.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(cli.__file__).parents[2])
    assert done.stdout.startswith("usage: lcm-lora ")
    assert all(f"\n    {name}" in done.stdout for name in program.COMMANDS)
