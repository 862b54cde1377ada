"""What is seen of a run: on a terminal, whole lines of whole figures and a history; elsewhere, few plain lines."""

import io
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from launch.config import validate
from launch.screen.display import Display
from launch.screen.opening import opening_lines
from launch.screen.shown import fitted, flowed, visible

ROOT = Path(__file__).parent.parent
METRICS = {
    "reward/mean": 0.61,
    "policy/kl": 0.0123,
    "grad_norm": 1.5,
    "policy/entropy": 0.721,
    "tokens_per_second": 12345.6,
    "time/step": 1.25,
    "loss/policy": 0.1,
}
LONG = "policy needs 8 bundles with 4 CPU + 1 GPU, each on one node, free now are room for 3 of them, " * 4


def screen(terminal: bool, width: int = 80, **options: Any) -> tuple[io.StringIO, Display]:
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=terminal, width=width, height=24, highlight=False, soft_wrap=True, **options
    )
    return output, Display(console)


def shown(terminal: bool, steps: int = 50, width: int = 80) -> str:
    output, display = screen(terminal, width)
    display.open(["GRPO, 55 steps:  model", "data: rows.jsonl"])
    display.phase("waiting for resources", "missing 1 CPU of 2")
    display.note("configuration checked")
    display.start("grpo first", steps + 5)
    for step in range(1, steps + 1):
        for phase in ("rollout", "reward", "update"):
            display.phase(phase)
        evaluation = {"eval/reward/mean": 0.25} if step == 20 else {}
        display.step(step, METRICS | {"reward/mean": step / 100} | evaluation)
    display.samples(
        [
            {"prompt": "sort:\n[red]ba", "completion": "a" * 500, "reward": 0.5, "advantage": -0.25},
            {"prompt": "x\x1b[2J", "completion": "\u202e答案", "reward": None},
        ]
    )
    display.warning("policy/kl is 0.6 [bold]")
    display.close()
    return output.getvalue()


def test_plain_output_is_short_and_complete() -> None:
    text = shown(terminal=False)
    lines = text.splitlines()
    assert lines[:4] == ["GRPO, 55 steps:  model", "data: rows.jsonl", "configuration checked", "grpo first: 55 steps"]
    reported = [line for line in lines if line.startswith("step ")]
    # The first, the evaluation, and the last one at the end.
    assert [line.split()[1] for line in reported] == ["1/55", "20/55", "50/55"]
    assert "reward 0.500  KL 0.0123" in reported[-1] and "tokens/s 12,346" in reported[-1]
    assert "eval/reward/mean 0.250" in reported[1] and "eval" not in reported[2]
    assert "loss" not in reported[-1]
    assert "warning: policy/kl is 0.6 [bold]" in lines
    assert "\x1b" not in text and "\r" not in text


def test_samples_are_one_line_each_and_text_of_any_script() -> None:
    text = shown(terminal=False)
    assert "reward 0.5    advantage -0.25   sort:⏎[red]ba -> " + "a" * 57 + "...\n" in text
    assert "failed         x\\x1b[2J -> \\u202e答案\n" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_panel_fits_and_cuts_no_value(width: int) -> None:
    _, display = screen(True, width)
    display.start("GRPO", 300)
    display.phase("waiting for resources", LONG)
    everything = METRICS | {f"eval/reward/{name}": 0.123456 for name in ("mean", "exact_match", "answer", "format")}
    display.step(1, everything)
    display.phase("waiting for resources", LONG)
    lines = [line.plain for line in display.panel_lines(width - 1, 24)]
    display.close()
    assert all(cell_len(line) <= width - 1 for line in lines)
    text = "\n".join(lines)
    assert "1/300" in text and "elapsed 0:0" in text and "waiting for resources: policy needs" in text
    if width >= 80:
        for figure in ("reward 0.610", "KL 0.0123", "tokens/s 12,346", "s/step 1.25", "eval/reward/exact_match 0.123"):
            assert any(figure in line for line in lines)
    names = ("reward", "KL", "grad norm", "entropy", "tokens/s", "s/step", r"eval/reward/\w+")
    for line in lines[-4:]:
        # Whatever is shown has its value behind it.
        assert re.fullmatch(rf"(\s*({'|'.join(names)}) [0-9.,]+)+", line) or ("waiting" in text and "needs" in text)


