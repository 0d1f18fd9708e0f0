"""The paper's trends on runs whose RWC is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import leave_run, made_up_history

from rwc_wandb.cli import main
from rwc_wandb.study.paper.accuracies import PAPER_ACCURACY
from rwc_wandb.study.paper.claims import effect
from rwc_wandb.study.paper.runs import Group, StudyRun
from rwc_wandb.study.paper.statistics import final_tenth, log_ratio, mean_depth_trend, share_until_level, t_interval
from rwc_wandb.study.paper.trends import CLAIMS, HARDER, ORDERS, Trend, trends

T_1 = math.tan(math.pi * 0.475)
"""The 0.975 quantile of Student's t with one degree of freedom, which is Cauchy's."""


def group(model: str, dataset: str, *of_seeds: dict[str, Any], **settings: Any) -> Group:
    """One run per seed; each has the levels of its stages."""
    histories = [made_up_history(model, levels) for levels in of_seeds]
    runs = [
        StudyRun(f"run{seed}", {"model": model, "dataset": dataset, "seed": seed} | settings, history, 0.5)
        for seed, history in enumerate(histories)
    ]
    return Group(model, dataset, runs)


def one(found: list[Trend], claim: int, statement: str, place: str = "") -> Trend:
    (trend,) = [
        trend for trend in found if (trend.claim, trend.statement) == (claim, statement) and place in trend.subject
    ]
    return trend


def test_the_interval_is_students() -> None:
    two = t_interval([1.0, 3.0])
    assert two.mean == 2
    assert two.low == pytest.approx(2 - T_1, rel=1e-12)
    assert two.high == pytest.approx(2 + T_1, rel=1e-12)
    # From a table of t: 2.776 with four degrees of freedom. The deviation of 1 .. 5 is sqrt(2.5).
    assert t_interval([1, 2, 3, 4, 5]).high == pytest.approx(3 + 2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert (t_interval([4, 4]).low, t_interval([4, 4]).high) == (4, 4)
    assert (t_interval([4]).low, t_interval([4]).high) == (-math.inf, math.inf)


def test_statistics_of_one_run() -> None:
    above, below = np.array([2.0, 8.0, np.nan, 5.0, 7.0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert log_ratio(above, below) == pytest.approx(math.log(4))
    assert math.isnan(log_ratio(np.array([np.nan]), np.array([1.0])))
    assert final_tenth(np.arange(20.0)).tolist() == [18, 19]
    assert final_tenth(np.arange(5.0)).tolist() == [4]
    rising = made_up_history("alexnet", {"early": 1, "middle": 2, "later": 3, "head": 4})
    assert mean_depth_trend(rising, False) == pytest.approx(1)
    falling = made_up_history("alexnet", {"early": 4, "middle": 3, "later": 2, "head": 1})
    assert -1 <= mean_depth_trend(falling, False) < -0.8
    # 16 times its final level for 6 of 20 epochs: level from the seventh on.
    drops = made_up_history("alexnet", {"early": [16.0] * 6 + [1.0] * 14})
    assert share_until_level(drops, "early", False) == pytest.approx(7 / 20)
    assert share_until_level(made_up_history("alexnet", {"early": 2.0 ** np.arange(20)}), "early", False) == 1
    assert math.isnan(share_until_level(made_up_history("alexnet", {}, epochs=9), "early", False))


def test_a_claim_that_holds() -> None:
    order = {"layer1": 1.0, "layer2": 2.0, "layer3": 4.0, "layer4": 4.0}
    # The second seed's layer2 is 1 % higher.
    found = trends([group("resnet18", "cifar10", order, order | {"layer2": 2.02})])
    trend = one(found, 3, "layer1 < layer2")
    assert trend.values == pytest.approx((math.log(2), math.log(2.02)))
    half = T_1 * math.log(1.01) / 2
    assert trend.interval.low == pytest.approx(math.log(2) + math.log(1.01) / 2 - half)
    assert trend.verdict == "holds"
    assert (
        effect(trend)
        == f"x2.01 [{2 * math.sqrt(1.01) / math.exp(half):.3g}, {2 * math.sqrt(1.01) * math.exp(half):.3g}]"
    )
    assert one(found, 3, "layer3 = layer4").verdict == "holds"


def test_a_claim_that_fails() -> None:
    order = {"layer1": 3.0, "layer2": 2.0, "layer3": 4.0, "layer4": 6.0}
    found = trends([group("resnet18", "cifar10", order, order)])
    assert one(found, 3, "layer1 < layer2").verdict == "does not hold"
    assert one(found, 3, "layer1 < layer2").interval.mean == pytest.approx(math.log(2 / 3))
    assert one(found, 3, "layer2 < layer3").verdict == "holds"
    assert one(found, 3, "layer3 = layer4").verdict == "does not hold"


def test_an_interval_on_both_sides_decides_nothing() -> None:
    order = {"layer1": 1.0, "layer2": 2.0, "layer3": 4.0, "layer4": 4.0}
    found = trends([group("resnet18", "cifar10", order, order | {"layer2": 1.0, "layer4": 4.8})])
    assert one(found, 3, "layer1 < layer2").verdict == "undecided"
    # About equal: 1 and 1.2 are within the margin of 1.25, their interval is not.
    assert one(found, 3, "layer3 = layer4").verdict == "undecided"


def test_one_seed_is_not_enough() -> None:
    found = trends([group("alexnet", "mnist", {"early": 1, "middle": 2, "later": 3})])
    assert {trend.verdict for trend in found if trend.claim != 6} == {"not enough runs"}
    assert effect(one(found, 5, "early < middle")) == "x2"


def test_early_layers_that_level_off_low() -> None:
    settles = {"early": [1.0] * 3 + [0.01] * 17, "middle": 0.1, "later": 0.1, "head": 0.1}
    late = settles | {"early": [1.0] * 15 + [0.01] * 5}
    found = trends([group("vgg19_bn", "cifar10", settles, settles), group("vgg19_bn", "mnist", late, late)])
    assert one(found, 2, "early levels off in the first half", "cifar10").verdict == "holds"
    assert effect(one(found, 2, "early levels off in the first half", "cifar10")) == "20 % [20, 20]"
    assert one(found, 2, "early levels off in the first half", "mnist").verdict == "does not hold"
    low = one(found, 2, "early ends below the mean of all layers", "cifar10")
    # Seven layers: two at 0.01, five at 0.1.
    assert low.interval.mean == pytest.approx(math.log(0.01 / (0.52 / 7)), abs=1e-6)
    assert low.verdict == "holds"


def test_data_sets_are_compared_at_the_same_seed() -> None:
    easy, hard = {"middle": 1.0, "later": 4.0}, {"middle": 24.0, "later": 12.0}
    # The seeds differ by a factor of 100, which pairs leave out.
    easier = group("vgg19_bn", "cifar10", easy, {"middle": 100.0, "later": 400.0, "early": 100.0, "head": 100.0})
    harder = group("vgg19_bn", "cifar100", hard, {"middle": 2400.0, "later": 1200.0, "early": 200.0, "head": 200.0})
    found = trends([easier, harder])
    later = one(found, 4, "later is higher")
    assert later.values == pytest.approx((math.log(3), math.log(3)))
    assert later.verdict == "holds"
    closer = one(found, 4, "middle and later are closer")
    assert closer.values == pytest.approx((math.log(2) - math.log(4),) * 2)
    assert closer.verdict == "holds"
    all_layers = one(found, 6, "RWC is higher")
    assert all_layers.values == pytest.approx((math.log(75 / 13), math.log(78 / 13)))
    assert one(trends([easier]), 6, "RWC is higher").verdict == "no runs on cifar100"


def test_runs_that_measure_otherwise_are_not_compared() -> None:
    groups = [group("alexnet", "fashion_mnist", {}, {}, limit_train=64), group("alexnet", "mnist", {}, {})]
    assert one(trends(groups), 6, "RWC is higher").verdict == "not comparable: limit_train 64, None"


def test_a_diverged_run_has_no_say() -> None:
    order = {"early": 1.0, "middle": 2.0, "later": 3.0, "head": 4.0}
    (found,) = [group("alexnet", "mnist", order, order, dict.fromkeys(order, math.nan))]
    trend = one(trends([found]), 5, "early < middle")
    assert trend.values == pytest.approx((math.log(2),) * 2)
    assert trend.verdict == "holds"


def test_a_stage_that_was_not_measured_has_no_say() -> None:
    history = made_up_history("resnet18", {})
    history.stages[:] = ["layer4"] * len(history.stages)
    found = trends([Group("resnet18", "mnist", [StudyRun("run", {"seed": 0}, history, None)] * 2)])
    assert one(found, 3, "layer4 < layer3").verdict == "not enough runs"


def test_orders_are_asked_of_every_data_set_of_the_paper() -> None:
    # What the paper says of VGG19_bn on CIFAR-100 compares it with CIFAR-10.
    assert set(PAPER_ACCURACY) - set(ORDERS) == {("vgg19_bn", "cifar100")}
    assert {dataset for pair in HARDER.items() for dataset in pair} == {dataset for _, dataset in PAPER_ACCURACY}


def test_the_command_judges_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = {"early": 1.0, "middle": 2.0, "later": 3.0, "head": 4.0}
    other = order | {"early": 5.0}
    for seed in (0, 42):
        leave_run(tmp_path / "runs", "alexnet", "mnist", seed, order, elementwise=other)
        leave_run(tmp_path / "runs", "alexnet", "digits", seed, order)
    assert main(["claims", str(tmp_path / "runs"), "--output", str(tmp_path / "claims.md")]) == 0
    written = (tmp_path / "claims.md").read_text("utf-8")
    assert "| 5 | alexnet on mnist | early < middle | x2 [2, 2] | 2 | holds |" in written
    assert "| 5 | alexnet on mnist | early < middle, element-wise | x0.4 [0.4, 0.4] | 2 | does not hold |" in written
    assert "| 5 | alexnet on mnist | middle < later | x1.5 [1.5, 1.5] | 2 | holds |" in written
    assert "middle < later, element-wise" not in written
    assert "| 1 | alexnet on digits (*) | later layers change more | rho 1.00 [1.00, 1.00] | 2 | holds |" in written
    assert "| 1 | alexnet on mnist | later layers change more | rho 1.00" in written
    assert "| 6 | alexnet, fashion_mnist against mnist | RWC is higher |  | 0 | no runs on fashion_mnist |" in written
    assert f"No run speaks to claim 3 ({CLAIMS[3]}), 4 ({CLAIMS[4]})." in written
    printed = capsys.readouterr().out
    assert "does not hold" in printed
    assert "No run speaks to claim 3" in printed


def test_one_seed_shows_where_the_two_averages_disagree(tmp_path: Path) -> None:
    order = {"early": 1.0, "middle": 2.0, "later": 3.0, "head": 4.0}
    leave_run(tmp_path / "runs", "alexnet", "mnist", 0, order, elementwise=order | {"early": 5.0})
    assert main(["claims", str(tmp_path / "runs"), "--output", str(tmp_path / "claims.md")]) == 0
    rows = [line for line in (tmp_path / "claims.md").read_text("utf-8").splitlines() if line.startswith("| 5 |")]
    assert rows == [
        "| 5 | alexnet on mnist | early < middle | x2 | 1 | not enough runs |",
        "| 5 | alexnet on mnist | early < middle, element-wise | x0.4 | 1 | not enough runs |",
        "| 5 | alexnet on mnist | middle < later | x1.5 | 1 | not enough runs |",
    ]
