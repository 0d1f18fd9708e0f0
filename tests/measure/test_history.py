"""The series in memory and on disk."""

import json
import pickle
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from rwc_wandb import History, HistoryError
from rwc_wandb.measure.series.history import FORMAT

FUZZ = examples(100)


def filled(measurements: int = 200) -> History:
    history = History(["a", "b.c", "<script>"], ["early", "early", "later"], [4, 6, 1])
    values = np.random.default_rng(0).random((measurements, 3))
    for step in range(0, measurements, 7):
        part = values[step : step + 7]
        history.append(range(step + 1, step + 1 + len(part)), part, part * 2)
    return history


def test_append_and_grow() -> None:
    history = filled()
    expected = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    assert len(history) == 200
    assert history.steps.dtype == np.int64
    assert history.steps.tolist() == list(range(1, 201))
    assert history.rwc.dtype == np.float32
    np.testing.assert_array_equal(history.rwc, expected)
    np.testing.assert_array_equal(history.rwc_elementwise, expected * 2)


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    history = filled()
    history.append([300], np.array([[np.nan, np.inf, 0.0]]), np.zeros((1, 3)))
    history.steps_per_epoch = 12
    history.save(tmp_path / "rwc.safetensors")
    again = History.load(tmp_path / "rwc.safetensors")
    assert (again.layers, again.stages, again.sizes) == (history.layers, history.stages, history.sizes)
    assert again.steps_per_epoch == 12
    np.testing.assert_array_equal(again.steps, history.steps)
    np.testing.assert_array_equal(again.rwc, history.rwc)
    np.testing.assert_array_equal(again.rwc_elementwise, history.rwc_elementwise)
    assert [path.name for path in tmp_path.iterdir()] == ["rwc.safetensors"]


