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
    """The policy's parameters for a transfer; whole also under ZeRO-3, where every rank helps to gather.

    With a `canary` prompt, an iteration leaves the trainer's account of what it yielded: checksums `sent`, on the rank
    that sends, and `canary_logprobs`.
    """

    def __init__(self, engine: TrainingEngine, logprobs: Callable[[list[int]], np.ndarray], sends: bool) -> None:
        self.engine = engine
        self.logprobs = logprobs
        self.sends = sends
        self.canary: list[int] | None = None
        self.sent: dict[str, int] = {}
        self.canary_logprobs = np.empty(0, dtype=np.float32)

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of what iteration yields, in its order."""
        return [ParamMeta(name, p.dtype, full_shape(p)) for name, p in named_parameters(self.engine.module, "model")]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sent = {}
        for name, tensor in self.engine.parameters("model"):
            if self.sends and self.canary is not None:
                self.sent[name] = checksum(tensor)
            yield name, tensor
        if self.canary is not None:
            # All is sent: while the engines load it, this side has nothing else to do.
            self.canary_logprobs = self.logprobs(self.canary)


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
        self.source = ParameterSource(engine, logprobs, sends=rank == 0)
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

        With a canary prompt, both sides account for it, and `compare` compares.
        """
        started = time.perf_counter()
        self.source.canary = canary
        if self.rank > 0:
            self.transfer.send_weights()
            return time.perf_counter() - started
        self.client.version, self.client.canary = version, canary
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

    def compare(self) -> float:
        """Compare the engines' accounts of the last transfer with the trainer's.

        Returns the largest difference in a logprob of the canary, 0 on ranks above 0, which have no engines' account.
        Raises WeightSyncError when a tensor arrived changed.
        """
        if self.rank > 0:
            return 0.0
        accounts = [account for account in self.client.accounts if account is not None]
        self._compare_checksums([received for engine, _ in accounts for received in engine])
        return max(float(np.abs(self.source.canary_logprobs - logprobs).max()) for _, logprobs in accounts)

    def explain(self, difference: float, tolerance: float) -> None:
        """Find the tensor behind a failed canary. Collective; raises WeightSyncError on rank 0."""
        self.source.canary = None
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
