"""The verb `submit`: check, upload what is new, start the job or find it started, and follow it if asked to."""

import getpass
import importlib.metadata
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.config import UserError
from launch.checks.check import preflight
from launch.config import RunConfig
from launch.jobs.access import dashboard_access
from launch.jobs.client import JobsClient, NoAnswer, SubmittedJob, Texts
from launch.jobs.package import CONFIG_FILE, Package, package_files, package_warnings, shown_size
from launch.jobs.selection import select_files
from launch.jobs.uploadable import upload_problems
from launch.jobs.verbs import JOB_ID, command, job_object, wait_for, warn

# exec: the driver takes the place of the shell that Ray starts, and gets its signals. `python` is the one of the
# PATH that the node was started with.
ENTRYPOINT = f"exec python -m launch run {CONFIG_FILE}"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable by which Ray knows how long to wait between SIGTERM and SIGKILL; its default is 3 seconds."""


@dataclass(frozen=True, slots=True)
class _Submission:
    """What is submitted, and under which id."""

    id: str
    config: RunConfig
    package: Package
    retries: int | None
    """Of the command line; None: what the configuration has."""

    @property
    def entrypoint(self) -> str:
        """The job's command."""
        return ENTRYPOINT if self.retries is None else f"{ENTRYPOINT} --retries {self.retries}"

    @property
    def metadata(self) -> dict[str, str]:
        """Readable for all who use the cluster: nothing secret."""
        return {
            "tandem": _version(),
            "run": self.config.run.name,
            "algorithm": self.config.algorithm.name,
            "digest": self.package.digest,
            "user": _user(),
            "stop_wait_s": str(self.config.cluster.stop_wait_s),
            "directory": str(self.config.directory),
        }

    @property
    def runtime_env(self) -> Texts:
        """The job's, inherited by its workers."""
        variables = {STOP_WAIT: str(self.config.cluster.stop_wait_s)}
        return {"working_dir": self.package.uri, "env_vars": variables}


def submit_job(
    config: RunConfig,
    *,
    address: str | None,
    run_id: str | None,
    wait: bool,
    as_json: bool,
    code: bool = True,
    retries: int | None = None,
) -> int:
    """Submit the working directory and `config` to the cluster at `address` under `run_id` (default: a new one).
    Without `code`, nothing that the configuration names is imported here; `retries` goes before `run.max_restarts`.

    An id that is there already: the same job is not started again unless it failed or was stopped; see `_settle`.

    Returns:
        0, or with `wait` the driver's exit code, 130 for a job that was stopped and after Ctrl-C, which detaches.

    Raises:
        UserError: with one line per problem, before anything is sent; or one about the cluster.
    """
    note = _notes(as_json)
    access = dashboard_access(address)
    job_id = _checked_id(run_id, config)
    package, warnings = _checked_package(config, code=code)
    with package.data:
        client = JobsClient(access, warn)
        submission = _Submission(job_id, config, package, retries)
        old = client.find(job_id)  # asked before anything is uploaded: the job may be there and need none of it
        again = old is not None and _settle(client, old, submission, note)
        known = _old_log(client, old) if again else ""
        started = old is None or again
        if started:
            _check_directory(client, submission)
        for warning in warnings:  # only now: an error is told alone
            warn(warning)
        if started:
            _upload(client, package, note)
            _start(client, submission, replaced=old)
    values = {"submitted": started, "package": package.uri, "files": package.files, "bytes": package.size}
    if started:
        note(f"submitted {job_id}")
        for verb in ("logs -f", "status", "stop"):
            note(f"  {command(verb, job_id, access.address)}")
    if wait:
        return wait_for(client, job_id, known=known, as_json=as_json, more=values)
    if as_json:
        print(json.dumps({**job_object(client.job(job_id), access.address), **values}, ensure_ascii=False))
    return 0


