"""However a run ends, its monitor ends before it: the charts, the series' file and the last rows are there."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from standin import StandIn
from training import Training, network, rwc_rows

from rwc_wandb import History, watch
from rwc_wandb.measure.delivery import MonitoringStopped


def test_wandb_teardown_loses_nothing(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    training = Training(standin, log_every=5, histogram_every=None)
    for _ in training.steps(20):
        pass
    # W&B leaves a thread of this run behind, which fails noisily.
    training.run._run_status_checker.stop()
    wandb.teardown()
    assert training.monitor.closed
    server = standin.run(training.run.id)
    assert server.finished
    assert [row["rwc/step"] for row in rwc_rows(server)] == [5, 10, 15, 20]
    assert server.files["rwc.safetensors"] == (Path(training.run.dir) / "rwc.safetensors").read_bytes()
    assert len(server.tables["rwc_charts/rwc_heatmap_table"].data) == 3 * 20
    # W&B starts anew, for the next run.
    again = Training(standin, log_every=5, histogram_every=None)
    for _ in again.steps(5):
        pass
    assert [row["rwc/step"] for row in rwc_rows(again.finish())] == [5]


@pytest.mark.parametrize("ending", ["run", "module", "with", "teardown"])
def test_a_disabled_run_closes_its_monitor(ending: str, standin: StandIn) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = wandb.init(mode="disabled")
    monitor = watch(model, optimizer)
    assert not monitor.closed
    if ending == "with":
        with run:
            pass
    elif ending == "run":
        run.finish()
    elif ending == "module":
        wandb.finish()
    else:
        wandb.teardown()
    assert monitor.closed == (ending != "teardown")  # A disabled run outlives it, as for W&B.
    assert not optimizer._optimizer_step_post_hooks or not monitor.closed
    monitor.close()


def test_charts_that_fail_lose_no_row(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who never logs: all rows wait for the end."""
    training = Training(standin, log_every=5, histogram_every=None)
    for _ in training.steps(20):
        pass

    def full(*_: object, **__: object) -> None:
        raise OSError("no room for a table")

    monkeypatch.setattr(wandb, "plot_table", full)
    with pytest.warns(MonitoringStopped, match="no room for a table"):
        server = training.finish()
    assert [row["rwc/step"] for row in rwc_rows(server)] == [5, 10, 15, 20]


@pytest.mark.parametrize("rows", ["own", "attached"])
def test_a_run_that_goes_on_keeps_no_series_of_closed_monitors(rows: Any, standin: StandIn) -> None:
    """As in a cross-validation within one run."""
    traces = []
    run = wandb.init(project="p")
    for fold in range(3):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = watch(model, optimizer, log_every=2, histogram_every=None, rows=rows, prefix=f"fold{fold}")
        for _ in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            run.log({"loss": fold})
        monitor.close()
        traces += [weakref.ref(monitor), weakref.ref(monitor.history)]
        del model, optimizer, monitor
    gc.collect()
    assert not [trace for trace in traces if trace() is not None]
    run.finish()
    server = standin.run(run.id)
    for fold in range(3):
        found = [row[f"fold{fold}/step"] for row in server.rows if f"fold{fold}/layer1" in row]
        assert found == [2, 4, 5]
    assert len([row for row in server.rows if "loss" in row]) == 15


@pytest.mark.parametrize("ending", ["run", "teardown"])
def test_an_interpreter_that_starts_no_thread_any_more_loses_nothing(
    ending: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12.0 to 3.12.2 within `atexit`, where the monitor of a script that just ends is closed."""
    monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    training = Training(standin, log_every=5, histogram_every=10)
    for _ in training.steps(20):
        pass
    tried = []
    start_as_ever = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if threading.current_thread() is not threading.main_thread():  # The stand-in's, for each request.
            return start_as_ever(thread)
        tried.append(thread)
        raise RuntimeError("can't create new thread at interpreter shutdown")

    training.run._run_status_checker.stop()
    with monkeypatch.context() as no_threads:
        no_threads.setattr(threading.Thread, "start", start)
        if ending == "run":
            training.run.finish()
        else:
            wandb.teardown()
    assert tried
    server = standin.run(training.run.id)
    assert server.finished
    assert [row["rwc/step"] for row in rwc_rows(server)] == [5, 10, 15, 20]
    saved = Path(training.run.dir) / "rwc.safetensors"
    assert server.files["rwc.safetensors"] == saved.read_bytes()
    assert History.load(saved).steps.tolist() == list(range(1, 21))
    assert len(server.tables["rwc_charts/rwc_heatmap_table"].data) == 3 * 20