def test_a_terminal_has_a_history_and_gets_its_cursor_back() -> None:
    text = shown(terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    kept = [line.split()[1] for line in plain.splitlines() if line.startswith("step ")]
    # One for about every tenth part, one for the evaluation, one for the last step.
    assert kept == ["6/55", "12/55", "18/55", "20/55", "26/55", "32/55", "38/55", "44/55", "50/55"]
    assert max(cell_len(line) for line in plain.splitlines() if line.startswith("step ")) < 80
    assert "\x1b[?25l" in text  # cursor hidden while the panel lives, and back in the end
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_time_is_shared_out_without_a_rest() -> None:
    _, display = screen(False)
    display.phase("starting Ray")
    time.sleep(0.02)
    display.phase("loading model")
    display.start("SFT", 2)
    display.phase("update")
    time.sleep(0.02)
    spent = display.time_spent()
    assert spent["start", "starting Ray"] >= 0.02 and spent["steps", "update"] >= 0.02
    assert sum(spent.values()) == pytest.approx(display.elapsed_s, abs=0.02)


def test_how_far_a_phase_is_comes_with_its_time() -> None:
    _, display = screen(True)
    display.start("GRPO", 3)
    display.phase("evaluate")
    display.progress(128, 256, "responses")
    assert any("first evaluation: 128 of 256 responses (0 s)" in line.plain for line in display.panel_lines(79, 24))
    display.phase("rollout")
    display.phase("sync")
    assert any("sync (0 s)" in line.plain for line in display.panel_lines(79, 24)), "no longer warming up"
    display.close()


def test_what_a_process_has_done_is_told_beside_the_phase() -> None:
    _, display = screen(True)
    display.phase("loading models")
    display.within("policy[1] 120 of 290 tensors\x1b")
    display.progress(0, 2, "policy ranks")
    lines = [line.plain[2:].partition(" (")[0] for line in display.panel_lines(79, 24)]
    assert "loading models: 0 of 2 policy ranks, policy[1] 120 of 290 tensors\\x1b" in lines
    display.within("")
    assert "tensors" not in "".join(line.plain for line in display.panel_lines(79, 24))
    display.within("policy[1] 290 of 290 tensors")
    display.phase("exporting")
    assert "tensors" not in "".join(line.plain for line in display.panel_lines(79, 24)), "of the phase before"
    display.close()


def test_where_there_is_no_panel_progress_has_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half a minute one, which says how far it has come; a phase of a run has a line when it begins."""
    now = 0.0
    monkeypatch.setattr("launch.screen.display.time.monotonic", lambda: now)
    output, display = screen(False, 200)
    display.phase("loading models")
    for done in range(1, 100):
        now += 1
        display.within(f"policy[0] {done} of 99 tensors")
        display.progress(0, 1, "policy ranks")
    display.close()
    assert [line.partition("  ")[0] for line in output.getvalue().splitlines()] == [
        "loading models ...",
        *(f"loading models: 0 of 1 policy ranks, policy[0] {at} of 99 tensors ({at} s)" for at in (30, 60, 90)),
    ]


def test_a_verb_that_is_done_soon_says_nothing_of_its_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("launch.screen.display.time.monotonic", lambda: now)
    output = io.StringIO()
    console = Console(file=output, force_terminal=False, width=200, soft_wrap=True)
    display = Display(console, plain_every_s=30.0)
    for seconds in range(29):
        now = float(seconds)
        display.phase("encoding" if seconds < 10 else "mining")
        display.progress(seconds, 60, "queries")
    assert output.getvalue() == ""
    now = 31.0
    display.progress(31, 60, "queries")
    assert output.getvalue() == "mining: 31 of 60 queries (21 s)  elapsed 0:31\n"
    display.close()


def test_imitation_shows_its_loss() -> None:
    output, display = screen(False, 200)
    display.start("sft", 2)
    display.step(1, {"loss/sft": 1.25, "grad_norm": 0.5})
    display.close()
    assert "step 1/2  loss/sft 1.25  grad norm 0.5" in output.getvalue()


def test_many_evaluation_metrics_are_cut_to_their_headlines() -> None:
    """Those of search have some; of metrics without any, all are shown."""
    output, display = screen(False, 500)
    display.start("title", 2, 0)
    display.step(1, {f"eval/{name}": 0.5 for name in ("ndcg@10", "mrr@10", "map@100", "recall@1", "recall@5")})
    display.close()
    assert "eval/ndcg@10" in output.getvalue() and "eval/mrr@10" not in output.getvalue()
    output, display = screen(False, 500)
    display.start("title", 2, 0)
    display.step(1, {f"eval/reward/{name}": 0.5 for name in ("exact_match", "mean", "std", "a", "b")})
    display.close()
    assert (
        "eval/reward/mean 0.500  eval/reward/a 0.500  eval/reward/b 0.500  eval/reward/exact_match" in output.getvalue()
    )


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb\r\nc\td", "a⏎b⏎c\\td"),
        ("答案 äß שלום", "答案 äß שלום"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202eevil\u2066\ufeff", "\\u202eevil\\u2066\\ufeff"),
        ("\udc80", "\\udc80"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("全\u3000角", "全\u3000角"),
    ],
)
def test_text_is_shown_as_text_and_nothing_acts_on_the_terminal(text: str, seen: str) -> None:
    assert visible(text) == seen
    assert visible("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_width_is_measured_in_cells() -> None:
    for text, cells in itertools.product(("答案答案答案", "abcdef", "", "a答b案"), range(9)):
        assert cell_len(fitted(text, cells)) <= cells
    assert fitted("答案答案答案", 8) == "答案..."
    assert fitted("abcdefgh", 8) == "abcdefgh"
    assert flowed(["ab", "cd", "efg"], 6) == ["ab  cd", "  efg"]


def test_the_first_words_say_what_where_and_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 7)
    settings: dict[str, Any] = {
        "algorithm": {"name": "sft", "epochs": 2},
        "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 1, "alphabet": "abäß答"}},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "cluster": {"cpus": 3, "gpus": 0},
        "run": {"output": str(tmp_path), "name": "first"},
    }
    config = validate(settings)
    from actors.models.tokenizer import tokenizer_for
    from launch.screen.opening import hf_config
    from launch.sizes.estimate import counted_parameters

    assert config.model.init is not None
    values = hf_config(config.model.init, "fp32", len(tokenizer_for(config.model)), 0, 0)
    first, second = opening_lines(config)
    assert first == f"SFT, 2 epochs:  new qwen2 of {counted_parameters(values):,} parameters"
    rows = f"data: {tmp_path}/rows.jsonl (7 rows)"
    assert second == f"{rows}  devices: 3 CPUs, no GPU  into: {tmp_path}/first"
    for content in ("[]", "{", '{"hidden_size": "x", "model_type": 3}', ""):
        (tmp_path / "config.json").write_text(content)
        broken = validate(settings | {"model": {"path": str(tmp_path)}})
        assert opening_lines(broken)[0].startswith(f"SFT, 2 epochs:  {tmp_path}")


PROGRAM = """
import sys, time
from launch.screen.stdout import show_what_acts
show_what_acts()
from launch.screen.display import Display
with Display() as display:
    display.open(["first words"])
    for step in range(1, 2000):
        display.note("答案 " + "x" * 100)
    print("the end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("variables", "seen"),
    [({"PYTHONIOENCODING": "ascii"}, "\\u7b54"), ({"LANG": "C", "LC_ALL": "C"}, "答案"), ({"TERM": "dumb"}, "答案")],
)
def test_a_terminal_without_letters_gets_escapes(variables: dict[str, str], seen: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, timeout=60, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "the end\n")
    assert seen in done.stdout


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -c '{PROGRAM}' | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "first words\n")
    assert done.stderr == "warning: standard output was closed; the run goes on\nthe end\n"
