"""What `layers=` takes: which parameters of a model are tracked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LayerChoice = str | Callable[[str, Tensor], bool]
"""Which parameters are tracked: "weights" (more than one dimension, the paper's choice), "all", a regular expression
searched for in the layer's name, "role:" and one that matches the whole of its role, or a callable of (name,
parameter)."""


def nothing_to_track(
    model: nn.Module,
    choice: LayerChoice,
    optimizers: Sequence[torch.optim.Optimizer],
    is_own: bool,
    unmeasured: Sequence[tuple[str, Tensor]],
) -> str:
    """The sentence for a choice of layers that leaves none.

    Args:
        is_own: whether the optimizers step any parameter of the model.
        unmeasured: parameters that were chosen, of types that are not measured.
    """
    kind = type(model).__name__
    stepping = " and ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
    if next(model.parameters(), None) is None:
        return (
            f"{kind} has no parameters. torch does not see modules in a plain list or dict: keep them in nn.ModuleList "
            "or nn.ModuleDict, or give watch the list or dict."
        )
    if not is_own:
        return (
            f"{stepping} steps no parameter of {kind}: give watch the optimizer of this model, or none and call "
            "monitor.measure() after each step."
        )
    if unmeasured:
        what = f"matches no parameter of {kind} that can be measured ({kinds_of(unmeasured)} cannot)"
    elif optimizers and choice in ("weights", "all"):
        what = f"matches no parameter of {kind} that {stepping} steps"
    else:
        what = f"matches no parameter of {kind}"
    return (
        f'No layer to track: layers={choice!r} {what}; it takes "weights" (more than one dimension), "all", a regular '
        'expression or a callable; "role:" and an expression choose by role.'
    )


def kinds_of(parameters: Sequence[tuple[str, Tensor]]) -> str:
    """Of what type they are, in words: `complex64`, `int8 and Int8Tensor`."""
    plain = (Tensor, nn.Parameter)
    kinds = [
        str(one.dtype).removeprefix("torch.") if type(one) in plain else type(one).__name__ for _, one in parameters
    ]
    return " and ".join(dict.fromkeys(kinds))


def selector(choice: LayerChoice) -> Callable[[str, Tensor, tuple[int, ...], str], bool]:
    """Whether a parameter is chosen, by its name, itself, the shape of the whole of it and its role.

    Raises:
        ValueError: no valid regular expression.
    """
    if callable(choice):
        return lambda name, parameter, shape, role: choice(name, parameter)
    if choice == "weights":
        return lambda name, parameter, shape, role: len(shape) > 1
    if choice == "all":
        return lambda name, parameter, shape, role: True
    try:
        pattern = re.compile(choice.removeprefix("role:"))
    except (re.error, TypeError, AttributeError) as error:
        raise ValueError(
            f'layers={choice!r} is no valid choice ({error}): use "weights", "all", a regular expression or a '
            'callable; "role:" and an expression choose by role.'
        ) from None
    if choice.startswith("role:"):
        return lambda name, parameter, shape, role: bool(pattern.fullmatch(role))
    return lambda name, parameter, shape, role: bool(pattern.search(name))
