"""`rwc-wandb report --dry-run`: what the report holds."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from made_up_runs import leave_run
from standin import StandIn

from rwc_wandb.errors import UserError
from rwc_wandb.study.paper import report
from rwc_wandb.study.paper.accuracies import PAPER_ACCURACY, accuracy_table
from rwc_wandb.view.charts import spec as chart_spec


def command(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([str(word) for word in words]))


def dry_run(folder: Path) -> dict[str, Any]:
    command("team/rwc", "--dry-run", folder / "report.json")
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return loaded


def grids(spec: dict[str, Any]) -> dict[str, Any]:
    """Name of the run set: the grid's metadata."""
    found = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    return {grid["runSets"][0]["name"]: grid for grid in found}


def test_every_experiment_of_the_paper_has_a_section(tmp_path: Path) -> None:
    written = dry_run(tmp_path)
    assert written["project"] == {"name": "rwc", "entityName": "team"}
    found = grids(written["spec"])
    assert set(found) == {"all runs", *(f"{model} on {dataset}" for model, dataset in PAPER_ACCURACY)}
    section = found["resnet18 on cifar10"]
    filters = {item["key"]["name"]: item["value"] for item in section["runSets"][0]["filters"]["filters"]}
    assert filters == {"model": "resnet18", "dataset": "cifar10"}
    stages, heat_map, *histograms = (panel["config"] for panel in section["panelBankSectionConfig"]["panels"])
    assert stages["metrics"] == [f"rwc_stage/{name}" for name in report._STAGES["resnet18"]]
    assert (stages["xAxis"], stages["yLogScale"]) == ("rwc/step", True)
    assert (stages["groupAgg"], stages["groupArea"]) == ("mean", "minmax")
    assert heat_map["panelDefId"] == "team/rwc_heatmap"
    assert "rwc_charts/rwc_curves_table" in json.dumps(heat_map["userQuery"])
    needed = set(re.findall(r"\$\{string:(\w+)\}", json.dumps(chart_spec("rwc_heatmap"))))
    assert set(heat_map["stringSettings"]) >= needed
    keys = [panel["metrics"] for panel in histograms]
    assert keys == [["hist/update/conv1"], ["hist/weight/conv1"], ["hist/update/fc"], ["hist/weight/fc"]]


def test_a_word_says_what_it_is_and_how_to_read_it(tmp_path: Path) -> None:
    blocks = dry_run(tmp_path)["spec"]["blocks"]
    words = "\n".join(block["content"] for block in blocks if block["type"] == "markdown-block")
    assert "Relative Weight Change" in words
    assert "Heat maps" in words
    assert "| resnet18 | cifar100 | see the panels below |  | 64 |" in words


def test_all_runs_are_compared_and_the_one_line_is_there(tmp_path: Path) -> None:
    spec = dry_run(tmp_path)["spec"]
    panels = {
        panel["viewType"]: panel["config"] for panel in grids(spec)["all runs"]["panelBankSectionConfig"]["panels"]
    }
    assert "rwc_summary/depth_trend" in json.dumps(panels["Scalar Chart"])
    assert panels["Parameter Importance"]["targetKey"] == "test/accuracy"
    assert panels["Run Comparer"]["diffOnly"] == "split"
    assert "rwc_wandb.watch(model, optimizer)" in json.dumps([b for b in spec["blocks"] if b["type"] == "code-block"])
    words = "\n".join(block["content"] for block in spec["blocks"] if block["type"] == "markdown-block")
    assert "`rwc-wandb charts push team` registers them" in words


def test_the_claims_of_a_project_are_judged(standin: StandIn, tmp_path: Path) -> None:
    order = {"early": 1.0, "middle": 2.0, "later": 3.0, "head": 4.0}
    for seed in (0, 1):
        folder = leave_run(tmp_path / "runs", "alexnet", "mnist", seed, order)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        with wandb.init(project="rwc", name=f"seed{seed}", config=config) as run:
            run.log({"test/accuracy": 0.75})
            run.summary["rwc_summary/findings"] = (
                "Nothing stands out.",
                "head: 60 times the median layer.\nChanged no more: stem.",
            )[seed]
            run.save(str(folder / "rwc.safetensors"), base_path=str(folder), policy="now")
    command("tester/rwc")
    (saved,) = standin.reports.values()
    words = "\n".join(block["content"] for block in saved.spec["blocks"] if block["type"] == "markdown-block")
    assert "| 5 | alexnet on mnist | early < middle | x2 [2, 2] | 2 | holds |" in words
    assert "| 6 | alexnet, fashion_mnist against mnist | RWC is higher |  | 0 | no runs on fashion_mnist |" in words
    assert "* **seed1**: head: 60 times the median layer. Changed no more: stem." in words
    assert "* **seed0**" not in words
    assert report.verdicts("tester/empty").startswith("Not judged: ")


def test_our_accuracies_stand_beside_the_papers() -> None:
    table = accuracy_table({("alexnet", "cifar10"): [0.80, 0.82], ("timm:regnet", "digits"): [0.5], ("a", "b"): []})
    assert "| alexnet | cifar10 | 81.0 ± 1.4 | 2 | 81 |" in table
    assert "| timm:regnet | digits | 50.0 | 1 |  |" in table
    assert "| a | b | see the panels below |  |  |" in table


def test_other_models_find_their_stages_by_a_pattern() -> None:
    built = report.build("team", "rwc", {("timm:regnet's", 'a "b"'): [0.5]}, runs_from=("", ""))
    section = grids(json.loads(built._to_model().spec.model_dump_json(by_alias=True)))['timm:regnet\'s on a "b"']
    assert section["panelBankSectionConfig"]["panels"][0]["config"]["metricRegex"] == "rwc_stage/.*"
    values = [item["value"] for item in section["runSets"][0]["filters"]["filters"]]
    assert values == ["timm:regnet's", 'a "b"']


@pytest.mark.parametrize("wrong", ["rwc", "team/", "/rwc", "my team/rwc", "team/a/b"])
def test_a_project_needs_its_entity(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it takes"):
        command(wrong, "--dry-run", tmp_path / "report.json")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        command("team/rwc", "--dry-run", tmp_path / "absent" / "report.json")
