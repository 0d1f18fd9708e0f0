"""Anomalies planted in small real trainings are found and named first; clean trainings have no finding.

`python tests/view/test_planted.py` trains all cases and counts; the tests train those of the fastest networks.
"""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn
from trainings import Training

from rwc_wandb.view.findings import findings_of

FAST = ("mlp", "transformer", "lstm")


def learning_rate(factor: float, since: int = 60):  # type: ignore[no-untyped-def]
    def act(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step >= since:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    return act


def load(how: str, at: int = 60):  # type: ignore[no-untyped-def]
    kept = {}

    def act(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 5:
            kept.update({key: value.clone() for key, value in model.state_dict().items()})
        if step == at and how == "load_state_dict":
            model.load_state_dict(kept)
        if step == at and how == "copy_":
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(kept[name])

    return act


def alternating(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The learning rate of one layer is ten times as high, then a tenth."""
    index = [name for name, _ in model.named_parameters()].index("blocks.3.fc1.weight")
    optimizer.param_groups[index]["lr"] *= 10 if step % 2 else 0.1


@torch.no_grad()
def dead(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The ReLU of block 2 passes nothing from step 40 on; the gradients of this step are of before."""
    if step == 39:
        model.blocks[2]["fc1"].bias.fill_(-1e4)


@torch.no_grad()
def exploding(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if step >= 50:
        model.head.weight.mul_(1.5)


@torch.no_grad()
def not_a_number(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if step == 70:
        model.head.weight[0, 0] = torch.nan


PLANTED: dict[str, tuple[Training, str]] = {
    "a frozen layer": (
        Training("mlp", "momentum", factors=(("blocks.3.fc1", 0),)),
        r"Never changed.*: blocks\.3\.fc1\.",
    ),
    "a frozen role": (
        Training("transformer", "adamw", factors=(("linear2", 0),)),
        r"Never changed.*: linear2, 4 layers\.",
    ),
    "a frozen block": (
        Training("efficientnet", "adamw", factors=(("blocks.3.0", 0),)),
        r"Never changed.*: all of blocks\.3, 5 layers\.",
    ),
    "a layer, lr / 100": (Training("mlp", "adamw", factors=(("blocks.3.fc1", 0.01),)), r"blocks\.3\.fc1: 1/\d\d+ of"),
    "a layer, lr x 100": (
        Training("transformer", "sgd", factors=(("layers.2.linear1", 100),)),
        r"2\.linear1: \d+ times",
    ),
    "a layer, lr / 100, warm-up": (
        Training("vit", "adamw", "warm-up", factors=(("blocks.1.mlp.fc1", 0.01),)),
        r"blocks\.1\.mlp\.fc1: 1/\d\d+ of",
    ),
    "a layer, lr x 100, Adam": (Training("mlp", "adam", factors=(("blocks.4.fc2", 100),)), r"blocks\.4\.fc2: .*times"),
    "a layer, lr / 100, momentum": (
        Training("resnet", "momentum", factors=(("layer2.0.conv2", 0.01),)),
        r"layer2\.0\.conv2: 1/\d\d+ of",
    ),
    "a role, lr / 50": (Training("mlp", "momentum", factors=(("fc2", 0.02),)), r"fc2, 6 layers: 1/\d\d of"),
    "a role, lr / 50, cosine": (
        Training("transformer", "adamw", "cosine", factors=(("self_attn.out_proj", 0.02),)),
        r"self_attn\.out_proj, 4 layers: 1/\d\d of",
    ),
    "a role of some blocks, lr / 50": (
        Training("convnext", "adamw", factors=(("stages.2.blocks.2.mlp", 0.02), ("stages.2.blocks.3.mlp", 0.02))),
        r"mlp\.fc1 and mlp\.fc2 of .*blocks 2 and 3, 4 layers: 1/\d\d of",
    ),
    "a block, lr / 100": (
        Training("transformer", "adam", factors=(("layers.1.", 0.01),)),
        r"all of encoder\.layers\.1, 4 layers: 1/\d\d+ of",
    ),
    "lr x 10, SGD": (Training("lstm", "sgd", act=learning_rate(10)), r"all layers rose to \S+ times .* step 61 on"),
    "lr x 10, AdamW": (Training("transformer", "adamw", act=learning_rate(10)), r"all layers rose to .* step 61 on"),
    "lr / 100": (Training("lstm", "adam", act=learning_rate(0.01)), r"all layers fell to 1/\d+ .* step 61 on"),
    "weights reloaded": (
        Training("mlp", "adamw", act=load("load_state_dict")),
        r"1 of 100 measurements, first at step 61, in all layers.*: were weights loaded",
    ),
    "weights copied back": (
        Training("transformer", "adamw", act=load("copy_")),
        r"all layers leapt to .* at step 61, and came back.*weights that were loaded",
    ),
    "an oscillating layer": (
        Training("mlp", "sgd", act=alternating),
        r"^blocks\.3\.fc1: oscillates, by a factor \d\d",
    ),
    "a dead ReLU block": (
        Training("mlp", "sgd", act=dead),
        r"Changed no more: .*blocks\.2.* after step 4\d",
    ),
    "an exploding head": (Training("mlp", "sgd", act=exploding), r"head rose first, to \d+ times .* step 51"),
    "NaN": (Training("transformer", "sgd", act=not_a_number), r"No finite value: .*first at step 71"),
}
"""What is planted: the training, and how one of the first two findings reads."""

CLEAN = [
    *(
        Training(model, optimizer, schedule, seed)
        for seed, (model, optimizer, schedule) in enumerate(
            [
                ("mlp", "sgd", "constant"), ("mlp", "momentum", "cosine"), ("mlp", "adam", "warm-up"),
                ("mlp", "adamw", "constant"), ("mlp", "rmsprop", "step"), ("mlp", "momentum", "warm-up"),
                ("transformer", "sgd", "constant"), ("transformer", "momentum", "cosine"),
                ("transformer", "adam", "constant"), ("transformer", "adamw", "warm-up"),
                ("transformer", "rmsprop", "cosine"), ("lstm", "adam", "constant"), ("lstm", "momentum", "constant"),
                ("lstm", "adamw", "step"), ("resnet", "momentum", "cosine"), ("resnet", "adamw", "warm-up"),
                ("efficientnet", "sgd", "cosine"), ("efficientnet", "momentum", "constant"),
                ("efficientnet", "rmsprop", "warm-up"), ("convnext", "adamw", "cosine"),
            ],
            1,
        )
    )
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, (training, _) in PLANTED.items() if training.model in FAST])
def test_what_is_planted_is_found(name: str) -> None:
    training, sentence = PLANTED[name]
    said = findings_of(training())
    assert any(re.search(sentence, found) for found in said[:2]), said


@pytest.mark.parametrize("training", [training for training in CLEAN if training.model in FAST], ids=str)
def test_a_clean_training_has_no_finding(training: Training) -> None:
    assert findings_of(training()) == []


if __name__ == "__main__":
    hits = 0
    for name, (training, sentence) in PLANTED.items():
        said = findings_of(training())
        hit = any(re.search(sentence, found) for found in said[:2])
        hits += hit
        print("found" if hit else "MISSED", name, *said[:4], sep="\n    ", flush=True)
    alarms = 0
    for training in CLEAN:
        said = findings_of(training())
        alarms += bool(said)
        print(training.model, training.optimizer, training.schedule, said, flush=True)
    print(f"{hits} of {len(PLANTED)} planted anomalies found; {alarms} of {len(CLEAN)} clean runs with a finding")
    sys.exit(hits < len(PLANTED) or alarms > 1)
