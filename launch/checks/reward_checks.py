"""Calls each reward function once before anything starts, in a process of its own with a deadline.

The processes start with the check, so that what a function imports is read while the check reads model and data.
"""

import contextlib
import json
import os
import pickle
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from actors.user.confined import hidden, without_secrets
from algorithms.config import DataConfig, RewardConfig
from algorithms.rewards.built_in import BUILT_IN
from algorithms.rewards.calls import Samples
from algorithms.words import nearest
from launch.checks.reward_probe import ProbeRequest, Trial

NEUTRAL = "A sample completion."
"""What a function is called with beside a row's own answer."""
_OWN_ANSWERS = ("answer", "solution", "completion", "response", "target", "ground_truth")
_IMPORT_S, _CALL_S = 10.0, 10.0
"""Longest time that the check waits for an import and for a call."""
_GRACE_S = 1.0
"""What a process may take longer than it may: beyond, it is held by code that lets no thread run, and is killed."""
_PROMPT_COLUMNS = ("prompt", "messages", "question", "answer")


class _Imported(TypedDict):
    """What a process says once it has its function: the columns that it takes, or that it takes any."""

    event: Literal["imported"]
    takes: list[str]
    takes_any: bool


class _Problems(TypedDict):
    event: Literal["problems"]
    problems: list[str]


class _Late(TypedDict):
    event: Literal["late"]
    doing: Literal["importing", "calling"]
    reason: str
    stuck: bool


class _Died(TypedDict):
    event: Literal["died"]
    reason: str


class _Outcomes(TypedDict):
    """What a function gave for each completion of a batch: a value, None, or what it raised."""

    event: Literal["called"]
    batch: int
    outcomes: list[float | str | None]


_Event = _Imported | _Problems | _Late | _Died | _Outcomes


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """A training row to call rewards with."""

    number: int
    prompt: str
    row: dict[str, object]
    completion_ids: tuple[list[int], ...] | None = None
    """Tokens of its `completions`; None where the tokenizer is not here, or was not read."""

    @property
    def own_answer(self) -> str | None:
        """The column whose value is the row's own answer, if there is one."""
        return next((name for name in _OWN_ANSWERS if isinstance(self.row.get(name), str | int | float)), None)

    @property
    def completions(self) -> list[str]:
        """Its own answer and a neutral text; without an answer two neutral ones."""
        own = str(self.row[self.own_answer]) if self.own_answer else f"{NEUTRAL} {NEUTRAL}"
        return [own, NEUTRAL]

    def samples(self) -> Samples:
        """The batch of its completions."""
        texts = self.completions
        # Without a tokenizer numbers that nearly every vocabulary has: those of a byte-level one.
        ids = self.completion_ids or [list(text.encode()) for text in texts]
        columns = {name: [value, value] for name, value in self.row.items()}
        return Samples(prompts=[self.prompt] * 2, completions=texts, columns=columns, completion_ids=ids)


@dataclass(kw_only=True)
class Called:
    """What came of calling the reward functions."""

    lines: list[str] = field(default_factory=list)
    """For people: what each function gave."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Process:
    """A process, what it reads, and the pipe it answers on."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket
    answers: int


