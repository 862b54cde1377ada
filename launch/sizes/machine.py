"""What this machine has: cores, memory within the limits of its container, shared memory, GPUs. Imports no Ray."""

import glob
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launch.config import machine_cpus

_NVIDIA_SMI_S = 2.0
"""Deadline of asking the driver for the GPUs' memory, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine, as far as a process here may use it; memory in bytes."""

    cpus: int
    gpus: int
    memory: int | None
    """RAM and swap that this process' container may use; None: not known."""
    free: int | None = None
    """Of these, what nobody uses now."""
    shared: int | None = None
    """Free in /dev/shm."""
    gpu_memory: int | None = None
    """Of the smallest GPU; None: not known."""


def this_machine(*, with_gpu_memory: bool = False) -> Machine:
    """The machine that this process runs on; `with_gpu_memory` asks NVIDIA's driver, which may take a second."""
    memory, free = memory_here(Path("/"))
    return Machine(
        cpus=machine_cpus(),
        gpus=machine_gpus(),
        memory=memory,
        free=free,
        shared=_free_bytes("/dev/shm"),
        gpu_memory=_gpu_memory() if with_gpu_memory and machine_gpus() else None,
    )


def machine_gpus() -> int:
    """NVIDIA devices of this machine that CUDA_VISIBLE_DEVICES does not hide."""
    # Not nvidia-smi, which may take a second.
    found = len(glob.glob("/dev/nvidia[0-9]*"))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return found
    return min(found, len([item for item in shown.split(",") if item.strip() not in ("", "-1", "NoDevFiles")]))


def memory_here(root: Path) -> tuple[int | None, int | None]:
    """(all, free) memory in bytes: the machine's, or that of the tightest control group above this process.

    Args:
        root: where /proc and /sys are.
    """
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None, None
    kib = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    if "MemTotal" not in kib:
        return None, None
    swap = kib.get("SwapTotal", 0)
    memory, free = kib["MemTotal"] + swap, kib.get("MemAvailable", kib["MemTotal"]) + kib.get("SwapFree", 0)
    memory, free = memory * 1024, free * 1024
    for limit, used in _control_groups(root):
        memory, free = min(memory, limit), min(free, max(0, limit - used))
    return memory, free


def _control_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use without what can be given back) in bytes of every control group of this process that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # In a container, the path is the host's and the mount shows its end alone: every part of it is tried.
        mount = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            if found := _limit(mount.joinpath(*parts[:depth]), *names):
                yield found


def _limit(directory: Path, limit_file: str, use_file: str) -> tuple[int, int] | None:
    try:
        limit = (directory / limit_file).read_text(encoding="ascii").strip()
        use = int((directory / use_file).read_text(encoding="ascii"))
        statistics = (directory / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():  # "max"
        return None
    # Files in the page cache: the kernel gives their memory back.
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return int(limit), max(0, use - (int(found[1]) if found else 0))


def free_disk(directory: Path) -> int | None:
    """Bytes free where a directory is or will be made; None where nobody says."""
    existing = directory.absolute()
    # The disk that it will be on, if it is not there yet.
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    return _free_bytes(str(existing))


def _free_bytes(path: str) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    # f_bavail, not f_bfree: some is kept for root.
    return status.f_frsize * status.f_bavail if status.f_blocks else None


@cache
def _gpu_memory() -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S)
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) * 2**20 for line in done.stdout.split() if line.isdecimal()]
    return min(sizes) if done.returncode == 0 and sizes else None
