"""Real training on this machine's device: steps that GradScaler skips, fused, compiled and captured ones, streams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpu.machine import DEVICE, ON_GPU, rwc
from torch import Tensor, nn

from rwc_wandb import Monitor, watch

pytestmark = pytest.mark.gpu
only_on_a_gpu = pytest.mark.skipif(not ON_GPU, reason="of GPUs")
BACKEND = "inductor" if ON_GPU else "eager"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).to(DEVICE)


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.randn(32, 64, device=DEVICE)).float().square().mean()


class Series:
    """What the weights themselves say: call it after each step that counts."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        self.expected: list[list[float]] = []
        self.before = self._now()

    def _now(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def note(self) -> None:
        now = self._now()
        self.expected.append([rwc(*one) for one in zip(now, self.before, strict=True)])
        self.before = now

    def check(self, monitor: Monitor) -> None:
        monitor.close()
        assert monitor.history.steps.tolist() == list(range(1, len(self.expected) + 1))
        found = torch.from_numpy(monitor.history.rwc).double()
        torch.testing.assert_close(found, torch.tensor(self.expected, dtype=torch.float64), rtol=2e-6, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_grad_scaler_skips(fused: bool) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=4.0)
    series = Series(model)
    monitor = watch(model, optimizer, run=False, log_every=4)
    for attempt in range(30):
        with torch.autocast(DEVICE.type, torch.float16, enabled=ON_GPU):
            loss = loss_of(model)
        skipped = attempt in (0, 7, 8, 21)
        scaler.scale(loss * (torch.inf if skipped else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if not skipped:
            series.note()
    series.check(monitor)


def trained(model: nn.Module, step: Callable[[], object], watched: Callable[[], Monitor]) -> None:
    series = Series(model)
    monitor = watched()
    for _ in range(20):
        step()
        series.note()
    series.check(monitor)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_fused(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.01, fused=True)  # type: ignore[call-arg]

    def step() -> None:
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()

    trained(model, step, lambda: watch(model, optimizer, run=False, log_every=3))


@pytest.mark.parametrize("mode", ["model", "step", "both"])
def test_compiled(mode: str) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)
    trainee = model if mode == "step" else torch.compile(model, backend=BACKEND)
    optimizer_step = optimizer.step if mode == "model" else torch.compile(optimizer.step, backend=BACKEND)
    made: list[Monitor] = []

    def step() -> None:
        loss_of(trainee).backward()  # type: ignore[arg-type]
        optimizer_step()
        optimizer.zero_grad()

    def watched() -> Monitor:
        made.append(watch(trainee, optimizer, run=False, log_every=3))  # type: ignore[arg-type]
        return made[0]

    trained(model, step, watched)


@only_on_a_gpu
def test_a_captured_step_that_is_measured_after_each_replay() -> None:
    """A replay runs no hooks: the monitor is called by hand, and reads the weights where the graph has left them."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
    batch = torch.randn(32, 64, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(batch).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    series = Series(model)
    monitor = watch(model, run=False, log_every=3)
    for _ in range(20):
        batch.normal_()
        graph.replay()
        monitor.measure()
        series.note()
    series.check(monitor)


@only_on_a_gpu
def test_training_on_a_side_stream() -> None:
    """Measured on the stream that steps: never before the step, whatever else the GPU does."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    series = Series(model)
    monitor = watch(model, optimizer, run=False, log_every=3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    filler = torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
    for _ in range(20):
        filler.zero_()
        with torch.cuda.stream(side):
            filler.zero_()
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            series.note()
    side.synchronize()
    series.check(monitor)


def test_two_monitors() -> None:
    """Of one model, at different cadences: neither sees the other's snapshots."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    series = Series(model)
    sparse = Series(model)
    every, third = (watch(model, optimizer, run=False, every=n, log_every=4) for n in (1, 3))
    for step in range(1, 22):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        series.note()
        if step % 3 == 0:
            sparse.note()
    series.check(every)
    third.close()
    assert third.history.steps.tolist() == list(range(3, 22, 3))
    found = torch.from_numpy(third.history.rwc).double()
    torch.testing.assert_close(found, torch.tensor(sparse.expected, dtype=torch.float64), rtol=2e-6, atol=0)
