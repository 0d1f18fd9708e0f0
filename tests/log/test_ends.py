"""However a run ends, its monitor ends before it: the charts, the series' file and the last rows are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import wandb
from standin import StandIn
from training import Training, network, rwc_rows

from rwc_wandb import watch
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
