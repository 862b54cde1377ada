"""Ranks that send weights to nobody are ended; those that are at something else, or began later, are not."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.group_errors import RankLost
from actors.pulse import Pulse
from launch.run import roster as roster_module
from launch.run import stuck_transfer
from launch.run.roster import Roster
from launch.run.stuck_transfer import free_senders
from launch.run.watched import Loss

GRACE_S = 0.02


def pulse(method: str | None, seconds: float) -> Pulse:
    return Pulse(method=method, seconds=seconds, done=0)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []
    monkeypatch.setattr(stuck_transfer, "end_actors", found.append)
    return found


def free(told: Sequence[object], *, replaced: bool = False) -> None:
    policy: Any = SimpleNamespace(handles=["first", "second"])

    def pulses(within_s: float) -> Sequence[object]:
        if replaced:
            policy.handles = ["third", "second"]
        return told

    policy.pulses = pulses
    free_senders(policy, grace_s=GRACE_S).join()


@pytest.mark.parametrize("method", ["publish", "connect"])
def test_all_ranks_of_a_transfer_that_goes_nowhere_are_ended(ended: list[list[str]], method: str) -> None:
    free([RankLost("gone"), pulse(method, 9.0)])
    assert ended == [["first", "second"]]


def test_others_are_left_alone(ended: list[list[str]]) -> None:
    free([pulse("update", 9.0), pulse(None, 9.0)])
    free([pulse("publish", 0.0), pulse("publish", float("nan"))])
    free([pulse("publish", 9.0)], replaced=True)
    assert ended == []


@pytest.mark.parametrize(
    ("by", "group", "others", "frees"),
    [
        ("node", "rollout", ["policy"], True),
        ("exit", "rollout", ["policy"], False),
        ("node", "policy", ["policy"], False),
        ("node", "rollout", ["policy", "holder"], False),
    ],
)
def test_only_the_loss_of_an_engines_node_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, by: str, group: str, others: list[str], frees: bool
) -> None:
    asked: list[object] = []
    heard: list[tuple[int, int, str]] = []
    monkeypatch.setattr(roster_module, "free_senders", asked.append)
    roster = Roster("")
    groups: Any = roster._started
    groups.update({name: name for name in others})
    fleet: Any = SimpleNamespace(hear=lambda *told: heard.append(told))
    roster.fleet = fleet
    roster.hear(Loss(group=group, rank=0, generation=1, pid=7, what="died", noticed_by=by, noticed_s=4.2))
    assert asked == (["policy"] if frees else []) and len(heard) == (group == "rollout")
