"""A checkpoint resumes with another number of ranks and another ZeRO stage: the same updates follow.

Real ranks with real DeepSpeed engines save after three updates and make three more; others load what they have saved
and make these, too.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import ModelConfig, OptimizerConfig, TrainerConfig, UserError
from actors.episodes import Sequence
from actors.files.parts import Entry
from actors.group import ActorGroup
from actors.train.critic import RewardModelWorker
from actors.train.engine import TrainingEngine
from actors.train.masters import masters, set_masters
from actors.train.policy import PolicyWorker
from actors.train.shards import Piece, Shards, pieces
from actors.train.trainer import TrainedWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints
from launch.run.checkpointer import RunCheckpointer
from launch.run.saves import Saves, load_best, resume
from tests.one_rank import SMALL, Net, alone, assert_equal, engine, train, weights
from tests.trainees import INIT, Trainee, UnevenWorker, started_trainees

__all__ = ["alone"]

NOBODY: Any = SimpleNamespace(uploads=None)
"""Storage does not fail here: nothing is told."""
SAVED, MORE = 3, 3
ADAMW = OptimizerConfig(lr=2e-3, weight_decay=0.01, schedule="cosine", warmup_updates=2, max_grad_norm=0.5)
LORA = {"rank": 3, "dropout": 0.0}
BUCKETS = {"zero_optimization": {"reduce_bucket_size": 1_000_000}}


def rows() -> list[Sequence]:
    """Seven sequences of 4 to 22 tokens."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(4, 23, size=7)
    return [Sequence(token_ids=generator.integers(3, 90, size=n), action_mask=np.arange(n) > 1) for n in lengths]


@dataclass(frozen=True)
class Case:
    """What is saved and loaded."""

    saved: Shards
    resumed: Shards
    kind: type[TrainedWorker] = PolicyWorker
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = ADAMW
    ema_decay: float | None = None


CASES = {
    "2 x ZeRO-2 -> 1 x ZeRO-0": Case(Shards(2, 2), Shards(1, 0), ema_decay=0.7),
    "1 x ZeRO-0 -> 2 x ZeRO-2, LoRA": Case(Shards(1, 0), Shards(2, 2), model={"lora": LORA}, ema_decay=0.7),
    "2 x ZeRO-3 -> 2 x ZeRO-1, a score head": Case(Shards(2, 3), Shards(2, 1), RewardModelWorker),
    "2 x ZeRO-1 -> 1 x ZeRO-3, LoRA": Case(Shards(2, 1), Shards(1, 3), model={"lora": LORA}),
    "2 x ZeRO-0 -> 2 x ZeRO-3, uneven": Case(Shards(2, 0), Shards(2, 3), UnevenWorker, ema_decay=0.7),
    "2 x ZeRO-3 -> 1 x ZeRO-3, uneven": Case(Shards(2, 3), Shards(1, 3), UnevenWorker, ema_decay=0.7),
    "2 x ZeRO-1 -> 2 x ZeRO-3, bf16": Case(Shards(2, 1), Shards(2, 3), model={"dtype": "bf16"}, ema_decay=0.7),
    "2 x ZeRO-3 -> 1 x ZeRO-2, bf16, sgd": Case(
        Shards(2, 3), Shards(1, 2), model={"dtype": "bf16"}, optimizer=OptimizerConfig(name="sgd", lr=0.5)
    ),
    "1 x ZeRO-0 -> 2 x ZeRO-0": Case(Shards(1, 0), Shards(2, 0), UnevenWorker, ema_decay=0.7),
}


@pytest.fixture(scope="module")
def groups(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, ActorGroup[Trainee]]]:
    """Processes of a group with one rank, and of one with two."""
    with started_trainees(tmp_path_factory.mktemp("trainees")) as started:
        yield started.groups


def start(group: ActorGroup[Trainee], case: Case, stage: int) -> None:
    """Build the model anew, with new weights."""
    address, port = group.gather([group.submit(0, Trainee.address)], "address")[0]
    settings = TrainerConfig(
        zero_stage=stage, optimizer=case.optimizer, ema_decay=case.ema_decay, timeout_s=120,
        deepspeed=BUCKETS if stage else {},
    )  # fmt: skip
    model = ModelConfig.model_validate({"init": INIT} | case.model)
    group.call(Trainee.restart, case.kind, address, port, model, settings, share_prompts=False, updates=9)


