"""Batches against torchvision's transforms: the same crops, flips and values, as often."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torchvision.transforms import v2

from rwc_wandb.study.data.batches import Batches
from rwc_wandb.study.data.sets import DATA_SETS, DataSet, Images

CPU = torch.device("cpu")
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def numbered(count: int, channels: int, side: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10)


def varied(side: int, padding: int, channels: int = 1) -> DataSet:
    """Random crops and flips, and a normalisation per channel."""

    def load(*_: object) -> tuple[Images, Images]:
        raise AssertionError("the images are there already")

    mean = tuple(0.4 + 0.05 * channel for channel in range(channels))
    std = tuple(0.2 + 0.01 * channel for channel in range(channels))
    return DataSet(load, side=side, padding=padding, flip=True, mean=mean, std=std)


def unvaried(pixels: Tensor, data_set: DataSet) -> Tensor:
    """The uint8 pixels of normalised ones."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data_set.mean, data_set.std))
    return ((pixels * std + mean) * 255).round().to(torch.uint8)


def all_that_torchvision_makes(image: Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """(row, column, mirrored) of each crop of RandomCrop(side, padding) and RandomHorizontalFlip, by its bytes."""
    side, padded = image.shape[-1], v2.functional.pad(image, [padding])
    found = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = v2.functional.crop(padded, row, column, side, side)
            found[crop.numpy().tobytes()] = (row, column, False)
            found[v2.functional.horizontal_flip(crop).numpy().tobytes()] = (row, column, True)
    assert len(found) == 2 * (2 * padding + 1) ** 2
    return found


def assert_uniform(drawn: Counter[tuple[int, int, bool]], cells: int) -> None:
    """Chi-squared, at the level of one in a thousand."""
    expected = drawn.total() / cells
    counts = np.array([*drawn.values()] + [0] * (cells - len(drawn)))
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, cells - 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crops_and_flips_are_torchvision_s_and_even(channels: int, layout: torch.memory_format) -> None:
    """As CIFAR's: 81 crops, mirrored or not."""
    count, side, padding = 3240, 32, 4
    one = numbered(1, channels, side).images
    images = Images(one.expand(count, -1, -1, -1).contiguous(), torch.zeros(count, dtype=torch.int64))
    data_set = varied(side, padding, channels)
    batches = Batches(images, data_set, CPU, 3, layout)
    batches.start_epoch(1)
    possible = all_that_torchvision_makes(one[0], padding)
    ours = torch.cat([unvaried(batches(numbers)[0], data_set) for numbers in torch.arange(count).split(512)])
    assert_uniform(Counter(possible[image.numpy().tobytes()] for image in ours), 162)


def test_torchvision_s_transforms_are_as_even() -> None:
    """The test above compares with what torchvision's classes do."""
    torch.manual_seed(0)
    image = numbered(1, 3, 4).images[0]
    possible = all_that_torchvision_makes(image, padding=1)
    transform = v2.Compose([v2.RandomCrop(4, padding=1), v2.RandomHorizontalFlip()])
    assert_uniform(Counter(possible[transform(image).numpy().tobytes()] for _ in range(1800)), 18)


def test_an_image_s_crops_are_even_over_epochs() -> None:
    images, data_set = numbered(2, 1, 4), varied(4, padding=1)
    possible = all_that_torchvision_makes(images.images[1], padding=1)
    batches = Batches(images, data_set, CPU, seed=0)
    drawn: Counter[tuple[int, int, bool]] = Counter()
    for epoch in range(1, 1801):
        batches.start_epoch(epoch)
        (pixels,), _ = batches(torch.tensor([1]))
        drawn[possible[unvaried(pixels, data_set).numpy().tobytes()]] += 1
    assert_uniform(drawn, 18)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_values_are_torchvision_s(channels: int, layout: torch.memory_format) -> None:
    images, data_set = numbered(30, channels, 9), varied(9, padding=2, channels=channels)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data_set.mean, data_set.std)])
    pixels, labels = Batches(images, data_set, CPU, None, layout)(torch.tensor([7, 3]))
    torch.testing.assert_close(pixels, normalise(images.images[[7, 3]]), rtol=1e-6, atol=1e-6)
    assert pixels.is_contiguous(memory_format=layout)
    assert labels.tolist() == [7, 3]


def test_an_image_s_variation_depends_on_seed_epoch_and_image_only() -> None:
    images = numbered(64, 3, 8)

    def batch(seed: int, epoch: int, order: torch.Tensor) -> torch.Tensor:
        batches = Batches(images, DATA_SETS["cifar10"], CPU, seed=seed)
        batches.start_epoch(epoch)
        return batches(order)[0]

    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    first = batch(0, 1, torch.arange(64))
    assert torch.equal(first[order], batch(0, 1, order))
    assert torch.equal(first[:10], batch(0, 1, torch.arange(10)))
    assert not torch.equal(first, batch(0, 2, torch.arange(64)))
    assert not torch.equal(first, batch(1, 1, torch.arange(64)))
