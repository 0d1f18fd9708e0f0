import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "RWC_WANDB_"))]:
        monkeypatch.delenv(name)
