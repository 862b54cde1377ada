"""A Ray cluster of a run's own: nobody else's on this machine or network can use it, and nothing of it stays behind."""

import importlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from launch.run.attempt_link import say_leaves

_MOST_BASE_BYTES = 20
"""Longest directory that Ray's sockets can lie below: the path of a Unix socket has at most 107 bytes."""


@contextmanager
def private_directories(logs: Path) -> Iterator[tuple[Path, Path]]:
    """Two directories that only this user can enter: for Ray's session, and for what libraries leave in TMPDIR.

    Both go at the end. Ray makes the directory that it is given, and all below, writable by everybody (0777), so it
    gets one further down. What libraries leave may be large, and stays on the disk that the user has chosen for it.

    Args:
        logs: where the session's logs are to be found, as `ray`: a link while the run goes on, the files after it.
    """
    chosen = tempfile.gettempdir()
    base = os.environ.get("RAY_TMPDIR") or chosen
    short = base if len(os.fsencode(base)) <= _MOST_BASE_BYTES else "/tmp"
    root, files = (Path(tempfile.mkdtemp(prefix="tandem-", dir=place)) for place in (short, chosen))
    say_leaves([root, files])
    session = root / "ray"
    try:
        session.mkdir()
        yield session, files
    finally:
        # Ray's own link to the session that it began last.
        _keep_logs(session / "session_latest" / "logs", logs / "ray")
        for directory in (root, files):
            shutil.rmtree(directory, ignore_errors=True)


def require_token() -> None:
    """Let the cluster that this process starts next answer only to who knows its token, a new one for every run.

    Where the user has chosen a mode or a token, that holds. Ray 2.60 would do without, or write a lasting token file.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        return
    raylet = importlib.import_module("ray._raylet")
    os.environ["RAY_AUTH_MODE"] = "token"
    stored = mode is not None and (Path.home() / ".ray" / "auth_token").is_file()
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or stored):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # This process has read mode and token when it imported Ray, and would be refused by its own cluster.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    # The only port that answers without a token: Prometheus metrics that nobody collects from such a cluster.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")


@contextmanager
def only_what_is_used() -> Iterator[None]:
    """Within the block, `ray.init` starts no process that a run on one machine has no use for: each takes a second of
    CPU of a start. Ray 2.60 has no argument of `ray.init` for them.

    Left out are the autoscaler's monitor; the log monitor, which sends the output of workers to a driver that shows it
    otherwise; a worker per CPU without our environment, of which none of our groups would ever be; and of the dashboard
    and its agent, which Ray starts in any case, all but the least: else the one listens at port 44227 of all addresses,
    where it is free, and answers without a token, and the other at a port for nobody.
    """
    parameter: Any = importlib.import_module("ray._private.parameter")
    utils: Any = importlib.import_module("ray._private.utils")
    params, problem = parameter.RayParams, utils.get_dashboard_dependency_error
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # `ray.init` builds its parameters itself, from this name.
    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    # As if the packages for more were not installed.
    utils.get_dashboard_dependency_error = lambda: ImportError("a run has no use for a dashboard")
    try:
        yield
    finally:
        parameter.RayParams, utils.get_dashboard_dependency_error = params, problem


def _keep_logs(session: Path, kept: Path) -> None:
    if kept.is_symlink():
        kept.unlink()
    if session.is_dir():
        # An earlier run's, under the same name.
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(session, kept, ignore_dangling_symlinks=True, copy_function=shutil.copyfile)
