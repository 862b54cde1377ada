"""Which engines serve: in any order of losses, restarts and transfers none serves that was lost and has not proved new
weights, and nobody waits for ever."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.group import GroupError
from algorithms.rollouts.membership import Membership, Parted

ENGINES = 3
DIED = GroupError("it died")


MOVES = ["lose", "restart", "ready", "send", "serve", "doubt", "part", "noted", "end", "leave", "join"]


@given(st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, ENGINES))))
def test_only_what_has_proved_weights_serves(moves: list[tuple[str, int]]) -> None:
    """Also where an engine is lost while weights are sent to it, and what has noticed it speaks late."""
    members = Membership(ENGINES)
    proved = [0] * ENGINES
    """Generation of each engine that has weights and has proved it, -1: none."""
    generations, sent, version = [0] * ENGINES, (list[int](), [0] * ENGINES), 0
    for move, engine in moves:
        if move == "join":
            absent = [each for each in range(len(members)) if members.state(each) == "absent"]
            number = members.join()
            assert number == min(absent, default=len(generations))
            if number == len(generations):
                generations.append(0)
                proved.append(-1)
            generations[number] += 1
            assert members.state(number) == "restarting" and members.streaks[number] == 0
        if engine >= len(members) or move == "join":
            continue
        before, serving = members.state(engine), members.serving()
        if move == "part":
            assert members.part(engine) == (before == "serving")
        elif move == "noted":
            members.noted(engine)
            assert members.wait_until_noted(engine, 0) == (before == "parting")
        elif move == "end" and before == "lost":
            members.ended(engine)
            generations[engine] += 1
        elif move == "leave" and before == "lost":
            members.leave(engine)
            assert engine not in members.present()
        elif move == "lose" and before == "absent":
            assert not members.lose(engine, DIED, generations[engine]), "it has left"
        elif move == "lose":
            assert not members.lose(engine, DIED, generations[engine] - 1), "that process was replaced"
            assert members.lose(engine, DIED, generations[engine]) == (before != "lost")
            assert not members.lose(engine, DIED, generations[engine]), "it is known"
        elif move == "restart" and before == "lost":
            generations[engine] += 1
            members.restarting(engine)
        elif move == "ready":
            members.ready(engine)
            assert members.state(engine) == ("stale" if before == "restarting" else before)
        elif move == "send":
            sent, version = (members.there(), list(members.losses)), version + 1
        elif move == "serve":
            engines, losses = sent
            members.serve(engines, version, losses)
            for each in engines:
                if members.losses[each] == losses[each]:
                    proved[each] = generations[each]
            assert members.version == version
        elif move == "doubt":
            members.doubt([engine])
            assert members.state(engine) == ("stale" if before == "serving" else before)
        assert move == "serve" or not set(members.serving()) - set(serving), "who serves has got weights"
        counted, expected = members.counts()
        assert counted == len(members.serving()) <= expected <= len(members.present()) <= len(generations)
        for each in members.serving():
            assert proved[each] == generations[each]
        assert set(members.serving()) | set(members.stale()) == set(members.there())
        assert members.generation(engine) == generations[engine]


def test_each_loss_and_each_return_is_told_once() -> None:
    told: list[tuple[str, int]] = []
    members = Membership(2)
    members.on_lost = lambda engine, error: told.append((str(error), engine))
    members.on_served = lambda engine: told.append(("back", engine))
    for _ in range(2):
        members.lose(1, DIED, 0)
    assert members.streaks == [0, 1] and members.error(1) is DIED
    losses = list(members.losses)
    members.restarting(1)
    members.lose(1, DIED, 1)
    members.restarting(1)
    members.ready(1)
    members.serve([0, 1], 4, losses)  # it was asked before its second loss
    assert members.serving() == [0]
    members.serve([0, 1], 5, list(members.losses))
    assert told == [("it died", 1), ("it died", 1), ("back", 1)] and members.streaks == [0, 2]
    members.proved(1)
    assert members.streaks == [0, 0] and members.losses == [0, 2]


def test_a_wait_for_an_engine_has_an_end() -> None:
    members = Membership(1)
    members.lose(0, DIED, 0)
    with pytest.raises(GroupError, match="it died"):  # nobody brings it back
        members.wait_for_one(60)
    members.on_lost = lambda engine, error: None
    began = time.monotonic()
    with pytest.raises(GroupError, match=r"^rollout: no engine was back within 0\.2 s, after it died$"):
        members.wait_for_one(0.2)
    assert time.monotonic() - began >= 0.2
    seen = members.changes
    back = threading.Timer(0.2, lambda: (members.restarting(0), members.ready(0)))
    back.start()
    assert members.wait_for_one(60) == ([0], [1])
    members.wait(60, seen)
    members.lose(0, DIED, 1)
    threading.Timer(0.2, members.give_up, [GroupError("three times in a row")]).start()
    with pytest.raises(GroupError, match="three times in a row"):
        members.wait_for_one(60)


def test_who_is_about_to_go_is_waited_for_until_all_is_noted() -> None:
    """Which is no streak of losses; and it does not serve again for weights that were sent to it meanwhile."""
    members = Membership(2)
    losses = list(members.losses)
    assert members.part(1) and not members.part(1)
    assert members.there() == [0] and members.alive() == [0, 1]
    members.serve([0, 1], 4, losses)
    assert members.state(1) == "parting"
    assert not members.wait_until_noted(1, 0.0)
    threading.Timer(0.1, members.noted, [1]).start()
    assert members.wait_until_noted(1, 60)
    assert members.lose(1, Parted("its node goes"), 0) and members.streaks == [0, 0] and members.losses == [0, 1]
    assert members.part(0)
    threading.Timer(0.1, members.lose, [0, DIED, 0]).start()
    assert not members.wait_until_noted(0, 60), "it was lost before"
    alone = Membership(1)
    alone.on_lost = lambda engine, error: None
    alone.part(0)
    with pytest.raises(GroupError, match="no engine was back within 0 s, after rollout: all engines are about to go"):
        alone.wait_for_one(0)
