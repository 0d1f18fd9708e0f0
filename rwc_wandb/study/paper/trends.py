"""The six trends that arXiv 2011.06735 claims, each as a number per run and the values of it that agree with the claim.

| claim | statistic of one run | agrees |
|---|---|---|
| 1 later layers have a higher RWC | Spearman's rho of depth and RWC, mean over the measurements | above 0 |
| 2 the first stage levels off | share of the training until it stays within twice or half its final level | below 0.5 |
| 2 ... low | its final level (last tenth) / that of all layers | below 1 |
| 3, 4, 5 one stage is below another | RWC of the other / of the one, geometric mean over the measurements | above 1 |
| 3 about equal | the same | 1/1.25 to 1.25 |
| 4 VGG19_bn is higher on CIFAR-100 | RWC of a stage on CIFAR-100 / on CIFAR-10, at the same seed | above 1 |
| 4 middle and later are closer there | their abs(log ratio), CIFAR-100 less CIFAR-10, at the same seed | below 0 |
| 6 harder data, higher RWC | RWC of all layers on the harder data / on the easier, at the same seed | above 1 |

RWC of a stage is the mean over its layers. Ratios are averaged, and their intervals computed, as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rwc_wandb import History
from rwc_wandb.study.paper.accuracies import PAPER_ACCURACY
from rwc_wandb.study.paper.runs import Group
from rwc_wandb.study.paper.statistics import (
    FEWEST_TO_LEVEL_OFF,
    Interval,
    final_tenth,
    log_ratio,
    mean_depth_trend,
    share_until_level,
    stage_series,
    t_interval,
)

CLAIMS = {
    1: "later layers have a higher RWC than earlier ones",
    2: "earlier layers stop learning: their RWC levels off low",
    3: "the order of ResNet18's blocks",
    4: "the order of VGG19_bn's stages",
    5: "the order of AlexNet's stages",
    6: "harder data have a higher RWC",
}

ORDERS = {
    ("resnet18", "cifar10"): "layer1 < layer2, layer2 < layer3, layer3 = layer4",
    ("resnet18", "cifar100"): "layer1 < layer2, layer2 < layer3, layer3 < layer4",
    ("resnet18", "mnist"): "layer4 < layer3",
    ("resnet18", "fashion_mnist"): "layer4 < layer3",
    ("vgg19_bn", "cifar10"): "early < later, later < middle",
    ("vgg19_bn", "mnist"): "early < middle, later < early",
    ("vgg19_bn", "fashion_mnist"): "early < middle, later < early",
    ("alexnet", "cifar10"): "early < middle, later < middle",
    ("alexnet", "cifar100"): "early < middle, middle < later",
    ("alexnet", "mnist"): "early < middle, middle < later",
    ("alexnet", "fashion_mnist"): "early < middle, middle < later",
}
"""What claims 3, 4 and 5 say about the stages of one architecture on one data set; = is "about equal"."""

HARDER = {"cifar100": "cifar10", "fashion_mnist": "mnist"}
"""Data set: the easier one that claim 6 compares it with."""

ABOUT_EQUAL = 1.25
HALF = 0.5

_BY_MODEL = {"resnet18": 3, "vgg19_bn": 4, "alexnet": 5}
_ABOVE = (0.0, math.inf)
_BELOW = (-math.inf, 0.0)

Scale = Literal["ratio", "rho", "share", "difference"]
"""What a statistic is; a ratio is held as its logarithm."""


@dataclass(frozen=True)
class Trend:
    """One statement of the paper, about one architecture on one or two data sets, and what the runs say.

    Attributes:
        claim: its number, as in `CLAIMS`.
        subject: architecture and data set.
        statement: what is claimed.
        scale: see `Scale`.
        values: one number per seed.
        agrees: the interval of values that agree with the claim.
        in_paper: False where the paper does not speak of this architecture or data set.
        lacks: what the statement cannot be judged without; "" if nothing.
        elementwise: whether the element-wise mean is judged in place of eq. 1.
    """

    claim: int
    subject: str
    statement: str
    scale: Scale
    values: tuple[float, ...]
    agrees: tuple[float, float]
    in_paper: bool = True
    lacks: str = ""
    elementwise: bool = False

    @property
    def interval(self) -> Interval:
        return t_interval(self.values)

    @property
    def mean_agrees(self) -> bool:
        return self.agrees[0] < self.interval.mean < self.agrees[1]

    @property
    def verdict(self) -> str:
        """holds: the whole interval agrees. does not hold: none of it does. undecided: a part of it does."""
        if self.lacks:
            return self.lacks
        if len(self.values) < 2:
            return "not enough runs"
        low, high = self.agrees
        if low < self.interval.low and self.interval.high < high:
            return "holds"
        return "does not hold" if self.interval.high <= low or high <= self.interval.low else "undecided"


def trends(groups: Sequence[Group], elementwise: bool = False) -> list[Trend]:
    """Every statement of the paper that the runs at hand have something to say about, by claim.

    Claims 1 and 2 are asked of any architecture and data set; the others only of those that the paper speaks of.
    """
    by_pair = {(group.model, group.dataset): group for group in groups}
    found = [trend for group in groups for trend in (*_about(group, elementwise), *_orders(group, elementwise))]
    for model in dict.fromkeys(group.model for group in groups if group.model in _BY_MODEL):
        for harder, easier in HARDER.items():
            pair = _Pair(model, harder, easier, by_pair)
            if pair.groups:
                found += _between(pair, elementwise)
    return [replace(trend, elementwise=elementwise) for trend in sorted(found, key=lambda trend: trend.claim)]


def _about(group: Group, elementwise: bool) -> Iterator[Trend]:
    """Claims 1 and 2."""
    in_paper = (group.model, group.dataset) in PAPER_ACCURACY
    rho = _per_run(group, lambda history: mean_depth_trend(history, elementwise))
    yield Trend(1, group.title, "later layers change more", "rho", rho, _ABOVE, in_paper)
    stage = next((name for name in group.runs[0].history.stages if name != "stem"), "stem")

    def final_level(history: History) -> float:
        first, everything = (final_tenth(stage_series(history, name, elementwise)) for name in (stage, None))
        return log_ratio(first, everything)

    share = _per_run(group, lambda history: share_until_level(history, stage, elementwise))
    measured = min(len(run.history) for run in group.runs)
    lacks = f"fewer than {FEWEST_TO_LEVEL_OFF} measurements" if measured < FEWEST_TO_LEVEL_OFF else ""
    until_half = (-math.inf, HALF)
    yield Trend(2, group.title, f"{stage} levels off in the first half", "share", share, until_half, in_paper, lacks)
    low = f"{stage} ends below the mean of all layers"
    yield Trend(2, group.title, low, "ratio", _per_run(group, final_level), _BELOW, in_paper)


def _orders(group: Group, elementwise: bool) -> Iterator[Trend]:
    """Claims 3, 4 and 5, as far as they speak of one data set."""
    order = ORDERS.get((group.model, group.dataset))
    for statement in order.split(", ") if order else []:
        below, sign, above = statement.split()
        ratios = _known(_stage_ratio(run.history, above, below, elementwise) for run in group.runs)
        margin = math.log(ABOUT_EQUAL)
        agrees = _ABOVE if sign == "<" else (-margin, margin)
        yield Trend(_BY_MODEL[group.model], group.title, statement, "ratio", ratios, agrees)


@dataclass(frozen=True)
class _Pair:
    """The runs of an architecture on two data sets."""

    model: str
    harder: str
    easier: str
    by_pair: Mapping[tuple[str, str], Group]

    @property
    def subject(self) -> str:
        return f"{self.model}, {self.harder} against {self.easier}"

    @property
    def groups(self) -> list[Group]:
        return [
            self.by_pair[self.model, name] for name in (self.harder, self.easier) if (self.model, name) in self.by_pair
        ]

    @property
    def lacks(self) -> str:
        """Levels can be compared only between runs that measure at the same distance."""
        if len(self.groups) < 2:
            (there,) = self.groups
            return f"no runs on {self.easier if there.dataset == self.harder else self.harder}"
        ours, theirs = (group.runs[0].config for group in self.groups)
        for key in ("rwc_every", "batch_size", "limit_train"):
            if ours.get(key) != theirs.get(key):
                return f"not comparable: {key} {ours.get(key)}, {theirs.get(key)}"
        return ""

    def per_seed(self, statistic: Callable[[History, History], float]) -> tuple[float, ...]:
        """Of the runs whose seed has been run on both: statistic(harder, easier)."""
        if len(self.groups) < 2:
            return ()
        harder, easier = ({run.config["seed"]: run.history for run in group.runs} for group in self.groups)
        return _known(statistic(harder[seed], easier[seed]) for seed in harder if seed in easier)


def _between(pair: _Pair, elementwise: bool) -> Iterator[Trend]:
    """Claim 6, and claim 4 where it compares data sets."""

    def level_ratio(stage: str | None) -> tuple[float, ...]:
        return pair.per_seed(lambda *both: log_ratio(*(stage_series(history, stage, elementwise) for history in both)))

    def is_closer(harder: History, easier: History) -> float:
        apart = [abs(_stage_ratio(history, "middle", "later", elementwise)) for history in (harder, easier)]
        return apart[0] - apart[1]

    if pair.model == "vgg19_bn" and pair.harder == "cifar100":
        for stage in ("early", "middle", "later"):
            yield Trend(4, pair.subject, f"{stage} is higher", "ratio", level_ratio(stage), _ABOVE, lacks=pair.lacks)
        closer, closer_by = "middle and later are closer", pair.per_seed(is_closer)
        yield Trend(4, pair.subject, closer, "difference", closer_by, _BELOW, lacks=pair.lacks)
    yield Trend(6, pair.subject, "RWC is higher", "ratio", level_ratio(None), _ABOVE, lacks=pair.lacks)


def _stage_ratio(history: History, above: str, below: str, elementwise: bool) -> float:
    return log_ratio(stage_series(history, above, elementwise), stage_series(history, below, elementwise))


def _per_run(group: Group, statistic: Callable[[History], float]) -> tuple[float, ...]:
    return _known(statistic(run.history) for run in group.runs)


def _known(values: Iterator[float]) -> tuple[float, ...]:
    """The finite values: a diverged run has none and does not count."""
    return tuple(value for value in values if math.isfinite(value))
