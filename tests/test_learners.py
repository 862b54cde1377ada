"""Who is brought back when ranks are lost, from which state, and what is learned again; groups that are a script."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.group import GroupError
from actors.group_errors import DataLost, RankLost
from algorithms.rl.recovery import Learned, LearnedSteps
from launch.run import learners as learners_module
from launch.run.keepers import NotKept
from launch.run.learners import Learners
from launch.tracking.events import Events, read_events
from launch.tracking.lost_time import LostTime

LOST = GroupError("policy[0].update: Connection closed by peer")


class FakeCopies:
    """They are whole at once, where they may be; `due` says of which steps one is wanted."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.due_at, self.asked = log, set[int](), list[tuple[int, float, bool]]()
        self.step: int | None = None
        self.lost, self.late, self.closed = False, None, False

    def due(self, step: int, again_s: float, soon: bool) -> bool:
        self.asked.append((step, again_s, soon))
        return step in self.due_at

    def begin(self, step: int) -> None:
        self.step = step

    def finish(self, within_s: float) -> None:
        self.step = self.late or self.step

    def load(self) -> None:
        if self.lost:
            raise NotKept("its keeper is lost")
        self.log.append(f"load copy {self.step}")

    def close(self) -> None:
        self.closed = True


class FakeGroup:
    """A group of two ranks, of which some are dead; `log` is what all groups of a run were told."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.dead: set[int] = set()
        self.fresh: set[int] = set()
        self.generations = [0, 0]
        self.fails: list[GroupError] = []

    def __len__(self) -> int:
        return 2

    def pulses(self, within_s: float) -> list[Any]:
        return [
            RankLost(f"{self.name}[{rank}] died", self.name, rank) if rank in self.dead else None for rank in (0, 1)
        ]

    def is_fresh(self, rank: int) -> bool:
        return rank in self.fresh

    def replace(self, rank: int) -> None:
        self.dead.discard(rank)
        self.generations[rank] += 1
        self.log.append(f"replace {self.name}[{rank}]")

    def gather(self, refs: list[str], what: str) -> list[None]:
        if self.fails:
            raise self.fails.pop(0)
        self.log.append(f"{what} {refs[0]}")
        return [None]

    def call(self, method: Callable[..., object], *arguments: Any) -> list[None]:
        self.log.append(f"{method.__name__} {self.name} {arguments[0].parent.name}")
        return [None]


class Made:
    """Learners over such groups; `redo` says what is learned again."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, max_restarts: int = 3, **options: Any) -> None:
        monkeypatch.setattr(learners_module, "_ECHO_S", 0.0)
        self.log: list[str] = []
        names = ("rollout", "policy", "critic", "reference", "reward_0")
        self.groups = {name: FakeGroup(name, self.log) for name in names}
        self.kl = SimpleNamespace(coef=0.5, save=lambda _: {"coef": self.kl.coef}, load=self._load)
        roster: Any = _Roster(self.groups)
        roster.once_more = [lambda: self.log.append("prepare")]
        trained = {name: self.groups[name] for name in ("policy", "critic")}
        saves: Any = SimpleNamespace(groups=trained)
        self.copies: Any = FakeCopies(self.log)
        self.checkpointer: Any = SimpleNamespace(kept=None, in_flight=False, finish=lambda _: None)
        starts: Any = {name: lambda group: [group.name] for name in names}
        self.events = Events(directory)
        now: Any = SimpleNamespace(events=self.events, lost=LostTime())
        self.directory = directory
        config: Any = SimpleNamespace(run=SimpleNamespace(max_restarts=max_restarts), directory=directory)
        given = config, roster, now, saves, self.checkpointer, starts, self.copies, self.log.append
        self.learners = Learners(*given, **options)
        kl: Any = self.kl
        self.learners.begin(None, kl)

    def _load(self, _: Path, entry: dict[str, Any]) -> None:
        self.kl.coef = entry["coef"]

    def redo(self, since: int) -> int | None:
        self.log.append(f"again from {since} with {self.kl.coef}")
        return 2


class _Roster(dict[str, FakeGroup]):
    once_more: list[Callable[[], object]]


def test_frozen_groups_come_back_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch)
    made.groups["reward_0"].dead = {1}
    assert made.learners.mend(RankLost("reward_0[1].scores: the process died", "reward_0", 1), made.redo)
    assert made.log == ["replace reward_0[0]", "replace reward_0[1]", "build reward_0"]
    [*_, over] = read_events(tmp_path / "events.jsonl")
    assert (over["who"], over["did"], over["redone_steps"]) == ("reward_0[1]", "rebuilt", 0)


