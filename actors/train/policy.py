"""The rank that learns the policy: logprobs of rollouts, and publishing weights for the rollout engines.

The driver imports this module for its method names; models and vLLM are imported only where a worker needs them.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ray.actor import ActorHandle

from actors.config_rollout import TransferConfig
from actors.episodes import Sequence
from actors.files.full_disk import told_when_full
from actors.rendezvous import free_port, node_address
from actors.train.engine import gathered, to_the_end
from actors.train.trainer import TrainedWorker
from actors.train.worker import Handed, Held, Input, Plan, Shares, compute_threads, pack_sequences
from actors.weights.engine_client import EngineClient
from actors.weights.holder_client import HolderClient
from actors.weights.ticket import Account, Kind, Ticket

if TYPE_CHECKING:
    from actors.weights.publisher import Receivers


class PolicyWorker(TrainedWorker):
    """One data-parallel rank of the policy."""

    def load_module(self) -> torch.nn.Module:
        from actors.models.balance import balance_of
        from actors.models.load import TokenLogprobs, load_model

        divider = self.divider()
        model = load_model(self.model_config, self.directory, divider, engine_length=self.engine_length)
        self.hf_model = model.to(self.device)  # type: ignore[arg-type]
        self.balance = balance_of(self.hf_model, self.model_config.router_aux_loss)
        module = TokenLogprobs(self.hf_model, self.balance)
        self.shares_prompts = module.shares_prompts
        return module

    def logprobs(self, shares: Shares, plan: Plan, held: Held, temperature: float, *inputs: Input) -> Handed:
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

    def reference_logprobs(self, shares: Shares, plan: Plan, held: Held, temperature: float, *inputs: Input) -> Handed:
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

    def connect(
        self,
        engines: list[ActorHandle],
        tensor_parallel: int,
        backend: str,
        config: TransferConfig,
        numbers: list[int] | None = None,
    ) -> None:
        """Meet the rollout engines, to which `publish` then sends. Called on every rank; rank 0 sends.

        `numbers` of the engines; None: all from 0.
        """
        client = EngineClient(engines, tensor_parallel, config.timeout_s, numbers)
        self._open_publisher(client, len(engines) * tensor_parallel, backend, config)

    def connect_holder(self, holder: ActorHandle, config: TransferConfig) -> None:
        """Meet the holder, to which `publish` then sends. Called on every rank; rank 0 sends."""
        self._open_publisher(HolderClient(holder, config.timeout_s), 1, "gloo", config)

    def _open_publisher(self, client: "Receivers", receivers: int, backend: str, config: TransferConfig) -> None:
        from actors.weights.publisher import Publisher

        place = node_address(), free_port()  # of this rank's node, where the transfer group will be served
        self.publisher = Publisher(
            self.engine, self._canary_logprobs, client, receivers, backend, config, self.rank, place
        )

    def publish(self, version: int, canary: list[int], verify: bool) -> tuple[Ticket, list[Account]] | None:
        """Send the current weights as `version`; with `verify`, sender and engines account for them. Collective.

        Returns:
            Of rank 0, the ticket, and the accounts of the engines that the weights went to.
        """
        told = self.publisher.send(version, canary, verify)
        return told if self.rank == 0 else None

    def sent_checksums(self, kind: Kind) -> dict[str, int]:
        """Of all tensors of the part that was published last, on rank 0."""
        return self.publisher.checksums[kind]

    def published_answers(self, seed: int) -> dict[str, np.ndarray]:
        """What the published tensors answer to a fixed input, on rank 0; collective."""
        answers = self.publisher.answers(seed)
        return answers if self.rank == 0 else {}

    def _canary_logprobs(self, canary: list[int]) -> np.ndarray:
        mask = np.arange(len(canary)) > 0
        sequence = Sequence(token_ids=np.array(canary, dtype=np.int64), action_mask=mask)
        batch = pack_sequences([sequence], self.device)
        # The engines are loading on the same cores: a second thread would mostly wait for its turn.
        with compute_threads(1):
            logprobs = self.read(batch)
        return logprobs[1:].cpu().numpy()
