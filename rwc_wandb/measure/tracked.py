"""Where the weights are now: models replace, resize and move them while we hold snapshots of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rwc_wandb.errors import UserError
from rwc_wandb.measure.device.group import DeviceGroup, device_groups
from rwc_wandb.measure.distributed.pieces import Piece, pieces
from rwc_wandb.measure.distributed.ranks import Ranks, finished
from rwc_wandb.measure.distributed.sharding import settle
from rwc_wandb.measure.kernels import EXACT, Statistic
from rwc_wandb.measure.kernels.sampling import Sample, key_of
from rwc_wandb.measure.layers import Layer, find_layers
from rwc_wandb.measure.series.state import Snapshot

SEED = 0
_local = operator.attrgetter("_local_tensor")
"""What `to_local` of a DTensor returns after a microsecond: too long for every layer at every step."""


class TrackedWeights:
    """The tensors behind the layers, this rank's pieces of them, and the groups that measure these.

    Attributes:
        groups: with a snapshot of every piece.
        gone: indices of the layers that have left the model.
        drawn: the number of the draw that samples are of.
        columns: how many columns of `Statistic` the groups have; the same on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        log_every: int,
        ranks: Ranks | None,
        share: bool,
        histograms: bool = False,
    ) -> None:
        self._model = model
        self._layers = layers
        self._log_every = log_every
        self._histograms = histograms
        self._ranks = ranks
        self._share = share
        self.drawn = 0
        self.columns = EXACT if all(layer.sample is None for layer in layers) else len(Statistic)
        self.gone = {index for index, layer in enumerate(layers) if not layer.path}
        self._note()
        self.groups = self._new_groups()

    def draw(self, number: int) -> None:
        """Compare other elements of the layers that are sampled, from here on: with what they are now."""
        self.drawn = number
        for group in self.groups:
            group.draw(number)

    def changed(self) -> bool:
        """Whether a weight was replaced, resized or moved since the last look; a few dictionary look-ups per layer."""
        if not self._differs():
            return False
        if self._dtensors:
            settle(self._model)
            return self._differs()
        return True

    def move(self) -> bool:
        """Measure weights where they are now, if their memory is all that has changed: `p.data = p.data - update`.

        Returns:
            Whether it was so. Else, and where weights are spread over ranks or measuring is shared: `follow`.
        """
        parameters = [layer.parameter for layer in self._layers]
        if not self._are_whole or self.gone or self._are_others() or _forms(parameters) != self._forms:
            return False
        for piece, parameter in zip(self._pieces, parameters, strict=True):
            piece.weight = parameter.detach()
        for group in self.groups:
            group.move([self._pieces[index].weight for index in group.indices])
        self._addresses = self._address_of = self._addresses_now()
        return True

    def follow(self) -> tuple[set[int], list[str]]:
        """Track what now stands in the place of the layers.

        Returns:
            The indices of the layers that have nothing to be compared with, replaced or resized, and the names of these
            and of those that have left. What was only moved keeps its snapshot.
        """
        gone = set(self.gone)
        before, samples = self.snapshots(), self._samples
        present = find_layers(self._model, lambda name, parameter: True)
        by_identity = {id(layer.parameter): layer for layer in present}
        by_name = {layer.name: layer for layer in present}
        jumped = set()
        for index, layer in enumerate(self._layers):
            found = by_identity.get(id(layer.parameter)) or by_name.get(layer.name)
            if found is None:
                layer.path = []
                self.gone.add(index)
                continue
            # A slice of memory is other elements when the memory's order changes.
            reordered = self._share and found.parameter.stride() != self._forms[index][0]
            if found.parameter is not layer.parameter or found.shape != layer.shape or reordered:
                jumped.add(index)
            self.gone.discard(index)
            layer.parameter, layer.path, layer.spread = found.parameter, found.path, found.spread
        self._note()
        self.groups = self._new_groups()
        for index, snapshot in self.snapshots().items():
            if index in jumped | self.gone:
                continue
            is_known = index in before and before[index].shape == snapshot.shape
            if is_known and samples[index] == self._samples[index]:
                snapshot.copy_(before[index])
            else:
                jumped.add(index)
        return jumped, [self._layers[index].name for index in sorted(jumped | (self.gone - gone))]

    def snapshots(self) -> dict[int, Tensor]:
        """By layer, the snapshot of this rank's piece; nothing for a piece without elements."""
        return {i: s for group in self.groups for i, s in zip(group.indices, group.snapshots, strict=True)}

    def moved(self, indices: Iterable[int]) -> set[int]:
        """Of these layers, those that stand elsewhere by now, or whose weights, on this rank, are no longer those of
        their snapshots. Looks at no other layer. Waits for the device: not for a step."""
        return {
            index
            for index in indices
            if not self._stands(index)
            or not all(_are_same(*group.pair(index)) for group in self.groups if index in group)
        }

    def _stands(self, index: int) -> bool:
        """Whether a layer's weight is where it was when it was noted. (FSDP2 shows the sharded ones while it loads.)"""
        layer = self._layers[index]
        is_there = all(mapping.get(key) is expected for mapping, key, expected in layer.path)
        return is_there and _address(layer) == self._address_of[index]

    def whole_snapshots(self) -> dict[str, Snapshot]:
        """By name, the snapshots of whole layers on the host of rank 0, {} on others. All ranks must call it."""
        mine = self.snapshots()
        found: dict[str, Snapshot] = {}
        for index, layer in enumerate(self._layers):
            sample, piece = self._samples[index], self._pieces[index]
            if self._ranks is None and sample is None:
                if index in mine:
                    found[layer.name] = mine[index].cpu().clone()
                continue
            # Every element is on one rank and 0 elsewhere: their sum is the layer.
            shape = layer.shape if sample is None else (sample.slots,)
            whole = torch.zeros(shape, dtype=torch.promote_types(layer.parameter.dtype, torch.float32), device="cpu")
            if index in mine:
                part = mine[index].cpu().to(whole.dtype)
                piece.write(whole, part) if sample is None else sample.write(whole, part, self.drawn)
            if self._ranks is not None:
                finished(self._ranks.sum(whole), self._ranks.patience())
            whole = whole.to(layer.parameter.dtype)
            if self._ranks is None or self._ranks.rank == 0:
                found[layer.name] = whole if sample is None else {"values": whole, **self._drawn_from(index)}
        return found

    def restore(self, index: int, snapshot: Snapshot) -> bool:
        """Make a whole layer's snapshot what its next measurement compares with. False: it is none of this layer, whose
        sample is another or not of the same elements."""
        sample, mine = self._samples[index], self.snapshots().get(index)
        if mine is None:
            return True
        if isinstance(snapshot, Tensor):
            if sample is not None:
                return False
            mine.copy_(self._pieces[index].part_of(snapshot).reshape(mine.shape))
            return True
        if sample is None or {key: snapshot[key] for key in ("count", "key", "order")} != self._drawn_from(index):
            return False
        mine.copy_(snapshot["values"][sample.first : sample.last])
        return True

    def _drawn_from(self, index: int) -> dict[str, Any]:
        """What tells the elements of a layer's draw, besides its number."""
        sample = self._samples[index]
        return {} if sample is None else {"count": sample.count, "key": sample.key, "order": self._pieces[index].order}

    def _new_groups(self) -> list[DeviceGroup]:
        if self._ranks is None and (sharded := [layer.name for layer in self._layers if layer.spread.is_sharded]):
            raise UserError(f"{sharded[0]} was sharded after watch: call watch when the model is wrapped.")
        rank, size = (self._ranks.rank, self._ranks.size) if self._ranks else (0, 1)
        spread = [(layer.parameter, layer.spread) for layer in self._layers]
        self._pieces: list[Piece] = pieces(spread, rank, size, self._share)
        self._samples = [self._sample(*pair) for pair in zip(self._layers, self._pieces, strict=True)]
        weights = [piece.weight for piece in self._pieces]
        groups = device_groups(weights, self._log_every, self._histograms, self._samples)
        for group in groups:
            group.draw(self.drawn)
        return groups

    def _sample(self, layer: Layer, piece: Piece) -> Sample | None:
        if layer.sample is None or layer.sample >= layer.size:
            return None
        start = piece.start() if piece.weight.numel() else 0
        return Sample(layer.size, layer.sample, key_of(SEED, layer.name), start, start + piece.weight.numel())

    def _note(self) -> None:
        edges = [edge for layer in self._layers for edge in layer.path]
        unique = {(id(mapping), key): (mapping, key, expected) for mapping, key, expected in edges}
        # In three lists: this is looked through after every step.
        self._mappings = [mapping for mapping, _, _ in unique.values()]
        self._keys = [key for _, key, _ in unique.values()]
        self._expected = [expected for _, _, expected in unique.values()]
        self._plain = [layer.parameter for layer in self._layers if not layer.spread.is_dtensor]
        self._dtensors = [layer.parameter for layer in self._layers if layer.spread.is_dtensor]
        self._addresses = self._addresses_now()
        self._address_of = [_address(layer) for layer in self._layers]
        self._forms: list[tuple[Any, ...]] = _forms([layer.parameter for layer in self._layers])
        is_spread = any(layer.spread.is_dtensor or layer.spread.flat for layer in self._layers)
        self._are_whole: bool = self._ranks is None and not is_spread

    def _addresses_now(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, chain(self._plain, map(_local, self._dtensors))))

    def _differs(self) -> bool:
        return self._addresses_now() != self._addresses or self._are_others()

    def _are_others(self) -> bool:
        """Whether the model has other parameters in the place of the layers."""
        found = map(dict.get, self._mappings, self._keys)
        return not all(map(operator.is_, found, self._expected))


def _forms(parameters: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    return [(one.stride(), one.shape, one.dtype, one.device) for one in parameters]


def _address(layer: Layer) -> int:
    return (_local(layer.parameter) if layer.spread.is_dtensor else layer.parameter).data_ptr()


def _are_same(weight: Tensor, snapshot: Tensor) -> bool:
    """Equal, NaN where the other is."""
    if torch.equal(weight, snapshot):
        return True
    return bool(((weight == snapshot) | (weight.isnan() & snapshot.isnan())).all())
