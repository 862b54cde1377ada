"""Where a holder serves whole weights to one engine, and how both meet there. Without vLLM."""

from dataclasses import dataclass

from torch.distributed.distributed_c10d import PrefixStore

from actors.rendezvous import join_store
from actors.weights.wire import Group, Tensors, gloo_group


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Example: Offer(version=3, address="127.0.0.1", port=41234, key="9f3c", bucket_bytes=1048576, timeout_s=60.0,
    tensors={"names": ["lm_head.weight"], "dtype_names": ["float32"], "shapes": [[30, 64]]})"""

    version: int
    """Of the weights."""
    address: str
    port: int
    """Of the holder's store."""
    key: str
    """Under which the two find each other there: each serving has its own."""
    bucket_bytes: int
    timeout_s: float
    tensors: Tensors
    """`actors.weights.wire.as_info` of them, in the order in which they come."""


def join_offer(offer: Offer, rank: int, world_size: int) -> Group:
    """The gloo group of one serving: the holder is rank 0, the engine's worker processes follow it.

    Each serving has a group of its own, so that an engine that dies in it takes no other along.
    """
    # A client of its own for each caller: one that waits for a key makes all others of the same client wait.
    store = join_store(offer.address, offer.port, world_size, offer.timeout_s)
    return gloo_group(PrefixStore(offer.key, store), rank, world_size, offer.timeout_s)
