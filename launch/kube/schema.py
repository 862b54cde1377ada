"""Documents: RayJob and RayCluster (`ray.io/v1`, KubeRay 1.7) without alpha features, ConfigMap and NetworkPolicy.

Fields bear the names of the API. What a part alone can tell is checked here, too; rules across parts are in
`launch/kube/rules*.py`.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.kube.schema_container import (
    EnvSource,
    PodEnv,
    PodEnvFrom,
    PodResources,
    PullPolicy,
    SecurityContext,
    VolumeMount,
)
from launch.kube.schema_network import NetworkPolicyManifest
from launch.kube.schema_pod import PodTemplate
from launch.kube.schema_types import (
    Count,
    DnsLabel,
    DnsName,
    FileKey,
    ImageName,
    InnerPath,
    Int32,
    LabelKey,
    Labels,
    LabelValue,
    ManifestMetadata,
    ManifestPart,
    Positive,
    Quantity,
    RayClusterName,
    RayJobName,
    Text,
    unique,
)

ManagedBy = Literal["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]
DeletionPolicy = Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]


class AuthOptions(ManifestPart):
    """Token authentication; without `secretName` the operator makes the token."""

    mode: Literal["disabled", "token"] | None = None
    secretName: DnsName | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(ManifestPart):
    """The autoscaler beside the head."""

    version: Literal["v1", "v2"] | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    idleTimeoutSeconds: Count | None = None
    image: ImageName | None = None
    imagePullPolicy: PullPolicy | None = None
    resources: PodResources | None = None
    env: list[PodEnv] = []
    envFrom: list[PodEnvFrom] = []
    volumeMounts: list[VolumeMount] = []
    securityContext: SecurityContext | None = None


class RedisCredential(ManifestPart):
    """A user name or password; a literal value is refused, like that of every secret."""

    valueFrom: EnvSource


class GcsStorage(ManifestPart):
    """The volume of the rocksdb backend: an existing claim, or a new one."""

    claimName: DnsName | None = None
    size: Quantity | None = None
    storageClassName: DnsName | None = None
    accessModes: list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]] = []
    subPath: InnerPath | None = None
    deletionPolicy: Literal["DeleteWithCluster", "Retain"] | None = None


class GcsOptions(ManifestPart):
    """Where the head's state survives the head."""

    backend: Literal["redis", "rocksdb"] = "redis"
    redisAddress: Text | None = None
    redisUsername: RedisCredential | None = None
    redisPassword: RedisCredential | None = None
    externalStorageNamespace: Text | None = None
    storage: GcsStorage | None = None


class RayGroup(ManifestPart):
    """What head and worker groups have in common."""

    template: PodTemplate
    rayStartParams: dict[str, str] = {}
    resources: dict[str, str] = {}
    labels: Labels = {}


class HeadGroup(RayGroup):
    """The head."""

    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enableIngress: bool | None = None


class ScaleStrategy(ManifestPart):
    """Which pods go first; the autoscaler's."""

    workersToDelete: list[str] = []


class WorkerGroup(RayGroup):
    """Workers that are alike."""

    groupName: DnsLabel
    replicas: Count | None = None
    minReplicas: Count | None = None
    maxReplicas: Count | None = None
    numOfHosts: Positive = 1
    idleTimeoutSeconds: Count | None = None
    priority: Int32 = 0
    scaleStrategy: ScaleStrategy | None = None
    suspend: bool | None = None


class UpgradeStrategy(ManifestPart):
    """What a change of the manifest does to a running cluster."""

    type: Literal["Recreate", "None"] | None = None


class RayClusterSpec(ManifestPart):
    """A Ray cluster."""

    rayVersion: Text
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], unique("groupName")] = []
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: GcsOptions | None = None
    headServiceAnnotations: dict[LabelKey, str] = {}
    managedBy: ManagedBy | None = None
    suspend: bool | None = None
    upgradeStrategy: UpgradeStrategy | None = None

    def groups(self, path: str) -> dict[str, RayGroup]:
        """Head and workers by their paths, below the cluster's own."""
        workers = {f"{path}.workerGroupSpecs[{index}]": group for index, group in enumerate(self.workerGroupSpecs)}
        return {f"{path}.headGroupSpec": self.headGroupSpec, **workers}


