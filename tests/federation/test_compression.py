"""Updates in fewer bytes: what is sent arrives, and what is not sent comes later."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlightning.errors import ConfigError
from fedlightning.federation.uplink import Compression, Encoded, Int8, TopK, decode, num_bytes

KINDS = [TopK(0.01), TopK(0.3), TopK(1.0), Int8()]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

tables = st.lists(st.floats(-1e6, 1e6, width=32), min_size=0, max_size=40)


def delta(seed: int = 0, dtype: torch.dtype = torch.float32, **others):
    """An update of a matrix, a vector, a scalar, one element and none."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"w": (30, 20), "b": (20,), "scale": (), "one": (1,), "none": (0, 4)}
    return {key: torch.randn(s, generator=draw).to(dtype) for key, s in shapes.items()} | others


def same(a, b):
    assert list(a) == list(b)
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert torch.equal(a[key], b[key]), key


# -- against plain Python --------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=40), st.sampled_from([0.01, 0.25, 1.0]))
def test_top_k_keeps_the_largest_of_all_tensors_together(numbers, fraction):
    count = math.ceil(fraction * len(numbers))
    first = sorted(range(len(numbers)), key=lambda j: (-abs(numbers[j]), j))[:count]
    expected = [float(x) if j in first else 0.0 for j, x in enumerate(numbers)]
    half = len(numbers) // 2
    update = {"a": torch.tensor(numbers[:half]).float(), "b": torch.tensor(numbers[half:]).float()}
    got = TopK(fraction).compress(update).state
    assert torch.cat([got["a"], got["b"]]).tolist() == expected


@given(tables)
def test_int8_rounds_to_the_nearest_of_255_levels(numbers):
    got = Int8().compress({"w": torch.tensor(numbers)}).state["w"].tolist()
    step = max(map(abs, numbers), default=0.0) / 127
    expected = [round(x / step) * step if step else 0.0 for x in numbers]
    assert got == pytest.approx(expected, rel=1e-6)
    assert all(abs(a - x) <= step * 0.501 for a, x in zip(got, numbers, strict=True))


def test_int8_keeps_the_extremes_and_zero_and_treats_both_signs_alike():
    update = {"w": torch.tensor([-2.0, 0.0, 2.0, 1.0])}
    got = Int8().compress(update).state["w"]
    assert got.tolist() == [-2.0, 0.0, 2.0, pytest.approx(1.0, abs=2 / 127)]
    assert torch.equal(Int8().compress({"w": -update["w"]}).state["w"], -got)


# -- bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_hold_all_that_arrives(kind, dtype):
    update = delta(dtype=dtype)
    encoded = kind.compress(update)
    assert isinstance(encoded, Encoded)
    assert isinstance(encoded.data, bytes)
    assert encoded.num_bytes == len(encoded.data)
    same(decode(encoded.data), encoded.state)
    assert {k: (v.dtype, v.shape) for k, v in encoded.state.items()} == {
        k: (v.dtype, v.shape) for k, v in update.items()
    }


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_encoding_is_deterministic_and_leaves_the_update_alone(kind):
    update = delta()
    assert kind.encode(update) == kind.encode(delta())
    same(update, delta())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fraction", [1.0, 0.999999])
def test_all_entries_are_the_update_itself(dtype, fraction):
    same(TopK(fraction).compress(delta(dtype=dtype)).state, delta(dtype=dtype))


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero_and_cost_next_to_nothing(kind, dtype):
    zeros = {"w": torch.zeros(100, 100, dtype=dtype), "b": torch.zeros((), dtype=dtype)}
    encoded = kind.compress(zeros)
    same(encoded.state, zeros)
    assert encoded.num_bytes < 60
    same(kind.compress({}).state, {})


