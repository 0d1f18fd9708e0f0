"""Results as a table: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from rwc_wandb.bench.methods import Result
from rwc_wandb.bench.timing import Spread


@dataclass(frozen=True)
class ModelResults:
    """All that was measured with one model.

    Attributes:
        weights: elements of the tracked weights.
        image_side, slow_downs: of the training steps; None and empty where none were run.
    """

    model: str
    weights: int
    floor: Result
    methods: list[Result]
    image_side: int | None
    slow_downs: Mapping[str, Spread]

    @property
    def title(self) -> str:
        images = f", steps on {self.image_side} x {self.image_side} images" if self.image_side else ""
        return f"{self.model}, {self.weights / 1e6:.1f} M weights{images}"


HEADERS = ("", "ms", "x floor", "extra MB", "host reads", "step slower by")
NOTE = (
    "Medians, with the quartiles in brackets, of one measurement of all layers; all methods take turns in one run. "
    "The floor is the time of three passes over as many bytes as the tracked weights have (read weights and snapshot, "
    "write the snapshot: 12 bytes per fp32 weight): 1.5 times a copy or, on a CPU and where it is faster, that of "
    "`s += w`. `x floor` is the median of the ratios to the floor measured just before. Extra MB is the peak beyond "
    "model and optimizer, the snapshot included, in 10^6 bytes. "
    "Host reads: how often a measurement waits for the device (on a CPU: would wait, were it a GPU). "
    "wandb.watch logs histograms and Composer L2 norms; both look at biases too, and neither yields RWC."
)


def cells(results: ModelResults, written: Callable[[Spread], str]) -> list[tuple[str, ...]]:
    """The rows under `HEADERS`; `written` says how a median and its quartiles look."""
    rows: list[tuple[str, ...]] = []
    for result in [results.floor, *results.methods]:
        is_floor = result is results.floor
        slow_down = results.slow_downs.get(result.method)
        rows.append(
            (
                result.method,
                written(result.timing.milliseconds),
                "1" if is_floor else written(result.timing.ratio),
                "" if is_floor else f"{result.extra_memory / 1e6:.1f}",
                "" if is_floor else str(result.host_reads),
                f"{written(slow_down)} %" if slow_down else "",
            )
        )
    return rows


def terminal_table(results: ModelResults) -> Table:
    """The medians alone: with quartiles it would not fit a terminal."""
    return terminal_rows(results.title, HEADERS, cells(results, lambda values: short(values.median)))


def markdown(all_results: Sequence[ModelResults], conditions: Mapping[str, str]) -> str:
    sections = [(results.title, cells(results, bracketed)) for results in all_results]
    return markdown_page("What a measurement costs", conditions, NOTE, HEADERS, sections)


def write_csv(path: Path, all_results: Sequence[ModelResults], conditions: Mapping[str, str]) -> None:
    """One line per model and method, every number in full, the conditions on every line."""
    rows = [
        {
            "model": results.model,
            "weights": results.weights,
            "method": result.method,
            **quartiles("milliseconds", result.timing.milliseconds),
            **quartiles("ratio_to_floor", result.timing.ratio),
            "extra_memory_bytes": result.extra_memory,
            "host_reads": result.host_reads,
            **quartiles("step_slower_percent", results.slow_downs.get(result.method)),
            "image_side": results.image_side,
            **conditions,
        }
        for results in all_results
        for result in [results.floor, *results.methods]
    ]
    write_rows(path, rows)


def terminal_rows(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_page(
    heading: str,
    conditions: Mapping[str, str],
    note: str,
    headers: Sequence[str],
    sections: Iterable[tuple[str, Iterable[Sequence[str]]]],
) -> str:
    """A page of tables, all under the same `headers`; `sections`: titles with rows."""
    lines = [f"# {heading}", "", *(f"* {name}: {value}" for name, value in conditions.items()), "", note, ""]
    for title, rows in sections:
        lines += [f"## {title}", "", _markdown_row(headers), "|---" + "|---:" * (len(headers) - 1) + "|"]
        lines += [*map(_markdown_row, rows), ""]
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def bracketed(values: Spread) -> str:
    return f"{short(values.median)} ({short(values.low)} to {short(values.high)})"


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quartiles(name: str, values: Spread | None) -> dict[str, float | None]:
    median, low, high, samples = (values.median, values.low, values.high, values.samples) if values else [None] * 4
    return {f"{name}_median": median, f"{name}_q1": low, f"{name}_q3": high, f"{name}_samples": samples}


def _markdown_row(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
