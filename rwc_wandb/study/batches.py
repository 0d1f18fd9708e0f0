"""Batches from one tensor of images: gather, crop, flip and normalise for the whole batch on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rwc_wandb.study.data import DataSet, Images


class Batches:
    """Makes normalised float32 batches from image numbers.

    Args:
        images: all images.
        data_set: says how to vary and normalise them.
        device: where batches are made; the images are kept there where they take at most half of its free memory.
        seed: of the random crops and flips; None: none are made (the test set).

    An image's crop and flip depend on seed, epoch and the image alone: neither on batch order nor on the number of
    processes.
    """

    def __init__(self, images: Images, data_set: DataSet, device: torch.device, seed: int | None) -> None:
        self.device = device
        self.seed = seed
        self.side = images.images.shape[-1]
        self.flip = data_set.flip and seed is not None
        self.padding = data_set.padding if seed is not None else 0
        # Padded once, so that a crop is part of the gather.
        pixels = functional.pad(images.images, [self.padding] * 4)
        self.home = device if _fits(pixels, device) else torch.device("cpu")
        self.pixels = pixels.to(self.home)
        self.labels = images.labels.to(device)
        self.mean = torch.tensor(data_set.mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(data_set.std, device=device).view(1, -1, 1, 1) * 255
        self._channels = torch.arange(pixels.shape[1], device=self.home).view(1, -1, 1, 1)
        self._places = torch.arange(self.side, device=self.home)

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's crop and flip of every image."""
        if self.seed is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = len(self.labels)
        corners = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        self._rows, self._columns = corners.to(self.home)
        self._mirrored = (torch.rand(count, generator=generator) < 0.5).to(self.home) if self.flip else None

    def __call__(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images (float32 [B, C, S, S]) and labels (int64 [B]) of the image `numbers` (int64 [B])."""
        at = numbers.to(self.home)
        if self.seed is None:
            pixels = self.pixels[at]
        else:
            rows = self._rows[at].view(-1, 1, 1, 1) + self._places.view(1, 1, -1, 1)
            across = self._places.expand(len(at), -1)
            if self._mirrored is not None:
                across = torch.where(self._mirrored[at].unsqueeze(1), self.side - 1 - across, across)
            columns = (self._columns[at].unsqueeze(1) + across).view(len(at), 1, 1, -1)
            pixels = self.pixels[at.view(-1, 1, 1, 1), self._channels, rows, columns]
        return (pixels.to(self.device).float() - self.mean) / self.std, self.labels[numbers.to(self.device)]


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 2
