"""Where, when and with what something was measured."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("rwc_wandb", "torch", "numba", "triton", "wandb", "torchvision", "timm", "numpy")


def conditions(device: torch.device) -> dict[str, str]:
    """What belongs beside every number: name -> value. The load average tells whether others were at work."""
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(device),
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch",
        "load before": load_average(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    if device.type == "cuda":
        found["CUDA"] = str(torch.version.cuda)
    return found | {package: _version(package) for package in PACKAGES}


def device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def load_average() -> str:
    """Processes at work over the last minute; 0.0 is a quiet machine."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
