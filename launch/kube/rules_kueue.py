"""Kueue's rules (0.19) of what it queues: a RayJob or RayCluster with its label."""

import re
from collections.abc import Iterator

from launch.kube.schema import RayClusterManifest, RayJobManifest, cluster_of

_QUEUE = "kueue.x-k8s.io/queue-name"
_ELASTIC = "kueue.x-k8s.io/elastic-job"
_MAX_TIME = "kueue.x-k8s.io/max-exec-time-seconds"
_MOST_GROUPS = 17
"""Worker groups of one workload, which has at most 18 sets of pods, the head's among them."""


def kueue_problems(manifest: RayJobManifest | RayClusterManifest) -> Iterator[str]:
    """Problems that Kueue's webhook would report; none without the queue's label."""
    labels = manifest.metadata.labels
    if _QUEUE not in labels:
        for name in labels:
            if name.startswith("kueue.x-k8s.io/"):
                yield f'metadata.labels["{name}"]: must be left out without {_QUEUE}, got {labels[name]}'
        return
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", labels[_QUEUE]):
        rule = "must name a queue (lower-case letters, digits, '-' and '.')"
        yield f'metadata.labels["{_QUEUE}"]: {rule}, got {labels[_QUEUE] or "nothing"}'
    if not re.fullmatch(r"[1-9]\d*", labels.get(_MAX_TIME, "1")):
        yield f'metadata.labels["{_MAX_TIME}"]: must be a whole number of seconds from 1, got {labels[_MAX_TIME]}'
    if isinstance(manifest, RayJobManifest):
        job = manifest.spec
        if job.clusterSelector:
            yield f"spec.clusterSelector: must be left out with a queue, got {job.clusterSelector}"
        if job.deletionStrategy is not None:
            yield "spec.deletionStrategy: must be left out with a queue, which needs shutdownAfterJobFinishes"
        if not job.shutdownAfterJobFinishes:
            yield "spec.shutdownAfterJobFinishes: must be true with a queue, got false"
    if (found := cluster_of(manifest)) is None:
        return
    path, spec = found
    if spec.enableInTreeAutoscaling and manifest.metadata.annotations.get(_ELASTIC) != "true":
        yield f'{path}.enableInTreeAutoscaling: must be false with a queue, unless {_ELASTIC} is "true", got true'
    groups = spec.workerGroupSpecs
    if len(groups) > _MOST_GROUPS:
        yield f"{path}.workerGroupSpecs: must be at most {_MOST_GROUPS} with a queue, got {len(groups)}"
    for index, group in enumerate(groups):
        if group.groupName == "head":  # Kueue gives the head's own set of pods this name
            yield f"{path}.workerGroupSpecs[{index}].groupName: must not be head with a queue, got head"
