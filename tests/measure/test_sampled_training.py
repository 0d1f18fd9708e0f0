"""`watch(sample=...)` through trainings: the series, its errors, rows, checkpoints, files; over processes too."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import sampled
import torch
from outsider import Recorder, run, step
from sampled_cases import IN_FOUR, IN_TWO, compared, network, resume
from test_state import saved_and_loaded
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rwc_wandb import History, Monitor, find_layers, watch
from rwc_wandb.measure import sampled_layers
from rwc_wandb.measure.delivery import Delivery, Window

NAMES = ["0", "2", "4"]


def convolutional(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """10,800, 5,005 and 84 weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(12, 100, 3), nn.Flatten(), nn.Linear(77, 65, bias=False), nn.ReLU(), nn.Linear(7, 12)
    ).to(dtype)


def trained(model: nn.Module, steps: int = 23, row: int = 5) -> tuple[Monitor, Recorder]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return run(model, optimizer, steps, sample=1000, log_every=row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_series_is_that_of_what_is_drawn(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = convolutional(dtype).to(memory_format=layout)
    monitor, recorder = trained(model)
    assert [layer.sample for layer in monitor.layers] == [1000, 1000, None]
    history = monitor.history
    for found, elementwise in ((history.rwc, False), (history.rwc_elementwise, True)):
        wanted = sampled.series(recorder.weights, NAMES, 1000, 5, elementwise)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert (history.rwc_error[:, 2] == 0).all()
    for index, name in enumerate(NAMES[:2]):
        for slot in (0, 4, 5, 22):
            old, new = (recorder.weights[slot + one][index] for one in (0, 1))
            assert history.rwc_error[slot, index] == pytest.approx(sampled.error(new, old, name, 1000, slot // 5), 1e-5)


def test_the_errors_are_those_that_are_made() -> None:
    monitor, recorder = trained(convolutional(), steps=200, row=1)
    scores = (monitor.history.rwc - recorder.series())[:, :2] / monitor.history.rwc_error[:, :2]
    assert abs(scores.mean()) < 0.15
    assert scores.std() == pytest.approx(1, abs=0.1)


def test_snapshots_are_as_small_as_the_samples() -> None:
    model = convolutional()
    monitor = watch(model, run=False, sample=1000)
    assert sum(snapshot.numel() for snapshot in monitor._measuring.tracked.snapshots().values()) <= 2 * 1000 + 84 + 4
    monitor.close()


def test_a_dict_chooses_by_the_first_expression_that_is_found() -> None:
    model = convolutional()
    for sample, wanted in (
        ({"^0$": None, "": 500}, [None, 500, None]),
        ({"2": 5004}, [None, 5004, None]),
        ({"2": 5005}, [None, None, None]),
        (None, [None, None, None]),
    ):
        with watch(model, run=False, sample=sample) as monitor:  # type: ignore[arg-type]
            assert [layer.sample for layer in monitor.layers] == wanted


def test_tied_and_frozen_layers_and_weights_that_are_not_dense() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    model[3].weight = nn.Parameter(torch.randn(40, 80)[:, ::2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, sample=300, log_every=5)
    assert [layer.name for layer in monitor.layers] == ["0", "2", "3"]
    records = []
    for _ in range(8):
        records.append([layer.parameter.detach().clone().contiguous() for layer in monitor.layers])
        for index in (0, 3):
            model[index].weight.grad = torch.randn(40, 40)
        optimizer.step()
    records.append([layer.parameter.detach().clone().contiguous() for layer in monitor.layers])
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, sampled.series(records, ["0", "2", "3"], 300, 5), rtol=1e-6)
    assert (monitor.history.rwc[:, 1] == 0).all()
    assert (monitor.history.rwc_error > 0).tolist() == [[True, False, True]] * 8


def test_what_is_not_finite_is_seen_in_the_sample_only() -> None:
    model = nn.Sequential(nn.Linear(100, 100))
    places = sampled.Sample(10_000, 500, sampled.key_of(0, "0"), 0, 10_000).places(0).tolist()
    others = sorted(set(range(10_000)) - set(places))
    monitor = watch(model, run=False, sample=500, log_every=50)
    with torch.no_grad():
        model[0].weight.view(-1)[others[7]] = torch.nan
        monitor.measure()
        model[0].weight.view(-1)[places[7]] = torch.nan
        monitor.measure()
    monitor.close()
    assert monitor.history.rwc[:, 0].tolist() == [0, pytest.approx(np.nan, nan_ok=True)]
    assert monitor.history.rwc_error[:, 0].tolist() == [0, pytest.approx(np.nan, nan_ok=True)]


def test_a_row_has_one_draw_and_the_mean_of_its_errors() -> None:
    class Rows(Delivery):
        windows: list[Window] = []  # noqa: RUF012

        def log_row(self, window: Window) -> None:
            self.windows.append(window)

    model = convolutional()
    layers = sampled_layers.with_samples(find_layers(model), 1000)
    monitor = Monitor(model, layers, log_every=5, delivery=Rows(layers))
    draws = []
    for _ in range(12):
        draws.append(monitor._measuring.tracked.drawn)
        monitor.measure()
    monitor.close()
    assert draws == [0] * 5 + [1] * 5 + [2] * 2
    assert [window.rwc_error.shape for window in Rows.windows] == [(5, 3), (5, 3), (2, 3)]


def test_a_replaced_weight_is_drawn_from_anew() -> None:
    model = convolutional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, sample=1000, log_every=3)
    step(optimizer, model)
    model[2].weight = nn.Parameter(torch.randn(90, 90))
    optimizer.add_param_group({"params": model[2].weight})
    with pytest.warns(UserWarning, match=r"1 layer \(2\) were replaced"):
        step(optimizer, model)
    before = model[2].weight.detach().clone()
    step(optimizer, model)
    after = model[2].weight.detach().clone()
    monitor.close()
    assert np.isnan(monitor.history.rwc[1]).tolist() == [False, True, False]
    assert monitor.history.rwc[2, 1] == pytest.approx(sampled.series([[before], [after]], ["2"], 1000, 1)[0, 0])


def test_a_moved_weight_keeps_its_snapshot() -> None:
    model = convolutional()
    monitor = watch(model, run=False, sample=1000)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    model[0].weight.data = model[0].weight.data.clone()
    monitor.measure()
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc[0], [0.5, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("order", ["model first", "monitor first"])
def test_a_resumed_series_is_that_of_a_run_that_never_stopped(order: str) -> None:
    model = convolutional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, sample=1000, log_every=4)
    recorder = Recorder([layer.parameter for layer in monitor.layers])
    for _ in range(10):
        step(optimizer, model)
        recorder.note()
    state = saved_and_loaded({"model": model.state_dict(), "monitor": monitor.state_dict()})
    assert sum(one["values"].numel() for one in list(state["monitor"]["snapshots"].values())[:2]) <= 2004
    monitor.close()
    model = convolutional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = watch(model, optimizer, run=False, sample=1000, log_every=4)
    parts = [(model, "model"), (monitor, "monitor")]
    for part, key in parts if order == "model first" else reversed(parts):
        part.load_state_dict(state[key])
    recorder.parameters = [layer.parameter for layer in monitor.layers]
    for _ in range(11):
        step(optimizer, model)
        recorder.note()
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, sampled.series(recorder.weights, NAMES, 1000, 4), rtol=1e-6)
    assert (monitor.history.rwc_error[:, :2] > 0).all()


@pytest.mark.parametrize(("before", "after"), [(1000, 900), (1000, None), (None, 1000)])
def test_a_state_of_another_sample_is_nan_once_and_said(before: int | None, after: int | None) -> None:
    model = convolutional()
    with watch(model, run=False, sample=before) as monitor:
        monitor.measure()
        state = saved_and_loaded(monitor.state_dict())
    monitor = watch(model, run=False, sample=after)
    with pytest.warns(UserWarning, match=r"other samples of 2 layers \(0, 2\): their RWC is NaN once"):
        monitor.load_state_dict(state)
    monitor.measure()
    monitor.measure()
    monitor.close()
    assert np.isnan(monitor.history.rwc).tolist() == [[False] * 3, [True, True, False], [False] * 3]


def test_states_and_files_from_before_there_were_samples(tmp_path: Path) -> None:
    model = convolutional()
    with watch(model, run=False) as monitor:
        monitor.measure()
        state = monitor.state_dict()
    del state["counters"]["drawn"]
    assert set(state["history"]) == {"steps", "rwc", "rwc_elementwise"}
    monitor = watch(model, run=False)
    monitor.load_state_dict(state)
    monitor.measure()
    monitor.close()
    assert (monitor.history.rwc == 0).all()
    monitor.history.save(tmp_path / "rwc.safetensors")
    assert (History.load(tmp_path / "rwc.safetensors").rwc_error == 0).all()


def test_the_errors_in_a_file_and_with_further_layers(tmp_path: Path) -> None:
    monitor, _ = trained(convolutional())
    path = tmp_path / "rwc.safetensors"
    monitor.history.save(path)
    loaded = History.load(path)
    np.testing.assert_array_equal(loaded.rwc_error, monitor.history.rwc_error)
    assert loaded.rwc_error.dtype == np.float32
    wider = History(["new", *NAMES], ["early"] * 4, [1, 2, 3, 4])
    loaded.take_on(wider)
    np.testing.assert_array_equal(loaded.rwc_error[:, 1:], monitor.history.rwc_error)
    assert np.isnan(loaded.rwc_error[:, 0]).all()
    exact = History(NAMES, ["early"] * 3, [1, 2, 3])
    values = np.ones((100, 3))
    exact.append(range(100), values, values)
    exact.append(range(100, 200), values, values, 0.5 * values)
    assert exact.rwc_error.sum(1).tolist() == [0] * 100 + [1.5] * 100
    pytest.importorskip("pandas")
    np.testing.assert_array_equal(monitor.history.to_pandas().rwc_error, monitor.history.rwc_error.ravel())


def test_nothing_waits_for_the_device() -> None:
    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Waits.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    for dtype in (torch.float32, torch.bfloat16):
        model = convolutional(dtype)
        monitor = watch(model, run=False, sample=1000, log_every=2)
        with Waits():
            for _ in range(5):
                monitor.measure()
            monitor._measuring.tracked.groups[0].histograms()
            monitor._measuring.tracked.groups[0].histograms(are_parts=True)
        monitor.close()
        assert Waits.count == 0


def test_snapshots_that_take_much_of_the_free_memory_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000))
    monkeypatch.setattr(sampled_layers, "_free", lambda device: 39_000_000)
    words = r"takes 0\.0 GB of the 0\.0 GB that are free on cpu\. watch\(sample=65_536\)"
    with pytest.warns(UserWarning, match=words) as said:
        watch(model, run=False).close()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(model, run=False, sample=65_536).close()
        monkeypatch.setattr(sampled_layers, "_free", lambda device: 41_000_000)
        watch(model, run=False).close()
        monkeypatch.setattr(sampled_layers, "_free", lambda device: None)
        watch(model, run=False).close()


def test_the_free_memory_of_this_machine() -> None:
    pytest.importorskip("psutil")
    found = sampled_layers._free(torch.device("cpu"))
    assert found is not None
    assert 10**7 < found < 10**14


@pytest.mark.parametrize("case", [case.__name__ for case in IN_TWO])
def test_in_two_processes(case: str, in_two: dict[str, str]) -> None:
    assert not in_two[case], in_two[case]


@pytest.mark.parametrize("case", [case.__name__ for case in IN_FOUR])
def test_in_four_processes(case: str, in_four: dict[str, str]) -> None:
    assert not in_four[case], in_four[case]


def test_two_ranks_resume_on_one(folder: Path, in_two: dict[str, str]) -> None:
    resume(network(), folder)


def test_one_process_draws_what_ranks_draw_together(folder: Path, in_two: dict[str, str]) -> None:
    model = network()
    compared(model, model, "alone", folder)
    for name in ("fsdp2", "shared", "fsdp1"):
        found = torch.load(folder / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(found, torch.load(folder / "alone.pt", weights_only=True), rtol=1e-6, atol=0)
