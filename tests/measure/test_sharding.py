"""Weights over several processes, against the oracle; the cases are in `sharded_cases`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharded_cases import IN_FOUR, IN_TWO, network, resume


@pytest.mark.parametrize("case", [case.__name__ for case in IN_TWO])
def test_in_two_processes(case: str, in_two: dict[str, str]) -> None:
    assert not in_two[case], in_two[case]


@pytest.mark.parametrize("case", [case.__name__ for case in IN_FOUR])
def test_in_four_processes(case: str, in_four: dict[str, str]) -> None:
    assert not in_four[case], in_four[case]


@pytest.mark.parametrize("name", ["sharded", "shared"])
def test_two_ranks_resume_on_one(name: str, folder: Path, in_two: dict[str, str]) -> None:
    resume(network(), torch.load(folder / f"{name}.pt", weights_only=True))
