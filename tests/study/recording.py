"""Runs `rwc-wandb ARGUMENTS...` and, as an outsider would, saves the weights before training and after every epoch.

python tests/study/recording.py FOLDER train --epochs 2 ...
"""

import sys
from pathlib import Path
from typing import Any

import torch

from rwc_wandb import cli
from rwc_wandb.study.train import loop
from rwc_wandb.study.train.learner import Learner


def main(folder: Path, words: list[str]) -> int:
    saved = 0

    def save(learner: Learner) -> None:
        nonlocal saved
        if learner.accelerator.is_main_process:
            torch.save(learner.accelerator.unwrap_model(learner.model).state_dict(), folder / f"{saved}.pt")
        saved += 1

    build, evaluate = loop.build, loop.evaluate

    def recording_build(*arguments: Any) -> Learner:
        learner = build(*arguments)
        save(learner)
        return learner

    def recording_evaluate(learner: Learner, *words: Any) -> dict[str, float] | None:
        save(learner)
        return evaluate(learner, *words)

    loop.build, loop.evaluate = recording_build, recording_evaluate
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