def learn(group: ActorGroup[Trainee], updates: int) -> list[tuple[float, float, float]]:
    """(loss, gradient norm, learning rate) of updates on the same rows, dealt to all ranks."""
    found, given = [], rows()
    tokens = sum(int(row.action_mask.sum()) for row in given)
    totals = Totals(tokens=tokens, sequences=len(given), trained_tokens=tokens)
    for _ in range(updates):
        plans = [([given[rank :: len(group)]], totals, sft_loss) for rank in range(len(group))]
        metrics = group.scatter(Trainee.learn, plans)[0]
        found.append((metrics["loss"], metrics["grad_norm"], metrics["learning_rate"]))
    return found


def state(group: ActorGroup[Trainee]) -> dict[str, np.ndarray]:
    """Weights, averages and moments."""
    return group.call(Trainee.weights)[0] | group.call(Trainee.optimized)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_same_updates_follow(name: str, groups: dict[int, ActorGroup[Trainee]], tmp_path: Path) -> None:
    """All that was saved is there, bit for bit; the next losses, gradient norms and rates are equal."""
    case = CASES[name]
    first, second = groups[case.saved.ranks], groups[case.resumed.ranks]
    start(first, case, case.saved.zero_stage)
    learn(first, SAVED)
    first.call(Trainee.save, tmp_path)
    saved = state(first)
    expected, after = learn(first, MORE), state(first)
    start(second, case, case.resumed.zero_stage)
    new = second.call(Trainee.weights)[0]
    rates = second.call(Trainee.load, tmp_path, case.saved)
    assert rates == [(expected[0][2], expected[0][2])] * case.resumed.ranks
    loaded = state(second)
    assert loaded.keys() == saved.keys()
    for each, values in saved.items():
        np.testing.assert_array_equal(loaded[each], values, err_msg=each)
    assert any(not np.array_equal(values, saved[each]) for each, values in new.items()), "nothing was to be loaded"
    # Adam makes whole steps of bf16's rounding errors.
    rounding = 2e-3 if case.model.get("dtype") == "bf16" else 1e-6
    np.testing.assert_allclose(learn(second, MORE), expected, rtol=0, atol=rounding)
    assert abs(expected[0][0] - expected[-1][0]) > 10 * rounding, "nothing has changed"
    resumed = state(second)
    for each, values in after.items():
        np.testing.assert_allclose(resumed[each], values, rtol=0, atol=2 * rounding, err_msg=each)


def test_other_ranks_draw_their_own_numbers_and_the_same_at_every_start(
    groups: dict[int, ActorGroup[Trainee]], tmp_path: Path
) -> None:
    """Ranks that there were go on with theirs; new ones never with those that they had after other updates."""
    case = Case(Shards(1, 0), Shards(2, 1), UnevenWorker)
    start(groups[1], case, 0)
    own = []
    for name in ("first", "second"):
        learn(groups[1], 1)
        groups[1].call(Trainee.save, tmp_path / name)
        own += groups[1].call(Trainee.drawn)
    found = {}
    for again, name in product((False, True), ("first", "second")):
        start(groups[2], case, 1)
        groups[2].call(Trainee.load, tmp_path / name, case.saved)
        found[name, again] = groups[2].call(Trainee.drawn)
    assert [found[name, False] for name in ("first", "second")] == [found[name, True] for name in ("first", "second")]
    assert [found[name, False][0] for name in ("first", "second")] == own
    assert len({tuple(numbers) for two in found.values() for numbers in two}) == 4


def job(output: Path, shards: Shards) -> RunConfig:
    policy = {"ranks": shards.ranks, "zero_stage": shards.zero_stage, "optimizer": ADAMW.model_dump()}
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 9, "best_by": "eval/loss"},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "policy": policy,
            "run": {"output": str(output), "name": "first"},
        }
    )


