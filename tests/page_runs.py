"""Run directories as a run leaves them, made in milliseconds: for tests of the page, of the report, and to look at.

python -m tests.page_runs DIRECTORY    writes a few runs, of the states that there are
"""

import json
import random
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.config import load
from launch.tracking.events import Events, Fault
from launch.tracking.now import pid_namespace

ROOT = Path(__file__).resolve().parent.parent
STEP_S = 12.0
BEGAN = time.time() - 181 * STEP_S
"""Seconds since 1970 at which every run here begins: one of 180 steps goes on now."""
SAMPLES = 8
CHECKPOINT_EVERY = 20
DRIVER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
with open(sys.argv[1], "a"):  # as a driver holds it
    print("ready", flush=True)
    time.sleep(60)
"""
"""A program that ends at SIGTERM; its arguments: the file that it holds open, and words that make it a driver."""
_PHRASES = ("first count the boxes", "then", "add what is left over", "divide by two", "and carry one", "so we get")


def write_run(directory: Path, *, steps: int, of: int = 300, seed: int = 0, lr: float = 1e-6, prompts: int = 4) -> Path:
    """A run of GRPO that has done so many steps, without faults; returns its directory."""
    (directory / "logs").mkdir(parents=True)
    settings = ["data.eval_fraction=0.1", "algorithm.eval_every=10", "algorithm.eval_samples_per_prompt=2"]
    settings += [f"algorithm.steps={of}", f"policy.optimizer.lr={lr}"]
    settings += [f"run.name={directory.name}", f"run.output={directory.parent}"]
    config = load(str(ROOT / "configs/grpo.yaml"), settings)
    (directory / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    add_steps(directory, 0, steps, seed=seed, prompts=prompts)
    for number in (0, 1):
        lines = (f"{_at(step)} engine {number}: step {step}, {SAMPLES} responses\n" for step in range(number, steps))
        (directory / f"logs/rollout-{number}.log").write_text("".join(lines))
    return directory


def add_steps(directory: Path, first: int, last: int, *, seed: int = 0, prompts: int = 4) -> None:
    """Append the lines of steps `first` to `last`, and say where the run is."""
    chance = random.Random(f"{seed} {first}")
    rows, samples, held_out, tokens = [], [], [], []
    for step in range(first, last + 1):
        rows.append(_metrics(step, chance))
        if step:
            written = _samples(step, chance, prompts)
            samples += written
            tokens.append(_tokens(next(row for row in written if row["group"] == row["sample"] == 0), chance))
        if step % 10 == 0:
            held_out += _held_out(step, chance)
        if step and step % CHECKPOINT_EVERY == 0:
            checkpoint = directory / f"checkpoints/step-{step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "identity": {}, "parts": {}}))
    for file, lines in (("metrics", rows), ("samples", samples), ("eval_samples", held_out), ("tokens", tokens)):
        with (directory / f"{file}.jsonl").open("a") as out:
            out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    say_now(directory, last, "rollout", driver=0)


def write_long(directory: Path, *, steps: int) -> list[dict[str, float]]:
    """Put a long run's metrics.jsonl in place, in which few steps take much longer; returns the seconds of each step by
    phase, and of the whole as `step`."""
    rows = [{"rollout": 60.0 if step % 97 == 0 else 1.0} for step in range(1, steps + 1)]
    for row in rows[49::50]:
        row["evaluate"] = 40.0
    for row in rows:
        row["step"] = sum(row.values()) + 0.4
    timed = [{"step": 90.0, "evaluate": 80.0}, *rows]  # before the first one
    with (directory / "metrics.jsonl").open("w") as out:
        for step, row in enumerate(timed):
            out.write(json.dumps({"step": step, **{f"time/{name}": seconds for name, seconds in row.items()}}) + "\n")
    return rows


def say_now(
    directory: Path, step: int, phase: str, *, driver: int, at: float | None = None, host: str | None = None
) -> None:
    """Write logs/now.json; `at`: seconds since 1970 (default: when this step is to be), `host`: the driver's (this)."""
    when = _at(step) if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    now = {"at": when, "attempt": 1, "step": step, "phase": phase, "since": when, "driver": driver}
    now |= {"host": host or socket.gethostname(), "namespace": pid_namespace(), "began_step": 0, "began_at": _at(0)}
    now |= {"elapsed_s": step * STEP_S, "processes": {"policy[0]": driver}, "engines_serving": 2, "engines_expected": 2}
    (directory / "logs/now.json").write_text(json.dumps(now))


