"""Charts are there while a run trains, at growing intervals, and cost it neither a row nor a step."""

from __future__ import annotations

import hashlib
import json
import time
from argparse import Namespace
from typing import Any

import numpy as np
import pytest
from standin import StandIn
from training import Training

from rwc_wandb.log import charts as logged
from rwc_wandb.log.push import run as push
from rwc_wandb.view import charts
from rwc_wandb.view.charts import CHARTS, VERSIONS, registered_name, spec

DIGESTS = {
    "rwc_curves": {1: "8fe3ded9dba8"},
    "rwc_heatmap": {1: "09073676fea2"},
    "rwc_map": {1: "3b2701e1bde0"},
    "rwc_profile": {1: "767063a75371"},
    "rwc_stages": {1: "dd1c65b5089d"},
}
"""Of every version of a spec that users may have registered."""


@pytest.mark.parametrize("registered", [True, False])
def test_charts_are_renewed_while_it_trains(
    registered: bool, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged, "FIRST_SECONDS", 0.5)
    if registered:
        monkeypatch.setenv("RWC_WANDB_CHARTS", "me")
    training = Training(standin, log_every=5, histogram_every=None)
    run = training.run
    steps = training.steps(100_000)
    key = "rwc_charts/rwc_heatmap" if registered else "rwc_charts/rwc_curves"

    def table() -> dict[str, Any] | None:
        server = standin.runs[run.id]
        found = server.summary.get(f"{key}_table")
        if not found or found["path"] not in server.files or key not in server.panels:
            return None
        content: dict[str, Any] = json.loads(server.files[found["path"]])
        return content

    def times_of_tables() -> set[int]:
        return {
            json.loads(content)["data"][-1][4]
            for path, content in standin.runs[run.id].files.items()
            if "rwc_curves_table" in path
        }

    def train(condition: Any) -> int:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            step = next(steps)
            run.log({"loss": step})
            time.sleep(0.02)
        return step

    train(lambda: len(times_of_tables()) >= 2 and table())
    assert run.step == training.monitor.step  # Ours never moved it.
    panel = standin.runs[run.id].panels[key]["panel_config"]
    assert panel["panelDefId"] == ("me/rwc_heatmap" if registered else "wandb/lineseries/v0")
    assert panel["userQuery"]["queryFields"][0]["fields"][-1]["args"][0]["value"] == f"{key}_table"
    shown = table()
    assert shown is not None
    history = training.monitor.history
    count = len(shown["data"]) // 3
    values = np.array([row[5] for row in shown["data"]]).reshape(count, 3)
    np.testing.assert_allclose(values, history.rwc[:count], rtol=1e-6)
    assert not standin.artifacts
    last = training.monitor.step
    server = training.finish()
    # Only the final charts are in a row; they replace ours.
    assert [row["loss"] for row in server.rows if "loss" in row] == list(range(1, last + 1))
    assert len([row for row in server.rows if f"{key}_table" in row]) == 1
    final = json.loads(server.files[server.summary[f"{key}_table"]["path"]])
    assert final["data"][-1][4] == last
    assert len(times_of_tables()) < 15


def test_intervals_between_charts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logged.time, "monotonic", lambda: now[0])
    live = logged.LiveCharts(object(), "rwc")  # type: ignore[arg-type]
    monkeypatch.setattr(live, "_renew", lambda history: None)

    class Frozen:
        def frozen(self) -> None: ...

    times = []
    while now[0] < 3 * 24 * 3600:
        if live.is_due():
            times.append(now[0])
            live.renew(Frozen())  # type: ignore[arg-type]
            assert live._thread is not None
            live._thread.join()
        now[0] += 1
    assert times[0] == 60
    assert len(times) == 21
    assert times[-1] > 3 * 24 * 3600 / 1.5


def test_a_changed_spec_has_a_version_of_its_own() -> None:
    """W&B keeps what was registered under a name: a spec that has changed must get a new one (`VERSIONS`)."""
    found = {name: hashlib.sha256(json.dumps(spec(name)).encode()).hexdigest()[:12] for name in CHARTS}
    assert found == {name: DIGESTS[name][VERSIONS[name]] for name in CHARTS}, "raise VERSIONS of what differs"


def test_a_new_version_is_registered_beside_the_old_and_used_by_runs(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Namespace(action="push", entity="tester", access="private")
    push(words)
    monkeypatch.setitem(charts.VERSIONS, "rwc_heatmap", 2)
    push(words)
    said = capsys.readouterr().out
    assert "tester/rwc_heatmap_v2: registered (private)" in said
    assert said.count("registered before") == len(CHARTS) - 1
    assert set(standin.charts) == {f"tester/{name}" for name in CHARTS} | {"tester/rwc_heatmap_v2"}
    assert registered_name("rwc_curves") == "rwc_curves"
    monkeypatch.setenv("RWC_WANDB_CHARTS", "tester")
    training = Training(standin, log_every=5, histogram_every=None)
    for _ in training.steps(10):
        pass
    server = training.finish()
    assert server.panels["rwc_charts/rwc_heatmap"]["panel_config"]["panelDefId"] == "tester/rwc_heatmap_v2"
