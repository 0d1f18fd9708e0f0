"""`rwc-wandb COMMAND ...`, and `python -m rwc_wandb` the same."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rwc_wandb._version import __version__
from rwc_wandb.errors import UserError

COMMANDS = {
    "train": ("rwc_wandb.study.train.command", "train a network, measure every layer, log it to W&B"),
    "run": ("rwc_wandb.launch.command", "run a training script of yours, unchanged, and measure what it trains"),
    "sweep": ("rwc_wandb.study.sweep.command", "register sweeps at W&B, or do all their runs here"),
    "figures": ("rwc_wandb.study.paper.figures", "draw the paper's figures from runs, and its table of accuracies"),
    "claims": ("rwc_wandb.study.paper.claims", "judge what the paper claims on runs"),
    "view": ("rwc_wandb.view.command", "draw the charts of runs from their files, without W&B"),
    "charts": ("rwc_wandb.log.push", "register the custom charts in W&B"),
    "workspace": ("rwc_wandb.log.workspace", "save a W&B workspace with the charts of a project"),
    "report": ("rwc_wandb.study.paper.report", "write a W&B report of a project"),
    "bench": ("rwc_wandb.bench.command", "time a measurement beside the floor that memory sets and what others do"),
}
"""Command -> (the module with its `add_arguments(parser)` and `run(arguments)`, what it does)."""

EXTRAS = {
    "torchvision": "study",
    "timm": "study",
    "accelerate": "study",
    "sklearn": "study",
    "yaml": "study",
    "rich": "study",
    "scipy": "study",
    "vl_convert": "view",
    "wandb_workspaces": "report",
    "PIL": "study",
    "psutil": "study",
}
"""Optional library -> the extra that installs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 when it is interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return _no_command(words)
    module_name, description = COMMANDS[words[0]]
    parser = _Parser(
        prog=f"rwc-wandb {words[0]}", description=description[0].upper() + description[1:] + ".", allow_abbrev=False
    )
    try:
        module = importlib.import_module(module_name)
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(words[1:])) or 0)
    except UserError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        if words[0] == "run":  # It is the script's.
            raise
        return 130
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _refused(f"`rwc-wandb {words[0]}` needs {error.name}: pip install 'rwc_wandb[{extra}]'")


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, without the usage of thirty options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _no_command(words: list[str]) -> int:
    if words and words[0] == "--version":
        print(__version__)
        return 0
    if words and words[0] not in ("-h", "--help"):
        return _refused(f"{words[0]}: there is no such command; it takes one of {', '.join(COMMANDS)}.")
    print("usage: rwc-wandb COMMAND [OPTIONS]\n\nRelative Weight Change of every layer, in Weights & Biases.\n")
    for name, (_, description) in COMMANDS.items():
        print(f"  {name:8} {description}")
    print("\nrwc-wandb COMMAND --help lists a command's options.")
    return 0 if words else 2


def _refused(sentence: str) -> int:
    # Under a launcher every process finds the same fault: one of them says so.
    if os.environ.get("RANK", "0") == "0":
        print("rwc-wandb:", " ".join(sentence.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
