"""The driver asks for a transfer of weights: publish, fetch, verify; what sends them is in `publisher.py`.

    policy ranks --publish(version)--> [store] <--fetch(ticket, engines)-- engines, any of them, at any time

When to publish is the algorithm's affair, how weights travel that of the store: `broadcast_store.py` sends them to all
engines at once, `holder_store.py` keeps them in a process of its own for whoever comes.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from actors.group import ActorGroup
from actors.rollout.worker import RolloutWorker
from actors.weights.ticket import Account, Kind, Ticket
from actors.weights.verify import verify


class WeightStore(Protocol):
    """Where the policy leaves its weights, and engines get them."""

    def publish(self, version: int, *, prove: bool = False) -> Ticket:
        """Leave the policy's weights as this version; collective on its ranks. Training may then go on.

        With `prove`, both sides account for it whatever `rollout.transfer.verify_every` is.

        Raises GroupError when a rank, or whoever takes the weights, fails.
        """
        ...

    def fetch(self, ticket: Ticket, engines: Sequence[int]) -> list[Account]:
        """Let these engines use the ticket's version; one account for each, in their order.

        Raises:
            ValueError: the store cannot give this version to these engines.
            GroupError: an engine has failed or died, which is named; the others go on.
        """
        ...

    def sent(self, kind: Kind) -> dict[str, int]:
        """Checksum of every tensor of what was published last; asked for only where an account disagrees."""
        ...

    def answers(self, seed: int) -> dict[str, np.ndarray]:
        """What the published tensors answer to a fixed input: `actors.weights.probe`. Asked for only where a canary
        disagrees."""
        ...


def sync(
    store: WeightStore,
    rollout: ActorGroup[RolloutWorker],
    version: int,
    tolerance: float,
    engines: Sequence[int] | None = None,
    *,
    prove: bool = False,
) -> tuple[Ticket, dict[str, float]]:
    """Publish, let these engines (None: all) of the group `rollout` fetch, and verify; returns the ticket and metrics.

    weights/sync_seconds are those of publishing, for which training stands still and with a broadcast all engines do,
    and the longest that one engine then took to fetch. Where they fetch one after the other (rollout.update_order
    rolling), those that go on meanwhile do not wait: it is less than the time that passes here.

    Raises what a store raises, and WeightSyncError where an engine computes with other weights.
    """
    ticket = store.publish(version, prove=prove)
    accounts = store.fetch(ticket, range(len(rollout)) if engines is None else engines)
    # Comparing comes after it, and is not counted.
    metrics = {"weights/sync_seconds": ticket.seconds + max(account.seconds for account in accounts)}
    if ticket.merge_error is not None:
        metrics["weights/merge_error"] = ticket.merge_error
    difference = verify(store, rollout, ticket, accounts, tolerance)
    return ticket, metrics if difference is None else metrics | {"weights/canary_difference": difference}
