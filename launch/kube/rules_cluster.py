"""Rules of a RayCluster that its schema lacks: KubeRay's own (1.7), and what makes its pods start."""

import difflib
import re
from collections.abc import Iterator

from launch.kube.config_parts import image_ray_version
from launch.kube.rules_gcs import gcs_problems
from launch.kube.rules_pod import pod_problems
from launch.kube.schema import RayClusterSpec, RayGroup, WorkerGroup
from launch.kube.schema_types import quantity_value

_RAY_CONTAINER = "template.spec.containers[0]"
_RAY_START = {
    "address",
    "autoscaling-config",
    "block",
    "cgroup-path",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "dashboard-host",
    "dashboard-port",
    "disable-usage-stats",
    "enable-resource-isolation",
    "head",
    "include-dashboard",
    "include-log-monitor",
    "log-color",
    "log-style",
    "max-worker-port",
    "memory",
    "metrics-export-port",
    "min-worker-port",
    "node-ip-address",
    "node-manager-port",
    "node-name",
    "num-cpus",
    "num-gpus",
    "object-manager-port",
    "object-spilling-directory",
    "object-store-memory",
    "plasma-directory",
    "port",
    "proxy-server-url",
    "ray-client-server-port",
    "resources",
    "runtime-env-agent-port",
    "system-config",
    "system-reserved-cpu",
    "system-reserved-memory",
    "temp-dir",
    "verbose",
    "worker-port-list",
}
"""Options of `ray start`; the operator passes rayStartParams on, and an unknown one ends the pod."""
_RESOURCE_OPTIONS = ("num-cpus", "num-gpus", "memory", "resources")
_NUMBERS = ("num-cpus", "num-gpus", "memory", "object-store-memory")
"""Options that are whole numbers, of CPUs, GPUs and bytes."""
# Variables that the operator sets itself: another value would contradict it.
_OPERATORS = ("RAY_ADDRESS", "RAY_AUTH_MODE")
_OWN_COMMAND = "ray.io/overwrite-container-cmd"


def cluster_problems(
    spec: RayClusterSpec, path: str, annotations: dict[str, str], ray_version: str, *, in_job: bool
) -> Iterator[str]:
    """Problems of a cluster whose parts are valid; `in_job`: it is the `rayClusterSpec` of a RayJob."""
    if spec.rayVersion != ray_version:
        yield f"{path}.rayVersion: must be the version of Ray installed here ({ray_version}), got {spec.rayVersion}"
    for place, group in spec.groups(path).items():
        yield from _group(group, place, spec.rayVersion)
        if not isinstance(group, WorkerGroup):
            continue
        yield from _replicas(group, place, autoscaled=spec.enableInTreeAutoscaling)
        yield from _autoscaled_group(spec, group, place)
    yield from _autoscaling(spec, path)
    yield from gcs_problems(spec, path, annotations)
    yield from _authentication(spec, path, in_job)
    if in_job and spec.upgradeStrategy is not None:
        yield f"{path}.upgradeStrategy: must be left out in a RayJob, got {spec.upgradeStrategy.type}"


def _group(group: RayGroup, place: str, ray_version: str) -> Iterator[str]:
    containers = group.template.spec.containers
    named = image_ray_version(containers[0].image)
    if named != ray_version:
        rule = f"must name the cluster's Ray in its tag (ray{ray_version})"
        yield f"{place}.{_RAY_CONTAINER}.image: {rule}, got {containers[0].image}"
    metadata = group.template.metadata
    if containers[0].command and metadata.annotations.get(_OWN_COMMAND) != "true":
        rule = f'must be left out, as the operator starts Ray, unless the annotation {_OWN_COMMAND} is "true"'
        yield f"{place}.{_RAY_CONTAINER}.command: {rule}, got {containers[0].command[0]}"
    for name in metadata.labels:
        if name.startswith("ray.io/"):
            yield f'{place}.template.metadata.labels["{name}"]: must be left out, as the operator sets it, got one'
    others = [  # the operator takes the first container for Ray: a sidecar before it would be started as one
        container for container in containers[1:] if image_ray_version(container.image) or _by_name(container.name)
    ]
    if others and named is None and not _by_name(containers[0].name):
        yield f"{place}.{_RAY_CONTAINER}: must be the Ray container ({others[0].name}), got {containers[0].name}"
    yield from _start_options(group, place)
    yield from pod_problems(group.template.spec, f"{place}.template.spec")


def _by_name(container: str) -> bool:
    return re.match(r"ray(-|$)", container) is not None


