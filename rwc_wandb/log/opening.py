"""Opening and ending a W&B run: never a prompt, never a crash, never a wait for ever."""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import wandb

from rwc_wandb.errors import UserError
from rwc_wandb.log.api import within

if TYPE_CHECKING:
    from wandb import Run

SECONDS_TO_OPEN = 30
"""What a server has to answer, before a run of ours goes offline (`WANDB_INIT_TIMEOUT` wins). The client's check of the
API key comes before it, and takes up to 10 s more."""

SECONDS_TO_FINISH = 60
"""What a server has to take the rest of a run of ours at its end (`WANDB_FINISH_TIMEOUT` wins)."""

SECONDS_TO_ANSWER = 5
"""What a server has to tell that a run of ours has ended."""

SECONDS_TO_STOP = 1.5
"""What a server has in all when the process is being stopped: a launcher that is told to end kills soon."""

SECONDS_UNWRITTEN = 1.0
"""What W&B's process has not yet written to the run's file, which is what a kill leaves to `wandb sync`. The client's
default is 15 (`WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL` wins)."""


def open_run(**options: Any) -> tuple[Run, str]:
    """`wandb.init(**options)`, online where it can be, else offline; and a line that tells where the run is.

    Settings of the environment (`WANDB_MODE`, a sweep's) win over ours.

    Raises:
        UserError: W&B refuses the settings even offline.
    """
    try:
        with _without_terminal():
            run = _init_again(options, mode=None)
        if run.settings.mode == "disabled" or run.disabled:
            return run, "W&B is disabled (WANDB_MODE=disabled): nothing is logged there."
        if not run.offline:
            return run, f"W&B run: {run.url}"
        reason = "WANDB_MODE is offline"
    # Settings that cannot be, from the environment too, are wandb.Error or pydantic's ValueError.
    except (wandb.Error, ValueError) as error:
        reason = "no API key" if isinstance(error, wandb.errors.UsageError) else _why_unopened(error)
        try:
            run = _init_again(options, mode="offline")
        except Exception as refused:
            raise UserError(f"W&B refused the run: {refused}") from refused
    return run, f"W&B is offline ({reason}); later: wandb login, then wandb sync {Path(run.dir).parent}"


def _init_again(options: dict[str, Any], mode: Any) -> Run:
    """`_init`; where W&B's process holds the id for an earlier attempt of ours, it is ended first: one that found no
    server, or a run that could not be ended on a full disk."""
    try:
        return _init(options, mode)
    except Exception as error:
        if "is in use" not in str(error):
            raise
    wandb.teardown()
    return _init(options, mode)


