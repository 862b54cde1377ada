"""Pod templates: head, workers and submitter, with their environment, volumes and security. Plain values."""

import importlib.metadata
import posixpath
from collections.abc import Iterator

from actors.config import UserError
from launch.config import RunConfig
from launch.kube.config import MOVABLE, POD_VARIABLES, ray_version
from launch.kube.config_parts import CODE, DRAIN_MARGIN_S, RUN_CONFIG, SecretReference
from launch.kube.objects import Manifest
from launch.kube.sizes import PodSize
from launch.sizes.placement import demands, section_of

RUN_FILE = f"{RUN_CONFIG}/run.yaml"
HOME = "/home/tandem"
HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
SCRATCH = {"tmp": "/tmp", "home": HOME}
"""Volumes of a pod's own -> where its containers have them."""


def head_pod(config: RunConfig, name: str, size: PodSize, config_map: str | None) -> Manifest:
    """The head's template, with a ConfigMap at RUN_CONFIG; with autoscaling it may talk to the API server."""
    spec = {"containers": [_ray_container(config, "ray-head", size, config_map)], **_pod(config)}
    if config.cluster.kubernetes.autoscaling:
        spec["automountServiceAccountToken"] = True  # the autoscaler beside Ray talks to the API server
    return {"metadata": _metadata(config, name), "spec": spec | _volumes(config, size, config_map)}


def worker_pod(config: RunConfig, name: str, group: str, size: PodSize, config_map: str | None) -> Manifest:
    """The template of a worker group, with a ConfigMap at RUN_CONFIG."""
    kubernetes = config.cluster.kubernetes
    selector = kubernetes.node_selector
    if group == "rollout" and kubernetes.rollout_node_selector:
        selector = kubernetes.rollout_node_selector
    placed: Manifest = {}
    if selector:
        placed["nodeSelector"] = dict(selector)
    if kubernetes.tolerations:
        placed["tolerations"] = [item.model_dump(exclude_none=True) for item in kubernetes.tolerations]
    spec = {"containers": [_ray_container(config, "ray-worker", size, config_map)], **_pod(config), **placed}
    metadata = _metadata(config, name)
    if kubernetes.queue and (topology := _topology(config)):
        metadata["annotations"] = metadata.get("annotations", {}) | topology
    return {"metadata": metadata, "spec": spec | _volumes(config, size, config_map)}


def submitter_pod(config: RunConfig, name: str) -> Manifest:
    """The pod that starts the driver in K8sJobMode and follows its log; KubeRay's own would run as root."""
    container = {
        "name": "ray-job-submitter",
        "image": image(config),
        "imagePullPolicy": config.cluster.kubernetes.image_pull_policy,
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_security(read_only=config.cluster.kubernetes.read_only_root),
    }
    spec = {"restartPolicy": "Never", "containers": [container], **_pod(config)}
    if scratch := _scratch(config):
        container |= {"env": [{"name": "HOME", "value": HOME}], "volumeMounts": scratch}
        spec["volumes"] = _scratch_volumes(config)
    del spec["terminationGracePeriodSeconds"]  # it only follows the driver, and has nothing to save
    return {"metadata": _metadata(config, name), "spec": spec}


def container_security(*, read_only: bool = False) -> Manifest:
    """What no container may do."""
    more = {"readOnlyRootFilesystem": True} if read_only else {}
    return {"allowPrivilegeEscalation": False, **more, "capabilities": {"drop": ["ALL"]}}


def image(config: RunConfig) -> str:
    """The image of all pods."""
    given = config.cluster.kubernetes.image
    return given or f"tandem:{_tandem_version()}-ray{ray_version()}{'' if uses_gpus(config) else '-cpu'}"


def uses_gpus(config: RunConfig) -> bool:
    """Whether any group asks for a GPU."""
    return any(demand.gpus for demand in demands(config))


def grace_s(config: RunConfig) -> int:
    """Seconds between a pod's SIGTERM and its end."""
    return config.cluster.kubernetes.grace_s or config.cluster.stop_wait_s + 2 * DRAIN_MARGIN_S


def literal(text: str) -> str:
    """Text that Kubernetes gives to the process as it is: it expands $(NAME) in env values, and makes $$ one $."""
    return text.replace("$", "$$")


