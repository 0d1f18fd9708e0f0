"""Every reduction against the float64 oracle and numpy: plain torch, the CPU's compiled kernel, the Triton kernels.

Triton chooses between compiler and interpreter when it is imported: so `test_interpreter.py` runs this file once more,
in a process of its own that interprets. On a machine with a GPU the compiled kernels run here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change
from rwc_wandb.measure.kernels import Reduction, Statistic, rates, reduction_for
from rwc_wandb.measure.kernels.reference import ReferenceReduction

pytestmark = pytest.mark.gpu
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALVES = (torch.bfloat16, torch.float16)
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Kind:
    """An implementation and where it runs."""

    name: str
    build: Callable[[], type[Reduction]]
    device: str
    dtypes: tuple[torch.dtype, ...]


def cpu_reduction() -> type[Reduction]:
    return pytest.importorskip("rwc_wandb.measure.kernels.cpu", exc_type=ImportError).CPUReduction


def gpu_reduction() -> type[Reduction]:
    return pytest.importorskip("rwc_wandb.measure.kernels.gpu", exc_type=ImportError).GPUReduction


KINDS = (
    [Kind("triton-interpreted", gpu_reduction, "cpu", (torch.float32, *HALVES))]
    if INTERPRETED
    else [
        Kind("torch", lambda: ReferenceReduction, "cpu", (torch.float32, torch.float64, *HALVES)),
        Kind("numba", cpu_reduction, "cpu", (torch.float32, torch.float64)),
    ]
)
if torch.cuda.is_available() and not INTERPRETED:
    KINDS += [
        Kind("torch-cuda", lambda: ReferenceReduction, "cuda", (torch.float32, torch.float64, *HALVES)),
        Kind("triton", gpu_reduction, "cuda", (torch.float32, *HALVES)),
    ]
EXAMPLES = examples(10 if INTERPRETED else 60)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
every_kind_and_dtype = pytest.mark.parametrize(
    ("kind", "dtype"),
    [pytest.param(kind, dtype, id=f"{kind.name}-{str(dtype)[6:]}") for kind in KINDS for dtype in kind.dtypes],
)
quickly = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)


def measured(kind: Kind, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> Tensor:
    """The statistics, after two runs have given the same bits and the snapshots have become the weights bit for bit."""
    before = [snapshot.clone() for snapshot in snapshots]
    reduction = kind.build()(weights, snapshots)
    # Slices of a larger buffer: of an odd number of layers, every second one is at no multiple of 16 bytes.
    results = torch.full((3, len(weights), 5), 7.0, dtype=torch.float64, device=kind.device)
    reduction.measure(results[1])
    assert (results[[0, 2]] == 7).all()
    for weight, snapshot, old in zip(weights, snapshots, before, strict=True):
        assert same_bits(weight, snapshot)
        snapshot.copy_(old)
    reduction.measure(results[2])
    assert same_bits(results[1], results[2])
    # Where weights are not finite the sum of ratios is of no use, and not the same in all implementations.
    results[1, results[1, :, Statistic.NONFINITE] > 0, Statistic.RATIO_SUM] = torch.nan
    return results[1].cpu()


def same_bits(one: Tensor, other: Tensor) -> bool:
    bits = BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))


def oracle(weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> Tensor:
    rows = []
    for weight, snapshot in zip(weights, snapshots, strict=True):
        new, old = (tensor.detach().cpu().double().numpy().ravel() for tensor in (weight, snapshot))
        with np.errstate(all="ignore"):
            change, counted = np.abs(new - old), old != 0
            ratios = change[counted] / np.abs(old[counted])
        nonfinite = (~np.isfinite(new)).sum()
        ratio = np.nan if nonfinite else ratios.sum()
        rows.append([change.sum(), np.abs(old).sum(), ratio, counted.sum(), nonfinite])
    return torch.tensor(np.array(rows))


def check(kind: Kind, weights: Sequence[Tensor], snapshots: Sequence[Tensor]) -> Tensor:
    expected = oracle(weights, snapshots)
    rwc = torch.stack([relative_weight_change(*pair) for pair in zip(weights, snapshots, strict=True)])
    elementwise = torch.stack(
        [elementwise_relative_weight_change(*pair) for pair in zip(weights, snapshots, strict=True)]
    )
    statistics = measured(kind, weights, snapshots)
    torch.testing.assert_close(statistics, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(statistics[:, Statistic.RATIO_COUNT :].nan_to_num(), expected[:, Statistic.RATIO_COUNT :])
    torch.testing.assert_close(rates(statistics)[0], rwc.cpu(), rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(rates(statistics)[1], elementwise.cpu(), rtol=1e-6, atol=0, equal_nan=True)
    return statistics


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() else tensor


def misaligned(tensor: Tensor) -> Tensor:
    """At an address that is a multiple of one element only."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return storage[1:].view(tensor.shape).copy_(tensor)


