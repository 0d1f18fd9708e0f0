"""How the stand-in for the W&B backend answers about artifacts: a table is one, beside being a file of its run."""

from __future__ import annotations

import json

from standin import nodes
from standin.store import Artifact, Json, Store


class ArtifactAnswers(Store):
    def _on_ArtifactType(self, _: Json) -> Json:
        # Asked before an artifact is made, whose type must be that of the earlier versions.
        return {"project": {"artifact": None}}

    def _on_CreateArtifact(self, variables: Json) -> Json:
        asked = variables["input"]
        earlier = [entry for entry in self.artifacts.values() if entry.name == asked["artifactCollectionName"]]
        artifact = Artifact(
            id=f"artifact{len(self.artifacts):04}",
            name=asked["artifactCollectionName"],
            kind=asked["artifactTypeName"],
            digest=asked["digest"],
            run_id=asked["runName"],
            version=len(earlier),
            aliases=[alias["alias"] for alias in asked["aliases"]],
            metadata=json.loads(asked["metadata"] or "{}"),
            description=asked["description"],
        )
        self.artifacts[artifact.id] = artifact
        sequence = {"latestArtifact": {"id": earlier[-1].id} if earlier else None}
        return {"createArtifact": {"artifact": {"id": artifact.id, "state": "PENDING", "artifactSequence": sequence}}}

    def _on_CreateArtifactManifest(self, variables: Json) -> Json:
        artifact_id = variables["artifactID"]
        url = self._url("artifact", artifact_id, variables["name"])
        manifest = {"id": artifact_id, "file": {"id": artifact_id, "uploadUrl": url, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _on_CreateArtifactFiles(self, variables: Json) -> Json:
        uploads = [
            {
                "storagePath": file["name"],
                "uploadUrl": self._url("artifact", file["artifactID"], file["name"]),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in variables.get("input", variables)["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": nodes.page(uploads)}}

    def _on_CommitArtifact(self, variables: Json) -> Json:
        artifact = self.artifacts[variables["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_ArtifactByID(self, variables: Json) -> Json:
        return {"artifact": self._artifact(self.artifacts[variables["id"]])}

    _on_ArtifactByIDShort = _on_ArtifactByID

    def _on_ArtifactMembershipByName(self, variables: Json) -> Json:
        artifact = self._artifact(self._version(*variables["name"].split(":")))
        return {"project": {"artifactCollectionMembership": {**artifact, "artifact": artifact}}}

    def _on_RunOutputArtifacts(self, variables: Json) -> Json:
        logged = [entry for entry in self.artifacts.values() if entry.run_id == variables["run"]]
        page = nodes.page([self._artifact(artifact) for artifact in logged])
        return {"project": {"run": {"artifacts": {"totalCount": len(logged), **page}}}}

    def _on_FetchArtifactManifest(self, variables: Json) -> Json:
        url = self._url("artifact", variables["id"], nodes.MANIFEST)
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _on_ArtifactManifest(self, variables: Json) -> Json:
        """As older clients (0.21) ask, by name."""
        artifact = self._version(*variables["name"].split(":"))
        return {"project": self._on_FetchArtifactManifest({"id": artifact.id})}

    def _on_GetArtifactMembershipFileUrls(self, variables: Json) -> Json:
        artifact = self._version(variables["collection"], variables["alias"])
        names = artifact.files.keys() - {nodes.MANIFEST}
        files = [{"name": name, "directUrl": self._url("artifact", artifact.id, name)} for name in names]
        membership = {"files": nodes.page(files)}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": membership}}}

    def _version(self, name: str, alias: str) -> Artifact:
        """Alias: "latest", "v0" ..."""
        versions = [artifact for artifact in self.artifacts.values() if artifact.name == name]
        return versions[-1 if alias == "latest" else int(alias.removeprefix("v"))]

    def _artifact(self, artifact: Artifact) -> Json:
        return nodes.artifact(artifact, self.runs[artifact.run_id])
