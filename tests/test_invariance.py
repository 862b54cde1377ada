"""An optimizer step does not depend on how it is computed: micro-batches, packing, ranks, ZeRO stage, checkpointing.

Every division of the work makes the same updates, with gradient clipping, on the same synthetic rollouts or pairs, in
real Ray actors with real DeepSpeed engines, by the methods of the loops; loss, gradient norm, all other metrics and
weights must agree with the plain division's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.group import ActorGroup
from actors.rollout.types import Sampling
from actors.train.critic import CriticWorker, RewardModelWorker
from actors.train.frozen import ReferenceWorker
from actors.train.policy import PolicyWorker
from algorithms.config_offline import DPOConfig, RewardModelConfig
from algorithms.config_rl import GRPOConfig, PPOConfig
from algorithms.division.deals import Parts, Updates, hand_episodes
from algorithms.division.work import samples_of
from algorithms.loop import Clock
from algorithms.offline.dpo import DPO
from algorithms.offline.reward_model import RewardModel
from algorithms.rl.grpo import GRPO
from algorithms.rl.importance import BINS
from algorithms.rl.overlapped_gradients import OverlappedGradients
from algorithms.rl.overlapped_reads import OverlappedReads
from algorithms.rl.ppo import PPO, critic_loss
from algorithms.rl.shaper import RewardShaper
from algorithms.rl.stages import RL
from tests.episodes import split_here
from tests.trainees import (
    GROUP,
    Division,
    Job,
    Result,
    Trainee,
    Trainees,
    judgements,
    preferences,
    scored_groups,
    started_trainees,
    two_turns,
)

GROUPS = scored_groups()
TURNS = scored_groups(two_turns)
PAIRS = preferences()
JUDGED = judgements()
SIZES: dict[str, Any] = {"prompts_per_step": 6, "samples_per_prompt": 4, "samples_per_update": 8}


def _loop_settings(roster: dict[str, Any], reference: str | None, division: Division) -> dict[str, Any]:
    """What the loops' stages read; they are called one by one, so nothing here samples, publishes or reports."""
    shaper = RewardShaper(normalize=False, clip=None, overlong=None, missing_eos_penalty=0, max_response_tokens=24)
    unused = ("rollouts", "batches", "publish", "checkpoint", "reporter")
    return {
        "roster": roster,
        "reads": OverlappedReads(roster, split_here),
        "reference": reference,
        "read_reference": ReferenceWorker.logprobs,
        "models": [],
        "split": split_here,
        "shaper": shaper,
        "evaluation": [],
        "sampling": Sampling(samples=4, temperature=0.7, max_tokens=24),
        "micro_batch_tokens": dict.fromkeys(("policy", "critic", "reference"), division.micro_batch_tokens),
        "seed": 1,
        "total_steps": 1,
        **dict.fromkeys(unused),
    }


def _grpo(
    config: GRPOConfig,
    group: ActorGroup[Trainee],
    reference: Any,
    division: Division,
    *,
    compute_all: bool = False,
    turns: bool = False,
) -> list[dict[str, float]]:
    """The updates of one step of GRPO; with `compute_all`, also those samples that are known to have no gradient."""
    roster = {"policy": group, "reference": reference}
    groups = TURNS if turns else GROUPS
    loop = GRPO(config=config, **_loop_settings(roster, "reference" if config.kl_coef else None, division))
    policy = loop.policy
    samples, told = loop._advantages(groups), dict[str, float]()
    updates = [loop.counted(update) for update in loop.updates(samples)]
    trained = updates if compute_all else [loop._with_gradient(update) for update in updates]
    work, estimation = loop.plan_policy(updates, trained), loop.estimation(policy, groups)
    takers = [estimation, work.taker] if loop._by_token else [work.taker]
    parts = loop.read_frozen(groups, takers)() + loop.read_old(groups, takers)()
    if loop._by_token:
        scores = [each.shaped for each in loop.shape(groups)]
        estimated, _, found = loop.estimate(policy, groups, scores, parts, estimation, [work.taker])
        told, parts = told | estimated, parts + found
    return _updated(loop, groups, work, loop.policy_loss(), parts, told)


def _whole_step(
    config: GRPOConfig, group: ActorGroup[Trainee], reference: Any, division: Division, *, early: bool
) -> list[dict[str, float]]:
    """A step of one update; `early`: of gradients that are added up before what they are divided by is known."""
    roster = {"policy": group, "reference": reference}
    settings = _loop_settings(roster, "reference" if config.kl_coef else None, division)
    settings |= {"gradients": OverlappedGradients(threads=1) if early else None, "split": _split_kept}
    loop = GRPO(config=config, **settings)
    groups = [replace(group, rollouts=ray.put(group.rollouts)) for group in GROUPS]  # by which the loop knows them
    shaped = loop.shape(groups)
    if not early:
        return [loop.learn(shaped, Clock(SimpleNamespace(phase=lambda _: None)))[0]]  # type: ignore[arg-type]
    begun = [loop.accumulate(each) for each in (groups[3:4], [groups[4], groups[0]], groups[5:])]
    for each in begun[:2]:
        each.calls.finish()  # of the last, the loop hears when all is done
    assert sum(part.trained_tokens > 0 for part in begun) > 1, "one of them may have no advantage"
    return [loop._finish_early(begun, shaped, loop._advantages(shaped))]


def _split_kept(asked: list[Any]) -> list[list[Any]]:
    return split_here([(ray.get(group), shares) for group, shares in asked])


def _critic(
    config: PPOConfig, group: ActorGroup[Trainee], reference: Any, division: Division, *, turns: bool = False
) -> list[dict[str, float]]:
    """The critic's updates in one step of PPO."""
    groups = TURNS if turns else GROUPS
    roster = {"critic": group, "reference": reference}
    loop = PPO(config=config, **_loop_settings(roster, "reference", division))
    critic = loop.critic
    updates = loop.updates(samples_of(groups, [np.full(4, np.nan)] * len(groups)))
    work = loop.plan(critic, "critic", updates, updates, {"values", "returns"})
    estimation = loop.estimation(critic, groups)
    takers = [estimation, work.taker]
    parts = loop.read_frozen(groups, takers)()
    parts += loop.read(loop.values_pass, groups, takers)()
    told, _, found = loop.estimate(critic, groups, loop.shaper(groups), parts, estimation, [work.taker])
    return _updated(loop, groups, work, partial(critic_loss, clip=config.value_clip), parts + found, told)


def _updated(
    loop: RL, groups: list[Any], work: Updates, loss: Any, parts: Parts, told: dict[str, float]
) -> list[dict[str, float]]:
    """As RL.submit_updates, but with the metrics of every update; the first ones join those of the estimator."""
    settings = (work.totals, loss, loop.sampling.temperature)
    calls = [
        (share.plans, held, *settings, *episodes, *parts.of(work.taker, rank))
        for rank, (share, (held, episodes)) in enumerate(
            zip(work.work, hand_episodes(groups, work.work, split_here), strict=True)
        )
    ]
    first, *others = work.group.scatter(Trainee.update, calls)[0]
    return [first | told, *others]


def _offline(group: ActorGroup[Trainee], division: Division, reference: Any = None) -> dict[str, Any]:
    settings = {"roster": {"policy": group, "reference": reference}, "rows": [], "evaluation": [], "total_updates": 3}
    unused = ("batches", "checkpoint", "reporter")
    return {"micro_batch_tokens": division.micro_batch_tokens, **settings, **dict.fromkeys(unused)}


def _reward_model(
    config: RewardModelConfig, group: ActorGroup[Trainee], _: Any, division: Division
) -> list[dict[str, float]]:
    """Updates of a reward model, the last one with nothing to do for a second rank, and such an evaluation."""
    loop = RewardModel(config=config, **_offline(group, division))
    return [*(loop.update(rows) for rows in PAIRS), loop.measure(PAIRS[0]), loop.measure(PAIRS[1][:1])]


def _dpo(config: DPOConfig, group: ActorGroup[Trainee], reference: Any, division: Division) -> list[dict[str, float]]:
    """As `_reward_model`, by preference losses."""
    loop = DPO(
        config=config,
        reference="reference" if config.needs_reference else None,
        read_reference=ReferenceWorker.outputs,
        reference_tokens=division.micro_batch_tokens,
        max_length=64,
        cache=None,
        **_offline(group, division, reference),
    )
    rows: list[Any] = list(JUDGED if config.unpaired else PAIRS)
    found = []
    for update in rows:
        told = {"reference_point": loop._mismatched_kl([[row.sequence] for row in update])} if config.unpaired else {}
        found.append(loop.update(update) | told)
    return [*found, loop.measure(rows[0]), loop.measure(rows[1][: 2 if config.unpaired else 1])]


def _policy_job(*, turns: bool = False, **settings: Any) -> Job:
    unclipped = settings.get("loss") in ("cispo", "sapo") or settings.get("samples_per_update", 1) is None
    clips = {} if unclipped else {"clip_high": 0.3}
    config = GRPOConfig.model_validate({"name": "grpo"} | clips | SIZES | settings)
    return Job(PolicyWorker, partial(_grpo, config, turns=turns))


def _step_jobs(**settings: Any) -> tuple[Job, Job]:
    """The same step at once, and early."""
    config = GRPOConfig.model_validate({"name": "grpo"} | SIZES | {"samples_per_update": None} | settings)
    plain, early = (partial(_whole_step, config, early=each) for each in (False, True))
    return Job(PolicyWorker, plain), Job(PolicyWorker, early)


def _dpo_job(loss: Any, **settings: Any) -> Job:
    config = DPOConfig.model_validate({"name": "dpo", "steps": 3, "loss": loss} | settings)
    return Job(PolicyWorker, partial(_dpo, config))


PLAIN = Division()
HARD = Division(ranks=2, zero_stage=2, micro_batch_tokens=40)
BASE = _policy_job()
SEQUENCE = _policy_job(aggregation="sequence")
CORRECTED = {"importance_correction": {"level": "token", "cap": 1.1}}
DIVISIONS = {
    "each sequence alone": Division(micro_batch_tokens=1),
    "a few sequences in a micro-batch": Division(micro_batch_tokens=50),
    "each response with its own prompt": Division(share_prompts=False),
    "logits of three tokens at a time": Division(logprob_chunk_tokens=3),
    "gradient checkpointing": Division(gradient_checkpointing=True),
    "ZeRO-1": Division(zero_stage=1),
    "ZeRO-2": Division(zero_stage=2, micro_batch_tokens=50),
    "ZeRO-3": Division(zero_stage=3, micro_batch_tokens=50),
    "two ranks": Division(ranks=2),
    # 8 samples in micro-batches of one: where two ranks get different numbers, one ends on empty micro-batches.
    "two ranks, each sequence alone": Division(ranks=2, micro_batch_tokens=1),
    "two ranks, ZeRO-1": Division(ranks=2, zero_stage=1),
    "two ranks, ZeRO-2": HARD,
    "two ranks, ZeRO-3": Division(ranks=2, zero_stage=3, micro_batch_tokens=40),
    "two ranks, ZeRO-3, gradient checkpointing": Division(ranks=2, zero_stage=3, gradient_checkpointing=True),
}
OF_SAMPLES = (
    "each sequence alone",
    "a few sequences in a micro-batch",
    "each response with its own prompt",
    "two ranks",
    "two ranks, each sequence alone",
)
"""Divisions into micro-batches and over ranks, not of a model."""
POLICY_JOBS = {
    "clip, sequence": SEQUENCE,
    "clip, constant, dual clip": _policy_job(aggregation="constant", dual_clip=1.31),
    "gspo": _policy_job(loss="gspo", aggregation="sequence", clip_low=0.02, clip_high=0.02),
    "cispo": _policy_job(loss="cispo", cispo_max_ratio=1.1),
    "cispo, sequence": _policy_job(loss="cispo", cispo_max_ratio=1.1, aggregation="sequence"),
    "cispo, constant": _policy_job(loss="cispo", cispo_max_ratio=1.1, aggregation="constant"),
    "sapo": _policy_job(loss="sapo"),
    "sapo, sequence": _policy_job(loss="sapo", aggregation="sequence"),
    "sapo, constant": _policy_job(loss="sapo", aggregation="constant", aggregation_constant=17),
    "KL in the loss, entropy": _policy_job(kl_coef=0.3, kl_estimator="k2", entropy_coef=0.1),
    "truncated left out": _policy_job(mask_truncated=True, aggregation="sequence"),
    "corrected by token": _policy_job(**CORRECTED, mask_truncated=True),
    "corrected by sequence": _policy_job(importance_correction={"level": "sequence", "mode": "mask", "cap": 1.5}),
    "stale": _policy_job(max_staleness=4, clip_low=0.15),
    "stale, uncorrected": _policy_job(max_staleness=4, importance_correction=None, clip_low=0.1),
    "corrected, one update": _policy_job(**CORRECTED, samples_per_update=None),
    "KL in the reward": _policy_job(advantage="reinforce_pp_baseline", kl_coef=0.3, kl_in="reward"),
    "two turns": _policy_job(turns=True, kl_coef=0.3, kl_estimator="k2", mask_truncated=True, **CORRECTED),
    "two turns, KL in the reward": _policy_job(turns=True, advantage="reinforce_pp", kl_coef=0.3, kl_in="reward"),
}
_PPO = PPOConfig(name="ppo", gae_lambda=0.9, value_clip=0.05, **SIZES)
CRITIC = Job(CriticWorker, partial(_critic, _PPO))
REWARD_MODEL = Job(RewardModelWorker, partial(_reward_model, RewardModelConfig(name="reward", steps=3, centering=0.1)))
KTO = _dpo_job("kto", beta=1.0, undesirable_weight=1.3)
OTHER_JOBS = {
    "critic": CRITIC,
    "critic of two turns": Job(CriticWorker, partial(_critic, _PPO, turns=True)),
    "reward model": REWARD_MODEL,
    "sigmoid": _dpo_job("sigmoid", beta=1.0, label_smoothing=0.1),
    "ipo": _dpo_job("ipo", beta=0.5),
    "orpo": _dpo_job("orpo"),
    "aot": _dpo_job("aot", beta=1.0),
    "several": _dpo_job(
        [
            {"name": "hinge", "weight": 0.5},
            {"name": "sft", "weight": 0.3},
            {"name": "aot_unpaired", "weight": 0.8},
            "cpo",
        ]
    ),
    "kto": KTO,
}
STEP_JOBS = {
    "token": _step_jobs(),
    "sequence, truncated left out": _step_jobs(aggregation="sequence", mask_truncated=True),
    "constant, leave one out": _step_jobs(aggregation="constant", advantage="leave_one_out"),
    "gspo": _step_jobs(loss="gspo", aggregation="sequence"),
    "KL in the loss, entropy, corrected": _step_jobs(
        kl_coef=0.3, kl_estimator="k2", entropy_coef=0.1, **CORRECTED, aggregation="token"
    ),
}
JOBS = {"clip, token": BASE} | POLICY_JOBS | OTHER_JOBS


@pytest.fixture(scope="module")
def trainees(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainees]:
    """Processes of one group with one rank, one with two, and a reference."""
    with started_trainees(tmp_path_factory.mktemp("trainees")) as started:
        yield started


@pytest.fixture(scope="module")
def result(trainees: Trainees) -> Callable[[Job, Division], Result]:
    """Computes what comes of a job, each only once."""
    return trainees.result


@pytest.mark.parametrize("name", DIVISIONS)
def test_division_of_work_does_not_matter(name: str, result: Callable[[Job, Division], Result]) -> None:
    """Loss, gradient norm and all metrics of three clipped updates, and the weights after them."""
    _assert_equal(result(BASE, PLAIN), result(BASE, DIVISIONS[name]))


@pytest.mark.parametrize("division", OF_SAMPLES)
@pytest.mark.parametrize("name", ["two turns", "two turns, KL in the reward", "critic of two turns"])
def test_episodes_of_two_turns_are_divided_as_freely(
    name: str, division: str, result: Callable[[Job, Division], Result]
) -> None:
    """What a tool says in between is read by the model wherever the episode is computed, and learned from nowhere."""
    _assert_equal(result(JOBS[name], PLAIN), result(JOBS[name], DIVISIONS[division]))


@pytest.mark.parametrize("name", POLICY_JOBS | OTHER_JOBS)
def test_every_loss_is_divided_as_freely(name: str, result: Callable[[Job, Division], Result]) -> None:
    """Means are taken over the whole update, not over micro-batches or ranks; so are sorted and shared quantities."""
    _assert_equal(result(JOBS[name], PLAIN), result(JOBS[name], HARD))


@pytest.mark.parametrize("name", ["gspo", "KL in the reward", "two turns", "critic", "reward model", "several"])
def test_models_of_all_kinds_may_be_sharded(name: str, result: Callable[[Job, Division], Result]) -> None:
    """ZeRO-3 on two ranks, and no prompt is shared."""
    sharded = Division(ranks=2, zero_stage=3, micro_batch_tokens=60, share_prompts=False)
    _assert_equal(result(JOBS[name], PLAIN), result(JOBS[name], sharded))


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_samples_without_advantage_need_not_be_computed(
    aggregation: str, result: Callable[[Job, Division], Result]
) -> None:
    """Leaving zero-advantage samples out of the model, but not out of the denominators, changes no weight."""
    job = {"token": BASE, "sequence": SEQUENCE}[aggregation]
    updates: Any = job.updates
    dropped, kept = result(job, PLAIN), result(Job(job.kind, partial(updates, compute_all=True)), PLAIN)
    _assert_equal(dropped, kept, ("loss", "grad_norm"))
    assert any(
        a["policy/entropy"] != b["policy/entropy"] for a, b in zip(dropped.metrics, kept.metrics, strict=True)
    ), "no sample was dropped, so nothing was compared"