def test_ranks_that_die_with_ray_are_not_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt ends, for Ray, and they are no faults of their own."""
    made = Made(tmp_path, monkeypatch, excuse=lambda: True)
    made.groups["policy"].dead = {0}
    assert not made.learners.mend(RankLost("policy[0].update: the process died", "policy", 0), made.redo)
    assert made.log == [] and read_events(tmp_path / "events.jsonl") == []


BUILT = ["build policy", "build critic", "build reference", "prepare", "again from 0 with 0.5"]


@pytest.mark.parametrize(
    "error", [DataLost("policy[0].update: an argument is gone"), RankLost("x", "rollout", 0), LOST]
)
def test_what_learns_goes_back_with_a_frozen_group_whose_loss_something_else_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: GroupError
) -> None:
    """It may have learned a part of the step, as the critic does while the policy waits for what the reference read."""
    made = Made(tmp_path, monkeypatch)
    made.groups["reference"].dead = {0}
    assert made.learners.mend(error, made.redo)
    assert made.log[-5:] == BUILT and len(made.log) == 6 + 5


def test_what_learns_is_not_forgotten_where_a_frozen_group_is_lost_while_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks are new by then, and alive, and have no model."""
    made = Made(tmp_path, monkeypatch)
    made.groups["policy"].dead = made.groups["reference"].dead = {0}
    made.groups["reference"].fails = [RankLost("reference[1].build: the process died", "reference", 1)]
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-5:] == BUILT


def test_groups_that_learn_go_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the newest state, or to what they are built as; with what they have moved in the driver."""
    made = Made(tmp_path, monkeypatch)
    made.groups["critic"].dead, made.groups["policy"].fresh, made.kl.coef = {0}, {1}, 0.75
    assert made.learners.mend(LOST, made.redo)
    started = ["replace policy[0]", "replace critic[0]", "replace critic[1]", "build policy", "build critic", "prepare"]
    assert made.log == [*started, "again from 0 with 0.5"]
    made.log.clear()
    made.kl.coef = 0.25
    (tmp_path / "step-4").mkdir()
    made.checkpointer.kept = 4, tmp_path / "step-4"
    assert made.learners.note(4, 1.0) == 4
    made.kl.coef = 0.125
    assert made.learners.note(5, 1.0) == 4
    made.groups["policy"].dead, made.groups["reference"].dead = {0}, {1}
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-5:] == ["build reference", "prepare", "load policy step-4", "load critic step-4",
                             "again from 4 with 0.25"]  # fmt: skip
    assert made.events.open() == []


def test_a_checkpoint_that_is_whole_later_is_gone_back_to_with_what_was_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written beside the steps after it; one that a loss finds being written is waited for."""
    made = Made(tmp_path, monkeypatch)
    for step, coef in ((1, 0.1), (2, 0.2), (3, 0.3)):
        made.kl.coef, made.checkpointer.in_flight = coef, step >= 2
        assert made.learners.note(step, 4.0) == 0
    assert made.copies.asked == [(1, 4.0, False), (2, 8.0, True), (3, 12.0, True)]
    (tmp_path / "step-2").mkdir()
    waited: list[float] = []

    def finish(within_s: float) -> None:
        waited.append(within_s)
        made.checkpointer.kept = 2, tmp_path / "step-2"

    made.checkpointer.finish = finish
    made.groups["reference"].dead = {0}
    lost = RankLost("reference[0].logprobs: the process died", "reference", 0)
    assert made.learners.mend(lost, made.redo) and not waited, "who is frozen has no part in it"
    made.groups["policy"].dead = {0}
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-3:] == ["load policy step-2", "load critic step-2", "again from 2 with 0.2"] and len(waited) == 1
    made.checkpointer.in_flight = False
    assert made.learners.note(4, 4.0) == 2 and made.copies.asked[-1] == (4, 8.0, False), "since step 2"


def test_the_newest_of_copy_and_checkpoint_is_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was in it; what came before is kept until there is a checkpoint, or no room for it."""
    made = Made(tmp_path, monkeypatch)
    made.copies.due_at = {2, 5}
    for step, coef in ((1, 0.1), (2, 0.2), (3, 0.3)):
        made.kl.coef = coef
        assert made.learners.note(step, 4.0) == 0, "the copy may be lost"
    assert made.copies.asked == [(1, 4.0, False), (2, 8.0, False), (3, 4.0, False)]
    made.groups["policy"].dead = {0}
    assert made.learners.mend(LOST, made.redo)
    back = "back to step 2, of which there was a copy in memory"
    assert made.log[-4:] == ["prepare", "load copy 2", back, "again from 2 with 0.2"]
    (tmp_path / "step-3").mkdir()
    made.checkpointer.kept = 3, tmp_path / "step-3"
    assert made.learners.note(4, 1.0) == 3
    made.groups["policy"].dead = {0}
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-3:] == ["load policy step-3", "load critic step-3", "again from 3 with 0.3"]
    assert made.learners.note(5, math.inf) == 5, "there is no room for what comes before the copy"
    assert made.learners.note(6, 1.0) == 3
    made.learners.close()
    assert made.copies.closed


def test_a_copy_on_its_way_when_a_rank_is_lost_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch)
    for step in (1, 2, 3):
        made.learners.note(step, 1.0)
    made.copies.late, made.groups["policy"].dead = 2, {0}
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-3] == "load copy 2" and made.log[-1] == "again from 2 with 0.5"


def test_without_the_copy_an_older_checkpoint_is_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where who kept it is lost at the same time."""
    made = Made(tmp_path, monkeypatch)
    made.checkpointer.kept = 1, tmp_path / "step-1"
    (tmp_path / "step-1").mkdir()
    made.copies.due_at, made.copies.lost = {3}, True
    for step in (1, 2, 3, 4):
        made.learners.note(step, 1.0)
    made.groups["policy"].dead = {0}
    assert made.learners.mend(LOST, made.redo)
    assert made.log[-4:] == [
        "the copy in memory of step 3 is lost (its keeper is lost): back to step 1",
        "load policy step-1", "load critic step-1", "again from 1 with 0.5",
    ]  # fmt: skip


