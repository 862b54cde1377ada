"""A run as manifests: a ConfigMap with its configuration, and a RayJob or RayCluster of its size (KubeRay 1.7)."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from actors.config import UserError
from algorithms.config_rl import RLConfig
from launch.config import RunConfig
from launch.kube.config import ray_version
from launch.kube.config_parts import CODE, GcsStorageConfig
from launch.kube.dump import dump
from launch.kube.packing import ROLE, PodGroup, pod_groups
from launch.kube.pods import (
    RUN_FILE,
    Manifest,
    container_security,
    head_pod,
    object_labels,
    secret_source,
    submitter_pod,
    worker_pod,
)
from launch.kube.sizes import PodSize, driver_on_worker, head_size, host_memory, worker_size

Kind = Literal["rayjob", "raycluster"]
LONGEST_NAME: dict[Kind, int] = {"rayjob": 47, "raycluster": 53}
"""KubeRay derives the names of pods and services from it."""
DEFAULT_RETRIES, DEFAULT_TTL_S = 2, 60
# KubeRay pastes the entrypoint into a shell script: no `cd ... &&`, and no text of the user's.
ENTRYPOINT = f"env --chdir={CODE} tandem run {RUN_FILE}"


def render(config: RunConfig, kind: Kind = "rayjob") -> str:
    """The manifests as YAML, for `kubectl create -f -`; raises UserError as `manifests` does."""
    return dump(manifests(config, kind))


def manifests(config: RunConfig, kind: Kind = "rayjob") -> list[Manifest]:
    """The ConfigMap `<name>-config`, and the RayJob or RayCluster that mounts it.

    Raises:
        UserError: what cannot be on Kubernetes, or a manifest that breaks a rule of Kubernetes, KubeRay or Kueue.
    """
    from launch.kube.validate import manifest_problems

    documents = build_manifests(config, kind)
    if problems := manifest_problems(documents, ray_version()):
        raise UserError(*problems)
    return documents


def build_manifests(config: RunConfig, kind: Kind) -> list[Manifest]:
    """As `manifests`, but only what the configuration itself forbids is an error."""
    name = kube_name(config.run.name, LONGEST_NAME[kind])
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{name}-config", name),
        "immutable": True,
        "data": {"run.yaml": dump([run_values(config)])},
    }
    metadata = _metadata(config, name, name)
    annotations = {"tandem-run": config.run.name} | dict(sorted(config.cluster.kubernetes.annotations.items()))
    metadata |= {"labels": metadata["labels"] | _queue_labels(config), "annotations": annotations}
    if kind == "rayjob":
        spec = _job(config, name) | {"rayClusterSpec": _cluster(config, name)}
    else:
        spec = _cluster(config, name)
    owner = {"apiVersion": "ray.io/v1", "kind": {"rayjob": "RayJob", "raycluster": "RayCluster"}[kind]}
    return [config_map, {**owner, "metadata": metadata, "spec": spec}]


def kube_name(run: str, longest: int) -> str:
    """A run's name as a Kubernetes one (DNS-1035): shortened or with other letters, it ends in a hash of itself."""
    name = re.sub(r"[^a-z0-9-]", "-", run.lower())
    name = name if name[0].isalpha() else f"run-{name}"
    if len(name) <= longest and name.rstrip("-") in (run.lower(), f"run-{run.lower()}"):
        return name
    return f"{name[: longest - 9].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def run_values(config: RunConfig) -> Manifest:
    """What differs from the defaults, with the labels that keep the engines on their pods."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    if config.cluster.placement != "separate":
        return values
    sections = [(values.setdefault("policy", {}), "trainer"), (values.setdefault("rollout", {}), "rollout")]
    if config.critic is not None:
        sections.append((values["critic"], "trainer"))
    if config.reference_group:
        sections.append((values.setdefault("reference", {}), "trainer"))
    if isinstance(config.algorithm, RLConfig):
        models = values.get("reward", {}).get("models", [])
        sections += [(model.setdefault("group", {}), "trainer") for model in models]
    for section, role in sections:
        section["node_labels"] = section.get("node_labels", {}) | {ROLE: role}
    return values


def _metadata(config: RunConfig, name: str, run: str) -> Manifest:
    return {"name": name, "namespace": config.cluster.kubernetes.namespace, "labels": object_labels(config, run)}


def _queue_labels(config: RunConfig) -> dict[str, str]:
    queue = config.cluster.kubernetes.queue
    if queue is None:
        return {}
    labels = {"kueue.x-k8s.io/queue-name": queue.name}
    return labels | ({"kueue.x-k8s.io/priority-class": queue.priority_class} if queue.priority_class else {})


def retries(config: RunConfig) -> int:
    """New clusters after a failed one."""
    kubernetes = config.cluster.kubernetes
    if kubernetes.retries is not None:
        return kubernetes.retries
    alone = kubernetes.submission_mode == "InteractiveMode" or not config.checkpoint.resume
    return 0 if alone else DEFAULT_RETRIES


def _job(config: RunConfig, name: str) -> Manifest:
    kubernetes = config.cluster.kubernetes
    interactive = kubernetes.submission_mode == "InteractiveMode"
    job: Manifest = {} if interactive else {"entrypoint": ENTRYPOINT}
    job |= {"submissionMode": kubernetes.submission_mode, "backoffLimit": retries(config)}
    if kubernetes.deadline_s is not None:
        job["activeDeadlineSeconds"] = kubernetes.deadline_s
    if kubernetes.start_deadline_s is not None and not interactive:
        job["preRunningDeadlineSeconds"] = kubernetes.start_deadline_s
    job["shutdownAfterJobFinishes"] = kubernetes.shutdown
    if kubernetes.shutdown:
        job["ttlSecondsAfterFinished"] = DEFAULT_TTL_S if kubernetes.ttl_s is None else kubernetes.ttl_s
    if kubernetes.deletion_rules:
        ends = {
            "succeeded": {"jobStatus": "SUCCEEDED"},
            "failed": {"jobStatus": "FAILED"},
            "deployment_failed": {"jobDeploymentStatus": "Failed"},
        }
        rules = [
            {"policy": rule.policy, "condition": {**ends[rule.when], "ttlSeconds": rule.after_s}}
            for rule in kubernetes.deletion_rules
        ]
        job["deletionStrategy"] = {"deletionRules": rules}
    if driver_on_worker(config) and not interactive:
        job["entrypointNumCpus"] = 1
    if kubernetes.submission_mode == "K8sJobMode":
        job["submitterPodTemplate"] = submitter_pod(config, name)
    return job


def _cluster(config: RunConfig, name: str) -> Manifest:
    kubernetes, head, memory = config.cluster.kubernetes, head_size(config), host_memory(config)
    auth: Manifest = {"mode": kubernetes.ray_auth}
    if kubernetes.ray_auth_secret:
        auth["secretName"] = kubernetes.ray_auth_secret
    cluster: Manifest = {"rayVersion": ray_version(), "authOptions": auth}
    if kubernetes.autoscaling:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": kubernetes.autoscaling.idle_timeout_s,
            "securityContext": container_security(),
        }
    if kubernetes.gcs.storage != "none":
        cluster["gcsFaultToleranceOptions"] = _gcs(kubernetes.gcs)
    cluster["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", **_start(head)},
        "template": head_pod(config, name, head),
    }
    cluster["workerGroupSpecs"] = [_workers(config, name, group, memory) for group in pod_groups(config)]
    return cluster


def _workers(config: RunConfig, name: str, group: PodGroup, memory: Mapping[str, int] | None) -> Manifest:
    size, count = worker_size(config, group, memory), len(group.nodes)
    scaled = config.cluster.kubernetes.autoscaling is not None and group.name == "rollout"
    fewest = 0 if scaled else count
    workers: Manifest = {"groupName": group.name, "replicas": fewest, "minReplicas": fewest, "maxReplicas": count}
    if group.labels:
        workers["labels"] = dict(sorted(group.labels.items()))
    if group.resources:
        # Whole numbers: KubeRay reads quantities. CPUs, GPUs and memory come from the container's resources.
        workers["resources"] = {name: str(math.ceil(amount)) for name, amount in group.resources.items()}
    return workers | {"rayStartParams": _start(size), "template": worker_pod(config, name, group.name, size)}


def _start(size: PodSize) -> dict[str, str]:
    return {"object-store-memory": str(size.object_store_mib * 2**20)}


def _gcs(gcs: GcsStorageConfig) -> dict[str, Any]:
    options: Manifest = {"backend": gcs.storage}
    if gcs.storage == "redis":
        options["redisAddress"] = gcs.address
        if gcs.password:
            options["redisPassword"] = {"valueFrom": secret_source(gcs.password)}
        return options
    if gcs.claim:
        return options | {"storage": {"claimName": gcs.claim}}
    return options | {"storage": {"size": f"{gcs.size_gib}Gi"}}
