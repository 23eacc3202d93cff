"""What makes LoRA arithmetic fast, against slow and exact references."""

import gc
import threading

import pytest
import torch

from lcm_core.lora import LoRAVector, combine
from lcm_core.lora.ahead import Ahead
from lcm_core.lora.gram import lower_gram
from lcm_core.lora.leading import leading
from lcm_core.lora.lowrank import Factors, Limits, decompose
from lcm_core.lora.methods.della import _ranks
from lcm_core.lora.pruning import keep_largest

ROWS, COLUMNS, RANK = 260, 400, 16


def matrix_of(squares, seed=0):
    """(a matrix (ROWS, COLUMNS) of these singular values, its singular vectors)."""
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(side, ROWS, generator=g).double())[0] for side in (ROWS, COLUMNS))
    return ((u * squares) @ v.T).float(), u, v


SPECTRA = {
    "noise above a signal's tail": lambda i: (0.97**i).clamp(min=0.3) * (1 - 1e-3 * i),
    "close at the cut": lambda i: torch.where(i < RANK - 3, 2.0, torch.where(i < RANK + 3, 1.0 - 1e-6 * i, 0.5)),
    "flat": lambda i: torch.ones_like(i),
    "power": lambda i: 1 / (i + 1),
}


@pytest.mark.parametrize("products", [0, 1000])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_leading_directions_hold_the_energy_of_the_truncated_svd(spectrum, products, monkeypatch):
    monkeypatch.setattr("lcm_core.lora.leading.PRODUCTS", products)
    values = SPECTRA[spectrum](torch.arange(ROWS).double())
    matrix, u, v = matrix_of(values)
    left, right, squares = leading(matrix, RANK)
    best = values.sort(descending=True).values[:RANK].square().sum()
    product = left[:, :RANK].double() @ right[:RANK].double()
    assert float(product.square().sum()) == pytest.approx(float(best), rel=1e-6)
    assert float(squares[:RANK].sum()) == pytest.approx(float(best), rel=1e-6)
    torch.testing.assert_close(left.T @ left, torch.eye(left.shape[1]), atol=1e-5, rtol=0)
    if values[RANK] < 0.99 * values[RANK - 1]:
        nearest = (u[:, :RANK] * values[:RANK]) @ v[:, :RANK].T
        assert float((product - nearest).norm()) < 1e-4 * float(nearest.norm())


def test_leading_leaves_what_it_can_not_do_to_the_exact_way():
    matrix = matrix_of(SPECTRA["power"](torch.arange(ROWS).double()))[0]
    assert leading(matrix, ROWS // 4 + 1) is None
    assert leading(matrix, ROWS + 1) is None
    assert leading(matrix.double(), RANK) is None
    assert leading(matrix[:200], RANK) is None
    assert leading(torch.zeros(ROWS, COLUMNS), RANK) is None
    assert leading(matrix_of((torch.arange(ROWS) < 8).double())[0], RANK) is None


@pytest.mark.parametrize("rows", [*range(1, 18), 253])
def test_the_gram_matrix_is_whole_at_any_number_of_rows(rows):
    matrix = torch.randn(rows, 5000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lower_gram(matrix, torch.float64).tril(), (matrix.double() @ matrix.T.double()).tril())


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_decomposing_by_rank_and_energy_is_the_exact_way_s(tall, scale, monkeypatch):
    matrix = matrix_of(SPECTRA["power"](torch.arange(ROWS).double()))[0] * scale
    matrix = matrix.T if tall else matrix
    for limits in (Limits(RANK), Limits(RANK, energy=0.9), Limits(RANK, sv_ratio=7.5)):
        fast, share = decompose(matrix, limits)
        with monkeypatch.context() as patched:
            patched.setattr("lcm_core.lora.lowrank.leading", lambda *_: None)
            exact, expected = decompose(matrix, limits)
        assert fast.rank == exact.rank <= RANK
        assert share == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(fast.delta() / scale, exact.delta() / scale, rtol=0, atol=1e-5)
    assert decompose(torch.zeros(ROWS, COLUMNS), RANK)[0].rank == 1
    low = matrix_of((torch.arange(ROWS) < 8).double())[0]
    assert decompose(low, RANK)[0].rank == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skipped", [0.0, 0.1])
@pytest.mark.parametrize("values", ["distinct", "ties", "equal", "zero", "mostly zero"])
def test_the_largest_values_are_those_that_a_stable_sort_finds(values, skipped, dtype):
    noise = torch.randn(37, 23, generator=torch.Generator().manual_seed(0), dtype=dtype)
    matrix = {
        "distinct": noise, "ties": (3 * noise).round(), "equal": noise.sign(), "zero": 0 * noise,
        "mostly zero": noise * (noise > 1.5),
    }[values]  # fmt: skip
    for density in (0.001, 0.3, 0.9 - skipped, 0.9):
        size = matrix.numel()
        order = matrix.flatten().abs().argsort(descending=True, stable=True)
        kept = order[int(skipped * size) : int(skipped * size) + int(density * size)]
        expected = torch.zeros(size, dtype=dtype)
        expected[kept] = matrix.flatten()[kept]
        assert torch.equal(keep_largest(density, skipped)("m", 0, matrix), expected.reshape(matrix.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_are_a_stable_sort_s(dtype):
    matrix = (3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)).round()
    expected = matrix.abs().argsort(dim=1, stable=True).argsort(dim=1)
    assert torch.equal(_ranks(matrix), expected.to(dtype))


def vector(seed):
    g = torch.Generator().manual_seed(seed)
    factors = [Factors(torch.randn(4, 300, generator=g), torch.randn(280 + i, 4, generator=g), 4.0) for i in range(6)]
    return LoRAVector({f"unet.blocks.{i}.to_q": factor for i, factor in enumerate(factors)})


@pytest.mark.parametrize("method", ["ties", "dare_linear", "sum"])
def test_the_bits_do_not_depend_on_the_threads(method):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(combine([vector(0), vector(1)], [0.8, 1.0], method, rank=3))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert list(other.modules) == list(found[0].modules)
        for name, factors in found[0].modules.items():
            assert torch.equal(factors.down, other.modules[name].down)
            assert torch.equal(factors.up, other.modules[name].up)


def test_values_made_ahead_come_by_name_in_any_order_and_leave_torch_s_threads():
    before, seen, others = torch.get_num_threads(), [], {*threading.enumerate()}

    def start(place):
        seen.append(place)
        return lambda: (place, torch.get_num_threads(), torch.is_inference_mode_enabled()), 1

    made = Ahead({str(i): i for i in range(20)}, start)
    with torch.inference_mode():
        for i in (0, 3, 1, 2, *range(4, 20), 7):
            assert made[str(i)] == (i, 1, True)
            assert len(seen) <= len({*seen}) + 1 <= 22
    assert sorted(seen) == sorted([*range(20), 7])
    assert torch.get_num_threads() == before
    del made
    gc.collect()
    for thread in {*threading.enumerate()} - others:
        thread.join(10)
        assert not thread.is_alive()


def test_an_error_comes_with_the_value_that_it_concerns():
    def start(place):
        return lambda: 6 // place, 1

    made = Ahead({"a": 1, "b": 0, "c": 2}, start)
    assert made["a"] == 6
    with pytest.raises(ZeroDivisionError):
        made["b"]
    assert made["c"] == 3
