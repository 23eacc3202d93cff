"""Files that claim much of little, numbers at the end of their range, and metadata that was made to break a reader."""

import json
import math
import subprocess
import sys

import pytest
import torch

from lcm_core.lora import Factors, LoRAVector, block_norms, combine, evaluate_expression, scale_blocks
from lcm_core.lora.convert import LARGEST_FILE
from lcm_core.lora.file import LoRAFile
from lcm_core.lora.lowrank import LARGEST, decompose, inner_product, truncate
from lcm_core.lora.record import EXPRESSION, PARENTS, call_record, sum_record

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
MEGABYTE = 1 << 20


def run_with_memory(code, megabytes):
    """What `code` prints in a process that may have so much more memory than torch alone."""
    limit = (
        "import resource, torch\n"
        "from lcm_core.lora import Factors, LoRAVector, combine\n"
        "torch.set_num_threads(1)\n"
        "torch.linalg.svd(torch.linalg.qr(torch.ones(2, 2))[0] @ torch.ones(2, 2))\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + ({megabytes} << 20),) * 2)\n"
    )  # fmt: skip
    run = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process's memory as Linux does")
TALL = (
    "down, up = torch.full((40_000, 1), 1e-3), torch.full((1, 40_000), 1e-3)\n"
    "vector = LoRAVector({'unet.conv_in': Factors(down, up, 40_000.0)})\n"
)


@linux
def test_a_rank_beyond_the_module_costs_no_more_than_its_factors():
    code = TALL + (
        "print(vector.norm(), vector.cosine(vector), vector.compress().rank, vector.compress(energy=0.5).norm())\n"
        "print((vector + vector).compress(1).norm(), vector.delta('unet.conv_in').item())\n"
        "print(combine([vector, vector], [1.0, 1.0], 'ties', density=1).norm())\n"
        "print(combine([vector, vector], [1.0, -1.0], 'slerp').norm())\n"
    )
    numbers = [float(number) for number in run_with_memory(code, 64).split()]
    assert numbers == pytest.approx([0.04, 1, 1, 0.04, 0.08, 0.04, 0.04, 0.0], rel=1e-3, abs=1e-9)


@linux
@pytest.mark.parametrize("state", [
    "{'m.lokr_w1': torch.ones(150, 150), 'm.lokr_w2': torch.ones(200, 200)}",
    "{f'm.hada_w{i}_{s}': torch.ones(*((30_000, 180) if s == 'a' else (180, 30_000))) for i in (1, 2) for s in 'ab'}",
    "{'m.lora_down.weight': torch.ones(1, 30_000, 1, 1), 'm.lora_mid.weight': torch.ones(1, 1, 200, 200),"
    " 'm.lora_up.weight': torch.ones(1, 1, 1, 1)}",
    "{'m.lokr_w1': torch.ones(1, 1), 'm.lokr_w2_a': torch.ones(1, 1), 'm.lokr_w2_b': torch.ones(1, 30_000),"
    " 'm.lokr_t2': torch.ones(1, 1, 200, 200)}",
])  # fmt: skip
def test_a_small_file_that_claims_a_large_weight_is_refused_before_it_is_made(state):
    code = (
        f"state = {state}\ntry:\n    LoRAVector.from_state_dict(state)\nexcept ValueError as error:\n    print(error)\n"
    )
    assert "and at most 536,870,912 are made of one; the file is damaged" in run_with_memory(code, 256)


def test_a_delta_beyond_any_layer_is_not_multiplied_out():
    vector = LoRAVector({Q: Factors(torch.ones(1, 30_000), torch.ones(30_000, 1), 1.0)})
    assert vector.norm() == pytest.approx(30_000)
    with pytest.raises(ValueError, match=f"{Q} would have 900,000,000 values and at most {LARGEST:,}"):
        vector.delta(Q)
    with pytest.raises(ValueError, match="would have 900,000,000 values"):
        combine([vector], [1.0], "ties")


def test_a_file_of_many_large_modules_needs_a_rank(monkeypatch):
    monkeypatch.setattr("lcm_core.lora.convert.LARGEST_FILE", 1000)
    state = {}
    for i in range(3):
        state |= {f"lora_unet_input_blocks_{i}_1_proj_in.lokr_{w}": torch.randn(4, 4) for w in ("w1", "w2")}
    with pytest.raises(ValueError, match="over 1,000 values, .*; give a rank, such as 64"):
        LoRAVector.from_state_dict(state)
    assert len(LoRAVector.from_state_dict(state, rank=4)) == 3
    assert LARGEST_FILE == 2**32


