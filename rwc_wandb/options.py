"""What the options of `watch` take."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any

_COUNT = "a whole number from 1"
_LIMIT = "a number above 0, or None for no alert"
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "every": (_COUNT, lambda value: _is_count(value)),
    "log_every": (_COUNT, lambda value: _is_count(value)),
    "histogram_every": (f"{_COUNT}, or None for no histograms", lambda value: value is None or _is_count(value)),
    "stages": ("a function from a layer's name to its stage, or None", lambda value: value is None or callable(value)),
    "prefix": (
        'a word of letters, digits, "_" and "-", such as "rwc"',
        lambda value: isinstance(value, str) and re.fullmatch(r"[\w-]+", value) is not None,
    ),
    "rows": ('"attached" or "own"', lambda value: value in ("attached", "own")),
    "alert_above": (_LIMIT, lambda value: _is_limit(value)),
    "alert_below": (_LIMIT, lambda value: _is_limit(value)),
    "share": ("True or False", lambda value: isinstance(value, bool)),
}
"""Option of `watch` -> what it takes, in words and as a test."""


def check_options(**options: Any) -> None:
    """Raises: ValueError, for an option of `watch` that cannot be used."""
    for name, value in options.items():
        words, fits = _ALLOWED[name]
        if not fits(value):
            raise refused(name, value, words)


def refused(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name}={' '.join(reprlib.repr(value).split())}: it takes {allowed}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0)