STRIDES = [contiguous, channels_last, transposed, misaligned]


@st.composite
def layers(draw: st.DrawFn, dtype: torch.dtype, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and snapshots: any shape and dense strides, magnitudes from 1e-20 to 1e20, some zeros, some unchanged."""
    weights, snapshots = [], []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    for shape in draw(st.lists(st.lists(st.integers(0, 14), max_size=4), min_size=1, max_size=4)):
        # float16 ends at 65504 and at 6e-8.
        exponent = draw(st.integers(-1, 3) if dtype == torch.float16 else st.integers(-20, 20))
        rate = 10.0 ** draw(st.integers(-6, 2 if dtype != torch.float16 else 0))
        old = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**exponent
        new = old * (1 + rate * torch.randn(shape, generator=generator, dtype=torch.float64))
        for tensor in (old, new):
            tensor[torch.rand(shape, generator=generator) < 0.2] = 0
        strided = draw(st.sampled_from(STRIDES))
        weights.append(strided(new.to(device, dtype)))
        snapshots.append(strided(old.to(device, dtype)))
        # Weight and snapshot agree in strides, not in the address.
        if draw(st.booleans()):
            snapshots[-1] = torch.empty_like(weights[-1]).copy_(snapshots[-1])
    return weights, snapshots


@every_kind_and_dtype
@quickly
@given(st.data())
def test_any_layers(kind: Kind, dtype: torch.dtype, data: st.DataObject) -> None:
    check(kind, *data.draw(layers(dtype, kind.device)))


def pair(kind: Kind, dtype: torch.dtype, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(size, generator=generator, dtype=torch.float64)
    new = old + 0.01 * torch.randn(size, generator=generator, dtype=torch.float64)
    return new.to(kind.device, dtype), old.to(kind.device, dtype)


@every_kind_and_dtype
@pytest.mark.parametrize("strided", STRIDES)
def test_sizes_about_a_chunk(kind: Kind, dtype: torch.dtype, strided: Callable[[Tensor], Tensor]) -> None:
    sizes = [1, 7, 1023, 1024, 4095, 4096, 4097, 9001] + ([] if INTERPRETED else [32767, 32769, 65537])
    pairs = [pair(kind, dtype, size, seed) for seed, size in enumerate(sizes)]
    check(kind, [strided(new) for new, _ in pairs], [strided(old) for _, old in pairs])


@every_kind_and_dtype
@pytest.mark.parametrize(
    "places", [(torch.clone, misaligned), (misaligned, torch.clone)], ids=["off 16 bytes", "onto 16"]
)
def test_weights_that_move(
    kind: Kind, dtype: torch.dtype, places: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
) -> None:
    news, olds = zip(*(pair(kind, dtype, size, seed) for seed, size in enumerate([7, 4096, 9001, 1024])), strict=True)
    first, then = ([place(new) for new in news] for place in places)
    snapshots = [old.clone() for old in olds]
    reduction = kind.build()(first, snapshots)
    for weight in first[:3]:
        weight.fill_(torch.nan)
    then[3] = first[3]  # This one stays.
    reduction.move(then)
    statistics = torch.empty(4, 5, dtype=torch.float64, device=kind.device)
    wanted = kind.build()(then, [old.clone() for old in olds]).histograms(8)
    for found, expected in zip(reduction.histograms(8), wanted, strict=True):
        assert torch.equal(found, expected)
    reduction.measure(statistics)
    torch.testing.assert_close(statistics.cpu(), oracle(news, olds), rtol=1e-6, atol=0)
    assert all(same_bits(snapshot, new) for snapshot, new in zip(snapshots, news, strict=True))


@every_kind
def test_the_order_in_memory_is_that_of_the_strides(kind: Kind) -> None:
    new, old = pair(kind, torch.float32, 4 * 6 * 5 * 3)
    for strided in (channels_last, transposed):
        weight, snapshot = strided(new.view(4, 6, 5, 3)), strided(old.view(4, 6, 5, 3))
        assert weight.stride() != new.view(4, 6, 5, 3).stride()
        check(kind, [weight], [snapshot])


@every_kind
def test_layers_of_several_chunks(kind: Kind) -> None:
    new, old = pair(kind, torch.float32, 20_000)
    check(kind, [new, new[:5].clone()], [old, old[:5].clone()])


@every_kind_and_dtype
def test_edges(kind: Kind, dtype: torch.dtype) -> None:
    def tensor(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=kind.device)

    nan, inf = float("nan"), float("inf")
    cases = [
        (tensor(), tensor(), [0, 0, 0, 0, 0]),
        (tensor(0, 0), tensor(0, 0), [0, 0, 0, 0, 0]),
        (tensor(3), tensor(2), [1, 2, 0.5, 1, 0]),
        (tensor(-3, 1), tensor(0, -2), [6, 2, 1.5, 1, 0]),
        (tensor(nan, 1), tensor(1, 1), [nan, 2, nan, 2, 1]),
        (tensor(inf, -inf), tensor(1, 0), [inf, 1, nan, 1, 2]),
        (tensor(1, 1), tensor(inf, 1), [inf, inf, nan, 2, 0]),
    ]
    weights, snapshots, expected = zip(*cases, strict=True)
    statistics = check(kind, weights, snapshots)
    assert np.array_equal(statistics.numpy(), np.array(expected, float), equal_nan=True)


@every_kind_and_dtype
def test_differences_are_not_taken_in_half_precision(kind: Kind, dtype: torch.dtype) -> None:
    new = torch.full((1000,), 256.0, dtype=dtype, device=kind.device)
    old = torch.full_like(new, 2.0**-7)
    # In bfloat16 and in float16 the difference would be 256.
    assert measured(kind, [new], [old])[0, Statistic.CHANGE] == 1000 * (256 - 2.0**-7)


@every_kind
def test_bits_of_the_snapshot(kind: Kind) -> None:
    """NaNs keep their payload, zeros their sign."""
    bits = torch.tensor([0x7FC12345, -0x00400001, 0x7F812345, 0x7F800000, -(1 << 31), 1], dtype=torch.int32)
    weight = bits.to(kind.device).view(torch.float32)
    snapshot = torch.zeros_like(weight)
    kind.build()([weight], [snapshot]).measure(torch.zeros(1, 5, dtype=torch.float64, device=kind.device))
    assert torch.equal(snapshot.cpu().view(torch.int32), bits)


@every_kind
def test_sums_stay_exact_over_many_elements(kind: Kind) -> None:
    """0.1 is rounded in float32, so are its partial sums: always in the same direction."""
    size = 20_000 if INTERPRETED else 3_000_000
    old = torch.full((size,), 0.1, device=kind.device)
    new = torch.full((size,), 0.7, device=kind.device)
    check(kind, [new], [old])


@every_kind
def test_very_many_layers(kind: Kind) -> None:
    count = 60 if INTERPRETED else 10_000
    new, old = pair(kind, torch.float32, 3 * count)
    statistics = measured(kind, list(new.split(3)), [snapshot.clone() for snapshot in old.split(3)])
    change, norm = (new.double() - old.double()).abs().view(-1, 3).sum(1), old.double().abs().view(-1, 3).sum(1)
    torch.testing.assert_close(statistics[:, :2], torch.stack([change, norm], 1).cpu(), rtol=1e-6, atol=0)


@every_kind
def test_gaps_in_memory_are_refused(kind: Kind) -> None:
    expanded = torch.ones(1, 3, device=kind.device).expand(2, 3)
    part = torch.ones(4, 4, device=kind.device)[:, :2]
    for tensor in (expanded, part):
        with pytest.raises(ValueError, match="not dense in memory"):
            kind.build()([tensor], [tensor.clone()])


def counted(values: np.ndarray, bins: int) -> tuple[np.ndarray, list[float]]:
    """The rule in numpy: bin floor((x - low) / (high - low) * bins), all in float32, the upper end in the last one."""
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (np.float32(0), np.float32(0))
    width = high - low if high > low else np.float32(1)
    places = ((values - low) / width * np.float32(bins)).astype(np.int64)
    return np.bincount(places.clip(0, bins - 1), minlength=bins), [low, high]


def check_histograms(kind: Kind, weights: Sequence[Tensor], snapshots: Sequence[Tensor], bins: int) -> None:
    before = [snapshot.clone() for snapshot in snapshots]
    counts, ranges = kind.build()(weights, snapshots).histograms(bins)
    assert counts.dtype == torch.int64
    assert counts.shape == (2, len(weights), bins)
    assert all(same_bits(*pair) for pair in zip(snapshots, before, strict=True))
    for index, (weight, snapshot) in enumerate(zip(weights, snapshots, strict=True)):
        new, old = (tensor.detach().cpu().float().numpy().ravel() for tensor in (weight, snapshot))
        with np.errstate(invalid="ignore"):
            kinds = (new, new - old)
        for which, values in enumerate(kinds):
            expected_counts, expected_range = counted(values, bins)
            assert ranges[which, index].tolist() == expected_range
            np.testing.assert_array_equal(counts[which, index].cpu().numpy(), expected_counts)


@every_kind_and_dtype
@quickly
@given(st.data(), st.sampled_from([64, 64, 1, 10, 33]))
def test_histograms_of_any_layers(kind: Kind, dtype: torch.dtype, data: st.DataObject, bins: int) -> None:
    check_histograms(kind, *data.draw(layers(dtype, kind.device)), bins)


@every_kind_and_dtype
def test_histograms_at_the_edges(kind: Kind, dtype: torch.dtype) -> None:
    nan, inf, tiny = float("nan"), float("inf"), 2.0 ** (-24 if dtype == torch.float16 else -133)
    if INTERPRETED and dtype == torch.bfloat16:
        tiny = 2.0**-126  # Triton's interpreter, not its compiler, reads denormal numbers of this type wrongly.
    values = [
        [],
        [0.0],
        [2.5] * 9,
        [-0.0, 0.0],
        [nan, inf, -inf],
        [nan, 1, 2, inf, 3, -inf],
        [tiny * k for k in range(100)],
        [0.0, 1.0, *(k / 64 for k in range(65))],
        [-1e4, 1e-4, 1e4],
    ]
    weights = [torch.tensor(layer, dtype=dtype, device=kind.device) for layer in values]
    check_histograms(kind, weights, [torch.zeros_like(weight) for weight in weights], 64)
    check_histograms(kind, weights, [weight.clone() for weight in weights], 64)


@every_kind
def test_histograms_over_several_chunks(kind: Kind) -> None:
    pairs = [pair(kind, torch.float32, size, seed) for seed, size in enumerate([9001, 4096, 3])]
    check_histograms(kind, [new for new, _ in pairs], [misaligned(old) for _, old in pairs], 64)


@pytest.mark.skipif(INTERPRETED, reason="of the machine, not of Triton")
class TestChoice:
    def test_compiled_on_a_cpu_where_numba_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ones = [torch.ones(3)]
        assert type(reduction_for(ones, ones)) is cpu_reduction()
        halves = [torch.ones(3, dtype=torch.bfloat16)]
        assert type(reduction_for(halves, halves)) is ReferenceReduction
        monkeypatch.setitem(sys.modules, "rwc_wandb.measure.kernels.cpu", None)
        assert type(reduction_for(ones, ones)) is ReferenceReduction

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
    def test_triton_on_a_gpu(self, dtype: torch.dtype) -> None:
        ones = [torch.ones(3, dtype=dtype, device="cuda")]
        assert type(reduction_for(ones, ones)) is gpu_reduction()


@pytest.mark.skipif(not INTERPRETED, reason="a count of the Triton kernels")
def test_as_many_nonfinite_elements_as_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two counts share 32 bits: 32768 would make the upper one negative."""
    monkeypatch.setattr("rwc_wandb.measure.kernels.gpu.CHUNK", 1 << 15)
    (kind,) = KINDS
    old = torch.zeros(1 << 15)
    new = torch.full_like(old, torch.nan)
    assert measured(kind, [new], [old])[0, Statistic.RATIO_COUNT :].tolist() == [0, 1 << 15]
    check_histograms(kind, [new], [old], 4)
