"""GRPO through the command line on the real stack: it learns, resumes bit for bit, fails with a cause, cleans up.

Few runs, each read by several tests. A model that half knows how to reverse strings is the start of most of them.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.alerts.record import read_alerts
from tests.outside import (
    answer,
    driver_of,
    join_without_token,
    open_server,
    outside_address,
    paused,
    reachable_ports,
)

ROOT = Path(__file__).resolve().parent.parent
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
Start = Callable[..., Any]

CONTRACT = {
    *(
        "step",
        "loss/policy",
        "grad_norm",
        "mismatch/logprob_abs_mean",
        "mismatch/kl",
        "staleness/mean",
        "staleness/max",
    ),
    *("reward/mean", "reward/std", "rollout/truncated_fraction", "rollout/failed", "time/rollout", "time/update"),
    *("time/sync", "time/step", "tokens/generated", "tokens/trained", "tokens/padding_fraction"),
    *("weights/version", "weights/sync_seconds", "bubble/trainer_wait_seconds", "bubble/sync_tokens_lost"),
    *("bubble/engine_idle_fraction", "bubble/engine_underfilled_fraction", "bubble/engine_paused_fraction"),
}
"""Keys of every training step in metrics.jsonl that users' programs may rely on."""


def config(model: Path, data: dict[str, Any], **algorithm: Any) -> dict[str, Any]:
    """A small GRPO run of the warmed model."""
    return {
        "algorithm": {"name": "grpo", "prompts_per_step": 8, "samples_per_prompt": 4} | algorithm,
        "model": {"path": str(model)},
        "data": data,
        "policy": {"optimizer": {"lr": 1e-3}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "reward": {"functions": ["exact_match"]},
    }


@pytest.fixture(scope="module")
def uninterrupted(tandem: Start, warm_model: Path, reverse: dict[str, Any]) -> Any:
    """A run from start to end, 30 steps of 128 samples, that somebody else on the network tries to use meanwhile."""
    job = tandem(_learning(warm_model, reverse), alone=True)
    job.wait_until(lambda: 1 in job.steps(), "first step")
    # /tmp/tandem-x/ray/session_y/logs
    private = Path(os.readlink(job.directory / "logs/ray")).parents[2]
    vars(job)["seen"] = seen = SimpleNamespace(directory=private, mode=private.stat().st_mode & 0o777)
    driver, address = driver_of(job.process.pid), outside_address()
    with paused(driver, job.process.pid):  # The run goes on when all is tried.
        own = reachable_ports([driver])
        others = {port: name for port, name in reachable_ports(job.pids()).items() if port not in own}
        seen.answers = {f"{name} at port {port}": answer(address, port) for port, name in others.items()}
        [gcs] = [port for port, name in others.items() if "gcs_server" in name]
        seen.joined = join_without_token(f"{address}:{gcs}")
    for port in own:
        seen.answers[f"driver at port {port}"] = answer(address, port)
    assert job.wait() == 0, job.text
    return job


def test_nobody_else_can_use_what_a_run_starts(uninterrupted: Any, environment: dict[str, str]) -> None:
    """Every port that is reachable from outside wants the run's token: Ray's; rendezvous and gloo are on loopback."""
    seen = uninterrupted.seen
    assert len(seen.answers) >= 6
    assert all(any(each in name for name in seen.answers) for each in ("PolicyWorker", "driver"))
    assert set(seen.answers.values()) == {"refused"}, seen.answers
    assert "InvalidAuthToken" in seen.joined and "joined" not in seen.joined, seen.joined
    assert not (Path(environment["HOME"]) / ".ray/auth_token").exists(), "no token outlives its run"
    assert (seen.mode, seen.directory.exists()) == (0o700, False)
    logs = uninterrupted.directory / "logs/ray"
    assert not logs.is_symlink() and list(logs.glob("worker-*")), "the session's logs stay with the run"


def test_an_open_port_is_seen() -> None:
    """What the test above would say of a rendezvous store."""
    server, port = open_server()
    assert port in reachable_ports([os.getpid()])
    assert answer(outside_address(), port).startswith("asks for no token")
    server.close()


def _learning(model: Path, reverse: dict[str, Any]) -> dict[str, Any]:
    sizes = {"prompts_per_step": 16, "samples_per_prompt": 8, "eval_every": 10, "eval_samples_per_prompt": 4}
    return config(model, reverse, steps=30, **sizes) | {"tracking": {"eval_samples": None}}


def test_reward_rises_on_held_out_problems(uninterrupted: Any) -> None:
    """Reversing strings never seen in training, sampled at temperature 1: from less than 0.65 up by 0.2 or more.

    Measured: from 0.41 to 0.82 in 30 steps.
    """
    evaluations = [line["eval/reward/mean"] for line in uninterrupted.metrics() if "eval/reward/mean" in line]
    assert len(evaluations) == 4, "before the first step and after steps 10, 20 and 30"
    assert evaluations[0] < 0.65
    assert evaluations[-1] > evaluations[0] + 0.2, evaluations


def test_a_run_leaves_what_it_promises(uninterrupted: Any) -> None:
    """Metrics, samples, resolved config, checkpoint and export are where they should be; no process is left."""
    directory = uninterrupted.directory
    steps = uninterrupted.steps()
    assert sorted(steps) == list(range(31))
    assert steps[1].keys() >= CONTRACT and uninterrupted.unknown_metrics() == []
    assert {alert["rule"] for alert in read_alerts(directory)} <= {"health"}
    assert max(steps[step]["mismatch/kl"] for step in range(1, 31)) <= 1e-6
    assert max(steps[step]["weights/canary_difference"] for step in range(1, 31)) < 1e-4
    assert all(steps[step]["staleness/max"] == 0 for step in range(1, 31))
    assert {(line["time/lost"], line["time/effective"]) for line in steps.values()} == {(0.0, 1.0)}
    now = json.loads((directory / "logs" / "now.json").read_text())
    assert (now["step"], now["phase"], now["attempt"]) == (30, "end", 1) and now["elapsed_s"] > 0
    assert not (directory / "events.jsonl").exists() and "effective training time" not in uninterrupted.text
    assert json.loads((directory / "config.json").read_text())["algorithm"]["steps"] == 30
    assert (directory / "checkpoints" / "latest").read_text() == "step-30"
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert {sample["reward"] for sample in samples} == {0.0, 1.0}
    assert {sample["version"] for sample in samples} == set(range(30))
    assert all((sample["completion"] == sample["prompt"][::-1]) == sample["reward"] for sample in samples)
    files = [path for path in directory.rglob("*") if path.is_file()]
    mode = (directory / "config.json").stat().st_mode
    assert [path for path in files if path.stat().st_mode & mode != mode] == [], "as readable as what Python opens"
    _assert_evaluations_are_kept(directory, steps)
    _assert_groups_and_tokens_are_kept(directory, samples)
    assert all(sample["answer"] == sample["prompt"][::-1] for sample in samples), "the row's columns"
    for step in range(1, 31):
        found = {sample["reward"] for sample in samples if sample["step"] == step}
        assert found == {0.0, 1.0} if 0 < steps[step]["reward/mean"] < 1 else len(found) == 1, "right and wrong ones"
    assert all((sample["advantage"] > 0) <= (sample["reward"] == 1) for sample in samples)
    assert any(sample["advantage"] < 0 for sample in samples)
    text = uninterrupted.text
    assert text.index("data: algorithms.tasks:reverse") < text.index("starting Ray ...") < text.index("GRPO: 30 steps")
    screen = text[text.index("done: all 30 steps") :]
    assert re.search(r"step 0 +step 30 +best\neval/reward/mean +0\.\d+ +0\.\d+ +0\.\d+ at step [123]0\n", screen)
    for line in ("time: ", f"curves:  {directory}/curves.png", f"next:    tandem chat {directory}  # talk to it"):
        assert f"\n{line}" in screen
    assert uninterrupted.left_behind() == []


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _assert_groups_and_tokens_are_kept(directory: Path, samples: list[dict[str, Any]]) -> None:
    """Of each step all samples of one prompt, and every token of the best of them, as the engines sampled it."""
    by_place = {(row["step"], row["group"], row["sample"]): row for row in samples}
    assert len(by_place) == len(samples), "each is written once"
    assert len({(*place[:2], row["prompt"]) for place, row in by_place.items()}) == len(
        {place[:2] for place in by_place}
    )
    tokens = _lines(directory / "tokens.jsonl")
    assert [row["step"] for row in tokens] == list(range(1, 31))
    for told in tokens:
        step, number = told["step"], told["group"]
        group = [by_place[step, number, index] for index in range(8)]  # all of them are there
        own = group[told["sample"]]
        assert own["reward"] == max(row["reward"] for row in group)
        ended = [] if own["status"] == "truncated" else ["<|end|>"]
        assert told["pieces"] == [*own["completion"], *ended], "a token of this model is a character"
        assert len(told["pieces"]) == own["length"] == len(told["logprobs"])
        assert all(-20 < logprob <= 0 for logprob in told["logprobs"])
        assert set(told["versions"]) == {own["version"]} and set(told["sampled"]) == {True}
        assert ("ratio" in told) == bool(own["advantage"]), "the others do not go through the model"
        if "ratio" in told:
            assert told["ratio"] == pytest.approx([1.0] * own["length"], abs=1e-3), "sampled and trained by one version"
            assert len(told["entropy"]) == own["length"] and all(0 <= each < 3 for each in told["entropy"])
    assert sum("ratio" in told for told in tokens) > 25


def _assert_evaluations_are_kept(directory: Path, steps: dict[int, dict[str, Any]]) -> None:
    """pass@k and majority of four responses are those of the completions that are kept: here all of them."""
    kept = [json.loads(line) for line in (directory / "eval_samples.jsonl").read_text().splitlines()]
    for step in (0, 10, 20, 30):
        rows = [row for row in kept if row["step"] == step]
        groups = [rows[start : start + 4] for start in range(0, len(rows), 4)]
        assert len(groups) == 64 and all(len({row["prompt"] for row in group}) == 1 for group in groups)
        assert [(row["group"], row["sample"]) for row in rows] == [(n, i) for n in range(64) for i in range(4)]
        assert all((row["completion"] == row["columns"]["answer"]) == row["solved"] == row["reward"] for row in rows)
        solved = [sum(row["solved"] for row in group) for group in groups]
        assert steps[step]["eval/pass@1"] == pytest.approx(steps[step]["eval/reward/mean"]) == sum(solved) / 256
        assert steps[step]["eval/pass@4"] == pytest.approx(sum(map(bool, solved)) / 64)
        assert steps[step]["eval/pass@1"] < steps[step]["eval/pass@2"] < steps[step]["eval/pass@4"]
        voted = [Counter(row["completion"].strip() for row in group).most_common(1)[0][0] for group in groups]
        right = [text == group[0]["columns"]["answer"] for text, group in zip(voted, groups, strict=True)]
        assert steps[step]["eval/majority"] == pytest.approx(sum(right) / 64)


def test_the_exported_model_answers(uninterrupted: Any) -> None:
    """The export loads with AutoModelForCausalLM and reverses strings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(uninterrupted.directory / "export")
    tokenizer = AutoTokenizer.from_pretrained(uninterrupted.directory / "export")
    words = ["abcd", "hgfe", "bead", "face", "cage", "deaf", "head", "fade"]
    right = 0
    for word in words:
        messages = [{"role": "user", "content": word}]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        answer = model.generate(**tokens, max_new_tokens=6, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        right += tokenizer.decode(answer, skip_special_tokens=True) == word[::-1]
    assert right >= len(words) // 2


def test_killed_and_resumed_runs_give_the_same_numbers(
    uninterrupted: Any, tandem: Start, warm_model: Path, reverse: dict[str, Any]
) -> None:
    """A run that is killed, and one that is ended by SIGTERM, goes on from its last checkpoint.

    Every number it writes, times aside, is bit for bit that of the run that was never stopped.
    """
    whole, settings = uninterrupted.steps(), _learning(warm_model, reverse) | {"checkpoint": {"every": 3}}

    first = tandem(settings, alone=True, forked=True)
    first.wait_until(lambda: 4 in first.steps() and _latest(first) >= 3, "fourth step")
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait(30)
    assert first.left_behind() == [], "Ray's processes end with the driver that started them"
    saved, directory = _latest(first), first.directory.parent

    second = tandem(settings, directory=directory, alone=True, forked=True)
    second.wait_until(lambda: saved + 5 in second.steps(), "fifth step after the checkpoint")
    second.process.send_signal(signal.SIGTERM)
    assert second.wait(60) == 130, second.text
    assert second.left_behind() == []
    steps = second.steps()
    assert _latest(second) == max(steps), "SIGTERM lets the step finish, and keeps it"
    assert f"stopped by SIGTERM after step {max(steps)} of 30" in second.text
    assert f"# goes on from step {max(steps)}\n" in second.text
    assert sorted(steps) == list(range(max(steps) + 1)), "each step once, in order, none missing"
    assert _numbers(steps) == _numbers({step: whole[step] for step in steps})
    for name in ("samples.jsonl", "tokens.jsonl"):
        expected = [row for row in _lines(uninterrupted.directory / name) if row["step"] <= max(steps)]
        assert _lines(second.directory / name) == expected, "lines of steps that were made again are cut off"
    passed = [steps[step]["time/elapsed"] for step in sorted(steps)]
    assert passed == sorted(passed) and steps[max(steps)]["time/effective"] == 1.0, "no fault was noted"


def _latest(job: Any) -> int:
    pointer = job.directory / "checkpoints" / "latest"
    return int(pointer.read_text().removeprefix("step-")) if pointer.exists() else 0


def _numbers(steps: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Metrics that do not tell time."""
    timed = re.compile(r"time/|bubble/|tokens_per_second|weights/sync_seconds")
    return {step: {k: v for k, v in line.items() if not timed.match(k)} for step, line in steps.items()}


def test_interrupted_while_starting(tandem: Start, warm_model: Path, reverse: dict[str, Any]) -> None:
    """Ctrl-C before the engines are ready ends everything as well."""
    job = tandem(_learning(warm_model, reverse), alone=True, forked=True)
    job.wait_until(lambda: any("RolloutWorker" in name for name in job.processes()), "engine process")
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.wait(60) == 130, job.text
    assert "Traceback" not in job.text
    assert "stopped by you (Ctrl-C) before the first step was done" in job.text
    assert job.left_behind() == []


MY_REWARD = """
import time

def score(completion, prompt, answer):
    if prompt == "aaaa":
        time.sleep(600)
    return 1.0 if completion == answer else 0.25
"""


@pytest.fixture(scope="module")
def own_task(tandem: Start, warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A user's data and reward function, an epoch at learning rate 0; the reward of one training prompt hangs."""
    directory = tmp_path_factory.mktemp("own")
    # 20 rows: an epoch is four steps of five prompts.
    train = ["".join(letters) for letters in islice(permutations("abcdefgh", 4), 0, 19 * 80, 80)]
    train.insert(1, "aaaa")  # no row that the check calls the function with
    for name, prompts in (("train", train), ("held-out", ["abcd", "bcde", "cdef", "defg", "efgh", "fgha", "habc"])):
        rows = [{"prompt": prompt, "answer": prompt[::-1]} for prompt in prompts]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "my_reward.py").write_text(MY_REWARD)
    settings = config(warm_model, {"train": "replaced below"}, epochs=1, eval_every=1, eval_samples_per_prompt=4)
    settings["algorithm"] |= {"best_by": "eval/pass@2", "eval_pass_reward": 0.25}
    job = tandem(
        settings | {"checkpoint": {"every": 1, "keep": 4}, "reward": {"functions": ["exact_match"], "deadline_s": 3}},
        "data.train=train.jsonl",
        "data.eval=held-out.jsonl",
        "reward.functions=[my_reward.py:score]",
        "reward.max_failed_fraction=0.5",
        "algorithm.prompts_per_step=5",
        "policy.optimizer.lr=0",
        directory=directory,
    )
    assert job.wait() == 0, job.text
    return job


def test_own_data_and_reward_run_without_code(own_task: Any) -> None:
    """Rewards are those of the user's function; a sample whose reward hangs is replaced, and counted."""
    samples = [json.loads(line) for line in (own_task.directory / "samples.jsonl").read_text().splitlines()]
    assert {sample["reward"] for sample in samples} <= {0.25, 1.0}
    assert "aaaa" not in {sample["prompt"] for sample in samples}
    steps = own_task.steps()
    assert sum(steps[step]["rollout/failed"] for step in range(1, 5)) == 4, "one group of four samples"
    assert "not scored: my_reward.py:score: no answer within 3 s; prompt 'aaaa'" in own_task.text


def test_the_best_checkpoint_is_the_first_of_equal_ones(own_task: Any) -> None:
    """At learning rate 0, with every response solved; the evaluation before the first step has no checkpoint."""
    assert [line["eval/pass@2"] for line in own_task.metrics()] == [1.0] * 5
    assert (own_task.directory / "checkpoints/best").read_text() == "step-1"
    assert "best by eval/pass@2: step 1" in own_task.text


def test_learning_rate_0_changes_nothing(own_task: Any, warm_model: Path) -> None:
    """Weights keep their checksums, trainer and sampler agree at every step, the reward distribution is constant."""
    from actors.weights.checksum import checksum

    initial = {name: checksum(tensor) for name, tensor in load_file(warm_model / "model.safetensors").items()}
    assert len(initial) > 20
    for step in range(1, 5):
        state = own_task.directory / "checkpoints" / f"step-{step}" / "policy" / "state" / "mp_rank_00_model_states.pt"
        module = torch.load(state, weights_only=False)["module"]
        assert {name: checksum(module[f"model.{name}"]) for name in initial} == initial
    exported = load_file(own_task.directory / "export" / "model.safetensors")
    assert {name: checksum(tensor) for name, tensor in exported.items()} == initial
    steps = own_task.steps()
    assert all(steps[step]["grad_norm"] > 0 for step in range(1, 5)), "there was something to learn"
    assert max(steps[step]["mismatch/kl"] for step in range(1, 5)) <= 1e-6
    evaluations = {(line["eval/reward/mean"], line["eval/reward/std"]) for line in steps.values()}
    assert len(steps) == 5
    assert len(evaluations) == 1
    assert 0.25 < evaluations.pop()[0] < 1


FAILING_REWARD = """
def score(completions, prompts, answer):
    if completions[0] == answer[0]:  # as the check calls it
        return [1.0] * len(completions)
    if prompts[0] == "raises":
        return {"a": 1}[answer[0]]
    if prompts[0] == "is too short":
        return [1.0]
    return [float("nan")] * len(completions)
"""


def test_reward_errors_stop_the_run_with_their_causes(tandem: Start, tmp_path: Path) -> None:
    """An exception, a wrong number of rewards and NaN: each named with function and sample; exit 1, nothing left."""
    rows = [{"prompt": prompt, "answer": "b"} for prompt in ("raises", "is too short", "is not a number")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_reward.py").write_text(FAILING_REWARD)
    settings = config(tmp_path, {"train": "rows.jsonl"}, prompts_per_step=3, samples_per_prompt=2) | {
        "model": {"init": {"hidden_size": 64, "layers": 1, "heads": 2, "max_positions": 64}},
        "reward": {"functions": ["my_reward.py:score"], "max_failed_fraction": 0.8},
    }
    job = tandem(settings, "rollout.max_prompt_tokens=32", directory=tmp_path, alone=True, forked=True)
    assert job.wait() == 1, job.text
    report = job.text[job.text.index("run failed") :]
    assert "6 samples could not be scored in a step of 6" in report
    for cause in ("KeyError: 'b'", "returned 1 values for 2 completions", "returned nan, not a finite number"):
        assert f"my_reward.py:score: {cause}" in report
    for row in rows:
        assert f"prompt '{row['prompt']}'" in report
    assert "Traceback" not in report
    [alert] = read_alerts(job.directory)
    assert (alert["rule"], alert["level"], alert["phase"]) == ("failed", "error", "end")
    assert alert["text"].startswith("the run has failed: ") and "6 samples could not be scored" in alert["text"]
    assert Path(report.rpartition("full log: ")[2].strip()).exists()
    assert job.left_behind() == []


def test_two_ranks_of_zero_3_on_shared_bundles(
    tandem: Start, warm_model: Path, reverse: dict[str, Any], environment: dict[str, str]
) -> None:
    """Sharded parameters are gathered for two engines; two updates a step; rank i and engine i share bundle i.

    Advantages are whitened over both ranks, and the KL to a reference of its own, which follows the policy, is part of
    the loss.
    """
    algorithm = {"samples_per_update": 16, "advantage": "reinforce_pp_baseline", "kl_coef": 0.05}
    settings = config(warm_model, reverse, steps=3, **algorithm)
    overrides = ["policy.ranks=2", "policy.zero_stage=3", "rollout.engines=2", "policy.micro_batch_tokens=64"]
    overrides += ["policy.offload_parameters=true", "policy.optimizer.warmup_ratio=0.3"]
    overrides += ["reference={ranks: 2, zero_stage: 3, offload_parameters: true, sync_every: 2, sync_mix: 0.25}"]
    kept = ["checkpoint.every=1", "checkpoint.keep=3"]
    job = tandem(settings, *overrides, *kept, "cluster.placement=shared")
    assert job.wait() == 0, job.text
    steps = job.steps()
    assert steps[3]["policy/kl"] > 1e-6
    _assert_in_step(steps, 3)
    before, after = (load_file(path / "model.safetensors") for path in (warm_model, job.directory / "export"))
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    # A checkpoint in the middle gives its model, to an export that starts a Ray of its own.
    exported = load_file(_exported(job.directory, 2, environment) / "model.safetensors")
    assert [name for name in after if torch.equal(after[name], exported[name])] == []
    followed = load_file(job.directory / "checkpoints/step-2/reference/weights.safetensors")
    assert followed.keys() == before.keys()
    for name, weight in followed.items():  # after step 2 it has moved towards the policy
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * exported[name], msg=name)
    assert not (job.directory / "reference-sync.safetensors").exists()
    assert {"policy-0.log", "policy-1.log", "rollout-0.log", "rollout-1.log", "reference-0.log"} <= {
        path.name for path in (job.directory / "logs").iterdir()
    }


def _exported(run: Path, step: int, environment: dict[str, str]) -> Path:
    """The model of a checkpoint, by the command line."""
    program = "from tests.preloaded import start_command; start_command()"
    command = [sys.executable, "-c", program, "export", str(run), "--step", str(step)]
    done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / f"export-step-{step}")
    return run / f"export-step-{step}"


