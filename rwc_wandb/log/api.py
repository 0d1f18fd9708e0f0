"""Calls of W&B's API from the command line: what it refuses becomes one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from rwc_wandb.errors import UserError

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


def _in_one_line(error: Any) -> str:
    return " ".join(str(error).split())