def _start_options(group: RayGroup, place: str) -> Iterator[str]:
    both = [option for option in _RESOURCE_OPTIONS if option in group.rayStartParams]
    if both and group.resources:
        yield f"{place}.resources: must be left out with rayStartParams {', '.join(both)}, got {group.resources}"
    for option, value in group.rayStartParams.items():
        where = f"{place}.rayStartParams.{option}"
        if option == "labels":
            yield f"{where}: must be left out, as {place}.labels has the labels, got {value}"
        elif option.startswith("redis-"):
            yield f"{where}: must be left out, as gcsFaultToleranceOptions has the user and the password, got a value"
        elif option not in _RAY_START:
            near = difflib.get_close_matches(option, _RAY_START, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"{where}: unknown option of ray start{hint}, got {value}"
        elif option in _NUMBERS and not re.fullmatch(r"[0-9]{1,18}", value):
            yield f"{where}: must be a whole number, got {value}"
        # Its value is a number by now: _NUMBERS has it.
        elif option == "object-store-memory":
            yield from _object_store(group, int(value), where)


def _object_store(group: RayGroup, size: int, where: str) -> Iterator[str]:
    """It must fit into the pod's own /dev/shm; the operator's is as large as the pod's memory."""
    pod = group.template.spec
    names = [mount.name for mount in pod.containers[0].volumeMounts if mount.mountPath.rstrip("/") == "/dev/shm"]
    for volume in pod.volumes:
        limit = volume.emptyDir.sizeLimit if volume.emptyDir and volume.name in names else None
        if limit is not None and size > quantity_value(limit):
            yield f"{where}: must not exceed /dev/shm ({limit}), got {size}"


def _replicas(group: WorkerGroup, place: str, *, autoscaled: bool) -> Iterator[str]:
    if group.groupName == "headgroup":
        yield f"{place}.groupName: must not be headgroup, the head's own group, got headgroup"
    low, high, count = group.minReplicas, group.maxReplicas, group.replicas
    for name in ("replicas", "minReplicas", "maxReplicas"):
        if getattr(group, name) is None and not autoscaled:
            # The server would fill in 0 replicas, or a maximum of 2 ** 31 - 1.
            yield f"{place}.{name}: required without enableInTreeAutoscaling, got nothing"
    if low is not None and high is not None and low > high:
        yield f"{place}.minReplicas: must not exceed maxReplicas ({high}), got {low}"
    elif count is not None and not (low or 0) <= count <= (count if high is None else high):
        yield f"{place}.replicas: must be from minReplicas ({low or 0}) to maxReplicas ({high or 'any'}), got {count}"


def _autoscaled_group(spec: RayClusterSpec, group: WorkerGroup, place: str) -> Iterator[str]:
    options = spec.autoscalerOptions
    if group.suspend and spec.enableInTreeAutoscaling:
        yield f"{place}.suspend: must be left out with enableInTreeAutoscaling, got true"
    if spec.enableInTreeAutoscaling and options is not None and options.version == "v2":
        if group.priority and not _reaches(spec.rayVersion, 2, 56):
            yield f"{place}.priority: needs rayVersion 2.56.0 or later, got {spec.rayVersion}"
        return
    for name, value in (("idleTimeoutSeconds", group.idleTimeoutSeconds), ("priority", group.priority or None)):
        if value is not None:
            needs = "enableInTreeAutoscaling with autoscalerOptions.version v2"
            yield f"{place}.{name}: must be left out without {needs}, got {value}"


def _autoscaling(spec: RayClusterSpec, path: str) -> Iterator[str]:
    options, head = spec.autoscalerOptions, spec.headGroupSpec.template.spec
    switch = [variable for variable in head.containers[0].env if variable.name == "RAY_enable_autoscaler_v2"]
    if switch and (options is not None or not spec.enableInTreeAutoscaling):
        where = f"{path}.headGroupSpec.{_RAY_CONTAINER}.env"
        instead = "enableInTreeAutoscaling and autoscalerOptions.version say it"
        yield f"{where}: must not have RAY_enable_autoscaler_v2, as {instead}, got {switch[0].value}"
    if not spec.enableInTreeAutoscaling:
        if options is not None:
            yield f"{path}.autoscalerOptions: must be left out without enableInTreeAutoscaling"
        return
    if options and any(variable.name == "KUBERAY_GEN_AUTOSCALER_START_CMD" for variable in options.env):
        yield f"{path}.autoscalerOptions.env: must not have KUBERAY_GEN_AUTOSCALER_START_CMD, which the operator sets"
    if options and options.version == "v1":
        return
    for place, group in spec.groups(path).items():
        policy = group.template.spec.restartPolicy
        if policy not in (None, "Never"):
            rule = "must be Never or left out with the autoscaler v2"
            yield f"{place}.template.spec.restartPolicy: {rule}, got {policy}"


def _authentication(spec: RayClusterSpec, path: str, in_job: bool) -> Iterator[str]:
    options, where = spec.authOptions, f"{path}.authOptions"
    if options is None:
        return
    for place, group in spec.groups(path).items():
        for index, variable in enumerate(group.template.spec.containers[0].env):
            agrees = variable.name == "RAY_AUTH_MODE" and variable.value == options.mode
            if variable.name in _OPERATORS and variable.value is not None and not agrees:
                rule = f"must be left out, as the operator sets {variable.name} by {where}"
                yield f"{place}.{_RAY_CONTAINER}.env[{index}]: {rule}, got {variable.value}"
    if options.mode == "token" and not _reaches(spec.rayVersion, 2, 52):
        yield f"{where}.mode: token needs rayVersion 2.52.0 or later, got {spec.rayVersion}"
    if not options.enableK8sTokenAuth:
        return
    if in_job:
        yield f"{where}.enableK8sTokenAuth: must be left out in a RayJob, got true"
    if options.mode != "token":
        yield f"{where}.enableK8sTokenAuth: needs mode token, got {options.mode or 'nothing'}"
    if options.secretName is not None:
        yield f"{where}.secretName: must be left out with enableK8sTokenAuth, got {options.secretName}"


def _reaches(version: str, *least: int) -> bool:
    # As numbers: as texts, 2.9 would come after 2.52.
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= least
