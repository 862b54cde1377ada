"""The questions of `tandem init` on a terminal: job, model, data, and where the configuration goes."""

import os
from collections.abc import Callable
from pathlib import Path

from actors.config import UserError
from actors.models.hub_cache import is_hub_id
from launch.verbs.data_fit import REWARDED, DataFit, likeliest, reward_of
from launch.verbs.new_job import JOBS, NewJob, data_of

_DOES = {
    "sft": "learns from demonstrations",
    "grpo": "learns from rewards of its own responses",
    "ppo": "the same, with a critic",
    "dpo": "learns from preferences",
    "reward": "a reward model from preferences",
    "embedding": "an embedding model",
    "reranker": "a reranker",
}


def ask(*, job: str | None, model: str | None, data: str | None, output: str | None, reward: str | None) -> NewJob:
    """What was not given, from a person: an answer that cannot be is told, and asked for again.

    Raises:
        UserError: what was given fits nothing; there is nobody to ask it of.
        KeyboardInterrupt: the person leaves.
    """
    rows, found = [], {}

    def read(source: str) -> str:
        nonlocal rows, found
        rows, found = data_of(source)
        return source

    data = read(data) if data else _answer("data (file, folder or hub id)", None, read)
    if job is None:
        able = [name for name in JOBS if name in found]
        print(f"  columns {', '.join(map(str, rows[0]))} fit:")
        for name in able:
            print(f"    {name:{max(map(len, able))}}  {_DOES[name]}")
        job = _answer("job", likeliest(rows, found), lambda name: _one_of(name, able))
    if reward is None and job in REWARDED and job in found:
        reward = _reward(rows, found[job])
    model = model or _answer("model (directory or hub id)", None, _model)
    output = output or _answer("write to", f"{job}.yaml", _free)
    return NewJob(job=job, model=model, data=data, output=output, reward=reward)


def _answer(question: str, proposed: str | None, taken: Callable[[str], str]) -> str:
    while True:
        shown = f"{question} [{proposed}]: " if proposed else f"{question}: "
        try:
            given = input(shown).strip() or proposed
        except EOFError:  # Ctrl-D: as Ctrl-C
            raise KeyboardInterrupt from None
        if given is None:
            continue
        try:
            return taken(given)
        except UserError as error:
            print(f"  {error.problems[0]}")


def _reward(rows: list[dict[str, object]], fit: DataFit) -> str:
    proposed, _ = reward_of(rows, fit)
    return _answer("reward (math, exact_match or file.py:function)", proposed, str)


def _one_of(given: str, able: list[str]) -> str:
    if given not in able:
        raise UserError(f"job: must be one of {', '.join(able)}, got {given}")
    return given


def _model(given: str) -> str:
    if not Path(given).is_dir() and not is_hub_id(given):
        raise UserError(f"model: must be a directory or OWNER/NAME of the hub, got {given}")
    return given


def _free(given: str) -> str:
    if os.path.lexists(given):
        raise UserError(f"write to: must not be there yet, got {given}")
    return given
