"""Reward model, PPO, DPO and LoRA through the command line on the real stack: each learns, chained by directory path.

Few short runs of the warmed model, each read by several tests.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
HH_RLHF = ROOT.parent / "shared" / "data" / "hh_harmless_test.jsonl.gz"
Start = Callable[..., Any]
TASK = {"count": 2000, "eval_count": 64, "length": 4, "letters": "abcdefgh"}
PAIRS = "algorithms.preference_tasks:reverse_preferences"
PPO_METRICS = {
    *("loss/policy", "loss/critic", "grad_norm", "critic/grad_norm", "critic/explained_variance", "critic/values_mean"),
    *("policy/kl", "reward/kl_per_response", "reward/kl_coef", "reward/mean", "reward/exact_match", "policy/entropy"),
    *("time/rollout", "time/score", "time/reference", "time/values", "time/advantages", "time/update", "time/sync"),
    *("tokens/trained", "weights/version", "mismatch/kl"),
}


def offline(model: Path, data: str, **algorithm: Any) -> dict[str, Any]:
    """A job on given rows that starts from the warmed model."""
    return {
        "algorithm": {"samples_per_update": 64, "eval_every": 20} | algorithm,
        "model": {"path": str(model)},
        "data": {"train": data, "eval": data, "arguments": TASK, "max_length": 32},
        "policy": {"optimizer": {"lr": 1e-3}},
        "tracking": {"wandb": False},
    }


def online(model: Path, reverse: dict[str, Any], **algorithm: Any) -> dict[str, Any]:
    """A reinforcement run of the warmed model with reward 1 for the right answer."""
    return {
        "algorithm": {"prompts_per_step": 8, "samples_per_prompt": 4} | algorithm,
        "model": {"path": str(model)},
        "data": reverse,
        "policy": {"optimizer": {"lr": 1e-3}},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "reward": {"functions": ["exact_match"]},
        "tracking": {"wandb": False},
    }


@pytest.fixture(scope="module")
def reward_model(tandem: Start, warm_model: Path) -> Any:
    """A reward model after 60 updates on generated pairs."""
    job = tandem(offline(warm_model, PAIRS, name="reward", steps=60, centering=0.01), "policy.ema_decay=0.5")
    assert job.wait() == 0, job.text
    return job


def test_a_reward_model_learns_and_loads_as_a_plain_classifier(reward_model: Any) -> None:
    """Held-out pairs are told apart; transformers reads the exported directory and prefers right answers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    metrics = reward_model.metrics()
    assert reward_model.unknown_metrics() == []
    assert metrics[-1]["eval/accuracy"] > 0.65
    assert metrics[-1]["loss/reward_model"] < 0.6 < metrics[0]["loss/reward_model"]
    assert 0 <= metrics[-1]["eval/calibration_error"] < 0.3
    directory = reward_model.directory / "export"
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    assert model.config.num_labels == 1

    def scores(answers: dict[str, str]) -> list[float]:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
            )
            for prompt, answer in answers.items()
        ]
        with torch.no_grad():
            # Of different lengths, so that padding is there to be skipped.
            return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0].tolist()

    words = ["abcd", "hgfe", "bead", "face", "cage", "deaf", "head", "fade"]
    right, wrong = scores({word: word[::-1] for word in words}), scores({word: word[:1] for word in words})
    assert sum(r > w for r, w in zip(right, wrong, strict=True)) >= 7


