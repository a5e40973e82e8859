"""What the client's mutations do to the state; `do_X` answers the mutation X and takes its `input`."""

from __future__ import annotations

import base64
import hashlib

from tests.wandb_backend.objects import Objects
from tests.wandb_backend.state import Artifact, Refused, Run, connection


class Mutations(Objects):
    """The root fields of mutations."""

    def mutations(self) -> dict:
        """The root fields that change something; each takes `input`."""
        names = [name for name in dir(self) if name.startswith("do_")]
        return {name[3:]: lambda a, name=name: getattr(self, name)(a["input"]) for name in names}

    def do_upsertBucket(self, given: dict) -> dict:
        project = self.project(given.get("entityName"), given.get("modelName") or "uncategorized")
        name = given.get("name") or given["id"]
        new = name not in project.runs
        run = project.runs.setdefault(name, Run(self.identifier("Run"), name, project))
        run.config = given.get("config") or run.config
        run.summary = given.get("summaryMetrics") or run.summary
        run.job_type = given.get("jobType") or run.job_type
        return {"bucket": self.run_(run), "inserted": new}

    def do_createRunFiles(self, given: dict) -> dict:
        keys = {name: f"run/{given['runName']}/{name}" for name in given["files"]}
        files = [{"name": name, "uploadUrl": self.address(key)} for name, key in keys.items()]
        return {"runID": given["runName"], "uploadHeaders": [], "files": files}

    def do_createArtifact(self, given: dict) -> dict:
        project = self.project(given["entityName"], given["projectName"])
        collection = self.collection(project, given["artifactCollectionName"], given["artifactTypeName"])
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        same = (a for a in self.members(collection) if a.digest == given["digest"])
        if given.get("enableDigestDeduplication") and (twin := next(same, None)):
            collection.aliases |= dict.fromkeys(aliases, twin.id)
            return {"artifact": self.artifact_(twin)}
        artifact = Artifact(
            self.identifier("Artifact"),
            collection,
            given.get("runName"),
            given["digest"],
            aliases,
            given.get("description"),
            given.get("metadata"),
        )
        self.artifacts[artifact.id] = artifact
        collection.members[artifact.id] = len(collection.members)
        self.clients[given.get("clientID")] = artifact.id
        return {"artifact": self.artifact_(artifact)}

    def do_createArtifactManifest(self, given: dict) -> dict:
        identifier = self.identifier("ArtifactManifest")
        key = self.artifacts[given["artifactID"]].manifest = f"manifest/{identifier}"
        location = {"id": identifier, "uploadUrl": self.address(key), "uploadHeaders": []}
        return {"artifactManifest": {"id": identifier, "file": location}}

    def do_createArtifactFiles(self, given: dict) -> dict:
        return {"files": connection([self._place(file) for file in given["artifactFiles"]])}

    def _place(self, file: dict) -> dict:
        """Where to upload a file to; nowhere if an older version of the collection has its bytes."""
        own, md5 = file["artifactID"], file["md5"]
        older = [i for i in self.artifacts[own].collection.members if i != own]
        birth = next((i for i in older if self.blob(self.key(i, md5)).exists()), None)
        key, parts, multipart = self.key(birth or own, md5), file.get("uploadPartsInput"), None
        if parts and not birth:
            upload = self.identifier("Upload")
            self.uploads[upload] = key
            urls = [(part["partNumber"], self.address(f"{key}.{part['partNumber']:05d}")) for part in parts]
            multipart = {
                "uploadID": upload,
                "uploadUrlParts": [{"partNumber": n, "uploadUrl": address} for n, address in urls],
            }
        return {
            "storagePath": key,
            "artifact": {"id": birth or own},
            "uploadHeaders": [f"Content-MD5:{md5}", "Content-Type:application/octet-stream"],
            "uploadUrl": None if birth else self.address(key),
            "uploadMultipartUrls": multipart,
        }

    def do_completeMultipartUploadArtifact(self, given: dict) -> dict:
        key = self.uploads.pop(given["uploadID"])
        numbers = sorted(part["partNumber"] for part in given["completedParts"])
        whole = b"".join(self.blob(f"{key}.{number:05d}").read_bytes() for number in numbers)
        self.blob(key).write_bytes(whole)
        return {"digest": base64.b64encode(hashlib.md5(whole).digest()).decode()}

    def do_commitArtifact(self, given: dict) -> dict:
        artifact = self.artifacts[given["artifactID"]]
        for name, entry in self.entries(artifact).items():
            if not self.blob(self.key(entry["birthArtifactID"], entry["digest"])).exists():
                raise Refused(f"file {name} was never uploaded")
        artifact.state = "COMMITTED"
        artifact.collection.aliases |= dict.fromkeys([*artifact.aliases, "latest"], artifact.id)
        return {"artifact": self.artifact_(artifact)}

    def do_linkArtifact(self, given: dict) -> dict:
        artifact = self.artifacts[given.get("artifactID") or self.clients[given["clientID"]]]
        project = self.project(given["entityName"], given["projectName"])
        target = self.collection(project, given["artifactPortfolioName"], artifact.collection.type)
        target.linked = True
        version = target.members.setdefault(artifact.id, len(target.members))
        names = [alias["alias"] for alias in given.get("aliases") or []]
        target.aliases |= dict.fromkeys([*names, "latest"], artifact.id)
        return {"versionIndex": version, "artifactMembership": self.member_(target, artifact)}

    def do_useArtifact(self, given: dict) -> dict:
        artifact = self.artifacts[given["artifactID"]]
        run = self.project(given.get("entityName"), given["projectName"]).runs.get(given.get("runName"))
        if run and run not in artifact.used_by:
            artifact.used_by.append(run)
        return {"artifact": self.artifact_(artifact)}

    def do_updateArtifact(self, given: dict) -> dict:
        artifact = self.artifacts[given["artifactID"]]
        artifact.description = given.get("description") or artifact.description
        artifact.metadata = given.get("metadata") or artifact.metadata
        return {"artifact": self.artifact_(artifact)}

    def do_addAliases(self, given: dict) -> dict:
        artifact = self.artifacts[given["artifactID"]]
        artifact.collection.aliases |= {alias["alias"]: artifact.id for alias in given["aliases"]}
        return {"success": True}

    def do_deleteAliases(self, given: dict) -> dict:
        for alias in given["aliases"]:
            self.artifacts[given["artifactID"]].collection.aliases.pop(alias["alias"], None)
        return {"success": True}
