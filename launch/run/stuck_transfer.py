"""Frees a policy that sends weights to an engine whose node has vanished: no network tells it that nobody is there."""

import threading
import time
from typing import Any

from actors.group import ActorGroup
from actors.pulse import Pulse
from launch.run.wardens import end_actors

_GRACE_S, _PULSE_S = 3.0, 1.0
"""That a transfer has to fail by itself, and the wait for one answer."""
_METHODS = "connect", "publish"
"""Of the policy, in which it meets engines, and sends to them."""


def free_senders(policy: ActorGroup[Any], *, grace_s: float = _GRACE_S) -> threading.Thread:
    """End the policy's processes, beside all else, if they are still in a transfer that had begun before now.

    They would wait for its deadline. They are brought back as any that are lost, and the weights sent to who is there.
    """
    thread = threading.Thread(target=_free, args=(policy, grace_s), name="stuck transfer", daemon=True)
    thread.start()
    return thread


def _free(policy: ActorGroup[Any], grace_s: float) -> None:
    noticed, handles = time.monotonic(), list(policy.handles)
    time.sleep(grace_s)
    for told in policy.pulses(_PULSE_S):
        sends = isinstance(told, Pulse) and told.method in _METHODS and told.seconds > time.monotonic() - noticed
        if sends and handles == policy.handles:
            end_actors(handles)
            return
