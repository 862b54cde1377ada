"""Publishing weights: pause, send, finish, resume; then prove that the engines hold and use what was sent."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from actors.config import Dtype
from actors.config_rollout import TransferConfig
from actors.models.lora import (
    MergeError,
    adapter_config,
    adapter_state,
    adapters_disabled,
    has_adapters,
    parameter_metas,
    plain_parameters,
)
from actors.rollout.worker import Account, Adapter
from actors.train.engine import TrainingEngine, gathered
from actors.weights.checksum import checksum
from actors.weights.engine_client import EngineClient
from actors.weights.gloo_sender import GlooSender, Meta, Source, TransferClient
from actors.weights.probe import differing_tensors, trainer_answers

_TOLERANCES = {"fp32": 1e-3, "bf16": 0.15}
_PROBE_SEED = 7


class WeightSyncError(RuntimeError):
    """The engines do not compute with the weights that were sent; the message names the tensor."""


class ParameterSource:
    """The policy's parameters for a transfer; whole also under ZeRO-3, where every rank helps to gather.

    LoRA adapters are merged into them, or with `base_only` left out. An iteration leaves the `merge_error`, and with a
    `canary` prompt the trainer's account of what it yielded: checksums `sent`, on the rank that sends, and
    `canary_logprobs`.
    """

    def __init__(
        self, engine: TrainingEngine, logprobs: Callable[[list[int]], np.ndarray], *, sends: bool, base_only: bool
    ) -> None:
        self.model: Any = engine.module.model
        self.logprobs = logprobs
        self.sends = sends
        self.base_only = base_only
        self.canary: list[int] | None = None
        self.sent: dict[str, int] = {}
        self.merge_error = MergeError()
        self.canary_logprobs = np.empty(0, dtype=np.float32)

    def metadata(self) -> list[Meta]:
        """Name, type and shape of what iteration yields, in its order."""
        return [Meta(*meta) for meta in parameter_metas(self.model)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sent, self.merge_error = {}, MergeError()
        merged = not self.base_only
        for name, tensor in plain_parameters(self.model, gathered, merged=merged, error=self.merge_error):
            if self.sends and self.canary is not None:
                self.sent[name] = checksum(tensor)
            yield name, tensor
        if self.canary is not None:
            # All is sent: while the engines load it, this side has nothing else to do.
            with adapters_disabled(self.model) if self.base_only else nullcontext():
                self.canary_logprobs = self.logprobs(self.canary)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the trainer and the engines say about one transfer."""

    accounts: list[Account | None]
    sent: dict[str, int]
    canary_logprobs: np.ndarray


