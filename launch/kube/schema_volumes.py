"""Volumes of pods: the fields of the Kubernetes core API that our manifests may have, by their names there."""

from typing import Literal

from launch.kube.schema_types import (
    AbsolutePath,
    DnsLabel,
    DnsName,
    FileKey,
    InnerPath,
    ManifestPart,
    Mode,
    OneOf,
    Quantity,
    Text,
)


class EmptyDir(ManifestPart):
    """A volume that lives as long as the pod; medium Memory is tmpfs."""

    medium: Literal["", "Memory"] | None = None
    sizeLimit: Quantity | None = None


class VolumeClaim(ManifestPart):
    """A PersistentVolumeClaim of the namespace."""

    claimName: DnsName
    readOnly: bool | None = None


class KeyToPath(ManifestPart):
    """One key of a ConfigMap or Secret as a file."""

    key: FileKey
    path: InnerPath
    mode: Mode | None = None


class ConfigMapVolume(ManifestPart):
    """A ConfigMap as files."""

    name: DnsName
    items: list[KeyToPath] = []
    defaultMode: Mode | None = None
    optional: bool | None = None


class SecretVolume(ManifestPart):
    """A Secret as files."""

    secretName: DnsName
    items: list[KeyToPath] = []
    defaultMode: Mode | None = None
    optional: bool | None = None


class HostPath(ManifestPart):
    """A path of the node."""

    path: AbsolutePath
    type: (
        Literal["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice"]
        | None
    ) = None


class NfsVolume(ManifestPart):
    """A directory of an NFS server."""

    server: Text
    path: AbsolutePath
    readOnly: bool | None = None


class PodVolume(OneOf):
    """A volume of a pod."""

    name: DnsLabel
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: VolumeClaim | None = None
    configMap: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    hostPath: HostPath | None = None
    nfs: NfsVolume | None = None
