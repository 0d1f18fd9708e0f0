"""The matrices of a language model of any size, to be measured: made on the device, and without a forward pass."""

from __future__ import annotations

import re

import torch
from torch import nn

_NAME = re.compile(r"llama:([1-9]\d{0,3})x([1-9]\d{0,3})")
VOCABULARY_PER_WIDTH = 128_256 / 2048


def is_decoder(name: str) -> bool:
    """Whether it is a name that `decoder` knows."""
    return _NAME.fullmatch(name) is not None


def decoder(name: str, device: torch.device) -> nn.Module:
    """The matrices of `llama:DEPTHxWIDTH` in Llama 3.2's proportions; 16x2048 has those of its 1B, 1.24 billion.

    Per block: queries and output [W, W], keys and values [W / 4, W], gate and up [4 W, W], down [W, 4 W]; and the
    embedding [62.6 W, W], which is the head too.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    depth, width = (int(number) for number in match.groups())
    less, more = max(1, width // 4), 4 * width
    shapes = {"q": (width, width), "k": (less, width), "v": (less, width), "o": (width, width)}
    shapes |= {"gate": (more, width), "up": (more, width), "down": (width, more)}

    def matrix(rows: int, columns: int) -> nn.Module:
        return nn.Linear(columns, rows, bias=False, device=device)

    blocks = [nn.ModuleDict({part: matrix(*shape) for part, shape in shapes.items()}) for _ in range(depth)]
    vocabulary = round(VOCABULARY_PER_WIDTH * width)
    return nn.ModuleDict({"embedding": matrix(vocabulary, width), "blocks": nn.ModuleList(blocks)})
