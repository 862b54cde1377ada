"""What must hold of a run in the end, whatever was done to it."""

import json
from collections import Counter
from itertools import islice, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

from launch.tracking.events import NOTICED, ended, read_events
from tests.chaos.injector import Injector
from tests.conftest import Job


def each_step_once(job: Job, steps: int) -> None:
    """Every line of metrics.jsonl parses, and no step is there twice, or missing."""
    lines = (job.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(steps + 1))


def each_prompt_once(job: Job, rows: int, prompts: int, samples: int) -> None:
    """No sample is lost, or trained on twice: each pass has every row once, or names it among those left out."""
    lines = [json.loads(line) for line in (job.directory / "samples.jsonl").read_text().splitlines()]
    steps = job.steps()
    last = max(steps)
    named = Counter(row for line in steps.values() for names in line.get("left_out", {}).values() for row in names)
    in_step = Counter(line["step"] for line in lines)
    assert set(in_step) == set(range(1, last + 1))
    assert set(in_step.values()) == {prompts * samples}, "a step with too few samples, or too many"
    trained = Counter(line["prompt"] for line in lines)
    passes = last * prompts // rows
    assert set(trained.values()) <= {count * samples for count in range(passes - len(named), passes + 1)}
    assert sum(trained.values()) + samples * sum(named.values()) >= passes * rows * samples
    if not named:
        assert len(trained) == rows and set(trained.values()) == {passes * samples}


def learned(job: Job, metric: str, at_least: float) -> None:
    """The last evaluations are as good, in the mean, as those of an undisturbed run have to be."""
    found = [line[metric] for line in job.metrics() if metric in line]
    assert fmean(found[-8:]) >= at_least, found  # not passed by NaN


def every_fault_is_told(job: Job, injector: Injector) -> None:
    """Each fault that was injected has its witness, and there is no other."""
    lines = read_events(job.directory / "events.jsonl")
    noticed = [(line["who"], line["what"]) for line in lines if line["event"] == NOTICED]
    what = {"kill": "died", "stop": "froze"}
    assert sorted(noticed) == sorted((each.who, what[each.hit.how]) for each in injector.done)
    assert len(ended(lines)) == len(noticed)


def nothing_is_left(job: Job) -> None:
    """No process, no temporary checkpoint, and a model that can be loaded."""
    assert job.left_behind() == []
    assert not list((job.directory / "checkpoints").glob("*.partial"))
    assert (job.directory / "export/config.json").is_file()


def text_of(job: Job) -> str:
    """What helps where an expectation is not met."""
    events = job.directory / "events.jsonl"
    told = events.read_text() if events.exists() else ""
    return f"{job.directory}\n{told}\n{job.text}"


REWARD = """
import time
from pathlib import Path
from statistics import fmean

def right(completions, prompts, answer):
    if not Path({done!r}).exists():
        time.sleep(0.04)  # a step shall not be over before it can be hit
    return [float(text == right) for text, right in zip(completions, answer)]
"""


def rows_of(directory: Path, rows: int) -> dict[str, Any]:
    """Data: so many words to reverse, and 16 held out; and a reward, `reward.py:right`, that takes its time until there
    is a file `done`."""
    (directory / "reward.py").write_text(REWARD.format(done=str(directory / "done")))
    words = ["".join(letters) for letters in islice(permutations("abcdefgh", 4), 0, (rows + 16) * 25, 25)]
    for name, own in (("train", words[:rows]), ("held-out", words[rows:])):
        found = [{"prompt": word, "answer": word[::-1]} for word in own]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return {"train": str(directory / "train.jsonl"), "eval": str(directory / "held-out.jsonl")}
