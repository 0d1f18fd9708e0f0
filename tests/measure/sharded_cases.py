"""What runs in several processes: for each way to spread weights, the series against the oracle on gathered weights."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from outsider import Recorder
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rwc_wandb import Monitor, MonitoringStopped, UserError, elementwise_relative_weight_change, watch
from rwc_wandb.measure.distributed import ranks
from rwc_wandb.measure.distributed.ranks import Ranks

STEPS = 7


def network(rows: int = 11) -> nn.Module:
    """11, 3 and 1 rows: uneven on 2 and 4 ranks, and empty on the last of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, rows), nn.Linear(rows, 3), nn.Tanh(), nn.Linear(3, 1))


def forward(model: nn.Module) -> Tensor:
    return model(torch.randn(5, 6)).square().sum()


def whole(parameter: Tensor) -> Tensor:
    return parameter.detach().full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


class Gathered(Recorder):
    """The whole weights, gathered on every rank."""

    def __init__(self, optimizer: torch.optim.Optimizer, smallest: int = 2) -> None:
        self.smallest = smallest
        self.optimizer = optimizer
        super().__init__([])

    def copy(self) -> list[Tensor]:
        owned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return [whole(parameter).clone() for parameter in owned if parameter.dim() >= self.smallest]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder, steps: int = STEPS) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model).backward()
        optimizer.step()
        recorder.note()


def assert_series(monitor: Monitor, recorder: Recorder, names: Sequence[str] = ("0", "1", "3")) -> None:
    assert [layer.name for layer in monitor.layers] == list(names)
    assert monitor.history.sizes == [weight.numel() for weight in recorder.weights[0]]
    assert monitor.history.steps.tolist() == list(range(1, len(recorder.weights)))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)
    elementwise = recorder.series(elementwise_relative_weight_change)
    np.testing.assert_allclose(monitor.history.rwc_elementwise, elementwise, rtol=1e-6)


def assert_snapshots(monitor: Monitor, recorder: Recorder) -> None:
    state = monitor.state_dict()
    assert bool(state) == (distributed.get_rank() == 0)
    if state:
        for snapshot, weight in zip(state["snapshots"].values(), recorder.weights[-1], strict=True):
            assert torch.equal(snapshot, weight)


def checked(
    model: nn.Module,
    recorder: Recorder | None = None,
    before: Callable[[], object] = lambda: None,
    **options: Any,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before()
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, **options)
    recorder = recorder or Gathered(optimizer)
    recorder.weights = [recorder.copy()]
    train(model, optimizer, recorder)
    assert_snapshots(monitor, recorder)
    monitor.close()
    assert_series(monitor, recorder)


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    for module in list(model):  # type: ignore[call-overload]
        if isinstance(module, nn.Linear):
            fully_shard(module, **options)
    fully_shard(model, **options)
    return model


def ddp(_: Path) -> None:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = Gathered(optimizer)
    if distributed.get_rank() == 0:
        monitor = watch(model, optimizer, run=False)
    train(model, optimizer, recorder)
    if distributed.get_rank() == 0:
        monitor.close()
        assert_series(monitor, recorder)
    else:
        assert watch(model, optimizer, run=False).closed


def ddp_shared(_: Path) -> None:
    checked(DistributedDataParallel(network()), share=True)


def ddp_shared_large_and_channels_last(_: Path) -> None:
    """Slices that begin within a layer, in the order of memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 9, 5), nn.Flatten(), nn.Linear(9 * 4, 50))
    model = DistributedDataParallel(model.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, share=True)
    held = sum(snapshot.numel() for snapshot in monitor._measuring.tracked.snapshots().values())
    total = sum(layer.size for layer in monitor.layers)
    assert abs(held - total / distributed.get_world_size()) <= 128
    recorder = Gathered(optimizer)
    for _step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        recorder.note()
    monitor.close()
    assert_series(monitor, recorder, ("0", "1", "3"))


def fsdp2(_: Path) -> None:
    checked(sharded(network()))


def fsdp2_root_alone_after_a_forward(_: Path) -> None:
    """What the root module holds after a forward is unsharded."""
    model = fully_shard(network())

    def evaluate() -> None:
        with torch.no_grad():
            forward(model)
        assert not isinstance(model[0].weight, DTensor)

    checked(model, before=evaluate)


def fsdp2_with_a_forward_before_the_step(_: Path) -> None:
    model = fully_shard(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, histogram_every=None)
    recorder = Gathered(optimizer)
    for _step in range(STEPS):
        optimizer.zero_grad()
        forward(model).backward()
        with torch.no_grad():
            forward(model)
        optimizer.step()
        recorder.note()
    monitor.close()
    assert_series(monitor, recorder)


def fsdp2_with_cpu_offload(_: Path) -> None:
    checked(sharded(network(), offload_policy=CPUOffloadPolicy(pin_memory=False)))


def fsdp2_bfloat16(_: Path) -> None:
    checked(sharded(network().bfloat16()).float())


def fsdp2_hybrid(_: Path) -> None:
    checked(sharded(network(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))))


def _spread(model: nn.Module, shape: tuple[int, ...], placements: dict[str, Sequence[Placement]]) -> nn.Module:
    mesh = init_device_mesh("cpu", shape)
    for name, places in placements.items():
        module = model.get_submodule(name)
        module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, places))
    return model


def _stepped(model: nn.Module) -> None:
    """Gradients are given: how tensor parallel models compute is not what is tested."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None)
    recorder = Gathered(optimizer)
    for _step in range(STEPS):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()
        recorder.note()
    assert_snapshots(monitor, recorder)
    monitor.close()
    assert_series(monitor, recorder)


