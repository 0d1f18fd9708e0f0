"""What a training run is told: one typed record, its checks, and the command line made from it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rwc_wandb.errors import UserError
from rwc_wandb.options import SAMPLE, Kind, optional
from rwc_wandb.study.train import kinds


def _option(default: Any, help: str, kind: Kind, name: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "kind": kind, "name": name})


@dataclass(frozen=True)
class TrainConfig:
    """One run of the study. Defaults train the paper's ResNet18 on the digits that scikit-learn ships.

    Raises:
        UserError: a value that its option does not take.
    """

    model: str = _option(
        "resnet18",
        "resnet18, vgg19_bn, alexnet (the paper's, for 32x32), timm:NAME or torchvision:NAME",
        kinds.TEXT,
    )
    dataset: str = _option("digits", "digits, cifar10, cifar100, mnist, fashion_mnist or imagefolder", kinds.TEXT)
    epochs: int = _option(50, "passes over the training images", kinds.COUNT)
    batch_size: int = _option(128, "images per optimizer step, over all processes together", kinds.COUNT)
    learning_rate: float = _option(0.02, "constant learning rate of SGD", kinds.ABOVE_0, name="lr")
    momentum: float = _option(0.9, "momentum of SGD", kinds.BELOW_1)
    weight_decay: float = _option(1e-4, "weight decay of SGD", kinds.FROM_0)
    seed: int = _option(0, "seed of weights, order and augmentation", kinds.SEED)
    rwc_every: str | int = _option(
        "epoch", 'measure RWC every "epoch", as the paper does, or N optimizer steps', kinds.CADENCE
    )
    histogram_every: str | int | None = _option(
        "epoch",
        'histograms of weights and updates every "epoch", every N optimizer steps, or "never"',
        optional(kinds.CADENCE, "never"),
    )
    checkpoint_every: str | int | None = _option(
        "epoch",
        'checkpoint for --resume every "epoch", every N optimizer steps, or "never"',
        optional(kinds.CADENCE, "never"),
    )
    layers: str = _option(
        "weights", '"weights" (convolutions and linear layers), "all" or a regular expression', kinds.LAYERS
    )
    sample: int | None = _option(
        None,
        "measure layers with more than so many weights from a random sample of as many",
        optional(SAMPLE),
    )
    target_accuracy: float | None = _option(
        None,
        "stop once the test accuracy (0 to 1) reaches this; the authors used 0.94",
        optional(kinds.ACCURACY),
    )
    precision: str = _option(
        "fp32", "fp32 or bf16 (mixed precision; weights stay fp32; slow on CPUs without bf16)", kinds.PRECISION
    )
    compile: bool = _option(
        False, "torch.compile the model; on a GPU as CUDA graphs, which pays for small images", kinds.BOOLEAN
    )
    image_size: int | None = _option(
        None,
        "side of the square images; default: 32, digits 8 where the model allows, imagefolder 224",
        optional(kinds.COUNT),
    )
    limit_train: int | None = _option(
        None, "use only the first N training images, for a quick look", optional(kinds.COUNT)
    )
    limit_test: int | None = _option(None, "use only the first N test images", optional(kinds.COUNT))
    data_dir: str = _option("data", "where data sets are, or are downloaded to", kinds.FOLDER)
    output: str = _option("runs", "the folder for results: OUTPUT/NAME/", kinds.FOLDER)
    name: str | None = _option(None, "name of the run; default: MODEL-DATASET-seedN", optional(kinds.NAME))
    project: str = _option("rwc", "W&B project", kinds.PROJECT)
    group: str | None = _option(None, "W&B group; default: MODEL-DATASET", optional(kinds.NAME))

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not one.metadata["kind"].fits(value):
                raise _refusal(one, value)

    @property
    def run_name(self) -> str:
        """The run's name, safe as one folder's name: only letters, digits, `.`, `_` and `-`."""
        name = self.name or f"{self.model}-{self.dataset}-seed{self.seed}"
        return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-") or "run"

    @property
    def run_folder(self) -> Path:
        return Path(self.output) / self.run_name

    def named_after(self, options: Iterable[str]) -> TrainConfig:
        """The same, with a name that ends in the values of `options`; a name that was given stays."""
        values = self.to_dict()
        ends = [f"{option}{values[option]}" for option in options]
        return replace(self, name="-".join([self.run_name, *ends])[:128]) if ends and self.name is None else self

    def to_dict(self) -> dict[str, Any]:
        """Every field under its command-line name: what goes to `config.yaml` and `wandb.config`."""
        return {option_name(one): getattr(self, one.name) for one in fields(self)}


def option_name(one: Field[Any]) -> str:
    return one.metadata["name"] or one.name


IN_EVERY_NAME = ("model", "dataset", "seed")
"""Settings that a run's default name has."""

WHERE_TO = ("name", "project", "group", "output", "data_dir")
"""Settings that change no number."""

OPTIONS = {option_name(one): one for one in fields(TrainConfig)}
"""Command-line name -> field of `TrainConfig`."""


def flag(name: str) -> str:
    """`weight_decay` -> `--weight-decay`."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per field of `TrainConfig`, spelled with `-` and with `_`, as sweeps do."""
    for one in fields(TrainConfig):
        name = option_name(one)
        bare: dict[str, Any] = {"nargs": "?", "const": True} if isinstance(one.default, bool) else {}
        default = "" if one.default is None else f" [{one.default}]"
        parser.add_argument(
            *dict.fromkeys([flag(name), f"--{name}"]),
            dest=one.name,
            default=one.default,
            metavar=name.rsplit("_", 1)[-1].upper(),
            help=(one.metadata["help"] + default).replace("%", "%%"),
            **bare,
        )


def from_arguments(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration; in a sweep of W&B's, with a name that has all settings which are not the default.

    The agent does not say which settings vary, and runs that differ in one must not share a name.

    Raises:
        UserError: a value that its option does not take.
    """
    config = TrainConfig(**{one.name: parsed(one, getattr(arguments, one.name)) for one in fields(TrainConfig)})
    if "WANDB_SWEEP_ID" not in os.environ:
        return config
    default = TrainConfig().to_dict()
    ours = [name for name, value in config.to_dict().items() if value != default[name]]
    return config.named_after(name for name in ours if name not in (*IN_EVERY_NAME, *WHERE_TO))


def parsed(one: Field[Any], given: Any) -> Any:
    """The value of a field: text is what the command line says, all else a default.

    Raises:
        UserError: the text stands for no value.
    """
    if not isinstance(given, str):
        return given
    try:
        return one.metadata["kind"].parse(given)
    except ValueError:
        raise _refusal(one, given) from None


def _refusal(one: Field[Any], value: Any) -> UserError:
    shown = shlex.quote(value) if isinstance(value, str) else value
    return UserError(f"{flag(option_name(one))} {shown}: it takes {one.metadata['kind'].takes}.")
