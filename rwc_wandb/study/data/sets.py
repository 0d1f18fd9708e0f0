"""The data sets, each as one uint8 tensor of images.

To add a data set, write a loader like `_digits` and add it to `DATA_SETS`.
"""

from __future__ import annotations

import contextlib
import io
import shlex
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
import torchvision
from PIL import Image, ImageOps
from PIL.Image import Resampling
from torch import Tensor
from torchvision.transforms.v2 import functional

from rwc_wandb.errors import UserError
from rwc_wandb.files import new_folders


@dataclass(frozen=True)
class Images:
    """Images (uint8 [N, C, S, S]) and their labels (int64 [N])."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """A data set and how its training images are varied.

    Attributes:
        load: from (folder, side or None for the images' own) to training and test images.
        side: the side that images are resized to by default.
        padding: random crops are taken from images padded by so many black pixels.
        flip: whether half of the training images, at random, are mirrored.
        mean, std: per channel, of pixel values from 0 to 1; what a batch is normalised with.
        classes: the number of classes; None: as many as the labels show.
    """

    load: Callable[[Path, int], tuple[Images, Images]]
    side: int
    padding: int = 0
    flip: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: int | None = None


def load_data(
    name: str, folder: Path, side: int, limit_train: int | None, limit_test: int | None
) -> tuple[Images, Images]:
    """Training and test images of the data set `name`, resized to `side` x `side`; at most the first `limit_...`.

    Raises:
        UserError: the files are missing and cannot be downloaded, or are damaged; the message names them.
    """
    train, test = DATA_SETS[name].load(folder, side)
    return _first(train, limit_train), _first(test, limit_test)


def count_classes(name: str, train: Images, test: Images) -> int:
    """Raises: UserError, when there is nothing to tell apart."""
    classes = DATA_SETS[name].classes or int(max(train.labels.max(), test.labels.max())) + 1
    if classes < 2:
        raise UserError(f"--dataset {name}: all images are of one class; it takes two or more (see --limit-train).")
    return classes


def check_data_set(name: str) -> DataSet:
    """Raises: UserError, when there is no such data set."""
    if name not in DATA_SETS:
        raise UserError(f"--dataset {shlex.quote(name)}: it takes {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]


def _first(images: Images, limit: int | None) -> Images:
    return images if limit is None else replace(images, images=images.images[:limit], labels=images.labels[:limit])


def _check_memory(count: int, channels: int, side: int) -> None:
    needed = count * channels * side * side
    if needed > psutil.virtual_memory().available:
        raise UserError(f"--image-size {side}: the images take {needed >> 30} GiB of memory, more than is free.")


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-2:] == (side, side):
        return images.contiguous()
    _check_memory(len(images), images.shape[1], side)
    # In slices: the interpolation works in float32, four times the memory.
    return torch.cat([functional.resize(part, [side, side], antialias=True) for part in images.split(4096)])


def _digits(folder: Path, side: int) -> tuple[Images, Images]:
    """scikit-learn's 1,797 real handwritten digits, 8x8, values 0-16; a fifth of each class is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    images = _resized(images, side)
    return Images(images[train], targets[train]), Images(images[test], targets[test])


def _torchvision(kind: str, where: str, files: str) -> Callable[[Path, int], tuple[Images, Images]]:
    def load(folder: Path, side: int) -> tuple[Images, Images]:
        parts = []
        try:
            for train in (True, False):
                # torchvision reports each failing mirror on stdout; the one sentence below says it all.
                with contextlib.redirect_stdout(io.StringIO()), new_folders(folder / where):
                    data = getattr(torchvision.datasets, kind)(folder, train=train, download=True)
                pixels = torch.as_tensor(data.data)
                images = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
                labels = torch.as_tensor(data.targets).long()
                if len(images) != len(labels) or not len(labels):
                    raise ValueError(f"{len(images)} images and {len(labels)} labels")
                if labels.max() >= len(data.classes):
                    raise ValueError(f"label {labels.max()} of {len(data.classes)} classes")
                parts.append(Images(_resized(images, side), labels))
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"The data set {kind} is not in {folder / where} (or is damaged) and could not be downloaded "
                f"({reason}): put {files} into {folder / where}, or name the folder above it with --data-dir."
            ) from error
        return parts[0], parts[1]

    return load


_IDX = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"


def _imagefolder(folder: Path, side: int) -> tuple[Images, Images]:
    """FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val): the largest square at the centre, resized."""
    held_out = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), folder / "test")
    for part in (folder / "train", held_out):
        if not part.is_dir():
            raise UserError(
                f"--data-dir {folder}: there is no folder {part}; it takes a folder with train/CLASS/ and test/CLASS/."
            )
    try:
        sets = [torchvision.datasets.ImageFolder(str(part)) for part in (folder / "train", held_out)]
    except FileNotFoundError as error:
        raise UserError(f"--data-dir {folder}: {error}.") from error
    if sets[0].classes != sets[1].classes:
        raise UserError(f"--data-dir {folder}: train and {held_out.name} need folders of the same names.")
    _check_memory(sum(len(one) for one in sets), 3, side)

    def read(path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                return functional.pil_to_tensor(ImageOps.fit(image.convert("RGB"), (side, side), Resampling.BILINEAR))
        # Pillow has no common base for what a damaged file leads to: OSError, SyntaxError, ValueError, struct.error.
        except Exception as error:
            raise UserError(f"The image {path} cannot be read ({error}): mend it or take it away.") from error

    parts = []
    with ThreadPoolExecutor() as pool:
        for one in sets:
            paths, labels = zip(*_in_turn(one.samples), strict=True)
            parts.append(Images(torch.stack(list(pool.map(read, paths))), torch.tensor(labels)))
    return parts[0], parts[1]


def _in_turn(samples: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The first of each class, then the second, and so on: so that the first N are of all classes."""
    seen: Counter[int] = Counter()
    ranked = []
    for path, label in samples:
        ranked.append((seen[label], label, path))
        seen[label] += 1
    return [(path, label) for _, label, path in sorted(ranked)]


_CIFAR = {"padding": 4, "flip": True, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

DATA_SETS = {
    "digits": DataSet(_digits, side=8, padding=1, classes=10),
    "cifar10": DataSet(
        _torchvision("CIFAR10", "", "cifar-10-python.tar.gz"),
        side=32,
        classes=10,
        **_CIFAR,  # type: ignore[arg-type]
    ),
    "cifar100": DataSet(
        _torchvision("CIFAR100", "", "cifar-100-python.tar.gz"),
        side=32,
        classes=100,
        **_CIFAR,  # type: ignore[arg-type]
    ),
    "mnist": DataSet(_torchvision("MNIST", "MNIST/raw", _IDX), side=32, flip=True, classes=10),
    "fashion_mnist": DataSet(_torchvision("FashionMNIST", "FashionMNIST/raw", _IDX), side=32, flip=True, classes=10),
    "imagefolder": DataSet(
        _imagefolder, side=224, padding=0, flip=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}
