"""Comparing two recordings: what counts as equal, and what never does."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.recorded import RECORDING, Finding, Hashes, compare, kept, main, relative_difference

LOSSES = {"1": [0.5], "2": [0.25]}
TEXTS = {"1": ["ab", "ba"], "2": ["a", "b"]}
HASHES = {"model:weight": "1f", "model:bias": "2e"}


def job(*, loss: Any = LOSSES, completion: Any = TEXTS, tensors: Hashes = HASHES) -> dict[str, Any]:
    return {"series": {"loss/policy": loss, "samples/completion": completion}, "tensors": tensors}


def written(place: Path, jobs: dict[str, Any]) -> Path:
    place.mkdir(exist_ok=True)
    recording = {"commit": "1", "start": str(place / "model"), "model": {"model:weight": "0d"}, "jobs": jobs}
    (place / RECORDING).write_text(json.dumps(recording))
    return place


def found(tmp_path: Path, ours: dict[str, Any], others: dict[str, Any]) -> dict[str, Finding]:
    """Of the job `a`, by field."""
    findings = compare(written(tmp_path / "one", {"a": ours}), written(tmp_path / "other", {"a": others}))
    return {finding.field: finding for finding in findings if finding.job == "a"}


def test_equal_recordings_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [str(written(tmp_path / name, {"a": job(), "b": job()})) for name in ("one", "other")]
    assert main(["compare", *places]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 3 + 1  # the model, three fields of two jobs, and the last word
    assert lines[-1] == "all equal"
    assert not any(line.startswith("!") for line in lines)


def test_a_difference_is_told_with_its_first_step_and_its_largest(tmp_path: Path) -> None:
    others = job(loss={"1": [0.5], "2": [0.2], "10": [0.4]}, completion=TEXTS | {"2": ["a", "c"]})
    findings = found(tmp_path, job(loss={"1": [0.5], "2": [0.25], "10": [0.2]}), others)
    assert findings["loss/policy"].largest == pytest.approx(0.5)
    assert findings["loss/policy"].text == "differs from step 2, in 2 of 3 steps, by at most 5.0e-01 of the value"
    assert findings["samples/completion"].text == "differs from step 2, in 1 of 2 steps, by texts"
    assert findings["samples/completion"].largest == math.inf
    assert findings["export"].largest == 0


def test_a_tolerance_is_for_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(written(tmp_path / "one", {"a": job()}))
    near = str(written(tmp_path / "near", {"a": job(loss={"1": [0.5], "2": [0.25 * (1 + 5e-7)]})}))
    text = str(written(tmp_path / "text", {"a": job(completion=TEXTS | {"2": ["a", "c"]})}))
    assert main(["compare", one, near]) == 1
    assert main(["compare", one, near, "--tolerance", "1e-6"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all within 1e-06"
    assert main(["compare", one, text, "--tolerance", "1e-6"]) == 1


@pytest.mark.parametrize(("ours", "others"), [(None, None), (None, 0.5), (0.5, None)])
def test_what_is_not_finite_never_is_equal(tmp_path: Path, ours: float | None, others: float | None) -> None:
    loss, other = {"1": [0.5], "2": [ours]}, {"1": [0.5], "2": [others]}
    finding = found(tmp_path, job(loss=loss), job(loss=other))["loss/policy"]
    both = ", in both" if ours == others else ""
    assert finding.text == f"differs from step 2, in 1 of 2 steps, by what is not finite{both}"
    assert finding.largest == math.inf
    tensors = HASHES | {"model:bias": None}
    finding = found(tmp_path, job(tensors=tensors), job(tensors=tensors))["export"]
    assert finding.text == "1 of 2 tensors differ, the first is model:bias, by what is not finite"
    assert finding.largest == math.inf


def test_what_only_one_has_is_no_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = str(written(tmp_path / "both", {"a": job(), "b": job()}))
    one = str(written(tmp_path / "one", {"a": job()}))
    for places, which in (((both, one), "first"), ((one, both), "second")):
        assert main(["compare", *places, "--tolerance", "1"]) == 1
        assert f"only in the {which} one" in capsys.readouterr().out
    fewer = job(loss={"1": [0.5]}, completion=TEXTS | {"1": ["ab"]}, tensors={"model:weight": "1f"})
    findings = found(tmp_path, job(), fewer | {"series": fewer["series"] | {"eval/loss": LOSSES}})
    assert findings["loss/policy"].text == "differs from step 2, in 1 of 2 steps, by the number of values, 1 and 0"
    assert "the number of values, 2 and 1" in findings["samples/completion"].text
    assert findings["eval/loss"].text == "only in the second one"
    assert findings["export"].largest == math.inf
    with pytest.raises(SystemExit, match="must be a recording"):
        main(["compare", both, str(tmp_path)])


def test_tensors_are_compared_by_the_files_where_these_are_there(tmp_path: Path) -> None:
    hashes = []
    for name, value in (("one", 2.0), ("other", 2.5)):
        export = tmp_path / name / "runs" / "a" / "export"
        export.mkdir(parents=True)
        save_file({"weight": np.array([1, -4, value], np.float32)}, export / "model.safetensors")
        hashes.append(kept(export.parent)["tensors"])
    finding = found(tmp_path, job(tensors=hashes[0]), job(tensors=hashes[1]))["export"]
    assert finding.largest == pytest.approx(0.125)
    assert finding.text.endswith("the first is model:weight, at most by 1.2e-01 of a tensor's largest value")


def test_what_is_kept_of_a_run(tmp_path: Path) -> None:
    metrics = [{"step": 0, "eval/loss": 2.0}, {"step": 1, "loss/policy": None, "grad_norm": 1, "time/step": 3.0}]
    rows = [("b", 1.0), ("a", 0.5)]
    samples = [{"step": 1, "prompt": "p", "completion": text, "reward": reward, "version": 0} for text, reward in rows]
    for name, lines in (("metrics", metrics), ("samples", samples)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert kept(tmp_path)["series"] == {
        "eval/loss": {"0": [2.0]},
        "loss/policy": {"1": [None]},
        "grad_norm": {"1": [1.0]},
        "samples/prompt": {"1": ["p", "p"]},
        "samples/completion": {"1": ["a", "b"]},
        "samples/reward": {"1": [0.5, 1.0]},
    }


def test_relative_difference_is_a_share_of_the_larger_value() -> None:
    assert relative_difference(0.0, 0.0) == relative_difference("a", "a") == 0
    assert relative_difference(-1.0, 1.0) == 2
    assert relative_difference(0.0, 1e-9) == 1
    assert relative_difference("a", 1.0) == math.inf
