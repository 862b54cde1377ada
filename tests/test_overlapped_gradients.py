"""Gradients of finished groups while others are generated: when they begin, that they are right, and what ends them.

Rollouts are real, on simulated engines with a clock of their own; ranks are real workers on threads
(`tests.overlapping_loops`).
"""

import threading
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.group import GroupError
from algorithms.rewards.scores import Score
from algorithms.rl import read_passes
from algorithms.rl.overlapped_gradients import Accumulated, OverlappedGradients
from algorithms.rl.read_passes import Outstanding
from algorithms.rollouts.groups import ScoredGroup
from tests.overlapping_loops import KL, LENGTHS, LONGEST_S, PROMPTS, SAMPLES, Loop, Rewards
from tests.test_deals import GROUPS

JOBS: dict[str, dict[str, Any]] = {
    "group, by token": {},
    "group, by sequence, with a reference": {"aggregation": "sequence", **KL},
    "group, not divided": {"normalize_std": False, "aggregation": "constant", "aggregation_constant": 77},
    "leave one out, by token, with a reference": {"advantage": "leave_one_out", **KL},
    "leave one out, by sequence": {"advantage": "leave_one_out", "aggregation": "sequence"},
    "constant, with a reference": {"aggregation": "constant", **KL, "kl_importance_ratio": True},
    "without the truncated": {"mask_truncated": True},
    "without the truncated, with a reference": {"mask_truncated": True, "aggregation": "sequence", **KL},
    "dynamic sampling": {"dynamic_sampling": True},
    "dynamic sampling, with a reference": {"dynamic_sampling": True, "mask_truncated": True, **KL},
    "importance weights, entropy": {"importance_correction": {}, "entropy_coef": 0.01},
    "one ratio for a sequence": {"loss": "gspo", "aggregation": "sequence"},
}
NOT_COMPARED = ("time/", "bubble/", "tokens/micro_batches", "tokens/padding_fraction", "tokens/trained")
"""How samples are divided into micro-batches, which share prompts, is another one."""


def both(settings: dict[str, Any], **more: Any) -> tuple[Loop, Loop]:
    return Loop(settings, overlap=True, **more), Loop(settings, overlap=False, **more)


def compared(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(NOT_COMPARED)}


def one_step(early: Loop, plain: Loop) -> list[int]:
    """A step of both, which are equal in all but when they compute; returns its prompts."""
    (prompts, metrics), (expected, wanted) = early.step(), plain.step()
    assert prompts == expected
    assert np.isfinite(list(metrics.values())).all()
    assert compared(metrics) == pytest.approx(compared(wanted), rel=1e-6, abs=1e-9)
    assert {"loss/policy", "grad_norm", "learning_rate"} <= compared(metrics).keys()
    assert metrics["tokens/trained"] == pytest.approx(wanted["tokens/trained"], rel=0.05)
    assert early.loop.moved == plain.loop.moved
    for mine, theirs in zip(early.policy.engines, plain.policy.engines, strict=True):
        assert mine.weights.detach().numpy() == pytest.approx(theirs.weights.detach().numpy(), rel=1e-6, abs=1e-12)
        assert (mine.steps, mine.skipped, mine.weights.grad) == (theirs.steps, theirs.skipped, None)
    return prompts


def counted(loop: Loop) -> Counter[tuple[int, int]]:
    """(prompt, length) -> how often such a response was trained on."""
    return Counter((prompt, length) for _, _, prompt, length in loop.policy.trained())


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", JOBS)
def test_an_update_is_that_of_the_same_groups_without_overlap(name: str, ranks: int) -> None:
    """Step after step, each response once; gradients begin before the longest response has ended, and none before its
    group was ready."""
    early, plain = both(JOBS[name], ranks=ranks)
    for _ in range(3):
        before, began = early.clock.now, len(early.policy.told)
        one_step(early, plain)
        times = [when - before for when, _, method in early.policy.told[began:] if method == "accumulate"]
        assert min(times) < LONGEST_S - 3 and max(times) <= early.clock.now - before
    assert not early.loop.policy.engines[0].skipped and float(early.policy.engines[0].weights.detach().abs().min()) > 0
    assert counted(early) == counted(plain)
    trained = list(early.policy.trained())
    assert {method for method, *_ in trained} >= {"accumulate"}
    ready = dict(early.ready)
    assert all(when >= ready[prompt] for _, when, prompt, _ in trained)
    early.close()
    plain.close()


