"""The page in a real browser: the reader chooses layers, groups and colours, and every chart follows."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, visit
from histories import made_up, transformer

from rwc_wandb.measure.series.history import History
from rwc_wandb.view.compared import compare
from rwc_wandb.view.render import write_comparison, write_pictures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

ACTING = """
const form = document.getElementById("controls").elements;
const drawn = async count => {
  while (!(document.body.dataset.drawn >= count)) await new Promise(resolve => setTimeout(resolve, 5));
};
const choose = async choices => {
  const next = Number(document.body.dataset.drawn) + 1;
  Object.assign(form.role, {value: choices.role ?? ""});
  Object.assign(form.stage, {value: choices.stage ?? ""});
  Object.assign(form.group, {value: choices.group ?? ""});
  Object.assign(form.colour, {value: choices.colour ?? "depth"});
  form.role.dispatchEvent(new Event("change", {bubbles: true}));
  await drawn(next);
};
const click = (id, block, role) => {
  const view = rwcViews[id], canvas = document.querySelector(`#${id} canvas`), box = canvas.getBoundingClientRect();
  const [x, y] = ["x", "y"].map((axis, index) => {
    const scale = view.scale(axis);
    return view.origin()[index] + scale([block, role][index]) + scale.bandwidth() / 2;
  });
  for (const kind of ["pointermove", "mousemove", "pointerdown", "mousedown", "pointerup", "mouseup", "click"]) {
    const event = kind.startsWith("pointer") ? PointerEvent : MouseEvent;
    canvas.dispatchEvent(new event(kind, {bubbles: true, clientX: box.left + x, clientY: box.top + y}));
  }
};
const said = [];
const rows = id => rwcViews[id].data("source_0");
const names = (id, key) => [...new Set(rows(id).map(row => row[key]))];
await drawn(1);
"""

TELLING = """
const told = Object.assign(document.createElement("pre"), {id: "said", textContent: JSON.stringify(said)});
document.body.append(told);
"""


def act(history: History, folder: Path, script: str) -> list[Any]:
    """What `script` pushed to `said` in the page of `history`, which has loaded without an error."""
    write_pictures(history, folder)
    return act_in(folder / "rwc.html", script)


def act_in(page: Path, script: str) -> list[Any]:
    head, end, tail = page.read_text("utf-8").rpartition("</body>")
    page.write_text(f'{head}<script type="module">{ACTING}{script}{TELLING}</script>{end}{tail}', "utf-8")
    seen = visit(page, page.parent / "profile")
    assert seen.console == []
    (found,) = re.findall(r'<pre id="said">(.*?)</pre>', seen.dom, re.DOTALL)
    result: list[Any] = json.loads(html.unescape(found))
    return result


def test_a_click_on_a_role_shows_it_alone_in_all_charts_and_another_click_shows_all(tmp_path: Path) -> None:
    history = transformer(blocks=3, measurements=4)
    script = """
click("rwc_map", "1", "mlp");
await drawn(2);
said.push(form.role.value, names("rwc_map", "layer"), names("rwc_heatmap", "layer"), names("rwc_curves", "layer"));
said.push(names("rwc_profile", "layer"), rows("rwc_stages").map(row => row.mean));
click("rwc_map", "1", "mlp");
await drawn(3);
said.push(form.role.value, names("rwc_heatmap", "layer").length);
"""
    role, *of_charts, means, role_after, count = act(history, tmp_path, script)
    assert role == "mlp"
    assert of_charts == [["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]] * 4
    # Their stages differ: the mean of each is the layer itself.
    np.testing.assert_allclose(np.reshape(means, (4, 3)), history.rwc[:, [3, 6, 9]], rtol=1e-3)
    assert (role_after, count) == ("", 11)


def test_a_stage_alone(tmp_path: Path) -> None:
    history = transformer()
    script = """
await choose({stage: "later"});
for (const id of ["rwc_map", "rwc_curves", "rwc_stages"]) said.push(names(id, "stage"));
said.push(names("rwc_curves", "layer"));
"""
    *stages, layers = act(history, tmp_path, script)
    assert stages == [["later"]] * 3
    assert layers == history.layers[-4:]


def test_rows_and_lines_are_the_means_of_roles(tmp_path: Path) -> None:
    history = transformer(blocks=4, measurements=5)
    script = """
await choose({group: "role"});
said.push(rwcViews.rwc_heatmap.scale("y").domain(), rwcViews.rwc_profile.scale("y").domain());
said.push(rwcViews.rwc_heatmap.data("data_0").filter(row => row.layer === "mlp").map(row => row.rwc));
"""
    rows, dots, means = act(history, tmp_path, script)
    assert rows == dots == ["embed", "attention.query", "attention.value", "mlp", "head"]
    np.testing.assert_allclose(means, history.rwc[:, [3, 6, 9, 12]].mean(1), rtol=1e-3)


def test_every_layer_by_role_and_lines_in_the_colours_of_roles(tmp_path: Path) -> None:
    history = transformer(blocks=3)
    script = """
