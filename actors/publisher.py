"""Publishing weights: pause, send, finish, resume; then prove that the engines hold and use what was sent."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from actors.checksum import checksum
from actors.config import Dtype, TransferConfig
from actors.engine import TrainingEngine, full_shape, named_parameters
from actors.engine_client import EngineClient
from actors.probe import differing_tensors, trainer_answers
from actors.transfer import open_transfer

_TOLERANCES = {"fp32": 1e-3, "bf16": 0.15}
_PROBE_SEED = 7


class WeightSyncError(RuntimeError):
    """The engines do not compute with the weights that were sent; the message names the tensor."""


class ParameterSource(WeightSource):
    """The policy's parameters for a transfer; whole also under ZeRO-3, where every rank helps to gather."""

    def __init__(self, engine: TrainingEngine) -> None:
        self.engine = engine
        self.sent: dict[str, int] = {}
        self.remember = False

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of what iteration yields, in its order."""
        return [ParamMeta(name, p.dtype, full_shape(p)) for name, p in named_parameters(self.engine.module, "model")]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sent = {}
        for name, tensor in self.engine.parameters("model"):
            if self.remember:
                self.sent[name] = checksum(tensor)
            yield name, tensor


class Publisher:
    """The policy side of weight sync; exists on every policy rank, rank 0 sends."""

    def __init__(
        self,
        engine: TrainingEngine,
        client: EngineClient,
        tensor_parallel: int,
        backend: str,
        config: TransferConfig,
        rank: int,
        address: tuple[str, int],
    ) -> None:
        self.client = client
        self.rank = rank
        self.config = config
        self.tensor_parallel = tensor_parallel
        self.source = ParameterSource(engine)
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

    def send(self, version: int, remember: bool) -> float:
        """One transfer; returns its seconds. Generation goes on afterwards, also when the transfer fails.

        With `remember`, both sides keep checksums for `compare`.
        """
        started = time.perf_counter()
        self.source.remember = remember and self.rank == 0
        if self.rank > 0:
            self.transfer.send_weights()
            return time.perf_counter() - started
        self.client.version, self.client.remember = version, remember
        finished = False
        try:
            self.transfer.send_weights()
            finished = True
        finally:
            if not finished:
                self.client.resume()
        return time.perf_counter() - started

    def tolerance(self, dtype: Dtype) -> float:
        """Largest difference in logprob that the canary may show."""
        return self.config.canary_tolerance or _TOLERANCES[dtype]

    def compare(self, canary: list[int], trainer_logprobs: Callable[[list[int]], np.ndarray]) -> float:
        """Compare checksums of all tensors and the canary's logprobs [L-1]; returns the largest difference in logprob.

        Collective: `trainer_logprobs` runs on every rank, while the engines compute theirs. Raises WeightSyncError, on
        rank 0, when a tensor arrived changed.
        """
        asked = self.client.ask_accounts(canary) if self.rank == 0 else []
        trainer = trainer_logprobs(canary)
        if self.rank > 0:
            return 0.0
        accounts = self.client.accounts(asked)
        self._compare_checksums([received for engine, _ in accounts for received in engine])
        return max(float(np.abs(trainer - logprobs).max()) for _, logprobs in accounts)

    def explain(self, difference: float, tolerance: float) -> None:
        """Find the tensor behind a failed canary. Collective; raises WeightSyncError on rank 0."""
        answers = trainer_answers(self.source, _PROBE_SEED)
        if self.rank == 0:
            raise WeightSyncError(
                f"after version {self.client.version} the engine's logprobs differ from the trainer's by "
                f"{difference:.3g} (allowed {tolerance:g}) on the canary; {self._culprits(answers)}"
            )

    def _compare_checksums(self, workers: list[dict[str, int]]) -> None:
        for worker, received in enumerate(workers):
            wrong = [name for name, value in self.source.sent.items() if received.get(name) != value]
            if wrong:
                raise WeightSyncError(
                    f"version {self.client.version}: {len(wrong)} tensor(s) arrived changed or not at all at vLLM "
                    f"worker {worker}: {', '.join(wrong[:5])}"
                )

    def _culprits(self, answers: dict[str, np.ndarray]) -> str:
        if self.tensor_parallel > 1:
            return "every tensor arrived intact; with tensor_parallel > 1 single layers are not probed"
        probes = self.client.probe(_PROBE_SEED)
        wrong = sorted({name for engine, packed in probes for name in differing_tensors(answers, engine, packed)})
        if wrong:
            return f"every tensor arrived intact, but these layers compute with other values: {', '.join(wrong[:5])}"
        return "every tensor arrived intact and every layer answers alike: the models differ in something else"
