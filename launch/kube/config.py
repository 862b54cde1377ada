"""Settings of the pods that `tandem k8s` renders; launch/settings/rules_kubernetes.py has the rules across sections."""

import importlib.metadata
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from actors.config import Config, refuse_unused
from actors.config_numbers import Cores, Gib, Gpus, Identity, Retries, WholeSeconds, WholeSecondsOrNone
from launch.kube.config_parts import (
    LABEL_KEY,
    LABEL_VALUE,
    AutoscalingConfig,
    DeletionRuleConfig,
    GcsStorageConfig,
    HeadConfig,
    Name,
    QueueConfig,
    SecretReference,
    TolerationConfig,
    VolumeConfig,
    image_ray_version,
)

_RESERVED = ("app.kubernetes.io/", "ray.io/", "kueue.x-k8s.io/")
POD_VARIABLES = {
    "HF_HOME": "it is on the shared volume, and cluster.env can move it",
    "HOME": "it is a volume of the pod (cluster.kubernetes.read_only_root), or the image's",
    "PATH": "the image sets it",
    "RAY_AUTH_MODE": "ray_auth says it",
    "RAY_AUTH_TOKEN": "ray_auth_secret names its Secret",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "it follows from grace_s",
    "RAY_JOB_STOP_WAIT_TIME_S": "it follows from cluster.stop_wait_s",
    "RAY_worker_niceness": "it is no secret",
}
"""Variables that every pod has anyway -> why a Secret cannot set them, nor, but for MOVABLE, an env field."""
MOVABLE = ("HF_HOME", "RAY_worker_niceness")


def ray_version() -> str:
    """The installed Ray, whose version manifests and images must have."""
    return importlib.metadata.version("ray")  # of the package as it is installed: `check` imports no ray


