"""The policy's side of publishing weights: sends them, and says what was sent, for engines to be compared with."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from ray import ObjectRef
from safetensors.torch import save

from actors.config_rollout import TransferConfig
from actors.failure import told_beside
from actors.models.adapter_files import adapter_config, adapter_state
from actors.models.as_stored import as_stored, metas_as_stored
from actors.models.lora import MergeError, adapters_disabled, has_adapters, parameter_metas, plain_parameters
from actors.rollout.worker import Adapter
from actors.train.engine import TrainingEngine, gathered
from actors.weights.checksum import checksum, digest
from actors.weights.engine_client import EngineClient
from actors.weights.gloo_sender import GlooSender
from actors.weights.probe import trainer_answers
from actors.weights.ticket import Account, Got, Kind, Sent, Ticket
from actors.weights.verify import WeightSyncError
from actors.weights.wire import Meta, Source, TransferClient

_NONE = np.empty(0, dtype=np.float32)
"""Logprobs that nobody will compare."""


class ParameterSource:
    """The policy's weights for a transfer, as files of its kind of model have them, which is what vLLM loads; whole
    also under ZeRO-3, where every rank helps to gather.

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
        return [Meta(*meta) for meta in metas_as_stored(self.model, parameter_metas(self.model))]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sent, self.merge_error = {}, MergeError()
        names = [name for name, _, _ in parameter_metas(self.model)]
        whole = plain_parameters(self.model, gathered, merged=not self.base_only, error=self.merge_error)
        for name, tensor in as_stored(self.model, names, whole):
            # Before it is handed out: under ZeRO-3 it is gone when the next one is asked for.
            if self.sends and self.canary is not None:
                self.sent[name] = checksum(tensor)
            yield name, tensor
        if self.canary is not None:
            # All is sent: while the engines load it, this side has nothing else to do.
            with adapters_disabled(self.model) if self.base_only else nullcontext():
                self.canary_logprobs = self.logprobs(self.canary)


class Transfer(Protocol):
    """The policy's side of a backend."""

    def send_weights(self) -> None: ...


class Receivers(TransferClient, Protocol):
    """Whom a publisher sends to: all engines (`EngineClient`), or the holder (`HolderClient`)."""

    version: int
    canary: list[int] | None

    def resume(self) -> None: ...
    def load_adapter(self, adapter: Adapter) -> list[ObjectRef]: ...
    def loaded(self, references: list[ObjectRef]) -> None: ...
    def accounts_of(self, kind: Kind, checksums: dict[str, int]) -> list[Got | None]: ...


