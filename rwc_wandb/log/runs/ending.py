"""Ending a W&B run: what is done before it, what it may take, and what W&B's server lacks of it afterwards."""

from __future__ import annotations

import atexit
import json
import os
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import wandb

from rwc_wandb.log.api import within

if TYPE_CHECKING:
    from wandb import Run

SECONDS_TO_FINISH = 60
"""What a server has to take the rest of a run of ours at its end (`WANDB_FINISH_TIMEOUT` wins)."""

SECONDS_TO_ANSWER = 5
"""What a server has to tell that a run of ours has ended."""

SECONDS_TO_STOP = 1.5
"""What a server has in all when the process is being stopped: a launcher that is told to end kills soon."""


def finish_run(run: Run, exit_code: int | None = None, is_stopped: bool = False) -> str:
    """End a run that `open_run` has opened; a line for the case that the server did not take all of it, else "".

    Args:
        is_stopped: the process is being stopped: wait `SECONDS_TO_STOP` at most, whatever W&B's settings say, here and
            when the interpreter ends. What was not uploaded by then is in the run's folder.

    Raises:
        OSError: W&B cannot write its own files.
    """
    if run in _UNTOLD:
        _UNTOLD.remove(run)
    if is_stopped:
        # The client fixes `finish_timeout` when the run is opened.
        seconds, when = SECONDS_TO_STOP, "before the stop"
    elif hasattr(run.settings, "finish_timeout"):
        return _finish(run, exit_code)
    else:
        # wandb before 0.27 waits until all is uploaded.
        seconds, when = float(os.environ.get("WANDB_FINISH_TIMEOUT", SECONDS_TO_FINISH)), "in time"
    try:
        return within(seconds, lambda: _finish(run, exit_code))
    except TimeoutError:
        # Else W&B's exit handler would wait for its process. That process ends when it sees that ours has.
        getattr(_connection_of(run), "_cleanup", lambda: None)()
        return f"W&B has not taken all of the run {when}; later: {_sync_of(run)}"


def _finish(run: Run, exit_code: int | None) -> str:
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        return f"W&B has not taken all of the run in time; later: {_sync_of(run)}"
    if not run.offline and not run.disabled and (reason := _untaken(run) or _refusal(run)):
        return _lack(run, reason)
    return ""


def _lack(run: Run, reason: str) -> str:
    return f"{reason}: what W&B lacks of the run comes by: {_sync_of(run)}"


def _sync_of(run: Run) -> str:
    """The command that uploads all of the run."""
    return f"wandb sync --include-online {Path(run.dir).parent}"


def call_at_end(run: Run, action: Callable[[], None]) -> None:
    """Call `action` when `run` is about to end: by `finish`, by `wandb.teardown()`, or with the interpreter. It may be
    called more than once; `forget_end` ends that. After the end a warning says what W&B lacks, if `finish_run` did not.

    W&B has no public hook for these. Its own integrations use `_teardown_hooks`, which neither a disabled run nor
    `wandb.teardown()` knows.
    """
    if run.disabled:
        for name in ("finish", "_finish"):  # `with run:` calls the second.
            setattr(run, name, _preceded(action, getattr(run, name)))
    else:
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        early, late = TeardownStage.EARLY, TeardownStage.LATE
        hooks = [TeardownHook(action, early), TeardownHook(partial(_say_untaken, run), late)]
        getattr(run, "_teardown_hooks", []).extend(hooks)
        _attend(_connection_of(run))
        _AT_TEARDOWN.append(action)
        _UNTOLD.append(run)
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
_UNTOLD: list[Run] = []
"""Runs of which it was not said what W&B lacks."""
_ATTENDED: WeakSet[Any] = WeakSet()
"""Connections to W&B's process that tell us of their end."""


def _attend(connection: Any) -> None:
    """Have the connection call `_end_all` before its teardown, and say after it what W&B lacks."""
    cleanup, teardown = getattr(connection, "_cleanup", None), getattr(connection, "teardown", None)
    if cleanup is None or teardown is None or connection in _ATTENDED:
        return
    _ATTENDED.add(connection)

    def teardown_and_say(*words: Any, **options: Any) -> Any:
        result = teardown(*words, **options)
        for run in list(_UNTOLD):
            _say_untaken(run)
        return result

    connection._cleanup, connection.teardown = _preceded(_end_all, cleanup), teardown_and_say


def _end_all() -> None:
    for action in list(_AT_TEARDOWN):
        action()


def _say_untaken(run: Run) -> None:
    if run in _UNTOLD:
        _UNTOLD.remove(run)
        if reason := _untaken(run):
            warnings.warn(f"rwc_wandb: {_lack(run, reason)}", stacklevel=2)


def _connection_of(run: Run) -> Any:
    return getattr(getattr(run, "_wl", None), "_connection", None)


def _preceded(action: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*words: Any, **options: Any) -> Any:
        action()
        return function(*words, **options)

    return both


def _untaken(run: Run) -> str:
    """Why W&B's server lacks a part of a run that has ended, by what W&B's client has noted; "" if that is nothing.

    It prints no cause of a refusal, and nothing of a proxy's page, which has status 200, though what it sent is lost.
    """
    errors: list[str] = []
    with suppress(OSError, ValueError, KeyError, TypeError), open(run.settings.log_internal, "rb") as file:
        errors += [json.loads(line)["msg"] for line in file if b'"ERROR' in line]
    # Cancelled is what had no time left: W&B says so itself.
    ours = [error for error in errors if error.startswith(("filestream:", "runfiles:")) and "cancel" not in error]
    if run.offline or not ours:
        return ""
    if status := re.search(r"(?:upload:|error|HTTP) ([45]\d\d)\b", ours[0]):
        return f"W&B's server refuses the run (status {status[1]})"
    if "invalid character" in ours[0]:
        return "Something between here and W&B's server, a proxy perhaps, has answered in its place"
    return f"W&B's client has given up sending ({ours[0][:100].strip()})"


def _refusal(run: Run) -> str:
    """What W&B's server says of the end of a run: it answers no more, or does not know of it. "" if it does."""
    try:
        for pause in (0, 1, 2):  # It may note the end a moment later.
            time.sleep(pause)
            if known_run(run, SECONDS_TO_ANSWER).state != "running":
                return ""
    except Exception as error:
        status = re.search(r"\b[45]\d\d\b", str(error))
        reason = f"refuses the run (status {status[0]})" if status else f"does not answer ({type(error).__name__})"
        return f"W&B's server {reason}"
    return "W&B's server takes the run for a running one"


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