class RewardProbe:
    """The processes of all reward functions; a context manager that ends them.

    Example:
        with RewardProbe(config.reward) as probe:
            ...  # read model and data
            called = probe.finish(config.data, columns, examples)
    """

    def __init__(self, reward: RewardConfig, *, elsewhere: bool = False, code: bool = True) -> None:
        """`elsewhere`: the functions will run on other machines; what goes wrong with a call here is a warning.
        Without `code`, only functions that come with Tandem are called."""
        self._reward = reward
        self._elsewhere = elsewhere
        self._code = code
        self._processes: dict[int, _Process] = {}

    def __enter__(self) -> "RewardProbe":
        # As in the run: reward processes see what reward.pass_env lets through.
        environment = without_secrets(os.environ, self._reward.pass_env)
        for index, function in enumerate(self._reward.functions):
            if not (self._code or function.name in BUILT_IN):
                continue
            self._processes[index] = _start(environment)
            request = ProbeRequest(
                function=function,
                index=index,
                import_s=_IMPORT_S,
                call_s=min(self._reward.deadline_s, _CALL_S),
                deadline_s=self._reward.deadline_s,
                memory_mib=self._reward.memory_mib,
            )
            _send(self._processes[index].channel, pickle.dumps(request))
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._processes.values():
            each.process.kill()
            each.process.wait()
            each.channel.close()
            os.close(each.answers)

    def finish(
        self,
        data: DataConfig,
        columns: dict[str, list[str]] | None,
        examples: list[ProbeRow],
        lacking: dict[str, dict[str, str]] | None = None,
    ) -> Called:
        """Call every function on the examples, unless nothing is known of the data; what came of it.

        `columns` are those that every row has, `lacking` those of some, see Trial.
        """
        found, known = Called(), None
        try:
            batches = [example.samples() for example in examples]
            known = pickle.dumps(Trial(columns=columns, batches=batches, lacking=lacking or {}))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            found.warnings.append(f"reward.functions: not called here, as a row cannot be passed on ({error})")
        imported: list[_Imported] = []
        trial = known or pickle.dumps(Trial(columns=None, lacking={}, batches=[]))
        for each in self._processes.values():
            _send(each.channel, trial)
        for index, each in self._processes.items():
            for event in _events(each, _IMPORT_S + min(self._reward.deadline_s, _CALL_S) + _GRACE_S):
                if event["event"] == "imported":
                    imported.append(event)
                else:
                    self._take(event, index, examples, found)
        # Of one that could not be imported, nobody knows what it reads.
        if len(imported) == len(self._reward.functions):
            found.problems += self._unread_names(data, imported)
        return found

    def _take(
        self, event: _Problems | _Late | _Died | _Outcomes, index: int, examples: list[ProbeRow], found: Called
    ) -> None:
        name, where = self._reward.functions[index].name, f"reward.functions.{index}.name"
        if event["event"] == "problems":
            found.problems += [problem + self._hint(problem) for problem in event["problems"]]
        elif event["event"] == "late":
            self._take_late(event, index, found)
        elif event["event"] == "died":
            sink = found.warnings if self._elsewhere else found.problems
            sink.append(f"{where}: calling {name} ended its process ({event['reason']})")
        else:
            example = examples[event["batch"]]
            outcomes = dict(zip(_labels(example), event["outcomes"], strict=True))
            # A text is what was raised, or what was wrong with what it returned.
            failed = next(((label, value) for label, value in outcomes.items() if isinstance(value, str)), None)
            if failed:
                raised = "" if failed[1].startswith("returned") else "raised "
                line = f"{where}: {name} {raised}{failed[1]}, called by check with {failed[0]} as completion"
                line += self._hint(failed[1])
                if self._elsewhere or _is_about_the_text(example, outcomes):
                    found.warnings.append(f"{line}; in a run such samples count as failed")
                else:
                    found.problems.append(line)
            elif all(value is None for value in outcomes.values()):
                self._take_abstention(where, name, len(examples), found)
            else:
                values = ", ".join(f"{_shown(value)} for {label}" for label, value in outcomes.items())
                found.lines.append(f"reward.functions.{index} {name}: {values}")

    def _hint(self, text: str) -> str:
        """What to do where a failure is about a variable that reward processes do not see."""
        names = hidden(os.environ, self._reward.pass_env)
        missed = next((name for name in names if re.search(rf"\b{name}\b", text)), None)
        return f" (reward.pass_env=[{missed}] lets functions read it)" if missed else ""

    def _take_late(self, event: _Late, index: int, found: Called) -> None:
        name, limit = self._reward.functions[index].name, self._reward.deadline_s
        line = f"reward.functions.{index}.name: {event['doing']} {name} {event['reason']}"
        late = event["doing"] == "calling" and limit <= _CALL_S and not self._elsewhere
        if event["stuck"] or late:
            found.problems.append(line)
        elif event["doing"] == "calling":
            found.warnings.append(f"{line}; the run waits for reward.deadline_s {limit:g} s")
        else:
            found.warnings.append(f"{line}, so it was not called here")

    def _take_abstention(self, where: str, name: str, tried: int, found: Called) -> None:
        line = f"{where}: {name} gave no value (None) for any completion of {tried} rows"
        if self._reward.sources == 1:
            found.problems.append(f"{line}, and it is the only reward")
        else:
            found.warnings.append(line)

    def _unread_names(self, data: DataConfig, imported: list[_Imported]) -> list[str]:
        """A problem for each name in data.columns that neither a convention nor a reward reads."""
        if self._reward.endpoints or any(event["takes_any"] for event in imported):
            return []
        reads = {*_PROMPT_COLUMNS, *(name for event in imported for name in event["takes"])}
        return [
            f"data.columns.{new}: must be a column that is read, prompt, messages or what a reward function takes "
            f"({', '.join(sorted(reads))}){nearest(new, reads)}, got {new} for {old}"
            for new, old in data.columns.items()
            if new not in reads
        ]


