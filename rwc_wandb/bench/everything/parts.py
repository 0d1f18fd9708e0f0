"""The parts of `rwc-wandb bench --everything`, in order of importance, on a GPU and, smaller, on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rwc_wandb
from rwc_wandb.study.sweep.grid import read_grid
from rwc_wandb.study.sweep.local import command_of

ROOT = Path(rwc_wandb.__file__).parents[1]
"""The clone."""
TESTS = ROOT / "tests"
SWEEPS = ("resnet18.yaml", "vgg19_bn.yaml", "alexnet-mnist.yaml")
"""Those of Table 1 that train on Fashion-MNIST."""
TRAINER_SIZE = ("--steps=100", "--rounds=8")
"""So that a kind of training takes a GPU half a minute, without compilation."""


@dataclass(frozen=True)
class Part:
    """A process.

    Attributes:
        command: its words.
        most: seconds after which it counts as hung.
        resumes: it stops at SIGTERM with a checkpoint, and goes on from there when it is started again.
    """

    name: str
    command: list[str]
    most: float
    resumes: bool = False


def parts(out: Path, on_gpu: bool, data_dir: Path) -> tuple[list[Part], list[str]]:
    """All parts, and a sentence for each that cannot be one here.

    Args:
        out: where the parts' files go.
        on_gpu: the real sizes; else small ones.
        data_dir: where Fashion-MNIST is, for the runs of Table 1.
    """
    found = [*_values(on_gpu), *_measurements(out, on_gpu), _waits(on_gpu), *_trainer(out, on_gpu)]
    if not on_gpu:
        quick = ["--epochs=1", "--limit-train=96", "--limit-test=40", "--batch-size=32", "--dataset=digits"]
        return [*found, _run_of("quick", ["--model=timm:resnet10t", *quick], out)], []
    if not (data_dir / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        return found, [
            f"No Fashion-MNIST in {data_dir}: the runs of Table 1 are left out (--data-dir names its folder)."
        ]
    return found + _table_1(out, data_dir), []


def _values(on_gpu: bool) -> list[Part]:
    kernels = ["-k", "cuda or triton"] if on_gpu else ["-k", "edges"]
    architectures = [] if on_gpu else ["-k", "resnet10t or Llama"]
    return [
        _tests("values", "gpu/test_gpu_values.py", 300),
        _tests("training", "gpu/test_gpu_training.py", 180),
        _tests("random-layers", "measure/test_kernels.py", 300, kernels),
        _tests("architectures", "test_architectures.py", 400, architectures),
        _tests("sanitizer", "gpu/test_gpu_sanitizer.py", 300),
    ]


def _measurements(out: Path, on_gpu: bool) -> list[Part]:
    kinds = [("torchvision:vgg19_bn", ["--no-step"]), ("resnet18", []), ("llama:16x2048", ["--no-step"])]
    if not on_gpu:
        kinds = [(model, ["--no-step", "--rounds", "1"]) for model in ("timm:test_resnet", "llama:2x64")]
    return [_bench(f"measure-{_slug(model)}", ["--model", model, *words], out, 240) for model, words in kinds]


def _waits(on_gpu: bool) -> Part:
    return _tests("waits", "gpu/test_gpu_waits.py", 180)


def _trainer(out: Path, on_gpu: bool) -> list[Part]:
    if not on_gpu:
        words = ["--train", "--model", "timm:test_resnet", "--steps", "1", "--rounds", "1", "--batch-size", "8"]
        return [_bench("trainer-timm-test-resnet", words, out, 240)]
    kinds = [
        ("resnet18", "fp32", True),
        ("resnet18", "bf16", True),
        ("resnet18", "fp32", False),
        ("vgg19_bn", "fp32", True),
        ("alexnet", "fp32", True),
        ("resnet18", "bf16", False),
    ]
    return [
        _bench(
            f"trainer-{model}-{precision}{'-compiled' * compiled}",
            ["--train", f"--model={model}", f"--precision={precision}", *["--compile"] * compiled, *TRAINER_SIZE],
            out,
            300,
        )
        for model, precision, compiled in kinds
    ]


def _table_1(out: Path, data_dir: Path) -> list[Part]:
    """One seed of each architecture first, then the next."""
    configs = [config for name in SWEEPS for config in read_grid(ROOT / "sweeps" / name, {}).configs(str(out / "runs"))]
    ours = [config for config in configs if config.dataset == "fashion_mnist"]
    seeds = list(dict.fromkeys(config.seed for config in ours))
    return [
        Part(
            f"table-1-{config.run_name}",
            [*command_of(config), "--compile", f"--data-dir={data_dir}"],
            530,
            resumes=True,
        )
        for config in sorted(ours, key=lambda config: seeds.index(config.seed))
    ]


def _run_of(name: str, words: Sequence[str], out: Path) -> Part:
    command = [sys.executable, "-m", "rwc_wandb", "train", "--resume", *words, f"--output={out / 'runs'}"]
    return Part(f"table-1-{name}", command, 530, resumes=True)


def _tests(name: str, file: str, most: float, words: Sequence[str] = ()) -> Part:
    # Without the project's filters of warnings, which name classes of packages that need not be there.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-s",
        "-m",
        "gpu",
        "-o",
        "filterwarnings=",
        "-p",
        "no:cacheprovider",
    ]
    return Part(name, [*command, *words, str(TESTS / file)], most)


def _bench(name: str, words: Sequence[str], out: Path, most: float) -> Part:
    return Part(name, [sys.executable, "-m", "rwc_wandb", "bench", *words, "--output", str(out / name)], most)


def _slug(name: str) -> str:
    return name.replace("torchvision:", "").replace(":", "-")
