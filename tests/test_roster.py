"""Ranks that die and are replaced, and pulses of ranks at work: real processes, real DeepSpeed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from actors.config import FrozenGroupConfig, OptimizerConfig, TrainerConfig
from actors.episodes import Sequence
from actors.group import ActorGroup, GroupError, Slot
from actors.models.skeleton import write_skeleton
from actors.pulse import Pulse
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from actors.train.worker import Totals
from algorithms.offline.sft import sft_loss
from launch.run.groups import rebuild, start_building, start_loading
from launch.run.reserve import Placement
from launch.run.roster import Roster
from tests.trainees import MODEL

# Actors get the classes of this file with the call, as they cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

RANKS, DEADLINE_S = 2, 60.0
BUILD = partial(start_building, total_updates=20)
LOAD = partial(start_loading, build=ReferenceWorker.build)


class Policy(PolicyWorker):
    """A rank that also tells on which thread it works."""

    def thread(self) -> tuple[int, int, bool]:
        """Threads of torch, and of OpenMP's next region, and whether gradients are computed."""
        return torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"]), torch.is_grad_enabled()


@pytest.fixture(scope="module")
def roster(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roster]:
    """A policy of two ranks under ZeRO-2, and a reference of two."""
    directory = tmp_path_factory.mktemp("roster")
    bundles = placement_group([{"CPU": 1.0}])
    assert bundles.wait(30)
    slot = Slot(placement=bundles, bundle=0, cpus=0.1, gpus=0, threads=2)
    placement = Placement([bundles], {"policy": [slot] * RANKS, "reference": [slot] * RANKS})
    skeleton = str(write_skeleton(MODEL, directory / "model"))
    roster = Roster(str(directory))
    trainer = TrainerConfig(zero_stage=2, optimizer=OptimizerConfig(lr=0.02), timeout_s=DEADLINE_S)
    policy = roster.add("policy", Policy, DEADLINE_S, placement)
    policy.spawn(MODEL, skeleton, trainer, 0)
    reference = roster.add("reference", ReferenceWorker, DEADLINE_S, placement)
    reference.spawn(MODEL, skeleton, FrozenGroupConfig(timeout_s=DEADLINE_S), 0)
    policy.gather(BUILD(policy), "build")
    reference.gather(LOAD(reference), "build")
    yield roster
    roster.shutdown()
    remove_placement_group(bundles)


def plans(update: int, batches: int = 2) -> list[list[list[Sequence]]]:
    """Per rank, micro-batches of four sequences of 40 tokens."""
    generator = np.random.default_rng(update)
    mask = np.arange(40) > 0

    def sequence() -> Sequence:
        return Sequence(token_ids=generator.integers(0, 90, size=40), action_mask=mask)

    return [[[sequence() for _ in range(4)] for _ in range(batches)] for _ in range(RANKS)]


def submit(policy: ActorGroup[Policy], update: int, batches: int = 2) -> list[Any]:
    """Start an update."""
    count = RANKS * batches * 4
    totals = Totals(tokens=39 * count, sequences=count, trained_tokens=39 * count)
    return [
        policy.submit(rank, Policy.learn, plan, totals, sft_loss) for rank, plan in enumerate(plans(update, batches))
    ]


def learn(policy: ActorGroup[Policy], update: int) -> dict[str, float]:
    """An update; its metrics without times."""
    metrics = policy.gather(submit(policy, update), "learn")[0]
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def pids(group: ActorGroup[Any]) -> list[int]:
    """Of the group's processes, as they say."""
    found = group.pulses(DEADLINE_S)
    return [pulse.pid for pulse in found if isinstance(pulse, Pulse)]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or holds nothing any more."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_pulse_is_answered_while_a_rank_works(roster: Roster) -> None:
    """The update is under way before the question and after the answer, and goes on meanwhile."""
    policy = roster["policy"]
    refs = submit(policy, 0, batches=200)
    seen: list[Pulse] = []

    def working() -> bool:
        answered = [pulse for pulse in policy.pulses(5.0) if isinstance(pulse, Pulse)]
        at_work = len(answered) == RANKS and all(pulse.method == "learn" and pulse.done for pulse in answered)
        if at_work and not ray.wait(refs, num_returns=1, timeout=0)[0]:
            seen.append(answered[0])
        return len(seen) >= 2 and seen[-1].done > seen[0].done

    wait_until(working, "two pulses of one update")
    assert not ray.wait(refs, num_returns=1, timeout=0)[0], "the update was over: the pulses prove nothing"
    assert 0 < seen[0].seconds < seen[-1].seconds
    policy.gather(refs, "learn")
    after = policy.pulses(DEADLINE_S)
    assert [(pulse.method, pulse.done) for pulse in after if isinstance(pulse, Pulse)] == [(None, 200)] * RANKS


