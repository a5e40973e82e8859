"""The objects that the client's queries walk through: field -> value, or function of the field's arguments."""

from __future__ import annotations

from tests.wandb_backend.state import ENTITY, TIME, Artifact, Collection, Project, Run, State, connection


class Objects(State):
    """The state as GraphQL objects, and the root fields of queries."""

    def entity_(self, name: str) -> dict:
        org = {"__typename": "Organization", "name": "local-org", "coreWeaveOrganizationId": None}
        return {
            "__typename": "Entity",
            "id": name,
            "name": name,
            "organization": {**org, "orgEntity": {"__typename": "Entity", "name": "local-org-entity"}},
            "xxhashDigestsEnabled": False,
            "defaultEntity": None,
            "user": None,
            "isTeam": False,
        }

    def viewer_(self) -> dict:
        return {
            "__typename": "User",
            **dict.fromkeys(("id", "entity", "username", "name"), ENTITY),
            "email": None,
            "flags": "{}",
            "admin": False,
            "deletedAt": None,
            "teams": connection([self.entity_(ENTITY)]),
            "defaultEntity": self.entity_(ENTITY),
            "apiKeys": connection([]),
            "organizations": [],
        }

    def project_(self, project: Project) -> dict:
        def run(arguments: dict) -> dict | None:
            return self.run_(project.runs.get(arguments["name"]))

        def member(arguments: dict) -> dict | None:
            name, _, alias = arguments["name"].partition(":")
            collection = project.collections.get(name)
            return self.member_(collection, self.find(collection, alias or "latest"))

        return {
            "__typename": "Project",
            "id": project.id,
            "internalId": str(project.number),
            "name": project.name,
            "entityName": project.entity,
            "entity": self.entity_(project.entity),
            "readOnly": False,
            "createdAt": TIME,
            "bucket": run,
            "run": run,
            "artifact": lambda a: (m := member(a)) and m["artifact"],
            "artifactCollectionMembership": member,
            "artifactCollection": lambda a: self.collection_(project.collections.get(a["name"])),
            "artifactType": lambda a: self.type_(project, a["name"]),
        }

    def type_(self, project: Project, name: str) -> dict | None:
        if all(c.type != name for c in project.collections.values()):
            return None

        def collection(arguments: dict) -> dict | None:
            found = project.collections.get(arguments["name"])
            return self.collection_(found) if found and found.type == name else None

        of_type = {"__typename": "ArtifactType", "id": name, "name": name, "description": None, "createdAt": TIME}
        return {**of_type, "artifactCollection": collection, "artifactSequence": collection}

    def collection_(self, collection: Collection | None) -> dict | None:
        if collection is None:
            return None
        newest = [*reversed(self.members(collection))]
        kind = {"__typename": "ArtifactType", "id": collection.type, "name": collection.type}

        def artifacts(_: dict) -> dict:
            page = connection([self.artifact_(a) for a in newest])
            for edge, artifact in zip(page["edges"], newest, strict=True):
                edge["version"] = f"v{collection.members[artifact.id]}"
            return page

        return {
            "__typename": "ArtifactPortfolio" if collection.linked else "ArtifactSequence",
            "__implements": ("ArtifactCollection",),
            "id": collection.id,
            "name": collection.name,
            "project": lambda _: self.project_(collection.project),
            "description": None,
            "createdAt": TIME,
            "updatedAt": None,
            "state": "READY",
            "type": kind,
            "defaultArtifactType": kind,
            "tags": connection([]),
            "aliases": lambda _: connection([self.alias_(collection, k) for k in collection.aliases]),
            "artifacts": artifacts,
            "latestArtifact": lambda _: self.artifact_(newest[0]) if newest else None,
            "artifactMembership": lambda a: self.member_(collection, self.find(collection, a["aliasName"])),
            "artifactMemberships": lambda _: connection([self.member_(collection, a) for a in newest]),
        }

    def alias_(self, collection: Collection, name: str) -> dict:
        return {
            "__typename": "ArtifactAlias",
            "id": f"{collection.id}:{name}",
            "alias": name,
            "artifactCollectionName": collection.name,
            "artifactCollection": lambda _: self.collection_(collection),
        }

    def aliases_(self, collection: Collection, artifact: Artifact) -> list[dict]:
        names = [name for name, identifier in collection.aliases.items() if identifier == artifact.id]
        return [self.alias_(collection, name) for name in (*names, f"v{collection.members[artifact.id]}")]

    def member_(self, collection: Collection | None, artifact: Artifact | None) -> dict | None:
        if collection is None or artifact is None:
            return None
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"{collection.id}:{artifact.id}",
            "versionIndex": collection.members[artifact.id],
            "createdAt": TIME,
            "aliases": self.aliases_(collection, artifact),
            "artifactCollection": lambda _: self.collection_(collection),
            "artifact": self.artifact_(artifact),
            "files": lambda a: self.files_(artifact, a),
        }

    def artifact_(self, artifact: Artifact | None) -> dict | None:
        if artifact is None:
            return None
        collection, contents = artifact.collection, self.entries(artifact)
        location = {"id": artifact.manifest, "directUrl": self.address(artifact.manifest)}
        manifest = {"__typename": "ArtifactManifest", "id": artifact.manifest, "file": location}
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "state": artifact.state,
            "versionIndex": collection.members[artifact.id],
            "description": artifact.description,
            "metadata": artifact.metadata,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "size": sum(entry["size"] for entry in contents.values()),
            "fileCount": len(contents),
            "commitHash": artifact.id,
            "createdAt": TIME,
            "updatedAt": TIME,
            "aliases": self.aliases_(collection, artifact),
            "artifactSequence": lambda _: self.collection_(collection),
            "artifactType": {"__typename": "ArtifactType", "id": collection.type, "name": collection.type},
            "currentManifest": manifest if artifact.manifest else None,
            "files": lambda a: self.files_(artifact, a),
            "artifactMemberships": lambda _: connection([self.member_(collection, artifact)]),
            "usedBy": lambda _: connection([self.run_(run) for run in artifact.used_by]),
            "createdBy": lambda _: self.run_(collection.project.runs.get(artifact.run)),
        }

    def files_(self, artifact: Artifact, arguments: dict) -> dict:
        names = arguments.get("names")
        rows = [item for item in sorted(self.entries(artifact).items()) if not names or item[0] in names]
        return connection([self.file_(name, entry) for name, entry in rows])

    def file_(self, name: str, entry: dict) -> dict:
        key = self.key(entry["birthArtifactID"], entry["digest"])
        return {
            "__typename": "File",
            "id": key,
            **dict.fromkeys(("name", "displayName"), name),
            **dict.fromkeys(("url", "directUrl"), self.address(key)),
            **dict.fromkeys(("digest", "md5"), entry["digest"]),
            "sizeBytes": entry["size"],
            "storagePath": key,
            "mimetype": "application/octet-stream",
            "updatedAt": TIME,
        }

    def run_(self, run: Run | None) -> dict | None:
        if run is None:
            return None
        nothing = ("description", "sweepName", "notes", "group", "commit", "historyKeys")
        counts = ("historyLineCount", "logLineCount", "eventsLineCount")
        return {
            "__typename": "Run",
            "id": run.id,
            "name": run.name,
            "displayName": run.name,
            "config": run.config,
            "wandbConfig": "{}",
            "summaryMetrics": run.summary,
            "jobType": run.job_type,
            "project": lambda _: self.project_(run.project),
            "projectId": str(run.project.number),
            "state": "finished",
            "tags": [],
            "historyTail": "[]",
            "eventsTail": "[]",
            "systemMetrics": "{}",
            "lastHistoryStep": -1,
            "readOnly": False,
            "stopped": False,
            "user": self.viewer_(),
            **dict.fromkeys(nothing),
            **dict.fromkeys(counts, 0),
            **dict.fromkeys(("createdAt", "heartbeatAt", "updatedAt"), TIME),
        }

    def queries(self) -> dict:
        """The root fields that can be asked for."""
        versions = {"max_cli_version": "99.0.0"}
        return {
            "viewer": lambda _: self.viewer_(),
            "serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []},
            "entity": lambda a: self.entity_(a.get("name") or ENTITY),
            "project": lambda a: self.project_(self.project(a.get("entityName"), a["name"])),
            "model": lambda a: self.project_(self.project(a.get("entityName"), a["name"])),
            "artifact": lambda a: self.artifact_(self.artifacts.get(a["id"])),
            "clientIDMapping": lambda a: (i := self.clients.get(a["clientID"])) and {"serverID": i},
        }
