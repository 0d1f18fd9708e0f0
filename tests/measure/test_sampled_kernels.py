"""Every reduction over samples against float64 sums over the same places; run like `test_kernels.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_kernels import HALVES, INTERPRETED, STRIDES, same_bits
from torch import Tensor

from rwc_wandb.measure.kernels import SampledReduction, Statistic, errors, rates, sampled_reduction_for
from rwc_wandb.measure.kernels.sampled_reference import ReferenceSampledReduction, SinglePrecisionSampledReduction
from rwc_wandb.measure.kernels.sampling import Sample, key_of

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Kind:
    name: str
    build: Callable[[], type[SampledReduction]]
    device: str
    dtypes: tuple[torch.dtype, ...]


def cpu_reduction() -> type[SampledReduction]:
    return pytest.importorskip("rwc_wandb.measure.kernels.sampled_cpu", exc_type=ImportError).CPUSampledReduction


def gpu_reduction() -> type[SampledReduction]:
    return pytest.importorskip("rwc_wandb.measure.kernels.sampled_gpu", exc_type=ImportError).GPUSampledReduction


ALL = (torch.float32, torch.float64, *HALVES)
KINDS = (
    [Kind("triton-interpreted", gpu_reduction, "cpu", (torch.float32, *HALVES))]
    if INTERPRETED
    else [Kind("torch", lambda: ReferenceSampledReduction, "cpu", ALL), Kind("numba", cpu_reduction, "cpu", ALL)]
)
if torch.cuda.is_available() and not INTERPRETED:
    KINDS += [
        Kind("torch-cuda", lambda: ReferenceSampledReduction, "cuda", ALL),
        Kind("triton", gpu_reduction, "cuda", (torch.float32, *HALVES)),
    ]
every_kind_and_dtype = pytest.mark.parametrize(
    ("kind", "dtype"),
    [pytest.param(kind, dtype, id=f"{kind.name}-{str(dtype)[6:]}") for kind in KINDS for dtype in kind.dtypes],
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def samples(sizes: Sequence[tuple[int, int]]) -> list[Sample]:
    return [Sample(size, count, key_of(0, f"layer{i}"), 0, size) for i, (size, count) in enumerate(sizes)]


def drawn(sample: Sample, draw: int, tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rank's elements of the draw by slice, in float64, and which of the slices are the rank's; 0 in others."""
    places = sample.places(draw).numpy() - sample.start
    ours = (places >= 0) & (places < sample.stop - sample.start)
    values = tensor.detach().cpu().as_strided((tensor.numel(),), (1,)).double().numpy()
    return np.where(ours, values[places.clip(0, tensor.numel() - 1)], 0), ours


def expected(sample: Sample, draw: int, new: Tensor, old: Tensor) -> list[float]:
    now, ours = drawn(sample, draw, new)
    before, _ = drawn(sample, draw, old)
    d, v, counted = np.abs(now - before), np.abs(before), before != 0
    nonfinite = (~np.isfinite(now)).sum()
    ratio = np.nan if nonfinite else (d[counted] / v[counted]).sum()
    pairs = ours.reshape(-1, 2).all(1)
    of_d, of_v = (-np.diff(values.reshape(-1, 2))[pairs, 0] for values in (d, v))
    squares = [sample.spread * (one * other).sum() for one, other in ((of_d, of_d), (of_v, of_v), (of_d, of_v))]
    return [d.sum(), v.sum(), ratio, counted.sum(), nonfinite, *squares]


def measured(kind: Kind, pairs: Sequence[tuple[Tensor, Tensor]], of: Sequence[Sample], draw: int) -> Tensor:
    """The statistics of (new, old), after two runs have given the same bits and the snapshots hold the new weights."""
    weights = [torch.empty_like(new) for new, _ in pairs]
    reduction = kind.build()(weights, of)
    results = torch.full((3, len(pairs), 8), 7.0, dtype=torch.float64, device=kind.device)
    for number in range(1, 3):
        for weight, (_, old) in zip(weights, pairs, strict=True):
            weight.copy_(old)
        reduction.draw(draw)
        for weight, (new, _) in zip(weights, pairs, strict=True):
            weight.copy_(new)
        reduction.measure(results[number])
    assert (results[0] == 7).all()
    assert same_bits(results[1], results[2])
    for sample, snapshot, value, (new, _) in zip(of, reduction.snapshots, reduction.values(), pairs, strict=True):
        values, ours = drawn(sample, draw, new)
        found = np.where(ours, snapshot.cpu().double().numpy(), 0)
        np.testing.assert_array_equal(found, values)
        assert snapshot.cpu().isnan().numpy()[~ours].all()
        assert torch.equal(value.nan_to_num(3.0), snapshot.nan_to_num(3.0))
    results[1, results[1, :, Statistic.NONFINITE] > 0, Statistic.RATIO_SUM] = torch.nan
    return results[1].cpu()


