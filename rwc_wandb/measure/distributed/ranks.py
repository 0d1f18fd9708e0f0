"""What the ranks do together: agree that all are here, and add up their sums. Training's own groups are never used."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import torch.distributed as distributed
from torch import Tensor

from rwc_wandb.errors import UserError

if TYPE_CHECKING:
    from rwc_wandb.measure.layers import Layer

_groups = count()

REDUCTION_TIMEOUT = timedelta(minutes=30)
"""torch's own: a rank may be that far ahead of one that evaluates, and nothing waits for what they add up meanwhile."""


def current_rank() -> int:
    """The process's rank; from the launcher's environment where the process group is not there yet."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of ranks; from the launcher's environment where the process group is not there yet."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(layers: Sequence[Layer], share: bool, every: int, log_every: int, histogram_every: int | None) -> Ranks:
    """Meet the other ranks, who must have the same layers and options.

    Raises:
        UserError: there is no process group; or as in `Ranks`.
    """
    if not distributed.is_initialized():
        raise UserError("share=True needs the ranks' process group: call watch after init_process_group.")
    plan = repr([(layer.name, layer.shape, layer.sample) for layer in layers])
    digest = hashlib.sha256(plan.encode()).hexdigest()[:8]
    cadence = f"every={every}, log_every={log_every}, histogram_every={histogram_every}"
    return Ranks(f"{len(layers)} layers ({digest}), share={share}, {cadence}")


class Ranks:
    """The ranks of the default process group, where all of them measure.

    Args:
        plan: what all must agree on: layers and cadence.

    Raises:
        UserError: not every rank came here within `start_timeout` seconds, their plans differ, or they could not be
            connected within as long again, since one has died.
    """

    start_timeout = 60.0
    """Seconds that `watch` and `load_state_dict` wait for the other ranks."""
    close_timeout = 20.0
    """Seconds that `flush`, `close` and `state_dict` wait; no longer, so that a failed rank holds up no other."""
    failed_timeout = 2.0
    """The same on a rank that an exception ends: the launcher and the other ranks learn of it when its process ends."""

    def __init__(self, plan: str) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        # A collective that one rank misses blocks the others, and a thread of theirs for long: ask the store first.
        self._store = distributed.distributed_c10d._get_default_store()
        self._prefix = f"rwc_wandb/{next(_groups)}"
        self._meetings = count()
        self.meet("watch", plan, self.start_timeout)
        # On the host: NCCL must not see collectives in an order that depends on when a copy arrived. All have just met
        # and connect at once, unless one has died since.
        try:
            self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=self.start_timeout))
        except RuntimeError as error:
            raise UserError(f"watch could not connect the {self.size} ranks: one may have ended ({error}).") from error

    def patience(self) -> float:
        """Seconds to wait for the other ranks from here on."""
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        return self.close_timeout if error is None or isinstance(error, SystemExit) else self.failed_timeout

    def meet(self, name: str, value: str, timeout: float) -> None:
        """Wait until every rank is here with the same `value`.

        Raises:
            UserError: some did not come within `timeout` seconds, or brought another value.
        """
        try:
            self._meet(name, value, timeout)
        except distributed.DistError as error:
            raise UserError(f"{name} finds that the process that joins the ranks has ended ({error}).") from error

    def _meet(self, name: str, value: str, timeout: float) -> None:
        meeting = f"{self._prefix}/{next(self._meetings)}"
        deadline = time.monotonic() + timeout
        self._store.set(f"{meeting}/here/{self.rank}", f"{name} {value}")
        self._wait_for(f"{meeting}/here", name, deadline, timeout)
        # A rank that timed out has left its key behind, and a later rank would find it: a second round tells.
        self._store.set(f"{meeting}/ready/{self.rank}", "")
        self._wait_for(f"{meeting}/ready", name, deadline + timeout / 10, timeout)
        others = [self._store.get(f"{meeting}/here/{rank}").decode() for rank in range(self.size)]
        for rank, other in enumerate(others):
            if other != f"{name} {value}":
                raise UserError(
                    f"The ranks do not agree: rank {self.rank} has {_short(f'{name} {value}')}, rank {rank} has "
                    f"{_short(other)}; call it on every rank at the same place, with the same arguments."
                )

    def sum(self, tensor: Tensor) -> Any:
        """Start replacing a CPU tensor by its sum over all ranks; the work says when it is done."""
        return self._reduced(tensor, distributed.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Any:
        """As `sum`, by its largest values."""
        return self._reduced(tensor, distributed.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, operation: Any) -> Any:
        options = distributed.AllreduceOptions()
        # Its own: the group's is that of the connection.
        options.reduceOp, options.timeout = operation, REDUCTION_TIMEOUT
        return self._group.allreduce([tensor], options)

    def leave(self) -> None:
        """Tell the others not to wait for this rank."""
        self._store.set(f"{self._prefix}/left", str(self.rank))

    def _wait_for(self, key: str, name: str, deadline: float, timeout: float) -> None:
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        pause = 0.001
        # Not `wait`: it would keep others of this process, NCCL's watchdog for one, from the store meanwhile.
        while not self._store.check(keys):
            if self._store.check([f"{self._prefix}/left"]):
                left = self._store.get(f"{self._prefix}/left").decode()
                raise UserError(f"{name} finds that rank {left} has stopped measuring: see what it said.")
            if time.monotonic() > deadline:
                self.leave()
                missing = [str(rank) for rank, one in enumerate(keys) if not self._store.check([one])]
                raise UserError(
                    f"{name} was not called on rank {', '.join(missing)} within {timeout:g} s: where weights are "
                    f"sharded or measuring is shared, call it on all {self.size} ranks."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.2)


def finished(work: Any, timeout: float | None) -> bool:
    """Whether a sum or maximum is there; with a time-out, wait for it and raise RuntimeError when it does not come."""
    deadline = time.monotonic() + (timeout or 0)
    while not work.is_completed():
        if timeout is None:
            return False
        if time.monotonic() > deadline:
            raise RuntimeError(f"the other ranks' part of the sums did not come within {timeout:g} s")
        time.sleep(0.0005)
    work.wait()
    return True


def _short(text: str) -> str:
    return text if len(text) < 160 else text[:150] + " ..."
