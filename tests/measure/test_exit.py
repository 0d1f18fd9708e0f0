"""A script that just ends: what is left to measure is measured while the interpreter ends."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import atexit, json, torch
from torch import nn
from rwc_wandb import watch

torch.set_num_threads(2)
torch.manual_seed(0)
model = nn.Sequential(*(nn.Linear(640, 640, bias=False) for _ in range(2)))
first, second = (torch.optim.SGD(layer.parameters(), lr=0.5) for layer in model)
monitor = watch(model, [first, second], run=False, sample={sample})
atexit.register(lambda: print(json.dumps([monitor.history.steps.tolist(), monitor.history.rwc.tolist()])))
atexit.register(monitor.close)
for layer in model:
    layer.weight.grad = layer.weight.detach() * 0.5
for optimizer in {steps}:
    optimizer.step()
"""


@pytest.mark.parametrize("sample", [None, 200_000])
@pytest.mark.parametrize("steps", ["[first, second, first, second]", "[first, second, first]"])
def test_a_script_that_just_ends_loses_no_measurement(sample: int | None, steps: str) -> None:
    script = SCRIPT.format(sample=sample, steps=steps)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert "stopped" not in ended.stderr
    found, rwc = json.loads(ended.stdout)
    assert found == [1, 2]
    # A quarter of what they were first, then of three quarters of that.
    wanted = [[1 / 4, 1 / 4], [1 / 3, 1 / 3 if steps.endswith("second]") else 0]]
    np.testing.assert_allclose(rwc, wanted, rtol=1e-5)
