"""What the page asks, and the answer to each question: plain values for JSON, from the files of runs alone."""

import time
from pathlib import Path
from typing import Any

from launch.page.configs import differences, dotted_fields, job_title, model_of, name_of, read_config, steps_of_config
from launch.page.files import Below, run_of
from launch.page.logs import log_names, read_log
from launch.page.marks import attempts, kept_checkpoints, marks, merged_faults
from launch.page.metric_table import MetricTable, averaged, thinned
from launch.page.open_run import MOST_BESIDE, OpenRun, OpenRuns
from launch.page.panels import panels, tiles
from launch.page.rows import text
from launch.page.run_list import RunList
from launch.page.sample_tokens import places_with_tokens, tokens_of
from launch.page.samples import MOST_CHARACTERS, search_samples, shown_groups, shown_sample
from launch.page.state import RUNNING, Current, RunState, can_stop, current, state_of
from launch.tracking.curves import phases_of
from launch.tracking.now import END

MOST_POINTS, MOST_VALUES = 2000, 2_000_000
"""Of a curve, where it is not said; of one answer."""
_FOR_ETA = 200
"""Most steps whose mean duration the remaining time is made of: so many that evaluations count as often as they are."""


class TooMuchError(Exception):
    """More is asked for than an answer may have: one line says how much that is."""


class Answers:
    """Answers about the runs below one directory. Any thread may ask.

    Raises (all methods that are given an id): FileNotFoundError, with a line, for what is not there.
    """

    def __init__(self, directory: Path) -> None:
        self.below = Below(directory)
        self._list, self._open = RunList(self.below), OpenRuns(self.below)

    def runs(self, fresh_s: float = 0.0) -> dict[str, Any]:
        """All runs in short; what was found `fresh_s` seconds ago will do."""
        name = self.below.path.name or str(self.below.path)
        return {"directory": name, "runs": self._list.read(fresh_s), "most_beside": MOST_BESIDE}

    def opened(self, name: str) -> OpenRun:
        """A run, with what is new of it."""
        try:
            run = self._open.get(name)
            with run.lock:
                run.read()
        except FileNotFoundError:
            raise FileNotFoundError(f"id: must be a run below the directory, got {name[:200]}") from None
        return run

    def run(self, name: str, fresh_s: float = 0.0) -> dict[str, Any]:
        """All of a run but its curves and samples: made anew where a file of it or its state has changed.

        Args:
            name: of the run.
            fresh_s: so many seconds after the last look nobody looks again.
        """
        run = self.opened(name)
        with run.lock:
            if run.answer is None or time.monotonic() - run.answer_at >= fresh_s:
                stamps = run.stamps()  # before what is read: what comes meanwhile is seen by the next look
                now = current(run.below, run.directory)
                state = state_of(run.below, run.directory, now, run.events.lines)
                stops = state.name == RUNNING and can_stop(run.below, run.directory, now)
                if run.answer is None or run.answer_of != (stamps, state, stops):
                    run.read()
                    run.answer, run.answer_of = _told(run, now, state, stops), (stamps, state, stops)
                run.answer_at = time.monotonic()
            return run.answer

    def metrics(
        self,
        name: str,
        names: list[str] | None = None,
        after: int | None = None,
        most: int = MOST_POINTS,
        *,
        mean: bool = False,
    ) -> dict[str, Any]:
        """Values of metrics over steps: all of them, or those that are named and there, of steps behind one.

        Args:
            name: of the run.
            names: of metrics; None: all.
            after: a step.
            most: points, of which there are fewer than steps in a long run.
            mean: whether a point is a stretch's mean, and not its least or greatest value.

        Raises:
            TooMuchError: these are more values than one answer has.
        """
        run = self.opened(name)
        with run.lock:
            table = run.table
            known = dict.fromkeys(table.names)
            wanted = [*known] if names is None else [each for each in dict.fromkeys(names) if each in known]
            if len(wanted) * min(most, table.rows) > MOST_VALUES:
                limit = MOST_VALUES // len(wanted)
                raise TooMuchError(f"most: must be at most {limit} for {len(wanted)} metrics, got {most}")
            first = 0 if after is None else table.after(after)
            return (averaged if mean else thinned)(table, wanted, first, most) | {"mark": mark_of(table)}

    def samples(self, name: str) -> dict[str, Any]:
        """Steps that have samples."""
        run = self.opened(name)
        with run.rows_lock:
            run.samples.read()
            return {"steps": [{"step": step, "samples": run.samples.count(step)} for step in run.samples.steps]}

    def groups(self, name: str, step: int) -> dict[str, Any]:
        """The samples of a step."""
        run = self.opened(name)
        with run.rows_lock:
            if not run.samples.read() or not run.samples.count(step):
                raise FileNotFoundError(f"step: must be one with samples, got {step}")
            places = places_with_tokens(run.tokens, step) if run.tokens.read() else set()
            return {"step": step, "groups": shown_groups(run.samples.rows(step), places)}

    def sample(self, name: str, step: int, index: int) -> dict[str, Any]:
        """One of them, with all of its completion."""
        run = self.opened(name)
        with run.rows_lock:
            row = self._row(run, step, index)
            prompt = text(row.get("prompt"), MOST_CHARACTERS)
            return {"step": step, "prompt": prompt, **shown_sample(row, index, MOST_CHARACTERS)}

    def tokens(self, name: str, step: int, index: int) -> dict[str, Any]:
        """Its tokens."""
        run = self.opened(name)
        with run.rows_lock:
            row = self._row(run, step, index)
            found = tokens_of(run.tokens, step, row) if run.tokens.read() else None
            if found is None:
                raise FileNotFoundError(f"index: must be a sample with tokens, got {index} of step {step}")
            return found

    def search(self, name: str, wanted: str, *, status: str = "", start: int = 0, most: int = 50) -> dict[str, Any]:
        """Samples that hold a text."""
        run = self.opened(name)
        with run.rows_lock:
            if not run.samples.read():
                return {"hits": [], "more": None}
        # What is read on or cut back meanwhile changes at most which hits there are.
        return search_samples(run.samples, wanted, status=status, start=start, most=most)

    def held_out(self, name: str, prompt: int | None = None) -> dict[str, Any]:
        """Held-out prompts, or one of them over the steps."""
        run = self.opened(name)
        with run.rows_lock:
            run.held_out.read()
            if prompt is None:
                return {"prompts": run.held_out.prompts()}
            found = run.held_out.steps(prompt)
            if found is None:
                raise FileNotFoundError(f"prompt: must be the number of a held-out prompt, got {prompt}")
            return found

    def config(self, name: str, other: str | None = None) -> dict[str, Any]:
        """The configuration, and how that of another run differs from it."""
        ours = dotted_fields(read_config(self.below, self._directory(name)))
        theirs = None if other is None else dotted_fields(read_config(self.below, self._directory(other)))
        return {"config": ours, "differences": [] if theirs is None else differences(ours, theirs)}

    def log(self, name: str, log: str, before: int | None = None) -> dict[str, Any]:
        """A stretch of a log."""
        directory = self._directory(name)
        try:
            return read_log(self.below, directory, log, before)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"name: must be one of the run's logs, got {str(error)[:200]}") from None

    def _directory(self, name: str) -> Path:
        try:
            return run_of(self.below, name)
        except FileNotFoundError:
            raise FileNotFoundError(f"id: must be a run below the directory, got {name[:200]}") from None

    def _row(self, run: OpenRun, step: int, index: int) -> dict[str, Any]:
        row = run.samples.row(step, index) if run.samples.read() else None
        if row is None:
            raise FileNotFoundError(f"index: must be a sample of step {step}, got {index}")
        return row


