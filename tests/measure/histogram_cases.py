"""What runs in several processes: histograms of weights that no rank has whole, against numpy's of gathered weights."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sampled
import torch
import torch.distributed as distributed
from outsider import Recorder
from sampled_cases import NAMES, network, train
from sharded_cases import Gathered, Summoned, _spread, _timed, sharded, whole
from test_nested_bins import expected
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rwc_wandb import Monitor, MonitoringStopped, UserError, relative_weight_change, watch
from rwc_wandb.measure.device import batches, histograms
from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.distributed.ranks import Ranks

COUNT = 500


def kept(monitor: Monitor) -> list[Histograms]:
    found: list[Histograms] = []
    monitor._delivery.log_histograms = found.append  # type: ignore[method-assign]
    return found


def assert_counted(found: Histograms, old: Sequence[Tensor], new: Sequence[Tensor], draw: int | None = None) -> None:
    """Of whole weights before and after a measurement; of what is drawn from them where there is a number of a draw."""
    for index, pair in enumerate(zip(old, new, strict=True)):
        if draw is not None:
            pair = tuple(sampled.drawn(one, NAMES[index], COUNT, draw) for one in pair)
        before, after = (one.float().numpy().ravel() for one in pair)
        with np.errstate(invalid="ignore"):
            kinds = (after, after - before)
        for which, values in enumerate(kinds):
            counts, ends = expected(values)
            assert found.ranges[which, index].tolist() == ends
            assert found.counts[which, index].tolist() == counts


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients are given, the same on all ranks: how the model computes is not what is tested."""
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    optimizer.step()


def backward(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 33)).square().sum().backward()
    optimizer.step()


def compared(
    model: nn.Module,
    step: Callable[[nn.Module, torch.optim.Optimizer], None] = stepped,
    recorder: Recorder | None = None,
    is_by_rows: bool = True,
    **options: Any,
) -> None:
    """All weights and a sample of them, every second step; rows end between."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitors = [
        watch(model, optimizer, run=False, log_every=3, histogram_every=2, sample=sample, **options)
        for sample in (None, COUNT)
    ]
    found = [kept(monitor) for monitor in monitors]
    recorder = recorder or Gathered(optimizer)
    recorder.weights = [recorder.copy()]
    for _ in range(7):
        step(model, optimizer)
        recorder.note()
    for monitor in monitors:
        monitor.close()
    for one in found:
        assert [histograms.step for histograms in one] == [2, 4, 6]
    for exact, drawn in zip(*found, strict=True):
        old, new = recorder.weights[exact.step - 1], recorder.weights[exact.step]
        assert_counted(exact, old, new)
        if is_by_rows:
            assert_counted(drawn, old, new, (drawn.step - 1) // 3)
        else:
            assert (drawn.counts.sum(-1) <= torch.tensor([COUNT, COUNT, 51])).all()
            assert (drawn.counts.sum(-1) > torch.tensor([COUNT // 2, COUNT // 2, 50])).all()
            # They may be from fewer bins, and narrower ones.
            assert (drawn.ranges[..., 0] >= exact.ranges[..., 0]).all()


def fsdp2(_: Path) -> None:
    compared(sharded(network()), backward)


def shared(_: Path) -> None:
    compared(DistributedDataParallel(network()), backward, share=True)


def fsdp1(_: Path) -> None:
    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    compared(model, backward, Summoned(model))


def tensor_parallel(_: Path) -> None:
    compared(_spread(network(), (distributed.get_world_size(),), {"0": [Shard(0)], "3": [Replicate()]}))


def tensor_parallel_by_columns(_: Path) -> None:
    """The draw depends on the number of ranks there."""
    model = _spread(network(), (distributed.get_world_size(),), {"0": [Shard(1)], "1": [Shard(0)], "3": [Shard(1)]})
    compared(model, is_by_rows=False)


def hybrid(_: Path) -> None:
    compared(sharded(network(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))), backward)


def bfloat16(_: Path) -> None:
    compared(sharded(network().bfloat16()))


def nothing_moves_and_nothing_is_finite(_: Path) -> None:
    """Zeros, weights that do not move, NaN and infinities; on ranks that have nothing else, and on some only."""
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0] = torch.nan
        model[0].weight[-1, :2] = torch.tensor([torch.inf, -3.0])
        model[1].weight[: len(model[1].weight) // distributed.get_world_size() + 1] = torch.nan
        model[3].weight.fill_(torch.inf)
    model = sharded(model)
    monitor = watch(model, run=False, histogram_every=1)
    found = kept(monitor)
    before = [whole(layer.parameter).clone() for layer in monitor.layers]
    monitor.measure()
    monitor.close()
    assert_counted(found[0], before, before)
    assert found[0].counts[1].sum(-1).tolist() == [71 * 33 - 2, (before[1].isfinite()).sum(), 0]


def skipped_steps(_: Path) -> None:
    """A fused optimizer under GradScaler skips steps, of which ranks learn when their row has arrived."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = watch(model, optimizer, run=False, log_every=4, histogram_every=2, share=True)
    found = kept(monitor)
    end = _delay_copies()
    recorder = Gathered(optimizer)
    for number in range(14):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(5, 33)).square().sum()).backward()
        if number in (1, 2, 5):
            model.module[1].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if number not in (1, 2, 5):
            recorder.note()
    end()
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(1, 12))
    # Of every second call, those that were steps.
    assert [histograms.step for histograms in found] == [2, 5, 7, 9, 11]
    for one in found:
        assert_counted(one, recorder.weights[one.step - 1], recorder.weights[one.step])


