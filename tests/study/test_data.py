"""Data sets: what is loaded, how batches are varied, and what is said when something is missing."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import v2

from rwc_wandb.errors import UserError
from rwc_wandb.study.batches import Batches
from rwc_wandb.study.data import DATA_SETS, DataSet, Images, check_data_set, load_data


def test_digits_are_scikit_learn_s() -> None:
    train, test = load_data("digits", Path("unused"), 8, None, None)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == torch.uint8
    assert train.images.shape[1:] == (1, 8, 8)
    counts = test.labels.bincount()
    assert counts.min() >= 35
    ours = torch.cat([train.images, test.images]).flatten(1).sort(0).values.numpy()
    theirs = np.sort(np.rint(load_digits().data * 255 / 16).astype(np.uint8), axis=0)
    np.testing.assert_array_equal(ours, theirs)


def test_limits_and_size() -> None:
    train, test = load_data("digits", Path("unused"), 32, 10, 3)
    assert train.images.shape == (10, 1, 32, 32)
    assert test.images.shape == (3, 1, 32, 32)
    whole, _ = load_data("digits", Path("unused"), 32, None, None)
    assert torch.equal(whole.images[:10], train.images)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(folder: Path, kind: str = "FashionMNIST") -> np.ndarray:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        write_idx(folder / kind / "raw" / f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder / kind / "raw" / f"{part}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    return pixels


def test_fashion_mnist_from_files_resized_as_pillow_does(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path)
    train, test = load_data("fashion_mnist", tmp_path, 32, None, None)
    assert train.images.shape == test.images.shape == (20, 1, 32, 32)
    assert train.labels.tolist() == [number % 10 for number in range(20)]
    expected = np.asarray(Image.fromarray(pixels[3]).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(train.images[3, 0].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_missing_data_names_files_and_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    file = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}.get(
        name, "train-images-idx3-ubyte"
    )
    with pytest.raises(UserError) as refused:
        load_data(name, tmp_path, 32, None, None)
    assert file in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def write_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in classes:
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / kind / f"{number}.png")


def test_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    train, test = load_data("imagefolder", tmp_path, 16, None, None)
    assert train.images.shape == test.images.shape == (6, 3, 16, 16)
    # So that the first few, too, are of all classes.
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_no_such_data_set() -> None:
    with pytest.raises(UserError, match="--dataset svhn: it takes digits, cifar10"):
        check_data_set("svhn")


def numbered(count: int, channels: int, side: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 10)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_test_batches_are_the_images(channels: int) -> None:
    images = numbered(30, channels, 9)
    data_set = DataSet(lambda folder, side: (images, images), side=9, padding=2, flip=True, mean=(0.5,), std=(0.25,))
    pixels, labels = Batches(images, data_set, torch.device("cpu"), seed=None)(torch.tensor([7, 3]))
    torch.testing.assert_close(pixels, (images.images[[7, 3]] / 255 - 0.5) / 0.25)
    assert labels.tolist() == [7, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_and_flips_are_torchvision_s_and_even(channels: int) -> None:
    """Every training image is one of the 2 x 3 x 3 that torchvision's transforms can make, each equally often."""
    count, side, padding = 3600, 4, 1
    one = numbered(1, channels, side).images
    images = Images(one.expand(count, -1, -1, -1).contiguous(), torch.zeros(count, dtype=torch.int64))
    data_set = DataSet(lambda folder, side: (images, images), side=side, padding=padding, flip=True)
    batches = Batches(images, data_set, torch.device("cpu"), seed=3)
    batches.start_epoch(1)
    ours = (batches(torch.arange(count))[0] * 255).round().to(torch.uint8)
    padded = v2.functional.pad(one[0], [padding])
    possible = [
        v2.functional.horizontal_flip(cropped) if mirrored else cropped
        for top in range(3)
        for left in range(3)
        for cropped in [v2.functional.crop(padded, top, left, side, side)]
        for mirrored in (False, True)
    ]
    hits = torch.stack([(ours == candidate).flatten(1).all(1) for candidate in possible])
    assert (hits.sum(0) == 1).all()
    frequencies = hits.sum(1).double()
    # Chi-squared with 17 degrees of freedom: above 40.8 once in a thousand.
    assert ((frequencies - count / 18) ** 2 / (count / 18)).sum() < 40.8


def test_an_image_s_variation_depends_on_seed_epoch_and_image_only() -> None:
    images = numbered(64, 3, 8)

    def batch(seed: int, epoch: int, order: torch.Tensor) -> torch.Tensor:
        batches = Batches(images, DATA_SETS["cifar10"], torch.device("cpu"), seed=seed)
        batches.start_epoch(epoch)
        return batches(order)[0]

    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    first = batch(0, 1, torch.arange(64))
    assert torch.equal(first[order], batch(0, 1, order))
    assert torch.equal(first[:10], batch(0, 1, torch.arange(10)))
    assert not torch.equal(first, batch(0, 2, torch.arange(64)))
    assert not torch.equal(first, batch(1, 1, torch.arange(64)))