def add_faults(directory: Path, steps: int) -> None:
    """An engine died and came back, a rank froze, the driver was killed and resumed, a disk is full and still is."""
    clock = BEGAN
    events = Events(directory, clock=lambda: clock)

    def at(share: float, seconds: float, phase: str) -> None:
        nonlocal clock
        events.step, events.phase = max(1, int(share * steps)), phase
        clock = BEGAN + events.step * STEP_S + seconds

    at(0.2, 3, "rollout")
    cause = "killed by signal 9"
    died = Fault(who="rollout[1]", what="died", noticed_by="exit", noticed_s=0.7, pid=4711, cause=cause)
    number = events.noticed(died)
    events.state(number, "restarting")
    at(0.2, 21, "rollout")
    events.recovered(number, "restarted", samples=["data row 17", "data row 4"])
    at(0.5, 2, "update")
    number = events.noticed(Fault(who="policy[0]", what="froze", noticed_by="silent", noticed_s=31.0, pid=4712))
    at(0.5, 55, "update")
    events.recovered(number, "restarted", redone_steps=1)
    at(0.7, 1, "sync")
    number = events.noticed(Fault(who="driver", what="died", noticed_by="exit", noticed_s=0.4, pid=99, cause=cause))
    at(0.7, 140, "sync")
    events.recovered(number, "resumed", redone_steps=7)
    at(0.95, 4, "checkpoint")
    events.noticed(Fault(who="disk", what="failed", noticed_by="call", cause="No space left on device"))


def _at(step: int, seconds: float = 0.0) -> str:
    return datetime.fromtimestamp(BEGAN + step * STEP_S + seconds, UTC).isoformat(timespec="milliseconds")


def _metrics(step: int, chance: random.Random) -> dict[str, Any]:
    """A line of metrics.jsonl: a reward that grows, an entropy that falls, phases that leave some time idle."""
    grown = 1 - 2.0 ** (-step / 60)
    held_out = {"eval/reward/mean": round(0.1 + 0.75 * grown, 4), "eval/failed": 0.0} if step % 10 == 0 else {}
    if not step:
        return {"step": 0, **held_out, "time/evaluate": 4.2}
    seconds = {"rollout": 5.5, "score": 0.3, "reference": 0.8, "advantages": 0.01, "update": 3.4, "sync": 0.6}
    seconds = {phase: round(usual * chance.uniform(0.8, 1.3), 4) for phase, usual in seconds.items()}
    seconds |= {"evaluate": 4.0} if held_out else {}
    idle = chance.uniform(0.1, 0.35)
    found = {
        "loss/policy": chance.gauss(0, 0.01),
        "grad_norm": 1.0 + abs(chance.gauss(0, 0.4)),
        "learning_rate": 1e-6 * min(1.0, step / 10),
        "policy/entropy": 1.6 * (1 - 0.7 * grown) + chance.gauss(0, 0.04),
        "policy/clip_fraction": abs(chance.gauss(0, 0.01)),
        "mismatch/kl": 10 ** chance.gauss(-3.5, 0.2),
        "reward/mean": 0.1 + 0.8 * grown + chance.gauss(0, 0.05),
        "reward/std": 0.4 - 0.2 * grown,
        "reward/zero_variance_fraction": 0.1 + 0.5 * grown,
        "rollout/response_tokens_mean": 180 + 220 * grown + chance.gauss(0, 12),
        "rollout/truncated_fraction": max(0.0, chance.gauss(0.06, 0.03)),
        "rollout/failed": 0.0,
        "tokens_per_second": 900 + chance.gauss(0, 40),
        "bubble/trainer_wait_seconds": seconds["rollout"] * 0.7,
        "bubble/engine_idle_fraction": idle,
        "bubble/engine_underfilled_fraction": 0.2,
        "bubble/engine_paused_fraction": 0.02,
        "weights/version": float(step),
        **{f"time/{phase}": taken for phase, taken in seconds.items()},
        "time/step": sum(seconds.values()) + chance.uniform(0.2, 0.9),
        "time/lost": 0.0,
        "time/effective": round(1.0 - 0.0006 * step / (1 + 0.01 * step), 4),
        "time/elapsed": step * STEP_S,
    }
    return {"step": step, **{name: round(value, 8) for name, value in found.items()}, **held_out}