@pytest.mark.parametrize(
    "values",
    [[1e-45, -1e-45], [3.4028235e38, -3.4028235e38, 1.0], [1e-45, 3e38], [0.0, -0.0, 1.0], [5.0]],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_extreme_values_arrive_finite(kind, dtype, values):
    info = torch.finfo(dtype)
    update = {"w": torch.tensor(values).double().clamp(info.min, info.max).to(dtype)}
    got = kind.compress(update).state["w"]
    assert torch.isfinite(got).all()
    assert (got - update["w"]).double().abs().max() <= update["w"].double().abs().max()


def test_the_smallest_and_the_largest_float64_do_not_break_the_step():
    for size in (5e-324, torch.finfo(torch.float64).max):
        got = Int8().compress({"w": torch.tensor([size, -size], dtype=torch.float64)}).state["w"]
        assert torch.isfinite(got).all()


def test_top_k_takes_the_bytes_of_entries_and_positions():
    update = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    header = len(TopK(0.01).encode({"w": torch.zeros(1000)}))
    assert len(TopK(0.01).encode(update)) == header + 10 * (4 + 2)  # float32, 16-bit positions
    assert len(TopK(0.5).encode(update)) <= header + 500 * 4 + 1000 // 8 + 1  # a bit for each
    assert num_bytes(update) == 4000


def test_int8_takes_a_byte_for_each_entry():
    update = {"w": torch.ones(100, 100)}
    assert 10_000 <= len(Int8().encode(update)) < 10_040
    assert num_bytes(update) == 40_000


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65536, 65537])
def test_positions_reach_the_last_entry(size):
    update = {"w": torch.zeros(size)}
    update["w"][-1] = 3.0
    same(TopK(0.001).compress(update).state, update)


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_integers_and_exact_tensors_are_carried_as_they_are(kind):
    others = {
        "n": torch.tensor(2**40 + 1), "flags": torch.tensor([True, False]),
        "var": torch.rand(7), "c": torch.tensor([1 + 2j]), "bytes": torch.arange(4).to(torch.uint8),
    }  # fmt: skip
    got = kind.compress(delta(**others), exact=["var"]).state
    same({key: got[key] for key in others}, others)
    assert list(got) == list(delta(**others))


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_layout_in_memory_does_not_matter(kind):
    update = {"w": delta()["w"].reshape(5, 6, 4, 5), "v": delta()["w"].t()}
    update["w"] = update["w"].to(memory_format=torch.channels_last)
    dense = {key: value.contiguous() for key, value in update.items()}
    assert kind.encode(update) == kind.encode(dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_what_is_not_finite_is_refused(kind, bad):
    with pytest.raises(ValueError, match=r"^v holds a NaN or an infinity"):
        kind.encode({"w": torch.ones(2), "v": torch.tensor([1.0, bad])})
    with pytest.raises(ValueError, match=r"^v with its residual holds a NaN or an infinity"):
        kind.with_feedback({"w": torch.ones(2), "v": torch.tensor([1.0, bad])}, {})


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_torn_bytes_are_refused(kind):
    data = kind.encode({"w": torch.randn(9), "b": torch.tensor(2.0), "n": torch.tensor(3)})
    for length in range(len(data)):
        with pytest.raises(ValueError, match="encoded update"):
            decode(data[:length])
    with pytest.raises(ValueError, match="bytes left over"):
        decode(data + b"\0")
    with pytest.raises(ValueError, match="no encoded update"):
        decode(b"PK" + data)


# -- error feedback --------------------------------------------------------------------------------


def run_with_feedback(kind: Compression, updates):
    """Return the sums of what was meant and of what was sent, and the last residual."""
    residual, meant, sent = {}, {}, {}
    for update in updates:
        state, residual, count = kind.with_feedback(update, residual)
        assert count < 2 * num_bytes(update) + 200
        for total, part in ((meant, update), (sent, state)):
            for key, value in part.items():
                total[key] = total.get(key, 0) + value.double()
    return meant, sent, residual


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_lost_only_late(kind, dtype):
    meant, sent, residual = run_with_feedback(kind, [delta(seed, dtype) for seed in range(20)])
    tolerance = 1e-12 if dtype is torch.float64 else 1e-4
    for key in meant:
        assert torch.allclose(sent[key] + residual[key], meant[key], rtol=0, atol=tolerance), key
        assert residual[key].dtype is torch.promote_types(dtype, torch.float32)


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-100, 100, width=16), min_size=6, max_size=6), max_size=6))
def test_nothing_is_lost_whatever_the_updates_are(table):
    for kind in KINDS:
        meant, sent, residual = run_with_feedback(kind, [{"w": torch.tensor(r)} for r in table])
        for key in meant:
            assert torch.allclose(sent[key] + residual[key], meant[key], rtol=1e-5, atol=1e-3)


def test_a_small_entry_is_sent_once_it_has_grown():
    update, residual, arrived = {"w": torch.tensor([1.0, 0.4])}, {}, []
    for _ in range(5):
        state, residual, _count = TopK(0.5).with_feedback(update, residual)
        arrived.append(state["w"].tolist())
    assert arrived == [
        pytest.approx(row) for row in ([1, 0], [1, 0], [0, 1.2], [2, 0], [1, 0])
    ]  # without feedback the second entry would never be sent


def test_what_half_precision_cannot_hold_stays_in_the_residual():
    update = {"w": torch.tensor([65504.0, 65504.0], dtype=torch.float16)}
    meant, sent, residual = run_with_feedback(TopK(0.5), [update] * 3)
    assert (sent["w"] + residual["w"]).tolist() == meant["w"].tolist() == [3 * 65504.0] * 2


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_exact_tensors_have_no_residual(kind):
    update = delta(n=torch.tensor(5), var=torch.rand(3))
    state, residual, count = kind.with_feedback(update, {}, exact=["var"])
    assert residual.keys() == delta().keys()
    assert torch.equal(state["var"], update["var"])
    assert state["n"].item() == 5
    assert count == kind.compress(update, exact=["var"]).num_bytes


def test_a_residual_of_something_else_is_refused():
    update = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"residual's keys differ: \['v', 'w'\]"):
        Int8().with_feedback(update, {"v": torch.ones(2)})
    with pytest.raises(ValueError, match=r"residual's shapes differ: w is \(1,\)"):
        Int8().with_feedback(update, {"w": torch.ones(1)})


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"^federation.compression.fraction must be within"):
        TopK(fraction)


def test_the_share_is_the_number_as_it_was_written():
    assert math.ceil(0.07 * 100) == 8
    assert TopK(0.07).count(100) == 7


def test_compressions_are_their_settings():
    assert TopK(0.5) == TopK(fraction=0.5) != TopK(0.1)
    assert Int8() != Int8(error_feedback=False)
    assert repr(TopK(0.5)) == "TopK(fraction=0.5, error_feedback=True)"
    assert hash(Int8()) == hash(Int8(True))
