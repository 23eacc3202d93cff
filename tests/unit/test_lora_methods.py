"""The combine methods that are more than sums and TIES, each against a dense computation."""

import importlib
import math
import re
from pathlib import Path

import peft.utils.merge_utils as peft
import pytest
import torch

from lcm_core import cli
from lcm_core.lora import METHODS, Factors, LoRAVector, combine, conflicts
from lcm_core.lora import methods as folder
from lcm_core.lora.method import Option, all_options, method, users_of

Q, CONV, NORM = "unet.mid_block.attentions.0.to_q", "unet.mid_block.resnets.0.conv1", "unet.conv_norm_out.weight"
ROOT = Path(__file__).resolve().parents[2]
SHAPES = {Q: (6, 9), CONV: (5, 3, 3, 3)}


def lora(seed, rank, alpha=1.0, norm=True):
    g = torch.Generator().manual_seed(seed)
    modules = {
        name: Factors(
            torch.randn(rank, *shape[1:], generator=g),
            torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g),
            alpha,
        )
        for name, shape in SHAPES.items()
    }
    return LoRAVector(modules, {NORM: torch.randn(7, generator=g)} if norm else {})


A, B, C = lora(0, 2, 3.0), lora(1, 3), lora(2, 2, 0.5)


def matrices(vector):
    """Every module and difference as a matrix, float64."""
    modules = {name: vector.delta(name).double().flatten(1) for name in vector.modules}
    return modules | {name: diff.double()[None] for name, diff in vector.diffs.items()}


def assert_is(vector, expected, rtol=1e-5):
    found = matrices(vector)
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        assert (found[name] - matrix).norm() <= rtol * matrix.norm() + 1e-6, name


def diagonal(*values):
    return LoRAVector({Q: Factors(torch.eye(len(values)), torch.diag(torch.tensor(values)), float(len(values)))})


def test_auto_strength_has_the_norm_of_the_strongest_term():
    weights = [0.5, -1.0, 2.0]
    whole = 0.5 * A - B + 2.0 * C
    strongest = max(abs(w) * v.norm() for w, v in zip(weights, (A, B, C), strict=True))
    mixed = combine([A, B, C], weights, "auto_strength")
    assert mixed.norm() == pytest.approx(strongest, rel=1e-6)
    assert_is(mixed, {name: strongest / whole.norm() * matrix for name, matrix in matrices(whole).items()})
    by_module = matrices(combine([A, B, C], weights, "auto_strength", per_module=True))
    for name, matrix in matrices(whole).items():
        strongest = max(abs(w) * matrices(v)[name].norm() for w, v in zip(weights, (A, B, C), strict=True))
        torch.testing.assert_close(by_module[name], strongest / matrix.norm() * matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_module", [False, True])
def test_auto_strength_of_equal_orthogonal_and_opposite_terms(per_module):
    x, y = diagonal(3.0, 0.0), diagonal(0.0, 3.0)
    for pair, expected in ([(x, x), x], [(x, y), (x + y) / math.sqrt(2)], [(x, -x), 0 * x], [(0 * x, 0 * x), 0 * x]):
        mixed = combine(pair, [1.0, 1.0], "auto_strength", per_module=per_module)
        torch.testing.assert_close(mixed.delta(Q), expected.delta(Q))


def test_conflicts():
    x, y = diagonal(3.0, 0.0), diagonal(4.0, 3.0)
    found = conflicts([x, y, 0 * x], [2.0, -1.0, 1.0])
    assert found.cosines == {(0, 1): pytest.approx(-0.8), (0, 2): 0, (1, 2): 0}
    assert found.cancelled == pytest.approx(1 - (2 * 2 + 3 * 3) / (36 + 25))
    assert conflicts([x, x], [1.0, 1.0]).cancelled == pytest.approx(-1)
    assert conflicts([x, x], [1.0, -1.0]).cancelled == pytest.approx(1)
    assert conflicts([x, diagonal(0.0, 2.0)], [1.0, 5.0]).cancelled == pytest.approx(0)
    assert conflicts([LoRAVector(), LoRAVector()], [1.0, 1.0]).cancelled == 0


def test_average_is_the_mean_of_delta_w_and_no_mean_of_factors():
    mean = combine([A, B, C], [1.0, 1.0, 2.0], "average")
    assert_is(mean, {name: (a + matrices(B)[name] + 2 * matrices(C)[name]) / 4 for name, a in matrices(A).items()})
    factors = [v.modules[Q] for v in (A, C)]
    of_factors = sum(f.up * f.alpha / f.rank for f in factors) / 2 @ sum(f.down for f in factors) / 2
    assert (combine([A, C], [1.0, 1.0], "average").delta(Q) - of_factors).norm() > 0.5 * of_factors.norm()


def test_average_s_decay_is_a_moving_average_without_its_bias():
    beta, moving, seen = 0.75, 0.0, 0.0
    for vector in (A, B, C):
        moving = beta * moving + (1 - beta) * matrices(vector)[Q]
        seen = beta * seen + (1 - beta)
    mean = combine([A, B, C], [1.0] * 3, "average", decay=beta)
    torch.testing.assert_close(matrices(mean)[Q], moving / seen, rtol=1e-5, atol=1e-6)


def test_average_of_files_that_share_a_factor_keeps_its_rank():
    one = A.modules[CONV]
    steps = [LoRAVector({CONV: Factors(one.down, one.up + 0.1 * i, one.alpha)}) for i in range(4)]
    mean = combine(steps, [1.0] * 4, "average")
    assert mean.rank == one.rank
    assert_is(mean, matrices(LoRAVector({CONV: Factors(one.down, one.up + 0.15, one.alpha)})))


def logarithm(m, u):
    """Of u at m, both on the unit sphere."""
    cosine = float((m * u).sum())
    return math.acos(cosine) / math.sqrt(1 - cosine**2) * (u - cosine * m)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 3.0, 1.0], [1.0, -1.0, 0.5]])
