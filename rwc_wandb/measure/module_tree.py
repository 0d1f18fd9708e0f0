"""The parameters of a model and where each one stands in its tree of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Path = list[tuple[dict[str, Any], str, object]]
"""The way to a parameter, `(mapping, key, expected)`: while every mapping still holds what is expected, neither the
parameter nor a module above it has been replaced."""


def parameters_of(model: nn.Module) -> Iterator[tuple[str, Tensor, Path, nn.Module]]:
    """Yield (name, parameter, path, the module whose weight it is) in the order of registration.

    A module that stands in several places comes once, a parameter once for each module that holds it.
    """
    pending: list[tuple[str, nn.Module, Path, nn.Module]] = [("", model, [], model)]
    seen: set[int] = set()
    while pending:
        prefix, module, path, above = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        # A list of parameters, or the container of a parametrized weight, belongs to the module that has it.
        is_container = isinstance(module, (nn.ModuleDict, nn.ModuleList, nn.ParameterList))
        owner = above if is_container else module
        for key, parameter in module._parameters.items():
            if isinstance(parameter, torch.Tensor):
                yield prefix + key, parameter, [*path, (module._parameters, key, parameter)], owner
        children = [
            (f"{prefix}{key}.", child, [*path, (module._modules, key, child)], owner)
            for key, child in module._modules.items()
            if child is not None
        ]
        pending.extend(reversed(children))
