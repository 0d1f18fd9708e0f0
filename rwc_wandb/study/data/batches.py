"""Batches from one tensor of images: gather, crop, flip and normalise for the whole batch on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rwc_wandb.study.data.sets import DataSet, Images


class Batches:
    """Makes normalised float32 batches from the indices of images.

    Args:
        images: all images.
        data_set: says how to vary and normalise them.
        device: where batches are made; the images are kept there where they take at most half of its free memory.
        seed: of the random crops and flips; None: none are made (the test set).
        memory_format: of the batches, `torch.contiguous_format` or `torch.channels_last`.

    An image's crop and flip depend on seed, epoch and the image alone: neither on batch order nor on the number of
    processes.
    """

    def __init__(
        self,
        images: Images,
        data_set: DataSet,
        device: torch.device,
        seed: int | None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.device = device
        self.seed = seed
        self.flip = data_set.flip and seed is not None
        self.padding = data_set.padding if seed is not None else 0
        # Padded once, so that the crop is part of the gather.
        pixels = functional.pad(images.images, [self.padding] * 4)
        self.home = device if _fits(pixels, device) else torch.device("cpu")
        pixels = pixels.to(self.home)
        side = pixels.shape[-1] - 2 * self.padding
        # Views of the same memory that have every crop: [N, top row, left column, and the axes of an image].
        if memory_format == torch.channels_last:
            pixels = pixels.permute(0, 2, 3, 1).contiguous()
            self._crops = pixels.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)
            self._axes, self._across = (0, 3, 1, 2), 2
        else:
            self._crops = pixels.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
            self._axes, self._across = (0, 1, 2, 3), 3
        self.labels = images.labels.to(device)
        self.mean = torch.tensor(data_set.mean, device=device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(data_set.std, device=device).view(1, -1, 1, 1) * 255
        # Of every image: the crop's top row, its left column, and 1 where it is mirrored.
        self._drawn = torch.zeros(3, len(images), dtype=torch.int64, device=self.home)

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's crop and flip of every image."""
        if self.seed is None:
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = len(self.labels)
        corners = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.rand(1, count, generator=generator) < 0.5
        self._drawn = torch.cat([corners, mirrored.long()]).to(self.home)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (float32 [B, C, S, S]) and labels (int64 [B]) of the images at `indices` (int64 [B]).

        `indices` are on the CPU or where the images are; copies from there or from pinned memory wait for no GPU.
        """
        at = indices.to(self.home, non_blocking=True)
        rows, columns, mirrored = self._drawn[:, at]
        pixels = self._crops[at, rows, columns]
        if self.flip:
            pixels = torch.where(mirrored.bool().view(-1, 1, 1, 1), pixels.flip(self._across), pixels)
        if self.home != self.device:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        normalised = (pixels.permute(self._axes) - self.mean) / self.std
        return normalised, self.labels[indices.to(self.device, non_blocking=True)]


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return pixels.numel() <= torch.cuda.mem_get_info(device)[0] // 2
