"""`rwc-wandb workspace`: what it shows of runs that the real client has logged."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import wandb
from standin import StandIn
from torch import nn

from rwc_wandb import watch
from rwc_wandb.cli import main
from rwc_wandb.log.workspace import all_layers


def log_run(prefix: str = "rwc") -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wandb.init(project="p") as run, watch(model, optimizer, log_every=2, histogram_every=2, prefix=prefix):
        for step in range(4):
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            run.log({"train/loss": 1 / (step + 1), "note": "a text"})


def sections(standin: StandIn) -> dict[str, list[dict[str, Any]]]:
    """Section -> its panels."""
    (view,) = standin.reports.values()
    assert (view.entity, view.project, view.kind) == ("tester", "p", "project-view")
    found = view.spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in found}


def test_a_workspace_shows_layers_heat_maps_training_and_histograms(
    standin: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    log_run()
    assert main(["workspace", "tester/p"]) == 0
    (view,) = standin.reports.values()
    assert view.title == "Relative weight change"
    assert f"{standin.url}/tester/p" in capsys.readouterr().out
    found = sections(standin)
    assert list(found) == ["Overview", "Heat maps", "Training", "Histograms of weights and their changes"]
    stages, layers, last, trend = (panel["config"] for panel in found["Overview"])
    (run,) = standin.runs.values()
    keys = {key for row in run.rows for key in row}
    for panel, expected in ((stages, {"rwc_stage/early", "rwc_stage/middle"}), (layers, {"rwc/0", "rwc/2"})):
        assert (panel["xAxis"], panel["yLogScale"]) == ("rwc/step", True)
        assert {key for key in keys if re.search(panel["metricRegex"], key)} == expected
    assert len(last["metrics"]) == 2
    assert all("rwc_summary/" in metric for metric in last["metrics"])
    assert "rwc_summary/depth_trend" in str(trend)
    heat_map, page, words = (panel["config"] for panel in found["Heat maps"])
    assert heat_map["panelDefId"] == "tester/rwc_heatmap"
    assert "rwc_charts/rwc_curves_table" in str(heat_map["userQuery"])
    assert page["mediaKeys"] == ["rwc_charts/page"]
    assert "rwc-wandb charts push tester" in words["value"]
    assert [panel["config"]["metrics"] for panel in found["Training"]] == [["train/loss"]]
    histograms = [panel["config"]["metrics"][0] for panel in found["Histograms of weights and their changes"]]
    assert sorted(histograms) == [f"hist/{kind}/{layer}" for kind in ("update", "weight") for layer in (0, 2)]


def test_another_prefix(standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log_run("rwc_G")
    assert main(["workspace", "tester/p"]) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rwc-wandb: ")]
    assert "none of its 20 newest runs has a key that starts with rwc/" in sentence
    monkeypatch.setenv("RWC_WANDB_CHARTS", "team")
    assert main(["workspace", "tester/p", "--prefix=rwc_G"]) == 0
    found = sections(standin)
    assert found["Heat maps"][0]["config"]["panelDefId"] == "team/rwc_heatmap"
    assert [panel["config"]["metrics"] for panel in found["Training"]] == [["train/loss"]]
    assert len(found["Histograms of weights and their changes"]) == 4


def test_every_layer_is_matched_and_the_axis_is_not() -> None:
    names = ["s", "st", "ste", "steps", "step/weight", "stem/conv", "0", "head", "set", "a/step"]
    assert all(re.search(all_layers("rwc"), f"rwc/{name}") for name in names)
    assert not re.search(all_layers("rwc"), "rwc/step")
    assert not re.search(all_layers("rwc"), "rwc_stage/early")
