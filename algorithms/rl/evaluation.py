r"""What an evaluation tells beside rewards: pass@k, what most responses say, and the responses themselves.

A response is solved when its reward is at least `algorithm.eval_pass_reward`. Its answer is what the last \boxed{}
holds, else the line after the last ####, else all of it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from algorithms.config_rl import pass_sizes
from algorithms.loop import Metrics
from algorithms.rewards.math_final import boxes
from algorithms.rl.responses import report_ends, responses_of
from algorithms.rollouts.groups import ScoredGroup

Rows = list[dict[str, Any]]
_ROUNDING = 1e-9
"""Weighted sums of rewards that make 1 on paper."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Chance that k of a prompt's samples, drawn at random, hold a solved one: 1 - C(n - c, k) / C(n, k), the unbiased
    estimate of arXiv 2107.03374."""
    return 1 - math.comb(samples - solved, k) / math.comb(samples, k)  # comb is 0 where fewer than k are unsolved


def final_answer(text: str) -> str:
    r"""What a response (see the module) answers; of marked answers, white space, $, commas between thousands and a full
    stop at the end are left out.

    Example: "6 x 7 = 42, so\n#### 42." and "It is \boxed{42}" both give "42".
    """
    _, marked, after = text.rpartition("####")
    if boxed := boxes(text):
        found = boxed[-1][2]
    elif marked:
        found = next(iter(after.strip().splitlines()), "")
    else:
        return text.strip()
    return _THOUSANDS.sub("", "".join(found.replace("$", "").split())).rstrip(".")


def majority(answers: list[str]) -> int:
    """Place of the first response that gives the most frequent answer; of equally frequent ones, the first counts."""
    counts = Counter(answers)  # max takes the first of equally frequent ones
    return max(range(len(answers)), key=lambda index: counts[answers[index]])


def response_rows(groups: list[ScoredGroup], pass_reward: float, note: Callable[[str], None]) -> list[Rows]:
    """Every response of every group, as eval_samples.jsonl has it; reads tokens group by group, and keeps none.

    A group whose responses cannot be read is left out, with a note.
    """
    found, until = [], report_ends()
    for number, group in enumerate(groups):
        if not (rollouts := responses_of(group, note, until)):
            continue
        columns = {name: value for name, value in group.prompt.row.items() if name != "prompt"}
        found.append(
            [
                {
                    "group": number,
                    "sample": index,
                    "row": group.prompt.index,
                    "prompt": group.prompt.text,
                    "completion": rollout.text,
                    "final_answer": final_answer(rollout.text),
                    "reward": score.reward,
                    "rewards": score.parts,
                    "solved": score.reward >= pass_reward - _ROUNDING,
                    "status": rollout.status,
                    "columns": columns,
                }
                for index, (rollout, score) in enumerate(zip(rollouts, group.scores, strict=True))
            ]
        )
    return found


def solving_metrics(groups: list[Rows], samples: int) -> Metrics:
    """eval/pass@k and eval/majority, means over the prompts, each with `samples` rows, above 1.

    Without a group, as where no responses could be read, all are NaN: a metric that is there and says nothing is no
    mistake in the name that `best_by` or `stop_when` have for it.
    """
    if not groups:
        return dict.fromkeys([*(f"eval/pass@{k}" for k in pass_sizes(samples)), "eval/majority"], math.nan)
    solved = [sum(row["solved"] for row in rows) for rows in groups]
    metrics = {f"eval/pass@{k}": np.mean([pass_at_k(samples, each, k) for each in solved]) for k in pass_sizes(samples)}
    voted = [rows[majority([row["final_answer"] for row in rows])] for rows in groups]
    metrics["eval/majority"] = np.mean([row["solved"] for row in voted])
    return {name: float(value) for name, value in metrics.items()}