def test_a_rank_that_does_not_answer_is_told_of_in_time(roster: Roster) -> None:
    """Of a process that stands still; it goes on afterwards as if nothing had been."""
    policy = roster["policy"]
    stopped = psutil.Process(pids(policy)[1])
    stopped.suspend()
    try:
        began = time.monotonic()
        first, second = policy.pulses(0.5)
        assert time.monotonic() - began < 5
    finally:
        stopped.resume()
    assert isinstance(first, Pulse)
    assert str(second) == "policy.pulse: no answer from rank(s) [1] within 0.5 s"
    assert pids(policy)[1] == stopped.pid


def test_methods_compute_with_the_threads_of_their_slot(roster: Roster) -> None:
    """They run beside the main thread, which is where the constructor has set them."""
    assert roster["policy"].call(Policy.thread) == [(2, 2, True)] * RANKS


def test_a_replaced_rank_continues_bit_for_bit(roster: Roster, tmp_path: Path) -> None:
    """Killed in an update, replaced, the group built anew and its checkpoint loaded: the next updates are the ones
    that an undisturbed group makes."""
    policy = roster["policy"]
    before = roster.version
    learn(policy, 1)
    policy.call(Policy.save, tmp_path)
    undisturbed = [learn(policy, update) for update in (2, 3)], policy.call(Policy.checksums)[0]
    assert undisturbed[0][0]["loss"] != undisturbed[0][1]["loss"]

    old = pids(policy)
    refs = submit(policy, 4, batches=200)
    wait_until(lambda: any(isinstance(p, Pulse) and p.done > 2 for p in policy.pulses(5.0)), "a rank at work")
    os.kill(old[1], signal.SIGKILL)
    with pytest.raises(GroupError, match=r"policy\[[01]\]\.learn"):
        policy.gather(refs, "learn")
    wait_until(lambda: has_ended(old[1]), "the end of the killed process")
    assert str(policy.pulses(5.0)[1]).startswith("policy[1].pulse: the process died")

    policy.replace(1)
    rebuild((policy, BUILD))
    assert policy.origin(refs[1]) == (1, 0) and policy.generations[1] == 1
    assert roster.version == before + policy.version > before
    new = pids(policy)
    assert len({*old, *new}) == 2 * RANKS and all(has_ended(pid) for pid in old)
    policy.call(Policy.load, tmp_path)
    assert ([learn(policy, update) for update in (2, 3)], policy.call(Policy.checksums)[0]) == undisturbed


def test_a_frozen_group_is_built_anew(roster: Roster) -> None:
    reference = roster["reference"]
    read = [(rank, True) for rank in plans(5)]
    expected = reference.scatter(ReferenceWorker.outputs, read)
    old = pids(reference)
    reference.replace(0)
    rebuild((reference, LOAD))
    assert reference.scatter(ReferenceWorker.outputs, read) == expected
    assert not {*old} & {*pids(reference)}


def test_members_are_those_of_now(roster: Roster) -> None:
    """A part of the roster knows groups that come later, and no others."""
    part = roster.members("policy", "critic")
    assert (list(part), len(part), "reference" in part) == (["policy"], 1, False)
    assert part["policy"] is roster["policy"]
    assert part.version == roster["policy"].version != roster.version
    with pytest.raises(KeyError):
        part["reference"]
