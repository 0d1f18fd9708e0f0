"""Data folders that cannot be used: one sentence that names the file or folder, and nothing is written or unpickled."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from refusals import refusal
from torchvision.datasets.cifar import CIFAR10

from rwc_wandb.errors import UserError
from rwc_wandb.study.data.sets import load_data

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_image(path: Path, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(folder: Path) -> None:
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for number in range(3):
                write_image(folder / part / kind / f"{number}.png")


def cut(path: str) -> Change:
    return lambda folder: write(folder / path, (folder / path).read_bytes()[:-100])


def put(path: str, content: bytes | str) -> Change:
    return lambda folder: write(folder / path, content)


def remove(pattern: str) -> Change:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink() if path.is_file() else path.rmdir()

    return change


def bomb(folder: Path) -> None:
    """A few bytes that would unpack to 10^10 pixels."""
    write_image(folder / "train/cat/0.png")
    content = (folder / "train/cat/0.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    write(folder / "train/cat/0.png", content[:12] + header + content[29:])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (remove("test/*/*"), ["Found no valid file for the classes cat, dog"]),
        (lambda folder: (folder / "train").rename(folder / "training"), ["there is no folder photos/train"]),
        (lambda folder: (folder / "test").rename(folder / "testing"), ["there is no folder photos/test"]),
        (remove("train/dog/*"), ["photos", "Found no valid file for the classes dog"]),
        (lambda folder: write_image(folder / "train/bird/0.png"), ["train and test need folders of the same names"]),
        (put("train/cat/0.png", "a text"), ["photos/train/cat/0.png cannot be read", "mend it or take it away"]),
        (put("test/dog/2.png", ""), ["photos/test/dog/2.png cannot be read"]),
        (cut("train/dog/1.png"), ["photos/train/dog/1.png cannot be read"]),
        (put("train/cat/x.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 50), ["photos/train/cat/x.jpg cannot be read"]),
        (put("train/cat/x.tiff", b"II*\0\xff\xff\xff\x7f"), ["photos/train/cat/x.tiff cannot be read"]),
        (put("train/cat/x.webp", b"RIFF\0\0\0\0WEBPVP8 "), ["photos/train/cat/x.webp cannot be read"]),
        (bomb, ["photos/train/cat/0.png cannot be read"]),
    ],
)
def test_a_folder_of_images(change: Change, parts: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(folder / "photos")
    change(folder / "photos")
    words = ["train", "--dataset=imagefolder", "--data-dir=photos", "--image-size=16", "--model=timm:resnet10t"]
    sentence = refusal(words, capsys)
    assert all(part in sentence for part in parts), sentence


def test_one_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "test"):
        write_image(folder / "photos" / part / "cat" / "0.png")
    words = ["train", "--dataset=imagefolder", "--data-dir=photos", "--image-size=16", "--model=timm:resnet10t"]
    assert "--dataset imagefolder: all images are of one class; it takes two" in refusal(words, capsys)


def test_small_and_long_images_are_taken(folder: Path) -> None:
    write_classes(folder)
    write_image(folder / "train/cat/0.png", side=1)
    Image.new("L", (5000, 1), 200).save(folder / "train/dog/0.png")
    images = load_data("imagefolder", folder, 16, None, None)[0].images
    pixel = np.random.default_rng(1).integers(0, 256, (1, 1, 3), np.uint8)
    assert (images[0].numpy() == pixel.reshape(3, 1, 1)).all()
    assert (images[1] == 200).all()


def write_idx(folder: Path, name: str, array: np.ndarray, kind: int = 8) -> None:
    write(folder / name, struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes())


def idx(name: str, shape: tuple[int, ...], value: int = 0, kind: int = 8) -> Change:
    return lambda folder: write_idx(folder, name, np.full(shape, value, np.uint8), kind)


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "change",
    [
        remove(IMAGES), cut(IMAGES), put(IMAGES, ""), put(IMAGES, b"\0\0"), put(IMAGES, b"\xff" * 5000),
        idx(IMAGES, (20, 28)), idx(IMAGES, (19, 28, 28)), idx(IMAGES, (0, 28, 28)), idx(IMAGES, (20, 28, 28), kind=99),
        remove(LABELS), put(LABELS, "text"), idx(LABELS, (20,), value=10), idx(LABELS, (20, 1)), idx(LABELS, (19,)),
        put(IMAGES, pickle.dumps("a pickle")),
    ],
)  # fmt: skip
def test_mnist_files(change: Change, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = folder / "data/MNIST/raw"
    for part in ("train", "t10k"):
        write_idx(raw, f"{part}-images-idx3-ubyte", np.zeros((20, 28, 28), np.uint8))
        write_idx(raw, f"{part}-labels-idx1-ubyte", np.zeros(20, np.uint8))
    load_data("mnist", folder / "data", 32, None, None)
    change(raw)
    sentence = refusal(["train", "--dataset=mnist"], capsys)
    assert "MNIST is not in data/MNIST/raw (or is damaged)" in sentence
    assert f"put {IMAGES}" in sentence


class Evil:
    """Leaves a file wherever it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_tampered_pickle_is_never_unpickled(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = getattr(torchvision.datasets, name.upper())
    for file, _ in [*kind.train_list, *kind.test_list, (kind.meta["filename"], "")]:
        write(folder / "data" / kind.base_folder / file, pickle.dumps({"data": Evil(), "labels": [0]}))
    write(folder / "data" / kind.filename, "no archive")
    sentence = refusal(["train", f"--dataset={name}"], capsys)
    assert f"The data set {name.upper()} is not in data (or is damaged)" in sentence
    assert kind.filename in sentence
    assert not Path("unpickled").exists()
    # This test fails where torchvision does not check the checksums:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    with pytest.raises(UserError):
        load_data(name, folder / "data", 32, None, None)
    assert Path("unpickled").exists()
    assert issubclass(kind, CIFAR10)