def _told(run: OpenRun, now: Current | None, state: RunState, stops: bool) -> dict[str, Any]:
    config = read_config(run.below, run.directory)
    table, events = run.table, run.events.lines
    step = int(table.steps[-1]) if table.rows else None
    steps = (now.steps if now else None) or steps_of_config(config)
    ending = now is not None and now.phase == END
    starts = attempts(events, now)
    checkpoints = kept_checkpoints(run.below, run.directory)
    return {
        "id": run.id,
        "name": name_of(config, run.directory),
        "job": job_title(config),
        "model": model_of(config),
        "state": state.name,
        "why": state.why,
        "step": step,
        "steps": steps,
        "phase": now.phase if now else "",
        "phase_since": now.since if now else None,
        "seen": now.at if now else None,
        "eta_s": _eta_s(table, step, steps) if state.name == RUNNING and not ending else None,
        "elapsed_s": table.last("time/elapsed") if table.rows else now and now.elapsed_s,
        "effective": table.last("time/effective"),
        "tiles": tiles(table),
        "panels": panels(table),
        "metrics": table.names,
        "phases": phases_of(table.names),
        "events": merged_faults(events),
        "marks": marks(checkpoints, starts, (state, step), table.warnings, run.alerts.lines),
        "attempts": starts,
        "logs": log_names(run.below, run.directory),
        "has": {name: run.has(f"{name}.jsonl") for name in ("samples", "eval_samples", "tokens")},
        "damaged": table.damaged,
        "can_stop": stops,
        "most_beside": MOST_BESIDE,
    }


def mark_of(table: MetricTable) -> str:
    """Up to where a table was given away; what comes later is new, unless it was cut."""
    return f"{table.times_cut}.{table.rows}"


def since(table: MetricTable, mark: str) -> int | None:
    """The number of the first row that is new; None where what was given away is void."""
    cut, _, rows = mark.partition(".")
    if cut != str(table.times_cut) or not rows.isdecimal() or len(rows) > 12 or int(rows) > table.rows:
        return None
    return int(rows)


def _eta_s(table: MetricTable, step: int | None, steps: int | None) -> float | None:
    """Seconds until the last step is done, by the last ones; None where that cannot be said."""
    if not step or steps is None or steps < step:
        return None
    seconds = table.column("time/step")[-_FOR_ETA:]
    known = seconds[~(seconds != seconds)]
    return float(known.mean()) * (steps - step) if known.size else None
