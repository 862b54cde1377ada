"""The policy's loss against a loop over tokens: value, gradient and every metric, each setting away from its default.

Current, old, rollout and reference logprobs all differ, and so do the counts that are divided by; outside of the action
tokens stands what must not be read.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.episodes import Experience
from actors.models.packed import PackedBatch
from actors.rollout.types import Sampling
from actors.train.worker import Totals, pack_experiences
from algorithms.config_rl import GRPOConfig, ImportanceCorrection, PPOConfig, RLConfig
from algorithms.rl.grpo import GRPO
from algorithms.rl.importance import BINS
from algorithms.rl.metrics import update_metrics
from algorithms.rl.policy_loss import policy_loss


@dataclass(frozen=True)
class Row:
    """A sequence by its mask, x where a token is an action, and the numbers of its action tokens."""

    mask: str
    policy: list[float]
    rollout: list[float]
    old: list[float]
    reference: list[float]
    advantages: list[float]
    entropies: list[float]


ROWS = [
    Row(
        mask="..xxxx",
        policy=[-1.0, -0.75, -2.0, -0.5],
        rollout=[-1.5, -0.25, -2.0625, -0.75],
        old=[-1.25, -0.5, -2.25, -0.375],
        reference=[-1.75, -0.25, -1.5, -0.625],
        advantages=[1.0, 1.5, -0.5, 0.75],
        entropies=[0.5, 0.25, 1.5, 1.0],
    ),
    Row(mask="..", policy=[], rollout=[], old=[], reference=[], advantages=[], entropies=[]),
    Row(
        mask=".xxx",
        policy=[-0.25, -1.5, -0.75],
        rollout=[-1.0, -1.25, -1.5],
        old=[-0.75, -1.0, -1.0],
        reference=[-0.5, -2.5, -1.25],
        advantages=[-1.0, -2.0, -0.25],
        entropies=[2.0, 0.75, 0.125],
    ),
    Row(
        mask="..xx.x",
        policy=[-0.125, -3.0, -1.125],
        rollout=[-0.375, -2.5, -1.125],
        old=[-0.25, -2.75, -1.5],
        reference=[-0.25, -2.0, -3.0],
        advantages=[-0.75, 0.0, 2.0],
        entropies=[0.0, 1.25, 0.625],
    ),
]
FIELDS = ("rollout", "old", "reference", "advantages")
UNREAD = {"policy": 5.0, "rollout": -7.0, "old": 3.0, "reference": 11.0, "advantages": 13.0, "entropies": 17.0}
"""What stands outside of the action tokens."""
TOTALS = Totals(tokens=23, sequences=7, trained_tokens=17)
"""Of an update over several micro-batches, in which some samples are not trained on."""
CONSTANT, KL_COEF, VERSION = 11, 0.3, 7
SUMS = ("mismatch/tokens", "importance/cut")
"""Metrics that are told as sums, beside counts of importance weights."""
TWO_UPDATES = {"samples_per_update": 2}
STALE = 3
"""Versions by which tokens lag at most in the cases of older rollouts."""


def grpo(**settings: Any) -> GRPOConfig:
    return GRPOConfig(name="grpo", prompts_per_step=2, samples_per_prompt=2, **settings)


def ppo(**settings: Any) -> PPOConfig:
    return PPOConfig(name="ppo", prompts_per_step=4, **settings)


def correction(level: str = "token", mode: str = "truncate", cap: float = 1.25) -> dict[str, Any]:
    return {"importance_correction": {"level": level, "mode": mode, "cap": cap}}


def kl(estimator: str, **settings: Any) -> dict[str, Any]:
    """The coefficient is the one that the loss is given, which adapts, not this one."""
    return {"kl_coef": 0.1, "kl_estimator": estimator} | settings


CASES: dict[str, RLConfig] = {
    "defaults": grpo(),
    "clip_low": grpo(clip_low=0.05),
    "clip_high": grpo(clip_high=0.5),
    "dual_clip": grpo(dual_clip=1.5),
    "dual_clip of ppo": ppo(dual_clip=1.3),
    "entropy_coef": grpo(entropy_coef=0.25),
    "k2": grpo(**kl("k2")),
    "k3": grpo(**kl("k3")),
    "k3 with the ratio": grpo(**kl("k3", kl_importance_ratio=True)),
    "k1 with the ratio": grpo(**kl("k1", kl_importance_ratio=True)),
    "the ratio of old logprobs": grpo(**kl("k3", kl_importance_ratio=True), **correction(), **TWO_UPDATES),
    "the ratio in the only update": grpo(**kl("k1", kl_importance_ratio=True), **correction()),
    "sequence": grpo(aggregation="sequence"),
    "constant": grpo(aggregation="constant"),
    "gspo": grpo(loss="gspo", aggregation="sequence", clip_low=0.05, clip_high=0.04),
    "gspo's other bounds": grpo(loss="gspo", aggregation="sequence", clip_low=0.01, clip_high=0.1),
    "cispo": grpo(loss="cispo", cispo_max_ratio=1.2),
    "cispo without a cap": grpo(loss="cispo", cispo_max_ratio=9),
    "sapo": grpo(loss="sapo", sapo_temperatures=(0.7, 2.5)),
    "sapo's defaults": grpo(loss="sapo"),
    **{
        f"{level}, {mode}, {updates}": grpo(**correction(level, mode), **(TWO_UPDATES if updates == "two" else {}))
        for level, mode, updates in product(("token", "sequence"), ("truncate", "mask"), ("one", "two"))
    },
    "correction with another cap": grpo(**correction(cap=1.3), **TWO_UPDATES),
    "corrected gspo": grpo(loss="gspo", aggregation="sequence", clip_high=0.1, **correction(), **TWO_UPDATES),
    "corrected cispo": grpo(loss="cispo", cispo_max_ratio=1.2, **correction(), **TWO_UPDATES),
    "corrected sapo": grpo(loss="sapo", **correction(), **TWO_UPDATES),
    "stale": grpo(max_staleness=STALE),
    "stale, two updates": grpo(max_staleness=STALE, **TWO_UPDATES),
    "stale, two updates of ppo": ppo(max_staleness=STALE, **TWO_UPDATES, dual_clip=1.3),
    "stale, by sequence": grpo(max_staleness=STALE, **correction("sequence", "mask", 1.5), **TWO_UPDATES),
    "stale, uncorrected": grpo(max_staleness=STALE, importance_correction=None),
    "stale, two updates, uncorrected": grpo(
        max_staleness=STALE, importance_correction=None, **TWO_UPDATES, clip_high=0.3
    ),
    "all terms": grpo(
        **kl("k3"), **correction(), **TWO_UPDATES, entropy_coef=0.5, aggregation="constant", dual_clip=1.5
    ),
}


def places() -> list[list[int]]:
    """Positions, in the packed row, of each sequence's action tokens."""
    starts = np.cumsum([0, *(len(row.mask) for row in ROWS)])
    return [
        [int(start) + i for i, at in enumerate(row.mask) if at == "x"]
        for start, row in zip(starts[:-1], ROWS, strict=True)
    ]


