"""`rwc-wandb report --dry-run`: what the report holds."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

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
