"""Closed formulas for the steps of a loop that trains beside its engines, which the simulation is compared with.

A step of G groups takes x = T + w: T seconds of training, w of waiting. Every ask starts a burst of B groups, so that
G (n + 1) are there when a step takes its own (the capacity of arXiv 2505.24298). F(t) is the share of groups whose
longest response takes no longer than t, k how many samples an engine gets in a step of G, c how many run on it.

- Decoding: an engine has k E[length] B / G tokens to sample in a step, each in a + b c' seconds. Over time c' is E[c];
  over tokens it is E[c^2] / E[c], as more are sampled while more run. So a long response takes tau = a + b E[c] a
  token, and E[c] = k E[length] B / G (a + b E[c^2] / E[c]) / x, by Little's law. t seconds after an ask, c(t) is the
  sum over i = 0..n of those of a burst's lengths on an engine that are above (t + i x) / tau.
- Starts: a prompt whose group was dropped starts again, so that F and lengths are those of all starts, and the longer
  prompts have more of these.
- Waiting: a burst is given out at most n steps later, then it is dropped, so B F(n x + w) = G. When a step is taken all
  but G of the G (n + 1) groups are unfinished: sum over i = 0..n of 1 - F(i x + w) = n F(n x + w). No w where the left
  side is the smaller one at w = 0: then the trainer is the slower of the two, and x = T.
- Age (Little's law, counted in steps): a group that is trained on is there at age + 1 takes, a dropped one at n + 1;
  hence age = (n + 1) (2 - 1 / F(n x + w)) - 1: n where nothing is dropped, whichever of the two is slower.
- n = 0: all start together, and an engine's last response ends after a longest + b sum, of the lengths that it has got;
  w is the mean of the largest of these over a step's engines.
- Tail batching with a share of f more prompts: a usual step ends when 1 / (1 + f) of its groups have, at the quantile q
  of their longest responses, after a q + b (1 + f) k E[min(length, q)]. It leaves f G groups behind, so that of 1 + f
  steps f are long ones, which take as long as with n = 0.

In the spirit of appliedcompute.com/research/staleness-in-fully-async-rl (2026), which has closed forms in utilisation,
batch, concurrency and tail; derived here for a bound of n and a burst a step. Slots are taken to be enough.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.virtual import Speed

_LOOKED_AT, _MOMENTS, _ROUNDS = 400, 100, 12
"""Engines and moments of a step that stand for all, and rounds of the fixed point."""

Share = Callable[[float], float]
"""Of what is finished within so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a step is like, in a steady state."""

    step_s: float
    busy: float
    """Share of time in which an engine has something to do."""
    running: float
    """Samples that run on an engine, on average."""
    age: float
    """Versions between a group's oldest token and the policy that trains on it, on average."""
    dropped: float
    """Groups that become too old, for one that is trained on."""


