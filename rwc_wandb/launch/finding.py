"""Finds the optimizers of a process at their first step, and the models whose weights they hold."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from rwc_wandb import Monitor, watch
from rwc_wandb.measure.steps.complete import inner_optimizer

if TYPE_CHECKING:
    from wandb import Run

    from rwc_wandb.log.runs.late_run import LateRun


def say(line: str) -> None:
    """One line on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"rwc-wandb: {line}", file=sys.stderr, flush=True)


class Finder:
    """From its creation on, every optimizer of this process is watched from its first step, until `close`.

    A failure of ours is said on stderr and leaves the training alone.

    Args:
        options: what `watch` is given besides model, optimizer, run and prefix.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._process = os.getpid()
        self._known: WeakSet[Optimizer] = WeakSet()
        self._models: WeakSet[nn.Module] = WeakSet()
        self._has_found = False
        self._late: LateRun | None = None
        self._prefixes: list[tuple[str, object]] = []
        self.monitors: list[tuple[ref[Optimizer], Monitor]] = []

        @_disable_dynamo  # a compiled step calls it, and does not look into it
        def before_step(optimizer: Optimizer, *_: object) -> None:
            self._before_step(optimizer)

        self._hook = register_optimizer_step_pre_hook(before_step)

    def close(self) -> None:
        """Flush and log what was measured; nothing is watched from here on."""
        self._hook.remove()
        if not self._has_found:
            say(
                "no optimizer of torch stepped in this process: nothing was measured. Where a library has its own "
                "(keras, fastai), call rwc_wandb.watch(model) in the script, and its measure() after each step."
            )
        for _, monitor in self.monitors:
            self._guarded("the end", monitor.close)

    def finish_own_run(self, exit_code: int) -> None:
        """End the W&B run, if it was not the script's. Its exit code is the script's."""
        if self._late is not None and self._late.is_ours:
            self._guarded("the end of the W&B run", partial(_finish, self._late.settle(), exit_code))

    def _before_step(self, optimizer: Optimizer) -> None:
        if os.getpid() != self._process:
            return
        if self._late is not None and self._late.run is None and _active_run() is not None:
            self._guarded("the run", self._late.settle)
        if optimizer not in self._known:
            self._known.add(optimizer)
            self._has_found = True
            self._guarded(type(optimizer).__name__, partial(self._watch, optimizer))

    def _guarded(self, what: str, action: Callable[[], object]) -> None:
        """Nothing that fails here may stop the script."""
        try:
            action()
        except Exception as error:
            say(f"{what} is not measured: {type(error).__name__}: {error}")

    def _watch(self, optimizer: Optimizer) -> None:
        gc.collect()
        self._close_forgotten()
        objects = gc.get_objects()
        ours = {id(monitor) for _, monitor in self.monitors}
        if any(type(one) is Monitor and not one.closed and id(one) not in ours for one in objects):
            return  # the script watches its models itself
        optimizers = [one for one in objects if issubclass(type(one), Optimizer)]
        modules = [one for one in objects if issubclass(type(one), nn.Module)]
        del objects
        self._known.update(one for one in vars(optimizer).values() if issubclass(type(one), Optimizer))
        stepping = _wrapper(optimizer, optimizers) or optimizer
        self._known.add(stepping)
        together = [stepping]
        # A wrapper may have no groups of its own.
        owned = _parameters(optimizer) or _parameters(inner_optimizer(optimizer) or optimizer)
        owners = _owners(owned, modules)
        if len(owned) == 1 and len(owners) == 1:
            # One optimizer for each parameter, to step in the backward pass: they make a step of the model together.
            siblings = self._siblings(optimizer, owners[0], optimizers)
            together += siblings
            owned.update(*map(_parameters, siblings))
            self._known.update(siblings)
        if not owners:
            say(f"{type(optimizer).__name__} is not measured: its parameters belong to no torch.nn.Module.")
        for model in owners:
            self._watch_model(model, together, owned)

    def _siblings(self, optimizer: Optimizer, model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
        """Those of the same class that have not stepped yet and step one parameter of `model` each."""
        held = {id(parameter) for parameter in model.parameters()}
        same = [one for one in optimizers if type(one) is type(optimizer) and one not in self._known]
        return [one for one in same if len(own := _parameters(one)) == 1 and own <= held]

    def _watch_model(self, model: nn.Module, optimizers: Sequence[Optimizer], owned: set[int]) -> None:
        optimizer = optimizers[0]
        name, choice, options = type(optimizer).__name__, self._options["layers"], dict(self._options)
        if choice == "weights" and not any(one.dim() > 1 and id(one) in owned for one in model.parameters()):
            say(
                f"{name} is not measured: no parameter of {_name(model)} that it steps has more than one dimension "
                "(--layers all measures the others)."
            )
            return
        if choice not in ("weights", "all"):
            options["layers"] = _Matching(choice, owned)
        run = self._run()
        prefix = self._free_prefix(model, optimizer, run)
        monitor = watch(model, optimizers, run=run, prefix=prefix, **options)
        self._prefixes.append((prefix, run))
        self._models.add(model)
        self.monitors.append((ref(optimizer), monitor))
        layers = "1 layer" if len(monitor.layers) == 1 else f"{len(monitor.layers)} layers"
        are = "is" if len(monitor.layers) == 1 else "are"
        step = f"{name} steps" if len(optimizers) == 1 else f"{len(optimizers)} {name} step"
        say(f"{layers} of {_name(model)} {are} measured as {step}: {prefix}")

    def _run(self) -> Any:
        """The script's run, or one that will be decided when the first row is due."""
        active = _active_run()
        if active is not None:
            return active
        if self._late is None or (self._late.run is not None and not self._late.is_ours):
            # Not above: wandb comes with it, and a script may have no use for it in this process.
            from rwc_wandb.log.runs.late_run import LateRun

            self._late = LateRun(say)
        return self._late

    def _free_prefix(self, model: nn.Module, optimizer: Optimizer, run: Any) -> str:
        """`rwc`; for a run's further models `rwc_MODEL`, for a model's further optimizers `rwc_OPTIMIZER`; numbered
        where that is taken."""
        taken = {prefix for prefix, other in self._prefixes if _settled(other) is _settled(run)}
        further = f"rwc_{type(optimizer).__name__ if model in self._models else _name(model)}"
        numbered = (f"{further}_{number}" for number in count(2))
        return next(prefix for prefix in chain(["rwc", further], numbered) if prefix not in taken)

    def _close_forgotten(self) -> None:
        """Close the monitors of optimizers that the script has let go: ours would keep their models in memory."""
        for optimizer, monitor in self.monitors:
            if optimizer() is None:
                monitor.close()
        self.monitors = [(optimizer, monitor) for optimizer, monitor in self.monitors if not monitor.closed]


