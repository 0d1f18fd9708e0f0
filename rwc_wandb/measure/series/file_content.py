"""The check of what a history file holds: another program may have written it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def oddity(found: dict[str, Any], series: dict[str, NDArray[Any]]) -> str:
    """What is wrong with the content of a history file; "" where it is right."""
    kinds: dict[str, tuple[type, ...]] = {"layers": (str,), "stages": (str,), "sizes": (int,)}
    kinds |= {"roles": (str,), "blocks": (int, type(None)), "kinds": (str,)}
    for key, kind in kinds.items():
        if key not in found:
            continue
        values = found[key]
        if not isinstance(values, list) or not all(type(value) in kind for value in values):
            return f"its {key} are no list of {kind[0].__name__}{' or None' if len(kind) > 1 else ''}"
        if len(values) != len(found["layers"]):
            return f"it has {len(found['layers'])} layers and {len(values)} {key}"
    per_epoch = found["steps_per_epoch"]
    if per_epoch is not None and (type(per_epoch) is not int or per_epoch < 1):
        return f"its steps_per_epoch is {per_epoch!r}"
    shape = (series["steps"].size, len(found["layers"]))
    for key, dtype, wanted in (
        ("steps", np.int64, shape[:1]),
        ("rwc", np.float32, shape),
        ("rwc_elementwise", np.float32, shape),
        ("rwc_error", np.float32, shape),
    ):
        if key == "rwc_error" and key not in series:
            continue
        if series[key].dtype != dtype or series[key].shape != wanted:
            return f"its {key} are {series[key].dtype} {series[key].shape} where its steps and layers say {wanted}"
    return ""