def _delay_copies(chance: float = 0.6) -> Callable[[], None]:
    """Copies arrive on each rank at another time, as those of GPUs do: with this chance at each look; returns what ends
    that."""
    late = random.Random(distributed.get_rank())
    found = [(batches.Part, "arrived"), (histograms.HistogramsUnderway, "_has_copies")]
    originals = [getattr(*one) for one in found]
    for one in found:
        setattr(*one, lambda self: late.random() < chance)

    def end() -> None:
        for one, original in zip(found, originals, strict=True):
            setattr(*one, original)

    return end


def ranks_whose_copies_arrive_at_other_times(_: Path) -> None:
    """What the ranks do together, they begin in one order."""
    end = _delay_copies()
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=1, histogram_every=1)
    found = kept(monitor)
    recorder = Gathered(optimizer)
    try:
        for number in range(30):
            backward(model, optimizer)
            recorder.note()
            if number == 20:
                monitor.flush()
    finally:
        monitor.close()
        end()
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)
    assert [histograms.step for histograms in found] == list(range(1, 31))
    for one in found:
        assert_counted(one, recorder.weights[one.step - 1], recorder.weights[one.step])


def a_state_is_loaded_while_they_are_underway(_: Path) -> None:
    """What some ranks have begun is finished by all."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=1, histogram_every=1)
    states: list[Any] = [monitor.state_dict()]
    distributed.broadcast_object_list(states)
    found = kept(monitor)
    saved = [whole(layer.parameter).clone() for layer in monitor.layers]
    end = _delay_copies(chance=float(distributed.get_rank() == 0))
    for _step in range(3):
        backward(model, optimizer)
    end()
    monitor.load_state_dict(states[0])
    del found[:]
    stepped(model, optimizer)
    monitor.close()
    assert monitor.history.steps.tolist() == [1]
    now = [whole(layer.parameter).clone() for layer in monitor.layers]
    np.testing.assert_allclose(
        monitor.history.rwc[0],
        [relative_weight_change(new, old) for new, old in zip(now, saved, strict=True)],
        rtol=1e-6,
    )
    (only,) = found
    assert_counted(only, saved, now)


def one_rank_flushes(_: Path) -> None:
    """A mistake: it learns so within its second, and the others' training goes on."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=2, histogram_every=2)
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder, range(2))
    Ranks.close_timeout = 1.0
    if distributed.get_rank() == 0:
        _timed(MonitoringStopped, "flush was not called on rank 1", monitor.flush)
    train(model, optimizer, recorder, range(10))
    if distributed.get_rank() == 1:
        with pytest.warns(MonitoringStopped, match="close finds that rank 0 has stopped"):
            monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, recorder.series()[:2], rtol=1e-6)
    Ranks.close_timeout = 20.0


def steps_of_each_rank_its_own(_: Path) -> None:
    """They are only noted; histograms are made together."""
    monitor = watch(sharded(network()), run=False, log_every=3, histogram_every=2)
    found = kept(monitor)
    for number in range(1, 8):
        monitor.measure(step=number * (1 + 2 * distributed.get_rank()) + distributed.get_rank())
    monitor.close()
    assert len(monitor.history) == 7
    assert len(found) == 3
    for one in found:
        assert one.counts[0].sum(-1).tolist() == [layer.size for layer in monitor.layers]


