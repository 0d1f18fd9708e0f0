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
    # Not above: the tests of what never needs W&B shall not, either.
    import wandb

    monkeypatch.chdir(tmp_path)
    # What wandb learnt from the environment of an earlier test, and the process that serves it, whose address is in the
    # environment: put back after this test, it would lead the processes of later tests to nobody.
    wandb.teardown()
    with StandIn() as server, mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ.update(server.environment(tmp_path))
        yield server
        # A run that a failed test left open must find a server, or the teardown would wait for one.
        server.faults.clear()
        if not server.is_listening:
            server.start()
        wandb.teardown()
    assert not server.gaps