def tensor_parallel(_: Path) -> None:
    size = distributed.get_world_size()
    _stepped(_spread(network(), (size,), {"0": [Shard(0)], "1": [Shard(1)], "3": [Replicate()]}))


def tensor_parallel_with_plain_layers(_: Path) -> None:
    _stepped(_spread(network(), (distributed.get_world_size(),), {"1": [Shard(1)]}))


def tensor_parallel_in_two_dimensions(_: Path) -> None:
    places = {"0": [Shard(0), Shard(1)], "1": [Replicate(), Shard(1)], "3": [Shard(1), Replicate()]}
    _stepped(_spread(network(), (2, 2), places))


def tensor_parallel_and_fsdp2(_: Path) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    model = parallelize_module(network(12), mesh["model"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    # The last layer is on the mesh `data` alone: each half of the ranks has a copy.
    checked(sharded(model, mesh=mesh["data"]))


def partial_is_refused(_: Path) -> None:
    model = network()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model[1].weight = nn.Parameter(DTensor.from_local(model[1].weight.detach(), mesh, [Partial()], run_check=False))
    with pytest.raises(UserError, match="1 has a Partial placement"):
        watch(model, run=False)


class Summoned(Recorder):
    """The whole weights under FSDP1."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        super().__init__([])

    def copy(self) -> list[Tensor]:
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False):
            return [one.detach().clone() for one in self.model.parameters() if one.dim() > 1]


def _fsdp1(**options: Any) -> nn.Module:
    return FullyShardedDataParallel(
        network(),
        auto_wrap_policy=ModuleWrapPolicy([nn.Linear]),
        device_id=torch.device("cpu"),
        **{"use_orig_params": True, **options},
    )


def fsdp1(_: Path) -> None:
    model = _fsdp1()
    checked(model, Summoned(model))


def fsdp1_one_unit(_: Path) -> None:
    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    checked(model, Summoned(model))


def fsdp1_without_sharding(_: Path) -> None:
    model = _fsdp1(sharding_strategy=ShardingStrategy.NO_SHARD)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False)
    assert monitor.closed == (distributed.get_rank() != 0)
    recorder = Summoned(model)
    train(model, optimizer, recorder)
    monitor.close()
    if distributed.get_rank() == 0:
        assert_series(monitor, recorder)


def fsdp1_hybrid(_: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = _fsdp1(sharding_strategy=ShardingStrategy.HYBRID_SHARD, device_mesh=mesh)
    checked(model, Summoned(model))


def fsdp1_flat_is_refused(_: Path) -> None:
    with pytest.raises(UserError, match="use_orig_params=True"):
        watch(_fsdp1(use_orig_params=False), run=False)


def accelerate(_: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == distributed.get_world_size()
    model = network()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.05)
    before = watch(model, optimizer, run=False)
    model, optimizer = accelerator.prepare(model, optimizer)
    monitor = watch(model, optimizer, run=False, histogram_every=None, share=True)
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder)
    for one in (before, monitor):
        one.close()
        if distributed.get_rank() == 0:
            assert_series(one, recorder)


def _timed(error: type[Exception] | type[Warning], words: str, action: Callable[[], object]) -> None:
    """It waits its second, and not for ever."""
    start = time.monotonic()
    expected = pytest.warns if issubclass(error, Warning) else pytest.raises
    with expected(error, match=words):
        action()
    assert 0.9 < time.monotonic() - start < 15


def watch_on_some_ranks(_: Path) -> None:
    model = sharded(network())
    Ranks.start_timeout = 1.0
    if distributed.get_rank() == 0:
        _timed(UserError, "watch was not called on rank 1.* within 1 s", lambda: watch(model, run=False))
    distributed.barrier()
    # A rank that comes later learns that the other came and left.
    if distributed.get_rank() == 1:
        with pytest.raises(UserError, match="watch finds that rank 0 has stopped"):
            watch(model, run=False)
    Ranks.start_timeout = 60.0
    distributed.barrier()
    if distributed.get_rank() > 1:
        # The counts of calls must agree for the cases to come.
        next(ranks._groups)
    checked(model)


def plans_that_differ(_: Path) -> None:
    model = sharded(network())
    with pytest.raises(UserError, match=r"every=[12].* every=[12]"):
        watch(model, run=False, every=1 + (distributed.get_rank() == 1))


def close_on_some_ranks(_: Path) -> None:
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None)
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder)
    Ranks.close_timeout = 1.0
    if distributed.get_rank() == 0:
        _timed(MonitoringStopped, "close was not called on rank 1.*6 measurements", monitor.close)
        np.testing.assert_allclose(monitor.history.rwc, recorder.series()[:6], rtol=1e-6)
    distributed.barrier()
    # The other ranks train on; when they close, this rank does not answer.
    train(model, optimizer, recorder)
    if distributed.get_rank() == 1:
        with pytest.warns(MonitoringStopped, match="close finds that rank 0 has stopped"):
            monitor.close()
    monitor._release()
    Ranks.close_timeout = 20.0


def a_rank_that_an_exception_ends(_: Path) -> None:
    """The other ranks learn of it only when its process has ended, so it waits for them less long than usual."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, histogram_every=None)
    train(model, optimizer, Gathered(optimizer))
    Ranks.failed_timeout = 1.0
    if distributed.get_rank() == 1:
        with pytest.raises(ZeroDivisionError), pytest.warns(MonitoringStopped, match="rank 0 within 1 s"), monitor:
            _ = 1 / 0
    distributed.barrier()
    if distributed.get_rank() == 0:
        with pytest.warns(MonitoringStopped, match="close finds that rank 1 has stopped"):
            monitor.close()
    Ranks.failed_timeout = 2.0


def the_process_that_joins_the_ranks_has_ended(_: Path) -> None:
    monitor = watch(sharded(network()), run=False, histogram_every=None)
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    assert monitor._ranks is not None
    monitor._ranks._store = distributed.TCPStore("127.0.0.1", server.port, is_master=False)
    del server
    monitor.measure()
    with pytest.warns(MonitoringStopped, match="close finds that the process that joins the ranks has ended"):
        monitor.close()


def a_rank_that_stops_measuring(_: Path) -> None:
    """The other ranks train on without waiting, and say so when they close."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, log_every=1, histogram_every=None)
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder, 2)
    if distributed.get_rank() == 1:
        monitor._release()
        train(model, optimizer, recorder, 25)
    else:
        with pytest.warns(MonitoringStopped, match="other ranks have stopped"):
            train(model, optimizer, recorder, 25)


def closed_monitors_are_freed(_: Path) -> None:
    """As the trials of a search end: weights, snapshots and monitor leave the memory, by an orderly end or another."""

    def trial(model: nn.Module, fails: bool, **options: Any) -> list[weakref.ref[Any]]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=2, **options)
        snapshots = monitor._measuring.tracked.snapshots().values()
        traces = [weakref.ref(one) for one in (monitor, model, *model.parameters(), *snapshots)]
        train(model, optimizer, Gathered(optimizer))
        if fails:
            with pytest.warns(MonitoringStopped, match="out of luck"):
                monitor.guarded(_out_of_luck)
        monitor.close()
        assert fails or len(monitor.history) == STEPS
        return traces

    for fails in (False, True):
        plain = trial(network(), fails, share=True)
        wrapped = trial(DistributedDataParallel(network()), fails, share=True)
        shards = trial(sharded(network()), fails)
        gc.collect()
        for traces in (plain, wrapped, shards):
            assert [type(trace()).__name__ for trace in traces if trace() is not None] == []


def _out_of_luck() -> None:
    raise RuntimeError("out of luck")


def weights_replaced_on_all_ranks(_: Path) -> None:
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    monitor = watch(model, optimizer, run=False, log_every=5, histogram_every=None, share=True)
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder, 2)
    with torch.no_grad():
        model.module[1].weight.data = model.module[1].weight.data.repeat(2, 1)[:3].clone()
    model.module.load_state_dict(model.module.state_dict())
    with torch.no_grad():
        model.module[0].weight.data = model.module[0].weight.data.clone()
    train(model, optimizer, recorder, 3)
    monitor.close()
    expected = recorder.series()
    expected[2] = np.nan
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)


def sharded_after_watch(_: Path) -> None:
    """Monitoring ends with a sentence; the training does not."""
    model = network()
    first = watch(model, run=False)
    fully_shard(model)
    if distributed.get_rank() == 0:
        with pytest.warns(MonitoringStopped, match="0 was sharded after watch"):
            first.measure()
    checked(model)


def save_state(folder: Path) -> None:
    """5 of 9 steps; the sharded and the shared monitor are saved whole, by rank 0."""
    for name, model in _resumable():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, share=name == "shared")
        recorder = Gathered(optimizer)
        train(model, optimizer, recorder, 5)
        state = monitor.state_dict()
        monitor.close()
        closed = monitor.state_dict()
        if state:
            assert closed["snapshots"] == {}
            saved = {"monitor": state, "closed": closed, "weights": recorder.weights}
            torch.save(saved, folder / f"{name}.pt")


def a_state_without_an_index_of_every_weight(_: Path) -> None:
    """An index of each weight of an embedding of a billion takes 8 GB."""
    arange, lengths = torch.arange, []

    def noted(*words: Any, **options: Any) -> Tensor:
        made = arange(*words, **options)
        lengths.append(made.numel())
        return made

    for _name, model in _resumable():
        monitor = watch(model, run=False, histogram_every=None, share=_name == "shared")
        torch.arange = noted
        try:
            state = monitor.state_dict()
        finally:
            torch.arange = arange
        monitor.close()
        assert max(lengths, default=0) <= 11
        assert not state or torch.equal(state["snapshots"]["0"], network()[0].weight)  # type: ignore[index]


def a_rank_that_fails_within_a_state_dict(_: Path) -> None:
    """It has met the others, and then brings no part of the sums: they wait their second."""
    monitor = watch(sharded(network()), run=False, histogram_every=None)
    assert monitor._ranks is not None
    Ranks.close_timeout = 1.0
    if distributed.get_rank() == 1:
        monitor._ranks.sum = lambda tensor: 1 / 0  # type: ignore[assignment,method-assign]
        with pytest.warns(MonitoringStopped, match="ZeroDivisionError"):
            assert not monitor.state_dict()
    else:
        words = "the other ranks' part of the sums did not come within 1 s"
        _timed(MonitoringStopped, words, monitor.state_dict)
        assert monitor.closed
    Ranks.close_timeout = 20.0


def load_state(folder: Path) -> None:
    for name, model in _resumable():
        saved = torch.load(folder / f"{name}.pt", weights_only=True)
        resume(model, saved, share=name == "shared")


def resume(model: nn.Module, saved: dict[str, Any], share: bool = False) -> None:
    for key in ("monitor", "closed"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = watch(model, optimizer, run=False, log_every=3, histogram_every=None, share=share)
        recorder = Gathered(optimizer)
        # A closed monitor has kept no snapshots: the weights must be there before its state.
        if key == "monitor":
            monitor.load_state_dict(saved[key])
        with torch.no_grad():
            owned = [one for group in optimizer.param_groups for one in group["params"] if one.dim() > 1]
            for parameter, weight in zip(owned, saved["weights"][-1], strict=True):
                if isinstance(parameter, DTensor):
                    weight = distribute_tensor(weight, parameter.device_mesh, parameter.placements)
                parameter.copy_(weight)
        if key == "closed":
            monitor.load_state_dict(saved[key])
        train(model, optimizer, recorder, 4)
        monitor.close()
        recorder.weights = saved["weights"] + recorder.weights[1:]
        assert_series(monitor, recorder)


def _resumable() -> list[tuple[str, nn.Module]]:
    return [("sharded", sharded(network())), ("shared", DistributedDataParallel(network()))]


IN_TWO = [
    ddp, ddp_shared, ddp_shared_large_and_channels_last, fsdp2, fsdp2_root_alone_after_a_forward,
    fsdp2_with_a_forward_before_the_step, fsdp2_with_cpu_offload, fsdp2_bfloat16, tensor_parallel,
    tensor_parallel_with_plain_layers, partial_is_refused, fsdp1, fsdp1_one_unit, fsdp1_without_sharding,
    fsdp1_flat_is_refused, accelerate, watch_on_some_ranks, plans_that_differ, close_on_some_ranks,
    a_rank_that_an_exception_ends, the_process_that_joins_the_ranks_has_ended,
    a_rank_that_stops_measuring, closed_monitors_are_freed, weights_replaced_on_all_ranks, sharded_after_watch,
    save_state, load_state, a_state_without_an_index_of_every_weight, a_rank_that_fails_within_a_state_dict,
]  # fmt: skip
IN_FOUR = [
    ddp_shared, ddp_shared_large_and_channels_last, fsdp2, fsdp2_hybrid, fsdp1_hybrid, tensor_parallel,
    tensor_parallel_in_two_dimensions, tensor_parallel_and_fsdp2, load_state,
]  # fmt: skip
