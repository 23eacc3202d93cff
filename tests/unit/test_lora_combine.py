import math

import peft.utils.merge_utils
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lcm_core.lora import Factors, LoRAVector, lowrank
from lcm_core.lora.combine import METHODS, combine
from lcm_core.lora.leading import leading
from lcm_core.lora.pruning import random_mask
from lcm_core.lora.terms import sum_norm

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
NORM = "unet.conv_norm_out.weight"
BIAS = "unet.conv_out.bias"
DENSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune", "breadcrumbs", "della")
# Options with which a method leaves a vector that is alone as it is, but for a factor.
WHOLE = {
    **dict.fromkeys(["ties", "dare_linear", "dare_ties", "magnitude_prune", "knots"], {"density": 1.0}),
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "auto_strength": {"per_module": True},
}


def vector(matrix, name=Q, diffs=None):
    """A vector whose Delta W is a given matrix: down is the identity."""
    up = torch.as_tensor(matrix)
    return LoRAVector({name: Factors(torch.eye(up.shape[1]), up, float(up.shape[1]))}, diffs or {})


A = vector(
    [[8.0, -1, 2, 0], [0.5, 6, 0, -3], [0, 0, 4, 1.5], [-7, 0.25, 0, 5]], diffs={NORM: torch.tensor([4.0, -1, 0.5, -3])}
)
B = vector(
    [[-2.0, 3, 1, 0], [0, 5, -9, 0.5], [1, 0, 0, -8], [-4, 2, 0.25, -6]],
    diffs={NORM: torch.tensor([-5.0, -2, 0.25, 0]), BIAS: torch.tensor([1.0, -2])},
)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(9, 7)
        self.only_a = torch.nn.Linear(5, 6)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.point = torch.nn.Conv2d(6, 5, 1)


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(700, 300)


def peft_pair(net=Tiny, ranks=(3, 2)):
    """A PEFT model with two adapters of different rank, alpha and targets, and both as vectors."""
    torch.manual_seed(0)
    names = [name for name, _ in net().named_children()]
    config = LoraConfig(r=ranks[0], lora_alpha=5, target_modules=names, init_lora_weights=False)
    model = get_peft_model(net(), config, "style")
    targets = [name for name in names if name != "only_a"]
    model.add_adapter("lcm", LoraConfig(r=ranks[1], lora_alpha=4, target_modules=targets, init_lora_weights=False))
    layers = {name: getattr(model.base_model.model, name) for name in names}

    def read(adapter):
        return LoRAVector(
            {
                name: Factors(
                    layer.lora_A[adapter].weight.detach(),
                    layer.lora_B[adapter].weight.detach(),
                    layer.scaling[adapter] * layer.r[adapter],
                )
                for name, layer in layers.items()
                if adapter in layer.lora_A
            }
        )

    return model, layers, read("style"), read("lcm")


