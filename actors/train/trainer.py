"""A rank that learns, whatever its model reads: optimizer updates on given sequences and on rollouts, checkpoints.

The driver imports this module for its method names; models are imported only where a worker needs them.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from actors.config import ModelConfig, TrainerConfig
from actors.episodes import Episode, Place, Sequence, TokenFields, experience
from actors.files import stored
from actors.files.full_disk import told_when_full
from actors.files.own_files import StoredFile
from actors.files.pieces import Contents
from actors.models.packed import PackedBatch, Read
from actors.pulse import MICRO_BATCHES, beside
from actors.train.checkpoint_files import CapturedFiles
from actors.train.engine import TrainingEngine, gathered, load_library
from actors.train.exporting import ExportingWorker
from actors.train.kept import KeptWorker
from actors.train.noted import Noted
from actors.train.sharding import Sharding, sharding
from actors.train.shards import Shards
from actors.train.sums import COMPUTED_TOKENS, Divisors, Sums
from actors.train.worker import (
    Held,
    Input,
    LossFunction,
    Metrics,
    Totals,
    compute_threads,
    pack_experiences,
    pack_sequences,
    read_inputs,
)
from actors.weights.checksum import checksum

if TYPE_CHECKING:
    from actors.models.balance import Balance

SUMS = Totals(tokens=1, sequences=1, trained_tokens=1)
"""Counts with which losses and metrics are sums."""

Advantaged = list[list[tuple[int, int, float]]]
"""Per micro-batch: (key of the group, episode in the group, advantage of all its tokens, unless TokenFields have
advantages token by token)."""


class TrainedWorker(KeptWorker, ExportingWorker):
    """One data-parallel rank of a group that learns."""

    reads: Read = "before"
    """Where the model is read in given sequences; see `actors.models.packed.pack`."""
    shares_prompts: bool
    """Whether its batches may hold a prompt once for all its responses."""
    engine_length: int | None = None
    """max_model_len of the engines that sample from the model, in tokens; None where no engine does."""
    balance: "Balance | None" = None
    """The load-balancing loss of the model, if it is a mixture of experts that has one."""
    _captured: CapturedFiles | None = None
    """What is still to be written of a checkpoint."""
    noted: Noted | None = None
    """What `note` has asked for."""
    begun: Sums | None = None
    """What `accumulate` has added to an update that is not made yet."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        model: ModelConfig,
        directory: str,
        group: TrainerConfig,
        seed: int,
        *,
        engine_length: int | None = None,
    ) -> None:
        super().__init__(rank, world_size, seed)
        load_library()  # seconds in which the driver has other things to do
        self.seed = seed
        self.model_config = model
        self.directory = directory
        self.group = group
        self.engine_length = engine_length

    @abstractmethod
    def load_module(self) -> torch.nn.Module:
        """The model, wrapped to answer a batch with two [T] tensors; sets `hf_model` and `shares_prompts`."""

    def divider(self) -> Sharding | None:
        """What divides the model over the ranks while it is loaded; None where each holds the whole of it."""
        return sharding(self.group, self.model_config.dtype)

    def build(self, address: str, port: int, total_updates: int) -> None:
        """Meet the other ranks, load the model and hand it to DeepSpeed. `total_updates` ends the schedule."""
        from actors.models.lora import select_trained

        self.join(address, port, self.group.timeout_s)
        module = self.load_module()
        select_trained(self.hf_model, self.model_config, self.seed)
        self.engine = TrainingEngine(module, self.group, self.model_config.dtype, total_updates)
        # What is random from here on, dropout, differs from rank to rank.
        torch.manual_seed(self.seed + self.rank)

    def read(self, batch: PackedBatch, temperature: float = 1.0) -> torch.Tensor:
        """What the model reads out of a batch, [T], without gradient."""
        return self.engine.evaluate(batch, temperature, self.group.logprob_chunk_tokens)[0]

    def update(
        self,
        plans: list[Advantaged],
        held: Held,
        totals: list[Totals],
        loss: LossFunction,
        temperature: float,
        *inputs: Input,
    ) -> list[Metrics]:
        """Optimizer updates on scored episodes; returns the metrics of each.

        Args:
            plans: of each update; see `Advantaged`.
            held: what is in the lists of episodes.
            totals: global counts of each update.
            loss: the algorithm's; see `LossFunction`.
            temperature: at which the episodes were sampled.
            inputs: lists of episodes, in the order of `held`, then TokenFields, such as reference logprobs.
        """
        # Unless it is asked for: the gradient of rollouts is that of the policy.
        coefficient = self._balancing(0.0)
        read, updates = read_inputs(held, inputs), list[Metrics]()
        for plan, count in zip(plans, totals, strict=True):
            batches = self._experiences(plan, *read, bool(coefficient))
            watched = self.noted.watching(loss, plan) if self.noted else loss
            updates.append(self._update(len(plan), batches, count, watched, temperature, coefficient))
        return updates

    def note(self, places: list[Place]) -> None:
        """Keep what `update` reads of these episodes when it first learns from them, for `tell_noted`."""
        self.noted = Noted(places)

    def tell_noted(self) -> TokenFields:
        """policy_logprobs and entropies of the episodes that `note` has named and `update` has learned from since, by
        their keys and numbers; they are forgotten."""
        noted, self.noted = self.noted, None
        return noted.fields() if noted else {}

    def accumulate(
        self,
        plan: Advantaged,
        held: Held,
        threads: int | None,
        loss: LossFunction,
        temperature: float,
        *inputs: Input,
    ) -> None:
        """Add the gradient of some scored episodes to that of an update that `finish_update` makes. Nobody knows yet
        what its loss will be divided by: until then, it is a sum.

        Args:
            threads: with which it is computed; None: with those that the rank has.
            plan, held, loss, temperature, inputs: as in `update`.
        """
        self.begun = self.begun or Sums()
        batches = self._experiences(plan, *read_inputs(held, inputs))
        with compute_threads(threads):
            self._add_gradients(self.begun, len(plan), batches, loss, temperature, SUMS)

    def finish_update(
        self,
        plan: Advantaged,
        held: Held,
        totals: Totals,
        divisors: Divisors,
        loss: LossFunction,
        temperature: float,
        *inputs: Input,
    ) -> list[Metrics]:
        """Make the update of all episodes that `accumulate` was given, and of those of this `plan`.

        Returns its metrics: those of `update` with all of them, and time/early_rank, what `accumulate` has taken.

        Args:
            totals: global counts of the update.
            divisors: what they make of sums.
            plan, held, loss, temperature, inputs: as in `update`.
        """
        sums, self.begun = self.begun or Sums(), None
        early = sums.seconds
        batches = self._experiences(plan, *read_inputs(held, inputs))
        learns = totals.trained_tokens > 0
        self._add_gradients(sums, len(plan), batches, loss, temperature, SUMS, learns=learns, last=True)
        sums.divide(divisors)
        return [self._step(sums, divisors.loss, learns=learns) | {"time/early_rank": early}]

    def _experiences(
        self, plan: Advantaged, episodes: dict[Place, Episode], known: TokenFields, whole: bool = False
    ) -> Iterator[PackedBatch]:
        """The micro-batches of a plan."""
        for samples in plan:
            found = []
            for key, index, advantage in samples:
                episode = episodes[key, index]
                same = {"advantages": np.full(episode.tokens, advantage, dtype=np.float32)}
                found.append(experience(episode, same | known.get((key, index), {})))
            yield pack_experiences(found, self.device, share_prompts=self.shares_prompts, whole=whole)

    def learn(
        self, plan: list[list[Sequence]], totals: Totals, loss: LossFunction, share_prompts: bool = False
    ) -> Metrics:
        """One optimizer update on given sequences, already divided into micro-batches."""
        coefficient = self._balancing(self.balance.configured if self.balance else 0.0)
        batches = (self._packed(sequences, share_prompts, whole=bool(coefficient)) for sequences in plan)
        return self._update(len(plan), batches, totals, loss, 1.0, coefficient)

    def evaluate(
        self, plan: list[list[Sequence]], totals: Totals, loss: LossFunction, share_prompts: bool = False
    ) -> Metrics:
        """Metrics of the loss on given sequences, without an update."""
        self.work.expect(len(plan), MICRO_BATCHES)
        sums = Sums()
        for sequences in plan:
            batch = self._packed(sequences, share_prompts)
            read, other = self.engine.evaluate(batch, 1.0, self.group.logprob_chunk_tokens)
            value, metrics = loss(batch, read, other, totals)
            sums.add({"loss": value} | metrics)
            self.work.progressed()
        return sums.over_ranks(self.sum_over_ranks)

    def outputs(self, plan: list[list[Sequence]], share_prompts: bool = False) -> list[list[float]]:
        """Sum over the action tokens of every sequence of what the model reads there: its logprob, or its score."""
        self.work.expect(len(plan), MICRO_BATCHES)
        found = []
        for sequences in plan:
            batch = self._packed(sequences, share_prompts)
            found.append(batch.sequence_sums(self.read(batch)).tolist()[: len(sequences)])
            self.work.progressed()
        return found

    def _balancing(self, default: float) -> float:
        """Coefficient of the load-balancing loss; 0 for a model that has none."""
        if self.balance is None:
            return 0.0
        given = self.model_config.router_aux_loss
        return default if given is None else given

    def _packed(self, sequences: list[Sequence], share_prompts: bool, *, whole: bool = False) -> PackedBatch:
        share = share_prompts and self.shares_prompts
        return pack_sequences(sequences, self.device, share_prompts=share, read=self.reads, whole=whole)

    def _update(
        self,
        count: int,
        batches: Iterable[PackedBatch],
        totals: Totals,
        loss: LossFunction,
        temperature: float,
        coefficient: float = 0.0,
    ) -> Metrics:
        """One optimizer update; `coefficient` is that of the load-balancing loss."""
        # Without a token to learn from, a step would still go where the moments and the weight decay lead.
        sums, learns = Sums(), totals.trained_tokens > 0
        self._add_gradients(sums, count, batches, loss, temperature, totals, coefficient, learns=learns, last=True)
        return self._step(sums, learns=learns)

    def _add_gradients(
        self,
        sums: Sums,
        count: int,
        batches: Iterable[PackedBatch],
        loss: LossFunction,
        temperature: float,
        totals: Totals,
        coefficient: float = 0.0,
        *,
        learns: bool = True,
        last: bool = False,
    ) -> None:
        """Add gradients and metrics of `count` micro-batches to those of an update; `last`: no others come."""
        started = time.perf_counter()
        balance = self.balance if coefficient and learns else None
        if balance:
            batches = list(batches)
            balance.count(batches if count > 1 else [], self.read)
        for index, batch in enumerate(batches):
            run = self.engine.forward if learns else self.engine.evaluate
            with balance.reading(idle=batch.idle) if balance else nullcontext():
                read, other = run(batch, temperature, self.group.logprob_chunk_tokens)
            value, metrics = loss(batch, read, other, totals)
            if balance:
                share = balance.share()
                value, metrics = value + coefficient * share, metrics | {"policy/router_aux_loss": share}
            if learns:
                self.engine.backward(value, last=last and index == count - 1)
            sums.add({"loss": value.detach(), COMPUTED_TOKENS: _computed_tokens(batch)} | metrics)
            self.work.progressed()
        sums.seconds += time.perf_counter() - started

    def _step(self, sums: Sums, divisor: float = 1.0, *, learns: bool) -> Metrics:
        """Step with the gradients that were added, divided by `divisor`; returns their metrics."""
        started = time.perf_counter()
        rate = self.engine.learning_rate  # a step moves on to the next
        norm = self.engine.step(divisor) if learns else self.engine.skip()
        seconds = sums.seconds + time.perf_counter() - started
        metrics = sums.over_ranks(self.sum_over_ranks)
        # Known only when all ranks have told, after the step; no rank then goes on to save or publish these weights.
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss of an update is {metrics['loss']}")
        return metrics | {"grad_norm": norm, "learning_rate": rate, "time/update_rank": seconds}

    def checksums(self) -> dict[str, int]:
        """Checksum of every parameter, the whole of it, with adapters merged into it."""
        from actors.models.lora import plain_parameters

        return {name: checksum(tensor) for name, tensor in plain_parameters(self.hf_model, gathered, merged=True)}

    def save(self, directory: Path) -> list[StoredFile]:
        """Write this rank's share of a checkpoint; returns every file that this rank then sees, with the hashes of its
        own. Raises as `TrainingEngine.save` does, UserError where the disk is full."""
        with told_when_full(directory):
            # Dropout goes on where it was: a resumed run draws what this one would have drawn.
            hashes = self.engine.save(directory, {f"random-{self.rank}.pt": self._random_state()})
        return _seen(directory, hashes)

    def capture(self, directory: Path) -> None:
        """Keep in memory what `save` would write, for `write_captured`; what was kept before is forgotten."""
        self._captured = None  # first: there is room for one
        self._captured = self.engine.capture(directory, {f"random-{self.rank}.pt": self._random_state()})

    @beside
    def write_captured(self, directory: Path) -> list[StoredFile]:
        """Write what `capture` has kept for this directory, and forget it; returns and raises as `save` does, and
        LookupError where nothing was kept, as by a process that was started since."""
        captured, self._captured = self._captured, None
        if captured is None:
            raise LookupError(f"nothing was captured for {directory}")
        with told_when_full(directory):
            hashes = captured.write()
        return _seen(directory, {str(path.relative_to(directory)): sha256 for path, sha256 in hashes.items()})

    def captured_files(self) -> Contents:
        """As of `KeptWorker`."""
        root = Path("/copy")  # only named: nothing is written there
        return self.engine.capture(root, {f"random-{self.rank}.pt": self._random_state()}).files_below(root)

    def load(self, directory: Path, saved: Shards | None = None) -> tuple[float, float]:
        """Restore this rank's share of a checkpoint; returns the rates of the next update then and now, as
        `TrainingEngine.load` does.

        Ranks that there were go on with their random numbers; others begin with numbers of their own, the same at every
        start from this checkpoint. A model with dropout learns from other noise than with as many ranks as before.

        Args:
            directory: of the checkpoint.
            saved: what the group's state is divided by there (default: by its ranks and ZeRO stage of now).
        """
        rates = self.engine.load(directory, saved)
        path = directory / f"random-{self.rank}.pt"
        if path.exists():
            self._set_random_state(stored.read(path))
        else:
            entropy = (self.seed, self.rank, self.engine.updates)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0]))
        return rates

    def load_model(self, directory: Path, saved: Shards | None = None) -> None:
        """Restore the model and its optimizer only, also on another device than that of the run; `saved` as in
        `load`."""
        self.engine.load(directory, saved)

    def _random_state(self) -> list[torch.Tensor]:
        on_gpu = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_gpu]

    def _set_random_state(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, self.device)


def _seen(directory: Path, hashes: Mapping[str, str]) -> list[StoredFile]:
    """All files there, with their hashes where these are known; another rank may be writing some of them."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return [(name, path.stat().st_size, hashes.get(name)) for name, path in files.items()]


def _computed_tokens(batch: PackedBatch) -> torch.Tensor:
    """Tokens that go through the model, a shared prompt once; the lone token of an idle rank is no work."""
    return torch.tensor(0 if batch.idle else len(batch.inputs.token_ids), device=batch.token_ids.device)
