"""Draws curves.png while a run goes on, at its end, and for the verb `curves`.

In a process of its own, so that neither the time it takes nor its failure can hurt the run.
"""

import difflib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from actors.config import UserError

FIRST_S, EVERY_S = 60.0, 180.0
"""When the first picture of a run is drawn, and how long after it the next ones, in seconds."""
DEADLINE_S = 60.0
"""Longest time for one picture; the first one on a machine waits for matplotlib's list of fonts."""


class CurveDrawer:
    """Keeps the picture of one run up to date.

    Args:
        directory: of the run.
        warn: called with one line, once, when a picture could not be drawn.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self._directory, self._warn = directory, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._next = time.monotonic() + FIRST_S
        self._deadline = 0.0
        self._failed = False

    def step(self) -> None:
        """A step's metrics have been written: draw them, if it is time; returns at once."""
        self._look()
        now = time.monotonic()
        if self._process is None and not self._failed and now >= self._next:
            self._begin()
            self._next = now + EVERY_S

    def finish(self) -> Path | None:
        """Draw a last time and wait for it; the path of the picture, None when there is none."""
        self.stop()
        path = self._directory / "curves.png"
        if not self._failed:
            self._begin()
            if self._process is not None:
                try:
                    self._process.wait(DEADLINE_S)
                except subprocess.TimeoutExpired:
                    self._deadline = 0.0  # past: `_look` ends it, and says so
                self._look()
        return path if path.is_file() else None

    def stop(self) -> None:
        """End the process that is drawing, if there is one."""
        if self._process is not None:
            self._process.kill()  # a picture is put in place as a whole: what is killed here leaves the one before
            self._process.communicate()
            self._process = None

    def _begin(self) -> None:
        self._deadline = time.monotonic() + DEADLINE_S
        # -P: the file's directory, whose modules have names like those of libraries, is no place to import from.
        command = [sys.executable, "-P", str(Path(__file__).with_name("curves.py")), str(self._directory)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run
            )
        except OSError as error:
            self._fail(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        """Learn how the process has ended, if it has; end it when it is late."""
        if self._process is None or (self._process.poll() is None and time.monotonic() < self._deadline):
            return
        if self._process.poll() is None:
            self.stop()
            self._fail(f"not done within {DEADLINE_S:g} s")
            return
        code, (_, said) = self._process.returncode, self._process.communicate()
        self._process = None
        if code:
            lines = said.decode(errors="replace").strip().splitlines()
            self._fail(lines[-1] if lines else f"exit code {code}")

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._warn(f"curves.png was not drawn, {' '.join(why.split())}")
        self._failed = True


def curves_of(run: str) -> Path:
    """Draw the curves of a run directory, finished or not; returns the picture's path.

    Raises:
        UserError: no run directory, no step yet, metrics that cannot be read, or a picture that cannot be written.
    """
    from launch.tracking.curves import draw_curves

    directory = Path(run)
    if not (directory / "metrics.jsonl").is_file():
        runs = [str(file.parent) for file in directory.parent.glob("*/metrics.jsonl")]
        near = difflib.get_close_matches(run, runs, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"RUN: must be the directory of a run, with metrics.jsonl{hint}, got {run}")
    try:
        path = draw_curves(directory)
    except OSError as error:
        raise UserError(f"RUN: its curves cannot be drawn ({error.strerror}: {error.filename}), got {run}") from None
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"RUN: its curves cannot be drawn ({directory / 'metrics.jsonl'}: {reason}), got {run}"
        ) from None
    if path is None:
        raise UserError(f"RUN: must have finished a step, and there is none yet, got {run}")
    return path
