"""A rank that dies while the others wait for it: they wait as long as we say, not half an hour."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from processes import verdicts
from torch import nn

from rwc_wandb import UserError, watch
from rwc_wandb.measure.distributed.ranks import Ranks


def a_rank_that_dies_when_it_has_met_the_others(_: Path) -> None:
    Ranks.start_timeout = 2.0
    meet = Ranks.meet

    def met(ranks: Ranks, name: str, value: str, timeout: float) -> None:
        meet(ranks, name, value, timeout)
        if ranks.rank == 1:
            os._exit(0)

    Ranks.meet = met  # type: ignore[method-assign]
    model = nn.Linear(3, 3)
    start = time.monotonic()
    with pytest.raises(UserError, match="watch could not connect the 2 ranks"):
        watch(model, torch.optim.SGD(model.parameters()), run=False, share=True, histogram_every=None)
    assert time.monotonic() - start < 30


def a_rank_that_is_far_ahead(_: Path, histogram_every: int | None = None) -> None:
    """The limit is for the connection: nothing waits for what other ranks bring later."""
    Ranks.start_timeout = 4.0
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters())
    monitor = watch(model, optimizer, run=False, share=True, histogram_every=histogram_every, log_every=2)
    if distributed.get_rank() == 1:
        time.sleep(6)
    for _ in range(4):
        model.weight.grad = torch.ones(3, 3)
        optimizer.step()
    monitor.close()
    assert len(monitor.history) == 4


def a_rank_that_is_far_ahead_with_histograms(folder: Path) -> None:
    a_rank_that_is_far_ahead(folder, histogram_every=1)


def test_a_rank_that_dies_before_the_ranks_are_connected(tmp_path: Path) -> None:
    case = a_rank_that_dies_when_it_has_met_the_others
    verdicts([case], 2, tmp_path, timeout=200)
    assert not (tmp_path / f"{case.__name__}.0").read_text()


@pytest.mark.parametrize("case", [a_rank_that_is_far_ahead, a_rank_that_is_far_ahead_with_histograms])
def test_the_limit_of_the_connection_is_not_that_of_the_sums(case: Callable[[Path], None], tmp_path: Path) -> None:
    (verdict,) = verdicts([case], 2, tmp_path, timeout=200).values()
    assert not verdict, verdict
