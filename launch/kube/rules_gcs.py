"""KubeRay's rules of GCS fault tolerance: where the head's state is kept, and by which fields alone it is said."""

from collections.abc import Iterator

from launch.kube.schema import GcsOptions, RayClusterSpec
from launch.kube.schema_container import PodContainer

_STORE = "/data/gcs"  # where the operator mounts the volume


def gcs_problems(spec: RayClusterSpec, path: str, annotations: dict[str, str]) -> Iterator[str]:
    """Problems of `gcsFaultToleranceOptions`, and of what goes around them: environment, annotations, mounts."""
    head, options = spec.headGroupSpec.template.spec.containers[0], spec.gcsFaultToleranceOptions
    place = f"{path}.headGroupSpec.template.spec.containers[0]"
    where = f"{path}.gcsFaultToleranceOptions"
    for index, variable in enumerate(head.env):
        if variable.name in _managed(options):
            yield f"{place}.env[{index}].name: must be left out, as {where} says it, got {variable.name}"
    if options is None:
        return
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if name in annotations:
            yield f'metadata.annotations["{name}"]: must be left out with {where}, got {annotations[name]}'
    yield from _redis(options, where) if options.backend == "redis" else _rocksdb(options, where, head, place)


def _managed(options: GcsOptions | None) -> set[str]:
    names = {"RAY_REDIS_ADDRESS", "REDIS_USERNAME"}
    if options is not None:
        names.add("REDIS_PASSWORD")
        if options.backend == "rocksdb":
            names |= {"RAY_gcs_storage", "RAY_gcs_storage_path"}
    return names


def _redis(options: GcsOptions, where: str) -> Iterator[str]:
    if options.redisAddress is None:
        yield f"{where}.redisAddress: required with backend redis, got nothing"
    elif "@" in options.redisAddress:
        yield f"{where}.redisAddress: must hold no user or password, which have fields of their own, got one"
    if options.storage is not None:
        yield f"{where}.storage: must be left out with backend redis"


def _rocksdb(options: GcsOptions, where: str, head: PodContainer, place: str) -> Iterator[str]:
    for name in ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"):
        if getattr(options, name) is not None:
            yield f"{where}.{name}: must be left out with backend rocksdb"
    storage = options.storage
    if storage and storage.claimName and (storage.size or storage.storageClassName or storage.accessModes):
        rule = "must be left out with size, storageClassName and accessModes, which make a new claim"
        yield f"{where}.storage.claimName: {rule}, got {storage.claimName}"
    for index, mount in enumerate(head.volumeMounts):
        if mount.mountPath.rstrip("/") == _STORE:
            rule = "must differ from the operator's with backend rocksdb"
            yield f"{place}.volumeMounts[{index}].mountPath: {rule}, got {mount.mountPath}"
