"""A range of engines in the settings: what is refused, what counts the most of them, and what the fewest."""

from dataclasses import replace
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.capacity import check_resources
from launch.config import RunConfig
from launch.kube.packing import pod_groups
from launch.screen.bubbles import advice
from launch.settings.cores import engine_threads
from launch.sizes.machine import Machine
from launch.sizes.placement import demands, reservation_of, reservations
from tests.test_bubble_advice import EVEN, NOTHING, settings
from tests.test_placement import config_for

RANGE = {"min": 2, "max": 8}


def config(engines: Any = RANGE, **sections: Any) -> RunConfig:
    rollout = sections.pop("rollout", {})
    return config_for(rollout={"engines": engines} | rollout, **sections)


@pytest.mark.parametrize(
    ("engines", "line"),
    [
        ({"min": 0, "max": 8}, "rollout.engines.min: must be above 0, got 0"),
        ({"min": 1}, "rollout.engines.max: required, got nothing"),
        ({"min": 1, "most": 8}, "rollout.engines.most: unknown field (rollout.engines has min, max), got 8"),
        (2.5, "rollout.engines: must be a whole number, got 2.5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(engines: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        config(engines)
    assert line in refused.value.problems


@pytest.mark.parametrize("store", ["broadcast", "holder"])
def test_either_store_serves_engines_that_come_later(store: str) -> None:
    rolling = {"algorithm": {"name": "grpo", "steps": 1, "max_staleness": 1}} if store == "holder" else {}
    order = {"update_order": "rolling"} if store == "holder" else {}
    found = config(rollout={"transfer": {"store": store}} | order, **rolling).rollout
    assert (found.most, found.fewest, found.grows) == (8, 2, True)
    assert (config(3).rollout.most, config(3).rollout.fewest, config(3).rollout.grows) == (3, 3, False)


def test_a_run_reserves_the_fewest_and_all_else_counts_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.config.machine_cpus", lambda: 16)
    found = config(cluster={"placement": "separate"})
    [asked] = [each for each in demands(found) if each.group == "rollout"]
    assert asked.count == 8
    for fewest, count in ((False, 8), (True, 2)):
        [own] = [each for each in reservations(found, fewest=fewest) if each.name == "rollout"]
        assert (len(own.bundles), own.ranks, own.each) == (count, {"rollout": [*range(count)]}, True)
    one = reservation_of(found, "rollout", 1)
    assert (one.bundles, one.ranks) == ([{"CPU": 0.5}], {"rollout": [0]})
    pods = {group.name: group for group in pod_groups(found)}
    assert sum(node.processes["rollout"] for node in pods["rollout"].nodes) == 8
    assert engine_threads(found) == engine_threads(config(8)) == 2
    with pytest.raises(ValueError, match="shares its bundles"):
        reservation_of(config(2, cluster={"placement": "shared"}), "rollout", 1)


def test_a_machine_that_has_room_for_the_fewest_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = Machine(cpus=4, gpus=0, memory=2**40, free=2**40, shared=2**40)
    assert check_resources(config(rollout={"cpus_per_engine": 1}), machine) == []
    with pytest.raises(UserError, match=r"needs 8\.6 CPUs"):
        check_resources(config(8, rollout={"cpus_per_engine": 1}), machine)


def test_no_other_number_is_advised_where_there_are_as_many_as_have_room() -> None:
    account = replace(NOTHING, idle=0.6)

    def told(engines: object) -> str:
        found = advice(account, settings(1, rollout__engines=engines), lambda name: name.startswith("rollout.engines"))
        return found.setting if found else ""

    assert told(5) == "rollout.engines=2"
    assert told({"min": 1, "max": 5}) == ""
    for engines, setting in ((2, "rollout.engines=4"), (RANGE, None)):
        slow = settings(rollout__engines=engines)
        found = advice(replace(EVEN, idle=0.0), slow, lambda name: name.startswith("rollout.engines"))
        assert (found and found.setting) == setting
