"""Fixtures of more than one room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from standin import StandIn


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in for W&B that the client of this process, and of those that it starts, takes for W&B itself.

    The working directory is `tmp_path`, and so is the place of the client's files.
    """
    monkeypatch.chdir(tmp_path)
    # Forget what wandb read from the environment in an earlier test, and end the process that serves it. That process's
    # address is in the environment: put back after this test, it would lead later tests to a process that is gone.
    forget_wandb()
    with StandIn() as server, mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ.update(server.environment(tmp_path))
        yield server
        # A failed test may have left a run open: without a server the teardown would wait for one.
        server.faults.clear()
        if not server.is_listening:
            server.start()
        forget_wandb()
    assert not server.gaps


def forget_wandb() -> None:
    """End W&B's process, and forget the run of an earlier test."""
    # Imported here, so that tests that need no W&B do not import it.
    import wandb
    from wandb.sdk.lib import console_capture, module

    wandb.teardown()
    # Runs that are disabled, or whose process is gone, are still active now: the next test would log to them.
    module.unset_globals()
    # A run that a teardown has ended still takes what is printed, and writes an error to the log of the next test's run
    # for each line.
    console_capture._stdout_callbacks.clear()
    console_capture._stderr_callbacks.clear()
