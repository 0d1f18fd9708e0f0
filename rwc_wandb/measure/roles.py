"""Where a layer stands in a network that repeats: its role and its block, for any architecture, from the names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

ALIKE = 0.5
"""Siblings repeat each other where they share this part of the layers of the smaller one."""

_NUMBERED = re.compile(r"(.*?)_?(\d+)[a-z]?")
_RECURRENT = re.compile(r"((?:weight|bias)_(?:ih|hh|hr))_l(\d+)(_reverse)?")
"""How `torch.nn.RNNBase` names the weights of its layers."""

Members = list["_Node"]


@dataclass
class _Node:
    """A module in the tree that the layers' names span."""

    name: str = ""
    children: dict[str, _Node] = field(default_factory=dict)
    is_layer: bool = False
    mark: Literal["stage", "block", "part"] | None = None

    def layers(self) -> list[tuple[str, ...]]:
        """The ways from here to its layers."""
        if self.is_layer:
            return [()]
        return [(key, *rest) for key, child in self.children.items() for rest in child.layers()]

    def holds(self, nodes: set[int]) -> bool:
        """Whether one of `nodes`, by id, is below."""
        return any(id(child) in nodes or child.holds(nodes) for child in self.children.values())

    def alike(self) -> set[tuple[str, ...]]:
        """`layers` without the numbers of modules: what siblings can share whatever they repeat inside."""
        return {(*(_NUMBERED.sub(r"\1#", key) for key in way[:-1]), *way[-1:]) for way in self.layers()}


def roles_and_blocks(names: Sequence[str], weights: Sequence[str] | None = None) -> tuple[list[str], list[int | None]]:
    """The role and the block of each layer, from the names alone.

    Numbered siblings in the module tree (`layers.0`, `layers.1`; `layer1`, `layer2`) that hold the same layers repeat
    each other. Where what repeats is again made of little else than repeated modules, it is a stage, and these are the
    blocks. Inside a block, numbered siblings with identical layers (experts) count as one.

    Args:
        names: the layers' names in forward order.
        weights: names of all weights of the model, where `names` are a choice of them.

    Returns:
        roles: a name without its block's path: `self_attn.q_proj` of `model.layers.17.self_attn.q_proj`. Where two
            repetitions hold the same role, what tells them apart stands before it: `encoder.self_attn.q_proj`. A layer
            that does not repeat has its name as its role; where that is a role in blocks too, with `(stem)` or
            `(head)` after it.
        blocks: its place in the repetition, 0 first, counted through stages: `layer2.0` of a ResNet18 is block 2. A
            layer of a stage that is in none of its blocks belongs to the next one, or to the last. None: it does not
            repeat.
    """
    root = _Node()
    for name in weights or names:
        node = root
        for key in _way(name):
            node = node.children.setdefault(key, _Node(key))
        node.is_layer = True
    _mark_below(root, len(root.layers()))
    places = [_located(root, name) for name in names]
    blocks = _numbered_blocks(places)
    labels = _labels(places)
    roles = [
        ".".join([labels[place.repetition], place.role]).strip(".") if place.path else name
        for place, name in zip(places, names, strict=True)
    ]
    in_blocks = {role for role, block in zip(roles, blocks, strict=True) if block is not None}
    first = next((index for index, block in enumerate(blocks) if block is not None), 0)
    for index, (role, block) in enumerate(zip(roles, blocks, strict=True)):
        if block is None and role in in_blocks:
            roles[index] = f"{role} ({'stem' if index < first else 'head'})"
    return roles, blocks


def _way(name: str) -> list[str]:
    """The name's parts; layers of a recurrent module as if they were modules."""
    *modules, last = name.split(".")
    if found := _RECURRENT.fullmatch(last):
        return [*modules, f"l{found[2]}", found[1] + (found[3] or "")]
    return [*modules, last]


def _numbered_children(node: _Node) -> dict[str, Members]:
    """Stem of the name, "" for a number alone: the children that differ in the number."""
    groups: dict[str, Members] = defaultdict(list)
    for key, child in node.children.items():
        if not child.is_layer and (found := _NUMBERED.fullmatch(key)):
            groups[found[1]].append(child)
    return groups


def _repeated(members: Members) -> Members:
    """Those that repeat each other: of all sets of siblings that are like one of them, the one with most layers."""
    held = [member.alike() for member in members]

    def like(pattern: set[tuple[str, ...]]) -> Members:
        shares = [len(own & pattern) / min(len(own), len(pattern)) for own in held]
        return [member for member, share in zip(members, shares, strict=True) if share >= ALIKE]

    return max(map(like, held), key=lambda found: sum(len(member.layers()) for member in found), default=[])


def _size(members: Members) -> float:
    return median(len(member.layers()) for member in members)


def _mark_below(node: _Node, total: int) -> None:
    """Mark the repetitions below `node`, in a network of `total` layers."""
    for members in _numbered_children(node).values():
        like = _repeated(members)
        # Three times one convolution is a stem, unless the network is made of nothing else.
        whole = sum(len(member.layers()) for member in like) >= total / 2
        if (len(like) >= 2 and _size(like) >= 2) or (len(like) >= 3 and whole):
            _mark(like)
    for child in node.children.values():
        if child.mark is None and not child.is_layer:
            _mark_below(child, total)


