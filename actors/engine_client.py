"""How the policy's sender reaches all rollout engines: each call goes to every engine and has a deadline."""

from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from actors.rollout import Account, Adapter


class EngineClient:
    """The control calls of a weight transfer; structurally vLLM's `VLLMWeightSyncClient`."""

    def __init__(self, handles: list[ActorHandle], tensor_parallel: int, timeout_s: float) -> None:
        self.handles = handles
        self.tensor_parallel = tensor_parallel
        self.timeout_s = timeout_s
        self.version = -1
        self.starting = False
        self.canary: list[int] | None = None
        self.accounts: list[Account | None] = []

    def _all(self, method: str, *args: Any) -> list[Any]:
        references = [getattr(handle, method).remote(*args) for handle in self.handles]
        return self._wait(method, references)

    def _wait(self, method: str, references: list[Any]) -> list[Any]:
        try:
            return ray.get(references, timeout=self.timeout_s)
        except GetTimeoutError:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
            late = [index for index, reference in enumerate(references) if reference not in done]
            raise TimeoutError(
                f"rollout engine(s) {late} did not answer {method} within {self.timeout_s:g} s"
            ) from None

    def resume(self) -> None:
        """Let every engine go on, after a transfer that failed."""
        self._all("resume")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join the transfer group; each has its own ranks in it, after the sender's 0."""
        infos = [
            init_info | ({"rank_offset": 1 + index * self.tensor_parallel} if "rank_offset" in init_info else {})
            for index in range(len(self.handles))
        ]
        calls = zip(self.handles, infos, strict=True)
        self._wait("init_weight_transfer_engine", [h.init_weight_transfer_engine.remote(info) for h, info in calls])

    def start_weight_update(self) -> None:
        """Nothing yet: every engine pauses and prepares itself when it is asked to receive, which saves a call."""
        self.starting = True

    def update_weights(self, update_info: Any) -> None:
        """Let every engine receive."""
        starting, self.starting = self.starting, False
        self._all("update_weights", update_info, starting, self.canary is not None)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the new weights into service under the publisher's `version`; the engines go on.

        With a `canary` prompt, each engine's account of the transfer is then in `accounts`.
        """
        self.accounts = self._all("finish_weight_update", self.version, self.canary)

    def load_adapter(self, adapter: Adapter) -> list[Any]:
        """Let every engine load an adapter as `version`; `loaded` waits for what this returns."""
        shared = ray.put(adapter)
        return [handle.load_adapter.remote(shared, self.version, self.canary) for handle in self.handles]

    def loaded(self, references: list[Any]) -> None:
        """Wait until every engine uses its adapter; their accounts are then in `accounts`."""
        self.accounts = self._wait("load_adapter", references)

    def probe(self, seed: int) -> list[tuple[dict[str, np.ndarray], dict[str, list[str]]]]:
        """Per engine: what its layers answer to a fixed input, and which tensors they hold; see `actors.probe`."""
        return [engine[0] for engine in self._all("worker_call", "probe", seed)]
