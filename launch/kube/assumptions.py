"""What `tandem k8s` renders on an assumption, or may not do what the user wants."""

import posixpath
from pathlib import Path

from launch.config import RunConfig
from launch.jobs.uploadable import existing_paths
from launch.kube.config_parts import CODE
from launch.kube.pods import image
from launch.kube.render import retries
from launch.kube.sizes import UNKNOWN_CPU_PROCESS, host_memory
from launch.sizes.estimate import GIB

NODE_START_S = 1200
"""Time that a new node with GPUs and the pull of a large image may take."""

# What the Dockerfiles copy into an image, by name.
_IN_IMAGES = ("actors", "algorithms", "launch", "configs", "examples")


def render_warnings(config: RunConfig) -> list[str]:
    """One line each."""
    kubernetes, found = config.cluster.kubernetes, []
    if kubernetes.image is None:
        name = image(config)
        found.append(
            f"cluster.kubernetes.image: not given, so pods start from {name}, which every node must hold already; to "
            f"name one that nodes can pull: cluster.kubernetes.image=REGISTRY/{name}"
        )
    if kubernetes.memory_gib is None and host_memory(config) is None:
        found.append(
            f"cluster.kubernetes.memory_gib: the model is not on this machine, so the memory of pods is assumed, "
            f"{kubernetes.memory_gib_per_gpu} GiB for each GPU and {UNKNOWN_CPU_PROCESS // GIB} GiB for each process "
            f"without one"
        )
    if config.checkpoint.every is None and retries(config):
        found.append(
            "checkpoint.every: not given, so a retry starts from the beginning, unless the pods were told to leave and "
            "left a checkpoint"
        )
    if kubernetes.autoscaling and config.cluster.wait_s < NODE_START_S:
        found.append(
            f"cluster.wait_s: rollout pods come only when the run waits for them, and a node with its image may take "
            f"{NODE_START_S} s, got {config.cluster.wait_s:g}"
        )
    return found + [
        f"{field}: {path} is on this machine; pods have the image's {CODE} and the volume at {kubernetes.volume.mount}"
        for field, _, path in existing_paths(config, Path())
        if _stays_here(config, path.as_posix())
    ]


def _stays_here(config: RunConfig, path: str) -> bool:
    """Whether a path that is here would be missing in the pods."""
    plain = posixpath.normpath(path)
    if posixpath.isabs(plain):
        # With a slash at both ends: /shared2 is not below /shared.
        return not any(f"{plain}/".startswith(f"{root}/") for root in (config.cluster.kubernetes.volume.mount, CODE))
    return plain.split("/")[0] not in _IN_IMAGES
