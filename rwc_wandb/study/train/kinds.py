"""The kinds of values that options take: in words, how they are read from text, and which of them are right."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What an option takes.

    Attributes:
        takes: it in words, to stand behind "it takes".
        parse: from the text of a command line to the value; raises ValueError.
        fits: whether a value, of whatever type, is one of these.
    """

    takes: str
    parse: Callable[[str], Any]
    fits: Callable[[Any], bool]


def whole(low: int, bits: int) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**bits

    return Kind(f"a whole number from {low} to below 2^{bits}", int, fits)


def number(takes: str, is_right: Callable[[float], bool]) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    return Kind(takes, float, lambda value: fits(value) and is_right(value))


def optional(kind: Kind, none: str = "none") -> Kind:
    """None too, which W&B's sweeps spell `None`."""

    def parse(text: str) -> Any:
        return None if text in ("None", none) else kind.parse(text)

    return Kind(f'{kind.takes}, or "{none}"', parse, lambda value: value is None or kind.fits(value))


def _boolean(text: str) -> bool:
    """W&B's sweeps pass booleans as `--compile=True`."""
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _is_pattern(value: Any) -> bool:
    try:
        return bool(isinstance(value, str) and value and re.compile(value))
    except re.error:
        return False


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= len(value) <= 128 and value.isprintable()


COUNT = whole(1, 31)
SEED = whole(0, 32)
CADENCE = Kind(
    f'"epoch" or {COUNT.takes} (optimizer steps)',
    lambda text: text if text == "epoch" else int(text),
    lambda value: value == "epoch" or COUNT.fits(value),
)
ABOVE_0 = number("a finite number above 0, such as 0.1", lambda value: value > 0)
FROM_0 = number("a finite number from 0, such as 0.0001", lambda value: value >= 0)
BELOW_1 = number("a number from 0 to below 1, such as 0.9", lambda value: 0 <= value < 1)
ACCURACY = number("a number above 0 up to 1, such as 0.94", lambda value: 0 < value <= 1)
BOOLEAN = Kind("true or false", _boolean, lambda value: isinstance(value, bool))
PRECISION = Kind("fp32 or bf16", str, lambda value: value in ("fp32", "bf16"))
LAYERS = Kind('"weights", "all" or a regular expression', str, _is_pattern)
PLACE = Kind("the path of a folder", str, lambda value: isinstance(value, str) and value != "" and "\0" not in value)
TEXT = Kind("a name", str, lambda value: isinstance(value, str))
NAME = Kind("up to 128 printable characters", str, _is_name)
PROJECT = Kind(
    r"up to 128 printable characters, none of them / \ # ? % or :",
    str,
    lambda value: _is_name(value) and not re.search(r"[/\\#?%:]", value),
)
