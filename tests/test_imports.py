"""Imports run one way, and importing the package is cheap."""

import subprocess
import sys

import pytest

HEAVY = {"triton", "numba", "timm", "torchvision", "accelerate", "sklearn", "rich", "vl_convert", "wandb_workspaces"}


def imported_by(statement: str) -> set[str]:
    """The top-level modules that `statement` brings in beyond those of `import torch`."""
    code = f"import sys, torch; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in result.stdout.split()} | {
        name for name in result.stdout.split() if name.startswith("rwc_wandb.")
    }


def rooms(modules: set[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if name.startswith("rwc_wandb.")}


def test_importing_the_package_is_cheap() -> None:
    modules = imported_by("import rwc_wandb; assert not torch.cuda.is_initialized()")
    assert not modules & (HEAVY | {"wandb"})


def test_measure_knows_nobody() -> None:
    modules = imported_by(
        "import rwc_wandb.measure.monitor, rwc_wandb.measure.series.trends, rwc_wandb.measure.kernels"
    )
    # The package's own __init__ brings in the drop-in and its options; its other rooms come with the call.
    assert rooms(modules) <= {"measure", "errors", "files", "_version", "dropin", "options"}
    assert not modules & (HEAVY | {"wandb"})


@pytest.mark.parametrize(
    ("module", "unknown"),
    [
        ("rwc_wandb.log.rows", {"study", "cli", "integrations"}),
        ("rwc_wandb.view.render", {"study", "cli", "integrations", "log"}),
        ("rwc_wandb.launch.command", {"study", "view", "log", "integrations", "bench"}),
        ("rwc_wandb.cli", {"study", "view", "log", "integrations", "bench"}),
    ],
)
def test_rooms_do_not_know_those_above_them(module: str, unknown: set[str]) -> None:
    assert not rooms(imported_by(f"import {module}")) & unknown


def test_this_test_can_fail() -> None:
    assert "timm" in imported_by("import rwc_wandb, timm")
    assert "study" in rooms(imported_by("import rwc_wandb.study.train.loop"))