def test_karcher_is_where_the_logarithms_cancel(weights):
    shares = [weight / sum(map(abs, weights)) for weight in weights]
    for name, mean in matrices(combine([A, B, C], weights, "karcher")).items():
        deltas = [matrices(vector)[name] for vector in (A, B, C)]
        expected = sum(abs(share) * float(delta.norm()) for share, delta in zip(shares, deltas, strict=True))
        assert float(mean.norm()) == pytest.approx(expected, rel=1e-5)
        units = [math.copysign(1, share) * delta / delta.norm() for share, delta in zip(shares, deltas, strict=True)]
        pull = sum(abs(s) * logarithm(mean / mean.norm(), u) for s, u in zip(shares, units, strict=True))
        assert float(pull.norm()) < 1e-5


def test_karcher_on_literals():
    x, y, z = diagonal(2.0, 0.0, 0.0), diagonal(0.0, 2.0, 0.0), diagonal(0.0, 0.0, 5.0)
    third = combine([x, y, z], [1.0] * 3, "karcher")
    torch.testing.assert_close(third.delta(Q), diagonal(1.0, 1.0, 1.0).delta(Q) * 3 / math.sqrt(3))
    half = combine([x, y], [4.0, 4.0], "karcher")
    torch.testing.assert_close(half.delta(Q), combine([x, y], [1.0, 1.0], "slerp").delta(Q))
    torch.testing.assert_close(combine([x, y], [1.0, 2.0], "karcher").delta(Q),
                               combine([x, y], [1.0, 1.0], "slerp", t=2 / 3).delta(Q))  # fmt: skip
    torch.testing.assert_close(combine([x, 3 * x], [1.0, 1.0], "karcher").delta(Q), 2 * x.delta(Q))
    turned = combine([x, -x, y], [0.5, 0.25, 0.25], "karcher")
    angle = 0.375 * math.pi  # where 0.5 angle = 0.25 (pi - angle) + 0.25 (pi/2 - angle)
    torch.testing.assert_close(turned.delta(Q), diagonal(2 * math.cos(angle), 2 * math.sin(angle), 0.0).delta(Q))
    for weights, expected in (([1.0, 1.0], 0 * x), ([3.0, 1.0], 0.5 * x)):
        torch.testing.assert_close(combine([x, -x], weights, "karcher").delta(Q), expected.delta(Q))
    torch.testing.assert_close(combine([x], [-3.0], "karcher").delta(Q), -x.delta(Q))


def test_breadcrumbs_on_literals():
    row = LoRAVector(diffs={NORM: torch.tensor([9.0, -1, 5, 0.5, -7, 3, 2, -4])})
    mixed = combine([row, row], [1.0, 0.5], "breadcrumbs", density=0.5, gamma=0.125)
    torch.testing.assert_close(mixed.diffs[NORM], 1.5 * torch.tensor([0.0, 0, 5, 0, -7, 3, 0, -4]))
    rest = combine([row], [1.0], "breadcrumbs", density=0.75, gamma=0.25)
    torch.testing.assert_close(rest.diffs[NORM], torch.tensor([0.0, -1, 5, 0.5, 0, 3, 2, -4]))
    for name, matrix in matrices(combine([A, B], [1.0, 2.0], "breadcrumbs", density=0.4, gamma=0.0)).items():
        expected = matrices(combine([A, B], [1.0, 2.0], "magnitude_prune", density=0.4))[name]
        torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-6)


