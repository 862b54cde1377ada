"""How a run's weights go from policy to engines: the store that its settings ask for, and who meets whom for it."""

import math
from collections.abc import Callable
from itertools import count

from actors.models.tokenizer import load_tokenizer
from launch.config import RunConfig
from launch.run.connection import Connection
from launch.run.reserved import Placement
from launch.run.roster import Roster

_CANARY_TOKENS = 24


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


def publisher(
    config: RunConfig, roster: Roster, connection: Connection, directory: str
) -> Callable[[int], dict[str, float]]:
    """What sends the policy's weights as a version to all engines, and verifies that they use them."""
    from actors.weights.broadcast_store import BroadcastStore
    from actors.weights.holder_store import HolderStore
    from actors.weights.store import sync
    from actors.weights.verify import tolerance

    transfer, rollout, holder = config.rollout.transfer, roster["rollout"], roster.get("holder")
    # An engine takes a prompt only with room for one token behind it.
    length = min(_CANARY_TOKENS, config.rollout.max_model_len - 1)
    policy, canary = roster["policy"], canary_tokens(len(load_tokenizer(directory)), length)
    store = BroadcastStore(policy=policy, canary=canary, verify_every=transfer.verify_every)
    if holder:
        store = HolderStore(
            policy=policy,
            canary=canary,
            verify_every=transfer.verify_every,
            holder=holder,
            rollout=rollout,
            tensor_parallel=config.rollout.tensor_parallel,
            timeout_s=transfer.timeout_s,
            rolling=config.rollout.update_order == "rolling",
        )
    allowed = tolerance(transfer, config.model.dtype)

    def publish(version: int) -> dict[str, float]:
        connection.ensure()  # engines that were replaced since the last version have met nobody yet
        return sync(store, rollout, version, allowed)

    return publish
