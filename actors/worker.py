"""What trained and frozen ranks share: process group, device, packing of a plan's micro-batches."""

import os
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from actors.batch import Experience, Sequence
from actors.engine import join_process_group
from actors.group import free_port, node_address, rendezvous_environment, write_output_to_log
from actors.packed import PackedBatch, pack

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Global counts of one optimizer update, over all ranks and micro-batches: what losses are divided by."""

    tokens: int
    """Action tokens of all samples of the update, whether they are trained on or known to have no gradient."""
    sequences: int
    """Samples of the update."""
    trained_tokens: int
    """Action tokens that go through the model: what metrics are averaged over."""


LossFunction = Callable[[PackedBatch, torch.Tensor, torch.Tensor, Totals], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(micro-batch, policy_logprobs [T], entropies [T], totals) -> (share of the loss, shares of metrics): shares of all
micro-batches and ranks add up to the loss and the metrics of the update."""


class Worker:
    """A rank of a group: knows its rank, its device and how to meet its peers."""

    def __init__(self, rank: int, world_size: int, seed: int) -> None:
        write_output_to_log()
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met: address and a free port."""
        return node_address(), free_port()

    def join(self, address: str, port: int, timeout_s: float) -> None:
        """Meet the other ranks."""
        rendezvous_environment(self.rank, self.world_size, address, port)
        join_process_group(timeout_s)


def pack_experiences(
    experiences: Seq[Experience],
    reference_logprobs: Seq[np.ndarray] | None,
    device: torch.device,
    *,
    share_prompts: bool,
) -> PackedBatch:
    """Pack scored rollouts with the fields that policy losses read; see `pack` for `share_prompts`."""
    fields = {
        "rollout_logprobs": [item.rollout_logprobs for item in experiences],
        "advantages": [np.full(len(item), item.advantage, dtype=np.float32) for item in experiences],
    }
    if reference_logprobs is not None:
        fields["reference_logprobs"] = list(reference_logprobs)
    return pack(experiences, fields, device, share_prompts=share_prompts)


def pack_sequences(sequences: Seq[Sequence], device: torch.device, *, share_prompts: bool = False) -> PackedBatch:
    """Pack sequences without further fields; see `pack` for `share_prompts`."""
    return pack(sequences, {}, device, share_prompts=share_prompts)
