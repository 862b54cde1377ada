"""A reward function for `own_task.jsonl`, as a user would write one: it knows nothing of Tandem.

`configs/own-task.yaml` names it as examples/my_reward.py:score; README says how to use one of your own.
"""


def score(completion: str, answer: str) -> float:
    """Share of the answer's characters that stand in their place, halved when the completion goes on after them.

    Partial credit gives a model that is never quite right something to climb.
    """
    right = sum(given == wanted for given, wanted in zip(completion, answer, strict=False))
    share = right / len(answer)
    return share if len(completion) <= len(answer) else share / 2
