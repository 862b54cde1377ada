"""Objects of a Kubernetes API server: the fields of them that are read, by their names there.

A server gives more fields than these, and null or nothing for what is empty.
"""

from typing import NotRequired, TypedDict

Manifest = dict[str, object]
"""A mapping of a manifest that is rendered; `launch/kube/schema*.py` say what may be in it."""


class DocumentMetadata(TypedDict):
    """Identity of an object that is to be created."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: NotRequired[dict[str, str]]


class Document(TypedDict):
    """An object as it is rendered, to be created."""

    apiVersion: str
    kind: str
    metadata: DocumentMetadata
    spec: NotRequired[Manifest]
    data: NotRequired[dict[str, str]]
    """Of a ConfigMap."""


class Metadata(TypedDict):
    """Identity of an object on the server."""

    name: str
    uid: str
    """Another one for an object that is created again under the same name."""
    labels: NotRequired[dict[str, str] | None]
    annotations: NotRequired[dict[str, str] | None]
    creationTimestamp: NotRequired[str | None]
    deletionTimestamp: NotRequired[str | None]
    """There from the request to delete the object until it is gone."""


class KubeObject(TypedDict):
    """What all objects on the server have."""

    apiVersion: str
    kind: str
    metadata: Metadata


# Only what of a RayJob the stop and the log need to know.
class _PodFields(TypedDict, total=False):
    terminationGracePeriodSeconds: int


class _TemplateFields(TypedDict, total=False):
    spec: _PodFields | None


class _GroupFields(TypedDict, total=False):
    template: _TemplateFields | None


class _ClusterFields(TypedDict, total=False):
    headGroupSpec: _GroupFields | None
    workerGroupSpecs: list[_GroupFields] | None


class _RayJobFields(TypedDict, total=False):
    submissionMode: str | None
    rayClusterSpec: _ClusterFields | None


class RayJobStatus(TypedDict, total=False):
    """What the operator has written; all of it comes bit by bit."""

    jobDeploymentStatus: str | None
    jobStatus: str | None
    reason: str | None
    message: str | None
    rayClusterName: str | None
    jobId: str | None
    dashboardURL: str | None
    startTime: str | None
    endTime: str | None


class RayJob(KubeObject):
    """A RayJob on the server."""

    spec: _RayJobFields
    status: NotRequired[RayJobStatus | None]


class _Condition(TypedDict):
    type: str
    status: str
    """True, False or Unknown, as text."""
    reason: NotRequired[str | None]
    message: NotRequired[str | None]


class _Waiting(TypedDict, total=False):
    reason: str | None
    message: str | None


class _ContainerState(TypedDict, total=False):
    waiting: _Waiting | None


class _ContainerStatus(TypedDict, total=False):
    state: _ContainerState | None


class PodStatus(TypedDict, total=False):
    """What the scheduler and the node say of a pod."""

    phase: str
    conditions: list[_Condition] | None
    initContainerStatuses: list[_ContainerStatus] | None
    containerStatuses: list[_ContainerStatus] | None


class _Container(TypedDict):
    name: str


class _PodContainers(TypedDict):
    containers: list[_Container]


class Pod(KubeObject):
    """A pod on the server."""

    spec: _PodContainers
    status: NotRequired[PodStatus | None]


class Event(TypedDict, total=False):
    """A message about an object."""

    lastTimestamp: str | None
    eventTime: str | None
    """Instead of lastTimestamp, by those who report through the newer events API."""
    message: str | None
