"""Bundles that a real Ray reserves: engines one by one, and what is said while they wait."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.util.placement_group import placement_group_table, remove_placement_group

from launch.run.reserve import place, release
from tests.test_placement import config_for

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
import time
from types import SimpleNamespace
import ray
from ray.cluster_utils import Cluster
from ray.experimental import get_object_locations
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from actors.config import UserError
from actors.group import ActorGroup
from actors.rollout.simulated import SimulatedRolloutWorker, Table
from actors.rollout.types import Request, Sampling
from actors.rollout.worker import CONCURRENCY
from algorithms.rollouts.ray_engines import RayEngines
from launch.run import reserve
from launch.run.local_ray import only_what_is_used
from launch.run.places import Places, fill, have_room_for_engine
from launch.run.reserve import place, release
from tests.test_placement import config_for

names = {}
with only_what_is_used():
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(True, head_node_args=head)
    for name in ("a", "b"):
        node = cluster.add_node(num_cpus=4, object_store_memory=80 * 2**20, labels={"name": name})
        names[node.node_id] = name
cluster.wait_for_nodes(60)
ray.init(cluster.address, log_to_driver=False)
reserve._LOOK_S = 1
passed = 0.0
reserve.time = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)

def config(wait_s, rollout):
    sections = {"cluster": {"wait_s": wait_s}, "policy": {"cpus_per_rank": 1}}
    return config_for(algorithm={"name": "grpo", "steps": 1}, rollout=rollout, **sections)

def where(told, wait_s=60, **rollout):
    placement = place(config(wait_s, rollout), told.append)
    nodes = [names[reserve.where_is(slot.placement)[0].node] for slot in placement.slots["rollout"]]
    groups = len({slot.placement.id for slot in placement.slots["rollout"]})
    release(placement)
    return nodes, groups

def refused(**rollout):
    # The deadline passes as soon as the wait is told of, which the next look finds.
    global passed
    told, passed = [], 0.0
    class Told:
        def append(self, line):
            global passed
            told.append(line)
            passed += 60
    try:
        where(Told(), **rollout)
    except UserError as error:
        assert len(told) == 1, "the wait is told of"
        return str(error).partition(" s: ")[2]
    finally:
        passed = 0.0

print("packed", *where([], engines=3, cpus_per_engine=2))
print("apart", *where([], engines=4, engines_per_node=2, cpus_per_engine=1))
print("labelled", *where([], engines=2, cpus_per_engine=1, node_labels={"name": "in(x, b)"}))
print("never", refused(engines=5, cpus_per_engine=2))
print("few", refused(engines=3, engines_per_node=1, cpus_per_engine=1))
print("narrow", refused(engines=3, cpus_per_engine=2.5))
other = placement_group([{"CPU": 3}, {"CPU": 2}], "STRICT_SPREAD")
assert other.wait(30)
print("taken", refused(engines=3, cpus_per_engine=1.5))
remove_placement_group(other)
print("again", *where([], engines=2, cpus_per_engine=3))

settings = config(60, {"engines": {"min": 1, "max": 5}, "cpus_per_engine": 2})
placement = place(settings, print)
counts = [len(placement.slots["rollout"])]
fill(settings, placement)
slots = placement.slots["rollout"]
counts += [len(slots), len({slot.placement.id for slot in slots}), sum(slot.alone for slot in slots)]
pending = placement.pending
print("filled", *counts, placement_group_table(pending)["state"], {slot.node_id for slot in slots} == set(names))
places = Places(settings, placement)
asked = places.ask()
assert asked.group == pending and placement.pending is None and asked.slot(0) is None
vacated = slots[0].node_id
placement.give_back(slots[0])
while asked.slot(0) is None:
    time.sleep(0.1)
print("then", asked.slot(0).node_id == vacated, asked.slot(1) == asked.slot(0))
asked.give_up()
release(placement)
until = time.monotonic() + 30
while not have_room_for_engine(settings, placement, set()) and time.monotonic() < until:
    time.sleep(0.1)
print("room", have_room_for_engine(settings, placement, set()), have_room_for_engine(settings, placement, set(names)))

def of(slots):
    return [names[slot.node_id] for slot in slots]

settings = config(60, {"engines": 2, "cpus_per_engine": 1})
placement = place(settings, print)
before, groups = of(placement.slots["policy"]), list(placement.reserved)
others = {node for node, name in names.items() if name in before}
[slot] = reserve.reserve_elsewhere(settings, placement, "policy", avoid=others, within_s=30.0, notify=print)
assert placement.reserved[:-1] == groups, "what it has, it keeps"
placement.move("policy", 0, slot)
states = [placement_group_table(group)["state"] for group in groups]
print("moved", before != of([slot]), states.count("REMOVED"), len(placement.reserved) == len(groups))
try:
    reserve.reserve_elsewhere(settings, placement, "policy", avoid=set(names), within_s=30.0, notify=print)
except reserve.NoRoom:
    print("nowhere", len(placement.reserved) == len(groups))
release(placement)

# Eight come with the news that they have ended, the others are asked for.
placement = place(config(60, {"engines": 1, "cpus_per_engine": 1, "node_labels": {"name": "b"}}), print)
group = ActorGroup(
    "rollout", SimulatedRolloutWorker, placement.slots["rollout"], timeout_s=60, log_directory=sys.argv[1],
    concurrency=CONCURRENCY,
)
group.spawn(Table(lengths=(2000,), token_s=1e-6, slots=64))
engines, sampling = RayEngines(group), Sampling(samples=16, temperature=1.0, max_tokens=2000)
engines.submit(0, [Request(id=number, token_ids=[5], sampling=sampling) for number in range(12)], None)
ended, until = set(), time.monotonic() + 60
while len(ended) < 12 and time.monotonic() < until:
    ended |= {event.finished.request for event in engines.wait((), 1.0)}
responses = engines.collect(0, sorted(ended))
places = get_object_locations(responses)
made, here = placement.slots["rollout"][0].node_id, ray.get_runtime_context().get_node_id()
there = [all(node in places[ref]["node_ids"] for ref in responses) for node in (made, here)]
print("responses", len(responses), *there)
del responses, places
group.shutdown()
ray.shutdown()
"""


