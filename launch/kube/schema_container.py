"""Containers: the fields of the Kubernetes core API that our manifests may have, by their names there."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from actors.config_nodes import is_secret
from launch.kube.schema_types import (
    AbsolutePath,
    Count,
    DnsLabel,
    DnsName,
    EnvName,
    FileKey,
    ImageName,
    InnerPath,
    ManifestPart,
    OneOf,
    Port,
    PortOrName,
    Positive,
    Quantity,
    ResourceName,
    Text,
    quantity_value,
    unique,
)

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class KeyRef(ManifestPart):
    """One key of a Secret or ConfigMap."""

    name: DnsName
    key: FileKey
    optional: bool | None = None


class FieldRef(ManifestPart):
    """A field of the pod itself."""

    fieldPath: Text
    apiVersion: str | None = None


class EnvSource(OneOf):
    """Where the value of an environment variable comes from."""

    secretKeyRef: KeyRef | None = None
    configMapKeyRef: KeyRef | None = None
    fieldRef: FieldRef | None = None


class PodEnv(ManifestPart):
    """An environment variable."""

    name: EnvName
    value: str | None = None
    valueFrom: EnvSource | None = None

    @model_validator(mode="after")
    def _no_literal_secret(self) -> "PodEnv":
        if self.value is not None and self.valueFrom is not None:
            raise ValueError("must have value or valueFrom, got both")
        # Its message begins with a dot: it goes on with the path, see validate.py.
        if self.value and is_secret(self.name, self.value):
            raise ValueError(
                f".value: {self.name} must come from a Secret (valueFrom.secretKeyRef), got a literal value"
            )
        return self


class ObjectRef(ManifestPart):
    """A Secret or ConfigMap as a whole."""

    name: DnsName
    optional: bool | None = None


class PodEnvFrom(OneOf):
    """All keys of a Secret or ConfigMap as environment variables."""

    configMapRef: ObjectRef | None = None
    secretRef: ObjectRef | None = None
    prefix: str | None = None


class PodResources(ManifestPart):
    """What a container reserves, and what it may use."""

    limits: dict[ResourceName, Quantity] = {}
    requests: dict[ResourceName, Quantity] = {}

    @model_validator(mode="after")
    def _within_limits(self) -> "PodResources":
        for problem in self._problems():  # a validator can raise only one
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for name in sorted({*self.limits, *self.requests}):
            limit, request = self.limits.get(name), self.requests.get(name)
            # With a domain, as nvidia.com/gpu, it cannot be overcommitted: request and limit are one whole number.
            if "/" not in name:
                if limit is not None and request is not None and quantity_value(request) > quantity_value(limit):
                    yield f".requests.{name}: must not exceed the limit ({limit}), got {request}"
            elif limit is None:
                yield f".limits: must have {name}, as requests has it, got none"
            elif quantity_value(limit) % 1 or not quantity_value(limit):
                yield f'.limits["{name}"]: must be a whole number from 1, got {limit}'
            elif request is not None and quantity_value(request) != quantity_value(limit):
                yield f'.requests["{name}"]: must equal the limit ({limit}), got {request}'


class VolumeMount(ManifestPart):
    """Where a container sees a volume."""

    name: DnsLabel
    mountPath: AbsolutePath
    readOnly: bool | None = None
    subPath: InnerPath | None = None


class ContainerPort(ManifestPart):
    """A port that a container listens on."""

    containerPort: Port
    name: PortOrName | None = None
    hostPort: Port | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None


class ExecAction(ManifestPart):
    """A command in the container."""

    command: Annotated[list[str], Field(min_length=1)]


class HttpAction(ManifestPart):
    """A request to the container."""

    port: PortOrName
    path: str | None = None
    host: str | None = None
    scheme: Literal["HTTP", "HTTPS"] | None = None


class TcpAction(ManifestPart):
    """A connection to the container."""

    port: PortOrName
    host: str | None = None


class SleepAction(ManifestPart):
    """A pause."""

    seconds: Count


class Probe(OneOf):
    """How Kubernetes asks a container for its health."""

    exec: ExecAction | None = None
    httpGet: HttpAction | None = None
    tcpSocket: TcpAction | None = None
    initialDelaySeconds: Count | None = None
    periodSeconds: Positive | None = None
    timeoutSeconds: Positive | None = None
    successThreshold: Positive | None = None
    failureThreshold: Positive | None = None
    terminationGracePeriodSeconds: Positive | None = None


class LifecycleHandler(OneOf):
    """What is done after a container starts or before it stops."""

    exec: ExecAction | None = None
    httpGet: HttpAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(ManifestPart):
    """Handlers around a container's life."""

    postStart: LifecycleHandler | None = None
    preStop: LifecycleHandler | None = None


class SeccompProfile(ManifestPart):
    """Which system calls are allowed."""

    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]
    localhostProfile: str | None = None


class Capabilities(ManifestPart):
    """Linux capabilities, without CAP_."""

    add: list[str] = []
    drop: list[str] = []


class SecurityContext(ManifestPart):
    """Rights of a container."""

    runAsUser: Count | None = None
    runAsGroup: Count | None = None
    runAsNonRoot: bool | None = None
    allowPrivilegeEscalation: bool | None = None
    privileged: bool | None = None
    readOnlyRootFilesystem: bool | None = None
    capabilities: Capabilities | None = None
    seccompProfile: SeccompProfile | None = None

    @model_validator(mode="after")
    def _privileges(self) -> "SecurityContext":
        if self.privileged and self.allowPrivilegeEscalation is False:
            raise ValueError(".allowPrivilegeEscalation: must not be false with privileged, got false")
        return self


class PodSecurityContext(ManifestPart):
    """Rights of all containers of a pod."""

    runAsUser: Count | None = None
    runAsGroup: Count | None = None
    runAsNonRoot: bool | None = None
    fsGroup: Count | None = None
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"] | None = None
    supplementalGroups: list[Count] = []
    seccompProfile: SeccompProfile | None = None


class PodContainer(ManifestPart):
    """A container of a pod."""

    name: DnsLabel
    image: ImageName
    imagePullPolicy: PullPolicy | None = None
    command: list[str] = []
    args: list[str] = []
    workingDir: AbsolutePath | None = None
    env: Annotated[list[PodEnv], unique("name")] = []
    envFrom: list[PodEnvFrom] = []
    ports: list[ContainerPort] = []
    resources: PodResources = PodResources()
    volumeMounts: Annotated[list[VolumeMount], unique("mountPath")] = []
    livenessProbe: Probe | None = None
    readinessProbe: Probe | None = None
    startupProbe: Probe | None = None
    lifecycle: Lifecycle | None = None
    securityContext: SecurityContext | None = None
    restartPolicy: Literal["Always"] | None = None  # of an init container that stays, as a sidecar
    terminationMessagePolicy: Literal["File", "FallbackToLogsOnError"] | None = None
