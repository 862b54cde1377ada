"""Kinds of jobs: every job has one, which holds its settings, and the kinds differ where the jobs do."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.config import validate
from launch.kinds.kind import JobKind
from launch.kinds.rl import GRPOKind
from launch.kinds.table import KINDS, job_kind
from launch.run.roster import Roster
from launch.settings.readers import readers
from launch.settings.tree import jobs
from launch.sizes.placement import demands

ROWS: dict[str, Any] = {"model": {"init": {}}, "data": {"train": "rows.jsonl"}}
SAMPLED = ROWS | {"reward": {"functions": ["exact_match"], "models": ["a/reward", "another/reward"]}}
JOBS: dict[str, dict[str, Any]] = {
    "sft": ROWS | {"algorithm": {"name": "sft", "steps": 5}},
    "reward": ROWS | {"algorithm": {"name": "reward", "steps": 5}},
    "dpo": ROWS | {"algorithm": {"name": "dpo", "steps": 5}},
    "ppo": SAMPLED | {"algorithm": {"name": "ppo", "critic_warmup_steps": 3, "epochs": 1}, "critic": {}},
    "grpo": SAMPLED | {"algorithm": {"name": "grpo", "kl_coef": 0.1}},
    "embedding": ROWS | {"algorithm": {"name": "embedding", "steps": 5, "pooling": "mean"}},
    "reranker": ROWS | {"algorithm": {"name": "reranker", "steps": 5}},
}


def kind(job: str, **sections: Any) -> JobKind:
    """The kind of a job of this name; sections add to those of JOBS."""
    return job_kind(validate(JOBS[job] | {name: JOBS[job].get(name, {}) | part for name, part in sections.items()}))


def test_every_job_has_a_kind() -> None:
    assert list(KINDS) == list(jobs()) == list(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_kind_holds_the_settings_of_its_job(job: str) -> None:
    found = kind(job)
    assert type(found) is KINDS[job]
    assert found.algorithm is found.config.algorithm
    assert type(found.algorithm) is jobs()[job]


def test_a_kind_of_another_jobs_settings_is_a_mistake_of_the_table() -> None:
    with pytest.raises(AssertionError, match="the table of kinds gives GRPOKind for ppo"):
        GRPOKind(kind("ppo").config).update_samples  # noqa: B018


GROUPS = {
    "sft": ["policy"],
    "reward": ["policy"],
    "dpo": ["policy", "reference"],
    "ppo": ["policy", "rollout", "critic", "reference", "reward_model", "reward_model_2"],
    "grpo": ["policy", "rollout", "reference", "reward_model", "reward_model_2"],
    "embedding": ["policy"],
    "reranker": ["policy"],
}


@pytest.mark.parametrize("job", JOBS)
def test_groups_stand_in_the_order_in_which_they_are_placed(job: str) -> None:
    found = kind(job)
    assert list(found.groups()) == GROUPS[job]
    processes = ["reward"] if found.samples_responses else []
    assert [demand.group for demand in demands(found.config)] == GROUPS[job] + processes


def test_a_reference_within_the_policy_is_no_group() -> None:
    assert list(kind("dpo", model={"lora": {}}, reference={"from_policy": True}).groups()) == ["policy"]
    assert list(kind("dpo", algorithm={"loss": "simpo"}).groups()) == ["policy"]


@pytest.mark.parametrize(
    ("job", "role", "rows", "samples"),
    [
        ("sft", "causal", "sequences", 128),
        ("reward", "scores", "pairs", 128),
        ("dpo", "causal", "pairs", 128),
        ("ppo", "causal", "prompts", 128),
        ("grpo", "causal", "prompts", 16 * 8),
        ("embedding", "encoder", "rows", 128),
        ("reranker", "encoder", "rows", 128),
    ],
)
def test_what_a_job_makes_of_a_model_and_what_its_updates_are_made_of(
    job: str, role: str, rows: str, samples: int
) -> None:
    found = kind(job)
    assert (found.role, found.rows, found.update_samples) == (role, rows, samples)
    assert kind(job, algorithm={"samples_per_update": 64}).update_samples == 64


def test_rows_that_leave_the_policy_no_step() -> None:
    assert kind("ppo").steps_problem(4 * 128) is None
    problem = kind("ppo").steps_problem(3 * 128)
    assert problem is not None and problem.startswith("algorithm.critic_warmup_steps must be below the steps of epochs")
    assert kind("grpo").steps_problem(1) is None


@pytest.mark.parametrize("job", ["ppo", "grpo"])
def test_tail_batching_needs_more_prompts_than_a_step_takes(job: str) -> None:
    """Else every step is a whole pass, and waits for all of it."""
    settings = {"algorithm": {"prompts_per_step": 8, "epochs": 9}, "rollout": {"tail": "postpone"}}
    assert kind(job, **settings).steps_problem(9) is None
    for rows in (8, 7):
        problem = kind(job, **settings).steps_problem(rows)
        assert problem == (
            f"rollout.tail must be none where a step takes all that a pass over the data has, which leaves nothing to "
            f"postpone (algorithm.prompts_per_step 8, {rows} prompts), got postpone"
        )
    assert kind(job, algorithm=settings["algorithm"]).steps_problem(7) is None
    data = {"train": {"a": "a.jsonl", "b": "b.jsonl"}, "weights": {"a": 1.0, "b": 2.0}}
    assert kind(job, **settings, data=data).steps_problem(7) is None, "no pass ends"


def test_what_to_do_with_a_model() -> None:
    said = {job: kind(job).next_command("out/run", Path("out/run/export")) for job in JOBS}
    assert said["reward"] == "reward.models=[out/run/export] in a ppo or grpo run  # reward with it"
    assert said["embedding"] == said["reranker"] == "tandem search out/run  # search with it"
    assert {said[job] for job in ("sft", "dpo", "ppo", "grpo")} == {"tandem chat out/run  # talk to it"}


def test_a_kind_says_which_settings_it_reads() -> None:
    assert readers("critic.ranks") == ("ppo",)
    assert readers("data.corpus") == ("embedding", "reranker")
    assert readers("reference.sync_every") == ("dpo", "ppo", "grpo")
    assert readers("policy.ranks") == tuple(JOBS)


class FakeGroup:
    """Stands for an actor group of one rank: notes of which class it is and what it is made with."""

    def __init__(self, name: str, worker: type, spawned: dict[str, list[Any]]) -> None:
        self.name, self.handles = name, [None]
        self._worker, self._spawned = worker, spawned

    def __len__(self) -> int:
        return 1

    def spawn(self, *arguments: Any) -> None:
        self._spawned[self.name] = [self._worker.__name__, *arguments[4:]]

    def submit(self, *arguments: Any) -> str:
        return "reference"

    def gather(self, references: list[str], what: str, **options: Any) -> list[Any]:
        return [("127.0.0.1", 1)]

    def call(self, method: Any, *arguments: Any) -> list[int]:
        return [32]  # the size of its vectors


TEXTS = [f"{letter}h" for letter in "abcd"]
LABELLED = [{"prompt": text, "completion": text[::-1], "label": text < "ch"} for text in TEXTS]
PAIRS = [{"prompt": text, "chosen": text[::-1], "rejected": "aa"} for text in TEXTS]
RANKED = [{"query": text, "pos": text[::-1], "neg": ["ee"]} for text in TEXTS]
BUILT = [
    ("sft", {}, LABELLED, "SFT", {"policy": ["PolicyWorker"]}),
    ("reward", {}, PAIRS, "RewardModel", {"policy": ["RewardModelWorker"]}),
    ("dpo", {}, PAIRS, "DPO", {"policy": ["PolicyWorker"], "reference": ["ReferenceWorker"]}),
    ("dpo", {"loss": "kto"}, LABELLED, "DPO", {"policy": ["PolicyWorker"], "reference": ["ReferenceWorker"]}),
    ("dpo", {"loss": "simpo"}, PAIRS, "DPO", {"policy": ["PolicyWorker"]}),
    (
        "embedding",
        {"prompts": {"query": "find "}, "max_tokens": 16, "matryoshka": [32]},
        RANKED,
        "Embedding",
        {
            "policy": [
                "EncoderWorker",
                {"kind": "embedding", "pooling": "mean", "max_tokens": 16, "prompts": {"query": "find "}},
                [],
            ]
        },
    ),
    (
        "reranker",
        {"prompt": "match "},
        RANKED,
        "Reranker",
        {"policy": ["EncoderWorker", {"kind": "reranker", "prompts": {"query": "match "}}, []]},
    ),
]


@pytest.mark.parametrize(
    ("job", "settings", "rows", "loop", "spawned"), BUILT, ids=[f"{job[0]}-{job[3]}" for job in BUILT]
)
def test_a_kind_starts_its_groups_and_gives_its_loop(
    job: str,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    loop: str,
    spawned: dict[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a group is made with beside model, settings and seed; of an encoder's head, what is given."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, list[Any]] = {}

    def add(roster: Roster, name: str, worker: type, *arguments: Any) -> FakeGroup:
        group: Any = FakeGroup(name, worker, found)
        roster._started[name] = group
        return group

    monkeypatch.setattr(Roster, "add", add)
    for module in ("build_offline", "build_encoder"):
        monkeypatch.setattr(f"launch.run.{module}.resume", lambda *arguments: None)
    init = {"hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 1024, "alphabet": "abcdefgh"}
    init |= {"family": "bert"} if kind(job).role == "encoder" else {}
    algorithm = settings | {"samples_per_update": 4}
    placement, reporter = (
        SimpleNamespace(nodes=set(), slots={}),
        SimpleNamespace(phase=print, note=print, progress=lambda *_, what: None),
    )
    made = kind(job, algorithm=algorithm, model={"init": init}).build(placement, reporter, Roster(""))
    assert type(made).__name__ == loop
    found["policy"][1:2] = [head.model_dump(exclude_defaults=True) for head in found["policy"][1:2]]
    assert found == spawned
