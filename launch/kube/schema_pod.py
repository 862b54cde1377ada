"""Pods: the fields of the Kubernetes core API that our manifests may have, by their names there."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.kube.schema_container import PodContainer, PodSecurityContext
from launch.kube.schema_types import (
    Count,
    DnsLabel,
    DnsName,
    LabelKey,
    Labels,
    LabelValue,
    ManifestPart,
    Positive,
    unique,
)
from launch.kube.schema_volumes import PodVolume

Weight = Annotated[int, Field(ge=1, le=100)]


class LabelExpression(ManifestPart):
    """One condition on labels."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue] = []

    @model_validator(mode="after")
    def _values_if_compared(self) -> "LabelExpression":
        # Exists and DoesNotExist look at the key alone.
        if bool(self.values) == self.operator.endswith(("Exists", "NotExist")):
            needs = "no values" if self.values else "values"
            raise ValueError(f".values: must be {needs} with operator {self.operator}, got {self.values}")
        return self


class LabelSelector(ManifestPart):
    """Pods by their labels."""

    matchLabels: Labels = {}
    matchExpressions: list[LabelExpression] = []


class NodeTerm(ManifestPart):
    """Nodes by their labels."""

    matchExpressions: Annotated[list[LabelExpression], Field(min_length=1)]


class PreferredNodes(ManifestPart):
    """Nodes that are preferred, and how much."""

    weight: Weight
    preference: NodeTerm


class RequiredNodes(ManifestPart):
    """Nodes that are allowed: those of any term."""

    nodeSelectorTerms: Annotated[list[NodeTerm], Field(min_length=1)]


class NodeAffinity(ManifestPart):
    """Which nodes a pod may be on."""

    requiredDuringSchedulingIgnoredDuringExecution: RequiredNodes | None = None
    preferredDuringSchedulingIgnoredDuringExecution: list[PreferredNodes] = []


class PodTerm(ManifestPart):
    """Pods that are near: in the same topology."""

    topologyKey: LabelKey
    labelSelector: LabelSelector | None = None
    namespaces: list[DnsLabel] = []


class PreferredPods(ManifestPart):
    """Pods that are preferred near or far, and how much."""

    weight: Weight
    podAffinityTerm: PodTerm


class PodAffinity(ManifestPart):
    """Which pods a pod shall be near, or far from."""

    requiredDuringSchedulingIgnoredDuringExecution: list[PodTerm] = []
    preferredDuringSchedulingIgnoredDuringExecution: list[PreferredPods] = []


class Affinity(ManifestPart):
    """Where a pod may be."""

    nodeAffinity: NodeAffinity | None = None
    podAffinity: PodAffinity | None = None
    podAntiAffinity: PodAffinity | None = None


class TopologySpread(ManifestPart):
    """How evenly pods are spread over a topology."""

    maxSkew: Positive
    topologyKey: LabelKey
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    labelSelector: LabelSelector | None = None
    minDomains: Positive | None = None


class Toleration(ManifestPart):
    """A taint that a pod bears."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: Count | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError(f".value: must be left out with operator Exists, got {self.value}")
        if self.operator != "Exists" and not self.key:
            raise ValueError(".key: required unless operator is Exists, got nothing")
        if self.tolerationSeconds is not None and self.effect != "NoExecute":
            raise ValueError(f".effect: must be NoExecute with tolerationSeconds, got {self.effect or 'nothing'}")
        return self


class PullSecret(ManifestPart):
    """A Secret with the credentials of an image registry."""

    name: DnsName


class PodSpec(ManifestPart):
    """What a pod runs, and where."""

    containers: Annotated[list[PodContainer], Field(min_length=1), unique("name")]
    initContainers: Annotated[list[PodContainer], unique("name")] = []
    volumes: Annotated[list[PodVolume], unique("name")] = []
    securityContext: PodSecurityContext | None = None
    affinity: Affinity | None = None
    topologySpreadConstraints: list[TopologySpread] = []
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    priorityClassName: DnsName | None = None
    imagePullSecrets: list[PullSecret] = []
    serviceAccountName: DnsName | None = None
    automountServiceAccountToken: bool | None = None
    enableServiceLinks: bool | None = None
    terminationGracePeriodSeconds: Count | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    hostNetwork: bool | None = None
    hostIPC: bool | None = None
    shareProcessNamespace: bool | None = None
    dnsPolicy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default"] | None = None
    runtimeClassName: DnsName | None = None
    schedulerName: DnsName | None = None


class PodMetadata(ManifestPart):
    """Labels and annotations of pods; the operator names them."""

    labels: Labels = {}
    annotations: dict[LabelKey, str] = {}


class PodTemplate(ManifestPart):
    """The pods of a group, all alike."""

    metadata: PodMetadata = PodMetadata()
    spec: PodSpec
