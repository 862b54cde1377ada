"""The end of a weight transfer that sends over nccl or ipc, through vLLM's own weight-transfer API."""

from collections.abc import Callable, Iterator

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.rendezvous import bind_stores_to_their_address
from actors.weights.engine_client import EngineClient
from actors.weights.wire import Source

# Whatever store vLLM makes in this process to meet its workers.
bind_stores_to_their_address()


class _VllmSource(WeightSource):
    """The policy's parameters, as vLLM's senders take them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of what iteration yields, in its order."""
        return [ParamMeta(*meta) for meta in self.source.metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.source)


def open_gpu_transfer(
    backend: str,
    *,
    rank: int,
    world_size: int,
    address: str,
    port: int,
    bucket_bytes: int,
    client: EngineClient,
    source: Source,
) -> TrainerWeightTransferEngine:
    """Meet all vLLM workers over nccl or ipc; see `actors.weights.publisher.open_transfer`."""
    infos: dict[str, Callable[[], TrainerInitInfo]] = {
        "nccl": lambda: NCCLTrainerInitInfo(
            address, port, world_size, packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank
        ),
        "ipc": lambda: IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank),
    }
    return WeightTransferTrainerFactory.trainer_init(infos[backend](), client=client, source=_VllmSource(source))
