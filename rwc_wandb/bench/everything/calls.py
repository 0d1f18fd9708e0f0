"""`rwc-wandb bench --everything OUT`: all that only a GPU can prove, in parts, call after call.

Each part is a process of its own, so that a crash of one spares the others. What it prints goes to OUT/PART.txt as it
prints it, how it ended to OUT/results.json and OUT/results.md at once: a call that is cut short keeps what it has, and
the next call with the same OUT does what is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from rwc_wandb.bench import conditions
from rwc_wandb.bench.everything.parts import ROOT, TESTS, Part, parts
from rwc_wandb.bench.table import markdown_page
from rwc_wandb.errors import UserError
from rwc_wandb.files import write_whole

NEEDED = (
    *("numpy", "safetensors", "wandb", "torchvision", "timm", "accelerate", "transformers", "sklearn", "scipy", "yaml"),
    *("rich", "numba", "triton", "pytest", "hypothesis"),
)
LEAST_SECONDS = 20
"""A part is not begun where the call has less time left than this: importing torch alone takes some of it."""
SECONDS_TO_STOP = 15
"""What a part has, after SIGTERM, to leave a checkpoint."""
REHEARSAL = (
    "A rehearsal on a CPU, at small sizes: it shows that every part runs from beginning to end, and nothing of a GPU."
)
PASSED, FAILED = "passed", "failed"


@dataclass(frozen=True)
class Ending:
    """How a part ended: `passed` or `failed`, why, after how many seconds, and the last line that it printed."""

    state: str
    reason: str
    seconds: float
    said: str

    @property
    def outcome(self) -> str:
        return f"{self.state} {self.reason}".strip()


def run_all(out: Path, device: torch.device, data_dir: Path, minutes: float) -> int:
    """Do the parts that have no result in `out` yet, then once more those that failed, for at most `minutes`.

    Returns:
        The exit code: 1 where a part failed.

    Raises:
        UserError: there is no clone of the repository, whose tests and sweeps are parts.
    """
    if not TESTS.is_dir():
        raise UserError(f"--everything needs a clone of the repository: there are no tests in {ROOT}.")
    out = out.resolve()
    all_parts, left_out = parts(out, device.type == "cuda", data_dir.resolve())
    found = conditions.conditions(device)
    console = Console(highlight=False, soft_wrap=True)
    if device.type != "cuda":
        console.print(REHEARSAL)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        console.print(f"Not installed here: {', '.join(missing)}. Parts that need them fail; bring them as wheels.")
    for sentence in left_out:
        console.print(sentence, markup=False)
    endings = _known(out)
    end = time.monotonic() + 60 * minutes
    for number, part in enumerate(_in_order(all_parts, endings)):
        seconds = end - time.monotonic()
        if seconds < LEAST_SECONDS:
            break
        console.print(f"{part.name} ...", end=" ", markup=False)
        # The first part of a call has as much time as any call can give it.
        is_final = number == 0 or seconds > part.most
        ending = _ended(part, out / f"{part.name}.txt", min(seconds, part.most))
        if ending.reason == "cut off" and (part.resumes or not is_final):
            console.print("cut off; the next call takes it up")
            continue
        endings[part.name] = ending
        _write(out, all_parts, endings, found)
        console.print(f"{ending.outcome} in {ending.seconds:.0f} s: {ending.said}", markup=False)
    failed = [part.name for part in all_parts if part.name in endings and endings[part.name].state == FAILED]
    waiting = [part.name for part in all_parts if part.name not in endings]
    console.print(
        f"{len(all_parts) - len(failed) - len(waiting)} of {len(all_parts)} parts passed: {out / 'results.md'}"
    )
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    if waiting:
        console.print(f"missing, the same command does them: {', '.join(waiting)}")
    return 1 if failed else 0


def _in_order(all_parts: Sequence[Part], endings: dict[str, Ending]) -> list[Part]:
    """Those that were never tried to their end, in order of importance, then those that failed."""
    never = [part for part in all_parts if part.name not in endings]
    return never + [part for part in all_parts if part.name in endings and endings[part.name].state == FAILED]


def _ended(part: Part, log: Path, seconds: float) -> Ending:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "offline",
    }
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(part.command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _stop(process)
    reason = "cut off" if status is None else f"with status {status}" if status else ""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].strip("= ") if lines else "it printed nothing"
    return Ending(FAILED if reason else PASSED, reason, time.monotonic() - start, said)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the part to stop, then end it with all that it started."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()  # which no process outlives
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _known(out: Path) -> dict[str, Ending]:
    path = out / "results.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
        return {name: Ending(**ending) for name, ending in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what --everything writes ({error}): name another folder.") from error


def _write(out: Path, all_parts: Sequence[Part], endings: dict[str, Ending], found: dict[str, str]) -> None:
    write_whole(out / "results.json", json.dumps({name: asdict(ending) for name, ending in endings.items()}, indent=1))
    rows = []
    for part in all_parts:
        ending = endings.get(part.name)
        rows.append(
            (
                part.name,
                ending.outcome if ending else "missing",
                f"{ending.seconds:.0f}" if ending else "",
                ending.said if ending else "",
            )
        )
    note = "" if "CUDA" in found else REHEARSAL
    page = markdown_page("Everything", found, note, ("part", "state", "seconds", "its last line"), [("Parts", rows)])
    write_whole(out / "results.md", page)
