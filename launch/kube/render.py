"""A run as manifests: a ConfigMap with its configuration and a RayJob, or a RayCluster of its size (KubeRay 1.7).

Each has a network policy.
"""

import hashlib
import json
import math
import re
from typing import Literal

from actors.config import UserError
from launch.config import RunConfig
from launch.kube.config import ray_version
from launch.kube.config_parts import CODE, GcsStorageConfig
from launch.kube.dump import dump
from launch.kube.network import network_policy
from launch.kube.objects import Document, DocumentMetadata, Manifest
from launch.kube.packing import DRIVER_RESOURCE, ROLE, PodGroup, pod_groups
from launch.kube.pods import (
    RUN_FILE,
    container_security,
    environment_problems,
    head_pod,
    object_labels,
    secret_source,
    submitter_pod,
    worker_pod,
)
from launch.kube.sizes import PodSize, driver_on_worker, head_size, host_memory, may_hold_driver, worker_size

Kind = Literal["rayjob", "raycluster"]
LONGEST_NAME: dict[Kind, int] = {"rayjob": 47, "raycluster": 53}
"""KubeRay derives the names of pods and services from it."""
DEFAULT_RETRIES, DEFAULT_TTL_S = 2, 60
# KubeRay pastes the entrypoint into a shell script: no `cd ... &&`, and no text of the user's.
ENTRYPOINT = f"env --chdir={CODE} tandem run {RUN_FILE}"


def render(config: RunConfig, kind: Kind = "rayjob") -> str:
    """The manifests as YAML, for `kubectl create -f -`; raises UserError as `manifests` does."""
    return dump(manifests(config, kind))


def manifests(config: RunConfig, kind: Kind = "rayjob") -> list[Document]:
    """The ConfigMap `<name>-config`, the NetworkPolicy `<name>-network` and the RayJob; or policy and RayCluster.

    Raises:
        UserError: what cannot be on Kubernetes, or a manifest that breaks a rule of Kubernetes, KubeRay or Kueue.
    """
    from launch.kube.validate import manifest_problems

    documents = build_manifests(config, kind)
    if problems := manifest_problems(documents, ray_version()):
        raise UserError(*problems)
    return documents


def build_manifests(config: RunConfig, kind: Kind) -> list[Document]:
    """As `manifests`, but only what the configuration itself forbids is an error."""
    if problems := list(environment_problems(config)):
        raise UserError(*problems)
    name = kube_name(config.run.name, LONGEST_NAME[kind])
    metadata = _metadata(config, name, object_labels(config, name) | _queue_labels(config))
    metadata["annotations"] = {"tandem-run": config.run.name} | dict(
        sorted(config.cluster.kubernetes.annotations.items())
    )
    policy = network_policy(config, name)
    if kind == "raycluster":
        cluster = _cluster(config, name, None)
        return [policy, {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": cluster}]
    # Not immutable: the node's agent would keep serving the old one to the pods of a run that is started again.
    config_map: Document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{name}-config", object_labels(config, name)),
        "data": {"run.yaml": dump([run_values(config)])},
    }
    spec = _job(config, name) | {"rayClusterSpec": _cluster(config, name, f"{name}-config")}
    job: Document = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}
    return [config_map, policy, job]


def kube_name(run: str, longest: int) -> str:
    """A run's name as a Kubernetes one (DNS-1035); one that is none is changed, and ends in a hash of what it was."""
    if len(run) <= longest and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run):
        return run
    name = re.sub(r"[^a-z0-9-]", "-", run.lower())
    name = name if name[0].isalpha() else f"run-{name}"
    # 9: a hyphen and the 8 digits of the hash, which tells apart what would become the same name.
    return f"{name[: longest - 9].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def run_values(config: RunConfig) -> Manifest:
    """What differs from the defaults, with the labels that keep the engines on their pods."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    if config.cluster.placement != "separate":
        return values
    sections = [(values.setdefault("policy", {}), "trainer"), (values.setdefault("rollout", {}), "rollout")]
    if config.critic is not None:
        sections.append((values["critic"], "trainer"))  # there, as its default is none
    if config.reference_group:
        sections.append((values.setdefault("reference", {}), "trainer"))
    models = values.get("reward", {}).get("models", [])
    sections += [(model.setdefault("group", {}), "trainer") for model in models]
    for section, role in sections:
        section["node_labels"] = section.get("node_labels", {}) | {ROLE: role}
    return values


def _metadata(config: RunConfig, name: str, labels: dict[str, str]) -> DocumentMetadata:
    return {"name": name, "namespace": config.cluster.kubernetes.namespace, "labels": labels}


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
    return DEFAULT_RETRIES if config.checkpoint.resume else 0


def _job(config: RunConfig, name: str) -> Manifest:
    kubernetes = config.cluster.kubernetes
    job: Manifest = {"entrypoint": ENTRYPOINT, "submissionMode": kubernetes.submission_mode}
    job["backoffLimit"] = retries(config)
    if kubernetes.deadline_s is not None:
        job["activeDeadlineSeconds"] = kubernetes.deadline_s
    if kubernetes.start_deadline_s is not None:
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
    # Where the entrypoint asks for resources, Ray places the driver on a worker; else it is on the head.
    if driver_on_worker(config):
        job |= {"entrypointNumCpus": 1, "entrypointResources": json.dumps({DRIVER_RESOURCE: 1})}
    if kubernetes.submission_mode == "K8sJobMode":
        job["submitterPodTemplate"] = submitter_pod(config, name)
    return job


def _cluster(config: RunConfig, name: str, config_map: str | None) -> Manifest:
    kubernetes, head, memory = config.cluster.kubernetes, head_size(config), host_memory(config)
    auth: Manifest = {"mode": kubernetes.ray_auth}
    if kubernetes.ray_auth_secret:
        auth["secretName"] = kubernetes.ray_auth_secret
    cluster: Manifest = {"rayVersion": ray_version(), "authOptions": auth}
    if kubernetes.autoscaling:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {
            "version": "v2",  # Ray's default since 2.47
            "idleTimeoutSeconds": kubernetes.autoscaling.idle_timeout_s,
            "securityContext": container_security(),
        }
    if kubernetes.gcs.storage != "none":
        cluster["gcsFaultToleranceOptions"] = _gcs(kubernetes.gcs)
    cluster["headGroupSpec"] = {
        # Where NVIDIA's runtime is the default one, the head sees its node's GPUs.
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_start(head)},
        "template": head_pod(config, name, head, config_map),
    }
    groups = [(group, worker_size(config, group, memory)) for group in pod_groups(config)]
    cluster["workerGroupSpecs"] = [
        _workers(config, group, size) | {"template": worker_pod(config, name, group.name, size, config_map)}
        for group, size in groups
    ]
    return cluster


def _workers(config: RunConfig, group: PodGroup, size: PodSize) -> Manifest:
    count = len(group.nodes)
    scaled = config.cluster.kubernetes.autoscaling is not None and group.name == "rollout"
    fewest = 0 if scaled else count  # the autoscaler starts them when the engines of the run ask
    workers: Manifest = {"groupName": group.name, "replicas": fewest, "minReplicas": fewest, "maxReplicas": count}
    if group.labels:
        workers["labels"] = dict(sorted(group.labels.items()))
    resources = group.resources | ({DRIVER_RESOURCE: 1} if may_hold_driver(config, group) else {})
    if resources:
        # Whole numbers: KubeRay reads quantities. CPUs, GPUs and memory come from the container's resources.
        workers["resources"] = {name: str(math.ceil(amount)) for name, amount in resources.items()}
    return workers | {"rayStartParams": _start(size)}


def _start(size: PodSize) -> dict[str, str]:
    return {"object-store-memory": str(size.object_store_mib * 2**20)}


def _gcs(gcs: GcsStorageConfig) -> Manifest:
    options: Manifest = {"backend": gcs.storage}
    if gcs.storage == "redis":
        options["redisAddress"] = gcs.address
        if gcs.password:
            options["redisPassword"] = {"valueFrom": secret_source(gcs.password)}
        return options
    if gcs.claim:
        return options | {"storage": {"claimName": gcs.claim}}
    return options | {"storage": {"size": f"{gcs.size_gib}Gi"}}
