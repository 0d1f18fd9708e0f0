"""Histograms over several processes, against numpy's of the whole weights; the cases are in `histogram_cases`."""

from __future__ import annotations

import os

import pytest
from histogram_cases import IN_FOUR, IN_TWO


@pytest.mark.parametrize("case", [case.__name__ for case in IN_TWO])
def test_in_two_processes(case: str, in_two: dict[str, str]) -> None:
    assert not in_two[case], in_two[case]


@pytest.mark.skipif("RWC_SLOW" not in os.environ, reason="RWC_SLOW=1")
@pytest.mark.parametrize("case", [case.__name__ for case in IN_FOUR])
def test_in_four_processes(case: str, in_four: dict[str, str]) -> None:
    assert not in_four[case], in_four[case]