def resumed(config: RunConfig, group: ActorGroup[Trainee]) -> list[str]:
    """What a run says that resumes with this group."""
    said: list[str] = []
    reporter: Any = SimpleNamespace(phase=said.append, note=said.append, uploads=None)
    loop: Any = SimpleNamespace(parts={"best": StandInForTheBest()})
    resume(config, Saves({"policy": group}), loop, reporter)
    return said


class StandInForTheBest:
    """Says that the checkpoint is the best one."""

    def save(self, directory: Path) -> Entry:
        return {"metric": "eval/loss", "value": 1.0}

    def load(self, directory: Path, entry: Entry) -> None:
        assert entry["value"] == 1.0


@dataclass(frozen=True)
class Made:
    """Step 3 of a run with 2 ranks and ZeRO-2."""

    output: Path
    """Of the run `first`."""
    expected: list[tuple[float, float, float]]
    """The next update."""


@pytest.fixture(scope="module")
def made(groups: dict[int, ActorGroup[Trainee]], tmp_path_factory: pytest.TempPathFactory) -> Made:
    output, case = tmp_path_factory.mktemp("run"), Case(Shards(2, 2), Shards(1, 0), UnevenWorker)
    start(groups[2], case, 2)
    learn(groups[2], SAVED)
    config = job(output, case.saved)
    Checkpoints(config).prepare(Checkpoints(config).latest())
    saves = Saves({"policy": groups[2]})
    saves.add("best", StandInForTheBest())
    saving = RunCheckpointer(config, saves, set(), NOBODY)
    saving.save(SAVED, last=True, best=True)
    saving.keep()
    return Made(output, learn(groups[2], 1))


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (Shards(1, 0), "checkpoint step-3 was written by 2 policy ranks with ZeRO-2: resuming on 1 with ZeRO-0"),
        (Shards(2, 1), "checkpoint step-3 was written by 2 policy ranks with ZeRO-2: resuming on 2 with ZeRO-1"),
        (Shards(2, 2), None),
    ],
)
def test_a_run_says_that_its_ranks_are_others(
    now: Shards, line: str | None, made: Made, groups: dict[int, ActorGroup[Trainee]]
) -> None:
    group = groups[now.ranks]
    start(group, Case(now, now, UnevenWorker), now.zero_stage)
    said = resumed(job(made.output, now), group)
    assert [each for each in said if "was written by" in each] == ([line] if line else [])
    np.testing.assert_allclose(learn(group, 1), made.expected, rtol=0, atol=1e-6)


def test_the_best_checkpoint_may_be_of_an_earlier_start(made: Made, groups: dict[int, ActorGroup[Trainee]]) -> None:
    """With other ranks than those that export it."""
    now = Shards(1, 3)
    start(groups[1], Case(now, now, UnevenWorker), 3)
    assert load_best(job(made.output, now), {"policy": groups[1]}) == SAVED
    np.testing.assert_allclose(learn(groups[1], 1), made.expected, rtol=0, atol=1e-6)


SHARD = "policy/state/zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_shard_of_another_rank_is_named(
    damage: str, made: Made, groups: dict[int, ActorGroup[Trainee]], tmp_path: Path
) -> None:
    """Also where the rank that wrote it is no more."""
    shutil.copytree(made.output / "first", tmp_path / "first")
    directory = tmp_path / "first/checkpoints/step-3"
    if damage == "missing":
        (directory / SHARD).unlink()
    else:
        content = bytearray((directory / SHARD).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / SHARD).write_bytes(content)
    with pytest.raises(UserError) as caught:
        resumed(job(tmp_path, Shards(1, 0)), groups[1])
    (line,) = caught.value.problems
    expected = {
        "missing": f"is damaged, {SHARD} is missing",
        "flipped": f"{SHARD} is not what was saved: its SHA-256 is",
    }
    assert expected[damage] in line


# Engines of one rank, in this process.


