"""Brings groups of ranks back that have lost some, in the same run: policy, critic, reference and reward models.

    lost --> new processes for all ranks of the groups concerned --> newest state --> the steps since, once more

Groups that learn go back together, to a state in which they fit each other; those that are frozen come back alone,
where their own loss was met, and not what followed from it. The state is that of the last checkpoint, or of a copy in
memory where that is newer. What cannot be brought back so ends the attempt, and the next one resumes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from actors.files.parts import Entry, SavedPart
from actors.group import GroupError, first_line
from actors.group_errors import RankLost
from actors.train.shards import Shards
from launch.config import RunConfig
from launch.run.checkpointer import RunCheckpointer
from launch.run.copies import Copies
from launch.run.elsewhere import Elsewhere
from launch.run.groups import Start, rebuild, start_building, start_loading
from launch.run.keepers import NotKept
from launch.run.manifest import Checkpoint
from launch.run.ray_lost import ray_is_dead
from launch.run.roster import Roster
from launch.run.saves import Saves
from launch.tracking.events import Fault
from launch.tracking.now import Now

_ECHO_S, _PULSE_S = 3.0, 1.0
"""How long after an error a process may be found dead that has caused it, and the wait for one answer."""
_WRITING_S = 30.0
"""For a checkpoint that is being written when a rank is lost, and for a copy on its way; then they are given up."""
_OTHERS = "rollout", "holder"
"""Groups that are brought back otherwise, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What groups that learn can go back to."""

    step: int
    kl: Entry
    """Of the coefficient that follows the policy."""
    directory: Path | None = None
    """That has it; None: it is what they are built as, or a copy in memory."""
    shards: Mapping[str, Shards] = field(default_factory=dict)
    """Who wrote it, where it was written by other ranks."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that is done."""

    kl: Entry
    """As in `State`, after it."""
    seconds: float
    """That learning it again takes."""


