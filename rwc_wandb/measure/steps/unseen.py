"""Weights that changed after the last step that was seen: what to say of it at the end."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from rwc_wandb.measure.steps.complete import CompleteSteps, inner_optimizer, is_followed


def warn_of_unseen_steps(
    steps: CompleteSteps, step: int, moved: Collection[Tensor], replaced: Collection[Tensor], stacklevel: int
) -> None:
    """Warn if training went on, as it seems, without a measurement.

    Args:
        steps, step: those that were seen, and the number of the last; 0: none was. Without optimizers, the calls of
            `measure`.
        moved: weights that are no longer what was measured last.
        replaced: if weights were replaced since, all that the model has now. At the end of a training that may be an
            export: only an optimizer of theirs tells that training went on.

    Warns:
        UserWarning: unless another monitor follows an optimizer of the moved weights, and so has measured them.
    """
    if not moved and not replaced:
        return
    ours = {id(part) for one in steps.optimizers() for part in (one, inner_optimizer(one))}
    alive = [one for one in gc.get_objects() if issubclass(type(one), torch.optim.Optimizer)]
    others = [one for one in alive if ours.isdisjoint({id(one), id(inner_optimizer(one))} - {id(None)})]
    others = [one for one in others if _holds(one, [*moved, *replaced])]
    further = [type(one).__name__ for one in others if not is_followed(one)]
    if not further and (others or replaced):
        return
    names = " and ".join(steps.names)
    since = f"since step {step}, the last that {names} made" if step else f"and {names} made no step"
    if not names:
        since = "and monitor.measure() was not called"
        advice = "Give watch the optimizer that steps them, or call monitor.measure(): after each epoch, say."
    elif further:
        advice = f"Give watch {' and '.join(dict.fromkeys(further))} too: it holds weights of the model."
    elif step:
        advice = (
            "That is no harm where it is clipping, or an average in their place; where training went on, give watch "
            "the optimizer that steps, or call watch(model), and monitor.measure() after each step."
        )
    else:
        advice = (
            "Give watch the optimizer that steps; where its step() is not what moves them, call watch(model), and "
            "monitor.measure() after each step."
        )
    warnings.warn(
        f"rwc_wandb: the weights changed {since}: no measurement has that. {advice}", stacklevel=stacklevel + 1
    )


def _holds(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> bool:
    # Not the attribute: wrappers compute theirs, from parts that may not be there yet.
    held = {id(one) for group in vars(optimizer).get("param_groups", ()) for one in group["params"]}
    return any(id(parameter) in held for parameter in parameters)