def _notes(as_json: bool) -> Callable[[str], None]:
    """Where the progress goes: with --json, standard output holds one object."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def _checked_id(given: str | None, config: RunConfig) -> str:
    # With time and random digits 111 characters at most, of the 128 that JOB_ID allows.
    job_id = given or f"{config.run.name[:90]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if not re.fullmatch(JOB_ID, job_id):
        rule = "must be letters, digits, dots, hyphens and underscores, at most 128, the first a letter or digit"
        raise UserError(f"--id: {rule}, got {job_id}")
    return job_id


def _checked_package(config: RunConfig, *, code: bool) -> tuple[Package, list[str]]:
    """The package, once configuration and files are known to be sound, and warnings."""
    selection = select_files(Path.cwd(), config.run.output)
    problems, warnings = upload_problems(config, selection), package_warnings(selection)
    if Path(config.run.output).resolve() == selection.root.resolve():
        rule = "must be another directory than the working directory, whose files are uploaded"
        problems.append(f"run.output: {rule}, got {config.run.output}")
    try:
        warnings += preflight(config, elsewhere=True, code=code)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return package_files(selection, config), warnings


def _settle(client: JobsClient, old: SubmittedJob, submission: _Submission, note: Callable[[str], None]) -> bool:
    """Whether a job with this id is to be started again; says why.

    Raises:
        UserError: the id is taken: by a running job of another configuration, or by a job that is not Tandem's.
    """
    # The digest is of configuration and files: by it the same job is known again.
    same = old.metadata.get("digest") == submission.package.digest
    if not old.submitted_by_tandem:
        raise UserError(f"--id: must be no other program's job ({old.state}), got {old.id}")
    if not old.ended and not same:
        stop = command("stop", old.id, client.access.address)
        raise UserError(
            f"--id: must be new while this job is {old.state} with another configuration or other files "
            f"(to end it: {stop}), got {old.id}"
        )
    if not old.ended:
        note(f"{old.id} is {old.state}: it was submitted before, with the same configuration and files")
        return False
    if old.state == "SUCCEEDED" and same:
        note(f"{old.id} has SUCCEEDED: it was submitted before, with the same configuration and files")
        return False
    change = "" if same else "; configuration or files have changed"
    resume = submission.config.checkpoint.resume
    how = "it resumes from its last checkpoint" if resume else "it starts anew, as checkpoint.resume is false"
    note(f"{old.id} was {old.state}: submitting it again, {how}{change}")
    return True


def _check_directory(client: JobsClient, submission: _Submission) -> None:
    """Two jobs would overwrite each other's checkpoints; raises UserError."""
    directory = submission.metadata["directory"]
    for job in client.jobs():  # by the directory, not the name: two runs of a name may write to different places
        if job.id != submission.id and not job.ended and job.metadata.get("directory") == directory:
            attach, stop = (command(verb, job.id, client.access.address) for verb in ("logs -f", "stop"))
            raise UserError(
                f"run.name: must be another than that of job {job.id}, which is {job.state} in {directory} "
                f"(attach: {attach}, stop: {stop}), got {submission.config.run.name}"
            )


def _old_log(client: JobsClient, old: SubmittedJob | None) -> str:
    """What earlier attempts printed: Ray appends to the same file. Empty when the node that held it is gone."""
    try:
        return client.logs(old.id) if old else ""
    except NoAnswer:
        return ""


def _upload(client: JobsClient, package: Package, note: Callable[[str], None]) -> None:
    size = f"{package.files} files, {shown_size(package.size)}"
    if client.has_package(package.name):
        note(f"already on the cluster: {size}")
        return
    note(f"uploading {size}")
    client.upload(package.name, package.data)


def _start(client: JobsClient, submission: _Submission, replaced: SubmittedJob | None) -> None:
    """Start the job; an answer that does not come leaves open whether it was."""
    if replaced is not None:
        client.delete(submission.id)  # Ray refuses an id that it has, also that of a job which has ended
    unknown = f"whether it was submitted says: {command('status', submission.id, client.access.address)}"
    try:
        labels = submission.config.cluster.driver_labels
        client.submit(submission.id, submission.entrypoint, submission.runtime_env, submission.metadata, labels)
    except NoAnswer as error:
        raise UserError(f"{error.problems[0]}; {unknown}") from None
    except KeyboardInterrupt:
        print(unknown, file=sys.stderr)
        raise


def _version() -> str:
    try:
        return importlib.metadata.version("tandem-rlhf")
    except importlib.metadata.PackageNotFoundError:  # a clone that was not installed
        return "unknown"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return "unknown"
