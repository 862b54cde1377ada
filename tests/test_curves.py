"""curves.png is drawn from whatever a run wrote, also from its gaps."""

import json
import time
from pathlib import Path

import pytest
from matplotlib.image import imread

from actors.config import UserError
from launch.tracking import redraw
from launch.tracking.curves import draw_curves, fault_steps, read_metrics
from launch.tracking.events import Events, Fault
from launch.tracking.redraw import CurveDrawer, curves_of

GRPO = {
    "reward/mean": 0.5,
    "policy/entropy": 1.0,
    "rollout/response_tokens_mean": 5.0,
    "rollout/truncated_fraction": 0.0,
    "reward/zero_variance_fraction": 0.4,
    "mismatch/kl": 1e-13,
    "learning_rate": 1e-4,
}
SFT = {"loss/nll": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3}
TIMES = {"time/update": 0.5, "time/data": 1e-5, "time/step": 0.6}


def write(directory: Path, rows: list[dict]) -> None:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("metrics", [GRPO, SFT], ids=["grpo", "sft"])
@pytest.mark.parametrize("steps", [1, 3])
def test_drawn_for_few_steps_with_gaps_and_nothing_to_show(tmp_path: Path, metrics: dict, steps: int) -> None:
    rows: list[dict] = [{"step": 0, "eval/reward/mean": 0.1, "time/step": 1.0}]
    rows += [{"step": step, **metrics, **TIMES} for step in range(1, steps + 1)]
    rows[-1] |= {"mismatch/kl": 0.0, "policy/entropy": None, "eval/loss": 1.5}
    write(tmp_path, rows)
    assert draw_curves(tmp_path) == tmp_path / "curves.png"
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    # reward, entropy, length, shares, learning rate, time; loss, evaluation, gradient norm, learning rate, time
    panels = {"grpo": 6, "sft": 5}["grpo" if "reward/mean" in metrics else "sft"]
    assert (width, height) == (1320, 360 * -(-panels // 2))


def test_a_run_without_steps_has_no_curves(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 0, "eval/reward/mean": 0.1}])
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_a_step_that_names_what_it_left_out_is_a_step(tmp_path: Path) -> None:
    """As the tracker writes it: the only column that holds no number."""
    write(tmp_path, [{"step": 1, **SFT, "left_out": {"failed": ["data row 17"]}}])
    assert read_metrics(tmp_path) == [{"step": 1, **SFT}]
    write(tmp_path, [{"step": 1, **SFT, "left_in": {}}])
    with pytest.raises(ValueError, match="line 1: 'left_in' must be a number or null"):
        read_metrics(tmp_path)


def test_faults_are_thin_lines_at_their_steps(tmp_path: Path) -> None:
    """Where events tell of any, in the picture of `tandem curves` too; of steps that are not there yet, none."""
    write(tmp_path, [{"step": step, **SFT, **TIMES} for step in range(1, 9)])

    def red() -> int:
        """Columns of the picture with a vertical line in red through most of a panel."""
        path = draw_curves(tmp_path)
        assert path
        pixels = imread(path)
        first, second, third = (pixels[..., channel] for channel in range(3))
        marked = (first > 0.6) & (second < 0.6) & (abs(second - third) < 0.1)
        return int((marked[:360].sum(axis=0) > 150).sum())

    assert red() == 0
    events = Events(tmp_path)
    for step in (0, 3, 3, 6, 9):
        events.step = step
        events.recovered(events.noticed(Fault(who=f"at {step}", what="died", noticed_by="exit")), "restarted")
    assert fault_steps(tmp_path, read_metrics(tmp_path)) == [0, 3, 6]
    columns = red()
    assert 6 <= columns <= 12, "three lines in each of the two panels beside each other, of a pixel or two"


def panels_of(rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    titles: list[str] = []
    monkeypatch.setattr("launch.tracking.curves._lines", lambda title, metrics, log: titles.append(title))
    from launch.tracking.curves import _panels

    _panels({name for row in rows for name in row}, rows)
    return titles


def test_a_mismatch_that_is_rounding_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": 1, **GRPO}, {"step": 2, **GRPO}]
    titles = panels_of(rows, monkeypatch)
    assert "learning rate" in titles and "share of responses cut, and of groups that teach nothing" in titles
    assert "mismatch of trainer and sampler (KL)" not in titles
    rows[0]["mismatch/kl"] = 1e-4
    assert "mismatch of trainer and sampler (KL)" in panels_of(rows, monkeypatch)


def test_importance_weights_are_drawn_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    title = "importance weights (1 %, median, 99 %)"
    assert title not in panels_of([{"step": 1, **GRPO}], monkeypatch)
    assert title in panels_of([{"step": 1, **GRPO, "policy/importance_weight_p99": 1.5}], monkeypatch)


def test_drawn_while_a_run_goes_on_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a line is being written."""
    monkeypatch.setattr(redraw, "FIRST_S", 0.0)
    write(tmp_path, [{"step": step, **SFT} for step in (1, 2)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    warned: list[str] = []
    drawer = CurveDrawer(tmp_path, warned.append)
    began = time.monotonic()
    drawer.step()
    assert time.monotonic() - began < 5
    deadline = time.monotonic() + 60
    while not (tmp_path / "curves.png").exists() and time.monotonic() < deadline:
        drawer.step()
        time.sleep(0.05)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert warned == []
    drawer.stop()


def test_a_picture_that_fails_is_one_warning_and_one_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    warned: list[str] = []
    drawer = CurveDrawer(tmp_path, warned.append)
    assert drawer.finish() is None and drawer.finish() is None
    (line,) = warned
    assert (
        line == "curves.png was not drawn, ValueError: line 1 must be a mapping with the number of its step, and is not"
    )
    write(tmp_path, [{"step": 1, **SFT}])
    monkeypatch.setattr(redraw, "DEADLINE_S", 0.01)
    late = CurveDrawer(tmp_path, warned.append)
    assert late.finish() is None
    assert warned[1:] == ["curves.png was not drawn, not done within 0.01 s"]


def test_the_verb_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    for content, rule in (
        (None, "must be the directory of a run, with metrics.jsonl"),
        ([{"step": 0, "eval/loss": 1.0}], "must have finished a step, and there is none yet"),
    ):
        if content is not None:
            write(run, content)
        with pytest.raises(UserError) as caught:
            curves_of(str(run))
        assert caught.value.problems == (f"RUN: {rule}, got {run}",)
    step = "must be a mapping with the number of its step, and is not"
    for content, rule in {
        b"no JSON\n": "line 1 must be JSON, and is not",
        b'{"step": 1}\n\n': "line 2 must be JSON, and is not",
        b'{"step": 1}\n\xff\n': "line 2 must be JSON, and is not",
        b"[1]\n": f"line 1 {step}",
        b'{"step": 1}\n{"loss": 1}\n': f"line 2 {step}",
        b'{"step": "1"}\n': f"line 1 {step}",
        b'{"step": 1, "loss": "low"}\n': "line 1: 'loss' must be a number or null, and is not",
    }.items():
        (run / "metrics.jsonl").write_bytes(content)
        with pytest.raises(UserError) as caught:
            curves_of(str(run))
        assert caught.value.problems == (
            f"RUN: its curves cannot be drawn ({run / 'metrics.jsonl'}: {rule}), got {run}",
        )
    with pytest.raises(UserError, match=r"did you mean .*/first"):
        curves_of(str(tmp_path / "frst"))
    write(run, [{"step": 1, **SFT}])
    assert curves_of(str(run)) == run / "curves.png"
