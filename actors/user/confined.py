"""What a process that runs functions of the user's may see of the environment, and how much memory it may take.

Secrets are for the hub and the trackers; a reward function that prints its environment, or sends it to a service, gives
away none. This confines mistakes, not malice: such a function runs as the user, and reads what the user can.
"""

import math
import os
import resource
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from actors.config_nodes import is_secret
from actors.secret_text import holds_login, holds_token

_AGENTS = ("SSH_AUTH_SOCK", "GPG_AGENT_INFO")
"""Ways to whoever keeps keys, named like no secret."""
_STATUS = "/proc/self/status"
_ONE = threading.RLock()


def hidden(environment: Mapping[str, str], kept: Collection[str]) -> list[str]:
    """Names of the variables that hold secrets, by their names, as URLs with passwords, or as tokens of well-known
    services, without those `kept`."""
    return [
        name
        for name, value in environment.items()
        if name not in kept and value and (name in _AGENTS or is_secret(name, value) or _tells(value))
    ]


def _tells(value: str) -> bool:
    return holds_token(value) or holds_login(value)


def without_secrets(environment: Mapping[str, str], kept: Collection[str]) -> dict[str, str]:
    """The environment without what is `hidden`."""
    secrets = {*hidden(environment, kept)}
    return {name: value for name, value in environment.items() if name not in secrets}


def forget(names: Collection[str]) -> None:
    """Take variables out of this process's environment."""
    for name in names:
        os.environ.pop(name, None)


def confine(kept: Collection[str], memory_mib: int | None) -> None:
    """Take secrets out of this process's environment, and let it allocate no more than `memory_mib` from now on.

    What is allocated counts, not what is shared with other processes or read from files.
    """
    forget(hidden(os.environ, kept))
    if memory_mib is not None:
        limit = _allocated() + memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@contextmanager
def at_most(memory_mib: int, cpu_s: float) -> Iterator[None]:
    """Let this process allocate no more than `memory_mib` while the block runs; what is beyond is a MemoryError.

    After `cpu_s` seconds of computing the kernel ends it (SIGXCPU): no signal's handler runs while a single operation
    of Python's, such as the hash of nested tuples, takes for ever.
    """
    with _ONE:  # The limit is the process's: of two threads, one would put back what the other had set.
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = _allocated() + memory_mib * 2**20
        # Soft limits only, as a hard one could not be put back; and none that is looser than what held before.
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        soft_s, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
        # The kernel counts whole seconds, since the process began.
        ends = math.ceil(time.process_time() + cpu_s)
        if soft_s == resource.RLIM_INFINITY or ends < soft_s:
            resource.setrlimit(resource.RLIMIT_CPU, (ends, hard_s))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_CPU, (soft_s, hard_s))
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def limits_memory() -> bool:
    """Whether this process may allocate only so much."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def _allocated() -> int:
    """Bytes that count against the limit, as Linux counts them."""
    with open(_STATUS, encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