def _mark(members: Members) -> None:
    """Mark what repeats as stages, and what repeats in them as blocks; or as blocks, where too much stands beside."""
    nested = _nested(members)
    elements = [element for group in nested for element in group]
    inside = sum(len(element.layers()) for element in elements)
    beside = sum(len(member.layers()) for member in members) - inside
    is_stage = bool(elements) and beside / len(members) < _size(elements)
    within = {id(element) for element in elements} if is_stage else set()
    for member in members:
        member.mark = "stage" if member.holds(within) else "block"
        if member.mark == "block":
            _mark_parts(member)
    for group in nested if is_stage else ():
        _mark(group)


def _nested(members: Members) -> list[Members]:
    """What repeats inside of `members`, all of them together."""
    found: dict[tuple[tuple[str, ...], str], list[Members]] = defaultdict(list)
    for member in members:
        for way, node in _inner(member, ()):
            for stem, children in _numbered_children(node).items():
                like = _repeated(children)
                if _size(like) >= 2:
                    found[way, stem].append(like)
    groups = []
    for (way, stem), lists in found.items():
        counts = [len(like) for like in lists]
        # A stage may hold a single block; if all do, the blocks must be all that they hold.
        alone = not way and len(lists) == len(members) and all(len(member.children) == 1 for member in members)
        # `branch1 .. branch4` of every block are its parts; `layer1 .. layer6`, elsewhere up to 12, are blocks.
        parts = stem and (len(set(counts)) == 1 or median(counts) < 1.5)
        if alone or (max(counts) >= 2 and not parts):
            groups.append([element for like in lists for element in like])
    return groups


def _inner(node: _Node, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    """The modules from `node` down to the first numbers."""
    yield way, node
    for key, child in node.children.items():
        if not child.is_layer and not _NUMBERED.fullmatch(key):
            yield from _inner(child, (*way, key))


def _mark_parts(node: _Node) -> None:
    for stem, members in _numbered_children(node).items():
        if not stem and len(members) >= 2 and len(members[0].layers()) >= 2:
            first = members[0].layers()
            if all(member.layers() == first for member in members):
                for member in members:
                    member.mark = "part"
    for child in node.children.values():
        if not child.is_layer:
            _mark_parts(child)


@dataclass(frozen=True)
class _Place:
    """Where a layer stands: the repetition, the way to its stage or block in it, and its role there."""

    repetition: str
    path: tuple[str, ...]
    role: str
    in_block: bool


def _located(root: _Node, name: str) -> _Place:
    node: _Node | None = root
    way, role = _way(name), list[str]()
    path: tuple[str, ...] = ()
    repetition, in_block = "", False
    for index, key in enumerate(way):
        node = node.children.get(key) if node else None
        mark = node.mark if node else None
        if mark in ("stage", "block"):
            if not path:
                repetition = ".".join([*way[:index], _NUMBERED.sub(r"\1", key)]).strip(".")
            path, role, in_block = tuple(way[: index + 1]), [], mark == "block"
        elif mark is None:
            role.append(key)
    return _Place(repetition, path, ".".join(role), in_block)


def _numbered_blocks(places: Sequence[_Place]) -> list[int | None]:
    numbers: dict[tuple[str, ...], int] = {}
    counts: Counter[str] = Counter()
    first: dict[tuple[str, ...], int] = {}
    for index, place in enumerate(places):
        if place.in_block and place.path not in numbers:
            numbers[place.path], first[place.path] = counts[place.repetition], index
            counts[place.repetition] += 1
    blocks: list[int | None] = []
    for index, place in enumerate(places):
        if place.in_block or not place.path:
            blocks.append(numbers.get(place.path))
            continue
        inside = [path for path in numbers if path[: len(place.path)] == place.path]
        later = [path for path in inside if first[path] > index]
        blocks.append(numbers[(later or inside[-1:])[0]] if inside else None)
    return blocks


def _labels(places: Sequence[_Place]) -> dict[str, str]:
    """What stands before the roles of each repetition: nothing, unless another one has the same roles."""
    roles: dict[str, set[str]] = defaultdict(set)
    for place in places:
        if place.path:
            roles[place.repetition].add(place.role)
    shared = [one for one in roles if any(other != one and roles[one] & roles[other] for other in roles)]
    ways = [one.split(".") for one in shared]
    start = next((index for index, keys in enumerate(zip(*ways, strict=False)) if len(set(keys)) > 1), 0)
    rests = [way[start:] for way in ways]
    # What all of them end in (`.layers`) says nothing.
    while all(len(rest) > 1 for rest in rests) and len({rest[-1] for rest in rests}) == 1:
        rests = [rest[:-1] for rest in rests]
    labels = dict.fromkeys(roles, "")
    return labels | {one: ".".join(rest) for one, rest in zip(shared, rests, strict=True)}
