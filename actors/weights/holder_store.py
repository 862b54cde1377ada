"""Weights go to a holder, and from there to each engine that asks, whenever it does, without the policy."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayActorError

from actors.group import ActorGroup, GroupError, no_answer
from actors.rollout.worker import Adapter, RolloutWorker
from actors.train.policy import PolicyWorker
from actors.weights.holder import WeightHolder
from actors.weights.offer import Offer
from actors.weights.ticket import Account, Got, Kind, Sent, Ticket

T = TypeVar("T")

_MOMENT_S = 5.0
"""Longest wait for what the holder says of servings that failed."""
_ENGINE: Any = RolloutWorker
_HOLDER: Any = WeightHolder
"""Their methods as plain functions: ray.method hides from type checkers that they are."""


@dataclass(kw_only=True)
class HolderStore:
    """A `WeightStore` of a holder's process."""

    policy: ActorGroup[PolicyWorker]
    holder: ActorGroup[WeightHolder]
    rollout: ActorGroup[RolloutWorker]
    tensor_parallel: int
    """Worker processes of an engine."""
    canary: list[int]
    """Token ids of the prompt that both sides compute."""
    verify_every: int
    """Versions from one that both sides account for to the next."""
    timeout_s: float
    """Deadline of an engine's fetch."""
    rolling: bool = False
    """Serve engines one after the other: while one gets the weights, the others go on with those that they have."""
    version: int = -1
    """Published last."""

    def publish(self, version: int, *, prove: bool = False) -> Ticket:
        """Send the policy's weights to the holder, which then has them and no others."""
        verify = prove or version % self.verify_every == 0
        told = self.policy.call(PolicyWorker.publish, version, self.canary, verify)[0]
        assert told is not None, "rank 0 tells"
        self.version = version
        return told[0]

    def fetch(self, ticket: Ticket, engines: Sequence[int]) -> list[Account]:
        """Serve engines, each in a group of its own and all at one time, unless `rolling`, without the policy.

        Raises ValueError of a version that is not the last, GroupError when the holder has died or an engine failed:
        the other engines then use the new weights, but for those whose turn had not come when the holder died.
        """
        if ticket.version != self.version:
            raise ValueError(f"version {ticket.version} cannot be fetched: the holder has version {self.version}")
        weights = ticket.parts["weights"]
        # Asked before any engine is: where the holder has none to give, all of them go on undisturbed.
        [offer] = self._of_holder(_HOLDER.offer, weights.version)
        file = self.holder.submit(0, _HOLDER.adapter_of, ticket.version) if "adapter" in ticket.parts else None
        if file is not None:
            # Waited for here: as an argument, its failure would look like the fault of the engine that it was given to.
            self.holder.gather([file], "adapter_of", self.timeout_s)
        accounts, failed = dict[int, Account](), dict[int, GroupError]()
        for turn in [[engine] for engine in engines] if self.rolling else [engines]:
            wave = _Wave(self.rollout, turn, self.timeout_s)
            accounts |= self._serve_wave(wave, ticket, offer, file)
            failed |= wave.failed
        _raise_failures(failed)
        return [accounts[engine] for engine in engines]

    def _serve_wave(
        self, wave: "_Wave", ticket: Ticket, offer: Offer, file: ObjectRef[Adapter] | None
    ) -> dict[int, Account]:
        """Let the engines of a wave get what they lack of a version; `file`: of its adapter, if it has one."""
        began = time.perf_counter()
        weights, adapter = ticket.parts["weights"], ticket.parts.get("adapter")
        # Also the first sign of life, so that nothing is served to an engine that has died.
        have = wave.ask(_ENGINE.weights_held)
        lacking = [engine for engine, version in have.items() if not adapter or version != weights.version]
        parts: dict[int, dict[Kind, Got]] = {engine: {} for engine in wave.engines}
        # In service as this version only when the adapter is there as well.
        in_service = -1 if adapter else ticket.version
        for engine, got in self._serve(wave, offer, lacking, in_service, self._prompt(ticket, weights)).items():
            parts[engine]["weights"] = got
        if adapter:
            arguments = (file, ticket.version, self._prompt(ticket, adapter))
            for engine, got in wave.ask(_ENGINE.load_adapter, lambda _: arguments).items():
                parts[engine]["adapter"] = got
        seconds = time.perf_counter() - began
        return {engine: Account(engine, got, seconds) for engine, got in parts.items()}

    def _serve(
        self, wave: "_Wave", offer: Offer, engines: Sequence[int], version: int, canary: list[int] | None
    ) -> dict[int, Got]:
        """Let these engines of the wave receive whole weights."""
        # A key for each: a serving that failed must not meet its second try.
        offers = {engine: replace(offer, key=uuid.uuid4().hex) for engine in engines}
        serving = [self.holder.submit(0, _HOLDER.serve, each, self.tensor_parallel) for each in offers.values()]
        found = wave.ask(_ENGINE.fetch, lambda engine: (offers[engine], version, canary), engines)
        if len(found) < len(engines):
            self._blame_holder(serving)
        return found

    def _blame_holder(self, serving: list[ObjectRef[None]]) -> None:
        """Raise GroupError when the holder has died: engines then fail because of it."""
        done, _ = ray.wait(serving, num_returns=len(serving), timeout=_MOMENT_S)
        for call in done:
            try:
                self.holder.gather([call], "serve")
            except GroupError as error:
                if isinstance(error.__cause__, RayActorError):
                    raise

    def _prompt(self, ticket: Ticket, sent: Sent) -> list[int] | None:
        return ticket.canary if len(sent.logprobs) else None

    def _of_holder(self, method: Callable[..., T], *args: object) -> list[T]:
        return self.holder.gather([self.holder.submit(0, method, *args)], method.__name__, self.timeout_s)

    def sent(self, kind: Kind) -> dict[str, int]:
        """As the holder remembers."""
        return self._of_holder(_HOLDER.sent, kind)[0]

    def answers(self, seed: int) -> dict[str, np.ndarray]:
        """As the holder computes them."""
        return self._of_holder(_HOLDER.answers, seed)[0]


@dataclass
class _Wave:
    """Engines that are called at one time, of which one that fails takes no other along."""

    rollout: ActorGroup[RolloutWorker]
    engines: Sequence[int]
    timeout_s: float
    failed: dict[int, GroupError] = field(default_factory=dict)
    """Engine -> what is wrong with it; it is asked no more."""

    def ask(
        self,
        method: Callable[..., T],
        arguments: Callable[[int], tuple[object, ...]] = lambda _: (),
        engines: Sequence[int] | None = None,
    ) -> dict[int, T]:
        """What each of these engines (default: of all) that has not failed answers within the deadline."""
        asked = [engine for engine in (self.engines if engines is None else engines) if engine not in self.failed]
        calls = {engine: self.rollout.submit(engine, method, *arguments(engine)) for engine in asked}
        done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=self.timeout_s) if calls else ([], [])
        answers = {}
        for engine, call in calls.items():
            try:
                if call not in done:
                    raise no_answer("rollout", [engine], method.__name__, self.timeout_s, self.rollout.nodes)
                [answers[engine]] = self.rollout.gather([call], method.__name__, ranks=[engine])
            except GroupError as error:
                self.failed[engine] = error
        return answers


def _raise_failures(failed: dict[int, GroupError]) -> None:
    """Raise the first engine's GroupError, which says how many others failed."""
    if not failed:
        return
    (_, first), *others = sorted(failed.items())
    if not others:
        raise first
    raise GroupError(f"{first}; and engines {[engine for engine, _ in others]} failed") from first