def test_della_keeps_larger_values_more_often_and_the_mean():
    values = torch.arange(1.0, 21).repeat(4000, 1)
    up = values[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    vector = LoRAVector({Q: Factors(torch.eye(20), up, 20.0)})
    kept = combine([vector], [1.0], "della", density=0.6, epsilon=0.4, seed=3).delta(Q)
    chance = 0.6 + 0.4 * ((up[0] - 1) / 19 - 0.5)
    found = kept.abs() > 1e-2
    torch.testing.assert_close(found.float().mean(0), chance, rtol=0, atol=0.03)
    torch.testing.assert_close(kept[found], (up / chance)[found], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept.mean(0), up[0], rtol=0.06, atol=0)


def test_della_without_epsilon_is_dare_ties():
    expected = combine([A, B], [1.0, 2.0], "dare_ties", density=0.6, seed=5)
    assert_is(combine([A, B], [1.0, 2.0], "della", density=0.6, epsilon=0.0, seed=5), matrices(expected))


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density, weights", [(1.0, [1.0, 1.0, 1.0]), (0.3, [0.8, -1.0, 2.0])])
@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_knots_is_ties_in_the_shared_basis(density, weights, sign):
    options = {"density": density, "majority_sign_method": sign}
    mixed = combine([A, B, C], weights, "knots", **options)
    for name, matrix in matrices(mixed).items():
        deltas = [matrices(vector)[name] for vector in (A, B, C)]
        u, s, vh = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
        rank = int((s > 1e-6 * s[0]).sum())
        signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
        u, vh = u * signs, vh * signs.T
        parts = (s[:rank, None] * vh[:rank]).split(deltas[0].shape[1], 1)
        expected = u[:, :rank] @ peft.ties(list(parts), torch.tensor(weights).double(), **options)
        assert (matrix - expected).norm() <= 1e-5 * expected.norm()
    assert mixed.modules[Q].rank <= 6
    single = combine([A], [1.0], "knots", density=1.0)
    assert_is(single, matrices(A))


@pytest.mark.parametrize("mu, directions", [(0.0, 0), (1.0, 0), (4.0, 2), (1e9, 0)])
def test_np_lora_takes_the_style_s_directions_from_the_content(mu, directions):
    mixed = combine([A, B], [0.8, 1.5], "np_lora", mu=mu, directions=directions)
    expected = {}
    for name, content in matrices(A).items():
        style = matrices(B)[name]
        _, s, vh = torch.linalg.svd(style, full_matrices=False)
        v = vh[: directions or int((s > 1e-6 * s[0]).sum())].T
        expected[name] = 0.8 * (content - mu / (1 + mu) * content @ v @ v.T) + 1.5 * style
        assert mu < 1e9 or ((matrices(mixed)[name] - 1.5 * style) @ v).norm() < 1e-5 * content.norm()
    assert_is(mixed, expected)
    assert mixed.modules[Q].rank == A.modules[Q].rank + B.modules[Q].rank


def test_np_lora_of_a_flattened_convolution_and_half_precision():
    flat = LoRAVector({CONV: Factors(A.modules[CONV].down.flatten(1), A.modules[CONV].up.flatten(1), 3.0)})
    whole, halves = ([v.modules[CONV] for v in pair] for pair in ((A, B), (flat, B)))
    expected = combine([LoRAVector({CONV: f}) for f in whole], [1.0, 1.0], "np_lora").delta(CONV)
    torch.testing.assert_close(
        combine([LoRAVector({CONV: f}) for f in halves], [1.0, 1.0], "np_lora").delta(CONV), expected
    )
    narrow = [LoRAVector({CONV: f.to(torch.float16)}) for f in whole]
    torch.testing.assert_close(combine(narrow, [1.0, 1.0], "np_lora").delta(CONV), expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("weights, name, options, message", [
    ([1.0, 1.0], "breadcrumbs", {"density": 1.0}, "density 1.0 and gamma 0.01 are 1.01 together, and at most 1"),
    ([1.0, 1.0], "della", {"density": 0.95}, r"make chances of 0.85 to 1.05, and they are in \(0, 1\]; lower epsilon"),
    ([1.0, 1.0], "della", {"density": 0.1}, "make chances of 0 to 0.2"),
    ([1.0, -1.0], "average", {}, "the weights 1, -1 sum to 0; give weights of another sum"),
    ([1.0, 1.0], "average", {"decay": 0.0}, r"decay is 0.0; it is .*, in \(0, 1\], such as 1.0"),
    ([0.0, 0.0], "karcher", {}, "all weights are 0; a mean needs one other than 0"),
    ([1.0, 1.0], "np_lora", {"mu": -1.0}, "mu is -1.0; it is .*, at least 0, such as 1.0"),
    ([1.0, 1.0], "np_lora", {"directions": 1.5}, "directions is 1.5; it is .*, at least 0, such as 0"),
    ([1.0, 1.0], "auto_strength", {"per_module": "yes"}, "per_module is yes; it is .*, True or False, such as False"),
    ([1.0, 1.0], "dare_linear", {"seed": True}, "seed is True; it is .*, a whole number, such as 0"),
    ([1.0], "np_lora", {}, "np_lora has 1 vectors; it takes 2"),
])  # fmt: skip
def test_errors(weights, name, options, message):
    with pytest.raises(ValueError, match=message):
        combine([A, B][: len(weights)], weights, name, **options)


def test_places_of_options_are_kept():
    """Saved graphs keep an option's value by its place: what is here never changes, a new option comes last."""
    assert [(name, option.place) for name, (option, _) in all_options().items()] == [
        ("density", 1), ("t", 2), ("seed", 3), ("majority_sign_method", 4), ("per_module", 5), ("epsilon", 6),
        ("gamma", 7), ("mu", 8), ("directions", 9), ("decay", 10),
    ]  # fmt: skip


def test_a_method_is_known_by_its_function():
    for name, found in METHODS.items():
        assert found.name == name and found.about.endswith(".") and len(found.about) < 160
        assert found.resolved({}) == found.defaults
    assert users_of("seed") == ["dare_linear", "dare_ties", "della"]
    assert METHODS["ties"].resolved({"density": 0.2}) == {"density": 0.2, "majority_sign_method": "total"}


def test_a_method_that_would_shift_others_is_refused():
    from typing import Annotated

    def taken(vectors, weights, *, other: Annotated[float, Option("it", 1)] = 0.5): ...
    def another_default(vectors, weights, *, t: Annotated[float, METHODS["slerp"].options["t"]] = 0.25): ...
    def without(vectors, weights, *, other: float = 0.5): ...
    def ties(vectors, weights): ...

    for function, message in [
        (taken, "taken's other has place 1, where there is density with default 0.5; give it .* place 11"),
        (another_default, "another_default's t has place 2, where there is t with default 0.5"),
        (without, "without's other has no Option or no default"),
        (ties, "a method ties is there already"),
    ]:
        with pytest.raises(ValueError, match=message):
            method()(function)
    assert "taken" not in METHODS


def test_the_document_s_new_method_is_one_new_file(tmp_path, monkeypatch, capsys):
    """The file of docs/extending.md in the package: Python and the command line have it, with its option."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (tmp_path / "quantile.py").write_text(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], encoding="utf-8")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    importlib.import_module(f"{folder.__name__}.quantile")
    monkeypatch.chdir(tmp_path)
    try:
        mixed = combine([A, B, C], [1.0, -0.5, 2.0], "quantile", q=0.25, rank=99)
        for name, matrix in matrices(mixed).items():
            parts = [w * matrices(v)[name] for w, v in ((1.0, A), (-0.5, B), (2.0, C))]
            torch.testing.assert_close(matrix, torch.quantile(torch.stack(parts), 0.25, dim=0), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"q is 2; it is the share of .*, in \[0, 1\], such as 0.5"):
            combine([A, B], [1.0, 1.0], "quantile", q=2)
        for name, vector in (("a", A), ("b", B)):
            vector.save(f"{name}.safetensors")
        command = ["merge", "a.safetensors + b.safetensors", "-o", "mix.safetensors", "--method", "quantile"]
        assert cli.main([*command, "--q", "0.75", "--quiet"]) == 0
        record = LoRAVector.load("mix.safetensors").metadata["lcm_lora.expression"]
        assert record == "quantile(1*a, 1*b, q=0.75)"
    finally:
        METHODS.pop("quantile", None)


def test_the_documents_say_of_each_method_what_it_says_itself():
    page = (ROOT / "web" / "docs" / "LCMLoRA_Combine.md").read_text(encoding="utf-8")
    found = re.findall(r"^- `(\w+)`: (.+)$", page, re.M)
    assert found == [(name, m.about) for name, m in METHODS.items()]
    for name, (option, _) in all_options().items():
        (line,) = re.findall(rf"^- \*\*{name}\*\* .*$", page, re.M)
        assert f"— {', '.join(users_of(name))}: {option.about}." in line
    chinese = (ROOT / "web" / "docs" / "LCMLoRA_Combine" / "zh.md").read_text(encoding="utf-8")
    assert re.findall(r"^- `(\w+)`：", chinese, re.M) == list(METHODS)
    table = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name, m in METHODS.items():
        flags = " ".join("--" + (option.flag or key.replace("_", "-")) for key, option in m.options.items())
        row = f"| {name} | `{flags}` |" if flags else f"| {name} | |"
        assert f"\n{row}\n" in table, f"docs/command-line.md lacks the row {row}"
