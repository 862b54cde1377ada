"""What tail batching gains in virtual time, by what RollPacker varies (arXiv 2509.21009): prompts and responses more.

RollPacker starts eta P prompts with eta R responses each, and takes the first P of which R have ended; eta is 1.25 in
the configurations of its artifact (github.com/Farrrrland/RollPacker, `max_prompts_ratio`, `max_num_return_sequences`).
Here prompts alone may be more: the first to end of a prompt's responses are the shortest ones, whatever the prompt.
That is measured to be compared, as a length of responses: `FirstToEnd` says how long an engine has each of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

from actors.rollout.types import Request
from algorithms.rollouts.tail import Tail
from benchmarks import results
from benchmarks.expected import beside, expected, tail_batched
from benchmarks.steps import SPEED, STARTS, Run, Workload, simulated

ENGINES, STEPS = 128, 45
"""RollPacker's largest cluster; whole cycles of usual and long steps with an eighth, a quarter and a half more."""
OURS = Workload(engines=ENGINES, groups=524)
"""As much to do for each engine as where there are a thousand."""
THEIRS = {
    "1,024 x 4, at most 4,096 tokens": Workload(engines=ENGINES, groups=1024, samples=4, max_tokens=4096),
    "1,024 x 8, at most 8,192 tokens": Workload(engines=ENGINES, groups=1024, samples=8, max_tokens=8192),
    "1,024 x 8, at most 16,384 tokens": Workload(engines=ENGINES, groups=1024, samples=8, max_tokens=16384),
}
"""Prompts x responses on 128 engines, as many for each as in RollPacker's artifact: end to end it has 64 x 4 on 8 GPUs,
for its figure of shares 64 x 8; and twice the limit."""
SHARES = (0.125, 0.25, 0.5, 1.0)
BOTH = ((0.25, 0.0), (0.0, 0.25), (0.25, 0.25))
ROLLOUTS = 0.7
"""Share of a step that waits for rollouts, in RollPacker's motivation."""
HEADER = (
    "prompts x responses", "prompts more", "responses more", "step, s", "times as fast", "rollouts times as fast",
    "times as fast, training as groups end", "tokens of a response that is trained on",
)  # fmt: skip


class FirstToEnd:
    """Lengths of responses of which the first `samples` to end are taken, and the others ended with the last of these.

    A prompt that comes again is in a long step: that waits for all, and starts no more than it needs. Those to be taken
    come first.
    """

    def __init__(self, lengths: Callable[[Request], list[int]], samples: int) -> None:
        self._lengths = lengths
        self._samples = samples
        self._seen: set[int] = set()

    def __call__(self, request: Request) -> list[int]:
        """Tokens of each; see `Lengths`."""
        drawn, prompt = self._lengths(request), request.token_ids[0]
        spare = len(drawn) - self._samples
        if prompt in self._seen:
            return drawn[: self._samples] + [1] * spare
        self._seen.add(prompt)
        first = sorted(drawn)[: self._samples]
        return first + [first[-1]] * spare


def table() -> str:
    """Every way in the workload of the other tables, and the most telling ones in RollPacker's."""
    shares = [(share, 0.0) for share in SHARES] + [each for each in BOTH if each[1]]
    rows = _rows(f"{OURS.groups} x {OURS.samples}, at most {OURS.max_tokens:,} tokens", OURS, shares)
    for name, workload in THEIRS.items():
        rows += _rows(name, workload, BOTH, rollouts=ROLLOUTS)
    return results.table(HEADER, rows)


def _rows(
    name: str,
    workload: Workload,
    shares: list[tuple[float, float]] | tuple[tuple[float, float], ...],
    *,
    rollouts: float | None = None,
) -> list[list[str]]:
    """`rollouts`: their share of a step that waits, from which seconds of training follow; None: the workload's."""
    if rollouts is not None:
        waited = _expected_s(replace(workload, train_s=0.0), 0.0)
        workload = replace(workload, train_s=waited * (1 - rollouts) / rollouts)
    plain = simulated(workload, 0, STEPS)
    rows = [[name, "0", "0", *_figures(workload, plain, plain, 0.0)]]
    for prompts, responses in shares:
        run = batched(workload, prompts, responses)
        figures = _figures(workload, run, plain, None if responses else prompts)
        rows.append([name, f"{prompts:g}", f"{responses:g}", *figures])
        print(results.table(HEADER, rows[-1:]), flush=True)
    return rows


def _figures(workload: Workload, run: Run, plain: Run, share: float | None) -> list[str]:
    """Of a run, against `plain`; `share` of prompts more, for which there is a formula."""
    step_s = f"{run.step_s:.1f}" if share is None else beside(run.step_s, _expected_s(workload, share), "{:.1f}")
    waits = (plain.step_s - workload.train_s) / (run.step_s - workload.train_s)
    streamed = mean(streamed_s(step.ends[: workload.groups], workload.train_s) for step in run.steps)
    gains = [f"{gain:.2f}" for gain in (plain.step_s / run.step_s, waits, plain.step_s / streamed)]
    return [step_s, *gains, f"{run.tokens:.0f} ({run.tokens / plain.tokens - 1:+.1%})"]


def streamed_s(ends: Sequence[float], train_s: float) -> float:
    """Seconds of a step that trains on each group as soon as it has ended, beside those that have not.

    Args:
        ends: of the groups, in seconds, ascending.
        train_s: of all of them.
    """
    left = len(ends)
    return max(end + (left - before) * train_s / left for before, end in enumerate(ends))


def batched(workload: Workload, prompts: float, responses: float) -> Run:
    """On-policy, with so many prompts, and responses to each, more than are taken, as shares of these."""
    spare = math.ceil(responses * workload.samples)
    workload = replace(workload, spare=spare)
    lengths = FirstToEnd(workload.lengths, workload.samples) if spare else None
    tail = {"tail": Tail(prompts, lambda: None, None)} if prompts else {}
    return simulated(workload, 0, STEPS, lengths=lengths, **tail)


def _expected_s(workload: Workload, share: float) -> float:
    """Seconds of a step by formula."""
    lengths = workload.lengths.drawn(40 * workload.groups, STARTS, workload.samples, workload.max_tokens, seed=1)
    sizes = {"engines": workload.engines, "groups": workload.groups, "train_s": workload.train_s}
    if share:
        return tail_batched(lengths, SPEED, **sizes, share=share)
    return expected(lengths, SPEED, **sizes, staleness=0).step_s