def test_the_file_is_what_the_readme_says(tmp_path: Path) -> None:
    filled().save(tmp_path / "rwc.safetensors")
    with safe_open(tmp_path / "rwc.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == ["rwc", "rwc_elementwise", "steps"]
        assert json.loads(file.metadata()["layers"]) == ["a", "b.c", "<script>"]


def test_roles_blocks_and_kinds_are_kept(tmp_path: Path) -> None:
    kept = {"roles": ["x", "y"], "blocks": [None, 3], "kinds": ["linear", "embedding"]}
    history = History(["layers.0.a", "layers.1.a"], ["s", "s"], [1, 1], **kept)
    history.save(tmp_path / "h")
    again = History.load(tmp_path / "h")
    assert {key: getattr(again, key) for key in kept} == kept
    assert {key: getattr(again.without_measurements(), key) for key in kept} == kept


def test_of_an_older_file_the_names_say_the_roles(tmp_path: Path) -> None:
    layers = ["stem", *(f"layers.{block}.{part}" for block in range(2) for part in ("q", "k"))]
    metadata = described(layers=layers, stages=["s"] * 5, sizes=[1] * 5)
    save_file(measured(layers=5), tmp_path / "h", metadata=metadata)
    history = History.load(tmp_path / "h")
    assert history.roles == ["stem", "q", "k", "q", "k"]
    assert history.blocks == [None, 0, 0, 1, 1]
    assert history.kinds == [""] * 5


def test_an_empty_history_round_trips(tmp_path: Path) -> None:
    History(["a"], ["early"], [1]).save(tmp_path / "h")
    assert History.load(tmp_path / "h").rwc.shape == (0, 1)


def test_stage_means() -> None:
    names, means = filled().stage_means(np.array([1.0, 3.0, 7.0]))
    assert names == ["early", "later"]
    assert means.tolist() == [2.0, 7.0]


def described(**changes: object) -> dict[str, str]:
    """The metadata of `filled`, changed."""
    values = {"layers": ["a", "b"], "stages": ["x", "y"], "sizes": [4, 6], "steps_per_epoch": None} | changes
    return {"format": FORMAT} | {key: json.dumps(value) for key, value in values.items() if value != "left out"}


def measured(rows: int = 3, layers: int = 2, dtype: type = np.float32) -> dict[str, np.ndarray]:
    values = np.zeros((rows, layers), dtype)
    return {"steps": np.arange(rows), "rwc": values, "rwc_elementwise": values.copy()}


@pytest.mark.parametrize(
    ("series", "metadata", "sentence"),
    [
        (measured(), None, "it lacks the format"),
        (measured(), described() | {"format": "rwc_wandb.history.0"}, "it lacks the format"),
        (measured(), described(layers="left out"), "'layers'.*cut short"),
        (measured(), described(steps_per_epoch="left out"), "'steps_per_epoch'.*cut short"),
        (measured(), described() | {"layers": "["}, "cut short"),
        (measured(), described() | {"layers": "[" * 100_000}, "cut short"),
        (measured(), described(layers="ab"), "its layers are no list of str"),
        (measured(), described(layers={"a": 1, "b": 2}), "its layers are no list of str"),
        (measured(), described(layers=[1, 2]), "its layers are no list of str"),
        (measured(), described(layers=None), "its layers are no list of str"),
        (measured(), described(stages=["x"]), "2 layers and 1 stages"),
        (measured(), described(stages=["x", 3]), "its stages are no list of str"),
        (measured(), described(sizes=[4, float("nan")]), "its sizes are no list of int"),
        (measured(), described(sizes=[4, 6, 8]), "2 layers and 3 sizes"),
        (measured(), described(steps_per_epoch=0), "its steps_per_epoch is 0"),
        (measured(), described(roles=["x"]), "2 layers and 1 roles"),
        (measured(), described(blocks=[None, "1"]), "its blocks are no list of int or None"),
        (measured(), described(kinds=[1, 2]), "its kinds are no list of str"),
        (measured(), described(steps_per_epoch=float("nan")), "its steps_per_epoch is nan"),
        (measured(), described(steps_per_epoch="12"), "its steps_per_epoch is '12'"),
        (measured(layers=3), described(), r"its rwc are float32 \(3, 3\) where its steps and layers say \(3, 2\)"),
        (measured() | {"steps": np.arange(4)}, described(), r"say \(4, 2\)"),
        (measured() | {"steps": np.zeros((3, 1), np.int64)}, described(), r"its steps are int64 \(3, 1\)"),
        (measured() | {"steps": np.array(3)}, described(), r"its steps are int64 \(\)"),
        (measured() | {"steps": np.zeros(3)}, described(), "its steps are float64"),
        (measured(dtype=np.float64), described(), "its rwc are float64"),
        ({"rwc": np.zeros((3, 2), np.float32)}, described(), "cut short"),
    ],
)
def test_files_that_are_no_history(
    series: dict[str, np.ndarray], metadata: dict[str, str] | None, sentence: str, tmp_path: Path
) -> None:
    save_file(series, tmp_path / "h", metadata=metadata)
    with pytest.raises(HistoryError, match=sentence) as refused:
        History.load(tmp_path / "h")
    assert str(tmp_path / "h") in str(refused.value)


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(HistoryError, match=r"no history file .*: name an rwc.safetensors"):
            History.load(path)
    filled().save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    contents = [whole[:length] for length in (0, 7, 100, len(whole) // 2, len(whole) - 1)]
    for content in [*contents, b"\xff" * 100, b"\0" * 100, whole + b"more", pickle.dumps({"steps": 3})]:
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(HistoryError, match=r"cut"):
            History.load(tmp_path / "cut")


@settings(max_examples=FUZZ, deadline=None, derandomize=True)
@given(st.data())
def test_bytes_that_have_been_changed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Either it is refused, or it is a history; only changes of values and of texts can go unnoticed."""
    content = bytearray(whole_file())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        history = History.load(path)
    except HistoryError:
        return
    assert history.rwc.shape == history.rwc_elementwise.shape == (len(history.steps), len(history.layers))
    assert len(history.stages) == len(history.sizes) == len(history.layers)
    assert path.stat().st_size == len(content)


@cache
def whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole"
        filled(6).save(path)
        return path.read_bytes()


def test_who_may_read_other_new_files_may_read_a_series(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    History(["a"], ["early"], [1]).save(tmp_path / "rwc.safetensors")
    assert (tmp_path / "rwc.safetensors").stat().st_mode == other.stat().st_mode