def saved_by(stage: int, directory: Path, **settings: Any) -> TrainingEngine:
    trained = engine(stage, optimizer=SMALL, **settings)
    for update in range(SAVED):
        train(trained, update)
    trained.save(directory)
    return trained


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("saved", "resumed"), [(3, 0), (0, 3)])
def test_zero_3_may_have_several_flat_tensors(saved: int, resumed: int, tmp_path: Path) -> None:
    """Of large models: `sub_group_size` elements each, and here 20."""
    several = {"zero_optimization": {"sub_group_size": 20}}
    options = {stage: {"deepspeed": several} if stage == 3 else {} for stage in (saved, resumed)}
    first = saved_by(saved, tmp_path, ema_decay=0.5, **options[saved])
    second = engine(resumed, optimizer=SMALL, ema_decay=0.5, **options[resumed])
    assert max(len(masters(each.engine.optimizer)) for each in (first, second)) == 4
    second.load(tmp_path, first.shards)
    assert (second.engine.global_steps, second.updates) == (SAVED, SAVED)
    for each in (first, second):
        train(each, SAVED)
    assert_equal(weights(second), weights(first), atol=1e-6)
    with first.averaged(), second.averaged():
        assert_equal(weights(second), weights(first), atol=1e-6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("resumed", [2, 3])
def test_state_goes_to_host_memory(resumed: int, tmp_path: Path) -> None:
    """Where the optimizer is offloaded now."""
    first = saved_by(1, tmp_path)
    second = engine(resumed, optimizer=SMALL, offload_optimizer=True)
    second.load(tmp_path, first.shards)
    for each in (first, second):
        train(each, SAVED)
    assert_equal(weights(second), weights(first), atol=1e-6)


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_before_the_first_update_has_no_moments(tmp_path: Path) -> None:
    first, second = engine(1, optimizer=SMALL), engine(0, optimizer=SMALL)
    with torch.no_grad():
        set_masters(first.engine.optimizer, [each + 0.1 for each in masters(first.engine.optimizer)])
    first.save(tmp_path)
    second.load(tmp_path, first.shards)
    for each in (first, second):
        train(each, 0)
    assert_equal(weights(second), weights(first), atol=1e-6)


@pytest.mark.usefixtures("alone")
def test_what_has_no_gradient_has_no_moments(tmp_path: Path) -> None:
    """Without ZeRO; with it, zeros. Other numbers of updates cannot be told apart there."""
    first = saved_by(0, tmp_path / "all")
    state: Any = first.engine.optimizer.state  # type: ignore[union-attr]
    bias = first.module.get_parameter("model.2.bias")
    kept = state.pop(bias)
    first.save(tmp_path / "none")
    second = engine(1, optimizer=SMALL)
    second.load(tmp_path / "none", first.shards)
    found: Any = second.engine.optimizer.optimizer.state  # type: ignore[union-attr]
    moments = [each["exp_avg"] for each in found.values()]
    assert [bool(each.any()) for each in moments] == [True, True]
    assert moments[1][:5].all() and not moments[1][5:].any()
    state[bias] = kept | {"step": kept["step"] - 1}
    first.save(tmp_path / "policy")
    with pytest.raises(UserError) as caught:
        engine(1, optimizer=SMALL).load(tmp_path / "policy", first.shards)
    assert caught.value.problems == (
        f"policy.zero_stage: must be 0 to resume from {tmp_path / 'policy'}, whose parameters have had 2 to 3 updates: "
        "ZeRO has one number for all",
    )


class Mark:
    """Unpickled without care, it makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_files_of_other_ranks_are_read_as_data_only(stage: int, tmp_path: Path) -> None:
    first = saved_by(stage, tmp_path / "good", ema_decay=0.5)
    names = {path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*.pt")}
    assert len(names) == (2 if stage == 0 else 3)
    for number, name in enumerate(names):
        bad = tmp_path / f"bad-{number}"
        shutil.copytree(tmp_path / "good", bad)
        value, mark = torch.load(bad / name, weights_only=False), Mark(tmp_path / "mark")
        torch.save([*value, mark] if isinstance(value, list) else value | {"further": mark}, bad / name)
        with pytest.raises(UserError) as caught:
            engine(2, optimizer=SMALL, ema_decay=0.5).load(bad, first.shards)
        line = f"checkpoint.resume: {bad / name} holds more than data: posix.mkdir; it was not loaded"
        assert caught.value.problems == (line,)
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    for stage in (0, 1):
        saved_by(stage, tmp_path / str(stage))

    def other(change: Callable[[torch.nn.Module], None], stage: int) -> str:
        module = Net()
        change(module)
        target = TrainingEngine(module, TrainerConfig(zero_stage=2, deepspeed=BUCKETS), "fp32", 9)
        with pytest.raises(ValueError, match="the checkpoint is of another model") as caught:
            target.load(tmp_path / str(stage), Shards(1, stage))
        return str(caught.value).partition(": ")[2]

    def wider(net: torch.nn.Module) -> None:
        net.model[2] = torch.nn.Linear(5, 4)  # type: ignore[index, operator]

    def longer(net: torch.nn.Module) -> None:
        net.model.append(torch.nn.Linear(3, 3))  # type: ignore[union-attr, operator]

    def shorter(net: torch.nn.Module) -> None:
        del net.model[2]  # type: ignore[arg-type, operator]

    for stage in (0, 1):
        assert other(wider, stage) == "its model.2.weight is [3, 5], not [4, 5]"
        assert other(longer, stage) == "it lacks model.3.weight, model.3.bias"
        assert other(shorter, stage) == "it has model.2.weight, model.2.bias"


# Where elements are, against tensors that are divided as DeepSpeed does.


def divided(values: list[list[torch.Tensor]], shards: Shards, sub_group: int) -> list[list[torch.Tensor]]:
    """Flat tensors of each rank; ZeRO-3's of at most so many parameters."""
    if shards.zero_stage == 0:
        return [[each for group in values for each in group]]
    ranks: list[list[torch.Tensor]] = [[] for _ in range(shards.ranks)]
    for group in values:
        if shards.zero_stage < 3:
            whole = torch.cat(group)
            whole = torch.cat([whole, whole.new_full((-len(whole) % (2 * shards.ranks),), -1)])
            for rank, share in enumerate(whole.chunk(shards.ranks)):
                ranks[rank].append(share)
            continue
        for first in range(0, len(group), sub_group):
            part = group[first : first + sub_group]
            padded = [torch.cat([each, each.new_full((-len(each) % shards.ranks,), -1)]) for each in part]
            for rank in range(shards.ranks):
                ranks[rank].append(torch.cat([each.chunk(shards.ranks)[rank] for each in padded]))
    return ranks


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_pieces_are_all_of_every_parameter(stage: int) -> None:
    generator = np.random.default_rng(stage)
    for _ in range(200):
        shards, sub_group = Shards(int(generator.integers(1, 6)), stage), int(generator.integers(1, 4))
        sizes = [generator.integers(1, 12, size=generator.integers(1, 6)).tolist() for _ in range(2)]
        numbers = iter(torch.arange(sum(map(sum, sizes))).split([size for group in sizes for size in group]))
        values = [[next(numbers) for _ in group] for group in sizes]
        flats = divided(values, shards, sub_group)
        found = pieces(shards, [len(flat) for flat in flats[0]], sizes)
        for parts, expected in zip(found, [each for group in values for each in group], strict=True):
            again = torch.full_like(expected, -2)
            for part in parts:
                again[part.start : part.start + part.count] = flats[part.rank][part.flat][
                    part.offset : part.offset + part.count
                ]
            assert again.tolist() == expected.tolist()


@pytest.mark.parametrize(("stage", "sizes"), [(1, [3]), (3, [3]), (3, []), (1, []), (0, [3])])
def test_too_little_room_is_no_layout(stage: int, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="no room"):
        pieces(Shards(2, stage), sizes, [[4, 3]])


def test_a_piece_is_where_its_example_says() -> None:
    assert pieces(Shards(2, 3), [18, 3], [[30], [5]])[0][1] == Piece(1, 0, 0, 15, 15)
    assert pieces(Shards(2, 1), [24, 4], [[30, 18], [5]])[0] == [Piece(0, 0, 0, 0, 24), Piece(1, 0, 0, 24, 6)]
