"""Weight transfer from the policy to vLLM, through vLLM's own weight-transfer API.

Adds a `gloo` backend (CPU and tests) to vLLM's `nccl` and `ipc`, and makes every backend's worker side remember a
checksum of each tensor it received. Importing this module registers the backends, so it is also the module of the
worker extension, which vLLM imports in each of its worker processes.

    policy rank 0 ---- buckets over gloo / nccl / ipc ----> every vLLM worker
          \\---- control calls (start, update, finish) through the client ----/
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.binding import bound_checksums
from actors.checksum import checksum
from actors.probe import engine_answers

WORKER_BACKENDS = {"gloo": "tandem_gloo", "nccl": "tandem_nccl", "ipc": "tandem_ipc"}
"""Setting of `rollout.transfer.backend` -> name under which the worker side is registered with vLLM."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a vLLM worker needs to join the transfer group."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors of one transfer, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the trainer side needs to open the transfer group."""

    backend: ClassVar[str] = "tandem_gloo"

    master_address: str
    world_size: int
    bucket_bytes: int
    timeout_s: float


def buckets(metas: Sequence[ParamMeta], bucket_bytes: int) -> list[list[ParamMeta]]:
    """Split tensors, in order, into buckets of at most `bucket_bytes` (a larger tensor is a bucket of its own)."""
    groups: list[list[ParamMeta]] = []
    filled = bucket_bytes + 1
    for meta in metas:
        if filled + _size(meta) > bucket_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(meta)
        filled += _size(meta)
    return groups


def _size(meta: ParamMeta) -> int:
    # Each tensor starts at a multiple of 16 bytes, so that it can be viewed in its own type.
    raw = meta.dtype.itemsize * torch.Size(meta.shape).numel()
    return -(-raw // 16) * 16


def _views(buffer: torch.Tensor, metas: Sequence[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    start = 0
    for meta in metas:
        raw = meta.dtype.itemsize * torch.Size(meta.shape).numel()
        yield meta.name, buffer[start : start + raw].view(meta.dtype).view(meta.shape)
        start += _size(meta)


class ChecksumMixin:
    """Worker side of any backend: remember what arrived, and finish what vLLM leaves undone on CPU."""

    model: Any
    device: torch.device
    received: dict[str, int]
    remember: bool = True

    def start_weight_update(self) -> None:
        self.received = {}
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        try:
            self._receive(update_info)
        except BaseException:
            # vLLM forgets the session here, but its layers have no storage until it ends: those that got nothing take
            # their old weights back, and the engine can go on.
            self.finish_weight_update()
            raise

    def _receive(self, update_info: Any) -> None:
        if not self.remember:
            super().receive_weights(update_info)  # type: ignore[misc]
            return
        load = self.model.load_weights

        def load_and_remember(weights: Any) -> Any:
            weights = list(weights)
            self.received.update((name, checksum(tensor)) for name, tensor in weights)
            return load(weights)

        # An instance attribute shadows the method for the length of one transfer.
        self.model.load_weights = load_and_remember
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            del self.model.load_weights

    def finish_weight_update(self) -> None:
        super().finish_weight_update()  # type: ignore[misc]
        if self.device.type == "cpu":
            _repack_output_embeddings(self.model)


def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """On CPU an update does not renew the packed copy of an output embedding that is tied to the input embedding."""
    for name, module in model.named_modules():
        if name.endswith("lm_head") and hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]


class _GlooWorkerEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        rank = init_info.rank_offset + self.parallel_config.rank
        store = _store(
            init_info.master_address, init_info.master_port, init_info.world_size, False, init_info.timeout_s
        )
        self.group = _gloo_group(store, rank, init_info.world_size, init_info.timeout_s)
        self.bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self.group is None:
            raise RuntimeError("weights arrived before the transfer group was opened")
        metas = [
            ParamMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        for bucket in buckets(metas, self.bucket_bytes):
            # A fresh buffer each time: the loader keeps views until a layer is complete.
            buffer = torch.empty(sum(map(_size, bucket)), dtype=torch.uint8)
            self.group.broadcast([buffer], _from_sender()).wait()
            self.model.load_weights(_views(buffer, bucket))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self.group = None


class GlooWorkerEngine(ChecksumMixin, _GlooWorkerEngine):
    """Worker side of the gloo backend."""


class NCCLWorkerEngine(ChecksumMixin, NCCLWeightTransferEngine):
    """Worker side of vLLM's nccl backend, with checksums."""


class IPCWorkerEngine(ChecksumMixin, IPCWeightTransferEngine):
    """Worker side of vLLM's ipc backend, with checksums."""


def _store(address: str, port: int, world_size: int, master: bool, timeout_s: float) -> Any:
    make: Any = dist.TCPStore  # type: ignore[attr-defined]
    timeout = timedelta(seconds=timeout_s)
    return make(address, port, world_size, is_master=master, timeout=timeout, wait_for_workers=False)


def _gloo_group(store: Any, rank: int, world_size: int, timeout_s: float) -> Any:
    return dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=timeout_s))


def _from_sender() -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return options


class GlooTrainerEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Trainer side of the gloo backend: rank 0 sends, the other ranks help to gather."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, *, client: Any, source: WeightSource, init_info: GlooTrainerInitInfo) -> None:
        super().__init__(client=client, source=source, is_sender=init_info.is_sender)
        self.init_info = init_info
        self.group: Any = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> "GlooTrainerEngine":
        if source is None:
            raise ValueError("the gloo backend sends whole models and needs a WeightSource")
        engine = cls(client=client, source=source, init_info=init_info)
        if not engine.is_sender:
            return engine
        timeout_s, world_size = init_info.timeout_s, init_info.world_size
        store = _store(init_info.master_address, 0, world_size, True, timeout_s)
        worker = GlooInitInfo(init_info.master_address, store.port, world_size, 1, init_info.bucket_bytes, timeout_s)
        # Both sides block until all have met, so the workers' call runs beside ours.
        with ThreadPoolExecutor(1) as beside:
            joined = beside.submit(client.init_weight_transfer_engine, asdict(worker))
            engine.group = _gloo_group(store, 0, world_size, timeout_s)
            joined.result(timeout=timeout_s)
        return engine

    def send_weights(self) -> None:
        assert self.source is not None
        metas = self.source.metadata()
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        info = GlooUpdateInfo(
            names=[meta.name for meta in metas],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metas],
            shapes=[list(meta.shape) for meta in metas],
        )
        self.client.start_weight_update()
        beside = ThreadPoolExecutor(1)
        received = beside.submit(self.client.update_weights, asdict(info))
        try:
            self._broadcast(metas, received)
            received.result(timeout=self.init_info.timeout_s)
        except RuntimeError:
            # What the engines say tells more than a broadcast that nobody answers.
            if received.done():
                received.result()
            raise
        finally:
            # Never joined: after a failed broadcast the workers may hang in theirs until its deadline.
            beside.shutdown(wait=False)
        self.client.finish_weight_update()

    def _broadcast(self, metas: list[ParamMeta], received: Any) -> None:
        assert self.source is not None and self.group is not None
        stream = iter(self.source)
        for bucket in buckets(metas, self.init_info.bucket_bytes):
            buffer = torch.empty(sum(map(_size, bucket)), dtype=torch.uint8)
            for (name, view), (sent, tensor) in zip(_views(buffer, bucket), stream, strict=False):
                assert name == sent, f"source yields {sent} where its metadata says {name}"
                view.copy_(tensor)
            if received.done():
                received.result()
            self.group.broadcast([buffer], _from_sender()).wait()
        # Under ZeRO-3 the generator's last gather ends when it is exhausted, on every rank.
        assert next(stream, None) is None


class WorkerExtension:
    """Methods added to vLLM's workers; reached through `collective_rpc`."""

    weight_transfer_engine: Any
    model_runner: Any

    def probe(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """What this worker's layers answer to a fixed input, and which of the trainer's tensors they hold."""
        model = self.model_runner.get_model()
        return engine_answers(model, seed), dict(getattr(model, "packed_modules_mapping", {}))

    def reseed(self, seed: int) -> None:
        """Start this worker's sampling anew."""
        torch.manual_seed(seed)

    def remember_checksums(self, remember: bool) -> None:
        """Whether to keep checksums of the next transfer."""
        self.weight_transfer_engine.remember = remember

    def received_checksums(self) -> dict[str, int]:
        """Checksum of every tensor of the last transfer, as it arrived."""
        return self.weight_transfer_engine.received

    def bound_checksums(self, directory: str) -> dict[str, int]:
        """Checksum of every tensor of the adapter in `directory` that a layer computes with."""
        return bound_checksums(self.model_runner, directory)


class TransferClient(Protocol):
    """What the trainer side asks of the engines; see `actors.rollout.EngineClient`."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: Any) -> None: ...
    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def open_transfer(
    backend: str,
    *,
    rank: int,
    world_size: int,
    address: str,
    port: int,
    bucket_bytes: int,
    timeout_s: float,
    client: TransferClient,
    source: WeightSource,
) -> TrainerWeightTransferEngine:
    """Meet all vLLM workers and return the engine whose `send_weights` makes a transfer. Called on every policy rank.

    `world_size` counts the sender and every vLLM worker process; `port` is used by nccl only.
    """
    infos: dict[str, Any] = {
        "gloo": lambda: GlooTrainerInitInfo(address, world_size, bucket_bytes, timeout_s, rank=rank),
        "nccl": lambda: NCCLTrainerInitInfo(
            address, port, world_size, packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank
        ),
        "ipc": lambda: IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank),
    }
    return WeightTransferTrainerFactory.trainer_init(infos[backend](), client=client, source=source)


WeightTransferEngineFactory.register_engine("tandem_gloo", GlooWorkerEngine)
WeightTransferEngineFactory.register_engine("tandem_nccl", NCCLWorkerEngine)
WeightTransferEngineFactory.register_engine("tandem_ipc", IPCWorkerEngine)
WeightTransferTrainerFactory.register_engine("tandem_gloo", GlooTrainerEngine)
