"""The end of a weight transfer that receives: vLLM's worker processes, through vLLM's own weight-transfer API.

Adds a `gloo` backend (CPU and tests) to vLLM's `nccl` and `ipc`, and makes every backend's worker side remember a
checksum of each tensor it received. Importing this module registers the backends, so it is also the module of the
worker extension, which vLLM imports in each of its worker processes.

    policy rank 0 ---- buckets over gloo / nccl / ipc ----> every vLLM worker
          \\---- control calls (start, update, finish) through the client ----/
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.failure import told_beside
from actors.rendezvous import bind_stores_to_their_address
from actors.weights.binding import bound_checksums
from actors.weights.checksum import checksum, digest
from actors.weights.offer import Offer, join_offer
from actors.weights.probe import engine_answers, named_as_sent
from actors.weights.wire import Meeting, as_metas, buckets, join_meeting, receive_bucket, views

# In vLLM's worker processes, before they meet each other.
bind_stores_to_their_address()

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


class ChecksumMixin:
    """Worker side of any backend: remember what arrived, and finish what vLLM leaves undone on CPU."""

    model: Any
    device: torch.device
    received: dict[str, int]
    kernels: list[tuple[Any, Any]]
    remember: bool = True

    def start_weight_update(self) -> None:
        self.received = {}
        _name_loaders(self.model)
        self.kernels = _forget_expert_kernels(self.model) if self.device.type == "cpu" else []
        super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: object) -> None:
        try:
            self._receive(update_info)
        except BaseException as error:
            # vLLM forgets the session here, but its layers have no storage until it ends: those that got nothing take
            # their old weights back, and the engine can go on.
            with told_beside(error, "ending the session"):
                self.finish_weight_update()
            raise

    def _receive(self, update_info: object) -> None:
        if not self.remember:
            super().receive_weights(update_info)  # type: ignore[misc]
            return
        load = self.model.load_weights

        def load_and_remember(weights: Iterable[tuple[str, torch.Tensor]]) -> object:
            # Two readers of what may be a generator.
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
            for method, kernel in self.kernels:
                method.moe_kernel = method.moe_kernel or kernel
            _repack_output_embeddings(self.model)


def _name_loaders(model: torch.nn.Module) -> None:
    """Give every loader of a parameter a name, by which vLLM tells its own: a partial function has none."""
    for parameter in model.parameters():
        loader = getattr(parameter, "weight_loader", None)
        if loader is not None and not hasattr(loader, "__name__"):
            loader.__name__ = "weight_loader"


def _forget_expert_kernels(model: torch.nn.Module) -> list[tuple[Any, Any]]:
    """Let the layers of experts be set up anew; returns what has set them up, and the kernels that they had, which
    those that get no weights need again.

    On CPU their weights are packed when a kernel is made, and vLLM makes none where it finds one.
    """
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = [(method, method.moe_kernel) for method in methods if getattr(method, "moe_kernel", None) is not None]
    for method, _ in kernels:
        method.moe_kernel = None
    return kernels


def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """On CPU an update does not renew the packed copy of an output embedding that is tied to the input embedding."""
    for name, module in model.named_modules():
        if name.endswith("lm_head") and hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)  # type: ignore[operator, union-attr]


class _GlooWorkerEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None
    staged: list[torch.Tensor]
    """Buckets that have come from a holder and wait to be loaded; none where they come as they are loaded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.staged = []

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        # Before any other is met: the one of a transfer that has failed would keep its peers waiting.
        self.group = None
        self.group = join_meeting(Meeting(**asdict(init_info)), self.parallel_config.rank)
        self.bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def stage(self, offer: Offer) -> None:
        """Take what a holder offers into this process's memory: while it comes, the model stays what it is."""
        self.bucket_bytes = offer.bucket_bytes
        workers = self.parallel_config.world_size
        group = join_offer(offer, 1 + self.parallel_config.rank, 1 + workers)
        metas = as_metas(**offer.tensors)
        staged = [receive_bucket(group, bucket) for bucket in buckets(metas, offer.bucket_bytes)]
        # Nobody leaves while another still receives.
        group.barrier().wait()
        self.staged = staged

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        # Taken at once: what a failed load leaves over is not for the next transfer.
        staged, self.staged = self.staged, []
        if self.group is None and not staged:
            raise RuntimeError("weights arrived before the transfer group was opened")
        metas = as_metas(update_info.names, update_info.dtype_names, update_info.shapes)
        for bucket in buckets(metas, self.bucket_bytes):
            # Each bucket is let go as it is loaded.
            buffer = staged.pop(0) if staged else receive_bucket(self.group, bucket)
            self.model.load_weights(views(buffer, bucket))  # type: ignore[operator]

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


class WorkerExtension:
    """Methods added to vLLM's workers; reached through `collective_rpc`."""

    weight_transfer_engine: Any
    model_runner: Any
    bound: dict[str, int]

    def probe(self, seed: int) -> tuple[dict[str, bytes], dict[str, list[str]]]:
        """What this worker's layers answer to a fixed input, float32, and which of the trainer's tensors they hold.

        As bytes: an array would come back from a worker process of vLLM's as a list of type, shape and memory.
        """
        model = self.model_runner.get_model()
        packed = dict(getattr(model, "packed_modules_mapping", {}))
        answers = named_as_sent(engine_answers(model, seed), packed, self._names_in_engine(model))
        return {name: answer.astype(np.float32).tobytes() for name, answer in answers.items()}, packed

    def _names_in_engine(self, model: Any) -> dict[str, str]:
        """Name in the engine of what was received last -> name that it was sent under."""
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        received = getattr(getattr(self, "weight_transfer_engine", None), "received", {})
        if mapper is None:
            return {}
        # Parts of packed modules keep names of their own.
        apart = replace(mapper, orig_to_new_stacked={})
        return {mapped: name for name in received if (mapped := apart.map_name(name)) is not None}

    def reseed(self, seed: int) -> None:
        """Start this worker's sampling anew."""
        torch.manual_seed(seed)

    def remember_checksums(self, remember: bool) -> None:
        """Whether to keep checksums of the next transfer."""
        self.weight_transfer_engine.remember = remember

    def stage(self, offer: dict[str, Any]) -> None:
        """Take whole weights from a holder, which the next `update_weights` loads; `offer`: fields of an `Offer`."""
        self.weight_transfer_engine.stage(Offer(**offer))

    def received_digest(self) -> str:
        """Of all tensors of the last transfer, as they arrived."""
        return digest(self.weight_transfer_engine.received)

    def received_checksums(self) -> dict[str, int]:
        """Checksum of every tensor of the last transfer, as it arrived."""
        return self.weight_transfer_engine.received

    def bind_digest(self, directory: str) -> str:
        """Of all tensors of the adapter in `directory` that a layer computes with."""
        self.bound = bound_checksums(self.model_runner, directory)
        return digest(self.bound)

    def bound_checksums(self) -> dict[str, int]:
        """Checksum of every tensor that `bind_digest` has found."""
        return self.bound


WeightTransferEngineFactory.register_engine("tandem_gloo", GlooWorkerEngine)
WeightTransferEngineFactory.register_engine("tandem_nccl", NCCLWorkerEngine)
WeightTransferEngineFactory.register_engine("tandem_ipc", IPCWorkerEngine)
