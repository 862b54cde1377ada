"""Signs of life of one process on this machine, and of what it has started: gone, halted, or still."""

from typing import Final

from actors.pulse import ProcessId
from launch.run.processes import Seen, can_run, descendants, is_there, kill_tree, look, switches

EXIT: Final = "exit"
STOPPED: Final = "stopped"
SILENT: Final = "silent"
_HALTED_S = 0.9
"""Seconds after which one that has not moved since it was seen halted is stopped: less than the second between two
looks, which may be measured a little shorter."""
_NOISE = 0.03
"""Share of a core up to which a process counts as still: Ray's own threads take 0.005 of each that does nothing."""
_TREE_LOOKS = 3
"""Looks after which a process's descendants are looked for anew."""
_VITAL = "VLLM::"
"""How the names begin of processes without which the one that has started them is lost: vLLM's, of one engine."""


class Signs:
    """What looks at one process have shown; they are to be a second apart, or more.

    A process is *halted* when a look finds it so (SIGSTOP, or a debugger); it has stopped when the next one does, too,
    and it has not moved between them: a profiler that halts it a hundred times a second lets it go on as often. It is
    *still* while no look finds a thread that runs, or that waits for a core or a disk, and its processor time stands.
    However little of a core it gets, a process with work waits for one, and is not still.
    """

    def __init__(self, process: ProcessId, now: float, *, family: bool = True) -> None:
        """
        Args:
            process: one of this machine's.
            now: seconds of a clock of the caller's, at which it lived.
            family: whether what it has started is a part of it, too.
        """
        self.process = process
        self.alive_at = now
        """When it was last seen neither gone nor halted."""
        self.moved_at = now
        """When it was last seen at work, of those looks that asked whether it is."""
        self._family = family
        self._tree: list[Seen] = []
        self._looks = 0
        self._halted: dict[ProcessId, tuple[float, int]] = {}
        """Since when, and how often it had moved until then."""
        self._still_since: float | None = None
        self._cpu: tuple[float, float] = now, 0.0

    def look(self, now: float) -> str | None:
        """EXIT, STOPPED, or None, when neither can be said."""
        found = look(self.process.pid)
        if found is None or found.process != self.process or found.is_dead:
            return EXIT
        if any(seen.name.startswith(_VITAL) and not is_there(seen.process) for seen in self._tree):
            return EXIT
        self._look_for_tree()
        before, self._halted = self._halted, {}
        for seen in (found, *self._tree_now()):
            if seen.is_halted:
                moved = switches(seen.process.pid)
                since, then = before.get(seen.process, (now, moved))
                self._halted[seen.process] = (since if moved == then else now), moved
        if any(now - since >= _HALTED_S for since, _ in self._halted.values()):
            return STOPPED
        if not self._halted:
            self.alive_at = now
        return None

    @property
    def is_halted(self) -> bool:
        """Whether the last look has found it, or what it has started, halted."""
        return bool(self._halted)

    def still_s(self, now: float) -> float:
        """Seconds for which it has been still, as far as looks by this method tell; 0 when it is not."""
        own = look(self.process.pid)
        found = [*([own] if own else []), *self._tree_now()]
        (before, cpu_s), self._cpu = self._cpu, (now, sum(seen.cpu_s for seen in found))
        moves = self._cpu[1] - cpu_s > _NOISE * (now - before) or any(can_run(seen.process.pid) for seen in found)
        if moves or self._still_since is None:
            self.moved_at, self._still_since = now, None if moves else now
            return 0.0
        return now - self._still_since

    def begin_anew(self) -> None:
        """Nobody has looked for long: what was seen before says nothing any more."""
        self._halted.clear()
        self._still_since = None

    def kill(self) -> None:
        """SIGKILL it and its descendants, those included that have outlived it."""
        kill_tree(self.process, [seen.process for seen in self._tree])

    def _tree_now(self) -> list[Seen]:
        """Those of the descendants that live, as they are now."""
        now = [(known.process, look(known.process.pid)) for known in self._tree]
        return [seen for process, seen in now if seen and seen.process == process and not seen.is_dead]

    def _look_for_tree(self) -> None:
        if self._family and self._looks % _TREE_LOOKS == 0:
            self._tree = descendants(self.process.pid)
        self._looks += 1
