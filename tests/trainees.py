"""Real ranks that start anew as policy, critic or reward model, and synthetic data, for comparing divisions of work."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from actors.config import FrozenGroupConfig, ModelConfig, ModelInit, OptimizerConfig, TrainerConfig
from actors.episodes import Episode, Prompt, Sequence
from actors.files import own_files, stored
from actors.group import ActorGroup, Slot
from actors.models.packed import PackedBatch
from actors.models.skeleton import write_skeleton
from actors.rollout.types import RolloutInfo
from actors.train.critic import CriticWorker
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from actors.train.trainer import TrainedWorker
from algorithms.data.pairs import Judged, Pair
from algorithms.rewards.scores import Score
from algorithms.rollouts.groups import ScoredGroup
from tests.episodes import episode, turn

UPDATES = 3
INIT = ModelInit(hidden_size=32, layers=2, heads=2, kv_heads=1, max_positions=64)
MODEL = ModelConfig(init=INIT)
GROUP = TrainerConfig(
    # SGD shows gradients as they are: Adam would turn rounding errors of vanishing gradients into whole steps.
    optimizer=OptimizerConfig(name="sgd", lr=2.0, max_grad_norm=0.1, weight_decay=0.01),
    ema_decay=0.7,
    timeout_s=120,
)


class Uneven(torch.nn.Module):
    """A small network of tensors that cannot be divided by two; it answers as a policy does.

    A buffer counts what it has been trained on, and scales what it answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(
            torch.nn.Embedding(99, 5), torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
        )
        self.register_buffer("scale", torch.ones(1))

    def forward(self, batch: PackedBatch, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        self.scale += 0.05 * self.training
        read = torch.nn.functional.logsigmoid(self.model(batch.token_ids)[:, 0] * self.scale.clone())
        return read, read.detach()


class UnevenWorker(TrainedWorker):
    """A rank that trains `Uneven`."""

    def load_module(self) -> torch.nn.Module:
        self.shares_prompts, module = False, Uneven()
        self.hf_model: Any = module
        return module


class Trainee(CriticWorker, PolicyWorker):
    """A rank that starts anew, from the same initial weights, as another kind of worker or with other settings."""

    kind: type[TrainedWorker]

    def restart(
        self,
        kind: type[TrainedWorker],
        address: str,
        port: int,
        model: ModelConfig,
        group: TrainerConfig,
        *,
        share_prompts: bool,
        updates: int = UPDATES,
    ) -> None:
        """Build the model and its engine again, for so many updates."""
        self.kind, self.reads, self.model_config, self.group = kind, kind.reads, model, group
        self.directory = model.path or self.directory
        torch.manual_seed(0)
        self.build(address, port, updates)
        self.shares_prompts = self.shares_prompts and share_prompts

    def load_module(self) -> torch.nn.Module:
        """The module of `kind`."""
        return self.kind.load_module(self)

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, the whole of each, and the averages of them."""
        found = {name: tensor.float().numpy(force=True).copy() for name, tensor in self.engine.parameters("model")}
        with self.engine.averaged():
            averages = {
                f"average of {name}": tensor.float().numpy(force=True).copy()
                for name, tensor in self.engine.parameters("model")
            }
        return found | averages

    def optimized(self) -> dict[str, np.ndarray]:
        """Weights in float32 and moments, the whole of each, as DeepSpeed itself tells them; of SGD only weights."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        optimizer: Any = self.engine.engine.optimizer
        if link := getattr(optimizer, "_lazy_init_hp_params_optimizer_state", None):
            # DeepSpeed 0.19.8 does this in the first step, and leaves out all groups of parameters but the first.
            optimizer._hp_optimizer_states_linked = False
            link()
        keys = () if self.group.optimizer.name == "sgd" else ("exp_avg", "exp_avg_sq")
        found: dict[str, Any] = {}
        for name, parameter in self.engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if self.engine.shards.zero_stage == 0:
                found[f"master of {name}"] = parameter
                found |= {f"{key} of {name}": optimizer.state[parameter][key] for key in keys}
            else:
                found[f"master of {name}"] = safe_get_full_fp32_param(parameter)
                found |= {f"{key} of {name}": safe_get_full_optimizer_state(parameter, key) for key in keys}
        return {name: tensor.numpy(force=True).copy() for name, tensor in found.items()}

    def fill_disk(self, *, full: bool) -> None:
        """From now on, this rank's disk takes nothing of a checkpoint, or all again."""
        stored.create = _on_a_full_disk if full else own_files.create

    def hold_disk(self, until: Path) -> None:
        """From now on, this rank's disk takes a file of a checkpoint as soon as there is one of this name."""
        stored.create = partial(_on_a_slow_disk, until)

    def drawn(self) -> list[float]:
        """The next random numbers."""
        return torch.rand(4).tolist()


def _on_a_slow_disk(until: Path, path: Path) -> int:
    while not until.exists():
        time.sleep(0.01)
    return own_files.create(path)


def _on_a_full_disk(path: Path) -> int:
    path.touch()
    return os.open("/dev/full", os.O_WRONLY)


@dataclass(frozen=True, kw_only=True)
class Division:
    """One way to compute the same updates."""

    ranks: int = 1
    zero_stage: int = 0
    micro_batch_tokens: int = 8192
    logprob_chunk_tokens: int = 1024
    gradient_checkpointing: bool = False
    share_prompts: bool = True


@dataclass(frozen=True)
class Result:
    """What came of a division: metrics of each update, and weights before and after all of them."""

    metrics: list[dict[str, float]]
    initial: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """Updates of one kind of model."""

    kind: type[TrainedWorker]
    updates: Callable[[ActorGroup[Trainee], Any, Division], list[dict[str, float]]]
    """(group, a frozen reference, division) -> metrics of each update."""
    settings: tuple[tuple[str, Any], ...] = (("init", INIT),)
    """Of the model."""


@dataclass(frozen=True)
class Trainees:
    """Groups of one and of two ranks, and a frozen reference of other weights."""

    groups: dict[int, ActorGroup[Trainee]]
    reference: ActorGroup[ReferenceWorker]
    known: dict[tuple[Job, Division], Result] = field(default_factory=dict)

    def result(self, job: Job, division: Division) -> Result:
        """What comes of a job; each is computed only once."""
        if (job, division) not in self.known:
            group = self.groups[division.ranks]
            own = dict(job.settings) | {"gradient_checkpointing": division.gradient_checkpointing}
            model = ModelConfig.model_validate(own)
            changes = {
                name: getattr(division, name) for name in ("zero_stage", "micro_batch_tokens", "logprob_chunk_tokens")
            }
            address, port = group.gather([group.submit(0, Trainee.address)], "address")[0]
            settings = (job.kind, address, port, model, GROUP.model_copy(update=changes))
            group.call(Trainee.restart, *settings, share_prompts=division.share_prompts)
            initial = group.call(Trainee.weights)[0]
            metrics = [_shared(update) for update in job.updates(group, self.reference, division)]
            self.known[job, division] = Result(metrics, initial, group.call(Trainee.weights)[0])
        return self.known[job, division]


def _shared(update: dict[str, float]) -> dict[str, float]:
    """Metrics that do not say how the update was computed: its duration, and its tokens with shared prompts once."""
    return {name: value for name, value in update.items() if not name.startswith(("time/", "tokens/"))}


@contextmanager
def started_trainees(directory: Path) -> Iterator[Trainees]:
    """Processes for all jobs."""
    skeleton = str(write_skeleton(MODEL, directory / "model"))
    placement = placement_group([{"CPU": 1.0}])
    assert placement.wait(30)
    slot = Slot(placement=placement, bundle=0, cpus=0.1, gpus=0, threads=1)
    logs = str(directory)
    groups = {
        ranks: ActorGroup("policy", Trainee, [slot] * ranks, timeout_s=120, log_directory=logs) for ranks in (1, 2)
    }
    for group in groups.values():
        group.spawn(MODEL, skeleton, GROUP, 0)
    reference = ActorGroup("reference", ReferenceWorker, [slot], timeout_s=120, log_directory=logs)
    other = ModelConfig(init=INIT.model_copy(update={"seed": 5}))
    reference.spawn(other, skeleton, FrozenGroupConfig(timeout_s=120), 0)
    address, port = reference.gather([reference.submit(0, ReferenceWorker.address)], "address")[0]
    reference.call(ReferenceWorker.build, address, port)
    yield Trainees(groups, reference)
    for group in (*groups.values(), reference):
        group.shutdown()
    remove_placement_group(placement)


def scored_groups(sampled: Callable[[list[int], np.random.Generator], Episode] | None = None) -> list[ScoredGroup]:
    """Six prompts with four responses each; lengths 3 to 31 tokens, one group of equal rewards, some responses cut."""
    generator, sampled = np.random.default_rng(0), sampled or _rollout
    found = []
    for number in range(6):
        prompt = generator.integers(3, 90, size=2 + number).tolist()
        rollouts = [sampled(prompt, generator) for _ in range(4)]
        rewards = np.ones(4) if number == 3 else generator.normal(size=4)
        found.append(
            ScoredGroup(
                prompt=Prompt(index=number, token_ids=prompt, text="", row={}),
                rollouts=rollouts,
                infos=[RolloutInfo.of(rollout) for rollout in rollouts],
                scores=[Score(reward=float(reward), parts={}, status="ok") for reward in rewards],
            )
        )
    return found


def _rollout(prompt: list[int], generator: np.random.Generator) -> Episode:
    length = int(generator.integers(1, 25))
    response = generator.integers(3, 90, size=length).tolist()
    return episode(
        prompt,
        response,
        # Around the logprobs of a model that knows nothing (log 1/128), so that the clip cuts off some tokens.
        generator.normal(-4.85, 0.15, size=length),
        finish_reason="length" if length > 18 else "stop",
        status="truncated" if length > 18 else "ok",
    )


def two_turns(prompt: list[int], generator: np.random.Generator) -> Episode:
    """With 30 tokens of a tool in between, and a reward for the first turn."""
    lengths = generator.integers(1, 9, size=2)
    first, second = (generator.integers(3, 90, size=length).tolist() for length in lengths)
    logprobs = [generator.normal(-4.85, 0.15, size=length) for length in lengths]
    turns = [
        turn(prompt, first, logprobs[0], reward=float(generator.normal())),
        turn(generator.integers(3, 90, size=30).tolist(), second, logprobs[1]),
    ]
    return Episode(turns=turns, status="truncated" if lengths[1] > 6 else "ok", text="")


def preferences() -> list[list[Pair]]:
    """Seven pairs for each of two updates and one for the last, with margins; lengths 4 to 29 tokens."""
    generator = np.random.default_rng(2)

    def pair() -> Pair:
        prompt = generator.integers(3, 90, size=generator.integers(2, 10))
        chosen, rejected = (_answered(prompt, generator) for _ in range(2))
        return Pair(chosen=chosen, rejected=rejected, margin=float(generator.random()))

    return [[pair() for _ in range(count)] for count in (7, 7, 1)]


def judgements() -> list[list[Judged]]:
    """Nine judged responses for each update."""
    generator = np.random.default_rng(4)

    def judgement() -> Judged:
        prompt = generator.integers(3, 90, size=generator.integers(2, 10))
        return Judged(sequence=_answered(prompt, generator), desirable=bool(generator.random() < 0.4))

    return [[judgement() for _ in range(9)] for _ in range(UPDATES)]


def _answered(prompt: np.ndarray, generator: np.random.Generator) -> Sequence:
    response = generator.integers(3, 90, size=generator.integers(2, 21))
    tokens = np.concatenate([prompt, response])
    return Sequence(token_ids=tokens, action_mask=np.arange(len(tokens)) >= len(prompt))
