"""The command line itself: what a wrong word gets."""

from __future__ import annotations

import pytest

from rwc_wandb.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nope"], "nope"),
        (["train", "--seed", "x"], "--seed: invalid whole number value: 'x'"),
        (["train", "--nope"], "--nope"),
        (["view"], "RUN"),
        (["charts", "pull", "me"], "'pull'"),
        (["report"], "ENTITY/PROJECT"),
    ],
)
def test_a_wrong_word_gets_one_sentence_and_status_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("rwc-wandb: ")
    assert named in sentence


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(words) == 0
    except SystemExit as ended:
        assert ended.code == 0
    assert "rwc-wandb" in capsys.readouterr().out
