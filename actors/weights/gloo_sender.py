"""The gloo backend of weight transfer, trainer side, and what both sides agree on. Without vLLM.

vLLM takes four seconds to import, which the policy needs on GPUs only (see `transfer.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from actors.rendezvous import listener, serve_store

_MOMENT_S = 10.0
"""Longest wait for what the engines say of a transfer that has failed."""


class Meta(NamedTuple):
    """Of a tensor that is sent. Example: Meta("lm_head.weight", torch.float32, (30, 64))."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Tensors(TypedDict):
    """Several of them in plain values: `as_info`."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class Meeting(TypedDict):
    """Where the sender of whole models waits for those who receive, and on what terms."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int
    """Rank of the first receiver that is told so."""
    bucket_bytes: int
    timeout_s: float


class Group(Protocol):
    """What of torch's ProcessGroupGloo is used here; its type stub lacks these methods."""

    def broadcast(self, tensors: list[torch.Tensor], options: dist.BroadcastOptions) -> dist.Work: ...
    def barrier(self) -> dist.Work: ...


class Source(Protocol):
    """Tensors to send; iterated once for a transfer, on every rank of the policy."""

    def metadata(self) -> list[Meta]: ...
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class TransferClient(Protocol):
    """What the trainer side asks of those who receive; see `actors.weights.engine_client.EngineClient`."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: object) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def as_info(metas: Sequence[Meta]) -> Tensors:
    """Tensors in plain values, which every way of calling a vLLM worker can carry; `as_metas` is its inverse."""
    return {
        "names": [meta.name for meta in metas],
        "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in metas],
        "shapes": [list(meta.shape) for meta in metas],
    }


def as_metas(names: Sequence[str], dtype_names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[Meta]:
    """Tensors of which `as_info` has told."""
    return [
        Meta(name, getattr(torch, dtype), tuple(shape))
        for name, dtype, shape in zip(names, dtype_names, shapes, strict=True)
    ]


def buckets(metas: Sequence[Meta], bucket_bytes: int) -> list[list[Meta]]:
    """Split tensors, in order, into buckets of at most `bucket_bytes` (a larger tensor is a bucket of its own)."""
    groups: list[list[Meta]] = []
    # As if full: the first tensor opens a bucket.
    filled = bucket_bytes + 1
    for meta in metas:
        if filled + size(meta) > bucket_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(meta)
        filled += size(meta)
    return groups


def size(meta: Meta) -> int:
    """Bytes of a tensor in a bucket."""
    # Each tensor starts at a multiple of 16 bytes, so that it can be viewed in its own type.
    raw = meta.dtype.itemsize * torch.Size(meta.shape).numel()
    return -(-raw // 16) * 16


def views(buffer: torch.Tensor, metas: Sequence[Meta]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a bucket, each with its name, as parts of its buffer of bytes."""
    start = 0
    for meta in metas:
        raw = meta.dtype.itemsize * torch.Size(meta.shape).numel()
        yield meta.name, buffer[start : start + raw].view(meta.dtype).view(meta.shape)
        # With the padding behind the tensor.
        start += size(meta)


def gloo_group(store: Store, rank: int, world_size: int, timeout_s: float) -> Group:
    """The processes of a transfer, beside any other group that they are in."""
    group: Any = dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=timeout_s))
    return group


def receive_bucket(group: Any, bucket: Sequence[Meta]) -> torch.Tensor:
    """Bytes of the next bucket that rank 0 broadcasts."""
    # A fresh buffer each time: a loader keeps views until a layer is complete.
    buffer = torch.empty(sum(map(size, bucket)), dtype=torch.uint8)
    group.broadcast([buffer], from_sender()).wait()
    return buffer


def from_sender() -> dist.BroadcastOptions:
    """A broadcast from rank 0."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return options


class GlooSender:
    """Sends whole models: rank 0 of the policy sends, the other ranks help to gather."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        address: str,
        bucket_bytes: int,
        timeout_s: float,
        client: TransferClient,
        source: Source,
    ) -> None:
        """Meet all vLLM workers; `world_size` counts the sender and each of them."""
        self.is_sender = rank == 0
        self.bucket_bytes = bucket_bytes
        self.timeout_s = timeout_s
        self.client = client
        self.source = source
        self.group: Group | None = None
        if self.is_sender:
            self._meet(address, world_size)

    def _meet(self, address: str, world_size: int) -> None:
        store = serve_store(listener(address), world_size, self.timeout_s)
        info: Meeting = {
            "master_address": address,
            "master_port": store.port,
            "world_size": world_size,
            "rank_offset": 1,
            "bucket_bytes": self.bucket_bytes,
            "timeout_s": self.timeout_s,
        }
        # Both sides block until all have met, so the workers' call runs beside ours.
        with ThreadPoolExecutor(1) as beside:
            joined = beside.submit(self.client.init_weight_transfer_engine, info)
            try:
                self.group = gloo_group(store, 0, world_size, self.timeout_s)
            except RuntimeError:
                _raise_what_they_say(joined)
                raise
            joined.result(timeout=self.timeout_s)

    def send_weights(self) -> None:
        """Send what the source yields, on every rank of the policy; raises what goes wrong on either side."""
        metas = self.source.metadata()
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        self.client.start_weight_update()
        beside = ThreadPoolExecutor(1)
        received = beside.submit(self.client.update_weights, as_info(metas))
        try:
            self._broadcast(metas, received)
            received.result(timeout=self.timeout_s)
        finally:
            # Never joined: after a failed broadcast the workers may hang in theirs until its deadline.
            beside.shutdown(wait=False)
        self.client.finish_weight_update()

    def _broadcast(self, metas: list[Meta], received: "Future[None]") -> None:
        assert self.group is not None
        stream = iter(self.source)
        for bucket in buckets(metas, self.bucket_bytes):
            buffer = torch.empty(sum(map(size, bucket)), dtype=torch.uint8)
            # Not strict, and the views first: otherwise a tensor too many would be taken, which the next bucket needs.
            for (name, view), (sent, tensor) in zip(views(buffer, bucket), stream, strict=False):
                assert name == sent, f"source yields {sent} where its metadata says {name}"
                view.copy_(tensor)
            # They are done before the last bucket only when they have failed.
            if received.done():
                received.result()
            try:
                self.group.broadcast([buffer], from_sender()).wait()
            except RuntimeError:
                # Only here: an error of this side's own, in gathering or merging, is itself the cause.
                _raise_what_they_say(received)
                raise
        # Under ZeRO-3 the generator's last gather ends when it is exhausted, on every rank.
        assert next(stream, None) is None


def _raise_what_they_say(call: "Future[None]") -> None:
    """Raise what has failed at those who receive, if they say so soon: it tells more than a broadcast that nobody
    answers, or that they did not come."""
    wait([call], timeout=_MOMENT_S)
    if call.done():
        call.result()