def object_labels(config: RunConfig, name: str) -> dict[str, str]:
    """Labels of everything that belongs to the run."""
    ours = {"app.kubernetes.io/part-of": "tandem", "app.kubernetes.io/instance": name}
    return ours | dict(sorted(config.cluster.kubernetes.labels.items()))


def _tandem_version() -> str:
    return importlib.metadata.version("tandem-rlhf")


def _metadata(config: RunConfig, name: str) -> dict[str, dict[str, str]]:
    annotations = dict(sorted(config.cluster.kubernetes.annotations.items()))
    return {"labels": object_labels(config, name)} | ({"annotations": annotations} if annotations else {})


def _topology(config: RunConfig) -> dict[str, str]:
    queue = config.cluster.kubernetes.queue
    assert queue is not None
    asked = {"required": queue.required_topology, "preferred": queue.preferred_topology}
    return {f"kueue.x-k8s.io/podset-{how}-topology": label for how, label in asked.items() if label}


def _pod(config: RunConfig) -> Manifest:
    """What all pods have in common."""
    kubernetes = config.cluster.kubernetes
    pod: Manifest = {
        "serviceAccountName": kubernetes.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace_s(config),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kubernetes.run_as_user,
            "runAsGroup": kubernetes.run_as_user,
            "fsGroup": kubernetes.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",  # else kubelet walks the whole volume at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    if kubernetes.priority_class:
        pod["priorityClassName"] = kubernetes.priority_class
    return pod


def _ray_container(config: RunConfig, role: str, size: PodSize, config_map: str | None) -> Manifest:
    # No limit of CPUs: it would throttle. Ray takes the request for their number.
    gpus = {"nvidia.com/gpu": str(size.gpus)} if size.gpus else {}
    memory = {"memory": f"{size.memory_gib}Gi"}
    return {
        "name": role,
        "image": image(config),
        "imagePullPolicy": config.cluster.kubernetes.image_pull_policy,
        "workingDir": CODE,
        "env": _environment(config),
        # Kubernetes gives GPUs only where request and limit are the same.
        "resources": {"requests": {"cpu": str(size.cpus), **memory, **gpus}, "limits": {**memory, **gpus}},
        "volumeMounts": _mounts(config, config_map),
        "securityContext": container_security(read_only=config.cluster.kubernetes.read_only_root),
    }


def environment_problems(config: RunConfig) -> Iterator[str]:
    """Settings that have no effect on Kubernetes, and variables without which, or with another value, pods do not
    work."""
    if config.cluster.driver_labels:
        where = "where the driver is on the head (cluster.kubernetes.gcs.storage puts it on a worker)"
        yield f"cluster.driver_labels: must be left out on Kubernetes, {where}, got {config.cluster.driver_labels}"
    given = {"cluster.env": config.cluster.env}
    given |= {f"{section_of(config, demand.group)}.env": demand.env for demand in demands(config)}
    for field, variables in given.items():
        for name in sorted(variables.keys() & POD_VARIABLES.keys() - set(MOVABLE)):
            yield f"{field}.{name}: must be left out on Kubernetes, as {POD_VARIABLES[name]}, got {variables[name]!r}"


def _environment(config: RunConfig) -> list[Manifest]:
    kubernetes, cluster = config.cluster.kubernetes, config.cluster
    plain = {
        "HF_HOME": _default_cache(config),
        **({"HOME": HOME} if kubernetes.read_only_root else {}),
        # The drain must end before kubelet kills what is left.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(grace_s(config) - DRAIN_MARGIN_S),
        "RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_wait_s),
        "RAY_worker_niceness": "0",  # Ray's own is 15, and these processes are what the pod is for
    }
    if kubernetes.ray_auth == "disabled":
        plain["RAY_AUTH_MODE"] = "disabled"
    assert plain.keys() <= POD_VARIABLES.keys()
    # Of the names above only MOVABLE are there: see `environment_problems`.
    plain |= dict(sorted(cluster.env.items()))
    given: list[Manifest] = [{"name": name, "value": literal(value)} for name, value in plain.items()]
    secrets = sorted(kubernetes.secrets.items())
    return given + [{"name": name, "valueFrom": secret_source(reference)} for name, reference in secrets]


def secret_source(reference: SecretReference) -> Manifest:
    """A value that Kubernetes reads from a Secret when the pod starts."""
    source: Manifest = {"name": reference.name, "key": reference.key}
    return {"secretKeyRef": source | ({"optional": True} if reference.optional else {})}


def _mounts(config: RunConfig, config_map: str | None) -> list[Manifest]:
    mounts = _shared(config, of_a_run=config_map is not None)
    if config_map:
        mounts.append({"name": "config", "mountPath": RUN_CONFIG, "readOnly": True})
    # With a /dev/shm of our own, KubeRay adds none, which would be as large as the pod's memory.
    return [*mounts, {"name": "shm", "mountPath": "/dev/shm"}, *_scratch(config)]


def _shared(config: RunConfig, *, of_a_run: bool) -> list[Manifest]:
    """The volume. A run reads all of it and writes what is its own, so that none alters another's checkpoints; a
    cluster to work on has runs of any name."""
    volume, below = config.cluster.kubernetes.volume, relative_output(config)
    confined = of_a_run and volume.writable == "run"
    whole: Manifest = {"readOnly": True} if confined else {}
    mounts: list[Manifest] = [{"name": "shared", "mountPath": volume.mount, **whole}]
    if below:
        # What configurations call outputs/... is then on the volume, in every pod.
        mounts.append({"name": "shared", "mountPath": f"{CODE}/{below}", "subPath": below, **whole})
    if not confined:
        return mounts
    output = f"{CODE}/{below}" if below else posixpath.normpath(config.run.output)
    inside = below or posixpath.relpath(output, volume.mount)
    # Further mounts of the same volume, below the one that is read-only.
    own = {f"{output}/{config.run.name}": posixpath.normpath(f"{inside}/{config.run.name}")}
    for cache in _caches(config):
        if cache.startswith(f"{volume.mount}/"):
            own[cache] = posixpath.relpath(cache, volume.mount)
    return mounts + [{"name": "shared", "mountPath": path, "subPath": own[path]} for path in own]


def _caches(config: RunConfig) -> list[str]:
    """Where the processes keep what they take from the hub."""
    given = [config.cluster.env, *(demand.env for demand in demands(config))]
    found = {variables[name] for variables in given for name in HUB_CACHES if name in variables}
    if "HF_HOME" not in config.cluster.env:
        found.add(_default_cache(config))
    return sorted(map(posixpath.normpath, found))


def _default_cache(config: RunConfig) -> str:
    return f"{config.cluster.kubernetes.volume.mount}/huggingface"


def _scratch(config: RunConfig) -> list[Manifest]:
    """What a container writes to where its image is read-only: Ray's sessions, compilers' and libraries' caches."""
    if not config.cluster.kubernetes.read_only_root:
        return []
    return [{"name": name, "mountPath": path} for name, path in SCRATCH.items()]


def _scratch_volumes(config: RunConfig) -> list[Manifest]:
    return [{"name": mount["name"], "emptyDir": {}} for mount in _scratch(config)]


def relative_output(config: RunConfig) -> str | None:
    """`run.output` when it is relative, normalised; None when it is a path on the volume.

    Raises:
        UserError: an absolute path that is not on the volume, or a relative one that leaves or hides the code.
    """
    given, mount = posixpath.normpath(config.run.output), config.cluster.kubernetes.volume.mount
    if posixpath.isabs(given):
        if not f"{given}/".startswith(f"{mount}/"):
            raise UserError(
                f"run.output: must be relative, or below cluster.kubernetes.volume.mount ({mount}), on Kubernetes, "
                f"got {config.run.output}"
            )
        return None
    # A volume in their place would hide what the image has there.
    hidden = (".", "..", "actors", "algorithms", "launch", "configs", "examples")
    if given.split("/")[0] in hidden:
        raise UserError(
            f"run.output: must be a directory of its own on Kubernetes, where a volume takes its place in {CODE}, "
            f"got {config.run.output}"
        )
    return given


def _volumes(config: RunConfig, size: PodSize, config_map: str | None) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": config.cluster.kubernetes.volume.claim}}
    ]
    if config_map:
        volumes.append({"name": "config", "configMap": {"name": config_map}})
    memory = {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}
    return {"volumes": [*volumes, {"name": "shm", "emptyDir": memory}, *_scratch_volumes(config)]}