class Learners:
    """Implements `algorithms.rl.recovery.Mender`."""

    def __init__(
        self,
        config: RunConfig,
        roster: Roster,
        now: Now,
        saves: Saves,
        checkpointer: RunCheckpointer,
        starts: Mapping[str, Start],
        copies: Copies,
        tell_of: Callable[[str], None],
        elsewhere: Elsewhere | None = None,
        excuse: Callable[[], bool] = ray_is_dead,
    ) -> None:
        """
        Args:
            config: of the run.
            roster: has the groups.
            now: takes notes of faults.
            saves: has those that learn.
            checkpointer: says which checkpoint was kept.
            starts: how new ranks of each group are built.
            copies: of the state of those that learn, in memory.
            tell_of: shows a line.
            elsewhere: moves groups whose node is lost; without it they stay where they were.
            excuse: whether something else has died that takes all ranks along: nothing is mended then.
        """
        self._elsewhere, self._excuse = elsewhere, excuse
        self._roster, self._now, self._saves, self._checkpointer = roster, now, saves, checkpointer
        self._starts, self._copies, self._tell_of = starts, copies, tell_of
        self._max_restarts = config.run.max_restarts
        self._kl: SavedPart
        self._state: State
        """Of the last whole checkpoint, or what the attempt began with."""
        self._streak = 0
        """Losses since a step was done."""
        self._since: dict[int, _Done] = {}
        """Steps since that: any may be the next one, as checkpoints and copies are whole some steps later."""

    def begin(self, found: Checkpoint | None, kl: SavedPart) -> None:
        """The loop goes on from this checkpoint, or begins; `kl`: what learning moves in the driver."""
        self._kl, self._state = kl, State(step=0, kl=kl.save(Path()))
        if found:
            directory = found.directory.absolute()
            self._state = State(step=found.step, kl=self._state.kl, directory=directory, shards=found.shards)

    def mend(self, error: GroupError, learn_again: Callable[[int], int | None]) -> bool:
        """See `Mender`."""
        faults, names = list[int](), set[str]()
        while not self._excuse() and (lost := self._lost(error)):
            self._streak += 1
            if self._streak > self._max_restarts:
                return False
            faults += [self._note_loss(loss, error) for loss in lost]
            # As many as a try before that has failed: it has left them without what they had.
            names |= {loss.group for loss in lost}
            if not (isinstance(error, RankLost) and error.group in names):
                # Something else has failed with it: what learns may have begun what is now done anew.
                names |= set(self._saves.groups)
            try:
                with self._mending():
                    redone = self._bring_back(names, learn_again)
            except GroupError as again:  # perhaps another loss
                error = again
                continue
            if redone is None:
                return False
            for fault in faults:
                self._now.events.recovered(fault, "rebuilt", redone_steps=redone)
            return True
        return False

    def note(self, step: int, seconds: float) -> int:
        """See `Mender`."""
        self._streak = 0
        self._since[step] = _Done(self._kl.save(Path()), seconds)
        self._take_checkpoint()
        again_s = sum(done.seconds for later, done in self._since.items() if later > self._newest.step)
        if self._copies.due(step, again_s, soon=self._checkpointer.in_flight):
            self._copies.begin(step)
        # What a copy has come to is kept as well while there is room: the copy may be lost.
        return self._newest.step if math.isinf(seconds) else self._state.step

    def close(self) -> None:
        """End those who keep what only this attempt goes back to."""
        self._copies.close()

    def _lost(self, error: GroupError) -> list[RankLost]:
        """Ranks that are dead, or turn out to be a moment after an error."""
        own = isinstance(error, RankLost) and error.group not in _OTHERS
        until = time.monotonic() + _ECHO_S
        while True:
            groups = [group for name, group in self._roster.items() if name not in _OTHERS]
            found = [told for group in groups for told in group.pulses(_PULSE_S) if isinstance(told, RankLost)]
            if found or time.monotonic() > until:
                return found or ([error] if own and isinstance(error, RankLost) else [])
            time.sleep(0.1)

    def _note_loss(self, loss: RankLost, error: GroupError) -> int:
        who, generation = f"{loss.group}[{loss.rank}]", self._roster[loss.group].generations[loss.rank]
        cause = first_line(str(error))
        fault = Fault(who=who, what="died", noticed_by="call", generation=generation, cause=cause)
        return self._now.events.noticed(fault, "building its group anew")

    def _bring_back(self, lost: set[str], learn_again: Callable[[int], int | None]) -> int | None:
        """Build groups anew, and let those that learn go back to the newest state and on from there; returns how many
        steps were learned again. Raises GroupError."""

        learning = set(self._saves.groups)
        back = lost | learning if lost & learning else lost
        if lost & learning:
            # As good as written, perhaps, and then newer; else it soon fails, as a rank is lost that was to write it.
            self._checkpointer.finish(_WRITING_S)
            self._copies.finish(_WRITING_S)
            self._take_checkpoint()
        if not self._leave_lost_nodes(back):
            return None
        rebuild(*((self._roster[name], self._starts[name]) for name in self._roster if name in back))
        if not lost & learning:
            return 0
        for again in self._roster.once_more:
            again()
        if (state := self._load_newest()) is None:
            return None
        self._kl.load(Path(), state.kl)
        return learn_again(state.step)

    def _load_newest(self) -> State | None:
        """Let new ranks that learn go back to the newest state, which is returned; None where there is none any more.
        Raises GroupError."""
        from actors.train.trainer import TrainedWorker

        state = self._newest
        if state is not self._state:
            try:
                self._copies.load()
            except NotKept as error:
                self._tell_of(
                    f"the copy in memory of step {state.step} is lost ({error}): back to step {self._state.step}"
                )
                state = self._state
            else:
                self._tell_of(f"back to step {state.step}, of which there was a copy in memory")
                return state
        if state.directory:
            if not state.directory.is_dir():
                return None  # somebody has removed it
            for name, group in self._saves.groups.items():
                group.call(TrainedWorker.load, state.directory / name, state.shards.get(name))
        return state

    def _leave_lost_nodes(self, names: set[str]) -> bool:
        """Give groups places on other nodes, where they must have some; whether there are."""
        elsewhere = self._elsewhere
        moving = [name for name in sorted(names) if elsewhere and elsewhere.must_move(name)]
        return all(elsewhere.move(self._roster[name]) for name in moving if elsewhere)

    @property
    def _newest(self) -> State:
        """What groups would go back to: a copy, where there is one that is newer than the checkpoint."""
        step = self._copies.step
        done = None if step is None else self._since.get(step)
        return State(step=step, kl=done.kl) if step is not None and done else self._state

    def _take_checkpoint(self) -> None:
        """Go on from the newest whole checkpoint, where it is newer than the one before."""
        if self._checkpointer.kept and self._checkpointer.kept[0] in self._since:
            step, directory = self._checkpointer.kept
            self._state = State(step=step, kl=self._since[step].kl, directory=directory.absolute())
            self._since = {later: done for later, done in self._since.items() if later > step}

    @contextlib.contextmanager
    def _mending(self) -> Iterator[None]:
        self._now.lost.mending(True)
        try:
            yield
        finally:
            self._now.lost.mending(False)


def starts_of(config: RunConfig, policy_updates: int, critic_updates: int) -> Mapping[str, Start]:
    """How the groups of a reinforcement job are built."""
    from actors.train.frozen import ReferenceWorker, ScoringWorker
    from launch.kinds.rl import reward_model_groups

    starts: dict[str, Start] = {"policy": partial(start_building, total_updates=policy_updates)}
    starts["critic"] = partial(start_building, total_updates=critic_updates)
    starts["reference"] = partial(start_loading, build=ReferenceWorker.build)
    return starts | {name: partial(start_loading, build=ScoringWorker.build) for _, name in reward_model_groups(config)}
