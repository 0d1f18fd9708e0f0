"""What others do to see weights change: one implementation each, which the benchmark times and its test checks.

All take a model and are called once per measurement. What they yield is written in each docstring, with its error
against `rwc_wandb.relative_weight_change` in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import rwc_wandb

if TYPE_CHECKING:
    from wandb import Run


def tracked_weights(model: nn.Module) -> list[Tensor]:
    """The weights that `rwc_wandb.watch` tracks by default: parameters with more than one dimension."""
    return [layer.parameter.detach() for layer in rwc_wandb.find_layers(model)]


class PlainTorch:
    """Eq. 1 as one would write it: per layer (w - s).abs().sum() / s.abs().sum(), then s.copy_(w).

    Yields RWC, a scalar tensor per layer on the device, without waiting for it. Sums are in the weights' precision:
    relative error below 1e-4 for fp32. 0/0 is NaN.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = tracked_weights(model)
        self.snapshots = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        values = []
        for weight, snapshot in zip(self.weights, self.snapshots, strict=True):
            values.append((weight - snapshot).abs().sum() / snapshot.abs().sum())
            snapshot.copy_(weight)
        return values


class TorchForeach:
    """Eq. 1 with `torch._foreach_*`, the fused lists of operations that torch's own optimizers use.

    Yields RWC, a scalar tensor per layer on the device. On a CPU a `_foreach_norm` adds up one element after the other
    in fp32: relative error below 1e-3 for layers of 10 million weights.
    The differences take a second copy of the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = tracked_weights(model)
        self.snapshots = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        changes = torch._foreach_norm(torch._foreach_sub(self.weights, self.snapshots), 1)
        norms = torch._foreach_norm(self.snapshots, 1)
        torch._foreach_copy_(self.snapshots, self.weights)
        return list(torch._foreach_div(changes, norms))


class AuthorsCode:
    """What the code of the paper's authors does (Manifold-Computing/Relative-Weight-Change on GitHub, its functions
    `load_layers` and `relative_weight_change`): every weight is cloned and copied to the host, and numpy computes
    |s - w| / |s| element by element.

    Yields minimum, maximum, mean and standard deviation of those ratios per layer. The mean is
    `elementwise_relative_weight_change`, not eq. 1: relative error below 1e-5 for fp32 where no old weight is 0; where
    one is, inf or NaN.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.previous = self._load_layers()

    def _load_layers(self) -> list[NDArray[Any]]:
        return [weight.clone().cpu().numpy() for weight in tracked_weights(self.model)]

    def __call__(self) -> list[dict[str, float]]:
        current = self._load_layers()
        values = []
        for old, new in zip(self.previous, current, strict=True):
            ratios = np.abs(np.subtract(old, new)) / np.abs(old)
            values.append({"min": ratios.min(), "max": ratios.max(), "mean": ratios.mean(), "std": ratios.std()})
        self.previous = current
        return values


class ComposerNorms:
    """What MosaicML Composer's `OptimizerMonitor` does with its `DecoupledAdamW.report_per_parameter_metrics`
    (composer/callbacks/optimizer_monitor.py, composer/optim/decoupled_weight_decay.py): per parameter, biases included,
    four L2 norms and the step's number, each read with `.item()`; the update is rebuilt from Adam's state.

    Yields `{"l2_norm/update/NAME": ..., "l2_norm/param/NAME": ..., ...}`. Not RWC: the nearest is
    l2_norm/update over l2_norm/param, an L2 ratio, with relative error below 1e-3. The update is the true one without
    weight decay only: Composer adds the decay with the wrong sign, and so does this.

    `optimizer` is an Adam that has stepped; its moments are the training's own and no extra memory of this method.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
        self.optimizer = optimizer

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        metrics: dict[str, Tensor] = {}
        for name, parameter in self.parameters:
            state = self.optimizer.state[parameter]
            step = state["step"].item()
            denominator = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
            update = group["lr"] / (1 - beta1**step) * state["exp_avg"].div(denominator)
            update.add_(parameter, alpha=-group["weight_decay"])
            metrics[f"l2_norm/moment/{name}"] = torch.linalg.vector_norm(state["exp_avg"])
            metrics[f"l2_norm/param/{name}"] = torch.linalg.vector_norm(parameter)
            metrics[f"l2_norm/update/{name}"] = torch.linalg.vector_norm(update)
            metrics[f"l2_norm/grad/{name}"] = torch.linalg.vector_norm(parameter.grad)
        gradients = [value for name, value in metrics.items() if name.startswith("l2_norm/grad/")]
        metrics["l2_norm/grad/global"] = torch.stack(gradients).square().sum().sqrt()
        return {name: value.item() for name, value in metrics.items()}


class WandbWatch:
    """`wandb.watch(log="parameters")` or `log="all"` at `log_freq=1`, and the `run.log` that sends its row.

    Yields, in the run's history, a histogram of 64 bins per parameter ("all": and per gradient), biases included. Not
    RWC: the weights' distribution, not their change. Counts are exact but for values on the edge of two bins.

    wandb's own hooks do the work. They are fired as training fires them, by a forward pass and (for "all") a backward
    pass, of a network that has the model's parameters but computes nothing: what is timed is what `wandb.watch` adds.

    Args:
        run: the active run: `wandb.watch` logs to no other.
        gradients: one per parameter of the model, for "all"; else none.
    """

    def __init__(self, model: nn.Module, log: Literal["parameters", "all"], run: Run, gradients: list[Tensor]) -> None:
        import wandb

        self.idle = _Idle(model, gradients)
        self.run = run
        self.log = log
        wandb.watch(self.idle, log=log, log_freq=1)

    def __call__(self) -> None:
        loss = self.idle()
        if self.log == "all":
            torch.autograd.grad(loss, list(self.idle.parameters()))
        self.run.log({"loss": 0.0})

    def close(self) -> None:
        import wandb

        wandb.unwatch(self.idle)


class _Idle(nn.Module):
    """The parameters of a model, and gradients for them that cost nothing."""

    def __init__(self, model: nn.Module, gradients: list[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.gradients = gradients

    def forward(self) -> Tensor:
        return _Given.apply(self.gradients, *self.parameters())


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients
