"""`algorithm.overlap_reads`: what auto is, on which GPUs and cores, and what `tandem check` says of it."""

import re
from typing import Any

import pytest

from actors.config import UserError
from launch.checks.check import examine
from launch.checks.report import print_tables
from launch.config import RunConfig, validate
from launch.kinds.table import job_kind
from launch.run.build_rl import _reads_beside
from launch.settings import overlap
from launch.settings.overlap import Compute, computes_beside, overlapped_reads
from tests.test_correction_setting import JOB

GPU = Compute(gpu=True, threads=16)


def cores(threads: int) -> Compute:
    return Compute(gpu=False, threads=threads)


@pytest.mark.parametrize(
    ("engines", "readers", "placement", "cpus", "beside"),
    [
        (GPU, [GPU], "split", 1, True),  # GPUs of their own, whatever cores there are
        (GPU, [GPU, GPU], "separate", 1, True),
        (GPU, [GPU], "shared", 99, False),  # the engines' GPUs
        (GPU, [GPU, cores(1)], "shared", 99, False),
        (GPU, [cores(2)], "shared", 18, True),
        (cores(2), [GPU], "shared", 1, True),
        (cores(1), [cores(1)], "split", 2, True),
        (cores(1), [cores(2)], "split", 2, False),
        (cores(2), [cores(2), cores(2)], "split", 6, True),  # they may all read at one time
        (cores(2), [cores(2), cores(2)], "split", 5, False),
        (cores(2), [cores(2), GPU], "split", 4, True),
        (cores(1), [cores(1)], "shared", 2, True),
        (cores(1), [cores(2)], "shared", 2, False),
        (cores(9), [cores(9)], "separate", 9, True),  # engines have nodes of their own
    ],
)
def test_who_computes_beside_engines(
    engines: Compute, readers: list[Compute], placement: str, cpus: int, beside: bool
) -> None:
    assert computes_beside(engines, readers, placement=placement, cpus=cpus) is beside


def made(algorithm: dict[str, Any], **sections: Any) -> RunConfig:
    critic = {"critic": {}} if algorithm["name"] == "ppo" else {}
    return validate(JOB | critic | sections | {"algorithm": JOB["algorithm"] | algorithm})