class Mark:
    """Unpickled without care, it makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


def test_resuming_runs_no_code_of_the_checkpoint(
    reward_model: Any, tandem: Start, warm_model: Path, tmp_path: Path
) -> None:
    """A file that names code is refused, even where the manifest has its hash; the same run resumes without it."""
    shutil.copytree(reward_model.directory, tmp_path / "run", ignore=shutil.ignore_patterns("logs", "export"))
    checkpoint = tmp_path / "run/checkpoints/step-60"
    state = checkpoint / "policy/state/mp_rank_00_model_states.pt"
    good, manifest = state.read_bytes(), (checkpoint / "manifest.json").read_text()
    torch.save(torch.load(state) | {"further": Mark(tmp_path / "marker")}, state)
    changed = json.loads(manifest)
    changed["files"][str(state.relative_to(checkpoint))] = state.stat().st_size
    changed["sha256"][str(state.relative_to(checkpoint))] = hashlib.sha256(state.read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(changed))
    settings = offline(warm_model, PAIRS, name="reward", steps=62, centering=0.01)
    refused = tandem(settings, "policy.ema_decay=0.5", directory=tmp_path)
    assert refused.wait() == 2, refused.text
    place = tmp_path / "run/checkpoints/step-60/policy/state/mp_rank_00_model_states.pt"
    expected = f"error: checkpoint.resume: {place} holds more than data: posix.mkdir; to start anew: "
    assert expected in refused.text.splitlines()[-1]
    assert not (tmp_path / "marker").exists()
    state.write_bytes(good)
    (checkpoint / "manifest.json").write_text(manifest)
    resumed = tandem(settings, "policy.ema_decay=0.5", directory=tmp_path)
    assert resumed.wait() == 0, resumed.text
    assert "resuming from step 60" in resumed.text


@pytest.fixture(scope="module")
def ppo_settings(warm_model: Path, reverse: dict[str, Any], reward_model: Any) -> dict[str, Any]:
    """PPO with all five groups and nearly every setting: what is resumed must include all of their state."""
    algorithm = {"name": "ppo", "samples_per_update": 16, "epochs_per_step": 2, "kl_coef": 0.05, "kl_target": 1.0}
    algorithm |= {"kl_horizon": 200, "critic_warmup_steps": 1, "gae_lambda": 0.95, "entropy_coef": 0.001}
    algorithm |= {"missing_eos_penalty": 1.0, "eval_every": 2, "best_by": "eval/reward/exact_match"}
    settings = online(warm_model, reverse, steps=6, **algorithm, dual_clip=3.0)
    reward = {
        "models": [{"path": str(reward_model.directory / "export")}],
        "functions": [{"name": "exact_match", "weight": 0}],
        "normalize": True,
        "clip": 3,
    }
    settings["reference"] = {"sync_every": 3, "sync_mix": 0.5}
    return settings | {"reward": reward, "critic": {"optimizer": {"lr": 1e-3}}, "checkpoint": {"every": 2}}


@pytest.fixture(scope="module")
def ppo(tandem: Start, ppo_settings: dict[str, Any]) -> Any:
    """A PPO run from start to end."""
    job = tandem(ppo_settings, alone=True, forked=True)
    assert job.wait() == 0, job.text
    return job


def test_ppo_runs_with_all_groups(ppo: Any) -> None:
    """Policy, critic, reference and reward model take part; the critic alone learns first; the first ratio is 1."""
    steps = ppo.steps()
    assert steps[2].keys() >= PPO_METRICS and ppo.unknown_metrics() == []
    assert "loss/policy" not in steps[1], "a warm-up step of the critic"
    assert steps[1]["loss/critic"] > 0
    assert steps[1]["policy/kl"] == pytest.approx(0, abs=1e-6), "the policy still is its reference"
    assert any(abs(steps[step]["policy/kl"]) > 1e-6 for step in range(3, 7))
    assert steps[6]["reward/kl_coef"] != 0.05, "the controller has moved it"
    assert max(steps[step]["mismatch/kl"] for step in range(2, 7)) < 1e-6
    assert all(math.isfinite(value) for step in steps.values() for value in step.values())
    samples = [json.loads(line) for line in (ppo.directory / "samples.jsonl").read_text().splitlines()]
    assert all(math.isfinite(sample["advantage"]) for sample in samples), "means over tokens"
    assert any(sample["advantage"] for sample in samples)
    assert ppo.left_behind() == []


def test_ppo_exports_its_best_policy(ppo: Any) -> None:
    """That of the checkpoint with the highest evaluation, which is kept beside the latest ones."""
    held_out = {step: line["eval/reward/exact_match"] for step, line in ppo.steps().items() if step in (2, 4, 6)}
    best = max(held_out, key=lambda step: held_out[step])
    checkpoints = ppo.directory / "checkpoints"
    assert (checkpoints / "best").read_text() == f"step-{best}"
    exported = load_file(ppo.directory / "export/model.safetensors")
    weights = {}
    for step in {best, 6}:
        state = checkpoints / f"step-{step}/policy/state/mp_rank_00_model_states.pt"
        weights[step] = torch.load(state, weights_only=False)["module"]
    assert all(torch.equal(tensor, weights[best][f"model.{name}"]) for name, tensor in exported.items())
    last = all(torch.equal(tensor, weights[6][f"model.{name}"]) for name, tensor in exported.items())
    assert last == (best == 6), held_out


def test_a_resumed_ppo_run_gives_the_same_numbers(
    ppo: Any, tandem: Start, ppo_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Critic, reward moments, KL controller and a reference that has followed the policy come back too: from step 4,
    every number is that of the whole run."""
    shutil.copytree(ppo.directory, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    (tmp_path / "run/checkpoints/latest").write_text("step-4")
    second = tandem(ppo_settings, directory=tmp_path)
    assert second.wait() == 0, second.text
    assert "resuming from step 4" in second.text
    assert sorted(second.steps()) == sorted(ppo.steps())
    assert (second.directory / "checkpoints/best").read_text() == (ppo.directory / "checkpoints/best").read_text()
    whole = ppo.steps()
    for step, found in second.steps().items():
        untimed = {name: value for name, value in found.items() if not _timed(name)}
        assert untimed == {name: value for name, value in whole[step].items() if not _timed(name)}, step


def _timed(name: str) -> bool:
    return name.startswith(("time/", "bubble/", "weights/sync")) or "per_second" in name


def test_ppo_with_lora_learns_beside_generation(tandem: Start, warm_model: Path, reverse: dict[str, Any]) -> None:
    """Held-out accuracy rises with a reward function and no group baseline, from responses older than the policy."""
    sizes = {"prompts_per_step": 64, "samples_per_prompt": 2, "samples_per_update": 64}
    sizes |= {"kl_coef": 0.01, "max_staleness": 2}
    settings = online(warm_model, reverse, name="ppo", steps=25, eval_every=25, eval_samples_per_prompt=4, **sizes)
    settings["model"]["lora"] = {"rank": 8, "alpha": 16}
    settings["policy"] = {"optimizer": {"lr": 5e-3}}
    job = tandem(settings | {"critic": {"optimizer": {"lr": 2e-3}}, "reference": {"from_policy": True}})
    assert job.wait() == 0, job.text
    evaluations = [line["eval/reward/mean"] for line in job.metrics() if "eval/reward/mean" in line]
    assert evaluations[-1] > evaluations[0] + 0.15, evaluations
    _assert_beside(job, 2)


def _assert_beside(job: Any, most: int) -> None:
    """Of responses that are older than the policy, though no more than allowed, every number can be used."""
    lines = [line for step, line in job.steps().items() if step]
    assert 1 <= max(line["staleness/max"] for line in lines) <= most
    assert all(math.isfinite(value) for line in job.metrics() for value in line.values() if isinstance(value, float))
    stale = [line["policy/sampler_kl"] for line in lines if line["staleness/max"] and "policy/sampler_kl" in line]
    assert stale and min(stale) > 1e-6
    assert max(line["weights/canary_difference"] for line in lines) < 1e-4
    assert max(line.get("mismatch/kl", 0.0) for line in lines) < 1e-6


def test_dapo_samples_until_groups_teach(
    tandem: Start, warm_model: Path, reverse: dict[str, Any], environment: dict[str, str]
) -> None:
    """Every group of a step has winners and losers; later updates compare with the step's own policy.

    The model is one of the hub's, which this machine holds.
    """
    cached = Path(environment["HF_HUB_CACHE"]) / "models--team--warm"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("c" * 40)
    shutil.copytree(warm_model, cached / "snapshots" / ("c" * 40))
    algorithm = {"dynamic_sampling": True, "clip_high": 0.28, "overlong": {"buffer": 3}, "samples_per_update": 16}
    algorithm |= {"importance_correction": {"level": "token", "cap": 2.0}, "epochs_per_step": 2}
    job = tandem(online(warm_model, reverse, name="grpo", steps=3, **algorithm) | {"model": {"path": "team/warm"}})
    assert job.wait() == 0, job.text
    for step in job.metrics():
        assert step["reward/zero_variance_fraction"] == 0
        assert 0 < step["rollout/dynamic_sampling_kept"] <= 1
        assert step["policy/importance_weight_mean"] == pytest.approx(1, abs=1e-4)
        assert step["reward/shaped_mean"] <= step["reward/mean"]


def test_grpo_with_lora_learns_beside_generation(tandem: Start, warm_model: Path, reverse: dict[str, Any]) -> None:
    """Adapters alone are trained, and sent while responses are sampled; the reference is the policy without them;
    engine and trainer agree about what the trained version has sampled."""
    from transformers import AutoModelForCausalLM

    sizes = {"prompts_per_step": 16, "samples_per_prompt": 8, "eval_every": 20, "eval_samples_per_prompt": 4}
    settings = online(warm_model, reverse, name="grpo", steps=20, kl_coef=0.001, max_staleness=1, **sizes)
    settings["model"]["lora"] = {"rank": 8, "alpha": 16}
    settings["policy"] = {"optimizer": {"lr": 5e-3}}
    settings["rollout"] |= {"transfer": {"lora": "adapter"}}
    job = tandem(settings | {"reference": {"from_policy": True}})
    assert job.wait() == 0, job.text
    metrics = job.metrics()
    evaluations = [line["eval/reward/mean"] for line in metrics if "eval/reward/mean" in line]
    assert evaluations[-1] > evaluations[0] + 0.1, evaluations
    _assert_beside(job, 1)
    assert job.steps()[1]["policy/kl"] == pytest.approx(0, abs=1e-7) and job.steps()[20]["policy/kl"] > 0
    assert (job.directory / "export/adapter/adapter_model.safetensors").is_file()
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (warm_model, job.directory / "export"))
    changed = {
        name
        for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed and all("proj" in name for name in changed)


def test_dpo_raises_the_accuracy_of_held_out_preferences(tandem: Start, warm_model: Path) -> None:
    """From chance, as the policy starts at its reference and its loss at log 2; the reference is computed once."""
    job = tandem(offline(warm_model, PAIRS, name="dpo", steps=40, beta=0.1, reference="precomputed"))
    assert job.wait() == 0, job.text
    metrics = job.metrics()
    assert job.unknown_metrics() == []
    assert metrics[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics[-1]["eval/rewards/accuracy"] > 0.65
    assert metrics[-1]["eval/rewards/margin"] > 0
    assert len(list(job.directory.parent.glob("reference-logprobs/*.npz"))) == 1


def test_paired_data_is_refused_for_kto(tandem: Start, warm_model: Path) -> None:
    """One line, exit code 2, before anything starts."""
    job = tandem(offline(warm_model, PAIRS, name="dpo", loss="kto", steps=2))
    assert job.wait() == 2
    lines = [line for line in job.text.splitlines() if line.strip()]
    assert len([line for line in lines if "data.train" in line]) == 1 and "Traceback" not in job.text, job.text


def test_a_model_without_score_head_is_no_reward_model(
    tandem: Start, warm_model: Path, reverse: dict[str, Any]
) -> None:
    """The line names the field, the rule and the value."""
    settings = online(warm_model, reverse, name="grpo", steps=2) | {"reward": {"models": [str(warm_model)]}}
    job = tandem(settings)
    assert job.wait() == 2
    assert "reward.models.0.path: must be a sequence-classification model" in job.text
    assert json.loads((warm_model / "config.json").read_text())["architectures"][0] in job.text


@pytest.mark.skipif(not HH_RLHF.exists(), reason="HH-RLHF is not in the repository")
@pytest.mark.parametrize("job", ["reward", "dpo"])
def test_hh_rlhf_pairs(job: str, tandem: Start, exported_step: Callable[[Path, int], Path]) -> None:
    """Text of people's conversations, made messages by the user's converter, trains a few steps."""
    settings = {
        "algorithm": {"name": job, "steps": 3, "samples_per_update": 16},
        "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "max_positions": 16384}},
        "policy": {"optimizer": {"lr": 5e-6}},
        "data": {"train": str(HH_RLHF), "converter": f"{ROOT}/examples/hh_rlhf.py:to_messages"},
        "tracking": {"wandb": False},
    }
    settings["data"] |= {"max_length": 16384, "limit": 64}
    settings |= {"reference": {"sync_every": 2}} if job == "dpo" else {"checkpoint": {"every": 1, "keep": 3}}
    run = tandem(settings)
    assert run.wait() == 0, run.text
    losses = [line[f"loss/{'reward_model' if job == 'reward' else 'dpo'}"] for line in run.metrics()]
    assert losses[0] == pytest.approx(0.69, abs=0.1)
    if job == "dpo":
        assert losses[0] == losses[2] == pytest.approx(math.log(2), abs=1e-5), "again the policy is its reference"
        assert abs(losses[1] - math.log(2)) > 1e-4
        return
    exported = load_file(exported_step(run.directory, 2) / "model.safetensors")
    last = load_file(run.directory / "export/model.safetensors")
    assert not torch.equal(last["score.weight"], exported["score.weight"])
