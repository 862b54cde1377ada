"""How the policy's sender reaches the holder: each call has a deadline."""

from collections.abc import Mapping

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from actors.group import answers_of
from actors.rollout.worker import Adapter
from actors.weights.ticket import Got, Kind

_GROUP = "holder"
"""What the driver calls the holder's group, and its log."""


class HolderClient:
    """The control calls of a transfer over gloo, as those of `EngineClient`, to one holder: it serves engines later."""

    def __init__(self, holder: ActorHandle, timeout_s: float) -> None:
        self.holder = holder
        self.timeout_s = timeout_s
        self.version = -1
        self.canary: list[int] | None = None

    def _call(self, method: str, *args: object) -> None:
        self._wait(method, [getattr(self.holder, method).remote(*args)])

    def _wait(self, method: str, references: list[ObjectRef]) -> None:
        answers_of(_GROUP, [0], references, method, self.timeout_s)

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None:
        """Let the holder join the transfer group."""
        self._call("join", init_info)

    def take(self, update_info: object) -> None:
        """Let the holder receive, beside what it has, and then serve that as `version` instead."""
        self._call("receive", update_info)
        self._call("keep", self.version)

    def resume(self) -> None:
        """Nothing, after a transfer that failed: no engine took part, and the holder keeps what it had."""

    def load_adapter(self, adapter: Adapter) -> list[ObjectRef]:
        """Let the holder serve an adapter as `version`; `loaded` waits for what this returns."""
        return [self.holder.keep_adapter.remote(ray.put(adapter), self.version)]

    def loaded(self, references: list[ObjectRef]) -> None:
        """Wait until the holder has the adapter."""
        self._wait("keep_adapter", references)

    def accounts_of(self, kind: Kind, checksums: dict[str, int]) -> list[Got | None]:
        """No engine's, yet; the holder keeps the names that one may be asked for later."""
        self._call("note", kind, checksums)
        return []
