"""The verb `init` with a job, a model and data: a configuration of a few lines that `check` accepts, written once."""

import os
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from actors.config import UserError
from algorithms.data.sources import Row, kind_of_source, read_rows
from launch.checks.tokenizer_process import Aside
from launch.config import load
from launch.sizes.machine import this_machine
from launch.verbs.data_fit import REWARDED, DataFit, fits, reward_of

JOBS = ("sft", "grpo", "ppo", "dpo", "reward", "embedding", "reranker")
_NEEDS = {
    "sft": "messages, conversations, prompt + completion, instruction + output, or text",
    "grpo": "prompt, messages that end with a user turn, or question + answer",
    "ppo": "prompt, messages that end with a user turn, or question + answer",
    "dpo": "prompt + chosen + rejected, chosen + rejected, or prompt + completion + label",
    "reward": "prompt + chosen + rejected, or chosen + rejected",
    "embedding": "query + positive, or sentence1 + sentence2 + score",
    "reranker": "query + positive + negative, or query + documents + labels",
}
_MOST_READ = 20_000
"""Rows, as `check` reads them."""
_HELD_OUT, _LEAST_HELD_OUT_OF, _MOST_HELD_OUT = 0.05, 100, 256
_MOST_IN_AN_UPDATE, _LEAST_UPDATES = 64, 8
_FEW_ROWS = 2_000
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_WORD = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


def data_of(source: str) -> tuple[list[Row], dict[str, DataFit]]:
    """The first rows of a source, and the jobs that they fit. Raises UserError, also where they fit none."""
    kind_of_source(source, "--data")
    rows = read_rows(source, split="train", arguments={}, limit=_MOST_READ, field="--data")
    found = fits(rows)
    if not found:
        needs = "; ".join(f"{job}: {_NEEDS[job]}" for job in JOBS if job not in ("ppo", "reward"))
        raise UserError(f"--data: must have the columns of a job ({needs}), got {_columns(rows)}")
    return rows, found


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a person says of a job."""

    job: str
    """One of JOBS."""
    model: str
    """Directory or id of the hub; nothing asks the hub whether it is there."""
    data: str
    """As `data.train` has it."""
    output: str | None = None
    """File to be written (default: JOB.yaml)."""
    reward: str | None = None
    """Of a job in REWARDED, as `reward.functions` names it (default: what the answers of the data ask for)."""


def write_job(new: NewJob) -> int:
    """Write the configuration of a job, which `check` accepts, to a file that there is not, and say what to do next.

    Raises:
        UserError: one line; nothing is written.
    """
    job, reward = new.job, new.reward
    target = Path(new.output or f"{job}.yaml")
    if os.path.lexists(target):
        raise UserError(f"--output: must not be there yet, got {target}")
    if reward is not None and job not in REWARDED:
        raise UserError(f"--reward: must be left out for {job}, which has none, got {reward}")
    rows, found = data_of(new.data)
    if job not in found:
        raise UserError(
            f"--data: must have the columns of {job} ({_NEEDS[job]}), got {_columns(rows)}, "
            f"which fit {', '.join(found)}"
        )
    fit = found[job]
    if job in REWARDED:
        reward, fit = _rewarded(rows, fit, reward)
    values = _values(replace(new, reward=reward), fit, len(rows), target)
    text, warnings = _accepted(job, values, fit)
    _write(target, text)
    print(f"{target}: {_counted(rows)} of {', '.join(fit.reads)}{f', reward {reward}' if reward else ''}\n\n{text}")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"next: tandem run {shlex.quote(str(target))}")
    return 0


def _rewarded(rows: Sequence[Row], fit: DataFit, reward: str | None) -> tuple[str, DataFit]:
    proposed, with_answers = reward_of(rows, fit)
    if reward or proposed:
        return reward or str(proposed), with_answers
    raise UserError(
        f"--reward: required where no column of short answers tells it (math, exact_match or file.py:function), "
        f"got columns {_columns(rows)}"
    )


def _columns(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, rows[0])) or "none"


def _counted(rows: Sequence[Row]) -> str:
    more = " or more" if len(rows) == _MOST_READ else ""
    return f"{len(rows):,}{more} row{'s' * (len(rows) != 1)}"


def _values(new: NewJob, fit: DataFit, rows: int, target: Path) -> dict[str, dict[str, Any]]:
    """The configuration as plain values, section by section: what differs from the defaults."""
    job = new.job
    samples = job in REWARDED
    gpus = this_machine().gpus
    trainer = {"gpus_per_rank": 1, "zero_stage": 1} if gpus else {}
    groups = {"grpo": 2, "ppo": 3, "dpo": 2}.get(job, 1)
    on_gpu = {"dtype": "bf16", "gradient_checkpointing": True} if gpus else {}
    values: dict[str, dict[str, Any]] = {
        "algorithm": {"name": job, **_length(job, rows), **({"loss": fit.loss} if fit.loss else {})},
        "model": {"path": new.model, **on_gpu},
        "data": {"train": new.data, **({"columns": dict(fit.columns)} if fit.columns else {})},
        "policy": {**trainer, "optimizer": _optimizer(job)},
    }
    if rows >= _LEAST_HELD_OUT_OF and job not in ("embedding", "reranker"):
        values["data"]["eval_fraction"] = float(f"{min(_HELD_OUT, _MOST_HELD_OUT / rows):.2g}")
        if samples:
            values["algorithm"]["eval_every"] = 20
    if job == "ppo":
        values["critic"] = {**trainer, "optimizer": {"lr": 9e-6, "warmup_updates": 10}}
    if job == "dpo" and gpus:
        values["reference"] = {"gpus_per_rank": 1}
    if samples:
        values["reward"] = {"functions": [new.reward]}
    if samples and gpus:
        values["rollout"] = {"gpus_per_engine": 1, "max_response_tokens": 1024}
    if 0 < gpus < groups:
        values["cluster"] = {"placement": "shared"}
    # Steps of these take minutes on a model that is worth it: what a fault costs shall be few of them.
    values["checkpoint"] = {"every": 20 if samples else 100}
    values["run"] = {"name": _NAME.sub("-", target.stem).strip("-._")[:100] or job}
    return values


def _length(job: str, rows: int) -> dict[str, Any]:
    """How long a job trains, and on how much at a time, for so many rows."""
    if job == "grpo":
        return {"steps": 200, "prompts_per_step": min(32, rows), "samples_per_prompt": 8}
    if job == "ppo":
        prompts = min(128, rows)
        return {"steps": 200, "prompts_per_step": prompts, "critic_warmup_steps": 10}
    batch = _MOST_IN_AN_UPDATE
    while batch > 1 and batch * _LEAST_UPDATES > rows:
        batch //= 2
    epochs = 3 if job == "sft" and rows < _FEW_ROWS else 1
    return {"epochs": epochs, "samples_per_update": max(2, batch)}


def _optimizer(job: str) -> dict[str, Any]:
    rates = {"sft": 1e-5, "dpo": 1e-6, "reward": 9e-6, "embedding": 2e-5, "reranker": 2e-5}
    if job in REWARDED:
        return {"lr": 1e-6, "warmup_updates": 10}
    return {"lr": rates[job], "schedule": "cosine"}


def _accepted(job: str, values: dict[str, dict[str, Any]], fit: DataFit) -> tuple[str, Sequence[str]]:
    """The file's text as `check` accepts it, and its warnings; raises UserError where it does not, in one line."""
    seen: set[str] = set()
    while True:
        try:
            return _checked(job, values, fit)
        except UserError as error:
            problems = error.problems
        # What data and model ask for, the file then says.
        if problems[0] in seen or not _fitted(values, problems[0]):
            break
        seen.add(problems[0])
    more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    raise UserError(f"init: nothing is written, as check refuses it: {problems[0]}{more}")