@pytest.mark.parametrize("settings", [{}, KL, {"dynamic_sampling": True}], ids=["plain", "KL", "dynamic"])
def test_what_is_postponed_is_in_no_sum(settings: dict[str, Any]) -> None:
    """With tail batching: the groups that end first train, also in a step of postponed ones alone."""
    early, plain = both(settings, ranks=2, tail=0.6)
    seen: set[int] = set()
    for _ in range(5):
        ready, before = len(early.ready), counted(early)
        prompts = one_step(early, plain)
        assert {prompt for prompt, _ in counted(early) - before} <= set(prompts)
        first = [prompt for prompt, _ in early.ready[ready:][:PROMPTS]]
        assert sorted(first) == sorted(prompts), "the first to end"
        seen |= set(prompts)
    assert early.rollouts.report()[1].postponed and len(seen) == 5 * PROMPTS
    assert counted(early) == counted(plain) and max(counted(early).values()) == 1
    early.close()
    plain.close()


@pytest.mark.parametrize("tail", [None, 1.0])
def test_more_groups_than_are_wanted_may_be_ready_at_once(tail: float | None) -> None:
    """All end in one event: those that are taken are in the sum, each once, and no other is."""
    early, plain = both({}, ranks=2, lengths=(10, 20, 15), tail=tail, rewards=lambda n: [n, 1.0, 2.0 + n])
    for number in range(3):
        prompts = one_step(early, plain)
        assert len(prompts) == PROMPTS
        if number == 0:
            assert {prompt for _, _, prompt, _ in early.policy.trained()} == set(prompts) == set(range(PROMPTS))
    assert max(counted(early).values()) == 1 and counted(early) == counted(plain)
    assert bool(early.rollouts.report()[1].postponed) == bool(tail)
    early.close()
    plain.close()


def test_groups_without_advantage_are_counted_and_not_computed() -> None:
    """They are in what the loss is divided by; the others are trained on early."""
    rewards: Rewards = lambda n: [0.0, 1.0, 2.0] if n % PROMPTS == 1 else [1.0] * SAMPLES  # noqa: E731
    early, plain = both({"aggregation": "sequence"}, ranks=2, rewards=rewards)
    for _ in range(2):
        one_step(early, plain)
    trained = list(early.policy.trained())
    assert {prompt for _, _, prompt, _ in trained} == {1, 1 + PROMPTS}
    assert {method for method, *_ in trained} == {"accumulate"}
    early.close()
    plain.close()


def test_a_step_without_any_advantage_moves_nothing() -> None:
    """And the next one is that of weights and sums which it has left alone."""
    rewards: Rewards = lambda n: [1.0] * SAMPLES if PROMPTS <= n < 2 * PROMPTS else [n, 1.0, -1.0]  # noqa: E731
    early, plain = both({}, ranks=2, rewards=rewards)
    for moved in (True, False, True):
        calls, weights = len(early.policy.told), early.policy.engines[0].weights.detach().clone()
        one_step(early, plain)
        assert early.loop.moved is moved
        assert ("accumulate" in {method for _, _, method in early.policy.told[calls:]}) is moved
        assert (early.policy.engines[0].weights.tolist() != weights.tolist()) is moved
    assert [each.skipped for each in early.policy.engines] == [1, 1]
    early.close()
    plain.close()


