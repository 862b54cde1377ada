"""Groups made ahead of training in a checkpoint: as arrays and back, and what becomes of those on their way."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.episodes import Episode, Prompt, Turn, VersionSpan
from actors.group import GroupError
from actors.rollout.simulated import Table
from actors.rollout.types import Begun, RolloutInfo, Sampling
from algorithms.rewards.scores import Score, empty_scores
from algorithms.rl.judging import Teaching
from algorithms.rl.shaper import RewardShaper
from algorithms.rollouts import groups as groups_module
from algorithms.rollouts.ahead import Ahead, read_ahead
from algorithms.rollouts.discards import LeftOut
from algorithms.rollouts.groups import BegunGroup, ScoredGroup, ShapedGroup, prompt_finder
from algorithms.rollouts.lane import Drawn
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from algorithms.rollouts.saved import group_arrays, groups_of, length_arrays, lengths_of
from algorithms.rollouts.tail import Tail
from tests.episodes import episode
from tests.fake_engines import After, FakeEngines, FakePool
from tests.simulated_engines import Clock, SimulatedEngines
from tests.test_ahead import made, prompts

ROWS = [Prompt(index=n, token_ids=[n, 1], text="", row={}, of_set=name) for name in ("a", "b") for n in range(9)]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are what they stand for."""
    monkeypatch.setattr(groups_module, "kept", lambda episodes: episodes)
    monkeypatch.setattr("algorithms.rollouts.saved.kept", lambda episodes: episodes)
    monkeypatch.setattr("algorithms.rollouts.ahead.episodes_of", lambda group, _: group.rollouts)
    monkeypatch.setattr("algorithms.rollouts.ahead.begun_of", lambda group, _: group.samples)


def group(prompt: Prompt, *episodes: Episode, scores: list[Score]) -> ScoredGroup:
    return ScoredGroup(
        prompt=prompt, rollouts=list(episodes), infos=[RolloutInfo.of(each) for each in episodes], scores=scores
    )


def turns() -> Episode:
    """Two turns with a tool's text between, a reward for the first only, and weights that changed in it."""
    spans = [VersionSpan(version=3, start=0, end=1), VersionSpan(version=4, start=1, end=2)]
    first = Turn(
        given_token_ids=np.array([5, 6], dtype=np.int32), sampled_token_ids=np.array([7, 8], dtype=np.int32),
        rollout_logprobs=np.array([-0.5, -1.25], dtype=np.float32), versions=spans, finish_reason="stop", reward=0.0,
    )  # fmt: skip
    second = Turn(
        given_token_ids=np.array([1] * 30, dtype=np.int32), sampled_token_ids=np.array([9], dtype=np.int32),
        rollout_logprobs=np.array([-2.0], dtype=np.float32), versions=[VersionSpan(version=4, start=0, end=1)],
        finish_reason="length",
    )  # fmt: skip
    text = "ends\nin é \ud83d and 答"
    return Episode(turns=[first, second], status="truncated", text=text, marked_text=f"<think>{text}</think>")


def shown(found: ScoredGroup) -> Any:
    """All of a group, in what can be compared."""
    parts = [(each.status, each.text, each.marked_text, [*map(_shown, each.turns)]) for each in found.rollouts]
    scores = [(str(each.reward), each.parts, each.status) for each in found.scores]
    return found.prompt, parts, found.infos, scores


def _shown(turn: Turn) -> Any:
    tokens = turn.given_token_ids.tolist(), turn.sampled_token_ids.tolist(), turn.rollout_logprobs.tolist()
    return tokens, turn.versions, turn.finish_reason, turn.reward


def test_groups_come_back_as_they_were() -> None:
    """Turns, rewards of turns, spans, texts that are no Unicode, responses without a token, rewards still to come."""
    scores = [
        Score(reward=0.1 + 0.2, parts={"x": 1.0, "y": 0.3}, status="ok"),
        Score(reward=-1.0, parts={"x": -1.0}, status="ok"),
    ]
    first = group(ROWS[3], turns(), episode([3, 1], [2], text=""), scores=scores)
    second = group(ROWS[12], episode([3, 1], [], text="", status="failed"), scores=empty_scores(1))
    arrays = group_arrays([first, second], [first.rollouts, second.rollouts])
    found = groups_of(arrays, prompt_finder(ROWS))
    assert [shown(each) for each in found] == [shown(first), shown(second)]
    assert all(array.dtype != object for array in arrays.values()), "a file of arrays holds nothing that runs"
    older = {name: array for name, array in arrays.items() if "marked" not in name}
    assert [each.marked_text for each in groups_of(older, prompt_finder(ROWS))[0].rollouts] == [None, None]


