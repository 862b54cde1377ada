"""The display where the output is no terminal: few lines, no control codes, nothing swallowed as markup."""

import io

from rich.console import Console

from launch.display import Display


def shown(terminal: bool, steps: int = 50) -> str:
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=terminal, width=200, highlight=False))
    display.start("grpo first", steps + 5)
    display.phase("waiting for resources", "missing 1 CPU of 2")
    for step in range(1, steps + 1):
        for phase in ("rollout", "reward", "update"):
            display.phase(phase)
        evaluation = {"eval/reward_mean": 0.25} if step == 1 else {}
        display.step(step, {"reward/mean": step / 100, "tokens_per_second": 1234.5, "loss/policy": 0.1, **evaluation})
    display.samples(
        [
            {"prompt": "sort:\n[red]ba", "completion": "a" * 500, "reward": 0.5, "version": 3},
            {"prompt": "x\x1b[2J", "completion": "", "reward": None, "version": 3},
        ]
    )
    display.warning("policy/kl is 0.6 [bold]")
    display.close()
    return output.getvalue()


def test_plain_output_is_short_and_complete() -> None:
    text = shown(terminal=False)
    lines = text.splitlines()
    assert lines[:2] == ["grpo first: 55 steps", "waiting for resources: missing 1 CPU of 2 ..."]
    reported = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in reported] == ["1/55", "50/55"]  # the first, and the last one at the end
    assert "reward 0.500  tokens/s 1,23" in reported[-1]
    assert "eval/reward_mean 0.250" in reported[-1]
    assert "loss" not in reported[-1]
    assert "warning: policy/kl is 0.6 [bold]" in lines
    assert "\x1b" not in text
    assert "\r" not in text


def test_samples_are_one_line_each_and_not_markup() -> None:
    text = shown(terminal=False)
    assert "sort:\\n[red]ba" in text
    assert "a" * 57 + "..." in text
    assert "a" * 58 not in text
    assert "x\\x1b[2J" in text
    assert "failed" in text


def test_a_terminal_gets_a_panel_that_goes_away() -> None:
    text = shown(terminal=True)
    assert "ETA" in text
    assert "\x1b[?25l" in text  # cursor hidden while the panel lives, and back in the end
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    assert text.rstrip().splitlines()[-1].startswith("step 50/55") or "step 50/55" in text.splitlines()[-1]


def test_imitation_shows_its_loss() -> None:
    output = io.StringIO()
    display = Display(Console(file=output, width=200, highlight=False))
    display.start("sft", 2)
    display.step(1, {"loss/sft": 1.25, "grad_norm": 0.5})
    display.close()
    assert "step 1/2  loss/sft 1.25  grad norm 0.5" in output.getvalue()


def test_many_evaluation_metrics_are_cut_to_their_headlines() -> None:
    """Those of search have some; of metrics without any, all are shown."""
    stream = io.StringIO()
    display = Display(Console(file=stream, width=500, force_terminal=False))
    display.start("title", 2, 0)
    display.step(1, {f"eval/{name}": 0.5 for name in ("ndcg@10", "mrr@10", "map@100", "recall@1", "recall@5")})
    display.close()
    assert "eval/ndcg@10" in stream.getvalue() and "eval/mrr@10" not in stream.getvalue()
    stream = io.StringIO()
    display = Display(Console(file=stream, width=500, force_terminal=False))
    display.start("title", 2, 0)
    display.step(1, {f"eval/reward/{name}": 0.5 for name in ("mean", "std", "exact_match", "a", "b")})
    display.close()
    assert "eval/reward/exact_match" in stream.getvalue()