def test_how_much_was_early_is_told() -> None:
    """Of the trained tokens, those whose gradient had begun before the last response came."""
    early, plain = both(KL, ranks=2)
    (_, metrics), (_, wanted) = early.step(), plain.step()
    lengths = {prompt: LENGTHS[prompt * SAMPLES : (prompt + 1) * SAMPLES] for prompt in range(PROMPTS)}
    sent = {prompt for method, when, prompt, _ in early.policy.trained() if when < LONGEST_S - 0.5}
    assert sent == {1, 2, 4}, "400 and 399 tokens come last"
    began = {prompt for method, _, prompt, _ in early.policy.trained() if method == "accumulate"}
    share = sum(sum(lengths[prompt]) for prompt in began) / sum(LENGTHS)
    assert metrics["bubble/early_update_fraction"] == pytest.approx(share)
    assert metrics["bubble/early_update_seconds"] > 0
    plans = [args[0] for _, method, args, _ in early.policy.calls if method in ("accumulate", "finish_update")]
    assert metrics["tokens/micro_batches"] == sum(map(len, plans)), "of all calls and ranks"
    assert not any(name.startswith("bubble/") for name in wanted)
    early.close()
    plain.close()


def none_sent(groups: Sequence[ScoredGroup]) -> Accumulated:
    return Accumulated(groups=groups, work=[], trained_tokens=0, calls=Outstanding())


def test_the_gradient_of_a_group_of_no_step_is_refused() -> None:
    gradients = OverlappedGradients()
    with gradients.overlapping(none_sent, 99):
        for group in GROUPS[:3]:
            gradients.submit(group, certain=True)
        gradients.send()
    with pytest.raises(RuntimeError, match=f"^the update has the gradient of data row {GROUPS[1].prompt.index}, which"):
        gradients.take([GROUPS[0], GROUPS[2]])
    assert [list(each.groups) for each in gradients.take(GROUPS[:4])] == [GROUPS[:3]]
    assert gradients.take(GROUPS[:4]) == [], "once"


def test_only_what_is_certain_is_sent_and_only_while_a_step_is_sampled() -> None:
    sent: list[list[ScoredGroup]] = []

    def noted(groups: Sequence[ScoredGroup]) -> Accumulated:
        sent.append(list(groups))
        return none_sent(groups)

    gradients = OverlappedGradients()
    gradients.submit(GROUPS[0], certain=True)
    gradients.send()
    with gradients.overlapping(noted, 99):
        assert not gradients.busy, "what came before is of no step"
        gradients.submit(GROUPS[1], certain=False)
        assert not gradients.busy
        gradients.send()
        gradients.submit(GROUPS[2], certain=True)
        gradients.submit(GROUPS[3], certain=True)
        gradients.submit(GROUPS[4], certain=True)
        assert gradients.busy
        gradients.forget(GROUPS[3])
        gradients.forget(GROUPS[5])
        gradients.send()
        gradients.send()
        assert sent == [[GROUPS[2], GROUPS[4]]], "in one call, and not what was forgotten"
        gradients.submit(GROUPS[6], certain=True)
    gradients.submit(GROUPS[7], certain=True)
    gradients.send()
    assert not gradients.busy and gradients.refs() == [] and len(sent) == 1
    assert [list(each.groups) for each in gradients.take(GROUPS)] == sent
    with gradients.overlapping(noted, 99):
        assert not gradients.busy
        gradients.send()
    assert len(sent) == 1 and gradients.take(GROUPS) == []


def test_the_last_group_of_a_step_is_the_loops() -> None:
    """Which has it computed with all threads. One that is forgotten is replaced, and so is not the last."""
    sent: list[list[ScoredGroup]] = []

    def noted(groups: Sequence[ScoredGroup]) -> Accumulated:
        sent.append(list(groups))
        return none_sent(groups)

    gradients = OverlappedGradients()
    with gradients.overlapping(noted, 3):
        gradients.submit(GROUPS[0], certain=True)
        gradients.send()
        gradients.submit(GROUPS[1], certain=True)
        gradients.forget(GROUPS[1])
        gradients.submit(GROUPS[2], certain=True)
        assert gradients.busy
        gradients.send()
        assert sent == [[GROUPS[0]], [GROUPS[2]]]
        gradients.send()
        gradients.submit(GROUPS[3], certain=True)
        gradients.send()
        assert len(sent) == 2 and not gradients.busy
    assert [list(each.groups) for each in gradients.take([GROUPS[0], GROUPS[2], GROUPS[3]])] == sent