def _samples(step: int, chance: random.Random, prompts: int) -> list[dict[str, Any]]:
    """The lines of a step, the best ones first: whole groups, with rewards of two sources."""
    rows = []
    for group in range(prompts):
        boxes = 3 + group + step % 7
        prompt = f"Ann has {boxes} boxes of 12 pens and gives 5 pens away. How many pens are left?"
        rewards = [float(chance.random() < 0.1 + 0.8 * (1 - 2.0 ** (-step / 60))) for _ in range(SAMPLES)]
        mean = sum(rewards) / SAMPLES
        for sample, solved in enumerate(rewards):
            status = "truncated" if sample == 5 and not solved else "ok"
            text = " ".join(chance.choice(_PHRASES) for _ in range(chance.randrange(8, 30)))
            answer = 12 * boxes - 5 if solved else 12 * boxes + chance.randrange(1, 9)
            rows.append(
                {
                    "step": step,
                    "group": group,
                    "sample": sample,
                    "row": 10 * step + group,
                    "prompt": prompt,
                    "completion": text if status == "truncated" else f"{text}\n\n\\boxed{{{answer}}}",
                    "reward": round(solved + 0.1 * (status == "ok"), 4),
                    "rewards": {"math": solved, "format": 0.1 * (status == "ok")},
                    "advantage": round(solved - mean, 4),
                    "length": len(text.split(" ")),
                    "version": step - 1,
                    "status": status,
                    "answer": str(12 * boxes - 5),
                }
            )
    return sorted(rows, key=lambda row: (-row["reward"], row["sample"], row["group"]))


def _tokens(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A line of tokens.jsonl for a sample; in its middle stands text that an environment has given."""
    words = row["completion"].split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    middle = len(pieces) // 2
    pieces[middle:middle] = ["\n<tool>", "71", "</tool>\n"]
    sampled = [not middle <= place < middle + 3 for place in range(len(pieces))]
    logprobs = [round(-chance.expovariate(1.5), 4) if own else None for own in sampled]
    versions = [row["version"] - (place < middle) if own else None for place, own in enumerate(sampled)]
    named = {name: row[name] for name in ("step", "group", "sample")}
    return named | {"pieces": pieces, "logprobs": logprobs, "versions": versions, "sampled": sampled}


def _held_out(step: int, chance: random.Random) -> list[dict[str, Any]]:
    """Two responses to each of three prompts; they become longer and right."""
    rows = []
    for number in range(3):
        right = 7 * (number + 2)
        for _ in range(2):
            solved = chance.random() < 0.1 + 0.8 * (1 - 2.0 ** (-step / 60))
            told = f"There are {number + 2} weeks of 7 days, {'so' if step < 20 else 'which makes'} "
            told += f"{right} days in all." if solved else f"{right + 1} days."
            rows.append(
                {
                    "step": step,
                    "row": number,
                    "prompt": f"How many days are {number + 2} weeks?",
                    "completion": told,
                    "final_answer": str(right if solved else right + 1),
                    "reward": float(solved),
                    "rewards": {"math": float(solved)},
                    "solved": solved,
                    "status": "ok",
                    "columns": {"answer": str(right)},
                }
            )
    return rows


class Watch:
    """`tandem watch` on a directory, as a process of its own."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.directory = directory
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "launch", "watch", str(self.directory), "--port", str(self.port)]
        command += ["--token", "one-for-all-starts-of-it"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[0]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def write_several(directory: Path) -> None:
    """Runs of several states below a directory."""
    write_run(directory / "grpo-first", steps=180, seed=1)
    add_faults(directory / "grpo-first", 180)
    write_run(directory / "grpo-slower", steps=120, seed=2, lr=3e-7)
    done = write_run(directory / "sweep/grpo-done", steps=60, of=60, seed=3, lr=3e-6)
    say_now(done, 60, "end", driver=0)
    (done / "export").mkdir()
    (done / "export/config.json").write_text("{}")


if __name__ == "__main__":
    write_several(Path(sys.argv[1]))
