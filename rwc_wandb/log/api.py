"""Calls of W&B: what it refuses becomes one sentence, and an answer that does not come an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from rwc_wandb.errors import UserError
from rwc_wandb.threads import Worker

Result = TypeVar("Result")


def checked_name(text: str) -> str:
    """Raises: UserError, when this cannot be the name of a W&B user, team or project."""
    if not re.fullmatch(r"[\w.-]+", text):
        raise UserError(
            f"{text!r}: it takes the name of a W&B user, team or project: letters, digits, '-', '_' and '.'."
        )
    return text


def said_by_wandb(call: Callable[[], Result]) -> Result:
    """The call's result; what W&B raises becomes one sentence.

    Raises:
        UserError: no API key, no server, or a refusal.
    """
    import wandb

    try:
        return call()
    except wandb.errors.UsageError as error:
        raise UserError(
            f"W&B needs an API key: run `wandb login` or set WANDB_API_KEY ({_in_one_line(error)})"
        ) from error
    # What the client raises has no common base: wandb.Error, errors of its service process, of requests, ValueError.
    except Exception as error:
        raise UserError(f"W&B: {_in_one_line(error)}") from error


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The call's result. A thread waits for it, which is left behind when `seconds` are over. (There is no such limit
    where the interpreter starts no thread any more: see `Worker`.)

    Raises:
        TimeoutError: they are over.
        Exception: the call's own.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def act() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = Worker(act)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _in_one_line(error: Any) -> str:
    return " ".join(str(error).split())
