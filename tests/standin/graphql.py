"""How the stand-in for the W&B backend answers GraphQL, as far as the client asks."""

from __future__ import annotations

import base64
import json

from standin import nodes
from standin.artifacts import ArtifactAnswers
from standin.reading import ReadingAnswers
from standin.store import Alert, Chart, Json, Report, Run, Sweep


class Refusal(Exception):
    """What W&B itself would answer as an error."""


class Backend(ArtifactAnswers, ReadingAnswers):
    """One method for each GraphQL operation of the client, named after it."""

    def answer(self, operation: str, variables: Json) -> Json:
        """The `data` of the answer; it holds more fields than asked for.

        Raises:
            NotImplementedError: the stand-in does not know this.
            Refusal: W&B would not do this.
        """
        method = getattr(self, f"_on_{operation}", None)
        if method is None:
            raise NotImplementedError(f"the operation {operation}")
        answer: Json = method(variables)
        return answer

    def take_stream(self, run_id: str, body: Json) -> None:
        """A part of a run's streamed files; one that is sent twice counts once."""
        run = self.runs[run_id]
        for name, part in body.get("files", {}).items():
            run.lines.setdefault(name, {}).update(enumerate(part["content"], part["offset"]))
        if body.get("complete"):
            run.finished, run.exit_code = True, body["exitcode"]

    def stored_files(self, kind: str, owner: str) -> dict[str, bytes]:
        """The files of a run or an artifact.

        Raises:
            KeyError: there is no such.
        """
        return self.runs[owner].files if kind == "run" else self.artifacts[owner].files

    # Who is asking.

    def _on_Viewer(self, _: Json) -> Json:
        return {"viewer": nodes.user(self.entity)}

    _on_GetViewer = _on_GetDefaultEntity = _on_Viewer

    def _on_ProbeServerCapabilities(self, _: Json) -> Json:
        """What the server can do, as older clients (0.21) ask: everything that the stand-in answers."""
        known = [name.removeprefix("_on_") for name in dir(self) if name.startswith("_on_")]
        fields = {"fields": [{"name": name[0].lower() + name[1:]} for name in known]}
        return {"QueryType": fields, "MutationType": fields, "ServerInfoType": {"fields": []}}

    def _on_ProbeServerSettings(self, _: Json) -> Json:
        return {"ServerSettingsType": {"fields": []}}

    def _on_InputFields(self, _: Json) -> Json:
        """Of the input of a mutation, as older clients ask: none that they could do without."""
        return {"TypeInfo": {"inputFields": []}}

    def _on_TypeFields(self, _: Json) -> Json:
        return {"TypeInfo": {"fields": []}}

    def _on_ServerFeaturesQuery(self, _: Json) -> Json:
        # Older clients (0.21) send metrics with a * only where the server says this, as W&B's does.
        return {"serverInfo": {"features": [{"name": "EXPAND_DEFINED_METRIC_GLOBS", "isEnabled": True}]}}

    def _on_OrganizationCoreWeaveOrganizationID(self, _: Json) -> Json:
        return {"entity": None}

    # Projects.

    def _on_GetProjects(self, variables: Json) -> Json:
        owned = sorted(name for entity, name in self.projects if entity == variables["entity"])
        return {"models": nodes.page([nodes.project(variables["entity"], name) for name in owned])}

    _on_Projects = _on_GetProjects

    def _on_CreateProject(self, variables: Json) -> Json:
        place = variables["input"]["entityName"], variables["input"]["name"]
        self.projects.add(place)
        return {"result": {"project": nodes.project(*place), "model": nodes.project(*place), "inserted": True}}

    def _on_ProjectInternalId(self, variables: Json) -> Json:
        place = variables["entityName"], variables["projectName"]
        return {"project": nodes.project(*place) if place in self.projects else None}

    # A run that is being logged.

    def _on_UpsertBucket(self, variables: Json) -> Json:
        run_id = variables.get("name") or variables["id"]
        is_new = run_id not in self.runs
        if is_new:
            place = variables.get("entity") or self.entity, variables.get("project") or "uncategorized"
            self.projects.add(place)
            self.runs[run_id] = Run(run_id, *place, name=f"run-{len(self.runs) + 1}")
        run = self.runs[run_id]
        if variables.get("config"):
            run.raw_config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.lines["wandb-summary.json"] = {0: variables["summaryMetrics"]}
        run.name = variables.get("displayName") or variables.get("display_name") or run.name
        run.sweep = variables.get("sweep") or run.sweep
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.tags = variables.get("tags") or run.tags
        run.notes = variables.get("notes") or run.notes
        if variables.get("host"):
            # The process that logs the run says this: so it is alive (again).
            run.finished, run.exit_code = False, None
        return {"upsertBucket": {"bucket": nodes.run(run), "inserted": is_new}}

    def _on_RunResumeStatus(self, variables: Json) -> Json:
        run = self.runs.get(variables["name"])
        model = nodes.project(variables["entity"], variables["project"])
        return {"model": {**model, "bucket": nodes.run(run) if run else None}}

    def _on_RunStoppedStatus(self, variables: Json) -> Json:
        return {"project": {"run": nodes.run(self.runs[variables["runId"]])}}

    def _on_CreateRunFiles(self, variables: Json) -> Json:
        run_id = variables["run"]
        files = [{"name": name, "uploadUrl": self._url("run", run_id, name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}

    def _on_NotifyScriptableRunAlert(self, variables: Json) -> Json:
        alert = Alert(variables["title"], variables["text"], variables["severity"])
        self.runs[variables["runName"]].alerts.append(alert)
        return {"notifyScriptableRunAlert": {"success": True}}

    # Sweeps.

    def _on_UpsertSweep(self, variables: Json) -> Json:
        sweep_id = variables.get("id")
        if not sweep_id:
            sweep_id = f"sweep{len(self.sweeps) + 1}"
            place = variables["entityName"] or self.entity, variables["projectName"] or "uncategorized"
            self.projects.add(place)
            self.sweeps[sweep_id] = Sweep(sweep_id, *place, yaml=variables["config"])
        sweep = self.sweeps[sweep_id]
        sweep.yaml = variables.get("config") or sweep.yaml
        sweep.state = variables.get("state") or sweep.state
        return {"upsertSweep": {"sweep": self._sweep(sweep), "configValidationWarnings": []}}

    def _on_SweepWithRuns(self, variables: Json) -> Json:
        sweep = self.sweeps.get(variables.get("sweep") or variables["name"])
        return {"project": {"sweep": self._sweep(sweep) if sweep else None}}

    _on_GetSweep = _on_GetSweepState = _on_SweepWithRuns

    def _on_CreateAgent(self, variables: Json) -> Json:
        sweep = self.sweeps[variables["sweep"]]
        agent = f"{sweep.id}-agent{len(sweep.agents) + 1}"
        sweep.agents[agent] = None
        return {"createAgent": {"agent": {"id": agent}}}

    def _on_Heartbeat(self, variables: Json) -> Json:
        agent, running = variables["id"], json.loads(variables["runState"])
        sweep = self.sweeps[agent.partition("-")[0]]
        had = sweep.agents[agent]
        if had and had not in running:
            sweep.agents[agent] = None
            sweep.ended.append(had)
        stopped = next((run for run in running if run in sweep.stopped), None)
        command = {"type": "stop", "run_id": stopped} if stopped else None if running else sweep.next_command(agent)
        return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps([command] if command else [])}}

    def _sweep(self, sweep: Sweep) -> Json:
        return nodes.sweep(sweep, [run for run in self.runs.values() if run.sweep == sweep.id])

    # Charts and reports.

    def _on_CreateCustomChart(self, variables: Json) -> Json:
        # Older clients (0.21) call two of them otherwise.
        name = f"{variables['entity']}/{variables.get('chartName') or variables['name']}"
        if name in self.charts:
            raise Refusal(f"chart {name} already exists")
        words = variables["displayName"], variables.get("chartType") or variables["type"], variables["access"]
        self.charts[name] = Chart(name, *words, spec=json.loads(variables["spec"]))
        return {"createCustomChart": {"chart": {"id": name}}}

    def _on_upsertView(self, variables: Json) -> Json:
        # The client takes the id of a report, and of nothing else, for base64.
        new_id = base64.b64encode(f"View:{len(self.reports) + 1:07}".encode()).decode()
        report_id = variables.get("id") or new_id
        place = variables["entityName"], variables["projectName"]
        words = variables["displayName"], variables["description"], variables["type"]
        self.reports[report_id] = Report(report_id, *place, *words, spec=json.loads(variables["spec"]))
        return {"upsertView": {"view": nodes.report(self.reports[report_id]), "inserted": report_id == new_id}}

    _on_UpsertView2 = _on_upsertView
    """A workspace is a view too, of the kind "project-view"."""

    def _on_SpecificReport(self, variables: Json) -> Json:
        return {"view": nodes.report(self.reports[variables["reportId"]])}
