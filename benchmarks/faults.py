"""What faults cost a run: how soon each is noticed, how long the run stands, how much later its steps are done.

    python -m benchmarks.faults kinds --times 3
    python -m benchmarks.faults effective --steps 40 --step-s 20

`kinds`: PPO with a critic, a reference and a reward model, as `make demo-rlhf` has it, with two engines and then with
one; each kind of process is killed and stopped so often, in the phases in which it works. `effective`: the same run,
made slow by a reward function that takes its time; in a tenth of its steps something is hit, and the share of its time
that was not lost is as the run itself counts it. Every process starts as a user's does.
"""

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import learning, results
from benchmarks.compare_builds import commit
from benchmarks.compare_trl import ROOT, BenchmarkError
from tests.chaos.injector import Injected, Injector, Unlike
from tests.chaos.schedule import KILL, KINDS, STOP, Hit

PHASES = {
    "engine": "rollout",
    "policy": "update",
    "critic": "update",
    "reference": "reference",
    "reward_model": "score",
    "reward": "score",
    "raylet": "rollout",
    "driver": "update",
}
"""Kind of process -> a phase in which it works."""
QUIET_STEPS = 8
"""Before the first fault."""
END_S = 120.0
PROMPTS = 128
"""Of a step."""
SHARE = 0.1
"""Of the steps in which something is hit, in `effective`."""
_REWARD = """
import time

def slow(completions, prompts):
    time.sleep({seconds})
    return [0.0] * len(completions)
"""


