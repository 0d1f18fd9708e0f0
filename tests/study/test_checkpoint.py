"""Checkpoints: what is damaged is recognised, whatever the damage, and the one before is used."""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rwc_wandb.study.train.checkpoint import Checkpoints


@pytest.mark.parametrize("damage", ["cut short", "other bytes", "not ours"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {"weights": torch.full((1000,), float(step))})
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step-0000000002.pt", "step-0000000003.pt"]
    content = bytearray(paths[-1].read_bytes())
    middle = content.index(torch.full((1000,), 3.0).numpy().tobytes())
    content[middle] ^= 1
    torch.save({"weights": Path("/")}, tmp_path / "foreign")
    paths[-1].write_bytes(
        {"cut short": content[:1000], "other bytes": content, "not ours": (tmp_path / "foreign").read_bytes()}[damage]
    )
    with pytest.warns(UserWarning, match="the one before is used"):
        state = checkpoints.latest()
    assert state is not None
    assert state["weights"][0] == 2


def test_a_full_disk_is_said_once_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.warns(UserWarning, match="No space left on device.*training goes on"):
            checkpoints.save(2, {"step": 2})
        checkpoints.save(3, {"step": 3})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000000001.pt"]
    assert checkpoints.latest() == {"step": 1}


def test_damaged_ones_do_not_push_out_new_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (100, 200):
        checkpoints.save(step, {"step": step})
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert checkpoints.latest() is None
    checkpoints.save(1, {"step": 1})
    assert checkpoints.latest() == {"step": 1}
    checkpoints.remove()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.data())
def test_bytes_that_have_been_changed(data: st.DataObject) -> None:
    content = bytearray(saved(2))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name) / "checkpoints"
        folder.mkdir()
        (folder / "step-0000000001.pt").write_bytes(saved(1))
        (folder / "step-0000000002.pt").write_bytes(content)
        state = Checkpoints(Path(name)).latest()
    # Some bytes have no meaning, such as the times in the archive.
    assert state is not None
    assert state["weights"].tolist() == [float(state["step"])] * 100
    assert state["step"] in (1, 2)


@cache
def saved(step: int) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        Checkpoints(Path(name)).save(step, {"step": step, "weights": torch.full((100,), float(step))})
        return (Path(name) / "checkpoints" / f"step-{step:010}.pt").read_bytes()
