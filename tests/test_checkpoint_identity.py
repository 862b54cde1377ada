"""A run goes on from a checkpoint of the same model, optimizer and seeds only; the rest may change."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.files.parts import Entry
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints, Written
from launch.run.identity import identity

Sections = dict[str, Any]
INIT: Sections = {"model": {"init": {"hidden_size": 32}}}
PATH: Sections = {"model": {"path": "acme/a", "revision": "v1"}}
PPO: Sections = {"algorithm": {"name": "ppo"}, "reward": {"functions": ["exact_match"]}, "critic": {}, **INIT}
FOLLOWED: Sections = {"algorithm": {"name": "dpo", "steps": 9}, "reference": {"sync_every": 5, "sync_mix": 0.5}, **INIT}
SHARDED: Sections = {"policy": {"zero_stage": 1, "ranks": 2}, **INIT}
ADAPTED: Sections = {"model": {"path": "acme/a", "lora": {}}, "policy": {"gpus_per_rank": 1}}
DECAYED: Sections = {
    "policy": {"optimizer": {"schedule": "cosine_with_min_lr", "warmup_updates": 4, "min_lr_ratio": 0.2}}, **INIT,
}  # fmt: skip

# (then, section, its values now, the field and its old and new value in the line)
CASES: list[tuple[Sections, str, Sections, str]] = [
    (INIT, "algorithm", {"name": "reward", "steps": 9}, 'algorithm.name: must be "sft" {}, got "reward"'),
    (PATH, "model", {"path": "acme/b", "revision": "v1"}, 'model.path: must be "acme/a" {}, got "acme/b"'),
    (PATH, "model", {"path": "acme/a"}, 'model.revision: must be "v1" {}, got null'),
    (INIT, "model", {"init": {"hidden_size": 64}}, "model.init.hidden_size: must be 32 {}, got 64"),
    (INIT, "model", {"init": {"hidden_size": 32, "seed": 1}}, "model.init.seed: must be 0 {}, got 1"),
    (SHARDED, "model", INIT["model"] | {"dtype": "bf16"}, 'model.dtype: must be "fp32" {}, got "bf16"'),
    (ADAPTED, "model", {"path": "acme/a", "lora": {"alpha": 8}}, "model.lora.alpha: must be 32.0 {}, got 8.0"),
    (ADAPTED, "model", ADAPTED["model"] | {"quantize": "nf4"}, 'model.quantize: must be null {}, got "nf4"'),
    (INIT, "model", INIT["model"] | {"freeze": ["a.*"]}, 'model.freeze: must be [] {}, got ["a.*"]'),
    (INIT, "data", {"train": "rows.jsonl", "shuffle": False}, "data.shuffle: must be true {}, got false"),
    (INIT, "run", {"seed": 7}, "run.seed: must be 0 {}, got 7"),
    (INIT, "policy", {"ema_decay": 0.9}, "policy.ema_decay: must be null {}, got 0.9"),
    (PPO, "critic", {"optimizer": {"lr": 0.5}}, "critic.optimizer.lr: must be 9e-06 {}, got 0.5"),
    (PPO, "critic", {"path": "acme/values"}, 'critic.path: must be null {}, got "acme/values"'),
    (PPO, "critic", {"lora": {}}, "critic.lora: must be null {}, got {{"),
    (FOLLOWED, "reference", {"sync_every": 6, "sync_mix": 0.5}, "reference.sync_every: must be 5 {}, got 6"),
    (FOLLOWED, "reference", {"sync_every": 5}, "reference.sync_mix: must be 0.5 {}, got 1.0"),
]  # fmt: skip
OPTIMIZERS: list[tuple[Sections, Sections, str]] = [
    (INIT, {"name": "adam"}, 'name: must be "adamw" {}, got "adam"'),
    (INIT, {"lr": 0.5}, "lr: must be 1e-06 {}, got 0.5"),
    (INIT, {"betas": [0.9, 0.95]}, "betas: must be [0.9, 0.999] {}, got [0.9, 0.95]"),
    (INIT, {"eps": 0.1}, "eps: must be 1e-08 {}, got 0.1"),
    (INIT, {"weight_decay": 0.1}, "weight_decay: must be 0.0 {}, got 0.1"),
    (INIT, {"schedule": "cosine"}, 'schedule: must be "constant_with_warmup" {}, got "cosine"'),
    (INIT, {"max_grad_norm": 0.5}, "max_grad_norm: must be 1.0 {}, got 0.5"),
    (INIT, {"warmup_ratio": 0.5}, "warmup_ratio: must be 0.0 {}, got 0.5"),
    (DECAYED, {"warmup_updates": 3}, "warmup_updates: must be 4 {}, got 3"),
    (DECAYED, {"min_lr_ratio": 0.3}, "min_lr_ratio: must be 0.2 {}, got 0.3"),
]
CASES += [
    (then, "policy", {"optimizer": then.get("policy", {}).get("optimizer", {}) | now}, f"policy.optimizer.{line}")
    for then, now, line in OPTIMIZERS
]


def job(directory: Path, sections: Sections) -> RunConfig:
    values: Sections = {
        "algorithm": {"name": "sft", "steps": 9}, "data": {"train": "rows.jsonl"}, "run": {}, **sections,
    }  # fmt: skip
    return validate(values | {"run": values["run"] | {"output": str(directory), "name": "first"}})


def write(directory: Path, **parts: Entry) -> Written:
    (directory / "rank0.pt").write_text("weights")
    return Written(parts, [("rank0.pt", 7, None)])


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Saves a checkpoint of a job; its models are of the hub, of which nothing is here."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def save(sections: Sections) -> Path:
        return Checkpoints(job(tmp_path, sections)).save(1, write)

    return save


@pytest.mark.parametrize(("then", "section", "now", "line"), CASES, ids=[line.partition(":")[0] for *_, line in CASES])
def test_another_value_is_refused(
    saved: Any, tmp_path: Path, then: Sections, section: str, now: Sections, line: str
) -> None:
    directory = saved(then)
    assert Checkpoints(job(tmp_path, then)).latest() is not None
    with pytest.raises(UserError) as caught:
        Checkpoints(job(tmp_path, then | {section: now})).latest()
    [problem] = caught.value.problems
    anew = "" if line.endswith("{{") else "; to start anew: checkpoint.resume=false, or another run.name than first"
    assert problem.startswith(line.format(f"to resume from {directory}") + anew)


def test_every_field_of_the_identity_has_a_case(tmp_path: Path) -> None:
    fields = {
        f"{section}.{name}"
        for sections in (INIT, PPO, FOLLOWED)
        for section, values in identity(job(tmp_path, sections)).items()
        for name in values
    }
    fields |= {f"policy.optimizer.{name}" for name in identity(job(tmp_path, INIT))["policy"]["optimizer"]}
    refused = {line.partition(":")[0] for *_, line in CASES}
    accepted = {field for field in fields if not any(f"{line}.".startswith(f"{field}.") for line in refused)}
    # By these the state is divided, and it can be divided anew.
    assert accepted == {f"{group}.{name}" for group in ("policy", "critic") for name in ("ranks", "zero_stage")}


@pytest.mark.parametrize(
    ("then", "section", "now"),
    [
        (INIT, "policy", {"ranks": 2, "micro_batch_tokens": 64, "timeout_s": 5}),
        (INIT, "policy", {"zero_stage": 2}),
        (SHARDED, "policy", {"zero_stage": 3, "ranks": 4}),
        (SHARDED, "policy", {}),
        (PPO, "critic", {"ranks": 2, "micro_batch_tokens": 64}),
        (PPO | {"critic": {"zero_stage": 3, "ranks": 2}}, "critic", {"zero_stage": 1}),
        (FOLLOWED, "reference", FOLLOWED["reference"] | {"ranks": 2}),
        (PPO, "rollout", {"engines": 2, "temperature": 0.5}),
        (INIT, "algorithm", {"name": "sft", "steps": 90, "samples_per_update": 3}),
        (INIT, "model", INIT["model"] | {"gradient_checkpointing": True, "attention": "packed_sdpa"}),
        (INIT, "data", {"train": "others.jsonl", "max_length": 9}),
        (INIT, "run", {"hub_model_id": "acme/model"}),
        (PPO, "reward", {"functions": ["math"]}),
        (INIT, "checkpoint", {"every": 3}),
    ],
)
def test_other_settings_may_change(saved: Any, tmp_path: Path, then: Sections, section: str, now: Sections) -> None:
    saved(then)
    assert Checkpoints(job(tmp_path, then | {section: now})).latest() is not None


def test_data_that_changed_since_the_checkpoint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows are refused by `check` already, with the setting that makes them fewer; the rest is a warning."""
    from launch.checks.check import examine

    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 6)
    Path("same.jsonl").write_text(Path("rows.jsonl").read_text())

    def job(**data: Any) -> RunConfig:
        values = {
            "algorithm": {"name": "grpo", "prompts_per_step": 2},
            "model": {"init": {"hidden_size": 64, "heads": 2, "layers": 1}},
            "data": {"train": "rows.jsonl"} | data,
            "reward": {"functions": ["exact_match"]},
            "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 16},
        }
        return validate(values)

    job().directory.mkdir(parents=True)
    (job().directory / "config.json").write_text(job().model_dump_json())
    Checkpoints(job()).save(1, partial(write, batches={"epoch": 0, "position": 2, "rows": 6}))
    assert not [line for line in examine(job()).warnings if line.startswith("data.")]
    with pytest.raises(UserError) as caught:
        examine(job(limit=4))
    assert caught.value.problems == (
        "data.train: must hold the 6 rows of the checkpoint to resume from outputs/run/checkpoints/step-1 (data.limit "
        "was null, and is 4), got 4; to go on all the same: checkpoint.accept_new_data=true; to start anew: "
        "checkpoint.resume=false, or another run.name than run",
    )
    told = [line for line in examine(job(train="same.jsonl")).warnings if line.startswith("data.train: was")]
    assert told == [
        'data.train: was "rows.jsonl" when step-1 was saved, and is "same.jsonl" now: what follows is learned, or '
        "evaluated, from other rows than what came before"
    ]


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_rows_that_check_did_not_count_refuse_no_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlong: str
) -> None:
    """Of many rows `check` tokenises the first; the run leaves out those beyond that are too long."""
    from launch.checks import row_checks
    from launch.checks.row_checks import check_rows

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(row_checks, "_COUNTING_S", 0.0)
    rows = ['{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "' + "b" * size + '"}]}'
            for size in [40] * 3000 + [400] * 20]  # fmt: skip
    Path("rows.jsonl").write_text("\n".join(rows))
    values = {
        "algorithm": {"name": "sft", "steps": 1},
        "model": {"init": {"hidden_size": 64, "heads": 2, "layers": 1}},
        "data": {"train": "rows.jsonl", "max_length": 60, "overlong": overlong},
    }
    found = check_rows(validate(values), "data.train", tokenise=True)
    assert found.complete and not found.whole
    assert not check_rows(validate(values), "data.train", tokenise=False).whole
    values["data"]["overlong"] = "error"
    assert check_rows(validate(values), "data.train", tokenise=False).whole
