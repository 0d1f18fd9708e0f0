"""What a training run is told: one typed record, its checks, and the command line made from it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from rwc_wandb.errors import UserError


def _option(default: Any, help: str, parse: Callable[[str], Any], name: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "parse": parse, "name": name})


def _boolean(text: str) -> bool:
    """W&B sweeps pass booleans as `--amp=True`."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise ValueError("it takes true or false")


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text in ("None", "none", "") else parse(text)


def _cadence(text: str) -> str | int | None:
    return text if text == "epoch" else None if text in ("None", "never") else int(text)


@dataclass(frozen=True)
class TrainConfig:
    """One run of the study. Defaults train the paper's ResNet18 on the digits that scikit-learn ships."""

    model: str = _option(
        "resnet18", "resnet18, vgg19_bn, alexnet (the paper's, for 32x32), timm:NAME or torchvision:NAME", str
    )
    dataset: str = _option("digits", "digits, cifar10, cifar100, mnist, fashion_mnist or imagefolder", str)
    epochs: int = _option(50, "passes over the training images", int)
    batch_size: int = _option(128, "images per optimizer step, over all processes together", int)
    learning_rate: float = _option(0.02, "constant learning rate of SGD", float, name="lr")
    momentum: float = _option(0.9, "momentum of SGD", float)
    weight_decay: float = _option(1e-4, "weight decay of SGD", float)
    seed: int = _option(0, "seed of weights, order and augmentation", int)
    rwc_every: str | int = _option(
        "epoch", 'measure RWC every "epoch", as the paper does, or N optimizer steps', _cadence
    )
    histogram_every: str | int | None = _option(
        "epoch", 'histograms of weights and updates every "epoch", every N optimizer steps, or "never"', _cadence
    )
    checkpoint_every: str | int | None = _option(
        "epoch", 'checkpoint for --resume every "epoch", every N optimizer steps, or "never"', _cadence
    )
    layers: str = _option("weights", '"weights" (convolutions and linear layers), "all" or a regular expression', str)
    target_accuracy: float | None = _option(
        None, "stop once the test accuracy (0 to 1) reaches this; the authors used 0.94", _optional(float)
    )
    precision: str = _option(
        "fp32", "fp32 or bf16 (mixed precision; weights stay fp32; slow on CPUs without bf16)", str
    )
    compile: bool = _option(False, "torch.compile the model", _boolean)
    image_size: int | None = _option(
        None, "side of the square images; default: 32, digits 8 where the model allows, imagefolder 224", _optional(int)
    )
    limit_train: int | None = _option(None, "use only the first N training images, for a quick look", _optional(int))
    limit_test: int | None = _option(None, "use only the first N test images", _optional(int))
    data_dir: str = _option("data", "where data sets are, or are downloaded to", str)
    output: str = _option("runs", "the folder for results: OUTPUT/NAME/", str)
    name: str | None = _option(None, "name of the run; default: MODEL-DATASET-seedN", _optional(str))
    project: str = _option("rwc", "W&B project", str)
    group: str | None = _option(None, "W&B group; default: MODEL-DATASET", _optional(str))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "limit_train", "limit_test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} {value}: it takes a whole number from 1.")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"--lr {self.learning_rate}: it takes a number above 0, such as 0.1.")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum}: it takes a number from 0 to below 1, such as 0.9.")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"--weight-decay {self.weight_decay}: it takes a number from 0, such as 0.0001.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: it takes a whole number from 0 to below 2^32.")
        for name in ("rwc_every", "histogram_every", "checkpoint_every"):
            value = getattr(self, name)
            if (isinstance(value, int) and value < 1) or (name == "rwc_every" and value is None):
                never = "" if name == "rwc_every" else ' or "never"'
                raise UserError(f'{flag(name)} {value}: it takes "epoch"{never} or a whole number from 1.')
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise UserError(
                f"--target-accuracy {self.target_accuracy}: it takes a number above 0 up to 1, such as 0.94."
            )
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"--precision {self.precision}: it takes fp32 or bf16.")
        if not self.project or re.search(r"[/\\#?%:]", self.project):
            raise UserError(f"--project {self.project!r}: it takes a name without any of / \\ # ? % : in it.")

    @property
    def run_name(self) -> str:
        """The run's name, safe as one folder's name: only letters, digits, `.`, `_` and `-`."""
        name = self.name or f"{self.model}-{self.dataset}-seed{self.seed}"
        return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-") or "run"

    @property
    def run_folder(self) -> Path:
        return Path(self.output) / self.run_name

    def to_dict(self) -> dict[str, Any]:
        """Every field under its command-line name: what goes to `config.yaml` and `wandb.config`."""
        return {option_name(one): getattr(self, one.name) for one in fields(self)}


def option_name(one: Field[Any]) -> str:
    return one.metadata["name"] or one.name


def flag(name: str) -> str:
    """`weight_decay` -> `--weight-decay`."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per field of `TrainConfig`, spelled with `-` and with `_`, as sweeps do."""
    for one in fields(TrainConfig):
        assert one.default is not MISSING
        name = option_name(one)
        spellings = dict.fromkeys([flag(name), f"--{name}"])
        bare: dict[str, Any] = {"nargs": "?", "const": True} if isinstance(one.default, bool) else {}
        default = "" if one.default is None else f" [{one.default}]"
        parser.add_argument(
            *spellings,
            dest=one.name,
            type=_named(one.metadata["parse"], one.type),
            default=one.default,
            metavar=name.rsplit("_", 1)[-1].upper(),
            help=(one.metadata["help"] + default).replace("%", "%%"),
            **bare,
        )


def _named(parse: Callable[[str], Any], kind: Any) -> Callable[[str], Any]:
    """argparse says `invalid NAME value`: make NAME read well."""

    def parsed(text: str) -> Any:
        return parse(text)

    names = {"int": "whole number", "float": "number", "bool": "true or false"}
    parsed.__name__ = names.get(str(kind).split(" |")[0], "cadence")
    return parsed


def from_arguments(arguments: argparse.Namespace) -> TrainConfig:
    return TrainConfig(**{one.name: getattr(arguments, one.name) for one in fields(TrainConfig)})
