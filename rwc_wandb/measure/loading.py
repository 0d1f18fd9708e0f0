"""A hook on modules that their copies do not carry on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn


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
        return getattr, (contextlib.nullcontext(), "__exit__")
