"""`rwc-wandb charts push`, a run's final charts and `rwc-wandb report`, as the real client sends them to a server."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from histories import made_up

from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import CHARTS, charts, spec
from rwc_wandb.view.series import series

if TYPE_CHECKING:
    from standin import StandIn
    from standin.store import Run


def command(standin: StandIn, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run rwc-wandb in a process of its own: the client keeps the settings of the server that it saw first."""
    return python(standin, folder, "-m", "rwc_wandb", *words, **environment)


def python(standin: StandIn, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | standin.environment(folder) | environment
    return subprocess.run(
        [sys.executable, *words], env=settings, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def log_run(standin: StandIn, folder: Path, history: History, **environment: str) -> Run:
    """A run that logs its charts, and then a row of the user's; as it arrived."""
    history.save(folder / "rwc.safetensors")
    code = """
import wandb
from rwc_wandb.log.charts import log_charts
from rwc_wandb.measure.series.history import History
run = wandb.init(project="rwc", name="a run")
log_charts(run, History.load("rwc.safetensors"))
run.log({"loss": 0.75})
run.finish()
"""
    result = python(standin, folder, "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    (run,) = standin.runs.values()
    return run


def with_gaps() -> History:
    history = made_up(layers=5, measurements=4)
    history.rwc[1, 2], history.rwc[2, 2], history.rwc[3, 2] = math.nan, 0, math.inf
    return history


def assert_same_rows(arrived: list[list[Any]], rows: list[list[Any]]) -> None:
    assert len(arrived) == len(rows)
    for got, sent in zip(arrived, rows, strict=True):
        assert got == [pytest.approx(value) if isinstance(value, float) else value for value in sent]


def test_the_charts_are_registered_once(standin: StandIn, tmp_path: Path) -> None:
    first = command(standin, tmp_path, "charts", "push", "tester", "--access", "public")
    assert first.returncode == 0, first.stderr
    assert set(standin.charts) == {f"tester/{name}" for name in CHARTS}
    for name in CHARTS:
        chart = standin.charts[f"tester/{name}"]
        assert (chart.spec, chart.kind, chart.access) == (spec(name), "vega2", "PUBLIC")
    assert "RWC_WANDB_CHARTS=tester" in first.stdout
    second = command(standin, tmp_path, "charts", "push", "tester")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("registered before") == len(CHARTS)


@pytest.mark.parametrize("words", [("charts", "push", "tester"), ("report", "tester/rwc")], ids=["charts", "report"])
@pytest.mark.parametrize("fault", ["no key", "refusal"])
def test_what_wandb_refuses_is_one_sentence(
    fault: str, words: tuple[str, ...], standin: StandIn, tmp_path: Path
) -> None:
    standin.faults.status = 403 if fault == "refusal" else None
    result = command(standin, tmp_path, *words, **({"WANDB_API_KEY": ""} if fault == "no key" else {}))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"^rwc-wandb: W&B", result.stderr, re.MULTILINE)


def test_a_run_logs_registered_charts_by_name(standin: StandIn, tmp_path: Path) -> None:
    history = with_gaps()
    run = log_run(standin, tmp_path, history, RWC_WANDB_CHARTS="tester")
    # W&B keeps the title where it draws several runs at once: it names none of them.
    expected = charts(series([history]))
    assert set(run.panels) == {f"rwc_charts/{name}" for name in CHARTS}
    for name, chart in expected.items():
        panel = run.panels[f"rwc_charts/{name}"]["panel_config"]
        assert panel["panelDefId"] == f"tester/{name}"
        assert (panel["fieldSettings"], panel["stringSettings"]) == (chart.fields, chart.strings)
        table = run.tables[f"rwc_charts/{name}_table"]
        assert table.columns == chart.columns
        assert_same_rows(table.data, chart.rows)
    # One row: the user's own, which the charts joined.
    assert len(run.rows) == 1


def test_a_run_falls_back_to_built_in_charts_and_the_page(standin: StandIn, tmp_path: Path) -> None:
    history = with_gaps()
    run = log_run(standin, tmp_path, history)
    assert set(run.panels) == {"rwc_charts/rwc_curves", "rwc_charts/rwc_stages"}
    for key, panel in run.panels.items():
        assert panel["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        assert set(panel["panel_config"]["fieldSettings"].values()) <= set(run.tables[f"{key}_table"].columns)
    assert_same_rows(run.tables["rwc_charts/rwc_curves_table"].data, charts(series([history]))["rwc_curves"].rows)
    page = run.files[run.rows[0]["rwc_charts/page"]["path"]].decode()
    assert page.startswith("<!DOCTYPE html>")
    assert "app.wandb.ai" not in page


def test_a_report_of_a_project(standin: StandIn, tmp_path: Path) -> None:
    code = """
import wandb
for dataset in ("digits", "cifar10", "digits"):
    with wandb.init(project="rwc", config={"model": "resnet18", "dataset": dataset}) as run:
        run.log({"test/accuracy": 0.75})
run = wandb.init(project="rwc", config={"model": "resnet18", "dataset": "digits"})
run.log({"test/accuracy": 0.1})
run.finish(exit_code=1)
with wandb.init(project="rwc", config={"something": "else"}) as run:
    run.log({"loss": 1})
"""
    assert python(standin, tmp_path, "-c", code).returncode == 0
    result = command(standin, tmp_path, "report", "tester/rwc")
    assert result.returncode == 0, result.stderr
    (report,) = standin.reports.values()
    assert (report.entity, report.project, report.kind) == ("tester", "rwc", "runs")
    assert f"/tester/rwc/reports/Relative-Weight-Change:-rwc--{report.id}" in result.stdout
    words = json.dumps(report.spec)
    assert "| resnet18 | digits | 75.0 \\u00b1 0.0 | 2 |  |" in words
    assert "| resnet18 | cifar10 | 75.0 | 1 | 91 |" in words
    sets = [
        set_ for block in report.spec["blocks"] if "metadata" in block for set_ in block["metadata"].get("runSets", [])
    ]
    assert [set_["name"] for set_ in sets] == ["all runs", "resnet18 on cifar10", "resnet18 on digits"]
    assert {set_["project"]["name"] for set_ in sets} == {"rwc"}


def test_a_project_without_runs_is_said(standin: StandIn, tmp_path: Path) -> None:
    result = command(standin, tmp_path, "report", "tester/elsewhere")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "elsewhere" in result.stderr