def test_a_reshape_must_be_of_the_factors_size():
    state = {f"{Q}.lora_A.weight": torch.ones(1, 6), f"{Q}.lora_B.weight": torch.ones(5, 1)}
    for shape in ([10**6, 10**6], [5, 7], [6, 6]):
        with pytest.raises(ValueError, match="don't fit each other: .*reshape_weight"):
            LoRAFile.of({**state, f"{Q}.reshape_weight": torch.tensor(shape)}).native()


@pytest.mark.parametrize("rank_a, rank_b", [(1, 1), (2, 9), (9, 2), (30, 1), (1, 30), (30, 40), (7, 7)])
@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 3, 3), (1, 1)])
def test_the_inner_product_is_the_same_in_either_order(shape, rank_a, rank_b):
    g = torch.Generator().manual_seed(rank_a)

    def factors(rank):
        columns = math.prod(shape[1:])
        down, up = torch.randn(rank, columns, generator=g), torch.randn(shape[0], rank, generator=g)
        return Factors.of_matrices(down, up, shape)

    a, b = factors(rank_a), factors(rank_b)
    dense = float((a.to(torch.float64).delta() * b.to(torch.float64).delta()).sum())
    assert inner_product("x", a, b) == pytest.approx(dense, rel=1e-9)


HUGE = 3e38


def factors_of(value, rank=2, alpha=2.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    down, up = torch.randn(rank, 6, generator=g).to(dtype), torch.randn(5, rank, generator=g).to(dtype)
    return Factors(down / down.abs().max() * value, up / up.abs().max() * value, alpha)


@pytest.mark.parametrize("value", [2e38, 1e38, 1e30, 1e19, 1.0, 1e-18, 1e-30])
def test_compress_is_exact_however_large_the_factors_are(value):
    vector = LoRAVector({Q: factors_of(value)})
    small = vector.compress(1)
    down, up = (tensor.double() for tensor in (vector.modules[Q].down, vector.modules[Q].up))
    u, s, vh = torch.linalg.svd(up @ down, full_matrices=False)
    best = s[0] * torch.outer(u[:, 0], vh[0])
    found = small.modules[Q].up.double() @ small.modules[Q].down.double()
    assert float((found - best).norm()) < 1e-5 * float(best.norm())
    whole = vector.compress().modules[Q]
    assert float((whole.up.double() @ whole.down.double() - up @ down).norm()) < 1e-5 * float((up @ down).norm())
    assert small.norm() == pytest.approx(float(s[0]), rel=1e-5)
    assert vector.cosine(2 * vector) == pytest.approx(1)


@pytest.mark.parametrize("rank, alpha", [(3, 3.0), (3, 1.7), (3, -5.0), (4, 2.0**-20), (3, 0.0)])
def test_truncating_keeps_alpha(rank, alpha):
    factors = factors_of(1.0, rank, alpha)
    found = truncate(factors)
    assert found.alpha == found.rank
    torch.testing.assert_close(found.delta(), factors.delta())
    spread = [float(factor.norm()) for factor in (found.down, found.up)]
    assert spread[0] == pytest.approx(spread[1], rel=1e-5)


@pytest.mark.parametrize("scale", [1e-36, 0.3, 1.0, 3.0, 1e36])
def test_decomposing_shares_the_size_evenly(scale):
    delta = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * scale
    found, energy = decompose(delta)
    torch.testing.assert_close(found.delta() / scale, delta / scale)
    assert energy == pytest.approx(1)
    assert float(found.down.norm()) == pytest.approx(float(found.up.norm()), rel=1e-5)


def test_a_decomposition_of_zero_holds_all_of_its_energy():
    factors, share = decompose(torch.zeros(3, 4))
    assert (factors.rank, share) == (1, 1.0) and not factors.delta().any()


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (2, 3, 3, 3), (40, 2, 1, 1)])
def test_a_dense_matrix_becomes_factors_of_its_smaller_side(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors = Factors.of_dense(delta)
    assert factors.rank == factors.alpha == min(shape[0], math.prod(shape[1:]))
    assert torch.equal(factors.delta(), delta)


def test_a_dot_of_differences_of_other_shapes_is_an_error():
    a, b = (LoRAVector({}, {"unet.conv_out.bias": torch.ones(size)}) for size in (1, 3))
    for first, second in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="add only LoRAs of one architecture"):
            first.dot(second)


def test_terms_of_zero_take_no_rank():
    a, b = LoRAVector({Q: factors_of(1.0, 2)}), LoRAVector({Q: factors_of(1.0, 3)})
    assert (LoRAVector().rank, (0 * a + 0 * b).rank, (0 * a + b).rank, (a + b).rank) == (0, 2, 3, 5)


