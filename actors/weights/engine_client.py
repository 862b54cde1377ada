"""How the policy's sender reaches all rollout engines: each call goes to every engine and has a deadline."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from actors.group import GroupError, answers_of, no_answer
from actors.rollout.worker import Adapter
from actors.weights.ticket import Got, Kind

T = TypeVar("T")

_GROUP = "rollout"
"""What the driver calls the engines' group, and their logs."""
_MOMENT_S = 5.0
"""Longest wait for what the other engines say, where one has failed."""


class EngineClient:
    """The control calls of a weight transfer: for vLLM's senders its `VLLMWeightSyncClient`, for ours `take`."""

    def __init__(
        self, handles: list[ActorHandle], tensor_parallel: int, timeout_s: float, engines: Sequence[int] | None = None
    ) -> None:
        """`engines`: numbers of those that the handles are of; None: all from 0."""
        self.handles = handles
        self.engines = list(range(len(handles)) if engines is None else engines)
        self.tensor_parallel = tensor_parallel
        self.timeout_s = timeout_s
        self.version = -1
        self.starting = False
        self.canary: list[int] | None = None
        self.accounts: list[Got | None] = []

    def _all(self, method: str, *args: object) -> list[Any]:
        references = [getattr(handle, method).remote(*args) for handle in self.handles]
        return self._wait(method, references)

    def _wait(self, method: str, references: "list[ObjectRef[T]]") -> list[T]:
        """Answers of all engines within the deadline. Raises GroupError, which names the engine."""
        deadline = time.monotonic() + self.timeout_s
        try:
            return answers_of(_GROUP, self.engines, references, method, self.timeout_s)
        except GroupError as error:
            if isinstance(error.__cause__, RayTaskError):
                self._tell_of_others(method, references, deadline)
            raise

    def _tell_of_others(self, method: str, references: list[ObjectRef], deadline: float) -> None:
        """Raise GroupError of an engine that has died, or does not answer: in a transfer that all share, others fail
        because of it."""
        done, late = ray.wait(references, num_returns=len(references), timeout=_MOMENT_S)
        for reference in done:
            try:
                answers_of(_GROUP, [self.engines[references.index(reference)]], [reference], method, self.timeout_s)
            except GroupError as error:
                # Of one whose process lives, it may be because another one died.
                if not isinstance(error.__cause__, RayTaskError):
                    raise
        if late and time.monotonic() >= deadline:
            silent = [self.engines[references.index(reference)] for reference in late]
            raise no_answer(_GROUP, silent, method, self.timeout_s)

    def resume(self) -> None:
        """Let every engine go on, after a transfer that failed.

        Engines that do not answer soon are not waited for: that one is gone, or stands still, may be why it has failed.
        """
        references: list[ObjectRef] = [handle.resume.remote() for handle in self.handles]
        ray.wait(references, num_returns=len(references), timeout=min(self.timeout_s, _MOMENT_S))

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None:
        """Let every engine join the transfer group; each has its own ranks in it, after the sender's 0."""
        infos = [
            {**init_info} | ({"rank_offset": 1 + index * self.tensor_parallel} if "rank_offset" in init_info else {})
            for index in range(len(self.handles))
        ]
        calls = zip(self.handles, infos, strict=True)
        self._wait("init_weight_transfer_engine", [h.init_weight_transfer_engine.remote(info) for h, info in calls])

    def start_weight_update(self) -> None:
        """Nothing yet: every engine pauses and prepares itself when it is asked to receive, which saves a call."""
        self.starting = True

    def update_weights(self, update_info: object) -> None:
        """Let every engine receive."""
        # With the first part of a transfer only, of which there may be several.
        starting, self.starting = self.starting, False
        self._all("update_weights", update_info, starting, self.canary is not None)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the new weights into service under the publisher's `version`; the engines go on.

        With a `canary` prompt, each engine's account of the transfer is then in `accounts`.
        """
        self.accounts = self._all("finish_weight_update", self.version, self.canary)

    def take(self, update_info: object) -> None:
        """Let every engine receive, put what it got into service as `version`, and give account of it.

        That is the three calls above in one: each costs the engines a moment in which they stand still. Where one of
        them fails, others may have put what they got into service already.
        """
        finish = self.version, self.canary
        self.accounts = self._all("update_weights", update_info, True, self.canary is not None, finish)

    def load_adapter(self, adapter: Adapter) -> list[ObjectRef]:
        """Let every engine load an adapter as `version`; `loaded` waits for what this returns."""
        # Once, however many engines fetch it: as an argument it would be stored anew for each.
        shared = ray.put(adapter)
        return [handle.load_adapter.remote(shared, self.version, self.canary) for handle in self.handles]

    def loaded(self, references: list[ObjectRef]) -> None:
        """Wait until every engine uses its adapter; their accounts are then in `accounts`."""
        self.accounts = self._wait("load_adapter", references)

    def accounts_of(self, kind: Kind, checksums: dict[str, int]) -> list[Got | None]:
        """What each engine says of the part that was sent last; None where it was not asked to."""
        return self.accounts
