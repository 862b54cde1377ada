"""Rows that are too long, by job; rows that are held out; and rows of several sets with weights."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.config import ModelInit, UserError
from actors.models.tokenizer import build_char_tokenizer, tokenizer_for
from algorithms.batches import Batches, WeightedBatches, row_order
from algorithms.data.held_out import divided
from algorithms.data.overlong import shortened
from algorithms.data.pairs import judged, pairs
from algorithms.data.run_data import run_data
from algorithms.data.tokens import prompts, sequences
from launch.checks.row_checks import check_rows
from launch.config import validate
from launch.verbs.preview import preview

ROOT = Path(__file__).resolve().parent.parent
HH_RLHF = ROOT.parent / "shared" / "data" / "hh_harmless_test.jsonl.gz"
CHAR = build_char_tokenizer(ModelInit().alphabet)
JOBS: dict[str, dict[str, Any]] = {
    "grpo": {
        "algorithm": {"name": "grpo", "steps": 1},
        "reward": {"functions": ["exact_match"]},
        "rollout": {"max_prompt_tokens": 12},
    },
    "sft": {"algorithm": {"name": "sft", "steps": 1}, "data": {"max_length": 12}},
    "dpo": {"algorithm": {"name": "dpo", "steps": 1}, "data": {"max_length": 12}},
    "kto": {"algorithm": {"name": "dpo", "steps": 1, "loss": "kto"}, "data": {"max_length": 12}},
}


def row(job: str, prompt: int, response: int, number: int = 0) -> dict[str, Any]:
    """A row whose prompt and response have so many characters."""
    texts = {"prompt": "pqrstuvwxyzabcdefghijk"[:prompt], "completion": "ABCDEFGHIJKLMNOPQRST"[:response]}
    return {
        "grpo": {"prompt": texts["prompt"], "answer": "a"},
        "sft": texts,
        "dpo": {"prompt": texts["prompt"], "chosen": texts["completion"], "rejected": "Z" * max(1, response - 1)},
        "kto": texts | {"label": number % 2 == 0},
    }[job]


def config(job: str, tmp_path: Path, rows: list[dict[str, Any]] | None = None, **data: Any) -> Any:
    file = tmp_path / "rows.jsonl"
    if rows is not None:
        file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    values = JOBS[job] | {"model": {"init": {"hidden_size": 64, "layers": 1, "heads": 2}}}
    if job == "grpo" and "eval_fraction" in data:
        values["algorithm"] = values["algorithm"] | {"eval_every": 1}
    return validate(values | {"data": {"train": str(file)} | values.get("data", {}) | data})


def decoded(sequence: Any) -> str:
    """A sequence with its trained end between brackets."""
    ids, mask = sequence.token_ids, sequence.action_mask
    start = int(mask.argmax())
    assert start and mask[start:].all()
    return f"{CHAR.decode(ids[:start].tolist())}[{CHAR.decode(ids[start:].tolist())}]"


@pytest.mark.parametrize("job", JOBS)
def test_check_data_and_run_count_the_same(job: str, tmp_path: Path) -> None:
    rows = [row(job, 2, 3, n) for n in range(7)] + [row(job, 10, 3, 0), row(job, 15, 2, 1), row(job, 2, 3, 1)]
    rule = "rollout.max_prompt_tokens 12" if job == "grpo" else "data.max_length 12"
    for overlong, what in {
        "drop": "left out (data.overlong drop)",
        "truncate": "2 of them cut at the left, 0 left out (data.overlong truncate)",
    }.items():
        run = config(job, tmp_path, rows, overlong=overlong)
        line = f"data.train: 2 of 10 rows longer than {rule}: {what}"
        checked = check_rows(run, "data.train", tokenise=True)
        found = run_data(run.algorithm, run.data, tokenizer_for(run.model), max_prompt_tokens=12)
        console = Console(file=io.StringIO(), width=200)
        preview(run, 1, console)
        assert checked.notes == found.notes == [line]
        assert checked.count == len(found.train) == (8 if overlong == "drop" else 10)
        assert line in console.file.getvalue()  # type: ignore[attr-defined]
    run = config(job, tmp_path, rows)
    message = (
        f"data.train: 2 of 10 rows are longer than {rule} (first row 8, the longest has "
        f"{18 if job == 'grpo' else 21} tokens); data.overlong=drop leaves them out, data.overlong=truncate cuts them"
    )
    with pytest.raises(UserError) as error:
        check_rows(run, "data.train", tokenise=True)
    assert str(error.value) == message


@pytest.mark.parametrize("job", JOBS)
def test_rows_are_the_same_where_it_is_told_how_many_are_done(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(job, tmp_path, [row(job, 2, 3, n) for n in range(7)] + [row(job, 15, 2, 1)], overlong="drop")
    tokenizer, told = tokenizer_for(run.model), list[tuple[int, int]]()
    whole = run_data(run.algorithm, run.data, tokenizer, max_prompt_tokens=12)
    monkeypatch.setattr("algorithms.data.reading._TOLD_ROWS", 3)
    found = run_data(run.algorithm, run.data, tokenizer, max_prompt_tokens=12, told=lambda *each: told.append(each))
    assert told == [(0, 8), (3, 8), (6, 8)]
    assert repr(found) == repr(whole) and len(found.train) == 7


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("overlong", ["error", "drop", "truncate"])
def test_a_row_of_exactly_the_limit_is_whole(job: str, overlong: str, tmp_path: Path) -> None:
    """The template writes three tokens, and one that ends a response."""
    prompt = 9 if job == "grpo" else 5
    rows = [row(job, prompt, 3, number) for number in range(2)]
    run = config(job, tmp_path, rows, overlong=overlong)
    assert check_rows(run, "data.train", tokenise=True).notes == []
    found = run_data(run.algorithm, run.data, tokenizer_for(run.model), max_prompt_tokens=12)
    assert (found.notes, len(found.train)) == ([], 2)
    item = getattr(found.train[0], {"dpo": "chosen", "kto": "sequence"}.get(job, ""), found.train[0])
    assert len(item.token_ids) == 12
    over = config(job, tmp_path, [*rows, row(job, prompt + 1, 3, 1)], overlong=overlong)
    if overlong == "error":
        with pytest.raises(
            UserError, match=r"1 of 3 rows is longer than .* 12 \(first row 3, the longest has 13 tokens"
        ):
            check_rows(over, "data.train", tokenise=True)
    else:
        assert len(check_rows(over, "data.train", tokenise=True).notes) == 1


def test_rows_beyond_the_tokenised_ones_are_counted_too(tmp_path: Path) -> None:
    short, long = {"prompt": "ab", "answer": "a"}, {"prompt": "a" * 30, "answer": "a"}
    run = config("grpo", tmp_path, [short] * 896)  # a multiple of the rows that are tokenised at one time
    assert (check_rows(run, "data.train", tokenise=True).count, run.data.overlong) == (896, "error")
    run = config("grpo", tmp_path, [short] * 1100 + [long], overlong="drop")
    [note] = check_rows(run, "data.train", tokenise=True).notes
    assert note.startswith("data.train: 1 of 1,101 rows longer than rollout.max_prompt_tokens 12")


def test_what_cutting_means(tmp_path: Path) -> None:
    def data(job: str, **more: Any) -> Any:
        return config(job, tmp_path, overlong="truncate", **({"max_length": 12} if job != "grpo" else {}), **more).data

    [prompt] = prompts([row("grpo", 15, 1)], data("grpo"), CHAR, max_prompt_tokens=8)
    assert str(CHAR.decode(prompt.token_ids)) == "yzabcd<|end|><|assistant|>"
    [cut] = sequences([row("sft", 15, 3)], data("sft"), CHAR, train_on="completions")
    assert decoded(cut) == "yzabcd<|end|><|assistant|>[ABC<|end|>]"
    [cut] = sequences([row("sft", 5, 9)], data("sft", truncation_side="right"), CHAR, train_on="completions")
    assert decoded(cut) == "<|user|>pqrst<|end|><|assistant|>[ABCD]"
    with pytest.raises(UserError, match=r"data.overlong truncate leaves no row, as 1 of 1 rows is longer than"):
        sequences([row("sft", 15, 3)], data("sft", truncation_side="right"), CHAR, train_on="completions")
    [pair] = pairs([row("dpo", 15, 3)], data("dpo"), CHAR)
    assert decoded(pair.chosen).endswith("abcd<|end|><|assistant|>[ABC<|end|>]")
    assert decoded(pair.rejected).endswith("abcd<|end|><|assistant|>[ZZ<|end|>]") and len(pair.chosen) == 12
    [pair] = pairs([row("dpo", 5, 9)], data("dpo", truncation_side="right"), CHAR)
    assert decoded(pair.chosen) == "<|user|>pqrst<|end|><|assistant|>[ABCD]" and len(pair.rejected) == 12
    [good, bad] = judged([row("kto", 15, 3), row("kto", 15, 2, 1)], data("kto"), CHAR)
    assert good.desirable and len(good.sequence) == len(bad.sequence) == 12
    for side in ("left", "right"):  # a response longer than all, a prompt longer than all
        long = row("dpo", 2, 14) if side == "left" else row("dpo", 14, 2)
        assert len(pairs([row("dpo", 1, 2), long], data("dpo", truncation_side=side), CHAR)) == 1
    assert shortened([7, 1, 2, 3, 4], 3, bos=7) == [7, 3, 4] and shortened([1, 2, 3, 4], 3, bos=7) == [2, 3, 4]


def test_hh_rlhf_is_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not HH_RLHF.exists():
        pytest.skip(f"needs {HH_RLHF.name} in ../shared/data")
    monkeypatch.chdir(ROOT)
    data = {"converter": "examples/hh_rlhf.py:to_messages", "overlong": "drop", "max_length": 1024, "limit": 300}
    run = config("dpo", tmp_path, train=str(HH_RLHF), **data)
    checked = check_rows(run, "data.train", tokenise=True)
    found = run_data(run.algorithm, run.data, tokenizer_for(run.model), max_prompt_tokens=0)
    assert (
        checked.notes
        == found.notes
        == ["data.train: 60 of 300 rows longer than data.max_length 1024: left out (data.overlong drop)"]
    )


def test_a_fraction_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number:02}", "answer": "a"} for number in range(20)]
    run = config("grpo", tmp_path, rows, eval_fraction=0.2)
    found = run_data(run.algorithm, run.data, CHAR, max_prompt_tokens=12)
    texts, held_out = [item.text for item in found.train], [item.text for item in found.held_out]
    assert len(held_out) == 4 and sorted(texts + held_out) == [each["prompt"] for each in rows]
    assert texts == sorted(texts) and held_out == sorted(held_out) and held_out != texts[:4]
    assert [item.text for item in run_data(run.algorithm, run.data, CHAR, max_prompt_tokens=12).held_out] == held_out
    assert (len(divided([1, 2], 0.01, "")[1]), len(divided([1, 2], 0.99, "")[0])) == (1, 1)
    alone = config("grpo", tmp_path, rows[:1], eval_fraction=0.5)
    for read in (
        lambda: run_data(alone.algorithm, alone.data, CHAR, max_prompt_tokens=12),
        lambda: check_rows(alone, "data.train", tokenise=True),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value) == "data.eval_fraction: needs at least two rows in data.train, got 1"


def test_prompts_of_several_sets_know_their_set(tmp_path: Path) -> None:
    names = {"math": 3, "code": 5}
    for name, count in names.items():
        rows = [{"prompt": f"{name}{number}", "answer": "a"} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in names}
    run = config("grpo", tmp_path, train=sources, weights={"math": 3, "code": 1})
    found = run_data(run.algorithm, run.data, CHAR, max_prompt_tokens=12)
    assert found.sizes == names and [item.index for item in found.train] == list(range(8))
    assert [item.row["source"] for item in found.train] == ["math"] * 3 + ["code"] * 5
    order = row_order(found.sizes, run.data.weights, seed=0, shuffle=True).next(400)
    assert Counter(found.train[index].of_set for index in order) == {"math": 300, "code": 100}
    assert isinstance(row_order(found.sizes, {}, seed=0, shuffle=True), Batches)
    (tmp_path / "code.jsonl").write_text('{"prompt": "", "answer": "a"}\n')
    with pytest.raises(UserError, match=r"^data.train.code: row 1: column prompt must not be empty"):
        check_rows(run, "data.train", tokenise=True)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weights=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    before=st.integers(0, 30),
    shuffle=st.booleans(),
)
def test_weighted_batches_keep_their_shares_and_resume_anywhere(
    sizes: list[int], weights: list[int], before: int, shuffle: bool
) -> None:
    named = {f"s{number}": size for number, size in enumerate(sizes)}
    shares = {name: float(weight) for name, weight in zip(named, weights, strict=False)}
    if not any(shares.values()):
        shares["s0"] = 1.0
    batches = WeightedBatches(named, shares, seed=1, shuffle=shuffle)
    drawn = batches.next(before)
    state = json.loads(json.dumps(batches.save(Path())))
    resumed = WeightedBatches(named, shares, seed=1, shuffle=shuffle)
    resumed.load(Path(), state)
    rest = batches.next(20)
    assert resumed.next(20) == rest
    starts = np.cumsum([0, *sizes])
    of_set = np.searchsorted(starts, [*drawn, *rest], side="right") - 1
    total = sum(shares.values())
    for number, name in enumerate(named):
        count = int((of_set == number).sum())
        assert abs(count - len(of_set) * shares[name] / total) <= len(sizes)
        rows = [index for index, each in zip([*drawn, *rest], of_set, strict=True) if each == number]
        seen = Counter(rows)
        assert (
            not seen
            or max(seen.values()) - min(seen.get(int(starts[number]) + i, 0) for i in range(sizes[number])) <= 1
        )


def test_other_sets_than_the_checkpoints_are_refused() -> None:
    state = WeightedBatches({"a": 2, "b": 3}, {"a": 1, "b": 1}, seed=0, shuffle=True).save(Path())
    with pytest.raises(
        UserError, match=r"^data.train: must draw from the checkpoint's sets \(a, b\) to resume, got one$"
    ):
        Batches(5, seed=0, shuffle=True).load(Path(), state)
    other = WeightedBatches({"a": 2, "c": 3}, {"a": 1, "c": 1}, seed=0, shuffle=True)
    with pytest.raises(
        UserError, match=r"^data.train: must draw from the checkpoint.s sets \(a, b\) to resume, got a, c$"
    ):
        other.load(Path(), state)


def test_rewards_are_told_by_set(tmp_path: Path) -> None:
    from algorithms.rewards.scores import Score
    from algorithms.rl.metrics import reward_metrics
    from algorithms.rollouts.groups import ScoredGroup

    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "answer": "x"}\n' * 2)
    (tmp_path / "b.jsonl").write_text('{"prompt": "b", "answer": "x"}\n')
    run = config("grpo", tmp_path, train={"a": str(tmp_path / "a.jsonl"), "b": str(tmp_path / "b.jsonl")})
    found = run_data(run.algorithm, run.data, CHAR, max_prompt_tokens=12)
    groups = [
        ScoredGroup(prompt=prompt, rollouts=[], infos=[], scores=[Score(reward=value, parts={}, status="ok")] * 2)
        for prompt, value in zip(found.train, (1.0, 2.0, 6.0), strict=True)
    ]
    metrics = reward_metrics(groups, "reward")
    assert (metrics["reward/a/mean"], metrics["reward/b/mean"], metrics["reward/mean"]) == (1.5, 6.0, 3.0)
    [one] = [name for name in reward_metrics(groups[:1], "eval/reward") if name.endswith("/a/mean")]
    assert one == "eval/reward/a/mean"
