"""Weights go to all engines in one transfer, in which policy and engines meet once: over gloo, nccl or ipc."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from actors.group import ActorGroup
from actors.train.policy import PolicyWorker
from actors.weights.ticket import Account, Kind, Ticket


@dataclass(kw_only=True)
class BroadcastStore:
    """A `WeightStore` that keeps nothing: who was not there when a version was published does not get it."""

    policy: ActorGroup[PolicyWorker]
    canary: list[int]
    """Token ids of the prompt that both sides compute."""
    verify_every: int
    """Versions from one that both sides account for to the next."""
    version: int = -1
    """Published last."""
    engines: Sequence[int] | None = None
    """Those that the policy has met, in order; None: all from 0."""
    accounts: dict[int, Account] = field(default_factory=dict)
    """Of the engines that it went to."""

    def publish(self, version: int, *, prove: bool = False) -> Ticket:
        """Send the policy's weights to all engines, which use them when this returns."""
        # All ranks are called, as gathering is collective; rank 0 alone talks to the engines.
        verify = prove or version % self.verify_every == 0
        told = self.policy.call(PolicyWorker.publish, version, self.canary, verify)[0]
        assert told is not None, "rank 0 tells"
        ticket, accounts = told
        numbers = range(len(accounts)) if self.engines is None else self.engines
        self.version = version
        self.accounts = {
            engine: replace(account, engine=engine) for engine, account in zip(numbers, accounts, strict=True)
        }
        return ticket

    def fetch(self, ticket: Ticket, engines: Sequence[int]) -> list[Account]:
        """What the engines have said when they got it; raises ValueError of any other version or engine."""
        if ticket.version != self.version:  # whose accounts those are
            raise ValueError(
                f"version {ticket.version} cannot be fetched from a broadcast: the last one was {self.version}"
            )
        if absent := [engine for engine in engines if engine not in self.accounts]:
            raise ValueError(
                f"version {ticket.version} cannot be fetched by engines {absent}: a broadcast goes to those that are "
                f"there (rollout.transfer.store holder serves others)"
            )
        return [self.accounts[engine] for engine in engines]

    def sent(self, kind: Kind) -> dict[str, int]:
        """As the policy's rank 0 remembers."""
        return self.policy.gather([self.policy.submit(0, PolicyWorker.sent_checksums, kind)], "sent_checksums")[0]

    def answers(self, seed: int) -> dict[str, np.ndarray]:
        """As the policy computes them."""
        return self.policy.call(PolicyWorker.published_answers, seed)[0]