@pytest.mark.parametrize(
    "division", ["a few sequences in a micro-batch", "ZeRO-2", *(n for n in DIVISIONS if "two" in n)]
)
@pytest.mark.parametrize("name", STEP_JOBS)
def test_gradients_may_be_added_up_before_anybody_knows_what_they_are_divided_by(
    name: str, division: str, result: Callable[[Job, Division], Result]
) -> None:
    """Group by group in another order, in calls of their own; the metrics of the step are the same, too."""
    plain, early = STEP_JOBS[name]
    expected = result(plain, PLAIN)
    assert (
        np.abs(
            expected.weights["model.layers.0.mlp.up_proj.weight"]
            - expected.initial["model.layers.0.mlp.up_proj.weight"]
        ).max()
        > 5e-6
    )
    _assert_equal(expected, result(early, DIVISIONS[division]))
    assert result(early, DIVISIONS[division]).metrics[0]["bubble/early_update_fraction"] > 0.3


@pytest.mark.parametrize("name", JOBS)
def test_updates_move_every_tensor(name: str, result: Callable[[Job, Division], Result]) -> None:
    """The comparisons above would mean nothing if the updates did nothing."""
    plain = result(JOBS[name], PLAIN)
    moved = {name: float(np.abs(weight - plain.initial[name]).max()) for name, weight in plain.weights.items()}
    assert len({name.startswith("average of ") for name in moved}) == 2
    for name, distance in moved.items():
        # An average moves by a part of what its tensor does: here by 1 - 0.7.
        assert distance > (1.5e-6 if name.startswith("average of ") else 5e-6), f"hardly moved: {name} of {moved}"


def test_every_setting_has_an_effect(result: Callable[[Job, Division], Result]) -> None:
    """Nor would they if all jobs computed the same."""
    norms = sorted((result(job, PLAIN).metrics[0]["grad_norm"], name) for name, job in JOBS.items())
    assert [(low, high) for low, high in pairwise(norms) if high[0] < low[0] * (1 + 1e-4)] == []


def test_clips_are_at_work(result: Callable[[Job, Division], Result]) -> None:
    """Of gradients and of ratios, values and importance weights; KTO's reference point is no constant 0."""
    plain = result(BASE, PLAIN)
    assert all(update["grad_norm"] > GROUP.optimizer.max_grad_norm for update in plain.metrics)
    for job in (BASE, JOBS["clip, constant, dual clip"], JOBS["gspo"], JOBS["cispo"]):
        assert any(update["policy/clip_fraction"] > 0 for update in result(job, PLAIN).metrics)
    assert any(update["critic/clip_fraction"] > 0 for update in result(CRITIC, PLAIN).metrics)
    assert any(
        update["policy/importance_weight_mean"] != 1 for update in result(JOBS["corrected by token"], PLAIN).metrics
    )
    told = result(JOBS["stale"], PLAIN).metrics
    assert all(len([name for name in update if name.startswith("importance/counts/")]) == BINS for update in told)
    assert len({name for update in told for name, value in update.items() if "/counts/" in name and value}) > 5
    assert max(update.get("reference_point", 0) for update in result(KTO, PLAIN).metrics) > 0.01


def _assert_equal(plain: Result, other: Result, names: Any = None) -> None:
    for update, (expected, found) in enumerate(zip(plain.metrics, other.metrics, strict=True)):
        for name in names or expected:
            # Small differences of float32 logprobs of whole responses, of which 1e-5 is the rounding.
            rounding = 1e-5 if name.startswith(("rewards/", "reference_point")) else 1e-8
            if name.startswith("loss"):
                # A mean of terms of order 1 with both signs, or a function of such differences.
                rounding = 2e-6 if any(each.startswith("rewards/") for each in expected) else 1e-7
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=rounding), f"{name} of update {update}"
    assert plain.weights.keys() == other.weights.keys()
    for name, weight in plain.weights.items():
        np.testing.assert_allclose(other.weights[name], weight, rtol=0, atol=1e-6, err_msg=name)
