"""What a W&B project of runs reached, beside what the paper reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

Accuracies = Mapping[tuple[str, str], Sequence[float]]
"""(model, data set): the last test accuracy of each of its finished runs, from 0 to 1."""

_PAPER = {
    "resnet18": (91, 64, 99, 92),
    "vgg19_bn": (90.5, 63.6, 98.5, 91.6),
    "alexnet": (81, 53, 98.5, 89.5),
}
PAPER_ACCURACY = {
    (model, dataset): accuracy
    for model, row in _PAPER.items()
    for dataset, accuracy in zip(("cifar10", "cifar100", "mnist", "fashion_mnist"), row, strict=True)
}
"""(model, data set): test accuracy in percent, as arXiv 2011.06735 reports it."""


def accuracies_of(entity: str, project: str) -> Accuracies:
    """Asks W&B for the project's runs; those whose config lacks `model` or `dataset` are left out.

    Raises:
        wandb.Error, ValueError: no such project, or no server.
    """
    import wandb

    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in wandb.Api().runs(f"{entity}/{project}"):
        model, dataset = run.config.get("model"), run.config.get("dataset")
        if isinstance(model, str) and isinstance(dataset, str):
            accuracy = run.summary.get("test/accuracy")
            is_known = run.state == "finished" and isinstance(accuracy, (int, float)) and math.isfinite(accuracy)
            found[model, dataset] += [float(accuracy)] if is_known else []
    return dict(sorted(found.items()))


def accuracy_table(accuracies: Accuracies) -> str:
    """Markdown: one line per model and data set."""
    lines = ["| model | data set | these runs, % | runs | paper, % |", "|---|---|---|---|---|"]
    for (model, dataset), values in accuracies.items():
        percent = [100 * value for value in values]
        ours = f"{mean(percent):.1f}" if percent else "see the panels below"
        if len(percent) > 1:
            ours += f" ± {stdev(percent):.1f}"
        paper = PAPER_ACCURACY.get((model, dataset))
        count = str(len(percent)) if percent else ""
        lines.append(f"| {model} | {dataset} | {ours} | {count} | {'' if paper is None else f'{paper:g}'} |")
    return "\n".join([*lines, "", "± one standard deviation over runs. Only runs that have finished count."])