def _is_about_the_text(example: ProbeRow, outcomes: dict[str, float | str | None]) -> bool:
    """Whether a function has failed only because of what it was called with: it takes the row's own answer, or there is
    none and it says that the text's value is wrong."""
    own, *others = outcomes.values()
    if example.own_answer:
        return not isinstance(own, str)
    kinds = [value.partition(":")[0] for value in (own, *others) if isinstance(value, str)]
    return all(kind in ("ValueError", "JSONDecodeError") for kind in kinds)


def _labels(example: ProbeRow) -> list[str]:
    own = f"the {example.own_answer} of row {example.number}" if example.own_answer else repr(f"{NEUTRAL} {NEUTRAL}")
    return [own, repr(NEUTRAL)]


def _shown(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else "nothing"


def _start(environment: dict[str, str]) -> _Process:
    ours, theirs = socket.socketpair()
    # What it reads may be more than fits on the way, and it may be busy until it is ended for being late.
    ours.settimeout(_IMPORT_S + _GRACE_S)
    reading, writing = os.pipe()
    # Without the working directory in front: a file of the user's called actors.py must not become ours.
    root = str(Path(__file__).resolve().parent.parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from launch.checks.reward_probe import serve; serve()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(writing)],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[writing],
        env=environment,
    )
    theirs.close()
    os.close(writing)  # else the pipe would not end with the process
    return _Process(process=process, channel=ours, answers=reading)


def _send(channel: socket.socket, message: bytes) -> None:
    # It may have ended, and has said why. Without the flag the signal of a broken pipe would end this process too.
    with contextlib.suppress(OSError):
        for start in range(0, len(message), 65536):
            sent = memoryview(message)[start : start + 65536]
            while sent:  # send() may take a part only
                sent = sent[channel.send(sent, socket.MSG_NOSIGNAL) :]


def _events(each: _Process, seconds: float) -> Iterator[_Event]:
    """What a process says until it ends, or for `seconds`; "died" when it ends without a last word."""
    until, text, ended = time.monotonic() + seconds, b"", False
    while select.select([each.answers], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(each.answers, 65536)
        if not part:
            break
        *lines, text = (text + part).split(b"\n")
        for line in lines:
            event = json.loads(line)
            ended = ended or event["event"] in ("done", "late")
            if event["event"] != "done":
                yield event
    else:
        yield {"event": "late", "doing": "calling", "reason": f"took longer than {seconds:g} s", "stuck": True}
        return
    code = each.process.wait()  # the pipe has ended, so the process has, or will at once
    if not ended:
        yield {"event": "died", "reason": f"signal {-code}" if code < 0 else f"exit code {code}"}
