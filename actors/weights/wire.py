"""What both ends of a weight transfer agree on: tensors in plain values, buckets of them, and how these go over gloo.

Without vLLM, which takes four seconds to import: the policy needs it on GPUs only (`vllm_sender.py`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from actors.group import ONE_NODE
from actors.rendezvous import join_store
from actors.weights.shared_buckets import Reader, SharedMemory

_NOWHERE = (0, 0, 0)
"""Said in place of where shared memory is: the bytes follow."""
_ALL_THERE = "all there"
"""Key of a meeting's store: all have come."""
_MESH_S = 10.0
"""Longest time for those who have come to connect, which takes milliseconds: one that stops or dies meanwhile would
keep the others until the deadline of a transfer."""
_READER = Reader()
"""This process's."""


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
    """What the trainer side asks of those who receive over gloo."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None: ...
    def take(self, update_info: object) -> None: ...


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


def arrival(rank: int) -> str:
    """Key of a meeting's store that says that a rank has come, and meets the others next."""
    return f"arrived {rank}"


def join_meeting(meeting: Meeting, worker: int = 0) -> Group:
    """Meet the sender and the others who receive; `worker`: of those that were told of the same first rank."""
    rank = meeting["rank_offset"] + worker
    store = join_store(meeting["master_address"], meeting["master_port"], meeting["world_size"], meeting["timeout_s"])
    store.set(arrival(rank), "")
    store.wait([_ALL_THERE], timedelta(seconds=meeting["timeout_s"]))
    return gloo_group(store, rank, meeting["world_size"], meeting["timeout_s"], _MESH_S)


def lead_meeting(store: Store, world_size: int, timeout_s: float) -> Group:
    """Meet those who have all come to `join_meeting`, as rank 0."""
    store.set(_ALL_THERE, "")
    return gloo_group(store, 0, world_size, timeout_s, _MESH_S)


def gloo_group(store: Store, rank: int, world_size: int, timeout_s: float, mesh_s: float = float("inf")) -> Group:
    """The processes of a transfer, beside any other group that they are in; `mesh_s`: longest wait for each other."""
    group: Any = dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=min(timeout_s, mesh_s)))
    group.set_timeout(timedelta(seconds=timeout_s))
    return group


class Outgoing:
    """Rank 0's side of a group: memory to fill with a bucket, and its way to all others."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._memory: SharedMemory | None = None
        """Where all others are on this node: of the largest bucket so far."""

    def empty(self, bucket: Sequence[Meta]) -> torch.Tensor:
        """Memory to fill, which `send` then sends; what was filled before may be overwritten."""
        count = sum(map(size, bucket))
        if not os.environ.get(ONE_NODE):
            return torch.empty(count, dtype=torch.uint8)
        if self._memory is None or self._memory.size < count:
            self._memory = SharedMemory(count)
        return self._memory.bytes(count)

    def send(self, buffer: torch.Tensor) -> None:
        """Let all others in the group have a copy of what `empty` gave."""
        if self._memory is None:
            send_bucket(self._group, buffer)
            return
        self._group.broadcast([torch.tensor(self._memory.place)], from_sender()).wait()
        # Until all have their copy.
        self._group.barrier().wait()


def send_bucket(group: Group, buffer: torch.Tensor) -> None:
    """Let all others in the group have the bytes of a bucket, wherever they are; rank 0 does."""
    group.broadcast([torch.tensor(_NOWHERE)], from_sender()).wait()
    group.broadcast([buffer], from_sender()).wait()


def receive_bucket(group: Any, bucket: Sequence[Meta]) -> torch.Tensor:
    """Bytes of the next bucket that rank 0 sends."""
    count, told = sum(map(size, bucket)), torch.tensor(_NOWHERE)
    group.broadcast([told], from_sender()).wait()
    # A fresh buffer each time: a loader keeps views until a layer is complete.
    if (place := tuple(told.tolist())) != _NOWHERE:
        try:
            return _READER.read(place, count)
        finally:
            # One that cannot shall not keep the others waiting, and what it raises is told by its call.
            group.barrier().wait()
    buffer = torch.empty(count, dtype=torch.uint8)
    group.broadcast([buffer], from_sender()).wait()
    return buffer


def from_sender() -> dist.BroadcastOptions:
    """A broadcast from rank 0."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return options
