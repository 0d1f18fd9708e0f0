"""How what arrived looks to the client that asks for it: nodes of W&B's GraphQL, always with all their fields."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

from standin.store import Artifact, Json, Report, Run, Sweep

TIME = "2020-01-01T00:00:00"
MANIFEST = "wandb_manifest.json"


def page(nodes: Sequence[Json] = ()) -> Json:
    """A connection that holds everything in one page."""
    edges = [{"node": node, "cursor": str(number)} for number, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}}


def finite(value: Any) -> Any:
    """As W&B gives numbers back: those that JSON has no word for are strings."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def user(name: str) -> Json:
    return {
        "id": name,
        "name": name,
        "username": name,
        "entity": name,
        "email": None,
        "admin": False,
        "flags": "{}",
        "deletedAt": None,
        "apiKeys": page(),
        "teams": page(),
    }


def project(entity: str, name: str) -> Json:
    return {
        "id": f"{entity}/{name}",
        "internalId": str(zlib.crc32(f"{entity}/{name}".encode())),
        "name": name,
        "entityName": entity,
        "entity": {"id": entity, "name": entity},
        "user": user(entity),
        "createdAt": TIME,
        "isBenchmark": False,
        "readOnly": False,
        "description": None,
        "access": None,
        "views": None,
    }


def run(run: Run) -> Json:
    owner = project(run.entity, run.project)
    return {
        "id": run.id,
        "name": run.id,
        "displayName": run.name,
        "description": None,
        "notes": run.notes,
        "group": run.group,
        "jobType": run.job_type,
        "tags": run.tags,
        "sweepName": run.sweep,
        "commit": None,
        "config": json.dumps(run.raw_config),
        "summaryMetrics": json.dumps(finite(run.summary)),
        "systemMetrics": "{}",
        "project": owner,
        "projectId": owner["internalId"],
        "user": user(run.entity),
        "createdAt": TIME,
        "heartbeatAt": TIME,
        "readOnly": False,
        "state": run.state,
        "exitcode": run.exit_code,
        "failed": run.state == "failed",
        "running": not run.finished,
        "shouldStop": False,
        "stopped": False,
        "historyKeys": {"lastStep": max((row["_step"] for row in run.rows), default=-1), "keys": {}},
        # Where a resumed run goes on; without "t" the client takes the run for one that was never begun.
        "historyLineCount": _count(run, "wandb-history.jsonl"),
        "historyTail": _tail(run, "wandb-history.jsonl"),
        "eventsLineCount": _count(run, "wandb-events.jsonl"),
        "eventsTail": _tail(run, "wandb-events.jsonl"),
        "logLineCount": _count(run, "output.log"),
        "wandbConfig": json.dumps({"t": 1}),
    }


def file(run: Run, name: str, url: str) -> Json:
    return {
        "id": f"{run.id}/{name}",
        "name": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": len(run.files[name]),
        "mimetype": None,
        "updatedAt": TIME,
        "md5": None,
    }


def artifact(artifact: Artifact, run: Run) -> Json:
    """Also as a membership of its collection, which has the same fields."""
    owner = project(run.entity, run.project)
    collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": owner}
    return {
        "id": artifact.id,
        "artifactType": {"name": artifact.kind},
        "artifactSequence": collection,
        "artifactCollection": collection,
        "versionIndex": artifact.version,
        "aliases": [{"id": name, "alias": name, "artifactCollection": collection} for name in artifact.aliases],
        "description": artifact.description,
        "metadata": json.dumps(artifact.metadata),
        "tags": [],
        "state": "COMMITTED" if artifact.committed else "PENDING",
        "fileCount": len(artifact.files.keys() - {MANIFEST}),
        "size": sum(len(content) for name, content in artifact.files.items() if name != MANIFEST),
        "digest": artifact.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": None,
        "historyStep": None,
        "ttlDurationSeconds": -2,
        "ttlIsInherited": True,
        "createdAt": TIME,
        "updatedAt": TIME,
    }


def sweep(sweep: Sweep, runs: Sequence[Run]) -> Json:
    return {
        "id": sweep.id,
        "name": sweep.id,
        "displayName": sweep.config.get("name"),
        "description": sweep.config.get("description"),
        "config": sweep.yaml,
        "method": sweep.config["method"],
        "state": sweep.state,
        "project": project(sweep.entity, sweep.project),
        "runs": page([run(entry) for entry in runs]),
        "runCount": len(runs),
        "runCountExpected": len(sweep.grid),
        "bestLoss": None,
        "controller": None,
        "scheduler": None,
        "createdAt": TIME,
        "updatedAt": TIME,
        "heartbeatAt": TIME,
    }


def report(report: Report) -> Json:
    return {
        "id": report.id,
        "name": report.id,
        "displayName": report.title,
        "description": report.description,
        "type": report.kind,
        "project": project(report.entity, report.project),
        "spec": json.dumps(report.spec),
        "createdAt": TIME,
        "updatedAt": TIME,
    }


def _count(run: Run, name: str) -> int:
    """One more than the number of the last line: lines that got lost on the way leave a gap."""
    return max(run.lines.get(name, {}), default=-1) + 1


def _tail(run: Run, stream: str) -> str:
    lines = run.lines.get(stream, {})
    return json.dumps([lines[max(lines)]] if lines else [])
