"""`rwc-wandb bench --everything`: each part's result at once, cut short, gone on with; real parts as a rehearsal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from rwc_wandb.bench import command
from rwc_wandb.bench.decoder import decoder
from rwc_wandb.bench.everything import calls, parts
from rwc_wandb.bench.everything.parts import Part
from rwc_wandb.cli import main

ALL = parts.parts


def python(name: str, code: str, most: float = 60, resumes: bool = False) -> Part:
    return Part(name, [sys.executable, "-c", code], most, resumes)


def states(out: Path) -> dict[str, str]:
    found = json.loads((out / "results.json").read_text())
    return {name: f"{ending['state']} {ending['reason']}".strip() for name, ending in found.items()}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    chosen: list[Part] = []
    monkeypatch.setattr(calls, "parts", lambda out, on_gpu, data_dir: (chosen, ["left out"]))
    monkeypatch.setattr(calls, "SECONDS_TO_STOP", 5)
    return chosen


def call(out: Path, minutes: float = 9) -> int:
    return main(["bench", "--everything", str(out), "--device", "cpu", "--minutes", str(minutes)])


def test_what_failed_or_was_cut_off_is_done_in_the_next_call(
    only: list[Part], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mark = tmp_path / "out", tmp_path / "mark"
    monkeypatch.setattr(calls, "LEAST_SECONDS", 0)
    stops = "import pathlib, signal, sys, time; signal.signal(15, lambda *_: sys.exit(143))"
    stops += f"; m = pathlib.Path({str(mark)!r}); seen = m.exists(); m.touch()"
    stops += "; print('resumed' if seen else 'begun'); seen or time.sleep(60)"
    only += [
        python("good", "print('3 passed')"),
        python("bad", "print('no GPU'); raise SystemExit(3)"),
        python("slow", stops, resumes=True),
        python("last", "print('done')"),
    ]
    assert call(out, minutes=0.1) == 1
    said = capsys.readouterr().out
    assert calls.REHEARSAL in said.replace("\n", " ")
    assert "left out" in said
    assert states(out) == {"good": "passed", "bad": "failed with status 3"}
    assert "slow ... cut off; the next call takes it up" in said
    assert "missing, the same command does them: slow, last" in said
    assert "| good | passed |" in (out / "results.md").read_text()
    assert (out / "bad.txt").read_text() == "no GPU\n"

    before = (out / "good.txt").stat().st_mtime_ns
    assert call(out) == 1
    assert states(out) == {
        "good": "passed", "bad": "failed with status 3", "slow": "passed", "last": "passed"
    }  # fmt: skip
    assert "slow ... passed in" in (said := capsys.readouterr().out)
    assert said.index("slow ...") < said.index("last ...") < said.index("bad ...")
    assert (out / "slow.txt").read_text() == "resumed\n"
    assert (out / "good.txt").stat().st_mtime_ns == before
    assert "failed: bad\n" in said


def test_a_part_that_hangs_fails_and_its_children_end(only: list[Part], tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = "import subprocess, sys, signal, time; signal.signal(15, signal.SIG_IGN)"
    code += "; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])"
    code += f"; open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(300)"
    only.append(python("hangs", code, most=4))
    assert call(tmp_path / "out") == 1
    assert states(tmp_path / "out") == {"hangs": "failed cut off"}
    status = Path(f"/proc/{child.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_a_rehearsal(only: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts as they are; all others are in the suite anyway."""
    names = ("sanitizer", "measure-llama-2x64")
    only += [part for part in ALL(tmp_path / "out", False, tmp_path)[0] if part.name in names]
    assert call(tmp_path / "out") == 0
    assert states(tmp_path / "out") == dict.fromkeys(names, "passed")
    assert list((tmp_path / "out" / "measure-llama-2x64").glob("measure-*.csv"))


def test_the_parts_of_a_gpu_are_commands_that_there_are(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    found, (sentence,) = ALL(tmp_path, True, tmp_path)
    assert "No Fashion-MNIST" in sentence
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    found, left_out = ALL(tmp_path, True, tmp_path)
    assert not left_out
    assert len({part.name for part in found}) == len(found)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for part in found:
        words = part.command[part.command.index("-m") + 1 :]
        if words[0] == "pytest":
            assert Path(words[-1]).is_file()
        elif words[1] == "bench":
            command._checked(parser.parse_args([*words[2:], "--device", "cpu"]))
        else:
            assert part.resumes
    runs = [part.name for part in found if part.resumes]
    assert [name.rpartition("seed")[2] for name in runs[:6]] == ["0", "0", "0", "42", "42", "42"]
    assert len(runs) == 15


def test_the_decoder_of_the_1b_model_has_its_weights() -> None:
    model = decoder("llama:16x2048", torch.device("meta"))
    # Llama 3.2 1B: 1,235,814,400 parameters, of which 33 norms have 2048 each.
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400 - 33 * 2048


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--everything", "{file}/out"], "--everything"),
        (["--everything", "out", "--minutes", "0"], "--minutes 0.0: it takes a number above 0"),
        (["--model", "llama:2x64"], "add --no-step"),
        (["--model", "llama:2x0", "--no-step"], "--model llama:2x0"),
    ],
)
def test_bad_input_gets_one_sentence(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["bench", *(word.format(file=tmp_path / "file") for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_results_of_another_kind_are_refused(
    only: list[Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("[1]")
    assert call(tmp_path) == 2
    assert "is not what --everything writes" in capsys.readouterr().err
