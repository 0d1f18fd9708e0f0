"""What options take, described once: for `watch`, for the command lines and for the grids of sweeps."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NONE = type(None)


@dataclass(frozen=True)
class Kind:
    """What an option takes.

    Attributes:
        takes: it in words, to stand behind "it takes".
        types: of which a value is one; True and False are bools here, never ints.
        is_right: whether a value of these types is allowed.
        parse: from the text of a command line to a value, which `fits` has to judge; raises ValueError.
    """

    takes: str
    types: tuple[type, ...]
    is_right: Callable[[Any], object] = lambda value: True
    parse: Callable[[str], Any] = str

    def has_type(self, value: Any) -> bool:
        return isinstance(value, self.types) and (not isinstance(value, bool) or bool in self.types)

    def fits(self, value: Any) -> bool:
        return self.has_type(value) and bool(self.is_right(value))


def whole(low: int, bits: int = 0) -> Kind:
    """A whole number from `low`, below 2^`bits` where that is given."""
    limit = f" to below 2^{bits}" if bits else ""
    is_right = (lambda value: low <= value < 2**bits) if bits else (lambda value: low <= value)
    return Kind(f"a whole number from {low}{limit}", (int,), is_right, int)


def number(takes: str, is_right: Callable[[float], object]) -> Kind:
    """A finite number; a whole one does as well."""
    return Kind(takes, (float, int), lambda value: math.isfinite(value) and is_right(value), float)


def optional(kind: Kind, none: str = "none", takes: str = "") -> Kind:
    """None too, which command lines spell `none`, and W&B's sweeps `None`."""

    def parse(text: str) -> Any:
        return None if text in ("None", none) else kind.parse(text)

    words = takes or f'{kind.takes}, or "{none}"'
    return Kind(words, (*kind.types, NONE), lambda value: value is None or kind.is_right(value), parse)


COUNT = whole(1)
SAMPLE = whole(2, 30)
_SAMPLE = optional(SAMPLE, takes="a whole number of weights from 2 to below 2^30, or None for all of them")
_LIMIT = optional(Kind("", (float, int), lambda value: value > 0), takes="a number above 0, or None for no alert")
_WATCH = {
    "every": COUNT,
    "log_every": COUNT,
    "histogram_every": optional(COUNT, takes=f"{COUNT.takes}, or None for no histograms"),
    "stages": Kind("a function from a layer's name to its stage, or None", (Callable, NONE)),  # type: ignore[arg-type]
    "prefix": Kind(
        'a word of letters, digits, "_" and "-", such as "rwc"', (str,), lambda value: re.fullmatch(r"[\w-]+", value)
    ),
    "rows": Kind('"attached" or "own"', (str,), lambda value: value in ("attached", "own")),
    "alert_above": _LIMIT,
    "alert_below": _LIMIT,
    "sample": Kind(
        f"{_SAMPLE.takes}, or a dict from regular expressions for layer names to them",
        (int, Mapping, NONE),
        lambda value: _SAMPLE.fits(value) or _is_dict_of_samples(value),
    ),
    "share": Kind("True or False", (bool,)),
}
"""Option of `watch` -> what it takes."""


def _is_dict_of_samples(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and _SAMPLE.fits(value[key]) for key in value):
        return False
    try:
        return all(re.compile(key) for key in value)
    except re.error:
        return False


def check_options(**options: Any) -> None:
    """Raises: ValueError, for an option of `watch` that cannot be used."""
    for name, value in options.items():
        if not _WATCH[name].fits(value):
            raise refused(name, value, _WATCH[name].takes)


def refused(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name}={' '.join(reprlib.repr(value).split())}: it takes {allowed}.")
