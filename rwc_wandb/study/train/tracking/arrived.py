"""Which parts of a run's rows have arrived at W&B's server."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from rwc_wandb.log.api import within
from rwc_wandb.log.keys import slashed
from rwc_wandb.log.outbox import Row
from rwc_wandb.log.runs.ending import known_run

if TYPE_CHECKING:
    from wandb import Run

SECONDS_TO_TELL = 60
"""What the server has to tell which rows it has, before training begins."""
GROUPS = ("rwc/", "rwc_stage/", "hist/")


class Arrived:
    """What a run has: the numbers of its epochs, and the optimizer steps of its means and of its histograms.

    W&B's `_step` counts charts and what other processes log, and differs where a row was lost: it tells nothing here.
    """

    def __init__(self) -> None:
        self._there: dict[str, set[int]] = {"epoch": set(), "rwc": set(), "hist": set()}

    def lacking(self, row: Row) -> Row:
        """The parts of a row that are not there."""
        found = _parts(row)
        lacking: Row = {}
        for kind, part in found.items():
            if _place(kind, part) not in self._there[kind]:
                lacking |= part
        return lacking

    def add(self, row: Row) -> None:
        for kind, part in _parts(row).items():
            self._there[kind].add(_place(kind, part))

    def ask(self, run: Run, layer: str) -> None:
        """Ask W&B's server about `run`, whose rows have `layer` among their layers.

        Raises:
            Exception: it does not tell, or not within `SECONDS_TO_TELL`.
        """
        # The client itself would try again for hours.
        self._there = within(SECONDS_TO_TELL, lambda: _asked(run, layer))


def _asked(run: Run, layer: str) -> dict[str, set[int]]:
    known = known_run(run, SECONDS_TO_TELL // 3)
    # Not what an earlier look has left on this machine; older clients leave nothing.
    options = {"use_cache": False} if "use_cache" in signature(known.scan_history).parameters else {}
    # A scan gives the rows that have all its keys.
    keys = {
        "epoch": ["epoch"],
        "rwc": ["rwc/step", f"rwc/{slashed(layer)}"],
        "hist": ["rwc/step", f"hist/weight/{slashed(layer)}"],
    }
    return {kind: {int(row[asked[0]]) for row in known.scan_history(asked, **options)} for kind, asked in keys.items()}


def _parts(row: Row) -> dict[str, Row]:
    parts: dict[str, Row] = {}
    for key, value in row.items():
        if key != "rwc/step":
            kind = "epoch" if not key.startswith(GROUPS) else "hist" if key.startswith("hist/") else "rwc"
            parts.setdefault(kind, {})[key] = value
    for kind, part in parts.items():
        if kind != "epoch":
            part["rwc/step"] = row["rwc/step"]
    return parts


def _place(kind: str, part: Row) -> int:
    return int(part["epoch" if kind == "epoch" else "rwc/step"])