@pytest.mark.parametrize("density, weights, rank", [(0.3, (0.8, 1.0), 5), (0.75, (1.5, -0.4), 2), (1.0, (0.8, 1.0), 2)])
@pytest.mark.parametrize("method, sign", [
    ("ties", "total"), ("ties", "frequency"), ("magnitude_prune", None), ("dare_linear", None),
    ("dare_ties", "total"), ("dare_ties", "frequency"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:The density 1.0")
def test_equals_peft(monkeypatch, method, sign, density, weights, rank):
    equals_peft(monkeypatch, peft_pair(), method, sign, density, weights, rank)


@pytest.mark.parametrize("method, sign", [("ties", "total"), ("dare_linear", None), ("dare_ties", "frequency")])
def test_equals_peft_on_layers_that_are_not_decomposed_whole(monkeypatch, method, sign):
    found = []
    monkeypatch.setattr(lowrank, "leading", lambda *given: found.append(leading(*given)) or found[-1])
    equals_peft(monkeypatch, peft_pair(Wide, (12, 16)), method, sign, 0.5, (0.8, 1.0), 16)
    assert len(found) == 1 and found[0] is not None


def equals_peft(monkeypatch, pair, method, sign, density, weights, rank):
    model, layers, a, b = pair
    options = {"density": density, **({"majority_sign_method": sign} if sign else {})}
    draws = iter([(name, i) for name, *_ in model.base_model.model.named_modules()
                  for i, v in enumerate((a, b)) if name.split(".")[-1] in v.modules])  # fmt: skip

    def our_draw(tensor, density, rescale):
        name, i = next(draws)
        mask = random_mask(name, i, tuple(tensor.shape), density, seed=7).reshape(tensor.shape)
        return tensor * mask / density

    monkeypatch.setattr(peft.utils.merge_utils, "random_pruning", our_draw)
    model.add_weighted_adapter(["style", "lcm"], list(weights), "mix", f"{method}_svd", svd_rank=rank, **options)
    if "dare" in method:
        options["seed"] = 7
    mixed = combine([a, b], weights, method, rank=rank, **options)
    assert mixed.modules.keys() == layers.keys()
    for name, layer in layers.items():
        expected = layer.get_delta_weight("mix").detach()
        assert mixed.delta(name).shape == expected.shape
        assert mixed.modules[name].rank <= rank
        assert (mixed.delta(name) - expected).norm() <= 1e-4 * expected.norm() + 1e-7


def test_ties_on_literals():
    mixed = combine([A, B], [1.0, 2.0], "ties", density=0.5)
    # What stays of A: 8 2 6 -3 4 1.5 -7 5; of B: -2 3 5 -9 -8 -4 2 -6.
    expected = torch.tensor([[8.0, 6, 2, 0], [0, (6 + 2 * 5) / 2, -18, -3], [0, 0, 4, -16], [(-7 - 8) / 2, 4, 0, -12]])
    torch.testing.assert_close(mixed.delta(Q), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed.diffs[NORM], torch.tensor([-10.0, -4, 0, -3]))
    torch.testing.assert_close(mixed.diffs[BIAS], torch.tensor([0.0, -4]))


def test_magnitude_prune_on_literals():
    single = combine([A], [-1.0], "magnitude_prune", density=0.25)
    expected = torch.zeros(4, 4)
    expected[[0, 1, 3, 3], [0, 1, 0, 3]] = torch.tensor([-8.0, -6, 7, -5])
    torch.testing.assert_close(single.delta(Q), expected)
    torch.testing.assert_close(single.diffs[NORM], torch.tensor([-4.0, 0, 0, 0]))
    nothing = combine([A], [1.0], "magnitude_prune", density=0.05)
    assert torch.equal(nothing.delta(Q), torch.zeros(4, 4)) and nothing.modules[Q].rank == 1


@pytest.mark.parametrize("method", ["sum", "dare_linear", "magnitude_prune"])
def test_all_kept_is_the_exact_sum(method):
    options = {} if method == "sum" else {"density": 1.0}
    mixed, expected = combine([A, B, A], [0.8, -1.0, 0.5], method, **options), 1.3 * A - B
    torch.testing.assert_close(mixed.delta(Q), expected.delta(Q), rtol=1e-5, atol=1e-5)
    for name in (NORM, BIAS):
        torch.testing.assert_close(mixed.diffs[name], expected.diffs[name])


@pytest.mark.bits
def test_sum_equals_the_operators():
    assert torch.equal(combine([A, B], [0.8, 1.0]).modules[Q].up, (0.8 * A + 1.0 * B).modules[Q].up)
    assert combine([A], [1.0]).modules[Q].down is A.modules[Q].down
    one = LoRAVector(A.modules, metadata={"author": "x", "title": "a", "ss_network_dim": "4"})
    other = LoRAVector(B.modules, metadata={"author": "x", "title": "b"})
    for method in METHODS:
        assert combine([one, other], [1.0, 1.0], method).metadata == {"author": "x"}
    assert combine([one, other, one], [1.0] * 3).metadata == {"author": "x"}


@pytest.mark.parametrize("method", METHODS)
def test_modules_of_one_vector_alone_zero_and_empty_vectors(method):
    only_b = vector(torch.diag(torch.tensor([3.0, 2, 1, 0.5])), name=K)
    options = WHOLE.get(method, {})
    mixed = combine([A, only_b], [1.0, 1.0], method, **options)
    scale = {"slerp": 0.5, "karcher": 0.5, "average": 0.5}.get(method, 1.0)
    torch.testing.assert_close(mixed.delta(Q), scale * A.delta(Q), rtol=1e-5, atol=1e-5)
    if method != "project_out":
        torch.testing.assert_close(mixed.delta(K), scale * only_b.delta(K), rtol=1e-5, atol=1e-5)
    zero = combine([0 * A, vector(torch.zeros(4, 4))], [1.0, 1.0], method, **options)
    assert zero.norm() == 0 and torch.equal(zero.delta(Q), torch.zeros(4, 4))
    assert not combine([LoRAVector(), LoRAVector()], [1.0, 1.0], method)


@pytest.mark.bits
def test_dare_draws_by_name_seed_and_vector():
    large = {name: Factors(torch.ones(1, 200), torch.ones(50, 1), 1.0) for name in (Q, K)}
    backwards = dict(reversed(large.items()))

    def drawn(modules, count=1, **options):
        return combine([LoRAVector(modules)] * count, [1.0] * count, "dare_linear", rank=50, **options)

    first, again = drawn(large, density=0.3, seed=1), drawn(backwards, density=0.3, seed=1)
    for name in large:
        assert torch.equal(first.delta(name), again.delta(name))
        values = first.delta(name).double()
        assert values.mean() == pytest.approx(1.0, abs=0.06)
        assert (((values - 1 / 0.3).abs() < 1e-3) | (values.abs() < 1e-3)).all()
    assert not torch.allclose(first.delta(Q), first.delta(K), atol=0.5)
    assert not torch.allclose(first.delta(Q), drawn(large, density=0.3, seed=2).delta(Q), atol=0.5)
    assert drawn(large, 2, density=0.5).delta(Q).unique().numel() > 2
    assert torch.equal(random_mask("unet.a.b", 0, (4, 4), 0.5, 3), random_mask("unet.a_b", 0, (4, 4), 0.5, 3))


def test_slerp_on_literals():
    x = vector(torch.diag(torch.tensor([2.0, 0, 0, 0])), diffs={NORM: torch.tensor([2.0, 0])})
    y = vector(torch.diag(torch.tensor([0.0, 2, 0, 0])), diffs={NORM: torch.tensor([0.0, 2])})
    half = combine([x, y], [1.0, 1.0], "slerp")
    torch.testing.assert_close(half.delta(Q), torch.diag(torch.tensor([1.0, 1, 0, 0]) * math.sqrt(2)))
    torch.testing.assert_close(half.diffs[NORM], torch.tensor([1.0, 1]) * math.sqrt(2))
    third = combine([x, y], [1.0, -1.0], "slerp", t=1 / 3)
    torch.testing.assert_close(third.delta(Q), torch.diag(torch.tensor([math.sqrt(3), -1, 0, 0])))
    near = vector(torch.diag(torch.tensor([2.0, 0.02, 0, 0])))
    for other in (near, -near, vector(torch.zeros(4, 4))):
        linear = combine([x, other], [1.0, 1.0], "slerp", t=0.25)
        torch.testing.assert_close(linear.delta(Q), 0.75 * x.delta(Q) + 0.25 * other.delta(Q), rtol=1e-5, atol=1e-6)
    for t, expected in ((0.0, A), (1.0, B)):
        torch.testing.assert_close(combine([A, B], [1.0, 1.0], "slerp", t=t).delta(Q), expected.delta(Q))


def test_project_out():
    rest = combine([A, B], [1.0, 1.0], "project_out")
    share = A.dot(B) / B.dot(B)
    torch.testing.assert_close(rest.delta(Q), A.delta(Q) - share * B.delta(Q), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rest.diffs[BIAS], -share * B.diffs[BIAS])
    assert abs(rest.dot(B)) < 1e-5 * A.norm() * B.norm()
    by_module = combine([A, B], [0.5, 1.0], "project_out", per_module=True)
    q_share = float((A.delta(Q) * B.delta(Q)).sum() / B.delta(Q).square().sum())
    torch.testing.assert_close(by_module.delta(Q), 0.5 * (A.delta(Q) - q_share * B.delta(Q)), rtol=1e-5, atol=1e-5)
    assert by_module.diffs.keys() == {NORM}
    assert abs(float(by_module.diffs[NORM] @ B.diffs[NORM])) < 1e-5
    kept = combine([A, B], [1.0, 0.25], "project_out")
    assert kept.dot(B) == pytest.approx(0.75 * A.dot(B), rel=1e-5)
    assert combine([A, -3 * A], [1.0, 1.0], "project_out").norm() < 1e-6 * A.norm()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 3, 3, 3)])
