"""Rules across the parts of one pod; those within a part are in the schema."""

from collections.abc import Iterator

from launch.kube.schema_container import PodContainer
from launch.kube.schema_pod import PodSpec
from launch.kube.schema_types import quantity_value
from launch.kube.schema_volumes import PodVolume

_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_DEFAULT_GRACE_S = 30  # Kubernetes' own


def pod_problems(pod: PodSpec, path: str) -> Iterator[str]:
    """Problems of a pod whose parts are valid: `path: rule, got value`."""
    for index, container in enumerate(pod.containers):
        yield from _container(pod, container, f"{path}.containers[{index}]", path)
    for index, container in enumerate(pod.initContainers):
        place = f"{path}.initContainers[{index}]"
        if container.name in [other.name for other in pod.containers]:
            yield f"{place}.name: must differ from those of the containers, got {container.name}"
        yield from _container(pod, container, place, path)


def _container(pod: PodSpec, container: PodContainer, place: str, path: str) -> Iterator[str]:
    yield from _mounts(pod, container, place, path)
    yield from _user(pod, container, place)
    yield from _probes(container, place)
    grace = _DEFAULT_GRACE_S if pod.terminationGracePeriodSeconds is None else pod.terminationGracePeriodSeconds
    for variable in container.env:
        if variable.name == _DRAIN and _seconds(variable.value) >= grace:
            yield f"{path}.terminationGracePeriodSeconds: must exceed {_DRAIN} ({variable.value}), got {grace}"


def _seconds(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _mounts(pod: PodSpec, container: PodContainer, place: str, path: str) -> Iterator[str]:
    volumes = {volume.name: (index, volume) for index, volume in enumerate(pod.volumes)}
    for index, mount in enumerate(container.volumeMounts):
        if mount.name not in volumes:
            names = ", ".join(volumes) or "none"
            yield f"{place}.volumeMounts[{index}].name: must name one of the pod's volumes ({names}), got {mount.name}"
            continue
        position, volume = volumes[mount.name]
        if mount.mountPath == "/dev/shm" and (volume.emptyDir is None or volume.emptyDir.medium != "Memory"):
            yield f"{path}.volumes[{position}]: must be an emptyDir with medium Memory for /dev/shm, got {volume.name}"
        yield from _memory_volume(volume, container, f"{path}.volumes[{position}].emptyDir.sizeLimit")


def _memory_volume(volume: PodVolume, container: PodContainer, path: str) -> Iterator[str]:
    limit = container.resources.limits.get("memory")
    if volume.emptyDir is None or volume.emptyDir.medium != "Memory" or limit is None:
        return
    size = volume.emptyDir.sizeLimit
    if size is not None and quantity_value(size) > quantity_value(limit):
        # What is written there counts as the container's memory.
        yield f"{path}: must not exceed the memory limit of container {container.name} ({limit}), got {size}"


def _user(pod: PodSpec, container: PodContainer, place: str) -> Iterator[str]:
    # The container's own first: it counts where both say something.
    contexts = [context for context in (container.securityContext, pod.securityContext) if context]
    users = [context.runAsUser for context in contexts if context.runAsUser is not None]
    no_root = [context.runAsNonRoot for context in contexts if context.runAsNonRoot is not None]
    if users[:1] == [0] and no_root[:1] == [True]:
        yield f"{place}: must run as another user than root with runAsNonRoot, got runAsUser 0"


def _probes(container: PodContainer, place: str) -> Iterator[str]:
    names = [port.name for port in container.ports]
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = getattr(container, kind)
        # Kubernetes wants 1 of the other two kinds.
        if kind != "readinessProbe" and probe and probe.successThreshold not in (None, 1):
            yield f"{place}.{kind}.successThreshold: must be 1, got {probe.successThreshold}"
        for action in ("httpGet", "tcpSocket"):
            request = getattr(probe, action, None)
            if request and isinstance(request.port, str) and request.port not in names:
                yield f"{place}.{kind}.{action}.port: must be a number or the name of a port, got {request.port}"