def versions(row: Row, config: RLConfig) -> list[int]:
    """Of each action token: where rollouts may lag, they began long ago and went on under newer weights."""
    tokens = len(row.policy)
    return [VERSION - min(config.max_staleness, tokens - 1 - at) for at in range(tokens)]


def spread(name: str) -> list[float]:
    """The numbers of this name over the packed row."""
    found = [UNREAD[name]] * sum(len(row.mask) for row in ROWS)
    for row, at in zip(ROWS, places(), strict=True):
        for place, value in zip(at, getattr(row, name), strict=True):
            found[place] = value
    return found


def packed(config: RLConfig, rows: slice = slice(None)) -> PackedBatch:
    """The sequences with the fields that the loop reads for these settings: others are not there."""
    unread = set()
    if config.correction is None or config.updates_per_step == 1:
        unread.add("old")
    if not (config.kl_coef and config.kl_in == "loss"):
        unread.add("reference")
    borders = list(pairwise(np.cumsum([0, *(len(row.mask) for row in ROWS)])))
    experiences = [
        Experience(
            token_ids=np.arange(len(row.mask)),
            action_mask=np.array([at == "x" for at in row.mask]),
            fields={
                name if name == "advantages" else f"{name}_logprobs": np.array(spread(name)[start:end], np.float32)
                for name in FIELDS
                if name not in unread
            }
            | {"versions": _versions(row, config)},
        )
        for row, (start, end) in list(zip(ROWS, borders, strict=True))[rows]
    ]
    return pack_experiences(experiences, torch.device("cpu"), share_prompts=False)