class Publisher:
    """The policy side of a weight store; exists on every policy rank, rank 0 sends."""

    def __init__(
        self,
        engine: TrainingEngine,
        logprobs: Callable[[list[int]], np.ndarray],
        client: Receivers,
        receivers: int,
        backend: str,
        config: TransferConfig,
        rank: int,
        address: tuple[str, int],
    ) -> None:
        """`logprobs` gives the trainer's logprobs [L-1] of a prompt; it is collective. `receivers`: processes that the
        weights go to."""
        self.client = client
        self.rank = rank
        self.config = config
        self.model: Any = engine.module.model
        self.sends_adapter = config.lora == "adapter" and has_adapters(self.model)
        self.source = ParameterSource(engine, logprobs, sends=rank == 0, base_only=self.sends_adapter)
        self.base: Sent | None = None
        """What was said of the weights below the adapters, which go once."""
        self.checksums: dict[Kind, dict[str, int]] = {}
        """Of all tensors that were sent last, on the rank that sends."""
        self.transfer = open_transfer(
            backend,
            rank=rank,
            world_size=1 + receivers,
            address=address[0],
            port=address[1],
            bucket_bytes=config.bucket_mib * 2**20,
            timeout_s=config.timeout_s,
            client=client,
            source=self.source,
        )

    def send(self, version: int, canary: list[int], verify: bool) -> tuple[Ticket, list[Account]]:
        """One transfer: its ticket, and on rank 0 the accounts of those engines that it went to, which are numbered in
        the order in which they were met.

        Whole weights go, or, after a first time, adapters alone. With `verify`, both sides account for it. Raises
        WeightSyncError when merging has lost more than allowed. Generation goes on afterwards, also on failure.
        """
        started = time.perf_counter()
        self.client.version = version
        parts: dict[Kind, Sent] = {}
        accounts: list[dict[Kind, Got]] = []
        if self.base is None:
            # What is below adapters is never sent again: engines that come later are compared with this account.
            parts["weights"] = self._send_weights(version, canary if verify or self.sends_adapter else None)
            self._note(accounts, "weights")
            self.base = parts["weights"] if self.sends_adapter else None
        else:
            parts["weights"] = self.base
        if self.sends_adapter:
            parts["adapter"] = self._send_adapter(version, canary if verify else None)
            self._note(accounts, "adapter")
        seconds = time.perf_counter() - started
        ticket = Ticket(version, parts, canary, seconds, self.merge_error())
        return ticket, [Account(place, account) for place, account in enumerate(accounts)]

    def _note(self, accounts: list[dict[Kind, Got]], kind: Kind) -> None:
        """Add what the receivers say of a part, on the rank that has asked them."""
        if self.rank > 0:
            return
        said = self.client.accounts_of(kind, self.checksums[kind])
        accounts += [{} for _ in said[len(accounts) :]]
        for account, got in zip(accounts, said, strict=True):
            account.update({} if got is None else {kind: got})

    def _send_weights(self, version: int, canary: list[int] | None) -> Sent:
        self.source.canary = self.client.canary = canary
        try:
            self.transfer.send_weights()
        except BaseException as error:
            if self.rank == 0:
                # The error that was first is the one to tell, also when this fails, too.
                with told_beside(error, "letting the engines go on"):
                    self.client.resume()
            raise
        self.checksums["weights"] = self.source.sent
        if canary is None:
            return Sent(version, None, _NONE)
        return Sent(version, digest(self.source.sent), self.source.canary_logprobs)

    def _send_adapter(self, version: int, canary: list[int] | None) -> Sent:
        self.source.canary = self.client.canary = canary
        state = adapter_state(self.model, gathered, keep=self.rank == 0)
        loading = []
        if self.rank == 0:
            loading = self.client.load_adapter(Adapter(adapter_config(self.model, None), save(state)))
        # On every rank, as reading is collective, and while the engines load.
        logprobs = _NONE if canary is None else self.source.logprobs(canary)
        if self.rank == 0:
            self.client.loaded(loading)
        self.checksums["adapter"] = {name: checksum(tensor) for name, tensor in state.items()}
        # Compared also where nothing else is: vLLM says nothing of an adapter that it finds no layers for.
        return Sent(version, digest(self.checksums["adapter"]), logprobs)

    def merge_error(self) -> float | None:
        """Share of the adapters' change that rounding took from the weights sent last; None where none are merged.

        Raises WeightSyncError when that is more than allowed.
        """
        if self.sends_adapter or not has_adapters(self.model):
            return None
        error, allowed = self.source.merge_error.value, self.config.max_merge_error
        # NaN is more than allowed.
        if allowed is not None and not error <= allowed:
            raise WeightSyncError(
                f"after version {self.client.version} the engines lack {error:.3g} of what the adapters change, which "
                f"rounding took from the merged weights (rollout.transfer.max_merge_error {allowed:g}): set "
                f"rollout.transfer.lora=adapter, or model.dtype=fp32"
            )
        return error

    def answers(self, seed: int) -> dict[str, np.ndarray]:
        """What the weights that were sent answer to a fixed input; collective."""
        # Only the tensors are asked for: with a canary, the pass would read it and account anew.
        self.source.canary = None
        return trainer_answers(self.source, seed)


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
) -> Transfer:
    """Meet all who receive and return what makes a transfer. Called on every policy rank.

    `world_size` counts the sender and every process that receives; `port` is used by nccl only.
    """
    if backend == "gloo":
        return GlooSender(
            rank=rank,
            world_size=world_size,
            address=address,
            bucket_bytes=bucket_bytes,
            timeout_s=timeout_s,
            client=client,
            source=source,
        )
    from actors.weights.vllm_sender import open_gpu_transfer

    return open_gpu_transfer(
        backend,
        rank=rank,
        world_size=world_size,
        address=address,
        port=port,
        bucket_bytes=bucket_bytes,
        client=cast(EngineClient, client),  # a holder gets weights by gloo alone
        source=source,
    )