def test_vectors_and_factors_are_compared_by_identity():
    a, b = (LoRAVector({Q: factors_of(1.0)}) for _ in range(2))
    assert a != b and len({a, b, a}) == 2 and len({a.modules[Q], b.modules[Q]}) == 2


def test_a_cosine_is_at_most_one_whatever_the_rounding():
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        vector = LoRAVector({Q: Factors(torch.randn(3, 7, generator=g), torch.randn(5, 3, generator=g), 1.7)})
        assert -1 <= vector.cosine(-vector) <= -1 + 1e-12 and 1 - 1e-12 <= vector.cosine(vector) <= 1


OVERFLOWS = {
    "delta": lambda a, b: a.delta(Q),
    "sum": lambda a, b: 1e30 * a + 1e30 * b,
    "combine sum": lambda a, b: combine([a, b], [1e30, 1e30]),
    "combine ties": lambda a, b: combine([a, b], [1.0, 1.0], "ties"),
    "combine dare": lambda a, b: combine([a, b], [1.0, 1.0], "dare_linear", density=0.9),
    "combine to float16": lambda a, b: combine([a, b], [1.0, 1.0], dtype=torch.float16),
    "compress": lambda a, b: (100 * a).compress(1),
    "compress with alpha": lambda a, b: (1e200 * b).compress(),
    "norm": lambda a, b: (1e300 * a).norm(),
    "dot": lambda a, b: (1e200 * a).dot(1e200 * b),
    "block norms": lambda a, b: block_norms(1e300 * a),
    "expression": lambda a, b: evaluate_expression("1e30*a + 1e30*b", {"a": a, "b": b}.__getitem__),
    "folding": lambda a, b: (1e30 * a).state_dict("peft"),
}


@pytest.mark.parametrize("operation", OVERFLOWS)
def test_what_is_beyond_the_numbers_range_is_an_error(operation):
    a, b = LoRAVector({Q: factors_of(HUGE)}), LoRAVector({Q: factors_of(1e30)})
    with pytest.raises(ValueError, match=r"beyond|can't hold|not finite|overflows"):
        OVERFLOWS[operation](a, b)


DIFF = "unet.conv_norm_out.weight"
OF_DIFFS = {
    "times": lambda a: 10 * a,
    "sum": lambda a: a + a,
    "combine": lambda a: combine([a, a], [1.0, 1.0]),
    "blocks": lambda a: scale_blocks(a, {"*": 10.0}),
    "float16": lambda a: combine([a], [1.0], dtype=torch.float16),
}


@pytest.mark.parametrize("operation", OF_DIFFS)
def test_a_difference_of_a_norm_that_overflows_is_an_error(operation):
    with pytest.raises(ValueError, match=f"{DIFF} is beyond torch.float(32|16)'s largest number"):
        OF_DIFFS[operation](LoRAVector({}, {DIFF: torch.full((3,), HUGE)}))


def test_differences_are_named_by_what_they_change():
    diffs = {DIFF: torch.tensor([1.0]), "unet.conv_out.bias": torch.tensor([2.0])}
    state = LoRAVector({}, diffs).state_dict("kohya")
    assert {key: float(value) for key, value in state.items()} == {
        "lora_unet_conv_norm_out.diff": 1.0,
        "lora_unet_conv_out.diff_b": 2.0,
    }


def test_a_dot_of_differences_beyond_float64_is_an_error():
    vector = LoRAVector({}, {DIFF: torch.full((3,), 1e200, dtype=torch.float64)})
    with pytest.raises(ValueError, match="inner product of the vectors is beyond float64's range; scale them down"):
        vector.norm()


@pytest.mark.parametrize("role, value", [("lokr_w1", 1e30), ("lora_mid.weight", HUGE)])
def test_a_product_that_overflows_is_refused_for_use_alone_too(role, value):
    if role == "lokr_w1":
        state = {f"{Q}.lokr_w1": torch.full((2, 2), value), f"{Q}.lokr_w2": torch.ones(2, 2)}
        metadata = {"lora_adapter_metadata": json.dumps({"r": 1, "alpha": 1e20})}
    else:
        shapes = {"lora_down.weight": (2, 3, 1, 1), role: (2, 2, 3, 3), "lora_up.weight": (5, 2, 1, 1)}
        state = {f"{CONV}.{key}": torch.full(shape, value if key == role else 10.0) for key, shape in shapes.items()}
        metadata = {}
    for read in (lambda *file: LoRAFile.of(*file).native(), LoRAVector.from_state_dict):
        with pytest.raises(ValueError, match="is beyond its numbers' range; the file is damaged"):
            read(state, metadata)


