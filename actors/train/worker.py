"""What trained and frozen ranks share: process group, device, packing, reading a model over a plan's micro-batches."""

import os
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from actors.episodes import Episode, Experience, Labelled, Place, Sequence, TokenFields, experience
from actors.files import stored
from actors.files.own_files import load_data_only
from actors.group import NICENESS
from actors.models.packed import PackedBatch, Read, pack
from actors.output_log import write_output_to_log
from actors.pulse import MICRO_BATCHES, Watched
from actors.quick_import import without_science
from actors.rendezvous import join_store, listener, meet_on_node_address, node_address, serve_store
from actors.train.engine import checkpoint_types, join_process_group

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Global counts of one optimizer update, over all ranks and micro-batches: what losses are divided by."""

    tokens: int
    """Action tokens, which are the sampled ones, of all samples of the update, whether they are trained on or known to
    have no gradient."""
    sequences: int
    """Samples of the update."""
    trained_tokens: int
    """Action tokens that go through the model: what metrics are averaged over."""


LossFunction = Callable[[PackedBatch, torch.Tensor, torch.Tensor, Totals], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(micro-batch, policy_logprobs [T], entropies [T], totals) -> (share of the loss, shares of metrics): shares of all
micro-batches and ranks add up to the loss and the metrics of the update; a metric may be a vector, whose elements are
told as NAME/0, NAME/1. Of a model of values: (micro-batch, values [T], zeros [T], totals)."""

Forward = Callable[[PackedBatch], torch.Tensor]
"""What a model reads out of a micro-batch, [T], without gradient."""

Plan = list[list[Place]]
"""Episodes of each micro-batch, by their places: (key of the group, episode in the group)."""

Held = list[tuple[int, list[int]]]
"""Of each list of episodes that a rank is given: key of the group, and which of its episodes are in the list."""

Input = Any
"""What a stage is given by Ray: lists of episodes, as `Held` says, and then the TokenFields of earlier stages."""
Handed = object
"""What `hand_out` returns: one object, or as many as the driver has asked for."""
Share = tuple[list[str], list[Place]]
"""What one rank of another stage goes on with: names of fields, and the episodes that it needs them of."""
Shares = list[Share] | None
"""What each rank that goes on with fields needs of them; None: nobody knows yet, and the rank keeps them."""

ScoredGroups = list[list[tuple[float, Experience]]]
"""Per group: score and tokens of every episode."""

Estimate = Callable[
    [ScoredGroups, Callable[[NDArray[np.float64]], NDArray[np.float64]]],
    tuple[list[list[dict[str, NDArray[np.float32]]]], Metrics],
]
"""(groups, sum of a vector over ranks) -> (per group and episode: fields such as advantages, metrics of all ranks)."""


