"""How a run's weights go from policy to engines: the store that its settings ask for, and who meets whom for it."""

import math
import threading
import time
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from actors.group import ActorGroup, GroupError
from actors.group_errors import RankLost
from actors.models.tokenizer import load_tokenizer
from algorithms.rollouts.membership import Membership
from launch.config import RunConfig
from launch.run.connection import Connection
from launch.run.reserved import Placement
from launch.run.roster import Roster

if TYPE_CHECKING:
    from actors.rollout.worker import RolloutWorker
    from actors.weights.broadcast_store import BroadcastStore
    from actors.weights.holder_store import HolderStore
    from actors.weights.ticket import Ticket

_CANARY_TOKENS = 24
_VERDICT_S, _PULSE_S = 2.0, 1.0
"""Longest wait for the news that an engine has died, where a transfer has failed, and for one answer: failures of its
peers may be heard of first."""


def canary_tokens(vocabulary: int, length: int) -> list[int]:
    """Tokens from all over a vocabulary, the same ones all run long; each comes again only when there are no more."""
    stride = next(step for step in count(31) if math.gcd(step, vocabulary) == 1)
    return [(7 + stride * position) % vocabulary for position in range(length)]


def spawn_holder(config: RunConfig, placement: Placement, roster: Roster) -> None:
    """Start the process that keeps published weights, where they go through one."""
    from actors.weights.holder import HOLDER_CONCURRENCY, WeightHolder

    transfer = config.rollout.transfer
    if transfer.store != "holder":
        return
    holder = roster.add("holder", WeightHolder, transfer.timeout_s, placement, HOLDER_CONCURRENCY)
    holder.spawn(transfer.bucket_mib * 2**20, transfer.timeout_s)


class Weights:
    """Sends the policy's weights as a version to all engines that are there, and to others when they are back.

    Engines that are lost in a transfer are left out of the next try: it is the same version for those that are there.
    """

    def __init__(
        self, config: RunConfig, roster: Roster, connection: Connection, directory: str, members: Membership
    ) -> None:
        from actors.weights.verify import tolerance

        self._rollout: ActorGroup[RolloutWorker] = roster["rollout"]
        self._store = _store(config, roster, directory)
        self._connection = connection
        self._members = members
        self._allowed = tolerance(config.rollout.transfer, config.model.dtype)
        self._restart_s = config.rollout.restart_timeout_s
        self._lock = threading.Lock()
        self._ticket: Ticket | None = None
        """Of the version that was published last."""

    def connect(self) -> None:
        """Let the policy meet all engines, or the holder; raises GroupError."""
        self._connection.ensure()

    def publish(self, version: int) -> dict[str, float]:
        """Send the policy's weights as a version, and verify that engines use them; returns metrics.

        Raises GroupError: the policy, a holder, or all engines are lost, or a transfer has failed for another reason;
        and what `sync` raises.
        """
        members = self._members
        with self._lock:
            while True:
                engines, losses = members.wait_for_one(self._restart_s)
                try:
                    metrics = self._sync(version, engines)
                except GroupError as error:
                    self._connection.part()
                    members.doubt(engines)
                    # Where none comes back, this is the cause, and what engines say next follows from it.
                    if not members.come_back or not self._lost_one(engines, losses, error):
                        raise
                    continue
                members.serve(engines, version, losses)
                return metrics

    def welcome(self) -> None:
        """Give engines that are back the weights of the others, where the policy is free to send them and has not moved
        since; returns at once where there are none, or weights are being sent. Raises as `publish` does."""
        stale = self._members.stale()
        if not stale or self._ticket is None or not self._lock.acquire(blocking=False):
            return
        try:
            for engine in stale:
                self._welcome(engine, self._ticket)
        finally:
            self._lock.release()

    def _welcome(self, engine: int, ticket: "Ticket") -> None:
        losses = list(self._members.losses)
        try:
            if not self._bring(engine, ticket):
                return
        except GroupError as error:
            self._connection.part()
            if not self._lost_one([engine], losses, error):
                raise
        else:
            self._members.serve([engine], ticket.version, losses)

    def _bring(self, engine: int, ticket: "Ticket") -> bool:
        """Give an engine the version of the ticket; whether it has proved that it uses it."""
        from actors.weights.holder_store import HolderStore
        from actors.weights.verify import verify

        if not isinstance(self._store, HolderStore):
            self._sync(ticket.version, [engine])  # a broadcast to it alone
            return True
        if any(sent.digest is None for sent in ticket.parts.values()):
            return False  # one that it could not be compared with: the next version is one that it can
        accounts = self._store.fetch(ticket, [engine])
        verify(self._store, self._rollout, ticket, accounts, self._allowed)
        return True

    def _sync(self, version: int, engines: Sequence[int]) -> dict[str, float]:
        from actors.weights.broadcast_store import BroadcastStore
        from actors.weights.store import sync

        self._connection.ensure(engines)
        if isinstance(self._store, BroadcastStore):
            self._store.engines = engines
        prove = any(self._members.losses[engine] and self._members.state(engine) == "stale" for engine in engines)
        self._ticket, metrics = sync(self._store, self._rollout, version, self._allowed, engines, prove=prove)
        return metrics

    def _lost_one(self, engines: Sequence[int], losses: Sequence[int], error: GroupError) -> bool:
        """Whether one of the engines that took part is lost: others fail with it, and may be told of sooner."""
        members, until = self._members, time.monotonic() + _VERDICT_S
        if isinstance(error, RankLost) and error.group == self._rollout.name:
            self._lose(error.rank, losses, error)
        while all(members.losses[engine] == losses[engine] for engine in engines):
            if time.monotonic() > until:
                return False
            for engine, told in enumerate(self._rollout.pulses(_PULSE_S)):
                # Others had no part in it: one that was lost before may be replaced by now.
                if engine in engines and isinstance(told, RankLost):
                    self._lose(engine, losses, told)
        return True

    def _lose(self, engine: int, losses: Sequence[int], error: GroupError) -> None:
        generation = self._members.generation(engine)
        if self._members.losses[engine] == losses[engine]:  # else it has a new process by now
            self._members.lose(engine, error, generation)


def _store(config: RunConfig, roster: Roster, directory: str) -> "BroadcastStore | HolderStore":
    from actors.weights.broadcast_store import BroadcastStore
    from actors.weights.holder_store import HolderStore

    transfer, rollout, holder = config.rollout.transfer, roster["rollout"], roster.get("holder")
    # An engine takes a prompt only with room for one token behind it.
    length = min(_CANARY_TOKENS, config.rollout.max_model_len - 1)
    policy, canary = roster["policy"], canary_tokens(len(load_tokenizer(directory)), length)
    if holder is None:
        return BroadcastStore(policy=policy, canary=canary, verify_every=transfer.verify_every)
    return HolderStore(
        policy=policy,
        canary=canary,
        verify_every=transfer.verify_every,
        holder=holder,
        rollout=rollout,
        tensor_parallel=config.rollout.tensor_parallel,
        timeout_s=transfer.timeout_s,
        rolling=config.rollout.update_order == "rolling",
    )
