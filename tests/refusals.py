"""What `rwc-wandb` says to input that it cannot use, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rwc_wandb.cli import main


def refusal(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr, after status 2 and with every file below the working directory as it was."""
    before = files()
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    (sentence,) = said.err.splitlines()
    assert said.out == ""
    assert files() == before
    start, sentence = sentence.split(": ", 1)
    assert start == "rwc-wandb"
    return sentence


def files() -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in Path().rglob("*")}
