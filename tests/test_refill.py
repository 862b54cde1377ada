"""Groups that teach nothing are replaced while others are generated, and reward models score beside; no Ray."""

from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.group import GroupError
from algorithms.rl import reward_models
from algorithms.rl.metrics import left_out_rows
from algorithms.rl.reward_models import BesideRollouts, RewardModelGroup, Scorers
from algorithms.rollouts.failures import Failures
from algorithms.rollouts.groups import ScoredGroup
from algorithms.rollouts.lane import Lane
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from tests.fake_engines import After, FakeEngines, FakePool
from tests.fake_ranks import FakeRanks
from tests.test_deals import GROUPS, PROMPTS, SAMPLES, _formula, split_fake
from tests.test_rollouts import OK, PAIR, prompts, rows

LIMITS = Limits(silence_s=30.0, max_failed=0.25)


def refilled(
    engines: FakeEngines, teaches: Any, pool: Any = None, most_drawn: int = 10, models: Any = None
) -> Rollouts:
    def judge(group: ScoredGroup) -> ScoredGroup | None:
        return group if teaches(group.prompt.index - 100) else None

    return Rollouts(
        engines, pool, prompts(), PAIR, LIMITS, groups_per_step=4, judge=judge, most_drawn=most_drawn,
        models=models, clock=engines.monotonic,
    )  # fmt: skip


def test_a_group_that_teaches_nothing_is_replaced_at_once() -> None:
    """Others still run: there are no rounds. It counts among the samples that may fail, and is told of."""
    engines = FakeEngines(
        After(1, {1: OK}), After(1, {4: OK}), After(1, {5: OK}), After(1, {0: OK, 2: OK}), After(1, {3: OK})
    )
    rollouts = refilled(engines, lambda row: row not in (1, 4))
    groups = rollouts.take(4, 0, seed=3)
    assert rows(groups) == [0, 2, 3, 5]
    assert [ids for _, ids, _ in engines.starts[3:]] == [[4], [5]], "each as soon as one was dropped"
    discards = rollouts.report()[1]
    assert discards.alike == 2
    assert left_out_rows(discards) == {"alike": ["101", "104"]}, "that it is not trained on is said of each by name"
    assert rollouts.training.samples_asked == 12
    rollouts.close()


def test_a_step_that_finds_too_few_gives_what_there_is() -> None:
    """Twice as many as it has asked for were sampled; the next step may sample as many again."""
    ends = (dict.fromkeys(range(4), OK), dict.fromkeys(range(4, 7), OK), {7: OK})
    engines = FakeEngines(*(After(1, each) for each in ends))
    rollouts = refilled(engines, lambda row: row in (1, 6) or row >= 8, most_drawn=2)
    assert rows(rollouts.take(4, 0, seed=3)) == [1, 6]
    assert sum(len(ids) for _, ids, _ in engines.starts) == 8
    engines.script.append(After(1, dict.fromkeys(range(8, 12), OK)))
    assert rows(rollouts.take(4, 0, seed=4)) == [8, 9, 10, 11]
    assert not engines.on, "what the step before did not get is not made now, and left running beside training"
    rollouts.close()


@pytest.mark.parametrize("ahead", [0, 8])
def test_what_a_step_may_sample_is_not_saved_up(ahead: int) -> None:
    """Where nothing teaches any more, after many steps in which all did, a step samples what it may and no more."""
    lane = Lane(
        prompts(), PAIR, Failures(0.0), ahead=ahead, groups_per_step=4, most_drawn=3,
        judge=lambda group: group if group.prompt.index < 180 else None,
    )  # fmt: skip
    numbers, started, took = count(), 0, 4
    while took == 4:
        lane.ask(4, None)
        started = 0
        while not lane.can_give(4):
            for drawn in lane.draw():
                lane.accept(next(numbers), ScoredGroup(prompt=drawn.prompt, rollouts=None, infos=[], scores=[]))  # type: ignore[arg-type]
                started += 1
        took = len(lane.take(4))
    assert 12 <= started <= 3 * (4 + ahead) and lane.taken == 80


def test_where_nothing_teaches_there_is_nothing() -> None:
    engines = FakeEngines(After(1, dict.fromkeys(range(4), OK)))
    rollouts = refilled(engines, lambda row: False, most_drawn=1)
    assert rollouts.take(4, 0, seed=3) == []
    rollouts.close()


