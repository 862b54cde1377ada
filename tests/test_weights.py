"""Weights reach who is there: a transfer that loses a member is made again without it, and who comes late gets them."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.config_rollout import RolloutConfig
from actors.group import GroupError
from actors.group_errors import RankLost
from actors.weights.broadcast_store import BroadcastStore
from actors.weights.holder_store import HolderStore
from actors.weights.ticket import Account, Got, Sent, Ticket
from actors.weights.verify import WeightSyncError
from algorithms.rollouts.membership import Membership
from launch.run import weights as weights_module
from launch.run.weights import Weights

CANARY = np.zeros(3, dtype=np.float32)


class FakeRollout:
    """Three engines, of which some are dead; they are asked for pulses only."""

    name = "rollout"

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.asked = 0

    def __len__(self) -> int:
        return 3

    def pulses(self, within_s: float) -> list[Any]:
        self.asked += 1
        return [
            RankLost(f"rollout[{each}]: dead", "rollout", each) if each in self.dead else "alive" for each in range(3)
        ]


class FakeStore:
    """Transfers that go as a script says: what is raised, or "" for success."""

    def __init__(self, *script: str | BaseException) -> None:
        self.script = list(script)
        self.sent: list[tuple[int, list[int], bool]] = []
        self.digest: str | None = "d"
        self.got = "d"
        self.rollout: Any = None
        self.prove = False

    def publish(self, version: int, *, prove: bool = False) -> Ticket:
        self.prove = prove
        return Ticket(version, {"weights": Sent(version, self.digest, CANARY)}, [1, 2], 0.5, None)

    def fetch(self, ticket: Ticket, engines: Sequence[int]) -> list[Account]:
        self.sent.append((ticket.version, list(engines), self.prove))
        outcome = self.script.pop(0) if self.script else ""
        if isinstance(outcome, BaseException):
            raise outcome
        return [Account(engine, {"weights": Got([self.got], CANARY)}, 0.25) for engine in engines]

    def answers(self, seed: int) -> dict[str, Any]:
        return {}


class Broadcast(FakeStore, BroadcastStore):
    def __init__(self, *script: str | BaseException) -> None:
        FakeStore.__init__(self, *script)
        self.engines = None


class Holder(FakeStore, HolderStore):
    pass


class Made:
    """Weights over fakes; `met` are the engines that the policy has met, transfer by transfer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: FakeStore) -> None:
        monkeypatch.setattr(weights_module, "_VERDICT_S", 0.05)
        monkeypatch.setattr(weights_module, "_store", lambda *_: store)
        self.members, self.rollout, self.store = Membership(3), FakeRollout(), store
        self.members.on_lost = lambda engine, error: None
        self.met: list[list[int] | None] = []
        connection: Any = SimpleNamespace(ensure=lambda engines=None: self.met.append(engines), part=lambda: None)
        config: Any = SimpleNamespace(
            rollout=RolloutConfig(restart_timeout_s=0.2), model=SimpleNamespace(dtype="fp32"), run=None
        )
        roster: Any = {"rollout": self.rollout}
        self.weights = Weights(config, roster, connection, "", self.members)

    def back(self, engine: int) -> None:
        self.members.restarting(engine)
        self.members.ready(engine)


@pytest.fixture(params=[Broadcast, Holder])
def store(request: pytest.FixtureRequest) -> FakeStore:
    return request.param()


def test_all_that_are_there_get_a_version(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, store)
    assert made.weights.publish(0) == {"weights/sync_seconds": 0.75, "weights/canary_difference": 0.0}
    assert store.sent == [(0, [0, 1, 2], False)] and made.members.version == 0
    made.weights.welcome()
    assert len(store.sent) == 1, "nobody is late"


