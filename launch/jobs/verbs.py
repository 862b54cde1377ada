"""The verbs `status`, `logs`, `stop` and `list`, and how a job is waited for."""

import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

from actors.config import UserError
from launch.jobs.access import dashboard_access
from launch.jobs.client import JobsClient, NoAnswer, SubmittedJob
from launch.jobs.follow import ConnectionLost, follow_log
from launch.jobs.own_lines import WithoutOwnLines, of_ray, start_of_tail

JOB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
STOPPED, INTERRUPTED, FAILED = 130, 130, 1  # 130 as shells say of what Ctrl-C has ended
STOP_MARGIN_S = 30
"""Time beyond the job's own for its last checkpoint after which `stop` gives up, in seconds."""
_POLL_S = 1.0
_SAVED = re.compile(r"^(.+; a checkpoint is in |model:   )", re.MULTILINE)
"""What a driver prints in the end (`launch/run/run.py`) that was stopped, or is done."""
_STEP, _INTERRUPTED = re.compile(r"^step [1-9]", re.MULTILINE), re.compile(r"^interrupted", re.MULTILINE)

JobValues = Mapping[str, str | int | None]
"""What --json prints of a job, by name."""


def job_status(job_id: str, *, address: str | None, as_json: bool) -> int:
    """Print one line, or one object, about a job; returns 0 also when it failed. Raises UserError."""
    client = JobsClient(dashboard_access(address), warn)
    job = client.job(job_id)
    if as_json:
        print(json.dumps(job_object(job, client.access.address), ensure_ascii=False))
    else:
        print(_line(job))
    return 0


def job_logs(job_id: str, *, address: str | None, follow: bool, tail: int | None) -> int:
    """Print a job's log, or its last `tail` lines, and with `follow` what comes until its end.

    Returns:
        0; with `follow` the driver's exit code, as `wait_for`.

    Raises:
        UserError: one line about the job or the cluster.
    """
    client = JobsClient(dashboard_access(address), warn)
    text = client.logs(job_id) if tail is not None or not follow else ""
    skip = 0 if tail is None else start_of_tail(text, tail)
    if follow:
        return wait_for(client, job_id, known=text[:skip])
    if not text:
        warn(f"{job_id} is {client.job(job_id).state}, and has printed nothing that Ray still holds")
    sys.stdout.write("".join(line for line in text[skip:].splitlines(keepends=True) if not of_ray(line)))
    return 0


def stop_job(job_id: str, *, address: str | None, timeout_s: float | None) -> int:
    """Stop a job and wait until it has ended, for `timeout_s` (default: its own time for a checkpoint, and a margin).

    Ray does nothing when it is told to stop a job that is PENDING, so it is told again once the job runs.

    Returns:
        0 ended, or had ended before; 1 it has not ended in time, or was killed with its last step unsaved.

    Raises:
        UserError: one line about the job or the cluster.
    """
    client = JobsClient(dashboard_access(address), warn)
    job = client.job(job_id)
    if job.ended:
        print(f"{job_id} has already ended: {job.state}")
        return 0
    if timeout_s is None:
        timeout_s = _stop_wait_s(job) + STOP_MARGIN_S
    print(f"stopping {job_id} ({job.state}), for up to {timeout_s:g} s", file=sys.stderr)
    job = _stopped(client, job, time.monotonic() + timeout_s)
    if job.ended:
        print(_line(job))
        if unsaved := _unsaved(client, job):
            print(f"{job_id} {unsaved}", file=sys.stderr)
        return FAILED if unsaved else 0
    again = command("stop", job_id, client.access.address)
    if job.state == "PENDING":
        reason = (
            "Ray cannot stop a job that has not started, and gives one up after 15 minutes by default; once it runs, "
            f"this stops it: {again}"
        )
    else:
        reason = f"it was told to stop; to wait longer: {again} --timeout {2 * timeout_s:g}"
    print(f"{job_id} is still {job.state} after {timeout_s:g} s: {reason}", file=sys.stderr)
    return FAILED


