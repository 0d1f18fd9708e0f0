"""Files that stand alone: the page, the pictures."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, visit
from histories import filled_with, made_up, transformer
from PIL import Image

from rwc_wandb.errors import UserError
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.charts import CHARTS, charts
from rwc_wandb.view.render import concrete, png, svg, write_pictures
from rwc_wandb.view.series import series

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "</script><script>document.title='hacked'</script>",
    "<img src=http://elsewhere.example/x onerror=\"document.title='hacked'\">",
]


def renamed(history: History, names: list[str]) -> History:
    history.layers[: len(names)] = names
    return history


def pixels(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_heat_map_is_bright_where_layers_learn(tmp_path: Path) -> None:
    history = made_up(layers=8, measurements=3)
    write_pictures(history, tmp_path)
    picture = pixels((tmp_path / "rwc.png").read_bytes())
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1500
    assert tuple(picture[0, 0]) == (255, 255, 255)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)[::7].tolist()}
    # The ends of viridis: the smallest and the largest value.
    assert (68, 1, 84) in colours
    assert (253, 231, 37) in colours


def test_zeros_and_what_is_not_finite_have_colours_of_their_own() -> None:
    history = made_up(layers=4, measurements=8)
    history.rwc[:, 1] = 0
    history.rwc[4:, 2] = np.nan
    drawn = series([history])
    picture = pixels(png(concrete("rwc_heatmap", charts(drawn)["rwc_heatmap"], drawn), scale=1)).reshape(-1, 3)
    grey = (picture == (0xB8, 0xBC, 0xC2)).all(1).sum()
    orange = (picture == (0xD5, 0x5E, 0x00)).all(1).sum()
    assert grey == pytest.approx(2 * orange, rel=0.1)
    assert grey > 10_000


def test_no_seams_between_the_cells_of_the_heat_map() -> None:
    drawn = series([filled_with(0.01, layers=7, measurements=150)])
    # Neither rows nor columns are of whole pixels.
    described = concrete("rwc_heatmap", charts(drawn)["rwc_heatmap"], drawn) | {"height": 200}
    picture = pixels(png(described, scale=1))
    cell = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    rows, columns = np.nonzero((picture == cell).all(2))
    inside = picture[rows.max() - 190 : rows.max() - 2, columns.max() - 850 : columns.max() - 2]
    assert (inside == cell).all()


def test_words_on_white_are_dark() -> None:
    drawn = series([made_up()])
    for name, chart in charts(drawn, "#767d87").items():
        drawing = svg(concrete(name, chart, drawn))
        assert 'fill="#23272e"' in drawing
        assert 'fill="#767d87"' not in drawing


@pytest.mark.parametrize(
    "history",
    [
        made_up(layers=1, measurements=1),
        filled_with(np.nan),
        filled_with(0),
        filled_with(0.01),
        filled_with(np.nan, layers=1, measurements=1),
        filled_with(1e-38),
    ],
    ids=["one value", "all NaN", "all 0", "all equal", "one NaN", "tiny"],
)
def test_odd_histories_are_drawn(history: History) -> None:
    drawn = series([history])
    for name, chart in charts(drawn).items():
        drawing = svg(concrete(name, chart, drawn))
        assert not re.search(r' (d|x|y|width|height|transform|fill)="[^"]*(NaN|Infinity|undefined)', drawing)


def test_every_chart_becomes_a_picture_of_its_own_if_asked(tmp_path: Path) -> None:
    written = write_pictures([made_up(seed=seed) for seed in range(2)], tmp_path, elementwise=True, pictures="svg")
    assert {path.name for path in written} == {
        "rwc_elementwise.html",
        "rwc_elementwise.png",
        *(f"rwc_elementwise{name.removeprefix('rwc')}.svg" for name in CHARTS),
    }
    assert "Mean over 2 runs" in (tmp_path / "rwc_elementwise_heatmap.svg").read_text("utf-8")


def test_an_empty_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no measurement"):
        write_pictures(History(["a"], ["early"], [1]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_vl_convert_the_sentence_names_the_remedy() -> None:
    code = """import sys; sys.modules["vl_convert"] = None
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.render import write_pictures
try: write_pictures(History(["a"], ["early"], [1]), "nowhere")
except ModuleNotFoundError as error: print(error)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'rwc_wandb[view]'" in said


def test_the_page_is_small_and_holds_one_copy_of_the_library(tmp_path: Path) -> None:
    write_pictures(made_up(layers=161, measurements=150), tmp_path)
    page = (tmp_path / "rwc.html").read_text("utf-8")
    assert len(page) < 3_000_000
    assert page.count("window.vegaEmbed=") == 1


def test_the_page_says_what_is_odd_even_where_charts_leave_it_out(tmp_path: Path) -> None:
    history = made_up(layers=3, measurements=2_000)
    history.rwc[1001, 1] = np.nan
    write_pictures(history, tmp_path)
    page = (tmp_path / "rwc.html").read_text("utf-8")
    assert f"<li>No finite value: {history.layers[1]} (1 of 2,000 measurements, first at step 10,020).</li>" in page
    assert "(means of 430 intervals of 2,000 measurements)" in page


def test_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    write_pictures(renamed(made_up(), HOSTILE), tmp_path, title=HOSTILE[1])
    page = (tmp_path / "rwc.html").read_text("utf-8")
    assert "document.title='hacked'</script>" not in page
    assert "<img src=http" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_names_do_nothing_and_no_request_leaves_the_page(tmp_path: Path) -> None:
    write_pictures(renamed(made_up(layers=8, measurements=30), HOSTILE), tmp_path, title=HOSTILE[0])
    seen = visit(tmp_path / "rwc.html", tmp_path / "profile")
    assert seen.requests == ["/page.html"]
    assert seen.console == []
    assert seen.dom.count("<canvas") == len(CHARTS)
    assert 'type="range"' in seen.dom
    assert "<title>&lt;script&gt;" in seen.dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_browser_test_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src=http://elsewhere.example/x><script>console.error('no')</script>")
    seen = visit(page, tmp_path / "profile")
    assert "/x" in seen.requests
    assert any("no" in line for line in seen.console)


@pytest.mark.parametrize("blocks", [3, 80])
def test_every_role_and_block_is_named_on_the_map(blocks: int) -> None:
    drawn = series([transformer(blocks, measurements=2)])
    drawing = svg(concrete("rwc_map", charts(drawn)["rwc_map"], drawn))
    for name in ("in", *range(blocks), "out", "embed", "attention.query", "attention.value", "mlp", "head"):
        assert f">{name}</text>" in drawing


def test_every_layer_of_a_deep_network_is_named_on_the_heat_map() -> None:
    history = transformer(blocks=60, measurements=2)
    drawn = series([history])
    drawing = svg(concrete("rwc_heatmap", charts(drawn)["rwc_heatmap"], drawn))
    assert [name for name in history.layers if f">{name}</text>" not in drawing] == []
