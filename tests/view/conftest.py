import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the address of wandb's own process, which may be another one when it would be put back.
    for name in os.environ.keys() - {"WANDB_SERVICE"}:
        if name.startswith(("WANDB_", "RWC_WANDB_")):
            monkeypatch.delenv(name)