def _versions(row: Row, config: RLConfig) -> np.ndarray:
    found = np.full(len(row.mask), -1, np.float32)
    found[[at == "x" for at in row.mask]] = versions(row, config)
    return found


def leaves() -> tuple[Tensor, Tensor]:
    """Current logprobs and entropies, in float64."""
    policy, entropies = (torch.tensor(spread(name), dtype=torch.float64) for name in ("policy", "entropies"))
    return policy.requires_grad_(), entropies.requires_grad_()


def surrogate(config: Any, policy: Tensor, ratio: Tensor, whole: Tensor, advantage: float) -> tuple[Tensor, bool]:
    """Of one token, and whether its ratio is cut; `whole` is the ratio of its sequence."""
    name = config.loss if isinstance(config, GRPOConfig) else "clip"
    if name == "cispo":
        cap: Any = config.cispo_max_ratio
        return -min(ratio.item(), cap) * advantage * policy, ratio.item() > cap
    if name == "sapo":
        tau = config.sapo_temperatures[0 if advantage > 0 else 1]
        return -4 / tau / (1 + torch.exp(-tau * (ratio - 1))) * advantage, False
    rho = whole if name == "gspo" else ratio
    bounded = min(max(rho.item(), 1 - config.clip_low), 1 + config.clip_high)
    cut = bounded * advantage < rho.item() * advantage
    loss = torch.tensor(-bounded * advantage, dtype=torch.float64) if cut else -rho * advantage
    if config.dual_clip and advantage < 0 and loss.item() > -config.dual_clip * advantage:
        return torch.tensor(-config.dual_clip * advantage, dtype=torch.float64), True
    return loss, cut


def penalty(config: RLConfig, policy: Tensor, reference: float, ratio: Tensor) -> Tensor:
    """The KL to the reference at one token."""
    ahead = policy - reference
    found = {"k1": ahead, "k2": ahead**2 / 2, "k3": torch.exp(-ahead) - 1 + ahead}[config.kl_estimator]
    return ratio * found if config.kl_importance_ratio else found


def weight(config: Any, differences: list[float], index: int) -> float:
    """Of one token, by old - rollout of all tokens of its sequence."""
    correction = config.correction
    found = math.exp(math.fsum(differences) if correction.level == "sequence" else differences[index])
    beyond = correction.cap if correction.mode == "truncate" else 0.0
    return found if found <= correction.cap else beyond


