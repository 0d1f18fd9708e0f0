"""`rwc-wandb train`."""

from __future__ import annotations

import argparse

from rwc_wandb.study import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    configuration = config.from_arguments(arguments)
    from rwc_wandb.study.train import train

    train(configuration)
