"""The examples in the docstrings of what is public: each runs, and gives what it says."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest

import rwc_wandb

WITH_EXAMPLES = [
    "History",
    "elementwise_relative_weight_change",
    "find_layers",
    "relative_weight_change",
    "watch",
]


def results(name: str) -> doctest.TestResults:
    """Run the examples of a public name, as a reader would: nothing but that name is imported yet."""
    public = getattr(rwc_wandb, name)
    source = sys.modules[public.__module__]
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(recurse=False).find(public, name, module=source, globs={name: public}):
        runner.run(test)
    return doctest.TestResults(runner.failures, runner.tries)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = results(name)
    assert tried > 0
    assert failed == 0


def test_an_example_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    public = rwc_wandb.relative_weight_change
    monkeypatch.setattr(public, "__doc__", (public.__doc__ or "").replace("0.25\n", "0.26\n"))
    assert results("relative_weight_change").failed == 1