def show_jobs(*, address: str | None, everything: bool, as_json: bool) -> int:
    """Print a table (or a list of objects) of Tandem's jobs, or of all, the newest first. Raises UserError."""
    client = JobsClient(dashboard_access(address), warn)
    found = [job for job in client.jobs() if everything or job.submitted_by_tandem]
    found.sort(key=lambda job: job.start_s or 0, reverse=True)
    if as_json:
        print(json.dumps([job_object(job, client.access.address) for job in found], ensure_ascii=False))
        return 0
    if not found:
        hint = "" if everything else " of Tandem's (--all shows others too)"
        print(f"no jobs{hint} at {client.access.address}")
        return 0
    rows = [("ID", "STATE", "RUN", "ALGORITHM", "USER", "STARTED", "DURATION", "EXIT")]
    for job in found:
        named = [job.metadata.get(key, "-") for key in ("run", "algorithm", "user")]
        code = "-" if job.exit_code is None else str(job.exit_code)
        rows.append((job.id, job.state, named[0], named[1], named[2], _started(job), _duration(job), code))
    print_table(rows)
    return 0


def wait_for(
    client: JobsClient, job_id: str, *, known: str = "", as_json: bool = False, more: JobValues | None = None
) -> int:
    """Follow a job's log on standard output (`as_json`: standard error) until it ends; then say how it ended.

    Args:
        known: how the log begins; left out.
        more: what the object that `as_json` prints holds beside the job.

    Returns:
        The driver's exit code; 130 for a job that was stopped, and after Ctrl-C, which leaves it alone; 1 when the
        connection was lost for good, Ray ended the job, or a stop killed it with its last step unsaved.
    """
    output = sys.stderr if as_json else sys.stdout  # with --json, standard output holds one object

    def write(text: str) -> None:
        output.write(text)
        output.flush()

    shown = WithoutOwnLines(write)
    back = command("logs -f", job_id, client.access.address)
    try:
        job = follow_log(client, job_id, shown, known)
        shown.close()
    except KeyboardInterrupt:
        print(f"\ndetached: {job_id} goes on; to come back: {back}", file=sys.stderr)
        return INTERRUPTED
    except ConnectionLost as error:
        print(f"connection lost: {error.problems[0]}; {job_id} may go on; to come back: {back}", file=sys.stderr)
        return FAILED
    unsaved = _unsaved(client, job)
    if as_json:
        found = {**job_object(job, client.access.address), **({"cause": unsaved} if unsaved else {}), **(more or {})}
        print(json.dumps(found, ensure_ascii=False), flush=True)
    print("\n".join([*_ending(job), *([f"{job_id} {unsaved}"] if unsaved else [])]), file=sys.stderr)
    return FAILED if unsaved else exit_code(job)


def exit_code(job: SubmittedJob) -> int:
    """What a command that waited for the job ends with; the driver's own where there is one."""
    if job.state == "STOPPED":
        return STOPPED
    if job.state == "SUCCEEDED":
        return 0
    code = job.exit_code or FAILED
    return code if code > 0 else 128 - code  # a driver that a signal ended, as shells count


def job_object(job: SubmittedJob, address: str) -> JobValues:
    """A job as --json prints it."""
    metadata = job.metadata
    return {
        "id": job.id,
        "address": address,
        "state": job.state,
        "run": metadata.get("run"),
        "algorithm": metadata.get("algorithm"),
        "user": metadata.get("user"),
        "digest": metadata.get("digest"),
        "started": _iso(job.start_s),
        "ended": _iso(job.end_s),
        "exit_code": job.exit_code,
        "cause": job.cause,
    }


def command(verb: str, job_id: str, address: str) -> str:
    """The command that does `verb` to a job, for the user to copy. Example: `tandem logs ID -f --address URL`."""
    name, _, option = verb.partition(" ")
    return shlex.join(["tandem", name, job_id, *([option] if option else []), "--address", address])


def warn(text: str) -> None:
    """Print a warning."""
    print(f"warning: {text}", file=sys.stderr)


