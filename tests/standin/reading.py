"""How the stand-in for the W&B backend answers those who read runs: `wandb.Api`."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

from standin import nodes
from standin.store import Json, Store


class ReadingAnswers(Store):
    def _on_Runs(self, variables: Json) -> Json:
        if json.loads(variables["filters"]) or variables["order"] not in ("+created_at", "-created_at"):
            raise NotImplementedError(f"runs that are filtered or ordered: {variables}")
        place = variables["entity"], variables["project"]
        if place not in self.projects:
            return {"project": None}
        runs = [nodes.run(run) for run in self.runs.values() if (run.entity, run.project) == place]
        runs = runs[::-1] if variables["order"] == "-created_at" else runs
        return {"project": {**nodes.project(*place), "runCount": len(runs), "runs": nodes.page(runs)}}

    def _on_Run(self, variables: Json) -> Json:
        run = self.runs.get(variables["name"])
        return {"project": {"run": nodes.run(run) if run else None}}

    _on_RunHistoryKeys = _on_RunState = _on_Run

    def _on_ProbeRunInput(self, _: Json) -> Json:
        """What older clients (0.21) ask before they read runs, and below, artifacts."""
        return {"RunType": {"fields": [{"name": "projectId"}]}}

    def _on_ProbeServerArtifact(self, _: Json) -> Json:
        return {"ArtifactInfoType": {"fields": []}}

    def _on_RunFullHistory(self, variables: Json) -> Json:
        return _history(self.runs[variables["name"]].rows[: variables["samples"]])

    def _on_RunParquetHistory(self, _: Json) -> Json:
        # Nothing is archived: the client then reads the history page by page.
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _on_HistoryPage(self, variables: Json) -> Json:
        steps = range(variables["minStep"], variables["maxStep"])
        rows = [row for row in self.runs[variables["run"]].rows if row["_step"] in steps]
        return _history(rows[: variables["pageSize"]])

    def _on_RunSampledHistory(self, variables: Json) -> Json:
        rows = self.runs[variables["name"]].rows
        return {"project": {"run": {"sampledHistory": [_sampled(rows, spec) for spec in variables["specs"]]}}}

    def _on_SampledHistoryPage(self, variables: Json) -> Json:
        rows = self.runs[variables["run"]].rows
        return {"project": {"run": {"sampledHistory": [_sampled(rows, variables["spec"])]}}}

    def _on_RunFiles(self, variables: Json) -> Json:
        run = self.runs[variables["name"]]
        pattern = (variables["pattern"] or "%").replace("%", "*")
        names = [name for name in variables["fileNames"] or sorted(run.files) if name in run.files]
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        files = nodes.page([nodes.file(run, name, self._url("run", run.id, name)) for name in matching])
        place = nodes.project(run.entity, run.project)
        return {"project": {**place, "run": {"fileCount": len(matching), "files": files}}}


def _history(rows: list[Json]) -> Json:
    return {"project": {"run": {"history": [json.dumps(nodes.finite(row)) for row in rows], "events": []}}}


def _sampled(rows: list[Json], spec_text: str) -> list[Any]:
    """The rows that have all of the spec's keys, with those keys only."""
    spec = json.loads(spec_text)
    first, last = spec.get("minStep", 0), spec.get("maxStep", float("inf"))
    matching = [row for row in rows if first <= row["_step"] <= last and set(spec["keys"]) <= row.keys()]
    return [nodes.finite({key: row[key] for key in spec["keys"]}) for row in matching[: spec["samples"]]]