class Publisher:
    """The policy side of weight sync; exists on every policy rank, rank 0 sends."""

    def __init__(
        self,
        engine: TrainingEngine,
        logprobs: Callable[[list[int]], np.ndarray],
        client: EngineClient,
        tensor_parallel: int,
        backend: str,
        config: TransferConfig,
        rank: int,
        address: tuple[str, int],
    ) -> None:
        """`logprobs` gives the trainer's logprobs [L-1] of a prompt; it is collective."""
        self.client = client
        self.rank = rank
        self.config = config
        self.tensor_parallel = tensor_parallel
        self.model: Any = engine.module.model
        self.sends_adapter = config.lora == "adapter" and has_adapters(self.model)
        self.source = ParameterSource(engine, logprobs, sends=rank == 0, base_only=self.sends_adapter)
        self.sent_weights = False
        self.comparisons: list[Comparison] = []
        self.transfer = open_transfer(
            backend,
            rank=rank,
            world_size=1 + len(client.handles) * tensor_parallel,
            address=address[0],
            port=address[1],
            bucket_bytes=config.bucket_mib * 2**20,
            timeout_s=config.timeout_s,
            client=client,
            source=self.source,
        )

    def send(self, version: int, canary: list[int] | None) -> float:
        """One transfer; returns its seconds. Generation goes on afterwards, also when the transfer fails.

        Whole weights go, or, after a first time, adapters alone. With a canary prompt, both sides account for it, and
        `compare` compares. Raises WeightSyncError when an engine does not compute with the whole adapter.
        """
        started = time.perf_counter()
        self.source.canary = self.client.canary = canary
        self.client.version = version
        self.comparisons = []
        if not (self.sends_adapter and self.sent_weights):
            self._send_weights(canary)
            self.sent_weights = True
        if self.sends_adapter:
            self._send_adapter(canary)
        return time.perf_counter() - started

    def _send_weights(self, canary: list[int] | None) -> None:
        if self.rank > 0:
            self.transfer.send_weights()
            return
        finished = False
        try:
            self.transfer.send_weights()
            finished = True
        finally:
            if not finished:
                self.client.resume()
        if canary is not None:
            self.comparisons.append(Comparison(self.client.accounts, self.source.sent, self.source.canary_logprobs))

    def _send_adapter(self, canary: list[int] | None) -> None:
        state = adapter_state(self.model, gathered, keep=self.rank == 0)
        loading = []
        if self.rank == 0:
            loading = self.client.load_adapter(Adapter(adapter_config(self.model, None), save(state)))
        logprobs = np.empty(0, dtype=np.float32) if canary is None else self.source.logprobs(canary)
        if self.rank > 0:
            return
        self.client.loaded(loading)
        comparison = Comparison(self.client.accounts, {n: checksum(tensor) for n, tensor in state.items()}, logprobs)
        self._check_bound(comparison)
        if canary is not None:
            self.comparisons.append(comparison)

    def merge_error(self) -> float | None:
        """Share of the adapters' change that rounding took from the weights sent last; None where none are merged.

        Raises WeightSyncError when that is more than allowed.
        """
        if self.sends_adapter or not has_adapters(self.model):
            return None
        error, allowed = self.source.merge_error.value, self.config.max_merge_error
        if allowed is not None and not error <= allowed:
            raise WeightSyncError(
                f"after version {self.client.version} the engines lack {error:.3g} of what the adapters change, which "
                f"rounding took from the merged weights (rollout.transfer.max_merge_error {allowed:g}): set "
                f"rollout.transfer.lora=adapter, or model.dtype=fp32"
            )
        return error

    def tolerance(self, dtype: Dtype) -> float:
        """Largest difference in logprob that the canary may show."""
        return self.config.canary_tolerance or _TOLERANCES[dtype]

    def compare(self) -> float:
        """Compare the engines' accounts of what was sent last with the trainer's; see `largest_difference`."""
        return largest_difference(self.comparisons, self.client.version)

    def explain(self, difference: float, tolerance: float) -> None:
        """Find the tensor behind a failed canary. Collective; raises WeightSyncError on rank 0."""
        self.source.canary = None
        answers = trainer_answers(self.source, _PROBE_SEED)
        if self.rank == 0:
            raise WeightSyncError(
                f"after version {self.client.version} the engine's logprobs differ from the trainer's by "
                f"{difference:.3g} (allowed {tolerance:g}) on the canary; {self._culprits(answers)}"
            )

    def _check_bound(self, comparison: Comparison) -> None:
        workers = [worker for account in comparison.accounts if account is not None for worker in account[0]]
        layers = list(dict.fromkeys(_layer(name) for name in comparison.sent))
        for worker, bound in enumerate(workers):
            without = {_layer(name) for name, value in comparison.sent.items() if bound.get(name) != value}
            if without or not layers:
                raise WeightSyncError(
                    f"version {self.client.version}: vLLM worker {worker} computes with the adapters of "
                    f"{len(layers) - len(without)} of {len(layers)} layers; not with those of "
                    f"{', '.join(name for name in layers if name in without) or 'any'}"
                )

    def _culprits(self, answers: dict[str, np.ndarray]) -> str:
        if self.tensor_parallel > 1:
            return "every tensor arrived intact; with tensor_parallel > 1 single layers are not probed"
        probes = self.client.probe(_PROBE_SEED)
        wrong = sorted({name for engine, packed in probes for name in differing_tensors(answers, engine, packed)})
        if wrong:
            return f"every tensor arrived intact, but these layers compute with other values: {', '.join(wrong[:5])}"
        return "every tensor arrived intact and every layer answers alike: the models differ in something else"


def largest_difference(comparisons: Sequence[Comparison], version: int) -> float:
    """Compare what the engines account for with what was sent.

    Returns the largest difference in a logprob of the canary: NaN where one is, and 0 on ranks above 0, which have no
    engines' account. Raises WeightSyncError when a tensor arrived changed.
    """
    differences = [0.0]
    for comparison in comparisons:
        for workers, logprobs in (account for account in comparison.accounts if account is not None):
            _compare_checksums(workers, comparison.sent, version)
            differences.append(float(np.abs(comparison.canary_logprobs - logprobs).max()))
    # Python's max would lose a NaN that is not the first.
    return float(np.max(differences))


def _compare_checksums(workers: list[dict[str, int]], sent: dict[str, int], version: int) -> None:
    for worker, received in enumerate(workers):
        wrong = [name for name, value in sent.items() if received.get(name) != value]
        if wrong:
            raise WeightSyncError(
                f"version {version}: {len(wrong)} tensor(s) arrived changed or not at all at vLLM worker {worker}: "
                f"{', '.join(wrong[:5])}"
            )


def _layer(tensor: str) -> str:
    """The adapted layer of a tensor of a PEFT directory."""
    return tensor.removeprefix("base_model.model.").partition(".lora_")[0]


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
    source: Source,
) -> Any:
    """Meet all vLLM workers and return what makes a transfer with `send_weights`. Called on every policy rank.

    `world_size` counts the sender and every vLLM worker process; `port` is used by nccl only.
    """
    shared: dict[str, Any] = {
        "rank": rank,
        "world_size": world_size,
        "address": address,
        "bucket_bytes": bucket_bytes,
        "client": client,
        "source": source,
    }
    if backend == "gloo":
        return GlooSender(timeout_s=timeout_s, **shared)
    from actors.weights.transfer import open_gpu_transfer

    return open_gpu_transfer(backend, port=port, **shared)