def _check_selector(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        if not LABEL_KEY.fullmatch(key):
            raise ValueError(f"{key} must be a Kubernetes name of at most 63 letters, digits, -, _ and ., got {key!r}")
        if not LABEL_VALUE.fullmatch(labels[key]):
            raise ValueError(f"{key} must have a value of at most 63 letters, digits, -, _ and ., got {labels[key]!r}")
    return labels


def _check_annotations(annotations: dict[str, str]) -> dict[str, str]:
    _check_selector(dict.fromkeys(annotations, ""))  # keys are those of labels; values may be any text
    for key, value in annotations.items():
        if key.startswith(_RESERVED):
            raise ValueError(f"{key} must be left out, as Tandem, KubeRay or Kueue sets it, got {value!r}")
    return annotations


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    return _check_annotations(_check_selector(labels))


Selector = Annotated[dict[str, str], AfterValidator(_check_selector)]
"""Labels of Kubernetes nodes."""


class KubernetesConfig(Config):
    """How `tandem k8s` renders the run: a RayJob, or a RayCluster for development (KubeRay 1.7)."""

    image: str | None = Field(default=None, pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]*$")
    """Image of all pods, whose tag names its Ray: registry/tandem:1-ray2.60.0 (default: tandem:VERSION-rayVERSION, with
    -cpu where no group asks for a GPU)."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes pull it."""
    image_pull_secrets: list[Name] = []
    """Secrets of the registry."""
    namespace: str = Field(default="tandem", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Namespace of everything."""
    operator_namespace: Name = "kuberay"
    """Namespace of KubeRay's operator, which alone may talk to the run's pods from outside the run."""
    service_account: Name = "tandem"
    """ServiceAccount of all pods; they get no token of it, but for the head with autoscaling."""
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = "K8sJobMode"
    """Who starts the driver: a pod of its own, the operator, or a container beside the head."""
    retries: Retries | None = None
    """New clusters after a failed one, each resuming from the latest checkpoint (default: 2; 0 with
    checkpoint.resume false)."""
    deadline_s: WholeSeconds | None = None
    """Longest time of each attempt, in seconds (default: none); after it nothing is retried."""
    start_deadline_s: WholeSeconds | None = 1800
    """Longest time of each attempt until it runs, in seconds: images that cannot be pulled, GPUs that do not come."""
    shutdown: bool = True
    """Delete the cluster when the job has ended."""
    ttl_s: WholeSecondsOrNone | None = None
    """Seconds that an ended job's cluster is kept (default: 60 with shutdown)."""
    deletion_rules: list[DeletionRuleConfig] = []
    """What is deleted after which end, instead of shutdown."""
    queue: QueueConfig | None = None
    """Kueue."""
    gpus_per_node: Gpus = 8
    """GPUs of a node: groups are packed on nodes of so many."""
    cpus_per_gpu: Cores = 8
    """CPUs that a pod requests for each of its GPUs."""
    memory_gib: Gib | None = None
    """Memory of a worker pod, shared memory included, in GiB (default: from the estimate that `check` prints)."""
    memory_gib_per_gpu: Gib = 64
    """Memory of a worker pod for each of its GPUs, beside shared memory, in GiB, where the model is not on this machine
    and its size is unknown."""
    shm_gib: Gib | None = None
    """/dev/shm of a worker pod, in GiB (default: its object store, and 1 GiB for each GPU)."""
    volume: VolumeConfig = VolumeConfig()
    """The shared volume."""
    secrets: dict[str, SecretReference] = {
        "HF_TOKEN": SecretReference(name="tandem", key="HF_TOKEN", optional=True),
        "WANDB_API_KEY": SecretReference(name="tandem", key="WANDB_API_KEY", optional=True),
    }
    """Environment variables that come from Secrets."""
    ray_auth: Literal["token", "disabled"] = "token"
    """Whether Ray asks for a token."""
    ray_auth_secret: Name | None = None
    """Secret with the token at the key auth_token (default: KubeRay makes one for each cluster)."""
    node_selector: Selector = {}
    """Labels of the nodes that worker pods may live on."""
    rollout_node_selector: Selector = {}
    """The same for rollout pods, with cluster.placement separate (default: node_selector)."""
    tolerations: list[TolerationConfig] = []
    """Taints of nodes that worker pods may live on."""
    priority_class: Name | None = None
    """PriorityClass of all pods."""
    run_as_user: Identity = 1000
    """User and group of all processes, one that the image knows (1000 in ours); root is refused."""
    fs_group: Identity = 1000
    """Group that owns the volumes."""
    read_only_root: bool = True
    """Whether containers cannot write to their image: what Ray, vLLM, compilers and caches write goes to /tmp and to a
    home of the pod's own, which end with it."""
    grace_s: WholeSeconds | None = None
    """Seconds between a pod's SIGTERM and its end, for a checkpoint (default: cluster.stop_wait_s + 60)."""
    gcs: GcsStorageConfig = GcsStorageConfig()
    """What survives a lost head."""
    autoscaling: AutoscalingConfig | None = None
    """Rollout pods on demand, with cluster.placement separate."""
    head: HeadConfig = HeadConfig()
    """The head's pod."""
    labels: Annotated[dict[str, str], AfterValidator(_check_labels)] = {}
    """Labels of the job and all pods, beside Tandem's own."""
    annotations: Annotated[dict[str, str], AfterValidator(_check_annotations)] = {}
    """Annotations of the job and all pods."""

    @model_validator(mode="after")
    def _names_its_ray(self) -> "KubernetesConfig":
        if self.image is not None and image_ray_version(self.image) != ray_version():
            raise ValueError(f"image must name the installed Ray in its tag (ray{ray_version()}), got {self.image}")
        return self

    @model_validator(mode="after")
    def _ends_in_one_way(self) -> "KubernetesConfig":
        # The same as in rules_job.py for manifests of any origin; here a mistake has the name of its setting.
        if self.deletion_rules and self.shutdown:
            raise ValueError("shutdown must be false with deletion_rules, got true")
        if self.ttl_s is not None and not self.shutdown:
            raise ValueError(f"ttl_s must be left out without shutdown, after which it counts, got {self.ttl_s}")
        workers = any(rule.policy == "DeleteWorkers" for rule in self.deletion_rules)
        if self.autoscaling and workers:
            raise ValueError("deletion_rules must not hold DeleteWorkers with autoscaling, got it")
        if self.deadline_s and self.start_deadline_s and self.deadline_s <= self.start_deadline_s:
            raise ValueError(
                f"deadline_s must exceed start_deadline_s ({self.start_deadline_s}), got {self.deadline_s}"
            )
        if self.submission_mode == "SidecarMode" and self.gcs.storage != "none":
            raise ValueError(
                f"gcs.storage must be none in SidecarMode, whose submitter is lost with its head, "
                f"got {self.gcs.storage}"
            )
        return self

    @model_validator(mode="after")
    def _kueue_admits(self) -> "KubernetesConfig":
        if self.queue is None:
            return self
        if self.deletion_rules:
            raise ValueError("deletion_rules must be left out with queue: Kueue needs shutdown, got some")
        if not self.shutdown:
            raise ValueError("shutdown must be true with queue, as Kueue would keep the quota, got false")
        if self.autoscaling:
            raise ValueError("autoscaling must be left out with queue, which admits a fixed number of pods, got it")
        return self

    @model_validator(mode="after")
    def _secrets_are_secrets(self) -> "KubernetesConfig":
        for name in self.secrets:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"secrets.{name} must be a name of letters, digits and _, got {name!r}")
            if name in POD_VARIABLES:  # every pod has these, and a container cannot have a name twice
                raise ValueError(f"secrets.{name} must be left out, as {POD_VARIABLES[name]}, got one")
        if self.ray_auth == "disabled":
            refuse_unused(self, "ray_auth_secret", why="with ray_auth disabled")
        if self.memory_gib is not None:
            refuse_unused(self, "memory_gib_per_gpu", why="with memory_gib, which is all memory")
        return self


UNPROTECTED = "whoever reaches the cluster's ports can run code as its user"