def check(kind: Kind, pairs: Sequence[tuple[Tensor, Tensor]], of: Sequence[Sample], draw: int = 5) -> Tensor:
    found = measured(kind, pairs, of, draw)
    wanted = torch.tensor([expected(sample, draw, *pair) for sample, pair in zip(of, pairs, strict=True)])
    scale = (wanted[:, Statistic.CHANGE_SQUARES] * wanted[:, Statistic.NORM_SQUARES]).sqrt()
    # A sum of products of both signs: close in relation to what Cauchy and Schwarz allow.
    products = (found - wanted)[:, Statistic.PRODUCTS].abs()
    assert ((products <= 1e-6 * scale) | products.isnan()).all()
    found, wanted = found[:, : Statistic.PRODUCTS], wanted[:, : Statistic.PRODUCTS]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0, equal_nan=True)
    return found


def pair(kind: Kind, dtype: torch.dtype, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(size, generator=generator, dtype=torch.float64)
    new = old + 0.01 * torch.randn(size, generator=generator, dtype=torch.float64)
    old[torch.rand(size, generator=generator) < 0.1] = 0
    return new.to(kind.device, dtype), old.to(kind.device, dtype)


SIZES = [(3, 2), (1000, 999), (1001, 500), (7777, 512), (9001, 4096), (20_011, 1000), (513, 3)]


@every_kind_and_dtype
@pytest.mark.parametrize("strided", STRIDES)
def test_odd_sizes(kind: Kind, dtype: torch.dtype, strided: Callable[[Tensor], Tensor]) -> None:
    pairs = [pair(kind, dtype, size, seed) for seed, (size, _) in enumerate(SIZES)]
    check(kind, [(strided(new), strided(old)) for new, old in pairs], samples(SIZES))


@every_kind_and_dtype
def test_weights_that_move(kind: Kind, dtype: torch.dtype) -> None:
    pairs = [pair(kind, dtype, size, seed) for seed, (size, _) in enumerate(SIZES)]
    of = samples(SIZES)
    first = [old.clone() for _, old in pairs]
    reduction = kind.build()(first, of)
    reduction.draw(5)
    for weight in first:
        weight.fill_(torch.nan)
    reduction.move([new for new, _ in pairs])
    statistics = torch.empty(len(pairs), 8, dtype=torch.float64, device=kind.device)
    reduction.measure(statistics)
    wanted = torch.tensor([expected(sample, 5, *one) for sample, one in zip(of, pairs, strict=True)])
    columns = slice(Statistic.PRODUCTS)
    torch.testing.assert_close(statistics.cpu()[:, columns], wanted[:, columns], rtol=1e-6, atol=0)
    for draw in (5, 6):
        for layer, (sample, (new, _)) in enumerate(zip(of, pairs, strict=True)):
            values, ours = drawn(sample, draw, new)
            for found in (reduction.snapshots[layer], reduction.value(layer)):
                np.testing.assert_array_equal(found.cpu().double().numpy()[ours], values[ours])
        reduction.draw(6)


@every_kind_and_dtype
def test_parts_of_ranks_add_up_to_the_whole(kind: Kind, dtype: torch.dtype) -> None:
    size, count = 9973, 2000
    new, old = pair(kind, dtype, size)
    bounds = [(0, 3331), (3331, 3337), (3337, 9000), (9000, 9973)]
    parts = [Sample(size, count, 77, *bound) for bound in bounds]
    found = check(kind, [(new[start:stop], old[start:stop]) for start, stop in bounds], parts).sum(0)
    whole = check(kind, [(new, old)], [Sample(size, count, 77, 0, size)])[0]
    torch.testing.assert_close(found[:5], whole[:5], rtol=1e-7, atol=0)
    # The pairs that are on two ranks are left out.
    torch.testing.assert_close(found[5:], whole[5:], rtol=0.02, atol=0)


@every_kind
def test_weights_that_are_not_finite(kind: Kind) -> None:
    new, old = pair(kind, torch.float32, 3000)
    of = samples([(3000, 1500)])
    places = of[0].places(5)
    new[int(places[7])], new[int(places[500])] = torch.nan, torch.inf
    found = check(kind, [(new, old)], of)
    assert found[0, Statistic.NONFINITE] == 2
    full = measured(kind, [(new, old)], of, 5)
    assert rates(full)[0].isnan().all()
    assert errors(full).isnan().all()


@every_kind
def test_nothing_changed_and_zeros(kind: Kind) -> None:
    ones, zeros = torch.ones(1000, device=kind.device), torch.zeros(1000, device=kind.device)
    found = measured(kind, [(ones, ones), (zeros, zeros), (ones, zeros)], samples([(1000, 100)] * 3), 1)
    assert rates(found)[0].tolist() == [0, 0, torch.inf]
    np.testing.assert_array_equal(errors(found).numpy(), [0, 0, np.nan])


@every_kind
def test_small_changes_have_an_error_too(kind: Kind) -> None:
    """Squares of 1e-30 are 0 in float32."""
    old = torch.rand(1000, device=kind.device) * 1e-20 + 1e-20
    new = old * (1 + 1e-3 * torch.rand(1000, device=kind.device))
    found = measured(kind, [(new, old)], samples([(1000, 500)]), 1)
    assert 0.001 < (errors(found) / rates(found)[0]).item() < 0.1


@every_kind_and_dtype
def test_bits_of_all_kinds_agree_on_large_numbers_of_draws(kind: Kind, dtype: torch.dtype) -> None:
    weight = torch.arange(5000, device=kind.device).remainder(128).to(dtype)
    for draw in (0, 1, 12_345, 2**31 - 1):
        (sample,) = samples([(5000, 999)])
        reduction = kind.build()([weight], [sample])
        reduction.draw(draw)
        places = sample.places(draw)
        wanted = torch.where(places < 5000, places.remainder(128).double(), torch.nan)
        np.testing.assert_array_equal(reduction.snapshots[0].cpu().double().numpy(), wanted.numpy())


@every_kind_and_dtype
def test_histograms_are_those_of_the_draw(kind: Kind, dtype: torch.dtype) -> None:
    new, old = pair(kind, dtype, 4001)
    weight = old.clone()
    (sample,) = samples([(4001, 1000)])
    reduction = kind.build()([weight], [sample])
    reduction.draw(2)
    weight.copy_(new)
    counts, ranges = reduction.histograms(16)
    places = sample.places(2)
    places = places[places < 4001].to(kind.device)
    now, before = new[places].float(), old[places].float()
    for which, values in enumerate((now, now - before)):
        assert ranges[which, 0].tolist() == [values.min().item(), values.max().item()]
        assert counts[which, 0].sum() == len(places)
        width = values.max() - values.min()
        bins = ((values - values.min()) / width * 16).long().clamp(max=15)
        assert counts[which, 0].tolist() == torch.bincount(bins, minlength=16).tolist()


@pytest.mark.skipif(INTERPRETED, reason="of torch")
@pytest.mark.parametrize("count", [3, 5000, 10_000])
def test_devices_without_float64_add_up_the_same(count: int) -> None:
    size = 20_001
    new, old = pair(KINDS[0], torch.float32, size)
    weight = old.clone()
    reduction = SinglePrecisionSampledReduction([weight], samples([(size, count)]))
    reduction.draw(5)
    weight.copy_(new)
    statistics = torch.zeros(reduction.rows, 8)
    reduction.measure(statistics)
    wanted = torch.tensor(expected(reduction.samples[0], 5, new, old))
    torch.testing.assert_close(statistics.double().sum(0), wanted, rtol=1e-6, atol=1e-6)
    assert same_bits(reduction.snapshots[0].nan_to_num(), reduction.values()[0].nan_to_num())


@pytest.mark.skipif(INTERPRETED, reason="of threads of the CPU")
def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwc_wandb.measure.kernels.sampled_cpu.ELEMENTS_PER_THREAD", 100)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        kind = Kind("numba", cpu_reduction, "cpu", ())
        found.append(measured(kind, [pair(kind, torch.float32, 200_000)], samples([(200_000, 100_000)]), 1))
    assert same_bits(*found)


@pytest.mark.skipif(INTERPRETED, reason="of the machine, not of Triton")
def test_the_choice() -> None:
    for dtype in ALL:
        ones = [torch.ones(30, dtype=dtype)]
        assert type(sampled_reduction_for(ones, samples([(30, 10)]))) is cpu_reduction()