def shaped(number: int, rewards: tuple[float, ...], scores: tuple[float, ...]) -> ShapedGroup:
    """Of which the loss does not count the first response."""
    found = [Score(reward=each, parts={}, status="ok") for each in rewards]
    plain = group(ROWS[number], *[episode([3], [2], text="")] * len(rewards), scores=found)
    return plain.with_shape(np.array(scores), np.arange(len(scores)) > 0)


def test_what_a_group_is_trained_on_comes_back_as_it_was() -> None:
    """Some were shaped, as dynamic sampling does it, others were not."""
    plain = group(ROWS[1], turns(), scores=empty_scores(1))
    groups = [shaped(3, (1.0, 0.0), (0.1 + 0.2, -1.5)), plain, shaped(5, (2.0,), (0.0,))]
    arrays = group_arrays(groups, [each.rollouts for each in groups])
    found = groups_of(arrays, prompt_finder(ROWS))
    assert [isinstance(each, ShapedGroup) for each in found] == [True, False, True]
    for each, before in zip(found, groups, strict=True):
        if isinstance(each, ShapedGroup) and isinstance(before, ShapedGroup):
            assert each.shaped.tolist() == before.shaped.tolist() and each.counted.tolist() == before.counted.tolist()
            assert each.counted.dtype == bool
    older = {name: array for name, array in arrays.items() if name not in ("is_shaped", "shaped", "counted")}
    assert not any(isinstance(each, ShapedGroup) for each in groups_of(older, prompt_finder(ROWS)))
    for damage in ({"shaped": arrays["shaped"][:2]}, {"counted": arrays["counted"][1:]}, {"is_shaped": np.ones(3)}):
        with pytest.raises(ValueError, match="are not those of the groups that are shaped"):
            groups_of(arrays | damage, prompt_finder(ROWS))
    with pytest.raises(ValueError, match="must be finite"):
        groups_of(arrays | {"shaped": np.array([1.0, np.nan, 0.0])}, prompt_finder(ROWS))


def shaping() -> RewardShaper:
    return RewardShaper(normalize=True, clip=None, overlong=None, missing_eos_penalty=0.0, max_response_tokens=9)


@pytest.mark.parametrize("judged", [True, False])
def test_groups_that_are_ready_are_judged_and_counted_once(judged: bool, tmp_path: Path) -> None:
    """Whether the run before, or the one that goes on, is the first with dynamic sampling: each reward is in the
    running mean once, and nothing that teaches nothing is trained on."""
    before, shaper, engines = made_of(FakeEngines()), shaping(), FakeEngines()
    rewards = [(1.0, 3.0), (2.0, 2.0), (5.0, 1.0)]
    groups = [
        group(ROWS[n], *[episode([3], [2], text="")] * 2, scores=[Score(reward=r, parts={}, status="ok") for r in own])
        for n, own in enumerate(rewards)
    ]
    teaching = Teaching(shaper=shaper, mask_truncated=False)
    ready = [found for each in groups if (found := teaching(each))] if judged else groups
    moments = shaper.save(tmp_path)
    before.training.give_back(ready, [], 0)
    entry = before.save(tmp_path / "rollouts")
    again = shaping()
    after = made_of(engines)
    after._prompt_of = lambda _, row: ROWS[row]
    after.training.judge = Teaching(shaper=again, mask_truncated=False)
    after.load(tmp_path / "rollouts", entry)
    again.load(tmp_path, moments)  # behind the rollouts, or before them
    pool = after._flow.pool
    assert isinstance(pool, FakePool) and pool.submitted == ([] if judged else [0, 1, 2])
    for each, own in zip(groups, rewards, strict=True):
        if not judged:  # as its reward says again
            job = pool.jobs[each.prompt.index]
            job.scores += [Score(reward=reward, parts={}, status="ok") for reward in own]
            pool._finish(job)
    after._flow.take_in([])
    found = after.training.take(3)
    assert [each.prompt.index for each in found] == [0, 2]
    counted = [np.ones(2, dtype=bool)] * 2
    assert [each.shaped.tolist() for each in again.shape(found, counted)] == [each.shaped.tolist() for each in found]  # type: ignore[attr-defined]
    assert again.moments.count == 6
    assert again.moments.mean == pytest.approx(sum(map(sum, rewards)) / 6)