await choose({group: "by role", colour: "role"});
said.push(rwcViews.rwc_heatmap.scale("y").domain(), rwcViews.rwc_curves.scale("layer_0_color").domain());
await choose({group: "by role", colour: "stage"});
said.push(rwcViews.rwc_curves.scale("layer_0_color").domain());
"""
    rows, roles, stages = act(history, tmp_path, script)
    by_role = sorted(range(11), key=lambda depth: (history.roles.index(history.roles[depth]), depth))
    assert rows == [history.layers[depth] for depth in by_role]
    assert rows[1:4] == [f"layers.{block}.attention.query" for block in range(3)]
    assert roles == ["embed", "attention.query", "attention.value", "mlp", "head"]
    assert stages == ["early", "middle", "later"]


def test_the_slider_of_the_map_chooses_the_measurement_and_keeps_the_colours(tmp_path: Path) -> None:
    history = transformer(blocks=3, measurements=4)
    script = """
const cells = () => rwcViews.rwc_map.data("layer_0_layer_1_marks").map(({datum, fill}) => ({...datum, fill}));
for (const progress of [0, 100]) {
  await rwcViews.rwc_map.signal("progress", progress).runAsync();
  said.push(cells().map(cell => [cell.time, cell.rwc]), rwcViews.rwc_map.scale("layer_0_color").domain());
}
"""
    first, domain, last, domain_after = act(history, tmp_path, script)
    for cells, row in ((first, 0), (last, -1)):
        assert {time for time, _ in cells} == {history.steps[row]}
        np.testing.assert_allclose(sorted(rwc for _, rwc in cells), np.sort(history.rwc[row]), rtol=1e-3)
    assert domain == domain_after
    np.testing.assert_allclose(domain, [history.rwc.min(), history.rwc.max()], rtol=1e-3)


def test_where_nothing_repeats_there_is_no_map_and_the_profile_stays(tmp_path: Path) -> None:
    history = made_up(layers=3)
    history = History(["first", "second", "third"], history.stages, history.sizes)
    history.append([1], np.full((1, 3), 0.1), np.full((1, 3), 0.1))
    assert act(history, tmp_path, "said.push(...Object.keys(rwcViews));") == [
        "rwc_heatmap",
        "rwc_curves",
        "rwc_stages",
        "rwc_profile",
    ]


def test_of_a_comparison_too_a_role_is_shown_alone(tmp_path: Path) -> None:
    ours, theirs = transformer(blocks=3, measurements=4), transformer(blocks=3, measurements=4, seed=1)
    write_comparison(compare([ours], [theirs]), tmp_path, "one against other")
    script = """
await choose({role: "mlp"});
said.push(names("rwc_ratio", "layer"), rows("rwc_ratio_stages").map(row => row.mean), form.colour.parentElement.hidden);
"""
    layers, means, hidden = act_in(tmp_path / "rwc_ratio.html", script)
    assert layers == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    ratio = np.log2(ours.rwc[:, [3, 6, 9]].astype(float) / theirs.rwc[:, [3, 6, 9]])
    np.testing.assert_allclose(np.reshape(means, (4, 3)), ratio, rtol=1e-3, atol=1e-6)
    assert hidden


def test_of_a_comparison_too_rows_are_the_means_of_roles(tmp_path: Path) -> None:
    ours, theirs = transformer(blocks=3, measurements=4), transformer(blocks=3, measurements=4, seed=1)
    write_comparison(compare([ours], [theirs]), tmp_path, "one against other")
    script = """
await choose({group: "role"});
said.push(rwcViews.rwc_ratio.scale("y").domain(), rows("rwc_ratio").filter(row => row.layer === "mlp"));
"""
    roles, of_mlp = act_in(tmp_path / "rwc_ratio.html", script)
    assert roles == ["embed", "attention.query", "attention.value", "mlp", "head"]
    ratio = np.log2(ours.rwc[:, [3, 6, 9]].astype(float) / theirs.rwc[:, [3, 6, 9]])
    np.testing.assert_allclose([row["ratio"] for row in of_mlp], ratio.mean(1), rtol=1e-3, atol=1e-6)
    assert {row["stage"] for row in of_mlp} == {"3 stages"}


def test_the_page_opens_with_the_pictures_that_the_browser_makes_of_the_specs(tmp_path: Path) -> None:
    script = """
const ids = ["rwc_map", "rwc_curves", "rwc_stages"];
const pictures = () => ids.map(id => document.querySelector(`#${id} canvas`).toDataURL());
const opened = pictures();
// These three show the same, compiled in the browser.
await choose({group: "by role"});
said.push(pictures().map((picture, index) => picture === opened[index]));
await choose({role: "mlp"});
said.push(pictures().map((picture, index) => picture === opened[index]));
"""
    same, different = act(transformer(blocks=3, measurements=4), tmp_path, script)
    assert same == [True] * 3
    assert different == [False] * 3
