"""The cluster a run lives on: start or join Ray, and see which nodes are about to leave it."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NotRequired, TypedDict

import ray
from ray._private import state as ray_state
from ray._private import worker as ray_worker
from ray.exceptions import AuthenticationError

from actors.config import UserError
from actors.secret_text import masked
from launch import telemetry
from launch.config import RunConfig, machine_cpus
from launch.run.local_ray import only_what_is_used, private_directories, require_token
from launch.run.ray_address import auth_mode, check_ray_address
from launch.run.signals import arm, hold
from launch.settings.environment import NO_TOKEN


class _RuntimeEnvironment(TypedDict):
    env_vars: dict[str, str]
    working_dir: NotRequired[str]


class _Options(TypedDict):
    """Arguments of `ray.init`, whether a cluster is started or joined."""

    log_to_driver: bool
    logging_level: int
    configure_logging: bool


class _Resources(TypedDict):
    """Arguments of `ray.init` that say what a cluster of the run's own has."""

    num_cpus: int
    object_store_memory: int
    include_dashboard: bool
    num_gpus: NotRequired[int]


@contextmanager
def ray_cluster(config: RunConfig, log_directory: Path) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one here that ends with the block.

    Raises:
        UserError: a cluster that cannot be joined.
    """
    # Else Ray leaves out a line that several processes write alike.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Where several ranks fail, the error of the first is told, in a line; Ray would print the others' tracebacks.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    telemetry.switch_off()
    _keep_messages(log_directory)
    # Ray runs workers at low priority (nice 15) by default: training would wait for everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Every process writes a log of its own; what of it matters, the run's own screen says.
    options: _Options = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    with _joined(address, config, options) if address else _started(config, options, log_directory):
        arm()  # Ray has put a handler of its own for SIGTERM.
        try:
            _link_logs(log_directory)
            yield
        finally:
            hold()
            ray.shutdown()  # a cluster that was joined goes on without this driver


@contextmanager
def _started(config: RunConfig, options: _Options, logs: Path) -> Iterator[None]:
    require_token()
    with private_directories(logs) as (session, files):
        variables = {"TMPDIR": str(files)} | _variables(config)
        with only_what_is_used():
            ray.init(
                address="local",
                runtime_env={"env_vars": variables},
                _temp_dir=str(session),
                **options,
                **_local_resources(config),
            )
        yield


@contextmanager
def _joined(address: str, config: RunConfig, options: _Options) -> Iterator[None]:
    # Whether Ray 2.60 uses a token that is there depends on how it was started: said, it does not.
    os.environ["RAY_AUTH_MODE"] = auth_mode()
    with _runtime_environment(config) as environment:
        _join(address, options, environment)
    yield


def _join(address: str, options: _Options, environment: _RuntimeEnvironment) -> None:
    check_ray_address(address)
    try:
        ray.init(address=address, runtime_env={**environment}, **options)
    except (RuntimeError, ConnectionError, ValueError, AuthenticationError) as error:
        # Versions that differ, a wrong token, nothing that is Ray: it is told over several lines.
        raise UserError(f"RAY_ADDRESS: {' '.join(str(error).split())}, got {address}") from None


def _variables(config: RunConfig) -> dict[str, str]:
    # Workers import our code, and the user's, from where the run was started.
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    kept = {NO_TOKEN: os.environ[NO_TOKEN]} if NO_TOKEN in os.environ else {}
    # The last one wins: no setting of the user's may let the hub's token out again.
    return {"PYTHONPATH": path, **telemetry.chosen(), **config.cluster.env, **kept}


@contextmanager
def _runtime_environment(config: RunConfig) -> Iterator[_RuntimeEnvironment]:
    """Workers import the code from the working directory, which a cluster that is joined must first be sent.

    A submitted job has its runtime environment from the submission, and Ray refuses to have a part of it set twice.
    """
    variables = _variables(config)
    submitted = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if submitted:
        given = (json.loads(submitted).get("runtime_env") or {}).get("env_vars") or {}
        yield {"env_vars": {name: value for name, value in variables.items() if name not in given}}
        return
    from launch.jobs.package import package_files
    from launch.jobs.selection import select_files
    from launch.jobs.uploadable import secret_problems

    if problems := secret_problems(config):
        raise UserError(*problems)
    with NamedTemporaryFile(suffix=".zip") as file:
        with package_files(select_files(Path.cwd(), config.run.output), config).data as data:
            shutil.copyfileobj(data, file)
        file.flush()  # Ray reads it by its name
        yield {"working_dir": file.name, "env_vars": variables}


def _local_resources(config: RunConfig) -> _Resources:
    found: _Resources = {
        "num_cpus": config.cluster.cpus or machine_cpus(),
        "object_store_memory": config.cluster.object_store_mib * 2**20,
        "include_dashboard": False,
    }
    if config.cluster.gpus is not None:
        found["num_gpus"] = config.cluster.gpus
    return found


def _keep_messages(directory: Path) -> None:
    """Let what Ray tells the driver of processes that have died go to `driver.log`, not to the screen: it takes 700
    characters, and the run says what has happened, and where, in one line."""

    def keep(data: dict[str, list[str]], ignore_prefix: bool) -> None:
        with contextlib.suppress(OSError), (directory / "driver.log").open("a", encoding="utf-8") as file:
            file.writelines(f"Ray: {masked(line)}\n" for line in data.get("lines", ()))

    directory.mkdir(parents=True, exist_ok=True)
    ray_worker.print_to_stdstream = keep


def _link_logs(directory: Path) -> None:
    """Point `logs/ray` at the session's log directory, where every worker's output is."""
    session = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[union-attr]
    link = directory / "ray"
    directory.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or not link.is_dir():
        link.unlink(missing_ok=True)
    else:
        shutil.rmtree(link)  # An earlier run's, which was the only one of its cluster.
    link.symlink_to(session)


def draining(nodes: set[str]) -> list[str]:
    """Addresses of those of the nodes, given by id, and of the driver's own, that are about to go: what runs there may
    go on until their grace period ends."""
    # Not public; Ray's own Train learns of it in the same way.
    leaving = ray_state.state.get_draining_nodes().keys() & (nodes | {ray.get_runtime_context().get_node_id()})
    return [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in leaving] if leaving else []
