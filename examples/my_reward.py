"""A reward function for `own_task.jsonl`, as a user would write one: it knows nothing of Tandem.

`configs/own-task.yaml` names it as examples/my_reward.py:score; README says how to use one of your own.
"""

from difflib import SequenceMatcher


def score(completion: str, answer: str) -> float:
    """How alike two texts are, from 0 to 1: a model that is never quite right needs something to climb."""
    return SequenceMatcher(None, completion, answer).ratio()
