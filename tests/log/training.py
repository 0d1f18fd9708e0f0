"""A user's run and training loop, watched; what arrives is read from the stand-in of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import wandb
from standin import StandIn
from standin.store import Run as ServerRun
from torch import nn

from rwc_wandb import Monitor, watch


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer1": nn.Linear(3, 5), "layer2": nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 2)])})


class Training:
    """A user's run and loop; `at_step` is what they do after each optimizer step."""

    def __init__(self, standin: StandIn, mode: Any = None, **options: Any) -> None:
        self.standin = standin
        self.run = wandb.init(project="p", config={"lr": 0.1}, mode=mode)
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.monitor: Monitor = watch(self.model, self.optimizer, **options)

    def steps(self, count: int) -> Iterator[int]:
        for step in range(1, count + 1):
            for parameter in self.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.optimizer.step()
            yield step

    def finish(self) -> ServerRun:
        self.run.finish()
        return self.standin.run(self.run.id)


def rwc_rows(server: ServerRun) -> list[dict[str, Any]]:
    return [row for row in server.rows if "rwc/step" in row and "rwc/layer1" in row]