ONE_EACH = {"policy": {"threads_per_rank": 1}, "reference": {"threads_per_rank": 1}, "critic": {"threads_per_rank": 1}}
SPARE: dict[str, Any] = ONE_EACH | {"cluster": {"cpus": 4}, "rollout": JOB["rollout"] | {"threads_per_engine": 1}}
GPUS: dict[str, Any] = {name: {"gpus_per_rank": 1} for name in ("policy", "critic", "reference")}
NO_REFERENCE = {name: GPUS[name] for name in ("policy", "critic")}
GPUS |= {"rollout": JOB["rollout"] | {"gpus_per_engine": 1}}
PPO: dict[str, Any] = {"name": "ppo", "importance_correction": {}, "samples_per_update": 4}
REFERENCE, EACH = {"reference_logprobs"}, {"reference_logprobs", "old_logprobs", "values"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "by default all cores are everybody's": (PPO, {}, set()),
    "unless it is asked for": (PPO | {"overlap_reads": True}, {}, EACH),
    "cores are enough for each group": (PPO, SPARE, EACH),
    "but not for one more": (PPO, SPARE | {"cluster": {"cpus": 3}}, set()),
    "GPUs": (PPO, GPUS, EACH),
    "GPUs, without": (PPO | {"overlap_reads": False}, GPUS, set()),
    "shared GPUs": (PPO, GPUS | {"cluster": {"placement": "shared"}}, set()),
    "only what is read": ({"name": "ppo", "kl_coef": 0}, NO_REFERENCE, {"values"}),
    "beside updates only the reference": (PPO | {"max_staleness": 2}, GPUS, REFERENCE),
    "where what learns leaves it cores": (PPO | {"max_staleness": 2}, SPARE, REFERENCE),
    "and not where it leaves none": (PPO | {"max_staleness": 2}, SPARE | {"cluster": {"cpus": 3}}, set()),
    "unless it follows the policy": (PPO | {"max_staleness": 2}, GPUS | {"reference": {"sync_every": 3}}, set()),
    "as it may on-policy": (PPO, GPUS | {"reference": {"sync_every": 3, "gpus_per_rank": 1}}, EACH),
    "or is the policy": (
        PPO | {"max_staleness": 2},
        {"model": JOB["model"] | {"lora": {}}, "reference": {"from_policy": True}, "policy": {"gpus_per_rank": 1}},
        set(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_while_others_are_generated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, sections, fields = CASES[name]
    monkeypatch.setattr(overlap, "machine_cpus", lambda: 64)
    monkeypatch.setattr("launch.config.machine_cpus", lambda: 64)
    config = made(algorithm, **sections)
    assert overlapped_reads(config, config.algorithm) == fields  # type: ignore[arg-type]
    told = [note for note in job_kind(config).notes() if "while others are generated" in note]
    auto = "" if "overlap_reads" in algorithm else " (auto)"
    names = ", ".join(
        each.replace("_", " ") for each in ("values", "reference_logprobs", "old_logprobs") if each in fields
    )
    assert told == [f"{names}: read of finished groups while others are generated{auto}"] * bool(fields)


def test_a_run_reads_so_what_is_decided() -> None:
    config = made(PPO | {"max_staleness": 2, "overlap_reads": True})
    reads = _reads_beside(job_kind(config), {}, lambda _: [])  # type: ignore[arg-type]
    assert (reads._fields, reads._beside_updates) == (REFERENCE, True)
    config = made(PPO | {"overlap_reads": True})
    reads = _reads_beside(job_kind(config), {}, lambda _: [])  # type: ignore[arg-type]
    assert (reads._fields, reads._beside_updates) == (EACH, False)


def test_check_says_it(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "ab", "answer": "a"}\n' * 8)
    data, run = {"train": str(tmp_path / "rows.jsonl")}, {"output": str(tmp_path / "outputs")}
    print_tables(examine(made(PPO | {"overlap_reads": True}, data=data, run=run)))
    line = "values, reference logprobs, old logprobs: read of finished groups while others are generated"
    assert f"\n{line}\n" in capsys.readouterr().out


GRADIENTS: dict[str, Any] = {"name": "grpo", "overlap_gradients": True}
ON_GPUS: dict[str, Any] = {"policy": GPUS["policy"], "rollout": GPUS["rollout"]}
ITS_OWN = "as it needs advantages that are known when their group has ended"
ONLY_ONE = "whose gradient is that of the only update of a step"
Sections = tuple[dict[str, Any], dict[str, Any]]
"""Of the algorithm; others."""
RULES: dict[str, tuple[Sections, list[Sections]]] = {
    "algorithm.max_staleness must be 0 with algorithm.overlap_gradients, which is for steps that wait for their "
    "groups, got 2": (({"max_staleness": 2}, {}), [({"max_staleness": 0}, {})]),
    f"algorithm.epochs_per_step must be 1 with algorithm.overlap_gradients, {ONLY_ONE}, got 2": (
        ({"epochs_per_step": 2}, {}),
        [({"epochs_per_step": 1}, {})],
    ),
    f"algorithm.samples_per_update must be left out, or 8, with algorithm.overlap_gradients, {ONLY_ONE}, got 4": (
        ({"samples_per_update": 4}, {}),
        [({"samples_per_update": 8}, {}), ({}, {})],
    ),
    "algorithm.advantage must be group or leave_one_out with algorithm.overlap_gradients, "
    f"{ITS_OWN}, got reinforce_pp": (
        ({"advantage": "reinforce_pp"}, {}),
        [({"advantage": "group"}, {}), ({"advantage": "leave_one_out"}, {})],
    ),
    "algorithm.advantage must be group or leave_one_out with algorithm.overlap_gradients, "
    f"{ITS_OWN}, got reinforce_pp_baseline": (
        ({"advantage": "reinforce_pp_baseline"}, {}),
        [({"advantage": "group", "normalize_std": False}, {})],
    ),
    f"algorithm.kl_in must be loss with algorithm.overlap_gradients, {ITS_OWN}, got reward": (
        ({"kl_coef": 0.1, "kl_in": "reward"}, {}),
        [({"kl_coef": 0.1, "kl_in": "loss"}, {}), ({"kl_coef": 0.0}, {})],
    ),
    f"reward.normalize must be false with algorithm.overlap_gradients, {ITS_OWN}, got true": (
        ({}, {"reward": JOB["reward"] | {"normalize": True}}),
        [({}, {"reward": JOB["reward"] | {"normalize": False, "clip": 1.0}})],
    ),
    "model.router_aux_loss must be left out, or 0, with algorithm.overlap_gradients, as what experts are balanced by "
    "is known when all groups have ended, got 0.01": (
        ({}, {"model": JOB["model"] | {"router_aux_loss": 0.01}}),
        [({}, {"model": JOB["model"] | {"router_aux_loss": 0.0}})],
    ),
    "policy.deepspeed.communication_data_type must be fp32 or bf16 with algorithm.overlap_gradients, whose sums fp16 "
    "cannot hold, got fp16": (
        ({}, {"policy": {"deepspeed": {"communication_data_type": "fp16"}}}),
        [({}, {"policy": {"deepspeed": {"communication_data_type": "fp32"}}})],
    ),
    "cluster.placement must be split or separate with algorithm.overlap_gradients, as engines and groups that train or "
    "read take turns on the same GPUs, got shared": (
        ({}, ON_GPUS | {"cluster": {"placement": "shared"}}),
        [
            ({}, ON_GPUS | {"cluster": {"placement": "split"}}),
            ({}, ON_GPUS | {"cluster": {"placement": "separate"}}),
            ({}, {"cluster": {"placement": "shared"}}),  # on cores nobody takes turns
        ],
    ),
    "algorithm.overlap_reads must be left out with overlap_gradients, for which groups are read as they end, "
    "got true": (
        ({"kl_coef": 0.1, "overlap_reads": True}, {}),
        [({"kl_coef": 0.1, "overlap_reads": "auto"}, {})],
    ),
    "algorithm.overlap_reads must be left out with overlap_gradients, for which groups are read as they end, "
    "got false": (
        ({"kl_coef": 0.1, "overlap_reads": False}, {}),
        [({"kl_coef": 0.1}, {})],
    ),
}


@pytest.mark.parametrize("line", RULES)
def test_what_gradients_beside_rollouts_need(line: str) -> None:
    """Each rule has one line, which nothing breaks without them, but for what is refused in any case."""
    (algorithm, sections), right = RULES[line]
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        made(GRADIENTS | algorithm, **sections)
    made({"name": "grpo"} | algorithm, **sections)
    for algorithm, sections in right:
        made(GRADIENTS | algorithm, **sections)


@pytest.mark.parametrize("asked", [True, False])
def test_groups_whose_gradient_is_computed_early_are_not_read_apart_from_that(asked: bool) -> None:
    config = made(GRADIENTS | {"kl_coef": 0.1, "overlap_gradients": asked}, **GPUS | {"critic": None})
    assert overlapped_reads(config, config.algorithm) == (frozenset() if asked else REFERENCE)  # type: ignore[arg-type]


def test_ppo_has_no_gradients_beside_rollouts() -> None:
    line = "algorithm.overlap_gradients: unknown field (algorithm.overlap_gradients is a field for grpo), got true"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        made(PPO | {"overlap_gradients": True})
    config = made(PPO)
    assert not config.algorithm.overlaps_gradients  # type: ignore[union-attr]


@pytest.mark.parametrize("reference", [{}, {"kl_coef": 0.1}])
def test_check_says_that_gradients_are_computed_early(
    reference: dict[str, Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing of reads, which are a part of it."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "ab", "answer": "a"}\n' * 8)
    data, run = {"train": str(tmp_path / "rows.jsonl")}, {"output": str(tmp_path / "outputs")}
    line = "gradients of finished groups: computed while others are generated"
    for asked in (True, False):
        print_tables(examine(made({"name": "grpo", "overlap_gradients": asked} | reference, data=data, run=run)))
        told = capsys.readouterr().out
        assert (f"\n{line}\n" in told) is asked
        assert not asked or "read of finished groups" not in told