@dataclass
class Run:
    """One that is going on, or has ended."""

    process: "subprocess.Popen[bytes]"
    directory: Path
    began: float = 0.0
    """When its own clock began, which goes on over all attempts at it; seconds since 1970."""

    def lines(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl, as far as they are whole."""
        path = self.directory / "metrics.jsonl"
        found = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in found if line.endswith("\n")]

    def done_at(self) -> dict[int, float]:
        """When each step was done; seconds since 1970."""
        return {line["step"]: self.began + line["time/elapsed"] for line in self.lines() if line["step"]}

    def wait_for_step(self, step: int, deadline_s: float) -> None:
        """Until it is done; raises BenchmarkError."""
        until = time.monotonic() + deadline_s
        while max(self.done_at(), default=0) < step:
            if self.process.poll() is not None or time.monotonic() > until:
                raise BenchmarkError(f"no step {step} within {deadline_s:g} s, see {self.directory.parent / 'log'}")
            time.sleep(0.02)
        if not self.began:
            self.began = time.time() - self.lines()[-1]["time/elapsed"]

    @property
    def step_s(self) -> float:
        """Of the steps in which nothing was hit, the median; the first one takes longer."""
        return median(line["time/step"] for line in self.lines()[2:] if not line["time/lost"])


@contextmanager
def started(output: Path, models: Sequence[Path], overrides: Sequence[str]) -> Iterator[Run]:
    """configs/demo-rlhf-ppo.yaml with these settings and the models of the stages before it, until the block ends."""
    policy, reward = models
    command = [sys.executable, "-m", "launch", "run", "configs/demo-rlhf-ppo.yaml", f"model.path={policy}"]
    command += [f"reward.models=[{reward}]", f"run.output={output}", "run.name=run", "tracking.wandb=false"]
    command += [f"algorithm.prompts_per_step={PROMPTS}", "run.max_restarts=9"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    output.mkdir(parents=True)
    with (output / "log").open("w") as log:
        process = subprocess.Popen([*command, *overrides], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=kept)
        try:
            yield Run(process, output / "run")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(END_S)


def stages(output: Path) -> tuple[Path, Path]:
    """Directories of a policy and of a reward model that have learned a little."""
    learning.run("demo-rlhf-sft", output / "sft", ["algorithm.steps=20", "algorithm.stop_when=null"])
    policy = output / "sft" / "run" / "export"
    learning.run("demo-rlhf-reward", output / "reward", ["algorithm.steps=20", f"model.path={policy}"])
    return policy, output / "reward" / "run" / "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one fault, in seconds."""

    engines: int
    fault: Injected
    done_s: float
    """From the fault until the step that was being made is done."""
    step_s: float
    """Of a step of this run without any."""


def kinds(output: Path, models: Sequence[Path], engines: int, times: int) -> list[Cost]:
    """Hit every kind of process so often, or engines alone where there is one; raises BenchmarkError, Unlike."""
    overrides = [f"rollout.engines={engines}", "rollout.threads_per_engine=1", "rollout.cpus_per_engine=0.4"]
    overrides += ["algorithm.steps=100000", "algorithm.eval_every=null", "checkpoint.every=10"]
    hit = [*product(PHASES if engines > 1 else ["engine"], (KILL, STOP))] * times
    draw = random.Random(engines)
    with started(output / f"engines-{engines}", models, overrides) as run:
        run.wait_for_step(QUIET_STEPS, 300)
        injector = Injector(run)
        for kind, how in hit:
            injector.inject(Hit(kind, PHASES[kind], how, draw.random()))
            run.wait_for_step(max(run.done_at()) + 2, 120)
        at, step_s = run.done_at(), run.step_s
    for hit_late in injector.missed:
        print(f"no moment for: {hit_late.text}", flush=True)
    return [Cost(engines=engines, fault=each, done_s=at[each.step] - each.at, step_s=step_s) for each in injector.done]


def effective(output: Path, models: Sequence[Path], steps: int, step_s: float) -> tuple[list[Injected], float, float]:
    """Hit something in a tenth of the steps; the faults, the run's effective share, and seconds of a quiet step."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "slow.py").write_text(_REWARD.format(seconds=step_s / PROMPTS), encoding="utf-8")
    overrides = ["rollout.engines=2", "rollout.threads_per_engine=1", "rollout.cpus_per_engine=0.4"]
    overrides += [f"reward.functions=[{output / 'slow.py'}:slow]", f"algorithm.steps={steps}", "checkpoint.every=1"]
    deadline_s = 300 + 3 * step_s * steps
    draw = random.Random(steps)
    at = sorted(draw.sample(range(2, steps - 1), round(SHARE * steps)))
    with started(output / "effective", models, [*overrides, "algorithm.eval_every=null"]) as run:
        injector = Injector(run)
        for step in at:
            run.wait_for_step(step - 1, deadline_s)
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            injector.inject(Hit(kind, PHASES[kind], draw.choice((KILL, STOP)), draw.random()))
        run.wait_for_step(steps, deadline_s)
        if injector.missed:
            raise BenchmarkError(f"fewer faults than in a tenth of the steps, no moment for {injector.missed[0].text}")
        return injector.done, run.lines()[-1]["time/effective"], run.step_s


def _kinds_section(costs: Sequence[Cost], command: str) -> str:
    found: dict[tuple[int, str, str], list[Cost]] = {}
    for each in costs:
        found.setdefault((each.engines, each.fault.hit.kind, each.fault.hit.how), []).append(each)
    rows = [
        (*key, len(of), *(_where(of, value) for value in (_noticed, _stood, _done)))
        for key, of in sorted(found.items())
    ]
    steps = ", ".join(
        f"{engines}: {_step_s(costs, engines):.1f}" for engines in sorted({each.engines for each in costs})
    )
    header = ["engines", "process", "how", "times", "noticed", "stood", "step done"]
    return "\n".join(
        [
            "## What faults cost, by kind of process",
            "",
            _made_by(command),
            "",
            "Seconds, median and largest: from the fault until it is noticed, until what was lost is back, and until "
            "the step that was being made is done. "
            f"A step without a fault takes, by the number of engines, {steps} s.",
            "",
            results.table(header, rows),
        ]
    )


def _noticed(cost: Cost) -> float:
    return cost.fault.noticed_s


def _stood(cost: Cost) -> float:
    return cost.fault.stood_s


def _done(cost: Cost) -> float:
    return cost.done_s


def _where(costs: Sequence[Cost], value: Callable[[Cost], float]) -> str:
    values = [value(each) for each in costs]
    return f"{median(values):.1f}, {max(values):.1f}"


def _step_s(costs: Sequence[Cost], engines: int) -> float:
    return next(each.step_s for each in costs if each.engines == engines)


def _effective_section(faults: Sequence[Injected], share: float, step_s: float, steps: int, command: str) -> str:
    hits = "; ".join(f"{each.hit.text} of step {each.step}, over after {each.stood_s:.1f} s" for each in faults)
    return "\n".join(
        [
            "## Effective training time with faults in a tenth of the steps",
            "",
            f"**{share:.1%}** of the time of {steps} steps of {step_s:.1f} s was not lost, with {len(faults)} faults",
            "",
            _made_by(command),
            "",
            f"Faults: {hits}",
        ]
    )


def _made_by(command: str) -> str:
    return f"`python -m benchmarks.faults {command}`, {datetime.date.today()}, at {commit(ROOT)} on {results.machine()}"


def main() -> None:
    """Run one of both and write its section of RESULTS.md."""
    parser = argparse.ArgumentParser(description="What faults cost a run.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    by_kind = verbs.add_parser("kinds", help="each kind of process, killed and stopped")
    by_kind.add_argument("--times", type=int, default=3, help="that each is done")
    share = verbs.add_parser("effective", help="faults in a tenth of the steps")
    share.add_argument("--steps", type=int, default=40)
    share.add_argument("--step-s", type=float, default=20, help="that rewards make a step take, in seconds")
    given = parser.parse_args()
    output = Path(tempfile.mkdtemp(prefix="faults-"))
    models = stages(output)
    if given.verb == "kinds":
        costs = [cost for engines in (2, 1) for cost in kinds(output, models, engines, given.times)]
        text = _kinds_section(costs, f"kinds --times {given.times}")
    else:
        found, effect, step_s = effective(output, models, given.steps, given.step_s)
        command = f"effective --steps {given.steps} --step-s {given.step_s:g}"
        text = _effective_section(found, effect, step_s, given.steps, command)
    print(text)
    results.write_section(f"faults-{given.verb}", text)


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, Unlike) as error:
        sys.exit(str(error))