def _fitted(values: dict[str, dict[str, Any]], problem: str) -> bool:
    """Add the setting with which a problem of lengths or pooling is none; returns whether there is one."""
    positions = re.search(r"max_position_embeddings \((\d+)\)", problem)
    if problem.startswith("data.max_length:") and positions:
        values["data"]["max_length"] = int(positions[1])
    elif problem.startswith("rollout.max_prompt_tokens +") and positions:
        half = int(positions[1]) // 2
        values["rollout"] = {**values.get("rollout", {}), "max_prompt_tokens": half, "max_response_tokens": half}
    elif "data.overlong" in problem:
        values["data"]["overlong"] = "drop"  # such rows are counted, by check and by the run
    elif problem.startswith("algorithm.pooling:"):
        values["algorithm"]["pooling"] = "mean"
    else:
        return False
    return True


def _checked(job: str, values: Mapping[str, Mapping[str, Any]], fit: DataFit) -> tuple[str, Sequence[str]]:
    from launch.checks.check import examine

    text = as_text(job, values, fit)
    with tempfile.TemporaryDirectory() as directory, Aside() as aside:
        path = Path(directory) / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return text, examine(load(str(path), []), aside).warnings


def as_text(job: str, values: Mapping[str, Mapping[str, Any]], fit: DataFit) -> str:
    """A line for each section, below one that says what it is."""
    head = f"# {job} from the columns {', '.join(fit.reads)}. `tandem help SECTION.FIELD` explains a setting."
    lines = [f"{name}: {yaml.dump(section, Dumper=_Dumper, **_FORM).strip()}" for name, section in values.items()]
    # One line: what a column is called may hold anything.
    return "\n".join(["".join(char if char.isprintable() else " " for char in head), *lines]) + "\n"


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        cause = error.strerror or str(error)[:200]
        raise UserError(f"--output: must be a file that can be made ({cause}), got {target}") from None


class _Dumper(yaml.SafeDumper):
    """Quotes what is no plain word: readers of YAML differ in what else they take for text."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """A text, quoted if need be."""
        plain = _WORD.fullmatch(data) and self.resolve(yaml.ScalarNode, data, (True, False)) == _TEXT
        return self.represent_scalar(_TEXT, data, style=None if plain else '"')

    def represent_number(self, data: float) -> yaml.ScalarNode:
        """As one would write it: 1e-6."""
        return self.represent_scalar(_FLOAT, re.sub(r"e([-+])0", r"e\1", f"{data:g}"))


_TEXT = "tag:yaml.org,2002:str"
_FLOAT = "tag:yaml.org,2002:float"
_FORM: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": 10**6, "allow_unicode": True}
# Without a dot, which YAML 1.1 wants and `launch.settings.file` does not.
_Dumper.add_implicit_resolver(_FLOAT, re.compile(r"^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$"), list("0123456789"))
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(float, _Dumper.represent_number)
