"""Rules of a RayJob that its schema lacks: KubeRay's own (1.7), and what makes the submission work."""

import json
from collections.abc import Iterator
from itertools import pairwise

import yaml

from actors.config_nodes import is_secret
from actors.failure import reason_of
from launch.kube.config_parts import RUN_CONFIG, image_ray_version
from launch.kube.rules_cluster import cluster_problems
from launch.kube.rules_pod import pod_problems
from launch.kube.schema import RayJobManifest, RayJobSpec
from launch.settings.file import BoundedLoader

_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
"""What is deleted first has the shorter time to live."""


def job_problems(job: RayJobManifest, ray_version: str) -> Iterator[str]:
    """Problems of a RayJob whose parts are valid: `path: rule, got value`."""
    spec = job.spec
    yield from _entrypoint(spec)
    yield from _end(spec)
    yield from _deletion(spec)
    yield from _selector(spec)
    yield from _submission(spec, ray_version)
    # The operator refuses the two together, but only once the RayJob is created.
    if job.metadata.labels.get("kai.scheduler/queue") and spec.submissionMode == "K8sJobMode":
        yield "spec.submissionMode: must be HTTPMode or SidecarMode with the label kai.scheduler/queue, got K8sJobMode"
    if spec.rayClusterSpec is not None:
        annotations = job.metadata.annotations
        yield from cluster_problems(spec.rayClusterSpec, "spec.rayClusterSpec", annotations, ray_version, in_job=True)


def _entrypoint(spec: RayJobSpec) -> Iterator[str]:
    if not spec.entrypoint.strip() and spec.submissionMode != "InteractiveMode":
        yield f"spec.entrypoint: required with submissionMode {spec.submissionMode}, got nothing"
    # The operator pastes it into a shell script, where a second line would be another command.
    if "\n" in spec.entrypoint.strip():
        yield "spec.entrypoint: must be one line, got several"
    # A manifest that was edited by hand may have lost the ConfigMap that its command reads.
    if f"{RUN_CONFIG}/" in spec.entrypoint and spec.rayClusterSpec is not None:
        mounts = spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].volumeMounts
        if all(mount.mountPath.rstrip("/") != RUN_CONFIG for mount in mounts):
            where = "spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].volumeMounts"
            yield f"{where}: must have {RUN_CONFIG}, which spec.entrypoint names, got none there"
    if spec.entrypointResources:
        try:
            resources = json.loads(spec.entrypointResources)
        except json.JSONDecodeError:
            resources = None
        if not isinstance(resources, dict) or any(isinstance(item, str) for item in resources.values()):
            rule = "must be a JSON object of numbers by resource"
            yield f"spec.entrypointResources: {rule}, got {spec.entrypointResources}"
    yield from _runtime_env(spec.runtimeEnvYAML)
    for name, value in spec.metadata.items():
        if is_secret(name, value):
            yield f"spec.metadata.{name}: must be left out, as whoever reaches Ray can read it, got a value"


def _runtime_env(text: str) -> Iterator[str]:
    try:
        values = yaml.load(text, BoundedLoader) if text else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        yield f"spec.runtimeEnvYAML: must be YAML, got {reason_of(error)}"
        return
    if not isinstance(values, dict):
        yield f"spec.runtimeEnvYAML: must be a YAML mapping, got {type(values).__name__}"
        return
    variables = values.get("env_vars")
    for name, value in variables.items() if isinstance(variables, dict) else ():
        if is_secret(str(name), str(value)):  # Ray's API gives a job's environment to whoever asks for the job
            yield f"spec.runtimeEnvYAML.env_vars.{name}: must come from a Secret (env of the containers), got a value"
        elif not isinstance(value, str):
            yield f"spec.runtimeEnvYAML.env_vars.{name}: must be a string, got {value!r}"


def _end(spec: RayJobSpec) -> Iterator[str]:
    if spec.ttlSecondsAfterFinished and not spec.shutdownAfterJobFinishes:
        rule = "must be left out without shutdownAfterJobFinishes"
        yield f"spec.ttlSecondsAfterFinished: {rule}, got {spec.ttlSecondsAfterFinished}"
    if spec.suspend and not spec.shutdownAfterJobFinishes:
        yield "spec.suspend: must be false without shutdownAfterJobFinishes, got true"
    start, whole = spec.preRunningDeadlineSeconds, spec.activeDeadlineSeconds
    if start and whole and whole < start:
        yield f"spec.activeDeadlineSeconds: must be at least preRunningDeadlineSeconds ({start}), got {whole}"


def _deletion(spec: RayJobSpec) -> Iterator[str]:
    strategy, where = spec.deletionStrategy, "spec.deletionStrategy"
    if strategy is None:
        return
    if strategy.deletionRules and spec.shutdownAfterJobFinishes:
        yield "spec.shutdownAfterJobFinishes: must be left out with deletionStrategy.deletionRules, got true"
    # onSuccess and onFailure: the older form, which KubeRay still takes.
    policies = {f"{where}.{name}.policy": getattr(strategy, name) for name in ("onSuccess", "onFailure")}
    policies |= {f"{where}.deletionRules[{i}].policy": rule for i, rule in enumerate(strategy.deletionRules or [])}
    for place, item in policies.items():
        if item is None:
            continue
        if item.policy == "DeleteNone" and spec.shutdownAfterJobFinishes:
            yield f"{place}: must not be DeleteNone with shutdownAfterJobFinishes, got DeleteNone"
        if item.policy in ("DeleteCluster", "DeleteWorkers") and spec.clusterSelector:
            yield f"{place}: must be DeleteSelf or DeleteNone with clusterSelector, got {item.policy}"
        if item.policy == "DeleteWorkers" and spec.rayClusterSpec and spec.rayClusterSpec.enableInTreeAutoscaling:
            yield f"{place}: must not be DeleteWorkers with enableInTreeAutoscaling, got DeleteWorkers"
    yield from _deletion_order(spec, f"{where}.deletionRules")


def _deletion_order(spec: RayJobSpec, where: str) -> Iterator[str]:
    times: dict[str, dict[str, int]] = {}
    for index, rule in enumerate(spec.deletionStrategy.deletionRules or [] if spec.deletionStrategy else []):
        status = rule.condition.jobStatus or rule.condition.jobDeploymentStatus or ""
        seen = times.setdefault(status, {})
        if rule.policy in seen:
            yield f"{where}[{index}]: must differ from those before it, got {rule.policy} at {status} again"
        seen[rule.policy] = rule.condition.ttlSeconds
    for status, seen in times.items():
        ordered = [(policy, seen[policy]) for policy in _ORDER if policy in seen]
        for (first, sooner), (second, later) in pairwise(ordered):
            if later < sooner:
                yield f"{where}: ttlSeconds of {second} at {status} must be at least {first}'s ({sooner}), got {later}"


def _selector(spec: RayJobSpec) -> Iterator[str]:
    if spec.rayClusterSpec is None and not spec.clusterSelector:
        yield "spec.rayClusterSpec: required without clusterSelector, got nothing"
    if not spec.clusterSelector:
        return
    where = "spec.clusterSelector"
    if spec.rayClusterSpec is not None:
        yield f"{where}: must be left out with rayClusterSpec, got {spec.clusterSelector}"
    if not spec.clusterSelector.get("ray.io/cluster"):
        yield f"{where}: must have ray.io/cluster, the name of a RayCluster, got {spec.clusterSelector}"
    if spec.submissionMode == "SidecarMode":
        yield f"{where}: must be left out with submissionMode SidecarMode, got {spec.clusterSelector}"
    if spec.backoffLimit:
        yield f"spec.backoffLimit: must be 0 with clusterSelector, got {spec.backoffLimit}"
    if spec.suspend:
        yield "spec.suspend: must be false with clusterSelector, got true"


def _submission(spec: RayJobSpec, ray_version: str) -> Iterator[str]:
    if spec.submissionMode == "InteractiveMode" and spec.backoffLimit:
        yield f"spec.backoffLimit: must be 0 with submissionMode InteractiveMode, got {spec.backoffLimit}"
    if spec.submissionMode != "K8sJobMode":
        for name in ("submitterPodTemplate", "submitterConfig"):
            if getattr(spec, name) is not None:
                yield f"spec.{name}: must be left out unless submissionMode is K8sJobMode, got {spec.submissionMode}"
    if spec.submissionMode == "SidecarMode" and spec.rayClusterSpec is not None:
        policy = spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy
        if policy not in (None, "Never"):
            where = "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy"
            yield f"{where}: must be Never or left out with submissionMode SidecarMode, got {policy}"
    if spec.submitterPodTemplate is not None:
        pod, where = spec.submitterPodTemplate.spec, "spec.submitterPodTemplate"
        if pod.restartPolicy not in ("Never", "OnFailure"):
            yield f"{where}.spec.restartPolicy: must be Never or OnFailure, got {pod.restartPolicy or 'nothing'}"
        image = pod.containers[0].image
        if image_ray_version(image) != ray_version:
            rule = f"must name the Ray installed here in its tag (ray{ray_version})"
            yield f"{where}.spec.containers[0].image: {rule}, got {image}"
        yield from pod_problems(pod, f"{where}.spec")
