"""Parts of `cluster.kubernetes`: secrets, volume, head, queue, ends, storage of the cluster's state."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.config import Config, refuse_unused
from actors.config_numbers import Cores, Gib, WholeSeconds, WholeSecondsOrNone

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Name of a Kubernetes object."""
SecretKey = Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]{1,253}$")]
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
CODE = "/opt/tandem"
"""Where images hold the code, the working directory of a run."""
RUN_CONFIG = "/etc/tandem"
"""Where pods find the run's configuration."""
DRAIN_MARGIN_S = 30
"""Between the end of Ray's drain and that of the pod."""
# Ray's own, whose tags are a version without `ray`: rayproject/ray:2.60.0-gpu.
_RAY_IMAGES = ("ray", "ray-ml", "ray-llm")


def image_ray_version(image: str) -> str | None:
    """The version of Ray that an image's tag names: registry/tandem:0.1-ray2.60.0, rayproject/ray:2.60.0-gpu."""
    # A digest may follow the tag, which alone names the Ray.
    name, _, tag = image.partition("@")[0].rpartition(":")
    if not name or "/" in tag:  # no tag: the colon is that of a registry's port
        return None
    found = re.search(r"(?:^|[^a-z0-9])ray[-_]?v?(\d+\.\d+\.\d+(?:rc\d+)?)", tag.lower())
    if found is None and name.rpartition("/")[2] in _RAY_IMAGES:
        found = re.match(r"v?(\d+\.\d+\.\d+(?:rc\d+)?)", tag)
    return found.group(1) if found else None


class SecretReference(Config):
    """One entry of a Kubernetes Secret."""

    name: Name
    """Name of the Secret."""
    key: SecretKey
    """Entry in it."""
    optional: bool = False
    """Whether pods start without it."""


class VolumeConfig(Config):
    """The volume that all pods share (ReadWriteMany): run directories, checkpoints and the cache of the hub."""

    claim: Name = "tandem"
    """PersistentVolumeClaim."""
    mount: str = Field(default="/shared", pattern=r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$")
    """Where pods have it; a relative `run.output` is a directory in it."""
    writable: Literal["run", "all"] = "run"
    """What a run's pods may write there: its own directory and the hub's cache (HF_HOME), or everything; they may read
    everything."""

    @model_validator(mode="after")
    def _hides_nothing(self) -> "VolumeConfig":
        # Both ways round: a mount above one of these hides it, one below lies within it.
        for used in (CODE, RUN_CONFIG, "/dev/shm", "/tmp", "/home", "/usr", "/proc", "/sys"):
            if f"{used}/".startswith(f"{self.mount}/") or f"{self.mount}/".startswith(f"{used}/"):
                raise ValueError(f"mount must not overlap {used}, got {self.mount}")
        return self


class HeadConfig(Config):
    """The head's pod: Ray's control processes and the run's driver, no groups."""

    cpus: Cores = 2
    """CPUs it requests."""
    memory_gib: Gib = 8
    """Its memory, shared memory included, in GiB."""


class QueueConfig(Config):
    """Admission by Kueue: all pods of a run, or none."""

    name: Name
    """LocalQueue."""
    priority_class: Name | None = None
    """WorkloadPriorityClass."""
    required_topology: str | None = None
    """Label of the topology domain that must hold all pods of a worker group: cloud.provider.com/topology-rack."""
    preferred_topology: str | None = None
    """Label of the topology domain that should hold all pods of a worker group."""

    @model_validator(mode="after")
    def _one_topology(self) -> "QueueConfig":
        if self.required_topology and self.preferred_topology:
            raise ValueError(
                f"preferred_topology must be left out with required_topology, got {self.preferred_topology}"
            )
        for name in ("required_topology", "preferred_topology"):
            value = getattr(self, name)
            if value is not None and not LABEL_KEY.fullmatch(value):
                raise ValueError(f"{name} must be the key of a node label, got {value!r}")
        return self


class DeletionRuleConfig(Config):
    """What KubeRay deletes after a job ended in one way."""

    when: Literal["succeeded", "failed", "deployment_failed"]
    """How the job ended; deployment_failed: it never ran, or missed a deadline."""
    policy: Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]
    """What is deleted; DeleteSelf: the RayJob with all it made."""
    after_s: WholeSecondsOrNone = 0
    """Seconds between the end and the deletion."""


class GcsStorageConfig(Config):
    """Where the head keeps the cluster's state, so that a new head can take over from a lost one (GCS fault tolerance).

    The driver then runs on a worker, as it would be lost with its head.
    """

    storage: Literal["none", "redis", "rocksdb"] = "none"
    """none: a lost head ends the attempt, and a retry resumes from the checkpoint; rocksdb: alpha in KubeRay 1.7."""
    address: str | None = None
    """Redis server: host:port, or redis://host:port, or rediss://host:port with TLS."""
    password: SecretReference | None = None
    """Password of the Redis server."""
    claim: Name | None = None
    """PersistentVolumeClaim of the RocksDB files."""
    size_gib: Gib | None = None
    """Size of a claim that KubeRay makes for the RocksDB files."""

    @model_validator(mode="after")
    def _each_has_its_own(self) -> "GcsStorageConfig":
        if self.storage != "redis":
            refuse_unused(self, "address", "password", why=f"with storage {self.storage}")
        if self.storage != "rocksdb":
            refuse_unused(self, "claim", "size_gib", why=f"with storage {self.storage}")
        if self.storage == "redis" and not re.fullmatch(r"(rediss?://)?[^\s:/@]+:\d+", self.address or ""):
            # Of an address with @, nothing is repeated: what stands before it may be a password.
            got = "a user or a password (not shown)" if "@" in (self.address or "") else self.address or "nothing"
            raise ValueError(f"address must be host:port or redis(s)://host:port with storage redis, got {got}")
        if self.password and self.password.optional:
            raise ValueError("password.optional must be false, as Redis would refuse the head, got true")
        if self.storage == "rocksdb" and (self.claim is None) == (self.size_gib is None):
            got = "neither" if self.claim is None else "both"
            raise ValueError(f"claim must be given with storage rocksdb, or size_gib, but not both, got {got}")
        return self


class AutoscalingConfig(Config):
    """Rollout pods come when engines ask for them, and go when they have none."""

    idle_timeout_s: WholeSeconds = 60
    """Seconds after which an idle rollout pod goes."""


class TolerationConfig(Config):
    """A taint of nodes that pods may live on."""

    key: str | None = None
    """The taint's key; None: all keys."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists: any value."""
    value: str | None = None
    """The taint's value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; None: all effects."""

    @model_validator(mode="after")
    def _value_is_compared(self) -> "TolerationConfig":
        if self.operator == "Exists":
            refuse_unused(self, "value", why="with operator Exists, which compares none")
        elif self.key is None or self.value is None:
            raise ValueError(f"operator Equal needs key and value, got key {self.key} and value {self.value}")
        return self
