"""`rwc-wandb charts push ENTITY`: register the charts in W&B, once, so that runs can log them by name."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from rwc_wandb.errors import UserError
from rwc_wandb.view.charts import CHARTS, spec

Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["push"], help="push: register the charts in W&B")
    parser.add_argument("entity", metavar="ENTITY", help="your W&B user name or team")
    parser.add_argument(
        "--access", choices=["private", "public"], default="private", help="who may use the charts; default: private"
    )


def run(arguments: argparse.Namespace) -> None:
    """Register every chart and say how runs come to use them.

    Raises:
        UserError: W&B cannot be reached or refuses.
    """
    entity = checked_name(arguments.entity)
    import wandb

    api = said_by_wandb(wandb.Api)
    for name, shows in CHARTS.items():
        register = partial(
            api.create_custom_chart, entity, name, shows, "vega2", arguments.access, json.dumps(spec(name))
        )
        try:
            said_by_wandb(register)
        except UserError as error:
            if not re.search(r"already exist|duplicate|already taken", str(error), re.IGNORECASE):
                raise
            print(f"{entity}/{name}: registered before, left as it is")
        else:
            print(f"{entity}/{name}: registered ({arguments.access})")
    print(f"Runs log these charts where the environment has RWC_WANDB_CHARTS={entity}")


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
