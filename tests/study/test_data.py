"""Data sets: what is loaded, and what is said when something is missing."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rwc_wandb.errors import UserError
from rwc_wandb.study.data.sets import check_data_set, load_data


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
    # The first few images, too, are of all classes.
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_no_such_data_set() -> None:
    with pytest.raises(UserError, match="--dataset svhn: it takes digits, cifar10"):
        check_data_set("svhn")
