"""Reward workers as seen by the training loop: calls go out, scores come back, and every call has a deadline.

While sources are quick, waiting batches share a call. A call that passes its deadline, or whose process dies, costs
its worker: the process is ended and replaced while the others go on. Batches that shared the call are then scored
alone, and one that fails alone is scored sample by sample to find the guilty one. When a sample fails that way too, it
and the samples after it are failed, so that a batch costs three deadlines at most, and the run goes on. A process may
have died for no fault of its samples: the first time, they are scored again as if nothing had been. An endpoint that is
down or slow costs no process: it is given up before the deadline.
"""

import functools
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.config import UserError
from actors.episodes import Episode, Prompt
from actors.group import first_line
from actors.group_errors import DataLost
from actors.pulse import ProcessId
from actors.user.reward_worker import RewardWorker
from algorithms.config import RewardConfig
from algorithms.rewards.endpoint import shown_address
from algorithms.rewards.scores import Score, failed_score, load_scorer

_QUICK_CALL_S = 0.1
"""Batches share a call as long as it is expected to take no longer."""


class RewardFailure(RuntimeError):
    """Scoring failed so often, or so badly, that the run must stop; the message says why."""


@dataclass(slots=True)
class _Job:
    """One prompt and its rollouts on their way to scores."""

    ticket: int
    prompt: Prompt
    rollouts: "list[Episode] | ObjectRef"
    samples: int
    scores: list[Score] = field(default_factory=list)
    alone: bool = False
    """Shares no call: one that it shared was lost."""
    one_by_one: bool = False
    """Scored sample by sample: its own call was lost."""
    forgiven: bool = False
    """A process has died over it."""


@dataclass(slots=True)
class _Worker:
    """An actor, what it is doing now (`call`; with jobs, or its start), since and until when (on time.monotonic())."""

    actor: ActorHandle
    call: ObjectRef | None
    since: float
    deadline: float
    generation: int
    """How many processes were in its place before."""
    jobs: list[_Job] = field(default_factory=list)
    process: ProcessId | None = None
    """Once it has started, and until it is ended."""
    tried_again: bool = False
    """The process before it has died in its start."""