@pytest.mark.parametrize("room", [True, False])
def test_a_group_whose_node_is_lost_moves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """Others stay where they are; without room it is not mended, and waits once."""
    made = Made(tmp_path, monkeypatch)

    def move(group: FakeGroup) -> bool:
        made.log.append(f"move {group.name}")
        group.fresh = {0, 1}
        return room

    elsewhere: Any = SimpleNamespace(must_move=lambda name: name == "policy", move=move)
    made.learners._elsewhere = elsewhere
    made.groups["policy"].dead = {0}
    assert made.learners.mend(LOST, made.redo) == room
    moved = ["replace critic[0]", "replace critic[1]", "build policy", "build critic", "prepare"]
    assert made.log == ["move policy", *([*moved, "again from 0 with 0.5"] if room else [])]


def test_what_is_no_loss_is_not_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the loss of an engine, which is brought back elsewhere."""
    made = Made(tmp_path, monkeypatch)
    made.groups["rollout"].dead = {0}
    assert not made.learners.mend(GroupError("policy[0].update: ValueError: NaN"), made.redo)
    assert not made.learners.mend(RankLost("gone", "rollout", 0), made.redo)
    assert made.log == [] and made.events.open() == []


def test_a_loss_while_groups_are_brought_back_is_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, monkeypatch)
    policy = made.groups["policy"]
    policy.dead, policy.fails = {0}, [RankLost("policy[1].build: died", "policy", 1)]
    assert made.learners.mend(LOST, made.redo)
    assert made.log.count("build policy") == 1 and policy.generations == [2, 2]
    lines = read_events(tmp_path / "events.jsonl")
    assert {line["who"] for line in lines if line["event"] == "recovered"} == {"policy[0]", "policy[1]"}
    assert made.events.open() == [], "both are over"


def test_too_many_in_a_row_end_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is done ends the row; faults stay open, as the next attempt goes on."""
    made = Made(tmp_path, monkeypatch, max_restarts=2)
    for step in range(1, 4):
        for _ in range(2):
            made.groups["critic"].dead = {1}
            assert made.learners.mend(LOST, made.redo)
        made.learners.note(step, 0.0)
    found = []
    for _ in range(3):
        made.groups["critic"].dead = {1}
        found.append(made.learners.mend(LOST, made.redo))
    assert found == [True, True, False]


@pytest.mark.parametrize("what", ["the state is gone", "samples are gone"])
def test_what_cannot_be_learned_again_is_not_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    made = Made(tmp_path, monkeypatch)
    made.checkpointer.kept = 4, tmp_path / "step-4"
    if what == "samples are gone":
        (tmp_path / "step-4").mkdir()
    made.learners.note(4, 1.0)
    made.groups["policy"].dead = {0}
    assert not made.learners.mend(LOST, lambda _: None)
    assert len(made.events.open()) == 1


def test_steps_are_kept_as_far_as_there_is_room() -> None:
    """And until their state is kept; what is not whole cannot be learned again."""

    def learned(step: int) -> Learned:
        group: Any = SimpleNamespace(infos=[SimpleNamespace(tokens=10)] * 2)
        return Learned(step=step, version=step - 1, groups=[group])

    steps = LearnedSteps(most_bytes=3 * learned(1).bytes)
    assert steps.after(0) == [] and not steps.is_full
    for step in (1, 2, 3):
        steps.add(learned(step))
    steps.followed(3)
    assert [(each.step, each.followed) for each in steps.after(1) or []] == [(2, False), (3, True)]
    assert steps.is_full
    steps.add(learned(4))
    assert steps.after(0) is None and [each.step for each in steps.after(1) or []] == [2, 3, 4]
    steps.drop(3)
    assert [each.step for each in steps.after(3) or []] == [4] and steps.after(2) is None
    steps.drop(4)
    assert steps.after(4) == [] and not steps.is_full
