"""What arrived at the stand-in for the W&B backend, as tests look at it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

Json = dict[str, Any]


@dataclass
class Alert:
    title: str
    text: str
    level: str


@dataclass
class Table:
    columns: list[str]
    data: list[list[Any]]


@dataclass
class Chart:
    """A custom chart that a user registered."""

    name: str
    """ENTITY/NAME, as `wandb.plot_table` takes it."""
    display_name: str
    kind: str
    access: str
    spec: Json


@dataclass
class Report:
    id: str
    entity: str
    project: str
    title: str
    description: str
    kind: str
    """"runs", or "runs/draft"."""
    spec: Json


@dataclass
class Artifact:
    id: str
    name: str
    kind: str
    digest: str
    run_id: str
    version: int
    aliases: list[str]
    metadata: Json
    description: str | None
    files: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by name; its manifest is among them."""
    committed: bool = False


@dataclass
class Run:
    id: str
    entity: str
    project: str
    name: str
    raw_config: Json = field(default_factory=dict)
    """key -> {"value": ...}, with what the client notes for itself under `_wandb`."""
    sweep: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    """Streamed file -> line number -> line."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by name."""
    alerts: list[Alert] = field(default_factory=list)
    finished: bool = False
    exit_code: int | None = None

    @property
    def config(self) -> Json:
        return {key: entry["value"] for key, entry in self.raw_config.items() if key != "_wandb"}

    @property
    def rows(self) -> list[Json]:
        """The history, one dict a row, in the order of its lines; NaN and Infinity are floats."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> Json:
        lines = self.lines.get("wandb-summary.json", {})
        summary: Json = json.loads(lines[max(lines)]) if lines else {}
        return summary

    @property
    def output(self) -> str:
        """What the process printed, a time before each line."""
        lines = self.lines.get("output.log", {})
        return "\n".join(lines[number] for number in sorted(lines))

    @property
    def panels(self) -> Json:
        """Key -> the custom chart logged under it: which spec, with which columns and words."""
        panels: Json = self.raw_config.get("_wandb", {}).get("value", {}).get("visualize", {})
        return panels

    @property
    def tables(self) -> dict[str, Table]:
        """Key -> the last table logged under it; `wandb.plot_table` under KEY logs its table under KEY_table."""
        tables = {}
        for row in self.rows:
            for key, value in row.items():
                if isinstance(value, dict) and value.get("_type") == "table-file":
                    content = json.loads(self.files[value["path"]])
                    tables[key] = Table(content["columns"], content["data"])
        return tables

    @property
    def state(self) -> str:
        if not self.finished:
            return "running"
        return "failed" if self.exit_code else "finished"


@dataclass
class Sweep:
    id: str
    entity: str
    project: str
    yaml: str
    """As the client sent it."""
    state: str = "PENDING"
    started: dict[str, Json] = field(default_factory=dict)
    """Run id -> the grid point that an agent was given."""
    agents: dict[str, str | None] = field(default_factory=dict)
    """Agent -> the run it has."""
    ended: list[str] = field(default_factory=list)
    """The runs whose process is gone, as the agents say; one that is not among the backend's runs never began."""
    stopped: set[str] = field(default_factory=set)
    """The runs that agents are told to stop, as the button of W&B's page and `early_terminate` do."""

    @property
    def config(self) -> Json:
        config: Json = yaml.safe_load(self.yaml)
        return config

    @property
    def grid(self) -> list[Json]:
        """Every point in the order in which agents get them: the last parameter changes fastest."""
        if self.config["method"] != "grid":
            raise NotImplementedError(f"a sweep by {self.config['method']!r}")
        parameters = self.config["parameters"]
        axes = [entry["values"] if "values" in entry else [entry["value"]] for entry in parameters.values()]
        return [dict(zip(parameters, point, strict=True)) for point in itertools.product(*axes)]

    def next_command(self, agent: str) -> Json | None:
        """What an idle agent does next: run the grid's next point, or leave; None while the sweep is paused."""
        grid = self.grid
        if self.state == "PENDING":
            self.state = "RUNNING"
        if self.state == "RUNNING" and len(self.ended) == len(grid):
            self.state = "FINISHED"
        if self.state == "PAUSED":
            return None
        if self.state != "RUNNING" or len(self.started) == len(grid):
            return {"type": "exit"}
        point = grid[len(self.started)]
        run_id = f"{self.id}-{len(self.started) + 1}"
        self.started[run_id] = point
        self.agents[agent] = run_id
        arguments = {name: {"value": value} for name, value in point.items()}
        return {"type": "run", "run_id": run_id, "program": self.config.get("program"), "args": arguments}


class Store:
    """Everything that arrived."""

    def __init__(self, entity: str) -> None:
        self.entity = entity
        self.projects: set[tuple[str, str]] = set()
        """(entity, name)"""
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.charts: dict[str, Chart] = {}
        """ENTITY/NAME -> the chart registered under it."""
        self.reports: dict[str, Report] = {}

    def run(self, run_id: str) -> Run:
        return self.runs[run_id]

    @property
    def tables(self) -> dict[str, Table]:
        """Key -> the last table logged under it, by whatever run."""
        return {key: table for run in self.runs.values() for key, table in run.tables.items()}

    @property
    def url(self) -> str:
        """Where clients reach it."""
        raise NotImplementedError

    def _url(self, kind: Literal["run", "artifact"], owner: str, name: str) -> str:
        return f"{self.url}/storage/{kind}/{owner}/{name}"
