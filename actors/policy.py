"""The rank that learns: logprobs, optimizer updates, and publishing weights to the rollout engines.

The driver imports this module for its method names; models and vLLM are imported only where a worker needs them.
"""

import importlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from actors.batch import Sequence, experience
from actors.checksum import checksum
from actors.config import ModelConfig, TrainerConfig, TransferConfig
from actors.engine import TrainingEngine
from actors.engine_client import EngineClient
from actors.packed import PackedBatch
from actors.tokenizer import load_tokenizer
from actors.worker import LossFunction, Metrics, Totals, Worker, pack_experiences, pack_sequences


class PolicyWorker(Worker):
    """One data-parallel rank of the policy."""

    def __init__(
        self, rank: int, world_size: int, model: ModelConfig, directory: str, group: TrainerConfig, seed: int
    ) -> None:
        super().__init__(rank, world_size, seed)
        self.model_config = model
        self.directory = directory
        self.group = group

    def build(self, address: str, port: int, total_updates: int) -> None:
        """Meet the other ranks, load the model and hand it to DeepSpeed. `total_updates` ends the schedule."""
        from actors.models import TokenLogprobs, load_model

        self.join(address, port, self.group.timeout_s)
        self.hf_model = load_model(self.model_config, self.directory).to(self.device)  # type: ignore[arg-type]
        module = TokenLogprobs(self.hf_model)
        self.shares_prompts = module.shares_prompts
        self.engine = TrainingEngine(module, self.group, self.model_config.dtype, total_updates)

    def prepare_to_connect(self) -> None:
        """Import what `connect` needs: seconds of work, best done while the engines are still starting."""
        importlib.import_module("actors.publisher")

    def connect(self, engines: list[ActorHandle], tensor_parallel: int, backend: str, config: TransferConfig) -> None:
        """Meet the rollout engines for weight transfer. Called on every rank; rank 0 sends."""
        from actors.publisher import Publisher

        client = EngineClient(engines, tensor_parallel, config.timeout_s)
        self.publisher = Publisher(
            self.engine, self._canary_logprobs, client, tensor_parallel, backend, config, self.rank, self.address()
        )

    def publish(self, version: int, canary: list[int], verify: bool) -> Metrics:
        """Send the current weights as `version`; with `verify`, compare checksums and the canary's logprobs.

        Raises WeightSyncError when they disagree, naming the tensor.
        """
        seconds = self.publisher.send(version, canary if verify else None)
        metrics = {"weights/version": float(version), "weights/sync_seconds": seconds}
        if verify:
            metrics["weights/canary_difference"] = self._verify()
        return metrics

    def _verify(self) -> float:
        difference = self.publisher.compare()
        tolerance = self.publisher.tolerance(self.model_config.dtype)
        agreed = torch.tensor(float(difference <= tolerance), device=self.device)
        if self.world_size > 1:
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
        if not agreed:
            self.publisher.explain(difference, tolerance)
        return difference

    def _canary_logprobs(self, canary: list[int]) -> np.ndarray:
        mask = np.arange(len(canary)) > 0
        sequence = Sequence(token_ids=np.array(canary, dtype=np.int64), action_mask=mask)
        batch = pack_sequences([sequence], self.device)
        # The engines are loading on the same cores: a second thread would mostly wait for its turn.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            logprobs, _ = self.engine.evaluate(batch, 1.0, self.group.logprob_chunk_tokens)
        finally:
            torch.set_num_threads(threads)
        return logprobs[1:].cpu().numpy()

    def update(
        self,
        plans: list[list[list[tuple[int, int, float]]]],
        keys: list[int],
        totals: list[Totals],
        loss: LossFunction,
        temperature: float,
        references: int,
        *inputs: Any,
    ) -> list[Metrics]:
        """Optimizer updates on scored rollouts; returns the metrics of each.

        Args:
            plans: per update, per micro-batch: (key of the group, response in the group, advantage).
            keys: the keys of the groups given.
            totals: global counts of each update.
            loss: the algorithm's; see `LossFunction`.
            temperature: at which the rollouts were sampled.
            references: how many of `inputs`, at the end, are reference logprobs: {(group, response): [L]}.
            inputs: rollout groups (list[Rollout] each), in the order of `keys`, then reference logprobs.
        """
        groups = dict(zip(keys, inputs[: len(keys)], strict=True))
        reference = {key: value for part in inputs[len(keys) :] for key, value in part.items()}

        def micro_batches(plan: list[list[tuple[int, int, float]]]) -> Iterator[PackedBatch]:
            for samples in plan:
                scored = [experience(groups[group][index], advantage) for group, index, advantage in samples]
                frozen = [reference[group, index] for group, index, _ in samples] if references else None
                yield pack_experiences(scored, frozen, self.device, share_prompts=self.shares_prompts)

        return [
            self._update(len(plan), micro_batches(plan), count, loss, temperature)
            for plan, count in zip(plans, totals, strict=True)
        ]

    def imitate(self, plan: list[list[Sequence]], totals: Totals, loss: LossFunction) -> Metrics:
        """One optimizer update on given sequences, already divided into micro-batches."""
        batches = (pack_sequences(sequences, self.device) for sequences in plan)
        return self._update(len(plan), batches, totals, loss, 1.0)

    def evaluate(self, plan: list[list[Sequence]], totals: Totals, loss: LossFunction) -> Metrics:
        """Metrics of the loss on given sequences, without an update."""
        self.sums: dict[str, torch.Tensor] = {}
        for sequences in plan:
            batch = pack_sequences(sequences, self.device)
            logprobs, entropies = self.engine.evaluate(batch, 1.0, self.group.logprob_chunk_tokens)
            value, metrics = loss(batch, logprobs, entropies, totals)
            self._add({"loss": value} | metrics)
        return self._reduced()

    def _update(
        self, count: int, batches: Iterator[PackedBatch], totals: Totals, loss: LossFunction, temperature: float
    ) -> Metrics:
        started = time.perf_counter()
        self.sums = {}
        rate = self.engine.learning_rate
        for index, batch in enumerate(batches):
            logprobs, entropies = self.engine.forward(batch, temperature, self.group.logprob_chunk_tokens)
            value, metrics = loss(batch, logprobs, entropies, totals)
            self.engine.backward(value, last=index == count - 1)
            self._add({"loss": value.detach(), "tokens/trained": _computed_tokens(batch)} | metrics)
        norm = self.engine.step()
        seconds = time.perf_counter() - started
        metrics = self._reduced()
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss of an update is {metrics['loss']}")
        return metrics | {"grad_norm": norm, "learning_rate": rate, "time/update_rank": seconds}

    def _add(self, shares: dict[str, torch.Tensor]) -> None:
        for name, share in shares.items():
            share = share.detach().double()
            self.sums[name] = self.sums[name] + share if name in self.sums else share

    def _reduced(self) -> Metrics:
        values = torch.stack(list(self.sums.values()))
        if self.world_size > 1:
            dist.all_reduce(values)
        return dict(zip(self.sums, values.tolist(), strict=True))

    def checksums(self) -> dict[str, int]:
        """Checksum of every parameter, the whole of it."""
        return {name: checksum(tensor) for name, tensor in self.engine.parameters("model")}

    def save(self, directory: Path) -> list[tuple[str, int]]:
        """Write this rank's share of a checkpoint; returns (name, bytes) of every file that this rank then sees."""
        self.engine.save(directory)
        files = [path for path in directory.rglob("*") if path.is_file()]
        return [(str(path.relative_to(directory)), path.stat().st_size) for path in files]

    def load(self, directory: Path) -> None:
        """Restore this rank's share of a checkpoint."""
        self.engine.load(directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face directory; every rank gathers, rank 0 writes."""
        from actors.models import export_model

        state = {}
        for name, tensor in self.engine.parameters("model"):
            if self.rank == 0:
                state[name] = tensor.cpu().clone()
        if self.rank == 0:
            export_model(self.hf_model, state, load_tokenizer(self.directory), directory)


def _computed_tokens(batch: PackedBatch) -> torch.Tensor:
    """Tokens that go through the model, a shared prompt once; the lone token of an idle rank is no work."""
    return torch.tensor(len(batch.inputs.token_ids) if len(batch.action_indices) else 0, device=batch.token_ids.device)
