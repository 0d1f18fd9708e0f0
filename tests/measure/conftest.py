"""What the cases of a module that runs in several processes (`IN_TWO`, `IN_FOUR`) have found."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import verdicts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def in_two(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    return verdicts(request.module.IN_TWO, 2, folder)


@pytest.fixture(scope="module")
def in_four(request: pytest.FixtureRequest, folder: Path, in_two: dict[str, str]) -> dict[str, str]:
    """After those of two, whose files they read."""
    return verdicts(request.module.IN_FOUR, 4, folder)