def _stopped(client: JobsClient, job: SubmittedJob, until: float) -> SubmittedJob:
    """Tell the job to stop, again when its state has changed, until it has ended or time is up."""
    told = None
    while True:
        try:
            if job.state != told:  # PENDING it was told in vain: again, once it runs
                client.stop(job.id)
                told = job.state
            job = client.job(job.id)
        except NoAnswer:
            # It may answer again, and the job ends without us: asked until time is up.
            if time.monotonic() > until:
                raise
        if job.ended or time.monotonic() > until:
            return job
        time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))


def _ending(job: SubmittedJob) -> list[str]:
    """The last lines: state, exit code and cause."""
    code = "" if job.exit_code is None or job.state == "SUCCEEDED" else f" with exit code {job.exit_code}"
    lines = [f"{job.id} {job.state}{code} after {_duration(job)}"]
    if job.cause:
        lines.append(f"cause: {job.cause}{_hint(job)}")
    return lines


def _hint(job: SubmittedJob) -> str:
    """What to do about a driver that could not start."""
    cause = job.cause or ""
    # A line of ours names the module by itself, and what to do.
    if found := re.match(r"(?!error: ).*No module named '?(\w+)", cause):
        if found[1] == "launch":
            return " (the cluster's Python lacks Tandem: install it on all nodes, or submit from a clone)"
        return f" (the cluster's Python lacks {found[1]}: install it on all nodes)"
    if job.exit_code == 127 or "python: not found" in cause:
        return " (put a `python` with Tandem's packages on the PATH that nodes have when Ray is started there)"
    return ""


def _unsaved(client: JobsClient, job: SubmittedJob) -> str | None:
    """Why a job that was stopped has not saved its last step; None when it has, or its log is gone.

    Ray says STOPPED of a driver that has ended by itself and of one that it has killed; the log tells them apart.
    """
    if job.state != "STOPPED" or not job.submitted_by_tandem:
        return None
    try:
        text = client.logs(job.id)
    except UserError:
        return None
    # Ray appends the log of one attempt to that of the one before.
    text = re.split(rf"^Running entrypoint for job {re.escape(job.id)}: .*\n", text, flags=re.MULTILINE)[-1]
    # Without a line but warnings, the driver had not begun; interrupted before its first step, it has lost none.
    begun = re.search(r"^(?!warning: )\S", text, re.MULTILINE)
    nothing_lost = _INTERRUPTED.search(text) and not _STEP.search(text)
    if not begun or _SAVED.search(text) or nothing_lost:
        return None
    failed = re.search(r"^(error|run failed): .+", text, re.MULTILINE)
    limit = f"cluster.stop_wait_s ({_stop_wait_s(job)} s)"
    why = failed[0] if failed else f"it did not finish within {limit} and was killed"
    return f"ended without a checkpoint of its last step: {why}"


def _stop_wait_s(job: SubmittedJob) -> int:
    """What Ray waits between SIGTERM and SIGKILL; 0 for another program's job, whatever its metadata holds."""
    value = job.metadata.get("stop_wait_s", "")
    return int(value) if re.fullmatch(r"[0-9]{1,9}", value) else 0


def _line(job: SubmittedJob) -> str:
    parts = [job.id, job.state]
    if "run" in job.metadata:
        parts.append(f"run {job.metadata['run']}")
    parts += [f"started {_started(job)}", _duration(job)]
    if job.exit_code is not None:
        parts.append(f"exit code {job.exit_code}")
    if job.cause:
        parts.append(f"{job.cause}{_hint(job)}")
    return "  ".join(parts)


def _started(job: SubmittedJob) -> str:
    return "-" if job.start_s is None else f"{datetime.fromtimestamp(job.start_s):%Y-%m-%d %H:%M:%S}"


def _duration(job: SubmittedJob) -> str:
    """Example: `1:02:03`, hours, minutes and seconds from submission to the end, or to now."""
    if job.start_s is None:
        return "-"
    seconds = max(0, round((job.end_s or time.time()) - job.start_s))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
