"""What the driver does for a sample, in microseconds: python -m benchmarks.driver [--groups 512]

Real actors and Ray calls around simulated engines, whose responses are there at once: prompts are admitted, polled,
collected, and dealt to ranks for a reading and an update, as a step of GRPO does. The processor time of this process
is counted, that of its threads included, and not what it waits for.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import ray
from ray.util.placement_group import placement_group

from actors.batch import Prompt
from actors.group import ActorGroup, Slot
from actors.rollout.simulated import SimulatedRolloutWorker, Table
from actors.rollout.types import Sampling
from actors.rollout.worker import CONCURRENCY
from algorithms.rl.experience import divide, samples_of, split_updates, totals_of
from algorithms.rollouts.engines import RayEngines
from algorithms.rollouts.rollouts import Limits, Rollouts
from benchmarks import results

ENGINES, RANKS, TOKENS = 2, 2, 64
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    home = tempfile.mkdtemp()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    rows = []
    for samples in (1, 8):
        groups = arguments.groups if samples == 1 else arguments.groups // 4
        found = measure(samples, groups, arguments.rounds, home)
        rows.append([str(samples), str(groups * samples), *(f"{microseconds:.0f}" for microseconds in found)])
    ray.shutdown()
    text = (
        "## Driver, per sample\n\n"
        f"`python -m benchmarks.driver --groups {arguments.groups}` on {results.machine()}\n\n"
        + results.table(["samples of a prompt", "samples of a step", "rollouts, us", "dealing, us", "both, us"], rows)
    )
    print(text)
    results.write_section("driver", text)


def measure(samples: int, groups: int, rounds: int, home: str) -> tuple[float, float, float]:
    """Microseconds of the driver per sample: from prompts to groups, dealing them to ranks, and both; the median."""
    placement = placement_group([{"CPU": 0.5}] * ENGINES)
    assert placement.wait(60)
    slots = [Slot(placement=placement, bundle=n, cpus=0.5, gpus=0, threads=1) for n in range(ENGINES)]
    group: ActorGroup[SimulatedRolloutWorker] = ActorGroup(
        "rollout", SimulatedRolloutWorker, slots, timeout_s=60, log_directory=home, concurrency=CONCURRENCY
    )
    group.spawn(Table(lengths=(TOKENS,), token_s=0, slots=10**6))
    sampling = Sampling(samples=samples, temperature=1.0, max_tokens=TOKENS)
    rollouts = Rollouts(RayEngines(group), None, prompts(), sampling, Limits(silence_s=60), groups_per_step=groups)
    found = []
    for step in range(rounds + 1):
        started = processor_s()
        taken = rollouts.take(groups, step, seed=step)
        made = processor_s()
        everything = samples_of(taken, [np.ones(samples) for _ in taken])
        divide(taken, [everything], RANKS, 16 * TOKENS)
        updates = split_updates(everything, len(everything) // 2, step)
        divide(taken, updates, RANKS, 16 * TOKENS)
        _ = [totals_of(update, update) for update in updates]
        dealt = processor_s()
        found.append((made - started, dealt - made))
        time.sleep(0.2)  # what the step has left behind is freed
    rollouts.close()
    group.shutdown()
    per = [1e6 / (groups * samples) * median(part) for part in zip(*found[1:], strict=True)]
    return per[0], per[1], sum(per)


def prompts() -> Iterator[Prompt]:
    """Of 32 tokens each."""
    for number in count():
        yield Prompt(index=number, token_ids=[number % 90] * 32, text="", row={})


def processor_s() -> float:
    """Processor time of this process so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
