"""FakeEngines and FakePool: a group of rollout engines and the reward pool, without Ray and without waiting.

They are the group, `ray.wait` and the clock of `algorithms.rollouts.sampler` in one, so that a script says what ends
and when.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from actors.batch import EpisodeStatus, Prompt
from actors.group import GroupError
from actors.rollout.types import RolloutInfo
from algorithms.config import RewardConfig
from algorithms.rewards.pool import RewardPool, _Job
from algorithms.rewards.scores import Score, failed_score


@dataclass(frozen=True)
class After:
    """What happens next, so many seconds after what happened before; a status for each response of a group."""

    seconds: float
    generated: dict[int, str] = field(default_factory=dict)
    """Number of a group -> statuses of its responses, as "ok failed", or else of what its engine died."""
    scored: dict[int, str] = field(default_factory=dict)
    """Index of a prompt -> "ok" or "failed" for each response."""


@dataclass(eq=False)
class Call:
    """A reference."""

    name: str
    engine: int = -1
    done: bool = False
    died: str = ""
    answer: Any = None


def start() -> None:
    """The engine's method of that name."""


def generated() -> None:
    """The engine's method of that name."""


class FakeEngines:
    """`starts` are the calls that gave engines their prompts: (engine, numbers of the groups, seed)."""

    name = "rollout"
    timeout_s = 30.0

    def __init__(self, *script: After, engines: int = 3, broken: dict[int, str] | None = None) -> None:
        self.script = deque(script)
        self.engines = engines
        self.broken = broken or {}
        """Engine -> what it says instead of starting."""
        self.now = 5000.0
        self.starts: list[tuple[int, list[int], int | None]] = []
        self.given: dict[int, tuple[list[int], Any]] = {}
        """Number of a group -> token ids and sampling."""
        self.calls: dict[int, Call] = {}
        self.pool: FakePool | None = None

    def __len__(self) -> int:
        return self.engines

    def submit(self, engine: int, method: Any, *args: Any, num_returns: int = 1) -> Any:
        if method is start:
            prompts, sampling, seed = args
            self.starts.append((engine, [number for number, _ in prompts], seed))
            self.given |= {number: (token_ids, sampling) for number, token_ids in prompts}
            return Call("start", engine, done=True, died=self.broken.get(engine, ""))
        assert method is generated and num_returns == 2
        [number] = args
        assert number in self.starts[-1][1] and engine == self.starts[-1][0], "the engine knows of the prompt"
        self.calls[number] = Call(f"generated {number}", engine)
        return self.calls[number], f"rollouts {number}"

    def gather(self, refs: Sequence[Call], what: str, *, ranks: Sequence[int]) -> list[Any]:
        for ref, rank in zip(refs, ranks, strict=True):
            assert ref.done, "the driver waits for nothing else meanwhile"
            if ref.died:
                raise GroupError(f"rollout[{rank}].{what}: {ref.died}")
        return [ref.answer for ref in refs]

    def wait(self, refs: Sequence[Call], *, num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        """As Ray's; with a timeout, the next line of the script comes true."""
        assert 0 < num_returns <= len(refs) and len({id(ref) for ref in refs}) == len(refs)
        assert timeout is not None, "a wait without an end"
        if timeout:
            assert self.script, "the driver would wait for ever"
            self._happen(self.script.popleft())
        done = [ref for ref in refs if ref.done][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def monotonic(self) -> float:
        return self.now

    def _happen(self, event: After) -> None:
        self.now += event.seconds
        for number, said in event.generated.items():
            call, statuses = self.calls[number], said.split()
            call.done = True
            if not set(statuses) <= set(get_args(EpisodeStatus)):
                call.died = said
                continue
            call.answer = [
                RolloutInfo(
                    tokens=number + index,
                    prompt_tokens=number,
                    sampled_tokens=index,
                    status=status,  # type: ignore[arg-type]
                    oldest_version=0,
                )
                for index, status in enumerate(statuses)
            ]
        for index, said in event.scored.items():
            assert self.pool is not None
            self.pool.score(index, said.split())


class FakePool(RewardPool):
    """Counts as the real one does; scores what its engines' script says, at once unless it is `slow`."""

    def __init__(self, engines: FakeEngines, *, max_failed: float, slow: bool = False) -> None:
        self._config = RewardConfig(max_failed_fraction=max_failed)
        self._finished = []
        self.begin_step()
        self.jobs: dict[int, tuple[_Job, Call]] = {}
        """Index of a prompt -> what is scored."""
        self.submitted: list[int] = []
        self.slow = slow
        engines.pool = self

    def submit(self, prompt: Prompt, rollouts: Any, samples: int) -> int:
        ticket = 700 + len(self.submitted)
        self.submitted.append(prompt.index)
        job = _Job(ticket=ticket, prompt=prompt, rollouts=rollouts, samples=samples)
        self.jobs[prompt.index] = job, Call(f"score {prompt.index}")
        if not self.slow:
            self.score(prompt.index, ["ok"] * samples)
        return ticket

    def refs(self) -> list[Any]:
        return [call for _, call in self.jobs.values() if not call.done]

    def score(self, index: int, statuses: Sequence[str]) -> None:
        job, call = self.jobs[index]
        call.done = True
        job.scores += [
            failed_score(f"cause {index}", job.prompt.text, "")
            if status == "failed"
            else Score(reward=index + number / 10, parts={}, status="ok")
            for number, status in enumerate(statuses)
        ]
        self._finish(job)

    def ready(self, timeout_s: float) -> list[tuple[int, list[Score]]]:
        assert timeout_s == 0
        finished, self._finished = self._finished, []
        return finished