def at_w_and_b(folder: Path) -> None:
    """Rank 0 logs them; they are in its run's summary at the end."""
    import wandb

    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if distributed.get_rank() == 0:
        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(mode="offline", dir=folder)
    monitor = watch(model, optimizer, histogram_every=5, rows="own", sample={"0": COUNT, "": None})
    recorder = Gathered(optimizer)
    train(model, optimizer, recorder, range(6))
    monitor.close()
    if distributed.get_rank() == 0:
        summary = dict(run.summary)
        run.finish()
        old, new = recorder.weights[4:6]
        for index, name in enumerate(NAMES):
            pair = [sampled.drawn(one[index], name, COUNT if index == 0 else 10**9, 0) for one in (old, new)]
            for kind, values in (("weight", pair[1]), ("update", pair[1] - pair[0])):
                found = summary[f"hist/{kind}/{name}"]
                counts, ends = expected(values.numpy())
                assert found["values"] == counts
                assert [found["bins"][0], found["bins"][-1]] == ends


def plans_that_differ(_: Path) -> None:
    with pytest.raises(UserError, match=r"histogram_every=[12].* histogram_every=[12]"):
        watch(sharded(network()), run=False, histogram_every=1 + (distributed.get_rank() == 1))


def a_rank_that_stops_measuring(_: Path) -> None:
    """The other ranks train on without waiting, and say so."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=1, histogram_every=1)
    for _step in range(3):
        backward(model, optimizer)
    if distributed.get_rank() == 1:
        monitor._release()
        train(model, optimizer, None, range(25))
    else:
        with pytest.warns(MonitoringStopped, match="other ranks have stopped"):
            train(model, optimizer, None, range(25))


class Never:
    """What a rank that hangs has begun."""

    def is_completed(self) -> bool:
        return False


def a_rank_that_fails_at_histograms(_: Path) -> None:
    """It says that it has left: the others do not wait for it."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=2, histogram_every=3)
    train(model, optimizer, None, range(2))
    monitor.flush()
    assert monitor._ranks is not None
    if distributed.get_rank() == 1:
        monitor._ranks.max = lambda tensor: 1 / 0  # type: ignore[assignment,method-assign]
        with pytest.warns(MonitoringStopped, match="ZeroDivisionError"):
            backward(model, optimizer)
    else:
        backward(model, optimizer)
        with pytest.warns(MonitoringStopped, match="close finds that rank 1 has stopped"):
            monitor.close()
    assert len(monitor.history) == 2


def ranks_that_do_not_answer(_: Path) -> None:
    """A step does not wait; `close` waits its second, and has every measurement."""
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, log_every=1, histogram_every=2)
    found = kept(monitor)
    assert monitor._ranks is not None
    monitor._ranks.max = lambda tensor: Never()  # type: ignore[method-assign]
    start = time.monotonic()
    train(model, optimizer, None, range(5))
    assert time.monotonic() - start < Ranks.close_timeout
    Ranks.close_timeout = 1.0
    _timed(MonitoringStopped, "the other ranks' part of the sums did not come within 1 s", monitor.close)
    assert len(monitor.history) == 5
    assert not found
    Ranks.close_timeout = 20.0


def a_rank_that_is_killed(rank: int, port: int, folder: Path) -> None:
    """A process of its own: rank 1 at step 20, with sums and histograms underway; rank 0 notes how far it got."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    monitor = watch(network(), run=False, log_every=1, histogram_every=1, share=True)

    def steps() -> None:
        for step in range(40):
            if step <= 20:
                distributed.barrier()
            if rank == 1 and step == 20:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            start = time.monotonic()
            monitor.measure()
            assert time.monotonic() - start < 20
            time.sleep(0.02)

    with pytest.warns(MonitoringStopped, match="stopped monitoring at optimizer step [23]"):
        steps()
    (folder / "measured").write_text(str(len(monitor.history)))


IN_TWO = [
    fsdp2, shared, fsdp1, tensor_parallel, tensor_parallel_by_columns, bfloat16, nothing_moves_and_nothing_is_finite,
    skipped_steps, ranks_whose_copies_arrive_at_other_times, a_state_is_loaded_while_they_are_underway,
    steps_of_each_rank_its_own, at_w_and_b, one_rank_flushes, plans_that_differ, a_rank_that_stops_measuring,
    a_rank_that_fails_at_histograms, ranks_that_do_not_answer,
]  # fmt: skip
IN_FOUR = [fsdp2, shared, hybrid, tensor_parallel, tensor_parallel_by_columns, nothing_moves_and_nothing_is_finite]
