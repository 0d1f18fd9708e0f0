"""What runs in several processes with `sample`: each layout against the oracle on the places that were drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sampled
import torch
import torch.distributed as distributed
from outsider import Recorder
from sharded_cases import Gathered, Summoned, _spread, sharded, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from rwc_wandb import Monitor, watch

NAMES = ["0", "1", "3"]
COUNT = 500


def network() -> nn.Module:
    """2,343, 1,683 and 51 weights in 71, 51 and 1 rows: uneven shards, and empty ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 71), nn.Linear(71, 51), nn.Tanh(), nn.Linear(51, 1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder | None, steps: range) -> None:
    for index in steps:
        torch.manual_seed(index)
        optimizer.zero_grad()
        model(torch.randn(5, 33)).square().sum().backward()
        optimizer.step()
        if recorder is not None:
            recorder.note()


def compared(
    model: nn.Module, owner: nn.Module, name: str, folder: Path, share: bool = False, recorder: Recorder | None = None
) -> Monitor:
    """Train; where weights are whole or sharded by rows, rank 0 keeps the series in a file."""
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, share=share, sample=COUNT)
    recorder = recorder or Gathered(optimizer)
    recorder.weights = [recorder.copy()]
    train(model, optimizer, recorder, range(8))
    monitor.close()
    wanted = sampled.series(recorder.weights, NAMES, COUNT, 3)
    np.testing.assert_allclose(monitor.history.rwc, wanted, rtol=1e-6)
    elementwise = sampled.series(recorder.weights, NAMES, COUNT, 3, elementwise=True)
    np.testing.assert_allclose(monitor.history.rwc_elementwise, elementwise, rtol=1e-6)
    assert (monitor.history.rwc_error[:, 2] == 0).all()
    for slot in range(8):
        for index in range(2):
            old, new = (recorder.weights[slot + one][index] for one in (0, 1))
            # The pairs that are on two ranks do not count.
            error = sampled.error(new, old, NAMES[index], COUNT, slot // 3)
            assert abs(monitor.history.rwc_error[slot, index] / error - 1) < 0.03
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save(torch.from_numpy(monitor.history.rwc.copy()), folder / f"{name}.pt")
    return monitor


def fsdp2(folder: Path) -> None:
    model = sharded(network())
    compared(model, model, "fsdp2", folder)


def shared(folder: Path) -> None:
    model = DistributedDataParallel(network())
    compared(model, model, "shared", folder, share=True)


def fsdp1(folder: Path) -> None:
    model = FullyShardedDataParallel(
        network(), sharding_strategy=ShardingStrategy.FULL_SHARD, use_orig_params=True, device_id=torch.device("cpu")
    )
    compared(model, model, "fsdp1", folder, recorder=Summoned(model))


def shares_are_as_small_as_the_samples(_: Path) -> None:
    model = DistributedDataParallel(network())
    monitor = watch(model, run=False, histogram_every=None, share=True, sample=COUNT)
    held = sum(snapshot.numel() for snapshot in monitor._measuring.tracked.snapshots().values())
    assert held <= (2 * COUNT + 51) / distributed.get_world_size() + 64
    monitor.close()


def columns(folder: Path) -> None:
    """Shards of columns: every element is on one rank, and together they are a sample of the layer."""
    model = _spread(network(), (distributed.get_world_size(),), {"0": [Shard(1)], "1": [Shard(1)]})
    monitor = watch(model, run=False, histogram_every=None, log_every=1, sample=COUNT)
    before = [whole(layer.parameter).clone() for layer in monitor.layers]
    scores = []
    for index in range(60):
        torch.manual_seed(index)
        factors = [1 + 0.1 * torch.randn(tensor.shape) for tensor in before]
        with torch.no_grad():
            for layer, tensor, factor in zip(monitor.layers, before, factors, strict=True):
                local = _local(factor * tensor, layer.parameter)
                (layer.parameter.to_local() if hasattr(layer.parameter, "to_local") else layer.parameter).copy_(local)
        monitor.measure()
        with torch.no_grad():
            after = [whole(layer.parameter).clone() for layer in monitor.layers]
        exact = [((new - old).abs().sum() / old.abs().sum()).item() for new, old in zip(after, before, strict=True)]
        before = after
        monitor.flush()
        scores += ((monitor.history.rwc[-1] - exact) / np.maximum(monitor.history.rwc_error[-1], 1e-9))[:2].tolist()
    monitor.close()
    assert abs(np.mean(scores)) < 0.3
    assert 0.8 < np.std(scores) < 1.2


def parts_follow_each_other(_: Path) -> None:
    """In four processes: each layer's parts, however it is sharded, are all of its elements, and each once."""
    places = {"0": [Shard(0), Shard(1)], "1": [Replicate(), Shard(1)], "3": [Shard(1), Replicate()]}
    layouts = [
        _spread(network(), (2, 2), places),
        _spread(network(), (2, 2), {key: [Shard(1), Shard(0)] for key in "01"}),
        _spread(network(), (4,), {key: [Shard(1)] for key in "013"}),
        sharded(network()),
        sharded(network(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))),
    ]
    for model in layouts:
        monitor = watch(model, run=False, histogram_every=None, sample=50)
        mine = [(sample.start, sample.stop) for sample in monitor._measuring.tracked._samples if sample is not None]
        everyones: list[list[tuple[int, int]]] = [[]] * 4
        distributed.all_gather_object(everyones, mine)
        for parts, size in zip(zip(*everyones, strict=True), (2343, 3621, 51), strict=True):
            filled = sorted(part for part in parts if part[0] < part[1])
            assert [start for start, _ in filled] == [0, *(stop for _, stop in filled[:-1])]
            assert filled[-1][1] == size
        monitor.close()


def _local(whole: Tensor, parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements).to_local()


def save_state(folder: Path) -> None:
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, sample=COUNT)
    train(model, optimizer, None, range(5))
    weights = [whole(parameter).clone() for parameter in model.parameters()]
    state = monitor.state_dict()
    monitor.close()
    if distributed.get_rank() == 0:
        torch.save({"weights": weights, "monitor": state}, folder / "state.pt")


def resume(model: nn.Module, folder: Path) -> None:
    """Go on from what two ranks saved, on this number of them."""
    saved = torch.load(folder / "state.pt", weights_only=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, sample=COUNT)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), saved["weights"], strict=True):
            target = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            target.copy_(_local(value, parameter))
    monitor.load_state_dict(saved["monitor"])
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder, range(5, 9))
    monitor.close()
    names = NAMES
    for slot, (old, new) in enumerate(zip(recorder.weights, recorder.weights[1:], strict=False), start=5):
        wanted = sampled.series([old, new], names, COUNT, 1)[0] if slot < 3 else _of_draw(old, new, slot // 3)
        np.testing.assert_allclose(monitor.history.rwc[slot], wanted, rtol=1e-6)


def _of_draw(old: list[Tensor], new: list[Tensor], draw: int) -> list[float]:
    found = []
    for before, after, name in zip(old, new, NAMES, strict=True):
        was, now = (sampled.drawn(one, name, COUNT, draw).double() for one in (before, after))
        found.append(((now - was).abs().sum() / was.abs().sum()).item())
    return found


def load_state(folder: Path) -> None:
    resume(sharded(network()), folder)


IN_TWO = [fsdp2, shared, fsdp1, shares_are_as_small_as_the_samples, columns, save_state, load_state]
IN_FOUR = [fsdp2, shared, columns, parts_follow_each_other, load_state]
