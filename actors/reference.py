"""The frozen initial policy: logprobs of rollouts, for the KL penalty.

The driver imports this module for its method names; models are imported only where a worker needs them.
"""

from typing import Any

import numpy as np
import torch

from actors.batch import experience
from actors.config import GroupConfig, ModelConfig
from actors.engine import inference_module
from actors.worker import Worker, pack_sequences


class ReferenceWorker(Worker):
    """One data-parallel rank of the reference."""

    def __init__(
        self, rank: int, world_size: int, model: ModelConfig, directory: str, group: GroupConfig, seed: int
    ) -> None:
        super().__init__(rank, world_size, seed)
        self.model_config = model
        self.directory = directory
        self.group = group

    def build(self, address: str, port: int) -> None:
        """Meet the other ranks and load the frozen model."""
        from actors.models import TokenLogprobs, load_model

        self.join(address, port, self.group.timeout_s)
        model = load_model(self.model_config, self.directory).to(self.device)  # type: ignore[arg-type]
        module = TokenLogprobs(model)
        self.shares_prompts = module.shares_prompts
        self.module = inference_module(module, self.group, self.model_config.dtype)

    def logprobs(
        self, plan: list[list[tuple[int, int]]], keys: list[int], temperature: float, *inputs: Any
    ) -> dict[tuple[int, int], np.ndarray]:
        """Reference logprobs of rollouts, {(group, response): float32 [L]}, 0 at prompt tokens.

        `plan` holds, per micro-batch, (key of the group, response in the group); `inputs` are the groups of `keys`.
        """
        groups = dict(zip(keys, inputs, strict=True))
        found: dict[tuple[int, int], np.ndarray] = {}
        for samples in plan:
            sequences = [experience(groups[group][index], 0.0) for group, index in samples]
            batch = pack_sequences(sequences, self.device, share_prompts=self.shares_prompts)
            with torch.no_grad():
                logprobs, _ = self.module(batch, temperature, self.group.logprob_chunk_tokens)
            found.update(zip(samples, batch.split(logprobs), strict=False))
        return found