def token_by_token(config: RLConfig, policy: Tensor, entropies: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss, and the metrics, by the definition in the module and its papers."""
    sums: dict[str, float] = defaultdict(float)
    if config.correction or config.max_staleness:
        sums |= {f"importance/counts/{place}": 0.0 for place in range(BINS)} | {"policy/sampler_kl": 0.0}
        sums |= {"importance/cut": 0.0} if config.correction else {}
    total = torch.zeros((), dtype=torch.float64)
    for row, at in zip(ROWS, places(), strict=True):
        old = row.rollout
        if config.correction:
            old = row.policy if config.updates_per_step == 1 else row.old
        logs = [policy[place] - before for place, before in zip(at, old, strict=True)]
        of_sequence = torch.zeros((), dtype=torch.float64)
        _add_importance(sums, config, row, old)
        for i, place in enumerate(at):
            ratio, whole = torch.exp(logs[i]), torch.exp(sum(logs[1:], logs[0]) / len(logs))
            loss, cut = surrogate(config, policy[place], ratio, whole, row.advantages[i])
            sums["policy/clip_fraction"] += cut
            sums["policy/ratio_mean"] += ratio.item()
            sums["policy/entropy"] += row.entropies[i]
            fresh = versions(row, config)[i] == VERSION
            behind = (row.policy[i] - row.rollout[i]) * fresh
            sums["mismatch/tokens"] += fresh
            sums["mismatch/logprob_abs_mean"] += abs(behind)
            sums["mismatch/kl"] += math.exp(behind) - 1 - behind
            if config.correction:
                factor = weight(config, [a - b for a, b in zip(old, row.rollout, strict=True)], i)
                sums["policy/importance_weight_mean"] += factor
                loss = factor * loss
            if config.kl_coef and config.kl_in == "loss":
                found = penalty(config, policy[place], row.reference[i], ratio)
                sums["policy/kl"] += found.item()
                loss = loss + KL_COEF * found
            loss = loss - config.entropy_coef * entropies[place]
            of_sequence = of_sequence + (loss / len(at) if config.aggregation == "sequence" else loss)
        total = total + of_sequence
    counts = {"token": TOTALS.tokens, "sequence": TOTALS.sequences, "constant": TOTALS.sequences * CONSTANT}
    told = {
        name: value / (1 if name in SUMS or "/counts/" in name else TOTALS.trained_tokens)
        for name, value in sums.items()
    }
    return total / counts[config.aggregation], told


def _add_importance(sums: dict[str, float], config: RLConfig, row: Row, old: list[float]) -> None:
    """What a sequence adds to the metrics of pi_trainer / pi_sampler: counted are weights before they are cut."""
    if not (config.correction or config.max_staleness):
        return
    behind = [a - b for a, b in zip(old if config.correction else row.policy, row.rollout, strict=True)]
    whole = config.correction is not None and config.correction.level == "sequence"
    for log_weight in [math.fsum(behind)] * bool(behind) if whole else behind:
        sums[f"importance/counts/{BINS // 2 + round(16 * log_weight / math.log(2))}"] += 1
        if config.correction:
            sums["importance/cut"] += math.exp(log_weight) > config.correction.cap
    for difference, version in zip(behind, versions(row, config), strict=True):
        sums["policy/sampler_kl"] += math.exp(difference) - 1 - difference
        if config.max_staleness:
            sums["policy/token_staleness"] += VERSION - version


def numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Metrics as the trainer tells them, vectors element by element."""
    found = {}
    for name, value in metrics.items():
        of_vector = {f"{name}/{place}": float(each) for place, each in enumerate(value.tolist())} if value.dim() else {}
        found |= of_vector or {name: value.item()}
    return found


def computed(config: RLConfig, batch: PackedBatch, policy: Tensor, entropies: Tensor) -> tuple[Tensor, dict[str, Any]]:
    coef = KL_COEF if config.kl_in == "loss" and config.kl_coef else 0.0
    return policy_loss(
        batch, policy, entropies, TOTALS, config=config, kl_coef=coef, constant=CONSTANT, version=VERSION
    )


def gradients(loss: Tensor, *inputs: Tensor) -> list[list[float]]:
    return [found.tolist() for found in torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_a_loop_over_tokens(name: str) -> None:
    policy, entropies = leaves()
    loss, metrics = computed(CASES[name], packed(CASES[name]), policy, entropies)
    expected, told = token_by_token(CASES[name], policy, entropies)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert numbers(metrics) == pytest.approx(told, rel=1e-6)
    for found, wanted in zip(gradients(loss, policy, entropies), gradients(expected, policy, entropies), strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)


def test_every_case_is_another_loss() -> None:
    """Otherwise one of them would not see its setting."""
    found = defaultdict(list)
    for name, config in CASES.items():
        policy, entropies = leaves()
        loss, metrics = computed(config, packed(config), policy, entropies)
        told = [loss.item(), *numbers(metrics).values(), *gradients(loss, policy)[0]]
        found[tuple(round(number, 9) for number in told)].append(name)
    assert [names for names in found.values() if len(names) > 1] == []


@pytest.mark.parametrize(
    "name",
    ["all terms", "sequence, mask, two", "gspo", "stale, by sequence", "stale, two updates", "stale, uncorrected"],
)
def test_shares_of_micro_batches_add_up(name: str) -> None:
    policy, entropies = leaves()
    whole, told = computed(CASES[name], packed(CASES[name]), policy, entropies)
    cut = len(ROWS[0].mask) + len(ROWS[1].mask)
    parts = [
        computed(CASES[name], packed(CASES[name], rows), policy[at], entropies[at])
        for rows, at in ((slice(2), slice(cut)), (slice(2, None), slice(cut, None)))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-6)
    for each, metric in numbers(told).items():
        assert sum(numbers(metrics)[each] for _, metrics in parts) == pytest.approx(metric, rel=1e-6), each


@pytest.mark.parametrize("name", CASES)
def test_a_rank_without_work_adds_nothing_but_has_all_metrics(name: str) -> None:
    """Also in an update of which nothing is left, whose counts are 0."""
    policy, entropies = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    batch = pack_experiences([], torch.device("cpu"), share_prompts=False)
    coef = KL_COEF if CASES[name].kl_in == "loss" and CASES[name].kl_coef else 0.0
    for totals in (TOTALS, Totals(tokens=0, sequences=0, trained_tokens=0)):
        options: Any = {"config": CASES[name], "kl_coef": coef, "constant": CONSTANT, "version": VERSION}
        for keeps in (False, True):
            loss, metrics = policy_loss(batch, policy, entropies, totals, **options, keeps_cache=keeps)
            assert loss.item() == 0 and gradients(loss, policy) == [[0]]
            with_work = numbers(computed(CASES[name], packed(CASES[name]), *leaves())[1])
            assert dict.fromkeys(with_work, 0) == numbers(metrics)


@pytest.mark.parametrize("corrected", [True, False])
def test_of_stale_samples_the_difference_is_told_and_the_engine_not_judged(corrected: bool) -> None:
    """None is of the trained version: mismatch/* would be about learning. Without a correction nothing is cut."""
    config = grpo(max_staleness=STALE, importance_correction=ImportanceCorrection(cap=1.25) if corrected else None)
    policy, entropies = leaves()
    options: Any = {"config": config, "kl_coef": 0.0, "constant": CONSTANT, "version": VERSION + 1}
    loss, metrics = policy_loss(packed(config), policy, entropies, TOTALS, **options)
    update = numbers(metrics) | {"loss": loss.item(), "grad_norm": 1.0, "learning_rate": 0.1}
    step = update_metrics([update], [TOTALS.trained_tokens], "policy")
    assert [name for name in step if name.startswith(("mismatch/", "importance/"))] == []
    behind = sorted(a - b for row in ROWS for a, b in zip(row.policy, row.rollout, strict=True))
    assert step["policy/importance_weight_p01"] == pytest.approx(math.exp(behind[0]), rel=0.022)
    assert step["policy/importance_weight_p99"] == pytest.approx(math.exp(behind[-1]), rel=0.022)
    assert step["policy/sampler_kl"] > 0.05 and step["policy/token_staleness"] > 1
    cut = sum(each > math.log(1.25) for each in behind) / len(behind)
    assert step.get("policy/importance_truncated_fraction") == (cut if corrected else None) != 0


def test_what_has_attended_to_keys_and_values_of_older_weights_does_not_judge_the_engine() -> None:
    """Its last tokens are of the trained version, and of no policy's distribution; another response is whole."""
    config, whole = grpo(max_staleness=STALE), 2
    batch, found = packed(config), {}
    batch.fields["versions"][(batch.sequence_ids == whole) & batch.action_mask] = VERSION
    for keeps in (False, True):
        policy, entropies = leaves()
        options: Any = {"config": config, "kl_coef": 0.0, "constant": CONSTANT, "version": VERSION}
        _, metrics = policy_loss(batch, policy, entropies, TOTALS, **options, keeps_cache=keeps)
        found[keeps] = numbers(metrics)
    behind = [a - b for a, b in zip(ROWS[whole].policy, ROWS[whole].rollout, strict=True)]
    counted = len(behind)
    assert found[True]["mismatch/tokens"] == counted < found[False]["mismatch/tokens"]
    told = {"mismatch/logprob_abs_mean": sum(map(abs, behind)), "mismatch/kl": sum(math.exp(x) - 1 - x for x in behind)}
    for name, value in told.items():
        assert found[True].pop(name) * TOTALS.trained_tokens == pytest.approx(value) != found[False].pop(name)
    del found[True]["mismatch/tokens"], found[False]["mismatch/tokens"]
    assert found[True] == found[False], "nothing else depends on it"


def test_a_penalty_in_the_reward_is_no_term_of_the_loss() -> None:
    """Whatever the coefficient is then; and without one, there is no penalty."""
    for config, coef in ((ppo(kl_coef=0.5, kl_in="reward"), 0.5), (grpo(**kl("k3")), 0.0)):
        policy, entropies = leaves()
        plain, _ = computed(grpo(), packed(grpo()), policy, entropies)
        loss, metrics = policy_loss(
            packed(config), policy, entropies, TOTALS, config=config, kl_coef=coef, constant=CONSTANT, version=VERSION
        )
        assert loss.item() == plain.item() and "policy/kl" not in metrics


@pytest.mark.parametrize(
    ("settings", "coef", "constant"),
    [
        ({}, 0.0, 24),
        ({"kl_coef": 0.1}, 0.7, 24),
        ({"kl_coef": 0.1, "kl_in": "reward"}, 0.0, 24),
        ({"aggregation": "constant", "aggregation_constant": 9}, 0.0, 9),
    ],
)
def test_the_loop_gives_the_coefficient_of_now_and_a_length(
    settings: dict[str, Any], coef: float, constant: int
) -> None:
    """An adaptive coefficient has moved to 0.7; the length is that of the longest response, unless it is set."""
    loop = object.__new__(GRPO)
    loop.config = grpo(**settings)
    loop.sampling = Sampling(samples=2, temperature=1.0, max_tokens=24)
    loop.kl = SimpleNamespace(coef=0.7 if loop.config.kl_coef else 0.0)  # type: ignore[assignment]
    loop.version, loop.keeps_cache = 5, True
    found: Any = loop.policy_loss()
    assert found.func is policy_loss
    assert found.keywords == {
        "config": loop.config,
        "kl_coef": coef,
        "constant": constant,
        "version": 5,
        "keeps_cache": True,
    }


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_an_update_may_be_one_token_of_one_sequence(aggregation: str) -> None:
    """Divided by 1, as an update that has nothing to learn from is."""
    config, one = grpo(aggregation=aggregation), Totals(tokens=1, sequences=1, trained_tokens=1)
    policy, entropies = leaves()
    whole, told = computed(config, packed(config), policy, entropies)
    loss, metrics = policy_loss(
        packed(config), policy, entropies, one, config=config, kl_coef=0.0, constant=CONSTANT, version=VERSION
    )
    count = TOTALS.tokens if aggregation == "token" else TOTALS.sequences
    assert loss.item() == pytest.approx(whole.item() * count)
    assert metrics.pop("mismatch/tokens") == told["mismatch/tokens"]
    for name, value in metrics.items():
        assert value.item() == pytest.approx(told[name].item() * TOTALS.trained_tokens), name