def _finish(run: Run, exit_code: int) -> None:
    from rwc_wandb.log.runs.ending import finish_run

    if line := finish_run(run, exit_code):
        say(line)


def _active_run() -> Any:
    """`wandb.run`, without an import of wandb."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _settled(run: Any) -> Any:
    """What a `LateRun` was decided to be; runs themselves as they are."""
    return run.run if "is_ours" in vars(run) and run.run is not None else run


def _parameters(optimizer: Optimizer) -> set[int]:
    # Not the attribute: wrappers compute theirs, from parts that may not be there yet.
    groups = vars(optimizer).get("param_groups", [])
    return {id(parameter) for group in groups for parameter in group["params"]}


def _wrapper(optimizer: Optimizer, optimizers: Sequence[Optimizer]) -> Optimizer | None:
    """The optimizer that works with `optimizer` inside: timm's Lookahead, SAM.

    Accelerate's wrapper, which has no hooks, changes no weights.
    """
    for one in optimizers:
        if "_optimizer_step_post_hooks" in vars(one) and any(value is optimizer for value in vars(one).values()):
            return one
    return None


def _owners(owned: set[int], modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The outermost modules that hold the parameters with these ids; of two that hold the same, the smaller."""
    modules = [module for module in modules if "_modules" in vars(module)]
    inner = {id(child) for module in modules for child in module.children()}
    held = {}
    for module in modules:
        if id(module) not in inner:
            held[module] = {id(parameter) for parameter in module.parameters()} & owned
    owners: list[nn.Module] = []
    missing = set(owned)
    while held:
        best = max(held, key=lambda module: (len(held[module] & missing), -sum(1 for _ in module.modules())))
        if not held[best] & missing:
            break
        owners.append(best)
        missing -= held.pop(best)
    return owners


class _Matching:
    """`watch`'s choice of layers whose names match a regular expression, of an optimizer's parameters."""

    def __init__(self, pattern: str, owned: set[int]) -> None:
        self._pattern = pattern
        self._owned = owned

    def __call__(self, name: str, parameter: Tensor) -> bool:
        return id(parameter) in self._owned and re.search(self._pattern, name) is not None

    def __repr__(self) -> str:
        return repr(self._pattern)


def _name(model: nn.Module) -> str:
    """The model's class, seen through the wrappers of DDP, FSDP, torch.compile, Opacus and Lightning's Fabric."""
    for attribute in ("_forward_module", "module", "_module", "_orig_mod", "_fsdp_wrapped_module") * 2:
        inner = model._modules.get(attribute)
        model = inner if inner is not None and not list(model.parameters(recurse=False)) else model
    return type(model).__name__
