import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    # The address of wandb's own process stays: another process may serve it by the time that it would be put back.
    for name in os.environ.keys() - {"WANDB_SERVICE"}:
        if name.startswith(("WANDB_", "RWC_WANDB_")):
            monkeypatch.delenv(name)
