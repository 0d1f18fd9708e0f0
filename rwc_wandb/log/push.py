"""`rwc-wandb charts push ENTITY`: register the charts in W&B, so that runs can log them by name; again after an update,
where a chart that has changed gets a name of its own."""

from __future__ import annotations

import argparse
import json
import re
from functools import partial

from rwc_wandb.errors import UserError
from rwc_wandb.log.api import checked_name, said_by_wandb
from rwc_wandb.view.charts import CHARTS, registered_name, spec


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
    for chart, shows in CHARTS.items():
        name = registered_name(chart)
        register = partial(
            api.create_custom_chart, entity, name, shows, "vega2", arguments.access, json.dumps(spec(chart))
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
