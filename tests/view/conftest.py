import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "RWC_WANDB_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def standin() -> Iterator[Any]:
    """A W&B server on loopback. Not `standin.environment` for this process: every client here has one of its own."""
    with pytest.importorskip("standin").StandIn() as server:
        yield server
