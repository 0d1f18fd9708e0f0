"""How findings speak of layers, of times and of factors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rwc_wandb.view.series import Series

MOST_NAMES = 4
"""More names than this make a list that is not read."""


def when(series: Series, index: int) -> str:
    """The time of a measurement."""
    return f"{series.clock} {series.times[index]:,g}" if series.steps_per_epoch else f"step {series.steps[index]:,}"


def listed(names: Sequence[str]) -> str:
    """`a, b, c, d and 3 more`."""
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + rest


def times(factor: float) -> str:
    """`1/60` or `12 times`."""
    return f"1/{_digits(1 / factor)}" if factor < 1 else f"{_digits(factor)} times"


def groups(series: Series, chosen: Iterable[int]) -> list[tuple[str, list[int]]]:
    """The chosen layers in as few groups as have a name of their own, each with that name.

    A group is all layers of some blocks, or the layers of one or more roles, everywhere or in some blocks; a layer that
    does not repeat is one by itself. `conv_dw of blocks 5 and 6, 8 layers`.
    """
    by_role: dict[str, list[int]] = defaultdict(list)
    for index in chosen:
        by_role[series.roles[index]].append(index)
    by_place: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for role, indices in by_role.items():
        by_place[_places(series, role, indices)].append(role)
    found = []
    for places, roles in by_place.items():
        indices = sorted(index for role in roles for index in by_role[role])
        if len(indices) == 1:
            found.append((series.layers[indices[0]], indices))
            continue
        if len(indices) == len(series.layers):
            name = "all layers"
        elif not places:
            name = _joined(roles)
        else:
            inside = [i for i, layer in enumerate(series.layers) if any(_is_below(layer, place) for place in places)]
            whole = len(roles) > 1 and indices == inside
            name = f"{'all' if whole else _joined(roles)} of {_joined_places(places)}"
        found.append((f"{name}, {len(indices)} layers", indices))
    return found


def _places(series: Series, role: str, indices: list[int]) -> tuple[str, ...]:
    """The stages or blocks in which the role's layers are all chosen; () if that is everywhere."""
    of_role = [index for index, other in enumerate(series.roles) if other == role]
    if len(indices) == len(of_role):
        # A role that is in one layer of all the network is named by the layer's place too.
        return () if len(of_role) > 1 or not series.blocks[of_role[0]].isdigit() else (_block(series, indices[0]),)
    outer = tuple(dict.fromkeys(_outer(_block(series, index)) for index in indices))
    if set(indices) == {index for index in of_role if _outer(_block(series, index)) in outer}:
        return outer
    return tuple(dict.fromkeys(_block(series, index) for index in indices))


def _block(series: Series, index: int) -> str:
    """The path of the layer's block: its name without what it shares with its role."""
    name, role = series.layers[index].split("."), series.roles[index].split(".")
    shared = 0
    while shared < min(len(name), len(role)) and name[-1 - shared] == role[-1 - shared]:
        shared += 1
    return ".".join(name[: len(name) - shared]) or series.layers[index]


def _outer(block: str) -> str:
    """A block's path down to the first number: `blocks.5` of `blocks.5.3`."""
    parts = block.split(".")
    numbered = next((place for place, part in enumerate(parts) if part[-1:].isdigit()), len(parts) - 1)
    return ".".join(parts[: numbered + 1])


def _is_below(layer: str, place: str) -> bool:
    return layer == place or layer.startswith(f"{place}.")


def _joined_places(places: Sequence[str]) -> str:
    """`blocks 5 and 6`, `layers 3 to 9`; names in full where they differ in more than the number."""
    found = [re.fullmatch(r"(?:.*\.)?(\w*[A-Za-z_]\w*)\.(\d+)", place) for place in places]
    stems = {place.rpartition(".")[0] for place in places}
    if len(places) == 1 or len(stems) > 1 or not all(found):
        return listed(places) if len(places) > MOST_NAMES else _joined(places)
    numbers = [int(match[2]) for match in found if match]
    stem = next(match[1] for match in found if match)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{stem} {numbers[0]} to {numbers[-1]}"
    return f"{stem} {_joined([str(number) for number in numbers])}"


def _joined(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMES:
        return listed(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _digits(value: float) -> str:
    if value > 1e6:
        return "more than a million"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
