"""In a notebook a monitor and a history show themselves, and a history becomes a data frame."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vl_convert
from histories import made_up, transformer
from PIL import Image
from torch import nn

import rwc_wandb
from rwc_wandb.measure.series.history import History

VEGA_LITE = "application/vnd.vegalite.v5+json"


def test_a_history_shows_its_heat_map_as_vega_lite_5_and_as_a_picture() -> None:
    history = made_up(layers=6, measurements=20)
    bundle = history._repr_mimebundle_()
    assert set(bundle) == {"text/plain", VEGA_LITE, "image/png"}
    assert bundle["text/plain"] == "History(6 layers, 20 measurements, steps 10 to 200)"
    described = bundle[VEGA_LITE]
    assert described["$schema"] == "https://vega.github.io/schema/vega-lite/v5.json"
    values = np.array([row["rwc"] for row in described["data"]["values"]], np.float32).reshape(20, 6)
    np.testing.assert_array_equal(values, history.rwc)
    # What JupyterLab 4 bundles.
    drawing = vl_convert.vegalite_to_svg(described, vl_version="5.20")
    assert all(f">{layer}<" in drawing for layer in history.layers)
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.width > 860


def test_a_long_history_is_thinned_for_the_notebook_file() -> None:
    rows = made_up(layers=161, measurements=150)._repr_mimebundle_()[VEGA_LITE]["data"]["values"]
    assert 3_500 < len(rows) <= 4_000
    assert rows[-1]["time"] == 1500


def test_a_monitor_shows_its_history_while_it_measures() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rwc_wandb.watch(model, optimizer, run=False) as monitor:
        assert monitor._repr_mimebundle_() == {"text/plain": "Monitor(layers: 1, step: 0, measurements: 0, open)"}
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    bundle = monitor._repr_mimebundle_()
    assert bundle["text/plain"] == "Monitor(layers: 1, step: 1, measurements: 1, closed)"
    (row,) = bundle[VEGA_LITE]["data"]["values"]
    assert (row["layer"], row["time"], row["rwc"]) == ("weight", 1, pytest.approx(float(monitor.history.rwc[0, 0])))


def test_without_vl_convert_there_is_no_picture_and_still_the_chart() -> None:
    code = """import sys; sys.modules["vl_convert"] = None
from histories import made_up
print(sorted(made_up()._repr_mimebundle_()))"""
    here = Path(__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    assert said.stdout.strip() == f"{[VEGA_LITE, 'text/plain']}"


def test_with_pandas_a_history_becomes_a_long_data_frame() -> None:
    pytest.importorskip("pandas")
    history = made_up(layers=6, measurements=20)
    history.rwc[3, 1] = np.nan
    frame = history.to_pandas()
    assert list(frame.columns) == ["step", "layer", "role", "block", "stage", "rwc", "rwc_elementwise"]
    assert len(frame) == 120
    np.testing.assert_array_equal(frame["rwc"].to_numpy().reshape(20, 6), history.rwc)
    np.testing.assert_array_equal(frame["step"].to_numpy().reshape(20, 6)[:, 0], history.steps)
    one = frame[frame.layer == history.layers[4]]
    np.testing.assert_array_equal(one.rwc_elementwise, history.rwc_elementwise[:, 4])
    assert set(one.stage) == {history.stages[4]}
    repeated = transformer(blocks=2, measurements=3).to_pandas()
    assert repeated.role[:4].tolist() == ["embed", "attention.query", "attention.value", "mlp"]
    assert repeated.block[1:7].tolist() == [0, 0, 0, 1, 1, 1]
    assert repeated.block[[0, 7]].isna().all()
    assert len(History(["a"], ["early"], [1]).to_pandas()) == 0


def test_without_pandas_one_sentence_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pandas.*history\.rwc are NumPy arrays\.$"):
        made_up().to_pandas()