def closed(settings: dict[str, Any], ranks: int = 2) -> Loop:
    """A loop whose policy does not go on with what it is given."""
    found = Loop(settings, overlap=True, ranks=ranks)
    found.policy.gate.clear()
    return found


def test_ranks_have_two_calls_at_most() -> None:
    """What comes meanwhile waits, and is sent in one."""
    made = closed({})
    groups, gradients = GROUPS[:6], made.gradients
    assert gradients
    made.shaper, scores = made.shaper, [Score(reward=float(n), parts={}, status="ok") for n in range(9)]
    with gradients.overlapping(made.loop.accumulate, 99):
        for number, group in enumerate(groups):
            group.scores[:] = scores[: len(group.infos)]
            gradients.submit(group, certain=True)
            gradients.send()
            assert len(made.policy.told) == 2 * min(2, number + 1)
        refs = gradients.refs()
        assert len(refs) == 2 and gradients.busy, "of the call that ends first"
        made.policy.gate.set()
        for ref in refs:
            ref.result(5)  # type: ignore[attr-defined]
        gradients.send()
        assert len(made.policy.told) == 6
    assert [len(each.groups) for each in gradients.take(groups)] == [1, 1, 4]
    made.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_gradient_that_fails_ends_the_wait_for_groups(ranks: int) -> None:
    made = Loop({}, overlap=True, ranks=ranks)
    made.policy.fails = "out of memory"
    with pytest.raises(GroupError, match=r"^policy\[[01]\]\.accumulate: out of memory$"):
        made.loop.sample(PROMPTS)
    assert made.clock.now < LONGEST_S
    made.close()


def test_a_gradient_that_fails_after_the_rollout_is_told_by_the_loop() -> None:
    """With its line, not with that of the update, which fails, too."""
    made = Loop({}, overlap=True, ranks=2)
    groups = made.loop.sample(PROMPTS)
    assert made.gradients
    made.policy.gate.clear()
    made.policy.fails = "out of memory"
    with made.gradients.overlapping(made.loop.accumulate, 99):
        for group in groups:
            made.gradients.submit(group, certain=True)
        made.gradients.send()
    threading.Timer(0.05, made.policy.gate.set).start()
    with pytest.raises(GroupError, match=r"^policy\[0\]\.accumulate: out of memory$"):
        made.learn(groups)
    made.close()


def test_a_reference_that_fails_is_named_before_the_gradient_that_needs_it() -> None:
    made = Loop(KL, overlap=True)
    made.loop.roster["reference"].fails = "out of memory"
    with pytest.raises(GroupError, match=r"^reference\[0\]\.reference_logprobs: out of memory$"):
        made.loop.sample(PROMPTS)
    made.close()


def test_ranks_that_are_late_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(read_passes, "time", SimpleNamespace(monotonic=lambda: clock.now))
    made = closed({})
    assert made.gradients
    GROUPS[0].scores[:] = [Score(reward=float(n), parts={}, status="ok") for n in range(len(GROUPS[0].infos))]
    with made.gradients.overlapping(made.loop.accumulate, 99):
        made.gradients.submit(GROUPS[0], certain=True)
        made.gradients.send()
        clock.now += made.policy.timeout_s
        made.gradients.send()
        clock.now += 0.1
        line = r"^policy\.accumulate: no answer from rank\(s\) \[0, 1\] within 60 s$"
        with pytest.raises(GroupError, match=line):
            made.gradients.send()
    made.policy.gate.set()
    made.close()
