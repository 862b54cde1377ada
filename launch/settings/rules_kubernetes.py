"""Rules between `cluster.kubernetes` and the other sections of a RunConfig, and what is allowed and not safe.

Every failure is a ValueError whose text begins with the field.
"""

from actors.config import refuse_unused
from launch.config import RunConfig
from launch.kube.config import UNPROTECTED
from launch.kube.config_parts import DRAIN_MARGIN_S
from launch.sizes.placement import demands, section_of


def check_kubernetes(config: RunConfig) -> None:
    """Raise ValueError for the first rule between `cluster.kubernetes` and the other sections that is broken."""
    cluster, kubernetes, section = config.cluster, config.cluster.kubernetes, "cluster.kubernetes."
    if kubernetes.retries and not config.checkpoint.resume:
        raise ValueError(
            f"{section}retries must be 0 with checkpoint.resume false: each would start anew, got {kubernetes.retries}"
        )
    wanted = demands(config)
    separate = cluster.placement == "separate" and any(demand.group == "rollout" for demand in wanted)
    if not separate:
        why = "without rollout engines on nodes of their own (cluster.placement separate)"
        refuse_unused(kubernetes, "rollout_node_selector", why=why, section=section)
        if kubernetes.autoscaling:
            raise ValueError(f"{section}autoscaling must be left out {why}, got it")
    if not any(demand.gpus for demand in wanted):
        why = "where no group asks for a GPU"
        names = ("gpus_per_node", "cpus_per_gpu", "memory_gib_per_gpu")
        refuse_unused(kubernetes, *names, why=why, section=section)
    least = cluster.stop_wait_s + DRAIN_MARGIN_S
    if kubernetes.grace_s is not None and kubernetes.grace_s <= least:
        raise ValueError(
            f"{section}grace_s must exceed {least}, cluster.stop_wait_s and {DRAIN_MARGIN_S} more, "
            f"got {kubernetes.grace_s}"
        )
    # Of two values for one variable, nobody could say which a process has.
    plain = {name for variables in (cluster.env, *(demand.env for demand in wanted)) for name in variables}
    for name in sorted(plain & kubernetes.secrets.keys()):
        raise ValueError(f"{section}secrets.{name} must be left out, as an env field sets {name}, got both")


def auth_warnings(config: RunConfig) -> list[str]:
    """One line for each setting that switches Ray's token off."""
    given = {"cluster.kubernetes.ray_auth": config.cluster.kubernetes.ray_auth}
    given["cluster.env.RAY_AUTH_MODE"] = config.cluster.env.get("RAY_AUTH_MODE", "")
    for demand in demands(config):
        given[f"{section_of(config, demand.group)}.env.RAY_AUTH_MODE"] = demand.env.get("RAY_AUTH_MODE", "")
    return [f"{field}: disabled, so {UNPROTECTED}" for field, mode in given.items() if mode == "disabled"]