def test_lengths_that_tail_batching_orders_by_are_kept(tmp_path: Path) -> None:
    """Of every prompt, whether it is on its way or not; older checkpoints have none, and other rows other lengths."""
    lengths = {("a", 3): 7.5, ("b", 3): 0.0, ("", 8): 1e6}

    def rollouts(noted: dict[tuple[str, int], float]) -> Rollouts:
        drawn: Any = iter(())
        found = Rollouts(
            FakeEngines(), None, drawn, Sampling(samples=1, temperature=1.0, max_tokens=9), Limits(silence_s=1.0),
            groups_per_step=2, tail=Tail(0.25, lambda: 8, 8), prompt_of=prompt_finder(ROWS),
        )  # fmt: skip
        assert found.training.tail
        found.training.tail.lengths.update(noted)
        return found

    entry = rollouts(lengths).save(tmp_path)
    after = rollouts({})
    after.load(tmp_path, entry)
    assert after.training.tail and after.training.tail.lengths == lengths
    assert read_ahead(tmp_path, entry | {"new_rows": True}, prompt_finder(ROWS), go_on=True).lengths == {}
    arrays = length_arrays(lengths)
    assert lengths_of({}) == {}
    for wrong in (np.nan, -1.0):
        with pytest.raises(ValueError, match="finite numbers of tokens"):
            lengths_of(arrays | {"length_tokens": np.array([1.0, wrong, 2.0])})


def test_no_groups_are_no_groups() -> None:
    assert groups_of(group_arrays([], []), prompt_finder(ROWS)) == []


@pytest.mark.parametrize("damage", [{"rows": np.array([99])}, {"sets": np.frombuffer(b"\1\0\0\0z", np.uint8)}])
def test_a_prompt_that_there_is_not_is_no_other_prompt(damage: dict[str, Any]) -> None:
    arrays = group_arrays([only := group(ROWS[3], turns(), scores=empty_scores(1))], [only.rollouts]) | damage
    with pytest.raises(KeyError):
        groups_of(arrays, prompt_finder(ROWS))


