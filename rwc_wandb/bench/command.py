"""`rwc-wandb bench`: the measurement's cost on the device at hand, as a table."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rwc_wandb.bench import conditions, table, training, training_table
from rwc_wandb.bench.baselines import tracked_weights
from rwc_wandb.bench.decoder import decoder, is_decoder
from rwc_wandb.bench.methods import WITHOUT_TRAINING, case_of, compare, offline_run, untrained_case_of
from rwc_wandb.bench.sampling import report as sampling
from rwc_wandb.bench.step import model_and_side, step_slow_downs
from rwc_wandb.errors import UserError
from rwc_wandb.options import COUNT
from rwc_wandb.study.data.sets import check_data_set
from rwc_wandb.study.models import check_model
from rwc_wandb.study.train.config import TrainConfig

TRAINED_MODELS = ("resnet18", "vgg19_bn", "alexnet")
MODELS = ("torchvision:resnet18", "torchvision:vgg19_bn", "torchvision:alexnet", "timm:vit_small_patch16_224")

DECODERS = ("llama:16x2048",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="extend",  # A second --model adds to the first.
        nargs="+",
        metavar="NAME",
        help="models as `rwc-wandb train` takes them, and llama:DEPTHxWIDTH (16x2048: 1.24 billion weights; with "
        f"--no-step); default: {' '.join(MODELS)}; "
        f"with --train: {' '.join(TRAINED_MODELS)}",
    )
    parser.add_argument(
        "--everything",
        type=Path,
        metavar="OUT",
        help="on a GPU: the tests for one, these benchmarks and runs of Table 1, each part's result into OUT at once; "
        "again with the same OUT: what is missing. Needs a clone of the repository",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="--everything: of one call; default: 9")
    parser.add_argument(
        "--sample",
        action="store_true",
        help="what `watch(sample=65_536)` saves, on llama:DEPTHxWIDTH (default: 16x2048, which takes 10 GB), "
        "and whether its standard error is true, at every step of three trainings (4 minutes)",
    )
    parser.add_argument("--train", action="store_true", help="time the training loop instead, in images per second")
    parser.add_argument("--dataset", help="--train: its images; default: random ones of CIFAR's shape")
    parser.add_argument("--data-dir", default="data", help="--train, --everything: where data sets are; default: data")
    parser.add_argument(
        "--steps",
        type=int,
        help="--train: steps of a sample; default: 390, on a CPU what takes 4 s. --sample: of a training; default: 120",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="--train: default: fp32")
    parser.add_argument("--compile", action="store_true", help="--train: torch.compile the model")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each method; default: 30")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a training step; default: 128")
    parser.add_argument("--no-step", action="store_true", help="do not time whole training steps")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks"), help="folder for the results; default: benchmarks"
    )


def run(arguments: argparse.Namespace) -> int:
    device = _checked(arguments)
    if arguments.everything is not None:
        from rwc_wandb.bench.everything.calls import run_all

        return run_all(arguments.output, device, Path(arguments.data_dir), arguments.minutes)
    found = conditions.conditions(device)
    console = Console()
    console.print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", highlight=False)
    if arguments.sample:
        path = _results(arguments, "sample", device, found)
        sampling.run(arguments.model, device, arguments.rounds, arguments.steps or sampling.STEPS, path, found)
        console.print(f"written: {path} and {path.with_suffix('.md').name}", highlight=False, soft_wrap=True)
        return 0
    kind = training_table if arguments.train else table
    all_results: list[Any] = []
    for name in arguments.model:
        with console.status(f"measuring {name}"):
            results = (_train if arguments.train else _measure)(name, device, arguments)
        console.print(kind.terminal_table(results))
        all_results.append(results)
    found["load after"] = conditions.load_average()
    console.print(kind.NOTE, highlight=False, markup=False)
    if arguments.train and (sentence := training_table.table_1(all_results)):
        console.print(sentence, highlight=False)
    path = _results(arguments, "train" if arguments.train else "measure", device, found)
    kind.write_csv(path, all_results, found)
    path.with_suffix(".md").write_text(kind.markdown(all_results, found), encoding="utf-8")
    console.print(f"written: {path} and {path.with_suffix('.md').name}", highlight=False, soft_wrap=True)
    return 0


def _results(arguments: argparse.Namespace, measured: str, device: torch.device, found: dict[str, str]) -> Path:
    output: Path = arguments.output
    return output / f"{measured}-{_slug(conditions.device_name(device))}-{found['date'][:10]}.csv"


def _train(name: str, device: torch.device, arguments: argparse.Namespace) -> training.TrainingResults:
    config = TrainConfig(
        model=name,
        dataset=arguments.dataset or training.SYNTHETIC,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
        learning_rate=1e-4,
        precision=arguments.precision,
        compile=arguments.compile,
    )
    with offline_run() as wandb_run:
        is_synthetic = arguments.dataset is None
        return training.measure(config, device, is_synthetic, arguments.steps, arguments.rounds, wandb_run)


def _measure(name: str, device: torch.device, arguments: argparse.Namespace) -> table.ModelResults:
    torch.manual_seed(0)
    model, side = (decoder(name, device), 0) if is_decoder(name) else model_and_side(name)
    model = model.to(device)
    # A run of its own for each model: `wandb.watch` keeps what it has watched until the run ends.
    with offline_run() as wandb_run:
        if is_decoder(name):
            floor, methods = compare(untrained_case_of(model, wandb_run), arguments.rounds, WITHOUT_TRAINING)
        else:
            floor, methods = compare(case_of(model, wandb_run), arguments.rounds)
        slow_downs = {} if arguments.no_step else step_slow_downs(model, side, arguments.batch_size, wandb_run)
    weights = sum(weight.numel() for weight in tracked_weights(model))
    return table.ModelResults(name, weights, floor, methods, None if arguments.no_step else side, slow_downs)


def _checked(arguments: argparse.Namespace) -> torch.device:
    """The device; refuses what cannot be run before anything is."""
    for option in ("rounds", "batch_size", "steps"):
        value = getattr(arguments, option)
        if value is not None and not COUNT.fits(value):
            raise UserError(f"--{option.replace('_', '-')} {value}: it takes {COUNT.takes}.")
    if not arguments.minutes > 0:
        raise UserError(f"--minutes {arguments.minutes}: it takes a number above 0.")
    if arguments.everything is not None:
        arguments.output = arguments.everything
    default = DECODERS if arguments.sample else TRAINED_MODELS if arguments.train else MODELS
    arguments.model = arguments.model or list(default)
    for name in arguments.model:
        if arguments.sample and not is_decoder(name):
            raise UserError(f"--model {name}: with --sample it takes llama:DEPTHxWIDTH, as llama:16x2048.")
        if is_decoder(name):
            if not arguments.sample and (arguments.train or not arguments.no_step):
                raise UserError(f"--model {name}: it has matrices to be measured and no steps; add --no-step.")
        else:
            check_model(name)
    if arguments.dataset is not None:
        check_data_set(arguments.dataset)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu.")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.output):
            pass
    except OSError as error:
        option = "--output" if arguments.everything is None else "--everything"
        raise UserError(
            f"{option} {arguments.output}: nothing can be written there ({error.strerror}); name another folder."
        ) from None
    return torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
