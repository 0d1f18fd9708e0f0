"""How many examples a test draws: few by default; RWC_FUZZ=20 draws 20 times as many."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("RWC_FUZZ", "1"))


def examples(usual: int) -> int:
    return max(1, round(usual * FACTOR))
