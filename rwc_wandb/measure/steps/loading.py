"""When a model loads weights: hooks that copies of its modules do not carry on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from rwc_wandb.measure.layers import Layer


def watch_loading(model: nn.Module, layers: Sequence[Layer], note: Callable[[set[int]], None]) -> list[Any]:
    """Have `note` called with the indices of the layers whose weights were loaded; the handles of the hooks."""
    owned: dict[int, set[int]] = {}
    for index, layer in enumerate(layers):
        if not layer.path:  # It has left the model.
            continue
        owned.setdefault(id(layer.path[-1][0]), set()).add(index)
    return [
        module.register_load_state_dict_post_hook(LoadingHook(module, partial(note, owned[id(module._parameters)])))
        for module in model.modules()
        if id(module._parameters) in owned
    ]


class LoadingHook:
    """For `register_load_state_dict_post_hook`: calls `note` when this very module has loaded weights.

    A copy (`copy.deepcopy`, an average of the weights) or a pickle of the model has a hook that does nothing, and that
    can be read without rwc_wandb.
    """

    def __init__(self, module: nn.Module, note: Callable[[], None]) -> None:
        self._module = module
        self._note = note

    def __call__(self, module: nn.Module, _: object) -> None:
        if module is self._module:
            self._note()

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickled, it is the `__exit__` of a context that does nothing: a function of the standard library that takes
        # any two arguments beside its own and returns None.
        return getattr, (contextlib.nullcontext(), "__exit__")