def expected(
    lengths: NDArray[np.int64], speed: Speed, *, engines: int, groups: int, train_s: float, staleness: int
) -> Expected:
    """The formulas of the module.

    Args:
        lengths: of the responses to many prompts at each of their starts, which stand for the distribution,
            [more than `groups`, starts, samples].
        speed: of each engine.
        engines: how many.
        groups: of a step.
        train_s: T.
        staleness: n.
    """
    own, samples = max(1, round(groups / engines)), groups * lengths.shape[2] / engines
    if staleness == 0:
        return _on_policy(_by_engine(lengths[:, 0], own), speed, engines, samples, train_s)
    longest = lengths.max(axis=2)
    token_s, step_s, finished, running, busy = speed.step_s, train_s, 1.0, 0.0, 0.0
    horizon = staleness * train_s
    for _ in range(_ROUNDS):  # the speed depends on the step's length, and that on the speed
        started = np.roll(np.cumprod(longest * token_s > horizon, axis=1, dtype=bool), 1, axis=1)
        started[:, 0] = True
        ends = np.sort(longest[started])
        wait_s = _wait_s(lambda t, ends=ends, token_s=token_s: _share(ends, t / token_s), train_s, staleness)
        step_s = train_s + wait_s
        horizon = staleness * step_s + wait_s
        finished = _share(ends, horizon / token_s)
        tokens = samples / finished * float(np.minimum(lengths[started], horizon / token_s).mean())
        of_engine = _by_engine(lengths[started], own)
        looked_at = of_engine[:: max(1, len(of_engine) // _LOOKED_AT)]
        counts = _running(looked_at, token_s, step_s, staleness) * groups / engines / own / finished
        running = tokens * speed.token_s(float((counts**2).mean() / counts.mean())) / step_s
        busy = float((counts > 0).mean())
        token_s = (token_s + speed.token_s(running)) / 2
    return Expected(
        step_s=step_s,
        busy=busy,
        running=running,
        age=(staleness + 1) * (2 - 1 / finished) - 1,
        dropped=1 / finished - 1,
    )


def _on_policy(of_engine: NDArray[np.int64], speed: Speed, engines: int, samples: float, train_s: float) -> Expected:
    """`of_engine`: lengths that an engine gets in a step, [many, samples]; `samples`: how many it gets on average."""
    ends = speed.step_s * of_engine.max(axis=1) + speed.sample_s * of_engine.sum(axis=1)
    steps = len(ends) // engines
    step_s = train_s + float(ends[: steps * engines].reshape(steps, engines).max(axis=1).mean())
    # A sample of l tokens shares min(l, other) of them with each other one; here, the sum over all pairs.
    shared = np.sort(of_engine, axis=1)[:, ::-1] @ (1 + 2 * np.arange(of_engine.shape[1]))
    sampled_s = speed.step_s * of_engine.sum(axis=1) + speed.sample_s * shared
    return Expected(
        step_s=step_s,
        busy=float(ends.mean()) / step_s,
        running=float(sampled_s.mean()) * samples / of_engine.shape[1] / step_s,
        age=0.0,
        dropped=0.0,
    )


def _wait_s(finished: Share, train_s: float, staleness: int) -> float:
    def missing(wait_s: float) -> float:
        step_s = train_s + wait_s
        unfinished = sum(1 - finished(i * step_s + wait_s) for i in range(staleness + 1))
        return unfinished - staleness * finished(staleness * step_s + wait_s)

    if missing(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while missing(high) > 0:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high


def _running(of_engine: NDArray[np.int64], token_s: float, step_s: float, staleness: int) -> NDArray[np.float64]:
    """How many samples run at moments of a step, on each of these engines: [moments, engines]."""
    bursts = [np.roll(of_engine, number, axis=0) for number in range(staleness + 1)]  # other prompts each
    return np.array(
        [
            sum((burst > (at + number * step_s) / token_s).sum(axis=1) for number, burst in enumerate(bursts))
            for at in np.linspace(0, step_s, _MOMENTS, endpoint=False)
        ],
        dtype=np.float64,
    )


def _by_engine(lengths: NDArray[np.int64], own: int) -> NDArray[np.int64]:
    """Of so many groups each: [engines, samples]."""
    return lengths[: len(lengths) // own * own].reshape(-1, own * lengths.shape[1])


def _share(ordered: NDArray[np.int64], tokens: float) -> float:
    return float(np.searchsorted(ordered, tokens, side="right")) / len(ordered)


def tail_batched(
    lengths: NDArray[np.int64], speed: Speed, *, engines: int, groups: int, train_s: float, share: float
) -> float:
    """Seconds of a step, on average, with `share` f; the other arguments are those of `expected`."""
    long = expected(lengths, speed, engines=engines, groups=groups, train_s=train_s, staleness=0).step_s
    first = lengths[:, 0]
    last = np.quantile(first.max(axis=1), 1 / (1 + share))
    started = (1 + share) * groups * first.shape[1] / engines
    usual = train_s + speed.step_s * last + speed.sample_s * started * np.minimum(first, last).mean()
    return float(usual + share * long) / (1 + share)


def beside(measured: float, formula: float, form: str) -> str:
    """Both, and by how much the first is off; of shares and ages the difference, as these may be 0."""
    off = f"{measured / formula - 1:+.1%}" if formula >= 1 else f"{measured - formula:+.3f}"
    return f"{form.format(measured)} / {form.format(formula)} ({off})"