def test_what_was_made_ahead_is_used_after_a_resume_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Every prompt of the order is trained on once, on its way, or named as too old; ready groups are given out first,
    with what they were."""
    engines = SimulatedEngines([Table(lengths=(10, 20, 90, 15), token_s=0.01)] * 2, Clock())
    engines.collect = lambda engine, own: [engines.hosts[engine].ended.pop(each) for each in own]  # type: ignore[method-assign]
    drawn = prompts()
    before = made(engines, groups=3, ahead=2, samples=1, drawn=drawn)
    used: list[int] = []
    for version in range(3):
        used += [each.prompt.index for each in before.take(3, version, seed=version)]
        engines.use(version + 1)
        before.published(version + 1)
    engines.go_on(0.3)
    ready, on_the_way = len(before.training.ready), before.training.on_the_way
    assert ready and on_the_way, "both kinds are there to be kept"
    entry = before.save(tmp_path)
    counts = [entry["ready"], entry["unscored"]]
    assert counts == [ready, 0]
    kept = {group.prompt.index: shown(group) for group in before.training.ready.values()}
    before.close()
    again = SimulatedEngines([Table(lengths=(10,), token_s=0.01)], Clock())
    again.collect = lambda engine, own: [again.hosts[engine].ended.pop(each) for each in own]  # type: ignore[method-assign]
    again.use(5)
    after = made(again, groups=3, ahead=2, samples=1, drawn=drawn)
    after.load(tmp_path, entry)
    has = {each.prompt.index: _samples(each) for each in after.training.again}
    assert len(has) == on_the_way and any(len(sample.token_ids) for begun in has.values() for sample in begun)
    steps = [after.take(3, version, seed=version) for version in range(3, 7)]
    found = [each for step in steps for each in step]
    # As they were complete: what takes longer is still on its way.
    trained = used + [each.prompt.index for each in found]
    still = [each.prompt.index for each in after._flow.of(after.training)]
    still += [each.prompt.index for each in (*after.training.ready.values(), *after.training.again)]
    named = [each.prompt.index for each in after.report()[1].left_out]
    everything = trained + still + named
    assert sorted(everything) == list(range(len(everything))) and len(trained) == 21
    assert {each.prompt.index for each in found[:3]} <= kept.keys() <= {each.prompt.index for each in found}
    assert all(shown(each) == kept[each.prompt.index] for each in found if each.prompt.index in kept)
    for each in found:
        for one, sample in zip(each.rollouts, has.get(each.prompt.index, ()), strict=False):
            [turn] = one.turns
            assert turn.sampled_token_ids.tolist()[: len(sample.token_ids)] == sample.token_ids.tolist()
            assert turn.versions[: len(sample.versions) - 1] == sample.versions[:-1], "what old weights have sampled"
    assert has.keys() & {each.prompt.index for each in found}, "some of them were trained on"
    after.close()


def test_what_only_lacks_scores_is_scored_after_a_resume(tmp_path: Path) -> None:
    """Complete groups that a slow reward has: their responses are kept, and no engine samples them again."""
    engines = FakeEngines()
    texts = [[episode([3, 1], [2], text=f"{number}")] * 2 for number in range(3)]
    engines.collect = lambda _, own: [texts[each] for each in own]  # type: ignore[method-assign, misc]
    before = made_of(engines)
    lane, flow, pool = before.training, before._flow, before._flow.pool
    assert isinstance(pool, FakePool)
    lane.ask(1, 0)
    flow.start([lane])
    flow.take_in(engines._happen(After(1, dict.fromkeys(range(3), "ok ok"))))
    pool.score(101, ["ok", "ok"])
    flow.take_in([])
    assert [group.prompt.index for group in lane.take(1)] == [101]
    entry = before.save(tmp_path)
    assert (entry["ready"], entry["unscored"], entry["taken"]) == (0, 2, 1)
    again = FakeEngines()
    after = made_of(again, first=3)
    after.load(tmp_path, entry)
    lane, flow, pool = after.training, after._flow, after._flow.pool
    assert isinstance(pool, FakePool)
    assert pool.submitted == [100, 102] and not again.given and lane.on_the_way == 2
    for row in (102, 100):
        pool.score(row, ["ok", "ok"])
    flow.take_in([])
    found = lane.take(2)
    assert [(group.prompt.index, group.rollouts[0].text) for group in found] == [(102, "2"), (100, "0")]
    assert lane.on_the_way == 0


def test_what_is_left_out_after_a_report_is_named_by_the_run_that_goes_on(tmp_path: Path) -> None:
    """Between a step's report and its checkpoint weights are published, which makes groups too old, and an evaluation
    takes its time."""
    engines = FakeEngines()
    before = made_of(engines)
    before.training.failures.max_failed = 0.5
    before._flow.start([before.training])
    before.report()
    before._flow.take_in(engines._happen(After(1, {1: "ok failed"})))
    engines.progress = lambda *_: {}  # type: ignore[attr-defined]
    entry = before.save(tmp_path)
    assert entry["left_out"] == [["", 101, "failed"]]
    after = made_of(FakeEngines(), first=2)
    after.load(tmp_path, entry)
    assert [(each.prompt.index, each.why) for each in after.report()[1].left_out] == [(101, "failed")]
    with pytest.raises(ValueError, match="no prompt is left out as 'lost'"):
        after.load(tmp_path, entry | {"left_out": [["", 101, "lost"]]})


def test_what_is_too_old_for_the_run_that_goes_on_starts_anew() -> None:
    """However much of it there is, the engines have the weights that they should have; nor is it gone on with first."""
    engines = SimulatedEngines([Table(lengths=(10,), token_s=0.01)], Clock())
    engines.use(3)
    rollouts = made(engines, groups=1, ahead=0, samples=1, limits=Limits(silence_s=30.0, starts=3))
    old, young = (_begun(each) for each in (2, 3))
    ready = [group(ROWS[number], episode([3], [2], text=""), scores=empty_scores(1)) for number in range(12)]
    rollouts.training.give_back(ready, [_drawn(ROWS[13], old), _drawn(ROWS[14], young)], 0)
    assert [rollouts.take(1, 3, seed=0)[0].prompt for _ in range(3)] == [ROWS[13], ROWS[14], ROWS[0]]
    assert [request.begun for request in engines.submitted.values()] == [(), (young,), ()]
    rollouts.close()


def test_over_other_rows_what_was_ahead_is_sampled_anew_where_it_is_still_there(tmp_path: Path) -> None:
    """The order goes on behind these rows: they would not come again in this pass."""
    whole = _begun(0)
    ready = [group(ROWS[number], episode([3], [2], text=""), scores=empty_scores(1)) for number in (0, 10)]
    out = [LeftOut(ROWS[7], "stale")]
    ahead = Ahead(ready[:1], ready[1:], [_drawn(ROWS[2], whole, attempt=2), Drawn(ROWS[8])], out, 8, 4)
    entry = ahead.write(tmp_path, 1.0)
    fewer = prompt_finder(ROWS[:8] + ROWS[9:])
    with pytest.raises(KeyError):
        read_ahead(tmp_path, entry, fewer, go_on=True)
    found = read_ahead(tmp_path, entry | {"new_rows": True}, fewer, go_on=True)
    assert found == Ahead([], [], [Drawn(ROWS[0]), Drawn(ROWS[10]), Drawn(ROWS[2])], [], 8, 4)
    nothing = read_ahead(tmp_path, {"taken": 8, "groups_per_step": 4, "new_rows": True}, fewer, go_on=True)
    assert nothing == Ahead([], [], [], [], 8, 4)


def test_a_prompt_that_ends_the_run_is_kept_by_the_checkpoint_of_the_step_that_is_made_meanwhile(
    tmp_path: Path,
) -> None:
    """Whoever waits next raises it; what is trained on by then is saved."""
    engines = FakeEngines()
    before = made_of(engines)
    before._flow.start([before.training])
    with pytest.raises(GroupError, match="data row 101 was refused: it is too long"):
        before._flow.take_in(engines._happen(After(1, refused={1: "it is too long"})))
    engines.progress = lambda *_: {}  # type: ignore[attr-defined]
    entry = before.save(tmp_path)
    after = made_of(FakeEngines(), first=2)
    after.load(tmp_path, entry)
    assert [each.prompt.index for each in after.training.again] == [100, 101]


@pytest.mark.parametrize(("samples", "most"), [(3, 9), (1, 9), (2, 3)])
def test_what_a_run_would_sample_otherwise_starts_anew(tmp_path: Path, samples: int, most: int) -> None:
    """Of another number of samples, or longer than they may be now; what fits is kept. As many steps were made,
    whatever one asks for: the run ends when all are."""
    names = {"versions": [VersionSpan(version=0, start=0, end=4)], "logprobs": np.zeros(4, dtype=np.float32)}
    whole = Begun(token_ids=np.arange(4), **names)
    short = Begun(token_ids=np.empty(0), logprobs=np.zeros(0, dtype=np.float32), versions=[])
    ready = [group(ROWS[number], episode([3], [2] * 4, text=""), episode([3], [2], text=""), scores=empty_scores(2))
             for number in (0, 1)]  # fmt: skip
    begun = [_drawn(ROWS[2], whole, short, attempt=2), Drawn(ROWS[3], None, 3)]
    ahead = Ahead(ready[:1], ready[1:], begun, [], 11, 4)
    same = ahead.fitting(Sampling(samples=2, temperature=1.0, max_tokens=4), 4)
    assert (same.ready, same.unscored, same.begun) == (ready[:1], ready[1:], begun) and same.taken == 12
    other = ahead.fitting(Sampling(samples=samples, temperature=1.0, max_tokens=most), 2)
    assert not other.ready and not other.unscored and (other.taken, other.groups_per_step) == (6, 2)
    assert other.begun == [Drawn(ROWS[0]), Drawn(ROWS[1]), Drawn(ROWS[2], None, 2), Drawn(ROWS[3], None, 3)]


def test_an_engine_that_does_not_say_what_it_has_takes_no_checkpoint_with_it(tmp_path: Path) -> None:
    """Its prompts start anew; what it is asked for has a deadline of its own, far below that of generation."""
    engines, asked = FakeEngines(), list[float]()

    def progress(requests: Any, timeout_s: float) -> Any:
        asked.append(timeout_s)
        raise GroupError("rollout[1].progress: no answer")

    engines.progress = progress  # type: ignore[attr-defined]
    before = made_of(engines, silence_s=600.0)
    before.training.ask(1, 0)
    before._flow.start([before.training])
    entry = before.save(tmp_path)
    assert asked == [30.0]
    after = made_of(FakeEngines(), first=3)
    after.load(tmp_path, entry)
    assert [(each.prompt.index, each.begun) for each in after.training.again] == [(100, None), (101, None), (102, None)]


def test_what_other_settings_refuse_to_go_on_with_starts_from_nothing() -> None:
    """Such as a stop string that a response has already gone past. A prompt that is refused anew ends the run."""
    engines = FakeEngines()
    rollouts = made_of(engines)
    lane, flow = rollouts.training, rollouts._flow
    begun = (one := _begun(0), one)
    lane.again.append(_drawn(Prompt(index=150, token_ids=[50, 1], text="", row={}), *begun))
    lane.ask(1, 0)
    flow.start([lane])
    assert engines.given[0].begun == begun
    flow.take_in(engines._happen(After(1, refused={0: "ValueError: the text goes on behind a stop string"})))
    [number] = [number for number, request in engines.given.items() if number and request.token_ids == [50, 1]]
    assert engines.given[number].begun == () and lane.on_the_way == 3
    with pytest.raises(GroupError, match="data row 150 was refused: ValueError: it is too long"):
        flow.take_in(engines._happen(After(1, refused={number: "ValueError: it is too long"})))


def _begun(version: int) -> Begun:
    """A token of these weights."""
    spans = [VersionSpan(version=version, start=0, end=1)]
    return Begun(token_ids=np.array([4], np.int32), logprobs=np.zeros(1, np.float32), versions=spans)


def _drawn(prompt: Prompt, *begun: Begun, attempt: int = 1) -> Drawn:
    return Drawn(prompt, None, attempt, BegunGroup.of(begun))


def _samples(drawn: Drawn) -> Any:
    return drawn.begun.samples if drawn.begun else ()


def made_of(engines: FakeEngines, first: int = 0, silence_s: float = 30.0) -> Rollouts:
    """A step of one group, ahead two, and rewards that take their time."""
    drawn = (Prompt(index=100 + n, token_ids=[n, 1], text="", row={}) for n in count(first))
    return Rollouts(
        engines, FakePool(engines, slow=True), drawn, Sampling(samples=2, temperature=1.0, max_tokens=9),
        Limits(silence_s=silence_s), groups_per_step=2, max_staleness=1, clock=engines.monotonic,
        prompt_of=lambda _, row: Prompt(index=row, token_ids=[row - 100, 1], text="", row={}),
    )  # fmt: skip


def test_on_policy_nothing_is_kept(tmp_path: Path) -> None:
    engines = SimulatedEngines([Table(lengths=(60,), token_s=0.01)], Clock())
    rollouts = made(engines, groups=3, ahead=0)
    rollouts.take(3, 0, seed=0)
    entry = rollouts.save(tmp_path)
    assert entry == {"taken": 3, "groups_per_step": 3} and list(tmp_path.iterdir()) == []
    after = made(SimulatedEngines([Table(lengths=(60,), token_s=0.01)], Clock()), groups=3, ahead=0)
    after.load(tmp_path, {"taken": 3})  # as older checkpoints have it
    assert len(after.take(3, 0, seed=0)) == 3
    rollouts.close()
    after.close()