class Worker(Watched):
    """A rank of a group: knows its rank, its device and how to meet its peers."""

    def __init__(self, rank: int, world_size: int, seed: int) -> None:
        write_output_to_log()
        load_data_only()  # before a library loads anything
        meet_on_node_address()
        without_science()  # before anything imports transformers
        os.nice(int(os.environ.get(NICENESS, "0")))  # before there are threads, each of which has its own
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.kept: dict[str, dict[Place, NDArray[np.float32]]] = {}
        """Name of a field -> what was read of episodes that no stage goes on with yet, [L] each."""
        torch.manual_seed(seed)
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))

    def text_of(self, path: Path) -> str | None:
        """Text of a file as this rank's node sees it; None when it is not there."""
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def faults(self, directory: Path, hashes: dict[str, str | None]) -> list[stored.Flaw]:
        """What is wrong with files of a checkpoint (name -> SHA-256); nothing of them is loaded."""
        return stored.faults(directory, hashes, checkpoint_types())

    def address(self) -> tuple[str, int]:
        """Where rank 0, this one, will be met: address and port, at which it listens from now on."""
        # Held open until `join`, so that nobody else gets the port.
        self._listener = listener(node_address())
        return self._listener.getsockname()[:2]

    def join(self, address: str, port: int, timeout_s: float) -> None:
        """Meet the other ranks at what `address` of rank 0 gave; a rank that builds its model anew has met them."""
        if dist.is_initialized():
            return
        if self.rank == 0:
            store = serve_store(self._listener, self.world_size, timeout_s)
        else:
            store = join_store(address, port, self.world_size, timeout_s)
        join_process_group(store, self.rank, self.world_size, timeout_s)

    def sum_over_ranks(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Element by element; collective."""
        if self.world_size == 1:
            return values
        # On the device, as NCCL reduces nothing else.
        summed = torch.from_numpy(values).to(self.device)
        dist.all_reduce(summed)
        return summed.cpu().numpy()

    def advantages(
        self,
        shares: list[Share],
        scores: dict[int, list[float]],
        held: Held,
        estimate: Estimate,
        reported: dict[Place, int],
        *inputs: Input,
    ) -> Handed:
        """Advantages of whole groups of episodes, token by token, and what else `estimate` finds; collective.

        Args:
            shares: what each rank that goes on with the fields needs of them.
            scores: key of the group -> score of every episode.
            held: what is in the lists of episodes.
            estimate: the algorithm's; see `Estimate`.
            reported: sampled tokens of the episodes whose mean advantage is asked for, of this rank's or others'.
            inputs: lists of episodes, in the order of `held`, then TokenFields that `estimate` reads.

        Returns:
            (metrics over all ranks, mean advantages of those `reported` that are here), and for each share its fields.
        """
        episodes, known = read_inputs(held, inputs)
        joined = [
            [(score, experience(episodes[key, i], known.get((key, i)))) for i, score in enumerate(scores[key])]
            for key in scores
        ]
        found, metrics = estimate(joined, self.sum_over_ranks)
        fields = {
            (key, index): fields
            for key, responses in zip(scores, found, strict=True)
            for index, fields in enumerate(responses)
        }
        return hand_out((metrics, self.mean_advantages(reported, fields)), fields, shares)

    def mean_advantages(self, tokens: dict[Place, int], fields: TokenFields) -> dict[Place, float]:
        """Mean advantage of the episodes with so many sampled `tokens`, by their place, of those that `fields` has."""
        return {
            place: float(fields[place]["advantages"].sum()) / max(1, count)
            for place, count in tokens.items()
            if place in fields
        }

    def read_episodes(
        self,
        forward: Forward,
        name: str,
        shares: Shares,
        plan: Plan,
        held: Held,
        inputs: Seq[Input],
        *,
        share_prompts: bool,
    ) -> Handed:
        """What `forward` reads at the action tokens of episodes, as the field `name`.

        Returns:
            no metrics, and for each share its fields; without shares they are kept for `hand_kept`.
        """
        episodes, _ = read_inputs(held, inputs)
        found: TokenFields = {}
        for places in plan:
            batch = pack_experiences(
                [experience(episodes[place]) for place in places], self.device, share_prompts=share_prompts
            )
            values = batch.split(forward(batch))
            # Not strict: an idle batch has one token, and no episode.
            found.update((place, {name: each}) for place, each in zip(places, values, strict=False))
            self.work.progressed()
        if shares is None:
            self.kept.setdefault(name, {}).update((place, fields[name]) for place, fields in found.items())
            return {}
        return hand_out({}, found, shares)

    def hand_kept(self, shares: list[Share], name: str, numbers: dict[int, int], later: list[int]) -> Handed:
        """What was read before anybody knew who goes on with it, as the field `name`.

        Args:
            shares: what each rank that goes on with it needs of it.
            numbers: key of a group when it was read -> its key in `shares`.
            later: keys, as they were then, of groups that are asked for another time; all others are forgotten.

        Returns:
            see `read_episodes`.
        """
        kept, stays = self.kept.pop(name, {}), set(later)
        self.kept[name] = {place: values for place, values in kept.items() if place[0] in stays}
        found = {(numbers[key], index): {name: each} for (key, index), each in kept.items() if key in numbers}
        return hand_out({}, found, shares)

    def read_sequences(self, forward: Forward, plan: list[list[Sequence]], *, share_prompts: bool) -> list[list[float]]:
        """Sum over action tokens of what `forward` reads, for every sequence of the plan."""
        self.work.expect(len(plan), MICRO_BATCHES)
        found = []
        for sequences in plan:
            batch = pack_sequences(sequences, self.device, share_prompts=share_prompts)
            sums = batch.sequence_sums(forward(batch)).tolist()
            found.append(sums[: len(sequences)])  # an idle batch has a sum, and no sequence
            self.work.progressed()
        return found


@contextmanager
def compute_threads(count: int | None) -> Iterator[None]:
    """Within it, torch computes with so many threads; None: with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_inputs(held: Held, inputs: Seq[Input]) -> tuple[dict[Place, Episode], TokenFields]:
    """Episodes by their places, and the token fields that come after them, those of each episode in one."""
    episodes = {
        (key, index): episode
        for (key, indices), given in zip(held, inputs[: len(held)], strict=True)
        for index, episode in zip(indices, given, strict=True)
    }
    fields: TokenFields = {}
    for part in inputs[len(held) :]:
        for place, found in part.items():
            fields[place] = fields.get(place, {}) | found
    return episodes, fields


def hand_out(told: object, found: TokenFields, shares: list[Share]) -> Handed:
    """What a rank returns that computes fields: `told`, then an object for each share, which nobody else fetches.

    Ray takes a tuple apart only where several objects are asked for: without a share it is `told` alone.
    """
    parts = [{place: {name: found[place][name] for name in names} for place in places} for names, places in shares]
    return (told, *parts) if parts else told


def pack_experiences(
    experiences: Seq[Experience], device: torch.device, *, share_prompts: bool, whole: bool = False
) -> PackedBatch:
    """Pack episodes with their fields; see `pack` for `share_prompts` and `whole`."""
    names = experiences[0].fields if experiences else ()
    fields = {name: [item.fields[name] for item in experiences] for name in names}
    return pack(experiences, fields, device, share_prompts=share_prompts, whole=whole)


def pack_sequences(
    sequences: Seq[Sequence],
    device: torch.device,
    *,
    share_prompts: bool = False,
    read: Read = "before",
    whole: bool = False,
) -> PackedBatch:
    """Pack sequences, with their labels if they have any; see `pack` for `share_prompts`, `read` and `whole`."""
    labels: dict[str, list[float]] = {}
    for item in sequences:
        for name, value in item.labels.items() if isinstance(item, Labelled) else ():
            labels.setdefault(name, []).append(value)
    return pack(sequences, {}, device, labels=labels, share_prompts=share_prompts, read=read, whole=whole)
