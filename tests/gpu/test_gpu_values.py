"""The kernels of this machine's device against float64: sizes, shapes, types, NaN and inf, the same bits each time."""

from __future__ import annotations

import pytest
import torch
from gpu.machine import DEVICE, ON_GPU, rwc, sums
from torch import Tensor, nn

from rwc_wandb import watch
from rwc_wandb.measure.kernels import Statistic, reduction_for

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [1, 2, 3, 31, 1023, 1024, 1025, 4095, 4096, 4097, 8193, 65537, 1_000_003]
LARGE = [33_554_431, 33_554_433, 1_000_000_000] if ON_GPU else [2_000_003]
SHAPES = [(1,), (5, 123, 123), (7, 3, 3, 3), (513, 1, 5), (1, 1, 1, 1), (64, 3, 7, 7), (0, 4), (17, 16, 3, 3)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def pair(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights and their snapshot, made on the device; a fifth of either is 0."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def drawn() -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float32)

    old = drawn().mul_(0.05)
    new = old + drawn().mul_(1e-3)
    for tensor in (old, new):
        tensor[torch.rand(shape, generator=generator, device=DEVICE) < 0.2] = 0
    return new.to(dtype), old.to(dtype)


def statistics(weights: list[Tensor], snapshots: list[Tensor]) -> Tensor:
    result = torch.full((len(weights), 5), 7.0, dtype=torch.float64, device=DEVICE)
    reduction_for(weights, snapshots).measure(result)
    return result


def check(weights: list[Tensor], snapshots: list[Tensor]) -> Tensor:
    expected = torch.stack([sums(*one) for one in zip(weights, snapshots, strict=True)])
    found = statistics(weights, snapshots)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(found[:, Statistic.RATIO_COUNT :], expected[:, Statistic.RATIO_COUNT :])
    assert all(torch.equal(*one) for one in zip(weights, snapshots, strict=True))
    return found


@pytest.mark.skipif(not ON_GPU, reason="of GPUs")
@by_dtype
def test_the_kernel_is_triton_s(dtype: torch.dtype) -> None:
    new, old = pair((9,), dtype)
    assert type(reduction_for([new], [old])).__name__ == "GPUReduction"


@pytest.mark.skipif(not ON_GPU, reason="of GPUs")
def test_it_is_launched_without_triton_s_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the host would spend more than twice as long on a launch."""
    from triton.runtime.jit import JITFunction

    new, old = pair((9001,), torch.float32)
    expected = sums(new, old)
    reduction = reduction_for([new], [old])
    result = torch.zeros(1, 5, dtype=torch.float64, device=DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda *words, **named: pytest.fail("Triton has searched"))
        reduction.measure(result)
    torch.testing.assert_close(result[0], expected, rtol=1e-6, atol=0)


@by_dtype
def test_sizes(dtype: torch.dtype) -> None:
    pairs = [pair((size,), dtype, seed) for seed, size in enumerate(SIZES)]
    check([new for new, _ in pairs], [old for _, old in pairs])


@by_dtype
@pytest.mark.parametrize("size", LARGE)
def test_large_layers(size: int, dtype: torch.dtype) -> None:
    new, old = pair((size,), dtype)
    check([new], [old])


@pytest.mark.skipif(not ON_GPU, reason="takes 9 GB")
def test_more_elements_than_an_int32_counts() -> None:
    size = (1 << 31) + 4097
    old = torch.full((size,), 0.5, dtype=torch.bfloat16, device=DEVICE)
    new = torch.full_like(old, 0.75)
    new[-1] = 2.5
    found = statistics([new], [old])[0].tolist()
    assert found == [0.25 * (size - 1) + 2, 0.5 * size, 0.5 * (size - 1) + 4, size, 0]
    assert old[-1].item() == 2.5


@by_dtype
def test_shapes_and_strides(dtype: torch.dtype) -> None:
    weights, snapshots = [], []
    for seed, shape in enumerate(SHAPES):
        new, old = pair(shape, dtype, seed)
        weights.append(new)
        snapshots.append(old.clone())
        if len(shape) == 4:
            weights.append(new.to(memory_format=torch.channels_last))
            snapshots.append(old.clone(memory_format=torch.channels_last))
        weights.append(new.transpose(0, -1).contiguous().transpose(0, -1))
        snapshots.append(old.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1))
        # At an address that is a multiple of one element only.
        storage = torch.empty(new.numel() + 1, dtype=dtype, device=DEVICE)
        weights.append(storage[1:].view(shape).copy_(new))
        snapshots.append(old.clone())
    check(weights, snapshots)


@by_dtype
def test_what_is_not_finite(dtype: torch.dtype) -> None:
    nan, inf = torch.nan, torch.inf

    def tensor(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    cases = [
        (tensor(nan, 1), tensor(1, 1), [nan, 2, 2, 1]),
        (tensor(inf, -inf), tensor(1, 0), [inf, 1, 1, 2]),
        (tensor(1, 1), tensor(inf, 1), [inf, inf, 2, 0]),
        (tensor(0, 0), tensor(0, 0), [0, 0, 0, 0]),
        (tensor(-3, 1), tensor(0, -2), [6, 2, 1, 0]),
    ]
    weights, snapshots, expected = zip(*cases, strict=True)
    found = statistics(list(weights), list(snapshots))[:, [0, 1, 3, 4]].cpu()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)
    # One NaN among many spoils its own layer, and no other.
    new, old = pair((100_003,), dtype)
    new[77_777] = nan
    good, before = pair((4097,), dtype)
    expected_good = sums(good, before)
    found = statistics([new, good], [old, before])
    assert found[0, Statistic.NONFINITE] == 1
    torch.testing.assert_close(found[1], expected_good, rtol=1e-6, atol=0)


@by_dtype
def test_a_hundred_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    sizes = [1, 4097, 1_000_003, 20_000_000 if ON_GPU else 50_000]
    pairs = [pair((size,), dtype, seed) for seed, size in enumerate(sizes)]
    weights, snapshots = [new for new, _ in pairs], [old.clone() for _, old in pairs]
    reduction = reduction_for(weights, snapshots)
    results = torch.zeros(100, len(sizes), 5, dtype=torch.float64, device=DEVICE)
    for result in results:
        for snapshot, (_, old) in zip(snapshots, pairs, strict=True):
            snapshot.copy_(old)
        reduction.measure(result)
    assert torch.equal(results, results[:1].expand_as(results))


@by_dtype
def test_histograms(dtype: torch.dtype) -> None:
    """Every finite element in its bin, by the rule in float64 but for those within a float32's reach of an edge."""
    size = 20_000_003 if ON_GPU else 200_003
    new, old = pair((size,), dtype)
    new[5], new[6] = torch.nan, torch.inf
    counts, ranges = reduction_for([new], [old]).histograms(64)
    for kind, values in enumerate((new.float(), new.float() - old.float())):
        finite = values[values.isfinite()]
        low, high = finite.min(), finite.max()
        assert ranges[kind, 0].tolist() == [low.item(), high.item()]
        places = ((finite - low) / (high - low) * 64).long().clamp(0, 63)
        assert torch.equal(counts[kind, 0], places.bincount(minlength=64))


@by_dtype
def test_a_series_of_a_network(dtype: torch.dtype) -> None:
    """Through `watch`: 20 steps of an optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)).to(DEVICE, dtype)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, optimizer, run=False, log_every=7, histogram_every=None)
    expected = []
    for _ in range(20):
        before = [parameter.detach().clone() for parameter in model.parameters() if parameter.dim() > 1]
        model(torch.randn(4, 3, 8, 8, device=DEVICE, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]
        expected.append([rwc(*one) for one in zip(after, before, strict=True)])
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(1, 21))
    torch.testing.assert_close(
        torch.from_numpy(monitor.history.rwc).double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=0
    )