class RewardPool:
    """Scores rollouts by functions and endpoints in `config.workers` processes, each with at most one call at a time.

    Deadlines are enforced, and waiting batches sent on, inside `ready`: call `ready(0)` about once a second while a
    batch is out. Not thread-safe, but for `processes`, `actor`, `deaths` and `lost`, by which another thread watches
    over the workers.

    Example:
        pool = RewardPool(config.reward)
        ticket = pool.submit(prompt, rollouts, samples=8)
        for ticket, scores in pool.ready(timeout_s=1): ...
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        cpus_per_worker: float = 0.1,
        places: Sequence[PlacementGroupSchedulingStrategy | str] | None = None,
        start_timeout_s: float = 120,
    ) -> None:
        """Start the workers without waiting for them. A worker's start, imports included, has `start_timeout_s`.

        `places`: Ray's scheduling strategy of each worker (default: Ray's own).

        Raises ValueError when `config` has neither functions nor endpoints.
        """
        if not config.functions and not config.endpoints:
            raise ValueError("a reward pool needs functions or endpoints: reward models are scored elsewhere")
        self._config = config
        self._cpus = cpus_per_worker
        self._start_timeout_s = start_timeout_s
        self._load = functools.partial(load_scorer, config)
        names = [function.name for function in config.functions]
        self._names = ", ".join(names + [shown_address(endpoint.url) for endpoint in config.endpoints])
        self._tickets = 0
        self._pending: deque[_Job] = deque()
        self._finished: list[tuple[int, list[Score]]] = []
        self._workers: list[_Worker] = []
        self._dead_idle: deque[tuple[int, int]] = deque()
        """Place and generation of workers that `lost` has told of."""
        self._deaths: deque[tuple[int, int]] = deque()
        """Of those that have died in a call, or in their start."""
        self._seconds_per_job = math.inf  # until a call has told, none is shared
        self._places = places or ["DEFAULT"] * config.workers
        for index in range(config.workers):
            self._workers.append(self._start(index, 0))

    def submit(self, prompt: Prompt, rollouts: "list[Episode] | ObjectRef", samples: int) -> int:
        """Queue the prompt's `samples` rollouts for scoring; returns a ticket. `ready` sends them and gives it back.

        `rollouts` may be a reference to a finished list: its tokens then never pass through the caller. An unfinished
        one would spend the call's deadline on waiting.
        """
        self._tickets += 1
        self._pending.append(_Job(ticket=self._tickets, prompt=prompt, rollouts=rollouts, samples=samples))
        return self._tickets

    def refs(self) -> list[ObjectRef]:
        """What the pool waits for; when one is done, `ready(0)` acts on it. Changes with every call of the pool."""
        return [worker.call for worker in self._workers if worker.call is not None]

    def ready(self, timeout_s: float) -> list[tuple[int, list[Score]]]:
        """Tickets and scores, in the order of their rollouts, of the batches finished since the last call.

        Waits up to `timeout_s` seconds for the first one; returns at once when nothing is queued.
        Raises RewardFailure when a worker cannot start, UserError when a source does not load in it, and Ray's error
        when rollouts passed by reference are lost.
        """
        until = time.monotonic() + timeout_s
        self._progress()
        while not self._finished and self._outstanding() and time.monotonic() < until:
            wake = min([until, *(worker.deadline for worker in self._workers if worker.call is not None)])
            ray.wait(self.refs(), num_returns=1, timeout=max(0.0, wake - time.monotonic()))
            self._progress()
        finished, self._finished = self._finished, []
        return finished

    def processes(self) -> dict[int, tuple[int, ProcessId | None]]:
        """Place of each worker -> its generation, and its process once it has started and until it is ended."""
        return {place: (worker.generation, worker.process) for place, worker in enumerate(list(self._workers))}

    def actor(self, place: int, generation: int) -> ActorHandle | None:
        """A worker's actor, while it has its place."""
        workers = list(self._workers)
        return workers[place].actor if place < len(workers) and workers[place].generation == generation else None

    def deaths(self) -> list[tuple[int, int]]:
        """Place and generation of workers whose calls have told that they died, since the last question."""
        return [self._deaths.popleft() for _ in range(len(self._deaths))]

    def lost(self, place: int, generation: int) -> bool:
        """Hear that a worker is dead: one that has nothing to do is replaced by the next `ready`, and does not lose the
        batch that it would get. Returns whether it still had its place."""
        now, process = self.processes().get(place, (None, None))
        if now != generation or process is None:
            return False
        self._dead_idle.append((place, generation))
        return True

    def close(self) -> None:
        """End the workers' processes; batches still out are dropped."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._pending.clear()

    def _start(self, index: int, generation: int) -> _Worker:
        options = {"num_cpus": self._cpus, "scheduling_strategy": self._places[index]}
        # A set has another order in every process.
        kept, memory_mib = sorted(self._config.kept_variables), self._config.memory_mib
        # Through Any: ray types what an actor's class gives as the class itself, whose methods have no `remote`.
        make: Any = ray.remote
        actor = make(RewardWorker).options(**options).remote(self._load, os.getcwd(), kept, memory_mib)
        now = time.monotonic()
        deadline = now + self._start_timeout_s
        return _Worker(actor=actor, call=actor.ping.remote(), since=now, deadline=deadline, generation=generation)

    def _outstanding(self) -> bool:
        return bool(self._pending) or any(worker.jobs for worker in self._workers)

    def _progress(self) -> None:
        """Take in what is done, end what is late, hand out what waits."""
        refs = self.refs()
        done = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        for worker in list(self._workers):  # a copy, as a lost one is replaced
            if worker.call in done:
                self._receive(worker)
            elif worker.call is not None and time.monotonic() > worker.deadline:
                limit = self._config.deadline_s if worker.jobs else self._start_timeout_s
                self._lost(worker, f"no answer within {limit:g} s")
        while self._dead_idle:
            place, generation = self._dead_idle.popleft()
            worker = self._workers[place]
            # A call fails with its process, and is taken in above when it does.
            if worker.generation == generation and worker.call is None:
                self._replace(worker)
        self._dispatch()

    def _receive(self, worker: _Worker) -> None:
        assert worker.call is not None
        try:
            answer = ray.get(worker.call, timeout=self._config.deadline_s)
        except RayActorError as error:
            if error.actor_id != worker.actor._actor_id.hex():
                # Not this worker died but who has the responses.
                raise DataLost(f"reward: responses are lost: {first_line(str(error))}") from error
            limit = self._config.memory_mib
            text = f"the process died{f' (reward.memory_mib allows {limit})' if limit else ''}"
            self._lost(worker, text, died=True)
            return
        except TaskCancelledError:  # what Ray makes of a KeyboardInterrupt: a timer of a function may be late
            self._lost(worker, "the call was interrupted (KeyboardInterrupt)")
            return
        except (ObjectLostError, RayTaskError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, UserError):
                raise UserError(*cause.problems) from None
            if isinstance(cause, ObjectLostError | RayActorError):
                raise DataLost(f"reward: responses are lost: {first_line(str(cause))}") from error
            raise RewardFailure(f"a reward worker failed: {type(cause).__name__}: {cause}") from error
        jobs, worker.jobs, worker.call = worker.jobs, [], None
        if not jobs:
            worker.process = answer  # of its start
            return
        self._seconds_per_job = (time.monotonic() - worker.since) / len(answer)
        # What the worker did not get to goes first, in its order.
        self._pending.extendleft(reversed(jobs[len(answer) :]))
        for job, scores in zip(jobs, answer, strict=False):
            job.scores += scores
            if len(job.scores) < job.samples:
                self._pending.appendleft(job)
            else:
                self._finish(job)

    def _replace(self, worker: _Worker) -> _Worker:
        worker.process = None  # first: nobody shall take its end for a fault
        ray.kill(worker.actor)
        place = self._workers.index(worker)
        self._workers[place] = self._start(place, worker.generation + 1)
        return self._workers[place]

    def _lost(self, worker: _Worker, what: str, *, died: bool = False) -> None:
        """A worker is late, or has died: killed by somebody, or for what it computed."""
        if died:
            self._deaths.append((self._workers.index(worker), worker.generation))
        jobs = worker.jobs
        if not jobs and (worker.tried_again or not died):
            raise RewardFailure(f"a reward worker did not start ({self._names}): {what}")
        self._replace(worker).tried_again = not jobs
        for job in jobs:
            if died and not job.forgiven:
                job.forgiven = True
                self._pending.appendleft(job)
                continue
            if job.one_by_one:
                self._give_up(job, what)
                continue
            # Only who was alone is guilty for certain; those who shared the call are tried alone before.
            job.one_by_one = len(jobs) == 1
            job.alone = True
            self._pending.appendleft(job)

    def _give_up(self, job: _Job, what: str) -> None:
        """Fail the sample whose call was lost, and all after it."""
        rollouts = job.rollouts
        if isinstance(rollouts, ObjectRef):
            rollouts = ray.get(rollouts, timeout=self._config.deadline_s)
        guilty = len(job.scores)
        for index in range(guilty, job.samples):
            cause = f"{self._names}: {what}"
            if index > guilty:
                cause = f"{self._names}: not scored, because of sample {guilty} of the same batch: {what}"
            job.scores.append(failed_score(cause, job.prompt.text, rollouts[index].text))
        self._finish(job)

    def _finish(self, job: _Job) -> None:
        self._finished.append((job.ticket, job.scores))

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._pending:
                return
            if worker.call is None:
                worker.jobs = jobs = self._next_jobs()
                only = len(jobs[0].scores) if jobs[0].one_by_one else None  # the next one
                prompts, samples = [job.prompt for job in jobs], [job.samples for job in jobs]
                groups, limit = [job.rollouts for job in jobs], self._config.deadline_s
                worker.call = worker.actor.score.remote(prompts, samples, only, limit, *groups)
                worker.since = time.monotonic()
                worker.deadline = worker.since + self._config.deadline_s

    def _next_jobs(self) -> list[_Job]:
        """The batches of the next call: one, or several quick ones, but no more than an even share of those waiting."""
        share = -(-len(self._pending) // len(self._workers))  # rounded up
        quick = int(min(share, _QUICK_CALL_S / self._seconds_per_job))
        jobs = [self._pending.popleft()]
        while len(jobs) < quick and not jobs[0].alone and not self._pending[0].alone:
            jobs.append(self._pending.popleft())
        return jobs