def _assert_in_step(steps: dict[int, dict[str, Any]], last: int) -> None:
    """Trainer and engines agree at every step."""
    assert sorted(steps) == list(range(1, last + 1))
    for step in steps.values():
        assert step["mismatch/kl"] <= 1e-6
        assert step["weights/canary_difference"] < 1e-4
        assert step["grad_norm"] > 0


@pytest.mark.skipif(not GSM8K.exists(), reason=f"GSM8K is not at {GSM8K}")
def test_gsm8k_runs(tandem: Start, tmp_path: Path) -> None:
    """Real problems through data, math reward and updates; a second reward gives the untrained model a gradient."""
    (tmp_path / "length.py").write_text("def shortness(completion):\n    return -0.01 * len(completion)\n")
    settings = {
        "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 4, "samples_per_prompt": 4},
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "max_positions": 2048}},
        "data": {"train": str(GSM8K), "limit": 200},
        "rollout": {"max_prompt_tokens": 1200, "max_response_tokens": 64},
        "reward": {"functions": ["math", "length.py:shortness"]},
    }
    job = tandem(settings, directory=tmp_path)
    assert job.wait() == 0, job.text
    steps = job.steps()
    _assert_in_step(steps, 2)
    assert steps[1]["reward/math"] == 0
    assert steps[1]["reward/mean"] == pytest.approx(steps[1]["reward/shortness"])
    samples = [json.loads(line) for line in (job.directory / "samples.jsonl").read_text().splitlines()]
    questions = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()[:200]]
    assert all(sample["prompt"] in questions for sample in samples)