def test_rank_gives_the_truncated_svd(shape):
    g = torch.Generator().manual_seed(0)

    def random(rank):
        kernel = [1] * (len(shape) - 2)
        down, up = torch.randn(rank, *shape[1:], generator=g), torch.randn(shape[0], rank, *kernel, generator=g)
        return LoRAVector({Q: Factors(down, up, 1.0)})

    a, b = random(2), random(3)
    for method in (*DENSE, "slerp"):
        whole = combine([a, b], [1.0, 0.5], method, rank=99)
        small = combine([a, b], [1.0, 0.5], method, rank=2)
        assert small.modules[Q].rank == small.modules[Q].alpha == 2
        assert combine([a, b], [1.0, 0.5], method).modules[Q].rank <= 5
        u, s, vh = torch.linalg.svd(whole.delta(Q).double().flatten(1), full_matrices=False)
        best = ((u[:, :2] * s[:2]) @ vh[:2]).reshape(shape)
        assert small.delta(Q).shape == shape
        torch.testing.assert_close(small.delta(Q).double(), best, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small.modules[Q].down.norm(), small.modules[Q].up.norm())


def test_flattened_convolutions_and_narrow_dtypes():
    down, up = torch.arange(27.0).reshape(1, 3, 3, 3), torch.ones(2, 1, 1, 1)
    a = LoRAVector({Q: Factors(down.half(), up.half(), 1.0)})
    flattened = LoRAVector({Q: Factors(down.flatten(1).half(), up.flatten(1).half(), 1.0)})
    for pair in ([a, flattened], [flattened, a]):
        mixed = combine(pair, [1.0, 1.0], "ties", density=1.0)
        assert mixed.delta(Q).dtype == torch.float32
        torch.testing.assert_close(mixed.delta(Q), a.delta(Q))


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_modules_and_can_stop(method):
    seen = []
    combine([A, B], [1.0, 1.0], method, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        combine([A, B], [1.0, 1.0], method, progress=stop)


@pytest.mark.parametrize("arguments, options, message", [
    (([A], [1.0], "median"), {}, "'median' is unknown; use one of auto_strength, average, "),
    (([A], [1.0], "ties"), {"seed": 1}, "ties has no option seed; its options: density, majority_sign_method$"),
    (([A], [1.0], "sum"), {"rank": 1, "t": 2}, "sum has no option t; its options: none"),
    (([], []), {}, "no vectors"),
    (([A, B], [1.0]), {}, "1 weights for 2 vectors"),
    (([A, B], [1.0, math.nan]), {}, "a weight is nan"),
    (([A], [-math.inf]), {}, "a weight is -inf"),
    (([A], [1.0], "ties"), {"density": 0}, r"density is 0; it is the share of values to keep, in \(0, 1\]"),
    (([A], [1.0], "magnitude_prune"), {"density": 1.01}, "density is 1.01"),
    (([A], [1.0], "dare_linear"), {"density": math.nan}, "density is nan"),
    (([A], [1.0], "dare_ties"), {"density": -0.5}, "density is -0.5"),
    (([A], [1.0], "dare_ties"), {"rank": 0}, "rank is 0; it must be a whole number, at least 1"),
    (([A], [1.0], "ties"), {"rank": 2.5}, "rank is 2.5"),
    (([A, B], [1.0, 1.0], "slerp"), {"rank": -1}, "rank is -1"),
    (([A], [1.0]), {"energy": 0.0}, r"energy is 0.0; it is a share in \(0, 1\]"),
    (([A], [1.0], "ties"), {"majority_sign_method": "x"}, "'x' is unknown; use one of total, frequency"),
    (([A], [1.0], "slerp"), {}, "slerp has 1 vectors; it takes 2"),
    (([A, B, A], [1.0] * 3, "project_out"), {}, "project_out has 3 vectors; it takes 2"),
    (([A, B], [1.0, 1.0], "slerp"), {"t": 1.5}, r"t is 1.5; it is .* in \[0, 1\], such as 0.5"),
    (([vector(torch.full((4, 4), 1e30))], [1e30], "magnitude_prune"), {}, "to_q is not finite; use smaller weights"),
    (([1e300 * LoRAVector(A.modules)], [1e300]), {}, "weight 1e.300 overflows alpha"),
])  # fmt: skip
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        combine(*arguments, **options)


@pytest.mark.parametrize("method", METHODS)
def test_other_architectures_are_refused(method):
    with pytest.raises(ValueError, match=r"to_q is \(4, 4\) in one vector and \(5, 4\) in the other"):
        combine([A, vector(torch.ones(5, 4))], [1.0, 1.0], method)


@pytest.mark.parametrize("method", ["sum", "slerp"])
def test_compression_and_dtype_are_those_of_the_whole(method):
    whole = combine([A, B], [0.8, -0.5], method)
    half = combine([A, B], [0.8, -0.5], method, dtype=torch.float16)
    small = combine([A, B], [0.8, -0.5], method, energy=0.9)
    kept = {f.down.dtype for f in half.modules.values()} | {diff.dtype for diff in half.diffs.values()}
    assert kept == {torch.float16}
    for name in whole.modules:
        assert torch.equal(half.modules[name].up, whole.modules[name].up.half())
        torch.testing.assert_close(small.delta(name), whole.compress(energy=0.9).delta(name))


def test_sum_norm_is_that_of_the_sum():
    assert sum_norm([A, B, A], [0.5, -2.0, 0.25]) == pytest.approx((0.75 * A - 2 * B).norm(), rel=1e-6)
    assert sum_norm([A, A], [1.0, -1.0]) == pytest.approx(0.0, abs=1e-6 * A.norm())
    assert sum_norm([LoRAVector()], [1.0]) == 0.0