PARENT = {"name": "style", "file": "style.safetensors", "sha256": "00", "weight": 1.0}


@pytest.mark.parametrize("text", [
    json.dumps([{**PARENT, "weight": 10**400}]),
    '[{"sha256": "00", "weight": ' + "9" * 5000 + "}]",
    '[{"sha256": "00", "weight": Infinity}]',
    '[{"sha256": "00", "weight": NaN}]',
    '[{"sha256": "00", "weight": "1e999"}]',
    json.dumps([{**PARENT, "weight": None}]), json.dumps([PARENT, 7]), json.dumps({"a": 1}), json.dumps([[1]]),
    json.dumps("text"), json.dumps(3), "[" * 100_000, "{", "", "\ud800",
])  # fmt: skip
def test_parents_that_are_not_ours_are_none(text):
    for record in (sum_record([{PARENTS: text}], [0.5]), call_record("ties", [{PARENTS: text}], density=0.5)):
        assert json.loads(record[PARENTS]) == []


def test_parents_whose_weights_overflow_are_left_out():
    record = sum_record([{EXPRESSION: "style", PARENTS: json.dumps([{**PARENT, "weight": 1e308}])}], [1e10])
    assert json.loads(record[PARENTS]) == []
    assert record[EXPRESSION] == "1e+10*style"


LONG = "x" * 5000


@pytest.mark.parametrize("state, metadata", [
    ({LONG: torch.ones(1)}, {}),
    ({f"{LONG}.lora_A.weight": torch.ones(2, 3)}, {}),
    ({f"{LONG}.lora_A.weight": torch.ones(2, 3), f"{LONG}.lora_B.weight": torch.ones(5, 3)}, {}),
    ({f"{LONG}.lora_A.weight": torch.full((2, 3), math.nan)}, {}),
    ({f"{LONG}.lora_A.weight": torch.ones(2, 3, dtype=torch.int8)}, {}),
    ({f"{LONG}.lokr_w1": torch.ones(2, 2), f"{LONG}.diff": torch.ones(2, 2)}, {}),
    ({f"lora_unet_{LONG}.diff": torch.ones(2, 2), f"unet.{LONG}.diff": torch.ones(1)}, {}),
    ({f"{LONG}.oft_blocks": torch.ones(2, 2)}, {}),
    ({f"{LONG}.lora_A.weight": torch.ones(2, 3), f"{LONG}.lora_B.weight": torch.ones(5, 2),
      f"{LONG}.alpha": torch.tensor(math.inf)}, {}),
    ({f"{Q}.diff": torch.ones(2, 2)}, {"lora_adapter_metadata": f'["{LONG}"]'}),
    ({f"{Q}.diff": torch.ones(2, 2)}, {"lora_adapter_metadata": LONG}),
    ({f"{Q}.diff": torch.ones(2, 2)}, {"lora_adapter_metadata": json.dumps({"init_lora_weights": "pissa" + LONG})}),
    ({f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(5, 2)},
     {"lora_adapter_metadata": json.dumps({"alpha_pattern": {LONG + "*": 1}})}),
    ({f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(5, 2)},
     {"lora_adapter_metadata": json.dumps({"lora_alpha": 10**3000})}),
    ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(2, 2)},
     {"lora_adapter_metadata": json.dumps({"r": -4, "alpha": 1, "use_rslora": True})}),
])  # fmt: skip
def test_errors_quote_at_most_200_characters_of_a_name(state, metadata):
    for read in (lambda *file: LoRAFile.of(*file).native(), LoRAVector.from_state_dict):
        with pytest.raises(ValueError) as caught:
            read(state, metadata)
        assert len(str(caught.value)) < 2000
        assert "x" * 201 not in str(caught.value) and "0" * 201 not in str(caught.value)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-3, 0.1, 1.0])
def test_truncating_is_the_svd_s_where_rows_nearly_repeat(apart):
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(8, 90, generator=g), torch.randn(70, 8, generator=g)
    down = torch.cat([down, down + apart * torch.randn(8, 90, generator=g), torch.zeros(1, 90)])
    up = torch.cat([up, -up + apart * torch.randn(70, 8, generator=g), torch.ones(70, 1)], dim=1)
    u, s, vh = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
    size = float(up.norm() * down.norm())
    for rank in (4, 8, 16):
        found = truncate(Factors(down, up, 17.0), rank)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert float((found.up.double() @ found.down.double() - best).norm()) < 1e-6 * size
