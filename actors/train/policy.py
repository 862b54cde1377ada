"""The rank that learns the policy: logprobs of rollouts, and publishing weights to the rollout engines.

The driver imports this module for its method names; models and vLLM are imported only where a worker needs them.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from actors.batch import Sequence
from actors.config_rollout import TransferConfig
from actors.files.full_disk import told_when_full
from actors.rendezvous import free_port, node_address
from actors.train.engine import gathered, to_the_end
from actors.train.trainer import TrainedWorker
from actors.train.worker import Held, Metrics, Plan, Share, pack_sequences
from actors.weights.engine_client import EngineClient


class PolicyWorker(TrainedWorker):
    """One data-parallel rank of the policy."""

    def load_module(self) -> torch.nn.Module:
        from actors.models.load import TokenLogprobs, load_model

        model = load_model(self.model_config, self.directory, self.divider())
        self.hf_model = model.to(self.device)  # type: ignore[arg-type]
        module = TokenLogprobs(self.hf_model)
        self.shares_prompts = module.shares_prompts
        return module

    def logprobs(self, shares: list[Share], plan: Plan, held: Held, temperature: float, *inputs: Any) -> Any:
        """`old_logprobs` of rollouts: those of the weights as they are now; see `ReferenceWorker.logprobs`."""
        return self.read_episodes(
            lambda batch: self.read(batch, temperature),
            "old_logprobs",
            shares,
            plan,
            held,
            inputs,
            share_prompts=self.shares_prompts,
        )

    def reference_logprobs(self, shares: list[Share], plan: Plan, held: Held, temperature: float, *inputs: Any) -> Any:
        """`reference_logprobs` of rollouts by the policy with its adapters disabled: the model it started from."""
        from actors.models.lora import adapters_disabled

        with adapters_disabled(self.hf_model):
            return self.read_episodes(
                lambda batch: self.read(batch, temperature),
                "reference_logprobs",
                shares,
                plan,
                held,
                inputs,
                share_prompts=self.shares_prompts,
            )

    def reference_outputs(self, plan: list[list[Sequence]], share_prompts: bool = False) -> list[list[float]]:
        """`outputs` of the policy with its adapters disabled."""
        from actors.models.lora import adapters_disabled

        with adapters_disabled(self.hf_model):
            return self.outputs(plan, share_prompts)

    def write_weights(self, file: Path) -> None:
        """Write the weights as they are now, adapters merged into them, for `ReferenceWorker.follow`; rank 0 does."""
        from actors.models.lora import parameter_metas, plain_parameters
        from actors.models.tensor_files import write_tensors

        tensors = plain_parameters(self.hf_model, gathered, merged=True)
        with to_the_end(tensors):
            if self.rank == 0:
                with told_when_full(file):
                    write_tensors({file: parameter_metas(self.hf_model)}, tensors, None)

    def prepare_to_connect(self) -> None:
        """Import what `connect` needs: seconds of work, best done while the engines are still starting."""
        importlib.import_module("actors.weights.publisher")

    def connect(self, engines: list[ActorHandle], tensor_parallel: int, backend: str, config: TransferConfig) -> None:
        """Meet the rollout engines for weight transfer. Called on every rank; rank 0 sends."""
        from actors.weights.publisher import Publisher

        client = EngineClient(engines, tensor_parallel, config.timeout_s)
        place = node_address(), free_port()
        self.publisher = Publisher(
            self.engine, self._canary_logprobs, client, tensor_parallel, backend, config, self.rank, place
        )

    def publish(self, version: int, canary: list[int], verify: bool) -> Metrics:
        """Send the current weights as `version`; with `verify`, compare checksums and the canary's logprobs.

        Raises WeightSyncError when they disagree, naming the tensor.
        """
        seconds = self.publisher.send(version, canary if verify else None)
        metrics = {"weights/sync_seconds": seconds}
        if (error := self.publisher.merge_error()) is not None:
            metrics["weights/merge_error"] = error
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
            logprobs = self.read(batch)
        finally:
            torch.set_num_threads(threads)
        return logprobs[1:].cpu().numpy()
