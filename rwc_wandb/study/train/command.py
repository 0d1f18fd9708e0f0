"""`rwc-wandb train`."""

from __future__ import annotations

import argparse

from rwc_wandb.study.train import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with this run from its last checkpoint, if it was started before"
    )


def run(arguments: argparse.Namespace) -> int:
    configuration = config.from_arguments(arguments)
    from rwc_wandb.study.train.loop import train

    return train(configuration, arguments.resume)
