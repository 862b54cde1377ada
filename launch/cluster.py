"""The cluster a run lives on: start or join Ray, reserve bundles for every group, wait for them with a deadline."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from actors.config import UserError
from actors.group import Slot
from launch.config import RunConfig, machine_cpus
from launch.placement import Demand, demands
from launch.signals import arm, hold

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Placement:
    """Reserved bundles and the slots of every group in them."""

    group: PlacementGroup
    slots: dict[str, list[Slot]]


@contextmanager
def ray_cluster(config: RunConfig, log_directory: Path) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one here that ends with the block."""
    address = os.environ.get("RAY_ADDRESS")
    _set_authentication(joining=bool(address))
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray runs workers at low priority (nice 15) by default: training would wait for everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address=address or "local",
        runtime_env=_runtime_environment(joining=bool(address)),
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        **({} if address else _local_resources(config)),
    )
    arm()  # Ray has put a handler of its own for SIGTERM.
    try:
        _link_logs(log_directory)
        yield
    finally:
        hold()
        ray.shutdown()


def _set_authentication(*, joining: bool) -> None:
    """Say whether Ray uses tokens, where the user has not: no on a cluster of our own, else if there is a token."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = bool(given) or (Path.home() / ".ray" / "auth_token").is_file()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if joining and token else "disabled")


def _runtime_environment(*, joining: bool) -> dict[str, Any]:
    """Workers import the code from the working directory, which a cluster that is joined must first be sent.

    A submitted job has its runtime environment from the submission, and Ray refuses to have a part of it set twice.
    """
    environment: dict[str, Any] = {
        "env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    }
    submitted = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if submitted:
        given = json.loads(submitted).get("runtime_env") or {}
        return {} if "PYTHONPATH" in given.get("env_vars", {}) else environment
    return {"working_dir": os.getcwd(), **environment} if joining else environment


def _local_resources(config: RunConfig) -> dict[str, Any]:
    gpus = {} if config.cluster.gpus is None else {"num_gpus": config.cluster.gpus}
    return {
        "num_cpus": config.cluster.cpus or machine_cpus(),
        "object_store_memory": config.cluster.object_store_mib * 2**20,
        "include_dashboard": False,
        **gpus,
    }


def _link_logs(directory: Path) -> None:
    """Point `logs/ray` at the session's log directory, where every worker's output is."""
    session = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[union-attr]
    link = directory / "ray"
    directory.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(session)


def place(config: RunConfig, notify: Notify) -> Placement:
    """Reserve the bundles of all groups; raises UserError when the deadline passes, naming what is missing."""
    # Reward workers need no place of their own: they take what the bundles leave.
    wanted = [demand for demand in demands(config) if demand.group != "reward"]
    bundles, where = _bundles(config, wanted)
    reserved = placement_group(bundles, strategy="PACK")
    _wait(reserved, bundles, config.cluster.wait_s, notify)
    return Placement(reserved, _slots(wanted, where, reserved))


def release(placement: Placement) -> None:
    """Give the bundles back."""
    remove_placement_group(placement.group)


def _bundles(config: RunConfig, wanted: list[Demand]) -> tuple[list[dict[str, float]], dict[str, list[int]]]:
    """Bundles and, per group, the bundle of each rank: own bundles (split) or rank i in bundle i (shared)."""
    bundles: list[dict[str, float]] = []
    where: dict[str, list[int]] = {}
    for demand in wanted:
        shared = config.cluster.placement == "shared"
        where[demand.group] = [rank if shared else len(bundles) + rank for rank in range(demand.count)]
        for bundle in where[demand.group]:
            if bundle == len(bundles):
                bundles.append({"CPU": 0.0})
            bundles[bundle]["CPU"] += demand.cpus
            if demand.gpus:
                # Colocated groups take turns on one GPU: the bundle holds the largest demand, not their sum.
                bundles[bundle]["GPU"] = max(bundles[bundle].get("GPU", 0.0), demand.gpus)
    return bundles, where


def _slots(wanted: list[Demand], where: dict[str, list[int]], reserved: PlacementGroup) -> dict[str, list[Slot]]:
    # Groups with as many ranks share all their bundles, others only the first ones.
    groups_on_gpu = Counter(bundle for demand in wanted if demand.gpus for bundle in where[demand.group])
    return {
        demand.group: [
            Slot(
                placement=reserved,
                bundle=bundle,
                cpus=demand.cpus,
                gpus=demand.gpus / max(1, groups_on_gpu[bundle]),
                threads=demand.threads,
            )
            for bundle in where[demand.group]
        ]
        for demand in wanted
    }


def _wait(reserved: PlacementGroup, bundles: list[dict[str, float]], wait_s: float, notify: Notify) -> None:
    started = time.monotonic()
    while not reserved.wait(timeout_seconds=2):
        waited = time.monotonic() - started
        missing = _missing(bundles)
        if waited > wait_s:
            raise UserError(f"cluster.wait_s: resources did not come within {wait_s:g} s, missing {missing}")
        notify(f"waiting for resources ({waited:.0f} of {wait_s:.0f} s), missing {missing}")


def _missing(bundles: list[dict[str, float]]) -> str:
    free = ray.available_resources()
    needs = {key: sum(bundle.get(key, 0.0) for bundle in bundles) for key in ("CPU", "GPU")}
    lacking = [
        f"{need - free.get(key, 0.0):g} {key} of {need:g}" for key, need in needs.items() if need > free.get(key, 0.0)
    ]
    return ", ".join(lacking) or f"room for {len(bundles)} bundles on the nodes there are"
