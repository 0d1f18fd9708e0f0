"""compute-sanitizer on the kernels: no access out of bounds, no race, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from gpu.machine import DEVICE, ON_GPU, sums

from rwc_wandb.measure.kernels import reduction_for

pytestmark = pytest.mark.gpu
SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def run_kernels() -> None:
    """Every kernel on aligned and misaligned chunks, ends of chunks and all types."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights, snapshots = [], []
        for size in (1, 7, 1024, 4096, 4097, 9001):
            for shift in (0, 1):
                # Each in an allocation of its own size: the next element is not ours.
                weights.append(torch.rand(size + shift, device=DEVICE).to(dtype)[shift:])
                snapshots.append(torch.rand(size, device=DEVICE).to(dtype))
        expected = torch.stack([sums(*one) for one in zip(weights, snapshots, strict=True)])
        statistics = torch.zeros(len(weights), 5, dtype=torch.float64, device=DEVICE)
        reduction = reduction_for(weights, snapshots)
        reduction.histograms(64)
        reduction.histograms(64, is_part=True)
        reduction.measure(statistics)
        torch.testing.assert_close(statistics, expected, rtol=1e-6, atol=0)


def test_the_case_itself() -> None:
    run_kernels()


@pytest.mark.skipif(not ON_GPU or SANITIZER is None, reason="needs a GPU and compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool: str) -> None:
    assert SANITIZER is not None
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    # Without torch's allocator, which hands out slices of large blocks, an access out of bounds shows.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(
        [*command, sys.executable, __file__],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(result.stdout[-2000:])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 errors" in result.stdout or "0 hazards" in result.stdout


if __name__ == "__main__":
    run_kernels()