class FakeModels:
    """Adds 1000 to what is there, two groups at a time, in the order in which they came."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, ScoredGroup]] = []
        self.lock: Callable[[], bool] = lambda: False
        """Whether the one of the rollouts is held."""
        self.locked: list[bool] = []
        """When models got something."""

    def submit(self, number: int, group: ScoredGroup) -> None:
        assert not np.isnan(group.rewards).any(), "functions have scored it"
        self.waiting.append((number, group))

    def send(self) -> None:
        self.locked.append(self.lock())

    def refs(self) -> list[Any]:
        return [1] if self.waiting else []

    def ready(self) -> list[tuple[int, ScoredGroup]]:
        found, self.waiting = self.waiting[:2], self.waiting[2:]
        return found


def test_models_have_groups_while_others_are_generated() -> None:
    engines = FakeEngines(After(1, {0: OK, 1: OK, 2: OK}), After(1, {3: OK}), After(0), After(0), After(0))
    models = FakeModels()
    rollouts = refilled(engines, lambda row: True, FakePool(engines), models=models)
    models.lock = rollouts._changed._is_owned  # type: ignore[attr-defined]
    assert rows(rollouts.take(4, 0, seed=3)) == [0, 1, 2, 3]
    assert not models.waiting and models.locked and not any(models.locked), "engines that split are waited for"
    rollouts.close()


def test_models_score_what_came_while_they_scored_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real division and scoring, by ranks that are threads: every group is scored once, as it is in one step."""

    def wait(refs: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref.done()], [ref for ref in refs if not ref.done()]

    monkeypatch.setattr(reward_models, "ray", SimpleNamespace(wait=wait))
    ranks: Any = FakeRanks(2, _formula(1))
    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    scorers = Scorers(models=[model], roster={"model": ranks}, split=split_fake)
    whole = scorers.score(GROUPS)
    beside, found = BesideRollouts(scorers), dict[int, ScoredGroup]()
    batches = []
    for number, group in enumerate(GROUPS):
        beside.submit(number, group)
        if number % 3 == 0:
            beside.send()
            done = beside.ready()
            batches.append(len(done))
            found |= dict(done)
    while len(found) < PROMPTS:
        beside.send()
        for ref in beside.refs():
            ref.result(60)
        done = beside.ready()
        batches.append(len(done))
        found |= dict(done)
    assert beside.refs() == [] and beside.ready() == []
    assert sorted(found) == list(range(PROMPTS)) and max(batches) > 1
    for number, group in enumerate(whole):
        assert [score.reward for score in found[number].scores] == pytest.approx([each.reward for each in group.scores])
    assert len(whole[0].scores) == SAMPLES


def test_what_lost_ranks_were_to_score_is_scored_by_those_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are lost before they get it or after; each group once, with what has come meanwhile."""
    monkeypatch.setattr(reward_models, "ray", SimpleNamespace(wait=lambda refs, **_: (refs, [])))
    lost = GroupError("model[0].scores: the process died")
    roster: dict[str, Any] = {}

    def dies(*_: Any, **__: Any) -> Any:
        raise lost

    def new_ranks(dying: str = "") -> None:
        roster["model"] = FakeRanks(1, _formula(1))
        if dying:
            setattr(roster["model"], dying, dies)

    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    scorers = Scorers(models=[model], roster=roster, split=split_fake)
    beside = BesideRollouts(scorers)
    beside.submit(0, GROUPS[0])
    new_ranks("submit")
    with pytest.raises(GroupError, match="the process died"):
        beside.send()
    beside.submit(1, GROUPS[1])
    new_ranks("gather")
    beside.send()
    beside.submit(2, GROUPS[2])
    with pytest.raises(GroupError, match="the process died"):
        beside.ready()
    new_ranks()
    beside.send()
    found = beside.ready()
    assert [number for number, _ in found] == [0, 1, 2] and beside.refs() == []
    expected = [[score.reward for score in group.scores] for group in scorers.score(GROUPS[:3])]
    assert [[score.reward for score in group.scores] for _, group in found] == expected


def test_ranks_that_are_done_are_not_waited_for_while_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for any of them would be over at once, again and again, until the last one is done."""

    def wait(refs: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref.done()], [ref for ref in refs if not ref.done()]

    monkeypatch.setattr(reward_models, "ray", SimpleNamespace(wait=wait))
    quick, slow = Future[Any](), Future[Any]()
    ranks: Any = FakeRanks(2, _formula(1))
    ranks.submit = lambda rank, *_: (quick, slow)[rank]
    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    beside = BesideRollouts(Scorers(models=[model], roster={"model": ranks}, split=split_fake))
    beside.submit(0, GROUPS[0])
    assert beside.refs() == [] and beside.ready() == []
    beside.send()
    assert beside.refs() == [quick, slow]
    quick.set_result({})
    assert beside.refs() == [slow]
    slow.set_result({})
    assert beside.refs(), "what ends the wait"


def test_what_models_have_scored_is_not_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that were made ahead come out of a checkpoint with their scores."""
    ranks: Any = FakeRanks(2, _formula(1))
    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    scorers = Scorers(models=[model], roster={"model": ranks}, split=split_fake)
    once = scorers.score(GROUPS[:3])
    mixed = [once[0], GROUPS[1], once[2]]
    again = scorers.score(mixed)
    assert again[0] is once[0] and again[2] is once[2]
    assert [score.reward for score in again[1].scores] == pytest.approx([score.reward for score in once[1].scores])


def test_a_model_that_is_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(refs: Any, what: str, timeout_s: float) -> Any:
        raise GroupError(f"reward_model.{what}: no answer within {timeout_s:g} s")

    monkeypatch.setattr(reward_models, "ray", SimpleNamespace(wait=lambda *_, **__: ([], [])))
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(reward_models, "time", SimpleNamespace(monotonic=lambda: clock.now))
    group: Any = FakeRanks(1, _formula(1))
    group.gather = gather
    model = RewardModelGroup(label="model", weight=1.0, group="model", micro_batch_tokens=4096)
    beside = BesideRollouts(Scorers(models=[model], roster={"model": group}, split=split_fake))
    beside.submit(0, GROUPS[0])
    beside.send()
    assert beside.ready() == [] and beside.refs()
    clock.now = group.timeout_s + 9
    with pytest.raises(GroupError, match=r"^reward_model\.scores: no answer within 0 s$"):
        beside.ready()
