"""Outstanding calls to ranks: what has ended, failed, or is late, and of whom that is said."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from actors.group import GroupError, no_answer
from algorithms.rl import read_passes
from algorithms.rl.overlapped_gradients import Accumulated, OverlappedGradients
from algorithms.rl.read_passes import Outstanding
from tests.test_deals import GROUPS


class Ranks:
    """A group that answers when a test says so."""

    nodes = ()

    def __init__(self, name: str, ranks: int = 2, timeout_s: float = 60.0) -> None:
        self.name, self.timeout_s = name, timeout_s
        self.calls: list[Future[None]] = [Future() for _ in range(ranks)]
        self.gathered: list[tuple[str, list[int]]] = []

    def ended(self, refs: list[Any]) -> set[Any]:
        assert all(ref in self.calls for ref in refs), "its own"
        return {ref for ref in refs if ref.done()}

    def answer(self, rank: int, ref: Any, what: str) -> None:
        assert ref is self.calls[rank]
        if error := ref.exception(0):
            raise GroupError(f"{self.name}[{rank}].{what}: {error}")

    def gather(self, refs: list[Any], what: str, *, ranks: list[int]) -> None:
        self.gathered.append((what, ranks))
        for rank, ref in zip(ranks, refs, strict=True):
            if not ref.done():
                raise GroupError(no_answer(self.name, [rank], what, self.timeout_s))
            self.answer(rank, ref, what)


def made() -> tuple[Any, Any, Outstanding]:
    policy, reference, outstanding = Ranks("policy", 2), Ranks("reference", 3), Outstanding()
    outstanding.add(reference, reference.calls, "logprobs")  # type: ignore[arg-type]
    outstanding.add(policy, policy.calls, "accumulate")  # type: ignore[arg-type]
    return policy, reference, outstanding


def test_what_has_ended_is_not_waited_for() -> None:
    policy, reference, outstanding = made()
    assert not Outstanding() and outstanding
    assert outstanding.refs == [*reference.calls, *policy.calls]
    outstanding.look()
    assert len(outstanding.refs) == 5
    for each in (reference.calls[2], policy.calls[0]):
        each.set_result(None)
    outstanding.look()
    assert outstanding.refs == [*reference.calls[:2], policy.calls[1]]
    for each in outstanding.refs:
        each.set_result(None)  # type: ignore[attr-defined]
    outstanding.look()
    assert not outstanding and outstanding.refs == []
    outstanding.finish()
    assert policy.gathered == reference.gathered == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_failed_is_named_whichever_it_is(rank: int) -> None:
    for ends in (Outstanding.look, Outstanding.finish):
        policy, reference, outstanding = made()
        for each in reference.calls:
            each.set_result(None)
        policy.calls[1 - rank].set_result(None)
        policy.calls[rank].set_exception(RuntimeError("out of memory"))
        with pytest.raises(GroupError, match=rf"^policy\[{rank}\]\.accumulate: out of memory$"):
            ends(outstanding)


def test_a_failure_is_told_to_everybody_who_asks() -> None:
    """The thread that looks hears of it first; the loop, which waits for the end, must not take it for done."""
    policy, reference, outstanding = made()
    for each in (*reference.calls, policy.calls[0]):
        each.set_result(None)
    policy.calls[1].set_exception(RuntimeError("lost"))
    for _ in range(2):
        with pytest.raises(GroupError, match=r"policy\[1\].accumulate: lost"):
            outstanding.look()
    with pytest.raises(GroupError, match=r"policy\[1\].accumulate: lost"):
        outstanding.finish()


def test_the_end_waits_for_those_that_have_not_ended_in_their_order() -> None:
    policy, reference, outstanding = made()
    reference.calls[1].set_result(None)
    outstanding.look()
    for each in [*reference.calls[::2], *policy.calls]:
        each.set_result(None)
    outstanding.finish()
    assert reference.gathered == [("logprobs", [0, 2])] and policy.gathered == [("accumulate", [0, 1])]
    assert not outstanding


def test_the_time_of_calls_begins_when_ranks_are_through_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two calls takes 50 s of 60; the second was submitted with the first."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(read_passes, "time", SimpleNamespace(monotonic=lambda: clock.now))
    gradients, both = OverlappedGradients(), [Ranks("policy", 1), Ranks("policy", 1)]

    def accumulate(groups: Any) -> Accumulated:
        outstanding, policy = Outstanding(), both[len(gradients._sent)]
        outstanding.add(policy, policy.calls, "accumulate")  # type: ignore[arg-type]
        return Accumulated(groups=groups, work=[], trained_tokens=1, calls=outstanding)

    with gradients.overlapping(accumulate, 9):
        for group in GROUPS[:2]:
            gradients.submit(group, certain=True)
            gradients.send()
        assert gradients.refs() == both[0].calls
        clock.now += 50.0
        both[0].calls[0].set_result(None)
        gradients.send()
        assert gradients.refs() == both[1].calls
        clock.now += 50.0
        gradients.send()
        clock.now += 11.0
        with pytest.raises(GroupError, match=r"^policy\.accumulate: no answer from rank\(s\) \[0\] within 60 s$"):
            gradients.send()


def test_who_is_late_is_named_after_the_time_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks of the first call that is late, from when the last call was added."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(read_passes, "time", SimpleNamespace(monotonic=lambda: clock.now))
    policy, reference, outstanding = made()
    reference.timeout_s = 90.0
    for each in (reference.calls[0], policy.calls[0]):
        each.set_result(None)
    clock.now += 60.0
    outstanding.look()
    clock.now += 0.1
    with pytest.raises(GroupError, match=r"^policy\.accumulate: no answer from rank\(s\) \[1\] within 60 s$"):
        outstanding.look()
    policy.calls[1].set_result(None)
    clock.now += 29.0
    outstanding.look()
    clock.now += 1.0
    with pytest.raises(GroupError, match=r"^reference\.logprobs: no answer from rank\(s\) \[1, 2\] within 90 s$"):
        outstanding.look()
    with pytest.raises(GroupError, match=r"^reference\.logprobs: no answer from rank\(s\) \[1\] within 90 s$"):
        outstanding.finish()
