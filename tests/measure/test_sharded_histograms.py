"""Histograms over several processes, against numpy's of the whole weights; the cases are in `histogram_cases`."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import torch.multiprocessing
from histogram_cases import IN_FOUR, IN_TWO, a_rank_that_is_killed


@pytest.mark.parametrize("case", [case.__name__ for case in IN_TWO])
def test_in_two_processes(case: str, in_two: dict[str, str]) -> None:
    assert not in_two[case], in_two[case]


@pytest.mark.skipif("RWC_SLOW" not in os.environ, reason="RWC_SLOW=1")
@pytest.mark.parametrize("case", [case.__name__ for case in IN_FOUR])
def test_in_four_processes(case: str, in_four: dict[str, str]) -> None:
    assert not in_four[case], in_four[case]


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    """The other goes on, without waiting for it and without monitoring: so gloo tells it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("forkserver")
    processes = [context.Process(target=a_rank_that_is_killed, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert 0 < int((tmp_path / "measured").read_text()) <= 20
