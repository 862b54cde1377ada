"""curves.png is drawn from whatever a run wrote, also from its gaps."""

import json
from pathlib import Path

import pytest

from launch.curves import draw_curves

GRPO = {"reward/mean": 0.5, "policy/entropy": 1.0, "rollout/response_tokens_mean": 5.0, "mismatch/kl": 1e-9}
SFT = {"loss/nll": 2.0, "grad_norm": 1.0}
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
    panels = {"grpo": 5, "sft": 3}["grpo" if "reward/mean" in metrics else "sft"]
    assert (width, height) == (1320, 360 * -(-panels // 2))


def test_a_run_without_steps_has_no_curves(tmp_path: Path) -> None:
    write(tmp_path, [{"step": 0, "eval/reward/mean": 0.1}])
    assert draw_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()
