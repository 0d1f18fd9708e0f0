"""Runs from folders and from W&B, and the paper's figures of them."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import wandb
from made_up_runs import leave_run, made_up_history
from PIL import Image
from standin import StandIn

from rwc_wandb.cli import main
from rwc_wandb.errors import UserError
from rwc_wandb.study.paper.figures import describe
from rwc_wandb.study.paper.runs import Group, StudyRun, read_groups
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.view.render import png

BLOCKS = {"layer1": 0.01, "layer2": 0.02, "layer3": 0.04, "layer4": 0.08}
BLUE, PINK = (0x00, 0x72, 0xB2), (0xCC, 0x79, 0xA7)


def read(*runs: Path, where: tuple[str, ...] = ()) -> list[Group]:
    return read_groups(Namespace(runs=list(runs), project=None, where=where))


def test_runs_are_grouped_as_the_paper_groups_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (42, 0):
        leave_run(tmp_path, "resnet18", "mnist", seed, BLOCKS, accuracy=0.5 + seed / 100)
    leave_run(tmp_path, "alexnet", "mnist", 0, {})
    unfinished = leave_run(tmp_path, "alexnet", "mnist", 1, {})
    (unfinished / "result.yaml").unlink()
    again = leave_run(tmp_path, "resnet18", "mnist", 0, BLOCKS, accuracy=0.9, name="the-same-again")
    (tmp_path / "logs").mkdir()
    alexnet, resnet = read(tmp_path)
    assert (alexnet.title, resnet.title) == ("alexnet on mnist", "resnet18 on mnist")
    assert [run.config["seed"] for run in resnet.runs] == [0, 42]
    assert resnet.accuracies == pytest.approx([0.9, 0.92])
    assert alexnet.runs[0].history.rwc.shape == (20, 6)
    said = capsys.readouterr().err
    assert f"{unfinished} is left out: it has not finished." in said
    assert f"resnet18-mnist-seed0 is left out: the same run and seed as {again}." in said
    (only,) = read(again)
    assert [run.name for run in only.runs] == [str(again)]


def test_runs_of_two_learning_rates_are_never_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, level in ((0.1, 1.0), (0.5, 3.0)):
        for seed in (0, 1):
            name = f"seed{seed}-lr{rate}"
            leave_run(tmp_path, "alexnet", "mnist", seed, {"early": level}, name=name, learning_rate=rate)
    with pytest.raises(UserError, match=r"has lr 0\.1, .*has 0\.5; .*choose by --where lr=0\.1 or --where lr=0\.5"):
        read(tmp_path)
    for rate, level in (("0.1", 1.0), ("5e-1", 3.0)):
        (group,) = read(tmp_path, where=(f"lr={rate}", "model=alexnet"))
        assert [run.config["seed"] for run in group.runs] == [0, 1]
        assert all((run.history.rwc[:, 0] == np.float32(level)).all() for run in group.runs)
    assert not capsys.readouterr().err
    for wrong, sentence in (
        ("lr=0.2", "--where lr=0.2: no finished run has it; lr is 0.1, 0.5 in these runs."),
        ("lr=x", "--where lr=x: lr takes a finite number above 0"),
        ("rate=1", "--where rate=1: it takes OPTION=VALUE with one of model, dataset"),
    ):
        with pytest.raises(UserError) as refused:
            read(tmp_path, where=(wrong,))
        assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("command", ["figures", "claims"])
def test_bad_input_gets_one_sentence(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str | Path) -> str:
        output = tmp_path / ("output.md" if command == "claims" else "output")
        assert main([command, "--output", str(output), *map(str, words)]) == 2
        assert not output.exists()
        (said,) = capsys.readouterr().err.splitlines()
        return said.removeprefix("rwc-wandb: ")

    (tmp_path / "empty").mkdir()
    run = leave_run(tmp_path / "runs", "alexnet", "mnist", 0, {})
    assert refused() == "it takes folders of runs, such as runs/, or --from ENTITY/PROJECT: one of the two."
    assert refused(run, "--from", "me/rwc").startswith("it takes folders of runs")
    assert refused("--from", "rwc") == "--from rwc: it takes ENTITY/PROJECT, such as my-team/rwc."
    assert refused("--from", "me/a/b").startswith("'a/b': it takes the name of a W&B user")
    assert "there is no such folder; name the --output of" in refused(tmp_path / "absent")
    assert "there is no finished run of rwc-wandb train" in refused(tmp_path / "empty")
    other = leave_run(tmp_path / "other", "alexnet", "mnist", 1, {}, learning_rate=0.5)
    assert f"{run} has lr 0.02, {other} has 0.5; only runs that differ in nothing but the seed" in refused(run, other)
    shorter = leave_run(tmp_path / "shorter", "alexnet", "mnist", 1, {})
    made_up_history("vgg19_bn", {}).save(shorter / "rwc.safetensors")
    assert f"{run} and {shorter} have other layers" in refused(run, shorter)
    made_up_history("alexnet", {}, epochs=0).save(shorter / "rwc.safetensors")
    assert "holds no measurement" in refused(shorter)
    history = (run / "rwc.safetensors").read_bytes()
    (run / "rwc.safetensors").write_bytes(history[:-9])
    assert f"{run / 'rwc.safetensors'} cannot be read as a history" in refused(run)
    (run / "rwc.safetensors").unlink()
    assert f"There is no history file {run / 'rwc.safetensors'}" in refused(run)
    for content, sentence in (
        ("a: [", "cannot be read ("),
        ("", "is not what a run writes"),
        ("a: 1", "names no model"),
    ):
        (run / "config.yaml").write_text(content)
        assert f"{run / 'config.yaml'} {sentence}" in refused(run)


def test_a_line_is_the_mean_over_seeds() -> None:
    levels = [{stage: factor * value for stage, value in BLOCKS.items()} for factor in (1, 3)]
    histories = [made_up_history("resnet18", of_seed, elementwise={"layer1": 7.0}) for of_seed in levels]
    group = Group("resnet18", "mnist", [StudyRun(str(n), {}, history, None) for n, history in enumerate(histories)])
    described = describe(group, "rwc")
    rows = described["data"]["values"]
    pairs = {(f"Blocks {n}-{n + 1}", f"layer{block}") for n in (1, 2, 3) for block in (n, n + 1)}
    assert {(row["panel"], row["stage"]) for row in rows} == pairs
    # Two layers in each of two blocks, 20 epochs, three panels.
    assert len(rows) == 2 * 2 * 20 * 3
    assert [row["time"] for row in rows if row["layer"] == "1"] == list(range(1, 21))
    for layer, stage, factor in (("1", "layer1", 0.9), ("8", "layer4", 1.1)):
        values = [row["rwc"] for row in rows if row["layer"] == layer]
        np.testing.assert_allclose(values, factor * 2 * BLOCKS[stage], rtol=1e-6)
    assert "the mean over 2 seeds, without stem and head" in described["title"]["subtitle"]
    elementwise = describe(group, "rwc_elementwise")["data"]["values"]
    np.testing.assert_allclose([row["rwc"] for row in elementwise if row["layer"] == "1"], 6.3, rtol=1e-6)


def test_figures_and_accuracies_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in ((0, 0.97), (1, 0.99)):
        leave_run(tmp_path / "runs", "resnet18", "mnist", seed, BLOCKS, accuracy=accuracy)
    leave_run(tmp_path / "runs", "timm:resnet10t", "digits", 0, {})
    assert main(["figures", str(tmp_path / "runs"), "--output", str(tmp_path / "figures")]) == 0
    names = ["resnet18-mnist-rwc.png", "timm-resnet10t-digits-rwc.png", "accuracies.md"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    printed = capsys.readouterr().out
    assert [str(tmp_path / "figures" / name) for name in names] == printed.splitlines()[-3:]
    assert "98.0 ± 1.4" in printed
    assert "| resnet18 | mnist | 98.0 ± 1.4 | 2 | 99 |" in (tmp_path / "figures" / "accuracies.md").read_text("utf-8")
    picture = np.asarray(Image.open(tmp_path / "figures" / names[0]).convert("RGB")).astype(int)
    # Block 1 is in the left panel only, block 4 in the right one only; blended with white for their opacity.
    for colour, first, last in ((BLUE, 0, 0.4), (PINK, 0.6, 1)):
        blended = 255 - 0.8 * (255 - np.array(colour))
        columns = np.flatnonzero((np.abs(picture[300:] - blended) < 6).all(2).sum(0))
        assert len(columns) > 400
        assert first <= columns.min() / picture.shape[1] < columns.max() / picture.shape[1] <= last
    words = ["figures", str(tmp_path / "runs"), "--output", str(tmp_path / "figures")]
    assert main([*words, "--format", "svg", "--metric", "rwc_elementwise"]) == 0
    assert "<svg" in (tmp_path / "figures" / "resnet18-mnist-rwc_elementwise.svg").read_text("utf-8")
    assert main(["figures", str(tmp_path / "runs"), "--output", str(tmp_path / "figures" / names[0])]) == 2
    assert "it cannot be written" in capsys.readouterr().err


def test_stages_have_the_colours_of_their_order() -> None:
    described = describe(Group("alexnet", "mnist", [StudyRun("run", {}, made_up_history("alexnet", {}), None)]), "rwc")
    assert described["spec"]["encoding"]["color"]["scale"]["domain"] == ["early", "middle", "later"]


@pytest.mark.parametrize("value", [0, np.nan])
def test_nothing_to_draw_is_an_empty_figure(value: float) -> None:
    history = made_up_history("alexnet", dict.fromkeys(("early", "middle", "later", "head"), value))
    described = describe(Group("alexnet", "mnist", [StudyRun("run", {}, history, None)]), "rwc")
    assert {row["rwc"] for row in described["data"]["values"]} == {None}
    assert Image.open(io.BytesIO(png(described))).size[0] > 800


def test_runs_come_from_a_project_of_wandb(
    standin: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config in (TrainConfig(model="alexnet", dataset="mnist", seed=0).to_dict(), {"model": "alexnet"}):
        with wandb.init(project="rwc", config=config) as run:
            history = made_up_history("alexnet", {"early": 0.5})
            history.save(Path(run.dir) / "rwc.safetensors")
            run.save(Path(run.dir) / "rwc.safetensors", base_path=run.dir, policy="now")
            run.log({"test/accuracy": 0.75})
    with wandb.init(project="rwc", config=TrainConfig(model="alexnet", dataset="mnist", seed=2).to_dict()):
        pass
    (group,) = read_groups(Namespace(runs=[], project="tester/rwc", where=[]))
    (run,) = group.runs
    assert run.config["lr"] == 0.02
    assert run.accuracy == 0.75
    np.testing.assert_array_equal(run.history.rwc, history.rwc)
    said = capsys.readouterr().err
    assert "its config names no model, dataset and seed" in said
    assert "it is finished and has saved no rwc.safetensors" in said
    assert main(["claims", "--from", "tester/rwc"]) == 0
    assert "not enough runs" in capsys.readouterr().out
    assert main(["figures", "--from", "tester/absent"]) == 2
    assert "W&B: " in capsys.readouterr().err