def _init(options: dict[str, Any], mode: Any) -> Run:
    # What W&B says about being offline is in the one line of `open_run`.
    is_offline = "offline" in (mode, os.environ.get("WANDB_MODE"))
    ours: dict[str, Any] = {
        "init_timeout": SECONDS_TO_OPEN,
        "finish_timeout": SECONDS_TO_FINISH,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": SECONDS_UNWRITTEN,
    }
    # Older clients do not know all of them.
    known = {name: value for name, value in ours.items() if name in wandb.Settings.model_fields}
    settings = {name: value for name, value in known.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.init(mode=mode, settings=wandb.Settings(quiet=True, silent=is_offline, **settings), **options)


def _why_unopened(error: Exception) -> str:
    kind = type(error).__name__
    if refusal := re.search(r"\b(401|403)\b", str(error)):
        return f"{kind}, the server refuses this API key or project with status {refusal[0]}"
    return f"{kind}, no server reached"


def finish_run(run: Run, exit_code: int | None = None, is_stopped: bool = False) -> str:
    """End a run that `open_run` has opened; a line for the case that the server did not take all of it, else "".

    Args:
        is_stopped: the process is being stopped: wait `SECONDS_TO_STOP` at most, whatever W&B's settings say, here and
            when the interpreter ends. What was not uploaded by then is in the run's folder.

    Raises:
        OSError: W&B cannot write its own files.
    """
    if not is_stopped:
        return _finish(run, exit_code)
    try:
        # The client fixes `finish_timeout` when the run is opened.
        return within(SECONDS_TO_STOP, lambda: _finish(run, exit_code))
    except TimeoutError:
        # Else W&B's exit handler would wait for its process. That process ends when it sees that ours has.
        getattr(_connection_of(run), "_cleanup", lambda: None)()
        return f"W&B has not taken all of the run before the stop; later: {_sync_of(run)}"


def _finish(run: Run, exit_code: int | None) -> str:
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        return f"W&B has not taken all of the run in time; later: {_sync_of(run)}"
    if not run.offline and not run.disabled and (refusal := _refusal(run)):
        return f"W&B's server {refusal}: what it lacks of the run comes by: {_sync_of(run)}"
    return ""


def _sync_of(run: Run) -> str:
    """The command that uploads all of the run."""
    return f"wandb sync --include-online {Path(run.dir).parent}"


def call_at_end(run: Run, action: Callable[[], None]) -> None:
    """Call `action` when `run` is about to end: by `finish`, by `wandb.teardown()`, or with the interpreter. It may be
    called more than once; `forget_end` ends that.

    W&B has no public hook for these. Its own integrations use `_teardown_hooks`, which neither a disabled run nor
    `wandb.teardown()` knows.
    """
    if run.disabled:
        for name in ("finish", "_finish"):  # `with run:` calls the second.
            setattr(run, name, _preceded(action, getattr(run, name)))
    else:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        getattr(run, "_teardown_hooks", []).append(TeardownHook(action, TeardownStage.EARLY))
        connection = _connection_of(run)
        cleanup = getattr(connection, "_cleanup", None)
        if cleanup is not None and cleanup not in _CLEANUPS:
            connection._cleanup = _preceded(_end_all, cleanup)
            _CLEANUPS.add(connection._cleanup)
        _AT_TEARDOWN.append(action)
    # Exit handlers run last in, first out: ours must run before that of W&B, which may be the younger.
    atexit.unregister(action)
    atexit.register(action)


def forget_end(action: Callable[[], None]) -> None:
    atexit.unregister(action)
    if action in _AT_TEARDOWN:
        _AT_TEARDOWN.remove(action)


def is_being_torn_down(run: Run) -> bool:
    """Whether `wandb.teardown()` is under way. The run takes rows still; `wandb.Api` would start the client anew."""
    return bool(getattr(_connection_of(run), "_torn_down", False))


_AT_TEARDOWN: list[Callable[[], None]] = []
_CLEANUPS: WeakSet[Callable[..., Any]] = WeakSet()
"""What connections to W&B's process call first when they are torn down, where it calls `_end_all`."""


def _end_all() -> None:
    for action in list(_AT_TEARDOWN):
        action()


def _connection_of(run: Run) -> Any:
    return getattr(getattr(run, "_wl", None), "_connection", None)


def _preceded(action: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*words: Any, **options: Any) -> Any:
        action()
        return function(*words, **options)

    return both


def _refusal(run: Run) -> str:
    """What the client keeps to itself: the server answers no more, or does not know that the run has ended. "" if it
    does."""
    try:
        for pause in (0, 1, 2):  # It may note the end a moment later.
            time.sleep(pause)
            if known_run(run, SECONDS_TO_ANSWER).state != "running":
                return ""
    except Exception as error:
        status = re.search(r"\b[45]\d\d\b", str(error))
        return f"refuses the run (status {status[0]})" if status else f"does not answer ({type(error).__name__})"
    return "takes the run for a running one"


def known_run(run: Run, seconds: int) -> Any:
    """`run` as the server knows it: a run of `wandb.Api`.

    Args:
        seconds: what each answer may take.

    Raises:
        Exception: of many kinds; the server does not answer, or refuses.
    """
    known = wandb.Api(timeout=seconds, api_key=run.settings.api_key).run(f"{run.entity}/{run.project}/{run.id}")
    # The client has made a folder for it.
    with suppress(OSError):
        os.removedirs(known.dir)
    return known


@contextmanager
def _without_terminal() -> Iterator[None]:
    """W&B asks for an API key only where stdin is a terminal: within this block it is not."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin
