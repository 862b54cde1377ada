"""Which rollout engines serve, and where the others are on their way back.

    serving --lose--> lost --restarting--> restarting --ready--> stale --serve--> serving
                        ^-------lose----------'------lose---------'

Nothing goes from lost to serving: what has been restarted has random weights, and serves once it has those of the
version that the others have, and has proved it.

    absent --join--> restarting     a new one, which serves in the same way; its number may be one that is free again
    serving --part--> parting       goes on with what it has, until that is noted, and is then lost
    lost --leave--> absent          it is not replaced
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from actors.group import GroupError

State = Literal["serving", "lost", "restarting", "stale", "parting", "absent"]


class Parted(GroupError):
    """An engine was ended before its node goes, with what it had noted: no fault of its own, nor of what it had."""


class Membership:
    """The engines of a run, by number. Any thread may ask and tell.

    Example:
        members.lose(1, error, generation=0)
        members.restarting(1)
        members.ready(1)
        members.serve(1, version=members.version)
    """

    def __init__(self, engines: int) -> None:
        """All of them serve at first, whatever weights they have: nothing is sampled before some are published."""
        self._states: list[State] = ["serving"] * engines
        self._generations = [0] * engines
        self._errors: dict[int, GroupError] = {}
        self._joining: set[int] = set()
        """Engines that have not served yet since they have joined."""
        self._noted: set[int] = set()
        """Engines that are parting, and of which all is noted."""
        self._changed = threading.Condition(threading.RLock())
        self.losses = [0] * engines
        """Of each engine: how often it was lost."""
        self.streaks = [0] * engines
        """Of each engine: how often in a row it was lost before it had ended any request."""
        self.version = -1
        """Of the weights that those have that serve."""
        self.changes = 0
        """Moves with everything that is told here."""
        self.failure: GroupError | None = None
        """Why an engine does not come back any more, which ends the run."""
        self.on_lost: Callable[[int, GroupError], None] | None = None
        """Called with each engine that is lost, by whoever has told of it; without it, none comes back."""
        self.on_served: Callable[[int], None] | None = None
        """Called with each engine that serves again."""

    def __len__(self) -> int:
        return len(self._states)

    def state(self, engine: int) -> State:
        """Where an engine is."""
        return self._states[engine]

    def error(self, engine: int) -> GroupError:
        """Why an engine was lost last."""
        return self._errors[engine]

    def generation(self, engine: int) -> int:
        """How often an engine's process was replaced."""
        return self._generations[engine]

    def serving(self) -> list[int]:
        """Engines that may get requests."""
        return [engine for engine, state in enumerate(self._states) if state == "serving"]

    def stale(self) -> list[int]:
        """Engines that only lack weights."""
        return [engine for engine, state in enumerate(self._states) if state == "stale"]

    def there(self) -> list[int]:
        """Engines with a process that is ready, and stays: a transfer goes to these."""
        return [engine for engine, state in enumerate(self._states) if state in ("serving", "stale")]

    def present(self) -> list[int]:
        """Engines that serve, or are to: all but those that have left."""
        return [engine for engine, state in enumerate(self._states) if state != "absent"]

    def alive(self) -> list[int]:
        """Engines with a process, or one that is starting."""
        return [engine for engine, state in enumerate(self._states) if state not in ("lost", "absent")]

    def counts(self) -> tuple[int, int]:
        """How many engines serve, and how many do or have done and are to do so again."""
        with self._changed:
            return len(self.serving()), len([engine for engine in self.present() if engine not in self._joining])

    @property
    def come_back(self) -> bool:
        """Whether engines that are lost are restarted."""
        return self.on_lost is not None

    def lose(self, engine: int, error: GroupError, generation: int) -> bool:
        """An engine's process of this generation has died, or cannot go on; whether that is news."""
        with self._changed:
            if self._generations[engine] != generation or self._states[engine] in ("lost", "absent"):
                return False
            self._states[engine] = "lost"
            self._noted.discard(engine)
            self._errors[engine] = error
            self.losses[engine] += 1
            self.streaks[engine] += not isinstance(error, Parted)
            self._tell()
        if self.on_lost:
            self.on_lost(engine, error)
        return True

    def join(self) -> int:
        """An engine is to have a process for the first time, which is its next generation; returns its number, the
        lowest that is free."""
        with self._changed:
            free = [engine for engine, state in enumerate(self._states) if state == "absent"]
            if free:
                [engine, *_] = free
            else:
                engine = len(self._states)
                # Others look at these without the lock: the states come last, as they say how many there are.
                for of_each in (self._generations, self.losses, self.streaks):
                    of_each.append(0)
                self._states.append("absent")
            self._joining.add(engine)
            self.streaks[engine] = 0
            self._states[engine] = "restarting"
            self._generations[engine] += 1
            self._tell()
        return engine

    def part(self, engine: int) -> bool:
        """An engine gets no more requests, as it is about to go; False where it has none, as it does not serve."""
        with self._changed:
            serves = self._states[engine] == "serving"
            if serves:
                self._states[engine] = "parting"
                self._tell()
            return serves

    def noted(self, engine: int) -> None:
        """All that a parting engine has is noted."""
        with self._changed:
            if self._states[engine] == "parting":
                self._noted.add(engine)
                self._changed.notify_all()

    def wait_until_noted(self, engine: int, seconds: float) -> bool:
        """Whether all that a parting engine has was noted within so many seconds; returns at once where it is lost."""
        with self._changed:
            self._changed.wait_for(lambda: engine in self._noted or self._states[engine] != "parting", timeout=seconds)
            return engine in self._noted

    def ended(self, engine: int) -> None:
        """What is left of the process of a lost engine was ended: whatever is told of it is no news."""
        with self._changed:
            assert self._states[engine] == "lost", f"engine {engine} is {self._states[engine]}"
            self._generations[engine] += 1

    def leave(self, engine: int) -> None:
        """A lost engine is not replaced."""
        with self._changed:
            assert self._states[engine] == "lost", f"engine {engine} is {self._states[engine]}"
            self._states[engine] = "absent"
            self._joining.discard(engine)
            self._tell()

    def restarting(self, engine: int) -> None:
        """A lost engine has a new process."""
        with self._changed:
            assert self._states[engine] == "lost", f"engine {engine} is {self._states[engine]}"
            self._states[engine] = "restarting"
            self._generations[engine] += 1
            self._tell()

    def ready(self, engine: int) -> None:
        """A restarted engine could generate, if it had weights."""
        with self._changed:
            if self._states[engine] == "restarting":  # else it was lost again meanwhile
                self._states[engine] = "stale"
                self._tell()

    def serve(self, engines: Sequence[int], version: int, losses: Sequence[int]) -> None:
        """Engines have weights of this version, and have proved it.

        Args:
            losses: of all engines, as they were when these were asked: one that was lost since does not serve.
        """
        with self._changed:
            back = list[int]()
            for engine in engines:
                # One that is parting has got weights in vain.
                if self.losses[engine] == losses[engine] and self._states[engine] in ("serving", "stale"):
                    back += [engine] * (self._states[engine] == "stale")
                    self._states[engine] = "serving"
                    self._joining.discard(engine)
            self.version = version
            self._tell()
        for engine in back:
            if self.on_served:
                self.on_served(engine)

    def doubt(self, engines: Sequence[int]) -> None:
        """A transfer to these engines has failed: until the next one they get no requests, as they may have half of new
        weights."""
        with self._changed:
            for engine in engines:
                if self._states[engine] == "serving":
                    self._states[engine] = "stale"
            self._tell()

    def proved(self, engine: int) -> None:
        """An engine has ended a request: what befalls it from now on is no streak."""
        self.streaks[engine] = 0

    def give_up(self, error: GroupError) -> None:
        """No engine comes back any more for this reason."""
        with self._changed:
            self.failure = self.failure or error
            self._tell()

    def wait(self, seconds: float, seen: int) -> None:
        """Until something changes since `changes` was `seen`, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != seen, timeout=seconds)

    def wait_for_one(self, seconds: float) -> tuple[list[int], list[int]]:
        """Engines that are there, as soon as there are any, and how often each engine of the run was lost until then.
        Raises GroupError: none came within so many seconds, or none will."""
        until = time.monotonic() + seconds
        with self._changed:
            while not (there := self.there()):
                last = next(reversed(self._errors.values()), GroupError("rollout: all engines are about to go"))
                if self.failure or not self.come_back:
                    raise self.failure or last
                if (left := until - time.monotonic()) <= 0:
                    raise GroupError(f"rollout: no engine was back within {seconds:g} s, after {last}")
                self._changed.wait(left)
            return there, list(self.losses)

    def _tell(self) -> None:
        self.changes += 1
        self._changed.notify_all()
