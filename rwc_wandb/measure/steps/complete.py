"""When a step is complete: several optimizers may make it, and a wrapper's step may go on after the one inside."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from rwc_wandb.measure.steps.capturing import is_in_one_graph

_followed: WeakSet[torch.optim.Optimizer] = WeakSet()
_counting: WeakSet[CompleteSteps] = WeakSet()


class CompleteSteps:
    """Calls `act` once per complete step of the optimizers, whatever their order.

    A step is complete when all optimizers have stepped, or when one begins its next step before the others have stepped
    (a critic that steps five times for each step of its generator).

    An optimizer that works with another one inside (timm's Lookahead, SAM) may move weights after the inner one's step,
    in a method of which torch tells nothing: its step is complete when torch tells of it, or else when the inner one
    begins the next.

    A subclass's `step` may call `super().step()`, and torch then tells of both: the outer one's end is the step's.

    A step that is captured into a CUDA graph does not happen: it counts as none. Nor does one count that torch.compile
    makes a part of one graph, which has no place for a call.

    Nor do those of a forked process: it has neither the threads that measure nor the run.

    Attributes:
        names: the optimizers' classes.
        has_new_groups: whether an optimizer has stepped whose groups have got other parameters.

    Args:
        act: gets `found_inf` of each optimizer that stepped: what GradScaler gives to fused optimizers, else None.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        act: Callable[[list[Tensor | None]], None],
        capturing: Callable[[], bool] = lambda: False,
    ) -> None:
        self._act = act
        self._capturing = capturing
        self._number = len(optimizers)
        self.names = list(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
        # Not the optimizers: a monitor that is kept keeps none that the script has let go.
        self._optimizers = [ref(optimizer) for optimizer in optimizers]
        self._groups = [_contents(optimizer) for optimizer in optimizers]
        self.has_new_groups = False
        self._is_over = False
        self._thread = threading.get_ident()
        self._stepped: dict[int, Tensor | None] = {}
        self._hooks: list[Any] = []
        self._inner_hooks: dict[int, list[Any]] = {}
        for index, optimizer in enumerate(optimizers):
            before, after = partial(self._hook, self._before, index), partial(self._hook, self._after, index)
            self._hooks.append(optimizer.register_step_post_hook(after))
            if self._number > 1:
                self._hooks.append(optimizer.register_step_pre_hook(before))
            _followed.add(optimizer)
            inner = inner_optimizer(optimizer)
            if inner is not None:
                _followed.add(inner)
                after_inner = partial(self._hook, self._after_inner, index)
                hooks = [inner.register_step_pre_hook(before), inner.register_step_post_hook(after_inner)]
                self._inner_hooks[index] = hooks
        _counting.add(self)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that the script still has."""
        return [one for found in self._optimizers if (one := found()) is not None]

    def finish(self) -> None:
        """Count a step that has begun as complete."""
        if self._stepped:
            found, self._stepped = list(self._stepped.values()), {}
            self._act(found)

    def begun(self) -> dict[int, float | None]:
        """For a checkpoint: by index, the optimizers that have stepped in a step that is not complete."""
        return {index: None if found is None else float(found) for index, found in self._stepped.items()}

    def resume(self, begun: dict[int, float | None]) -> None:
        self._stepped = {
            index: None if found is None else torch.tensor(found, device="cpu") for index, found in begun.items()
        }

    def ignore(self) -> None:
        """Count no step from here on. Hooks that stay do not keep the monitor."""
        self._is_over, self._act = True, lambda _: None

    def _counts_none(self) -> bool:
        return self._is_over or self._capturing()

    def remove(self) -> None:
        """Remove all hooks; in the middle of a step they stay, without effect.

        torch goes through an optimizer's hooks as they are: to remove one meanwhile would end the training.
        """
        self.ignore()
        # Whether another thread is in the middle of a step may change at any moment.
        is_elsewhere = self._thread != threading.get_ident() and self._thread in sys._current_frames()
        if is_elsewhere or any(_is_stepping(one) for one in self._with_inner()):
            return
        for hook in [*self._hooks, *(hook for hooks in self._inner_hooks.values() for hook in hooks)]:
            hook.remove()
        self._hooks, self._inner_hooks = [], {}

    def _with_inner(self) -> Iterator[torch.optim.Optimizer]:
        for optimizer in self.optimizers():
            yield optimizer
            if (inner := inner_optimizer(optimizer)) is not None:
                yield inner

    def _hook(self, act: Callable[..., None], *arguments: Any) -> None:
        """A compiled step calls `act` between two graphs and does not look into it."""
        if not torch.compiler.is_dynamo_compiling() or not is_in_one_graph():
            act(*arguments)

    @_disable_dynamo
    def _after(self, index: int, optimizer: Any, *_: object) -> None:
        if self._counts_none() or _has_outer_step(optimizer):
            return
        self._thread = threading.get_ident()
        self._stepped[index] = getattr(optimizer, "found_inf", None)
        self._look_at_groups(index, optimizer)
        if self._inner_hooks:
            for hook in self._inner_hooks.pop(index, []):
                hook.remove()
        if len(self._stepped) == self._number:
            self.finish()

    @_disable_dynamo
    def _before(self, index: int, *_: object) -> None:
        if index in self._stepped and not self._counts_none():
            self.finish()

    @_disable_dynamo
    def _after_inner(self, index: int, optimizer: Any, *_: object) -> None:
        if not self._counts_none():
            self._stepped[index] = None
            self._look_at_groups(index, optimizer)

    def _look_at_groups(self, index: int, optimizer: Any) -> None:
        contents = _contents(optimizer)
        if contents != self._groups[index]:
            self._groups[index], self.has_new_groups = contents, True


def _count_nothing_after_a_fork() -> None:
    for steps in list(_counting):
        steps.ignore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_nothing_after_a_fork)


def is_followed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a monitor has seen its steps, or those of the optimizer inside it."""
    return optimizer in _followed or inner_optimizer(optimizer) in _followed


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """The innermost optimizer that works inside this one, None if it works alone."""
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer) and "_optimizer_step_post_hooks" in vars(value):
            return inner_optimizer(value) or value
    return None


def _has_outer_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the `step` that has just ended was called by another `step` of the same optimizer, with hooks as well."""
    codes = _codes(optimizer)
    return len(codes) > 1 and _calls(codes[0], optimizer) > 1


def _is_stepping(optimizer: Any) -> bool:
    """Whether this thread is in the middle of a `step` of the optimizer, its hooks included."""
    codes = _codes(optimizer)
    return bool(codes) and _calls(codes[0], optimizer) > 0


def _codes(optimizer: Any) -> list[CodeType]:
    """Of each class of which torch calls hooks after a `step`; torch wraps them all in the same code."""
    steps = [vars(one)["step"] for one in type(optimizer).__mro__ if "step" in vars(one)]
    return [one.__code__ for one in steps if getattr(one, "hooked", False)]


def _calls(code: CodeType, optimizer: Any) -> int:
    """How many calls of `code` for the optimizer this thread is in.

    Found in its frames: a counter that the hooks keep would be wrong after a step that raises.
    """
    number = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        number += frame.f_code is code and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return number


def _contents(optimizer: Any) -> tuple[list[int], int]:
    """Changes where parameters are added to a group, or groups added, taken away or replaced."""
    groups = [group["params"] for group in optimizer.param_groups]
    return [len(group) for group in groups], id(groups[-1][-1]) if groups and groups[-1] else 0