def test_an_engines_bundle_is_its_own(local_ray: None) -> None:
    """One can be given back while the others, and the other groups, stay; the groups have one for all their ranks."""
    config = config_for(
        policy={"ranks": 2, "cpus_per_rank": 0.25}, rollout={"engines": 2, "cpus_per_engine": 0.5}, cluster={}
    )
    placement = place(config, print)
    try:
        first, second = [slot.placement for slot in placement.slots["rollout"]]
        assert [slot.bundle for slot in placement.slots["rollout"]] == [0, 0]
        assert len({slot.placement.id for slot in placement.slots["policy"]}) == 1
        remove_placement_group(first)
        states = [placement_group_table(group)["state"] for group in (first, second)]
        assert states == ["REMOVED", "CREATED"]
        assert placement_group_table(placement.slots["policy"][0].placement)["state"] == "CREATED"
    finally:
        release(placement)
    assert {placement_group_table(group)["state"] for group in placement.reserved} == {"REMOVED"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a program on a cluster of two nodes with four CPUs each has found, line by line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path_factory.mktemp("home"))}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("logs"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_the_values_of_a_label_are_those_that_the_user_lists(told: dict[str, str]) -> None:
    """With a space behind a comma, as a list is written."""
    assert told["labelled"] == "['b', 'b'] 2"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("packed", (["a", "a", "b"], 3)),
        ("apart", (["a", "a", "b", "b"], 2)),
        ("again", (["a", "b"], 2)),
    ],
)
def test_engines_are_packed_on_few_nodes_or_kept_apart(told: dict[str, str], case: str, expected: Any) -> None:
    """Neighbours side by side; which node comes first is Ray's affair."""
    nodes, groups = expected
    swapped = [{"a": "b", "b": "a"}[node] for node in nodes]
    assert told[case] in {f"{each} {groups}" for each in (nodes, swapped)}


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("never", "rollout needs 10 CPU, the cluster has 8"),
        ("few", "rollout needs 3 nodes with 1 CPU, the cluster has 2 such nodes"),
        ("narrow", "rollout needs 3 bundles with 2.5 CPU, each on one node, the cluster has room for 2 of them"),
        ("taken", "rollout needs 4.5 CPU, free now are 3"),
    ],
)
def test_a_shortage_is_that_of_all_engines(told: dict[str, str], case: str, line: str) -> None:
    """Also when some of them have their bundles already: these are not missing."""
    assert told[case] == line


def test_a_run_begins_with_as_many_engines_as_have_room(told: dict[str, str]) -> None:
    """Of at least one and at most five; one more stays asked for, and finds room when there is some."""
    assert told["filled"] == "1 3 3 0 PENDING True"
    assert told["then"] == "True True"
    assert told["room"] == "True False"


def test_a_group_moves_to_other_nodes(told: dict[str, str]) -> None:
    """Its new bundle is on none of those that are avoided, what it had is given back, and where there are no others
    nothing is kept."""
    assert told["moved"] == "True 1 True"
    assert told["nowhere"] == "True"


def test_responses_that_are_told_of_are_on_two_nodes(told: dict[str, str]) -> None:
    """The engine's, and the driver's: large ones, which Ray 2.60 leaves where they were made, and after a loss of which
    it raises ObjectLostError; with a copy elsewhere it takes that."""
    assert told["responses"] == "12 True True"
