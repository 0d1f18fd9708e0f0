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


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command} " in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: rwc-wandb {command}" in capsys.readouterr().out
