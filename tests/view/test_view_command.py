"""`rwc-wandb view`, as it is called."""

import argparse
from pathlib import Path

import pytest
from browser import CHROMIUM, visit
from histories import made_up

from rwc_wandb.errors import UserError
from rwc_wandb.view import command


def view(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(word) for word in words]))


def saved(folder: Path, **shape: int) -> Path:
    folder.mkdir(parents=True)
    made_up(**shape).save(folder / "rwc.safetensors")
    return folder


def test_charts_lie_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view(saved(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"rwc.safetensors", "rwc.html", "rwc.png"}
    first, *files = capsys.readouterr().out.splitlines()
    assert first == "Nothing odd: every layer still changes, and every value is finite."
    assert files == [str(tmp_path / "run" / f"rwc.{end}") for end in ("html", "png")]
    assert "<h1>run</h1>" in (tmp_path / "run" / "rwc.html").read_text("utf-8")


def test_findings_come_before_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = made_up()
    history.rwc[:, 2] = 0
    history.save(tmp_path / "rwc.safetensors")
    view(tmp_path)
    first, *files = capsys.readouterr().out.splitlines()
    assert first == f"Never changed (frozen, or no gradient): {history.layers[2]}."
    assert files == [str(tmp_path / f"rwc.{end}") for end in ("html", "png")]
    assert first in (tmp_path / "rwc.html").read_text("utf-8")


def test_a_layer_that_starts_at_zero_is_not_said_to_be_finite_throughout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = made_up()
    history.rwc[0, 2] = float("inf")
    history.save(tmp_path / "rwc.safetensors")
    view(tmp_path)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("and from its first finite value on all its values are finite.")
    assert first.startswith("Nothing odd: ")
    page = (tmp_path / "rwc.html").read_text("utf-8")
    assert "from its first finite value on" in page
    assert "every value is finite." not in page


def test_wandbs_own_run_folder_serves_too(tmp_path: Path) -> None:
    saved(tmp_path / "offline-run-1" / "files")
    view(tmp_path / "offline-run-1", "--output", tmp_path)
    assert "<h1>offline-run-1</h1>" in (tmp_path / "rwc.html").read_text("utf-8")


def test_the_mean_of_several_runs_lands_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [saved(tmp_path / f"seed{seed}", seed=seed) for seed in range(3)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    view(*runs)
    page = (tmp_path / "here" / "rwc.html").read_text("utf-8")
    assert "<h1>seed0 and 2 more</h1>" in page
    assert "The mean of 3 runs" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_a_file_with_hostile_names_does_nothing(tmp_path: Path) -> None:
    hostile = "</script><script>document.title='hacked'</script><img src=x onerror=console.error(1)>"
    history = made_up()
    history.layers[0] = history.stages[0] = hostile
    run = tmp_path / "<img src=y onerror=console.error(2)>"
    run.mkdir()
    history.save(run / "rwc.safetensors")
    view(run, "--pictures", "svg")
    seen = visit(run / "rwc.html", tmp_path / "profile")
    assert seen.requests == ["/page.html"]
    assert seen.console == []
    assert "<title>&lt;img src=y" in seen.dom
    for picture in run.glob("*.svg"):
        assert "<img" not in picture.read_text("utf-8")
        assert "<script" not in picture.read_text("utf-8")


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    wrong = {
        (tmp_path / "absent",): "absent: there is no such file or folder; name",
        (tmp_path,): "this folder holds no rwc.safetensors; name",
        (tmp_path / "bad.safetensors",): "cut short",
        (run, saved(tmp_path / "other", layers=4)): "4 against 6",
        (run, "--output", tmp_path / "bad.safetensors" / "x"): "name another folder",
    }
    for words, sentence in wrong.items():
        with pytest.raises(UserError, match=sentence) as caught:
            view(*words)
        assert "\n" not in str(caught.value)