class DeletionCondition(ManifestPart):
    """When a deletion rule applies."""

    jobStatus: Literal["SUCCEEDED", "FAILED"] | None = None
    jobDeploymentStatus: Literal["Failed"] | None = None
    ttlSeconds: Count = 0

    @model_validator(mode="after")
    def _one_status(self) -> "DeletionCondition":
        if (self.jobStatus is None) == (self.jobDeploymentStatus is None):
            got = "neither" if self.jobStatus is None else "both"
            raise ValueError(f"must have jobStatus or jobDeploymentStatus, not both, got {got}")
        return self


class DeletionRule(ManifestPart):
    """What is deleted, and when."""

    policy: DeletionPolicy
    condition: DeletionCondition


class DeletionOutcome(ManifestPart):
    """What is deleted after success, or after failure."""

    policy: DeletionPolicy


class DeletionStrategy(ManifestPart):
    """What is deleted when the job is done."""

    deletionRules: Annotated[list[DeletionRule], Field(min_length=1)] | None = None
    onSuccess: DeletionOutcome | None = None
    onFailure: DeletionOutcome | None = None

    @model_validator(mode="after")
    def _rules_or_outcomes(self) -> "DeletionStrategy":
        # The older form needs both.
        outcomes = [name for name in ("onSuccess", "onFailure") if getattr(self, name)]
        if len(outcomes) != (2 if self.deletionRules is None else 0):
            got = ["deletionRules"] * (self.deletionRules is not None) + outcomes
            raise ValueError(
                f"must have deletionRules, or both onSuccess and onFailure, got {' and '.join(got) or 'none'}"
            )
        return self


class SubmitterConfig(ManifestPart):
    """The Job that submits."""

    backoffLimit: Count | None = None


class RayJobSpec(ManifestPart):
    """A job, and the cluster that it runs on."""

    entrypoint: str = ""
    # The CRD takes any text here: the server would not see a typo.
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"] = "K8sJobMode"
    rayClusterSpec: RayClusterSpec | None = None
    clusterSelector: dict[LabelKey, LabelValue] = {}
    runtimeEnvYAML: str = ""
    jobId: Text | None = None
    metadata: dict[str, str] = {}
    entrypointNumCpus: Annotated[float, Field(ge=0)] | None = None
    entrypointNumGpus: Annotated[float, Field(ge=0)] | None = None
    entrypointResources: str = ""  # a JSON object
    backoffLimit: Count = 0
    activeDeadlineSeconds: Positive | None = None
    preRunningDeadlineSeconds: Positive | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Count = 0
    deletionStrategy: DeletionStrategy | None = None
    suspend: bool = False
    managedBy: ManagedBy | None = None
    submitterPodTemplate: PodTemplate | None = None
    submitterConfig: SubmitterConfig | None = None


class RayJobMetadata(ManifestMetadata):
    """Identity of a RayJob, from whose name those of pods are made."""

    name: RayJobName


class RayClusterMetadata(ManifestMetadata):
    """Identity of a RayCluster, from whose name those of pods are made."""

    name: RayClusterName


class RayJobManifest(ManifestPart):
    """A RayJob."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: RayJobMetadata
    spec: RayJobSpec


class RayClusterManifest(ManifestPart):
    """A RayCluster."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: RayClusterMetadata
    spec: RayClusterSpec


class ConfigMapManifest(ManifestPart):
    """A ConfigMap."""

    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: ManifestMetadata
    data: dict[FileKey, str] = {}
    immutable: bool | None = None


ParsedManifest = RayJobManifest | RayClusterManifest | ConfigMapManifest | NetworkPolicyManifest


def cluster_of(manifest: ParsedManifest) -> tuple[str, RayClusterSpec] | None:
    """The cluster that a document describes, after its path; None for one that describes none."""
    if isinstance(manifest, RayClusterManifest):
        return "spec", manifest.spec
    if isinstance(manifest, RayJobManifest) and manifest.spec.rayClusterSpec is not None:
        return "spec.rayClusterSpec", manifest.spec.rayClusterSpec
    return None
