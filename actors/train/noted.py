"""What the policy reads of a few episodes when it first learns from them, kept for whoever reports it."""

from collections.abc import Iterable, Sequence

import torch

from actors.episodes import Place, TokenFields
from actors.models.packed import PackedBatch
from actors.train.worker import LossFunction, Totals


class Noted:
    """Of the episodes that are `wanted`, logprobs and entropies of the first pass that comes to each of them."""

    def __init__(self, wanted: Iterable[Place]) -> None:
        self._wanted = set(wanted)
        self._found: dict[Place, tuple[torch.Tensor, torch.Tensor]] = {}

    def watching(self, loss: LossFunction, plan: Iterable[Sequence[tuple[int, int, float]]]) -> LossFunction:
        """The same loss, which is called for each micro-batch of this plan in turn, and notes what it is given."""
        micro_batches = iter(plan)

        def watched(
            batch: PackedBatch, policy_logprobs: torch.Tensor, entropies: torch.Tensor, totals: Totals
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            for number, (key, index, _) in enumerate(next(micro_batches)):
                if (place := (key, index)) in self._wanted and place not in self._found:
                    # Copies, as a part would keep the whole; on the device, which nobody waits for here.
                    read = [batch.of_sequence(each.detach(), number).clone() for each in (policy_logprobs, entropies)]
                    self._found[place] = read[0], read[1]
            return loss(batch, policy_logprobs, entropies, totals)

        return watched

    def fields(self) -> TokenFields:
        """policy_logprobs and entropies, [L] each, of those that were learned from."""
        return {
            place: {"policy_logprobs": logprobs.float().cpu().numpy(), "entropies": entropies.float().cpu().numpy()}
            for place, (logprobs, entropies) in self._found.items()
        }
