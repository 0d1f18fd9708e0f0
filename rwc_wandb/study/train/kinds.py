"""What the options of `rwc-wandb train` take."""

from __future__ import annotations

import re

from rwc_wandb.options import Kind, number, whole


def _boolean(text: str) -> bool:
    """W&B's sweeps pass booleans as `--compile=True`."""
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _is_pattern(value: str) -> bool:
    try:
        return bool(value and re.compile(value))
    except re.error:
        return False


def _is_name(value: str) -> bool:
    return 0 < len(value.strip()) <= len(value) <= 128 and value.isprintable()


COUNT = whole(1, bits=31)
SEED = whole(0, bits=32)
CADENCE = Kind(
    f'"epoch" or {COUNT.takes} (optimizer steps)',
    (str, int),
    lambda value: value == "epoch" or COUNT.fits(value),
    lambda text: text if text == "epoch" else int(text),
)
ABOVE_0 = number("a finite number above 0, such as 0.1", lambda value: value > 0)
FROM_0 = number("a finite number from 0, such as 0.0001", lambda value: value >= 0)
BELOW_1 = number("a number from 0 to below 1, such as 0.9", lambda value: 0 <= value < 1)
ACCURACY = number("a number above 0 up to 1, such as 0.94", lambda value: 0 < value <= 1)
BOOLEAN = Kind("true or false", (bool,), parse=_boolean)
PRECISION = Kind("fp32 or bf16", (str,), lambda value: value in ("fp32", "bf16"))
LAYERS = Kind('"weights", "all" or a regular expression', (str,), _is_pattern)
FOLDER = Kind("the path of a folder", (str,), lambda value: value != "" and "\0" not in value)
TEXT = Kind("a name", (str,))
NAME = Kind("up to 128 printable characters", (str,), _is_name)
PROJECT = Kind(
    r"up to 128 printable characters, none of them / \ # ? % or :",
    (str,),
    lambda value: _is_name(value) and not re.search(r"[/\\#?%:]", value),
)
