"""What is known of one process of a run that is watched, and how others are told that it is no more."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray import ObjectRef

from actors.pulse import ProcessId, Pulse, own_process
from launch.run.signs import SILENT, Signs
from launch.run.warden import DistantSigns
from launch.run.wardens import Wardens

DIED, FROZE = "died", "froze"
NODE = "node"
"""What has told of the end of all processes of a node."""
REWARD = "reward"
"""Group of the processes of a reward pool."""
PULSE_S = 2.0
"""Between an answer and the next question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A process that is no more: it has died, or was frozen and was ended.

    Example: Loss(group="policy", rank=1, generation=0, pid=4711, what="froze", noticed_by="stopped", noticed_s=1.4)
    """

    group: str
    rank: int
    generation: int
    """How often the rank's process had been replaced before."""
    pid: int | None
    """None: it has never said."""
    what: str
    """died or froze."""
    noticed_by: str
    """exit, stopped, silent, or node, where all of that is lost; of a reward process also call, where the answer to one
    has told first."""
    noticed_s: float
    """Seconds since its last sign of life."""

    @property
    def who(self) -> str:
        """The rank, as errors of its group name it."""
        return f"{self.group}[{self.rank}]"

    @property
    def text(self) -> str:
        """In one line."""
        process = "" if self.pid is None else f" (process {self.pid})"
        ended = "; it was killed" * (self.what == FROZE)
        return f"{self.who} {self.what}{process}, noticed by {self.noticed_by} within {self.noticed_s:.1f} s{ended}"


@dataclass(slots=True)
class Rank:
    """What is known of one process, from its start to its end."""

    group: str
    rank: int
    generation: int
    answered_at: float
    """Or when it was first looked at."""
    node: str = ""
    process: ProcessId | None = None
    signs: Signs | DistantSigns | None = None
    """Once it has said who it is; of one on another node, once that has a warden."""
    asked: "ObjectRef[Pulse] | None" = None
    asked_at: float = -PULSE_S
    is_lost: bool = False
    pulse: Pulse | None = None
    """Its last one."""

    def hear(self, process: ProcessId | None, now: float) -> None:
        """It has answered, perhaps with an error, which says nothing of itself."""
        self.asked, self.asked_at, self.answered_at = None, now, now
        self.process = self.process or process

    @property
    def works_on(self) -> Pulse | None:
        """Its last pulse, where that counts something of which there is more to be done."""
        return self.pulse if self.pulse and self.pulse.done < self.pulse.of and not self.is_lost else None

    def see(self, wardens: Wardens, now: float) -> None:
        """Look at it from now on, where that can be done."""
        if self.process and self.signs is None:
            here, family = self.process.pids == own_process().pids, self.group != REWARD
            look = Signs if here else wardens.signs
            self.signs = look(self.process, now, family=family)
            if isinstance(self.signs, DistantSigns):
                self.node = self.signs.node

    def end(self) -> None:
        """Kill what is left of it."""
        if self.signs:
            self.signs.kill()

    def loss(self, what: str, noticed_by: str, now: float) -> Loss:
        """It is lost: as others are told of it."""
        last = self.answered_at
        if self.signs:
            last = max(last, self.signs.moved_at if noticed_by == SILENT else self.signs.alive_at)
        pid = self.process.pid if self.process else None
        who = {"group": self.group, "rank": self.rank, "generation": self.generation, "pid": pid}
        return Loss(**who, what=what, noticed_by=noticed_by, noticed_s=round(now - last, 3))


def how_far(ranks: Iterable[Rank]) -> str:
    """What the process that has most before it has done, of those that count; empty where none does.

    Example: "policy[1] 120 of 290 tensors"
    """
    found = [(pulse.done / pulse.of, rank, pulse) for rank in ranks if (pulse := rank.works_on)]
    if not found:
        return ""
    _, rank, pulse = min(found, key=lambda each: each[0])
    return f"{rank.group}[{rank.rank}] {pulse.done:,} of {pulse.of:,} {pulse.what}"
