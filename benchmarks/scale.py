"""Rollouts at a scale that no machine here has: python -m benchmarks.scale [--steps 6] [--ray-actors] [--out FILE]

The driver's own code over a thousand engines in virtual time (`benchmarks.steps`): its processor time and memory per
sample, for 100, 300 and 1,000 engines; step, utilisation and age of samples by `algorithm.max_staleness`, beside closed
formulas (`benchmarks.expected`); and what tail batching gains (`benchmarks.tails`). What Ray does for a driver is not
in it: `--ray-actors` measures that, with as many real actors as fit (`benchmarks.ray_actors`).
"""

import argparse
import datetime
import resource
from itertools import product
from pathlib import Path
from statistics import mean, median

from benchmarks import ray_actors, results, tails
from benchmarks.expected import Expected, beside, expected
from benchmarks.steps import (
    GROUPS,
    MAX_TOKENS,
    MEDIAN,
    SAMPLES,
    SIGMA,
    SPEED,
    STARTS,
    TRAIN_S,
    Run,
    Workload,
    simulated,
)

ENGINES, STALENESS = (100, 300, 1000), (0, 1, 2, 4, 8)
TARGET_MS, TARGET_KB = 0.3, 2.0
DRIVER_HEADER = ("engines", "samples a step", "driver, ms per sample", "held, KB per sample", "within target")
STALENESS_HEADER = (
    "max_staleness", "rollout.late", "step, s", "engines busy", "samples running on one", "mean age",
    "dropped per trained group", "largest age",
)  # fmt: skip
UNKNOWN = """\
The formulas are of `restart`. They do not know waiting (`wait`, the default), where every response is kept: n + 1 steps
then take about as long as the longest response and a training together. Nor the pace, by which no more is made ahead
than keeps training busy: where training takes longest they say an age of n, as if the bound were kept full. Nor that
groups end one by one and others start in their place: their groups start in bursts."""
TAILS = """\
RollPacker has 2.03 to 2.56 times the speed of verl end to end (arXiv 2509.21009), by this and by what it does beside:
other parallelism for long responses, rewards that are scheduled, training on what has ended while the rest goes on.
With rollouts 70 % of a step, rollouts alone would have to be 3.6 to 7.7 times as fast for that. Postponing a quarter
leaves one step in five as long as before: at most 5 times, 2.27 end to end. How much it gains is decided by how far
the longest response is from the others, hence by the limit: a step of many responses waits for one that reaches it.

Training as groups end is computed from when they have ended, and not built: still one update of a step's groups by the
policy that has sampled them, its gradients summed while the last ones are sampled. More responses, RollPacker's other
half, favour short ones within every prompt: that is measured, and not built either. The last column is what a policy
would learn from, against waiting for all."""


def driver_table(steps: int) -> str:
    """By number of engines."""
    rows = []
    for engines in ENGINES:
        run = simulated(Workload(engines=engines), 2, steps)
        samples = GROUPS * SAMPLES
        milliseconds = 1e3 * median(step.driver_s for step in run.steps) / samples
        kilobytes = run.held_bytes / samples / 1000
        within = milliseconds <= TARGET_MS and kilobytes <= TARGET_KB
        rows.append([engines, samples, f"{milliseconds:.4f}", f"{kilobytes:.2f}", "yes" if within else "NO"])
        print(results.table(DRIVER_HEADER, rows[-1:]), flush=True)
    return results.table(DRIVER_HEADER, rows)


def staleness_table(engines: int, steps: int) -> str:
    """By max_staleness: what starts again where it is late, beside the formulas, and what waits."""
    workload = Workload(engines=engines, groups=GROUPS * engines // ENGINES[-1])
    lengths = workload.lengths.drawn(40 * workload.groups, STARTS, workload.samples, MAX_TOKENS, seed=1)
    sizes = {"engines": workload.engines, "groups": workload.groups, "train_s": workload.train_s}
    rows = []
    for staleness, waits in product(STALENESS, (False, True)):
        if waits and not staleness:
            continue  # there is nothing late
        run = simulated(workload, staleness, steps, waits=waits)
        found = None if waits else expected(lengths, SPEED, **sizes, staleness=staleness)
        late = "wait" if waits else "restart" if staleness else ""
        rows.append([staleness, late, *_figures(run, found), max(run.ages)])
        print(results.table(STALENESS_HEADER, rows[-1:]), flush=True)
    return results.table(STALENESS_HEADER, rows)


def _figures(run: Run, found: Expected | None) -> list[str]:
    """Of a run, beside those of the formulas where there are any."""
    measured = [run.step_s, run.busy, run.running, mean(run.ages), run.dropped]
    forms = ["{:.1f}", "{:.3f}", "{:.1f}", "{:.2f}", "{:.3f}"]
    if found is None:
        return [form.format(value) for form, value in zip(forms, measured, strict=True)]
    formulas = [found.step_s, found.busy, found.running, found.age, found.dropped]
    return [beside(*each) for each in zip(measured, formulas, forms, strict=True)]


def main() -> None:
    """Measure, print and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ray-actors", action="store_true", help="real actors instead, as many as fit")
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    arguments = parser.parse_args()
    if arguments.ray_actors:
        text = f"## Empty Ray actors\n\n`python -m benchmarks.scale --ray-actors` on {results.machine()}. "
        return results.write_section("ray-actors", text + ray_actors.measured(), arguments.out)
    staleness, tail, driver = staleness_table(ENGINES[0], arguments.steps), tails.table(), driver_table(arguments.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = (
        f"## Simulated scale\n\n`python -m benchmarks.scale --steps {arguments.steps}`, {datetime.date.today()}, on "
        f"{results.machine()}. {GROUPS} groups of {SAMPLES} samples a step, lognormal lengths (median {MEDIAN:.0f}, "
        f"sigma {SIGMA:g}, at most {MAX_TOKENS} tokens), a token in {1e3 * SPEED.step_s:g} ms + "
        f"{1e3 * SPEED.sample_s:g} ms a running sample, {SPEED.slots} slots, {TRAIN_S:g} s of training a step; "
        f"{peak:.1f} GiB for all of it, engines included.\n\n"
        f"The driver at max_staleness 2; targets {TARGET_MS:g} ms and {TARGET_KB:g} KB:\n\n{driver}\n\n"
        f"{ENGINES[0]} engines, as many groups for each, simulated / by formula (difference):\n\n{staleness}\n\n"
        f"{UNKNOWN}\n\nTail batching on-policy, {tails.ENGINES} engines, simulated / by formula:\n\n{tail}\n\n{TAILS}"
    )
    results.write_section("scale", text, arguments.out)


if __name__ == "__main__":
    main()