@pytest.mark.parametrize("told", ["by its own call", "by another's, before its death is known"])
def test_a_transfer_that_loses_a_member_is_made_again_without_it(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """The same version, to those that are left; the one that is back proves itself whatever verify_every is."""
    made = Made(monkeypatch, store)
    own = told == "by its own call"
    store.script = [RankLost("rollout[1]: died", "rollout", 1) if own else GroupError("rollout[0]: reset by peer")]
    made.rollout.dead = {1}
    made.weights.publish(4)
    assert store.sent == [(4, [0, 1, 2], False), (4, [0, 2], False)] and made.met == [[0, 1, 2], [0, 2]]
    assert made.members.serving() == [0, 2] and made.members.state(1) == "lost" and made.rollout.asked == (not own)
    made.back(1)
    made.weights.publish(5)
    assert store.sent[2:] == [(5, [0, 1, 2], True)] and made.members.serving() == [0, 1, 2]
    made.weights.publish(6)
    assert store.sent[3:] == [(6, [0, 1, 2], False)]


def test_who_is_back_gets_the_version_of_the_others(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, store)
    made.weights.publish(0)
    made.members.lose(2, GroupError("it died"), 0)
    made.weights.welcome()
    assert len(store.sent) == 1, "it is not there yet"
    made.back(2)
    made.weights.welcome()
    assert made.members.serving() == [0, 1, 2] and [each[:2] for each in store.sent[1:]] == [(0, [2])]
    if isinstance(store, Broadcast):  # the policy meets it alone, and all of them for the next version
        assert made.met[1:] == [[2]] and store.sent[1][2]
        made.weights.publish(1)
        assert made.met[2:] == [[0, 1, 2]]


def test_a_version_that_nothing_can_be_compared_with_admits_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a holder, without the policy: the next version is one that both sides account for."""
    store = Holder()
    made = Made(monkeypatch, store)
    store.digest = None
    made.weights.publish(0)
    made.members.lose(2, GroupError("it died"), 0)
    made.back(2)
    made.weights.welcome()
    assert len(store.sent) == 1 and made.members.serving() == [0, 1]
    store.digest = "d"
    made.weights.publish(1)
    assert store.sent[1:] == [(1, [0, 1, 2], True)] and made.members.serving() == [0, 1, 2]


def test_one_that_has_other_weights_does_not_serve(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, store)
    made.weights.publish(0)
    made.members.lose(2, GroupError("it died"), 0)
    made.back(2)
    store.got = "other"
    changed: Any = lambda *_: WeightSyncError("changed")  # noqa: E731
    monkeypatch.setattr("actors.weights.verify._changed", changed)
    with pytest.raises(WeightSyncError, match="changed"):
        made.weights.welcome()
    assert made.members.serving() == [0, 1]


def test_one_that_dies_while_it_is_welcomed_is_restarted(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, store)
    made.weights.publish(0)
    made.members.lose(2, GroupError("it died"), 0)
    made.back(2)
    store.script = [RankLost("rollout[2]: died", "rollout", 2)]
    made.weights.welcome()
    assert made.members.state(2) == "lost" and made.members.losses == [0, 0, 2] and made.members.serving() == [0, 1]


def test_what_fails_while_all_live_ends_the_run(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody gets requests after it: an engine may have half of new weights."""
    made = Made(monkeypatch, store)
    store.script = [GroupError("policy[0].publish: out of memory")]
    with pytest.raises(GroupError, match="out of memory"):
        made.weights.publish(0)
    assert made.rollout.asked and made.members.serving() == [] and made.members.losses == [0, 0, 0]
    with pytest.raises(ValueError, match="no fault of anybody"):
        store.script = [ValueError("no fault of anybody")]
        made.weights.publish(0)


def test_one_that_had_no_part_in_a_transfer_is_not_lost_by_it(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost before, and restarts while its old process is asked."""
    made = Made(monkeypatch, store)
    made.members.lose(0, GroupError("it died"), 0)
    made.rollout.dead = {0, 1}
    ask = made.rollout.pulses

    def pulses(within_s: float) -> list[Any]:
        found = ask(within_s)
        if made.members.state(0) == "lost":
            made.members.restarting(0)
        return found

    monkeypatch.setattr(made.rollout, "pulses", pulses)
    store.script = [GroupError("policy[0].publish: the connection is gone")]
    made.weights.publish(0)
    assert [each[:2] for each in store.sent] == [(0, [1, 2]), (0, [2])]
    assert made.members.losses == [1, 1, 0] and made.members.state(0) == "restarting"


def test_without_any_engine_a_transfer_waits_for_one(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, store)
    for engine in range(3):
        made.members.lose(engine, GroupError(f"{engine} died"), 0)
    with pytest.raises(GroupError, match=r"^rollout: no engine was back within 0\.2 s, after 2 died$"):
        made.weights.publish(0)
    made.back(1)
    made.weights.publish(0)
    assert [each[:2] for each in store.sent] == [(0, [1])] and made.members.serving() == [1]


def test_one_that_joins_first_where_none_is_left_gets_the_version(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is none that was there when the wait began."""
    made = Made(monkeypatch, store)
    made.weights._restart_s = 60.0
    for engine in range(3):
        made.members.lose(engine, GroupError("it died"), 0)
    threading.Timer(0.1, lambda: made.members.ready(made.members.join())).start()
    made.weights.publish(7)
    assert [each[:2] for each in store.sent] == [(7, [3])] and made.members.serving() == [3]


def test_one_that_was_lost_and_is_back_while_it_is_waited_for_does_not_get_it_in_vain(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(monkeypatch, store)
    made.weights._restart_s = 60.0
    for engine in range(3):
        made.members.lose(engine, GroupError("it died"), 0)

    def back_at_last() -> None:
        made.members.restarting(1)
        made.members.lose(1, GroupError("once more"), 1)
        made.back(1)

    threading.Timer(0.1, back_at_last).start()
    made.weights.publish(7)
    assert [each[:2] for each in store.sent] == [(7, [1])] and made.members.serving() == [1]
