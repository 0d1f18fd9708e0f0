"""Real trainings, small enough for one core: what the error of a sample is tried on. Their data need no download."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from rwc_wandb.study.data.sets import load_data
from rwc_wandb.study.models import build_model

CONTEXT, SEQUENCES = 64, 4
WIDTH, VOCABULARY = 512, 8192
WORDS = 400_000


class SmallGPT(nn.Module):
    """A GPT of two blocks on words: embedding [V, W], per block query-key-value [3 W, W], output [W, W], up [4 W, W]
    and down [W, 4 W]; and a head [V, W] of its own. Words are as rare as in any text: most rows of the embedding stand
    still in a step."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = WIDTH, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embedding(words) + self.places
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


@cache
def source_words() -> Tensor:
    """Words of Python's own library in order (int64 [400,000]); the rarest are one."""
    words: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        words += re.findall(r"\w+|[^\w\s]|\n +", path.read_text("utf-8", errors="replace"))
        if len(words) > WORDS:
            break
    numbers = {word: number for number, (word, _) in enumerate(Counter(words).most_common(VOCABULARY - 1), 1)}
    return torch.tensor([numbers.get(word, 0) for word in words[:WORDS]])


@dataclass(frozen=True)
class Training:
    """A network, its optimizer and the loss of the next batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]


def gpt(optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]) -> Training:
    torch.manual_seed(0)
    model, words = SmallGPT(), source_words()

    def loss() -> Tensor:
        starts = torch.randint(len(words) - CONTEXT - 1, (SEQUENCES, 1))
        pieces = words[starts + torch.arange(CONTEXT + 1)]
        return nn.functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())

    return Training(model, optimizer(model.parameters()), loss)


def resnet18() -> Training:
    """ResNet18 on handwritten digits, as `rwc-wandb train` without options."""
    torch.manual_seed(0)
    data, _ = load_data("digits", Path("data"), 8, None, None)
    model = build_model("resnet18", channels=1, classes=10, image_size=8)
    images, labels = data.images.float() / 255, data.labels

    def loss() -> Tensor:
        chosen = torch.randint(len(labels), (64,))
        return nn.functional.cross_entropy(model(images[chosen]), labels[chosen])

    return Training(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), loss)


TRAININGS: dict[str, Callable[[], Training]] = {
    "GPT, AdamW": lambda: gpt(lambda weights: torch.optim.AdamW(weights, lr=3e-4)),
    "GPT, SGD": lambda: gpt(lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9)),
    "ResNet18, SGD": resnet18,
}
