"""Creating the RayJob of a configuration, once: what is there already is attached to, replaced or left alone."""

import hashlib
import json
import time
from collections.abc import Callable

from actors.config import UserError
from launch.kube.kubeconfig import KubeApi, KubeUnreachable
from launch.kube.objects import Document, KubeObject, RayJob
from launch.kube.watch import POLL_S, RayJobState

OURS = {"app.kubernetes.io/part-of": "tandem"}
"""Label of everything that Tandem renders."""
DIGEST = "tandem-digest"
"""Annotation of a RayJob: sha256 of the documents it was made of."""
DELETION_S = 60
"""Time that the operator and the API server take for a deletion, beside the pods' own, in seconds."""
_DEFAULT_GRACE_S = 30  # Kubernetes' own


def submit_documents(api: KubeApi, documents: list[Document], *, say: Callable[[str], None]) -> tuple[RayJob, str]:
    """Create ConfigMap, NetworkPolicy and the RayJob, which comes last, or find it running.

    Returns:
        The RayJob, and what was done for it.

    Raises:
        UserError: another RayJob has its name and is not finished or not Tandem's; the cluster refuses the request.
    """
    # Before the namespace and the digest itself are written into them.
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
    for document in documents:
        document["metadata"]["namespace"] = api.namespace
    *parts, job = documents
    name = job["metadata"]["name"]
    job["metadata"]["annotations"] = (job["metadata"].get("annotations") or {}) | {DIGEST: digest}
    before = api.rayjob(name)
    if before is not None and _is_in_use(api, before, digest):
        _own(api, parts, before)  # An earlier submission may have ended before it came to this.
        return before, "was there already, with this configuration: attached"
    if before is not None:
        say(f"RayJob {name} of an earlier submission is deleted: {RayJobState.of(before).line}")
        limit_s = pods_grace_s(before) + DELETION_S
        if not delete_in_full(api, before, limit_s):
            raise UserError(
                f"run.name: RayJob {name} must be gone within {limit_s} s of its deletion, got it still there"
            )
    made: list[Document] = []
    try:
        for document in parts:
            _replace(api, document)  # parts first: a pod that needs a ConfigMap does not start without it
            made.append(document)
        created = api.create_rayjob(job)
    except KubeUnreachable:
        raise  # It may have been created: submitted again, the same configuration finds out.
    except UserError:
        if api.rayjob(name) is None:  # where the RayJob was made nevertheless, its pods need them
            for document in made:
                api.delete_part(document)
        raise
    _own(api, parts, created)
    return created, "created" if before is None else "created again"


def _is_in_use(api: KubeApi, document: RayJob, digest: str) -> bool:
    """Whether the RayJob runs this configuration; raises UserError if it must not be replaced."""
    metadata = document["metadata"]
    name, state = metadata["name"], RayJobState.of(document)
    if not _is_ours(document):
        raise UserError(f"run.name: must be free in namespace {api.namespace}, got a RayJob {name} not of Tandem's")
    # Both are on their way out: the caller waits until the name is free.
    if state.finished or metadata.get("deletionTimestamp"):
        return False
    if (metadata.get("annotations") or {}).get(DIGEST) == digest:
        return True
    raise UserError(
        f"run.name: must not be that of an unfinished RayJob of another configuration, got {name} ({state.line}; "
        f"{command_for(api, 'stop', name)} ends it)"
    )


def _replace(api: KubeApi, document: Document) -> None:
    name = document["metadata"]["name"]
    before = api.part(document)
    if before is not None and not _is_ours(before):
        what = f"a {document['kind']} {name}"
        raise UserError(f"run.name: must be free in namespace {api.namespace}, got {what} not of Tandem's")
    if before is not None:
        api.delete_part(document)
    api.create_part(document)


def _own(api: KubeApi, parts: list[Document], job: RayJob) -> None:
    for document in parts:
        api.own_part(document, job)


def delete_in_full(api: KubeApi, document: RayJob, limit_s: float) -> bool:
    """Delete a RayJob and wait for its end and that of its pods; False if they are still there after the limit."""
    metadata, deadline = document["metadata"], time.monotonic() + limit_s
    if not metadata.get("deletionTimestamp"):
        api.delete_rayjob(metadata["name"])
    # Another uid: somebody has created it again, so this one is gone.
    while (found := api.rayjob(metadata["name"])) is not None and found["metadata"]["uid"] == metadata["uid"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
    return True


def pods_grace_s(document: RayJob) -> int:
    """Seconds that a RayJob's pods have between SIGTERM and their end."""
    cluster = document["spec"].get("rayClusterSpec") or {}
    groups = [cluster.get("headGroupSpec") or {}, *(cluster.get("workerGroupSpecs") or [])]
    specs = [(group.get("template") or {}).get("spec") or {} for group in groups]
    return max(spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S) for spec in specs)


def command_for(api: KubeApi, verb: str, name: str) -> str:
    """The command line that does `verb` to a RayJob: `tandem stop grpo --kube --namespace train`."""
    context = f" --context {api.context}" if api.context else ""
    return f"tandem {verb} {name} --kube --namespace {api.namespace}{context}"


def _is_ours(document: KubeObject) -> bool:
    return (document["metadata"].get("labels") or {}).items() >= OURS.items()
