"""Rules of what is computed of finished groups while others are generated.

Every failure is a ValueError whose text begins with the field.
"""

from collections.abc import Iterator

from actors.config import refuse_unused
from algorithms.config_rl import GRPOConfig, RLConfig
from launch.config import RunConfig
from launch.settings.overlap import reads_of, reads_that_may_overlap, takes_turns_on_gpus


def check_overlap(config: RunConfig, algorithm: RLConfig) -> None:
    """Raise ValueError for the first rule that the configuration breaks."""
    if isinstance(algorithm, GRPOConfig) and algorithm.overlaps_gradients:
        _gradients_can_overlap(config, algorithm)
        why = "with overlap_gradients, for which groups are read as they end"
        refuse_unused(algorithm, "overlap_reads", why=why, section="algorithm.")
    _reads_can_overlap(config, algorithm)


def _reads_can_overlap(config: RunConfig, algorithm: RLConfig) -> None:
    if not reads_of(config, algorithm):
        why = "where a step reads nothing before its updates: no reference, no old logprobs, no values"
        refuse_unused(algorithm, "overlap_reads", why=why, section="algorithm.")
    if algorithm.overlap_reads is not True:
        return
    reads = reads_that_may_overlap(config, algorithm)
    if not reads:
        raise ValueError(
            f"algorithm.overlap_reads must be auto or false with algorithm.max_staleness {algorithm.max_staleness}, "
            f"unless there is a reference group, without sync_every: other models learn meanwhile, got true"
        )
    if takes_turns_on_gpus(config, reads.values()):
        raise ValueError(
            "algorithm.overlap_reads must be auto or false with cluster.placement shared, where engines and groups "
            "that read take turns on the same GPUs, got true"
        )


def _gradients_can_overlap(config: RunConfig, algorithm: GRPOConfig) -> None:
    for broken, rule, why, value in _of_gradients(config, algorithm):
        if broken:
            raise ValueError(f"{rule} with algorithm.overlap_gradients, {why}, got {value}")


def _of_gradients(config: RunConfig, algorithm: GRPOConfig) -> Iterator[tuple[object, str, str, object]]:
    """(whether it is broken, a rule, why there is one, the value)."""
    staleness = algorithm.max_staleness
    yield staleness, "algorithm.max_staleness must be 0", "which is for steps that wait for their groups", staleness
    epochs, per_update = algorithm.epochs_per_step, algorithm.samples_per_update
    why = "whose gradient is that of the only update of a step"
    yield epochs > 1, "algorithm.epochs_per_step must be 1", why, epochs
    rule = f"algorithm.samples_per_update must be left out, or {algorithm.samples_per_step},"
    yield algorithm.updates_per_step > 1, rule, why, per_update
    why = "as it needs advantages that are known when their group has ended"
    of_step = algorithm.baseline.by_token or algorithm.baseline.whitens(algorithm)
    yield of_step, "algorithm.advantage must be group or leave_one_out", why, algorithm.advantage
    in_reward = algorithm.kl_coef and algorithm.kl_in == "reward"
    yield in_reward, "algorithm.kl_in must be loss", why, algorithm.kl_in
    yield config.reward.normalize, "reward.normalize must be false", why, "true"
    balance = config.model.router_aux_loss
    why = "as what experts are balanced by is known when all groups have ended"
    yield balance, "model.router_aux_loss must be left out, or 0,", why, balance
    reduced = config.policy.deepspeed.get("communication_data_type")
    rule, why = "policy.deepspeed.communication_data_type must be fp32 or bf16", "whose sums fp16 cannot hold"
    yield reduced == "fp16", rule, why, reduced
    rule, why = (
        "cluster.placement must be split or separate",
        "as engines and groups that train or read take turns on the same GPUs",
    )
    yield (
        takes_turns_on_gpus(config, ["policy", *reads_of(config, algorithm).values()]),
        rule,
        why,
        config.cluster.placement,
    )
