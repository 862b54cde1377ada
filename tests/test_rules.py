"""Every rule about settings, broken once: exactly one line with field, rule and value. A test counts the rules.

Then what only files can show: models without a score head or with another tokenizer, rows of another kind.
"""

import ast
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import ModelInit, UserError
from actors.models.skeleton import hf_config
from actors.models.tokenizer import build_char_tokenizer
from launch.checks.check import preflight
from launch.config import RunConfig, validate
from launch.settings.file import apply_overrides

ROOT = Path(__file__).resolve().parent.parent
RULE_FILES = (
    "launch/settings/rules.py",
    "launch/settings/rules_adapters.py",
    "launch/settings/rules_alerts.py",
    "launch/settings/rules_encoder.py",
    "launch/settings/rules_evaluation.py",
    "launch/settings/rules_reference.py",
    "launch/settings/rules_rl.py",
    "launch/settings/rules_rows.py",
    "launch/kinds/kind.py",
    "launch/kinds/offline.py",
    "launch/kinds/rl.py",
    "algorithms/config_rl.py",
    "algorithms/config_offline.py",
    "algorithms/config_encoder.py",
    "actors/config.py",
    "actors/config_rollout.py",
    "actors/config_deepspeed.py",
    "actors/config_nodes.py",
    "actors/config_trainer.py",
)

ROWS = {"model": {"init": {}}, "data": {"train": "rows.jsonl"}}
PROMPTS = ROWS | {
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
}
JOBS: dict[str, dict[str, Any]] = {
    "sft": ROWS | {"algorithm": {"name": "sft", "steps": 5}},
    "reward": ROWS | {"algorithm": {"name": "reward", "steps": 5}},
    "dpo": ROWS | {"algorithm": {"name": "dpo", "steps": 5}},
    "ppo": PROMPTS | {"algorithm": {"name": "ppo"}, "critic": {}},
    "grpo": PROMPTS | {"algorithm": {"name": "grpo"}},
    "embedding": ROWS | {"algorithm": {"name": "embedding", "steps": 5, "pooling": "mean"}},
    "reranker": ROWS | {"model": {"init": {"family": "bert"}}, "algorithm": {"name": "reranker", "steps": 5}},
}

# (job, overrides `a.b=c; d=e`, the line)
CASES: list[tuple[str, str, str]] = [
    (
        "sft",
        "model.lora={targets: []}",
        "model.lora.targets must name at least one linear layer, or be all-linear, got []",
    ),
    (
        "grpo",
        "data.eval_fraction=0.1",
        "data.eval_fraction needs algorithm.eval_every, got 0.1 without",
    ),
    (
        "grpo",
        "algorithm.kl_coef=0.1; model.dtype=bf16; policy.zero_stage=1; reference={sync_every: 2, sync_mix: 0.1}",
        "reference.sync_mix must be 1 with model.dtype bf16, in which small changes of the reference would be rounded "
        "away, got 0.1",
    ),
    (
        "grpo",
        "policy={zero_stage: 2, deepspeed: {zero_optimization: {reduce_bucket_size: .inf}}}",
        "policy.deepspeed.zero_optimization.reduce_bucket_size must be a whole number, at least 0, got inf",
    ),
    # The groups that an algorithm needs, and no others.
    ("ppo", "critic=null", "critic: required for ppo (critic={} takes the defaults), got nothing"),
    ("grpo", "critic={}", "critic must be left out for grpo, which learns no values, got one"),
    ("dpo", "critic={}", "critic must be left out for dpo, which learns no values, got one"),
    (
        "dpo",
        "algorithm.loss=simpo; reference={ranks: 2}",
        "reference must be left out for loss simpo, which compares with none, got settings",
    ),
    (
        "dpo",
        "algorithm.loss=[cpo, orpo, sft]; model.lora={}; reference={from_policy: true}",
        "reference must be left out for loss cpo, orpo, sft, which compares with none, got settings",
    ),
    (
        "dpo",
        "reference={from_policy: true}",
        "reference.from_policy needs model.lora, without which there are no adapters to disable, got true",
    ),
    (
        "grpo",
        "model.lora={}; reference={from_policy: true}",
        "reference.from_policy must be left out where the algorithm compares with no reference, got true",
    ),
    (
        "ppo",
        "model.lora={}; reference={from_policy: true}; algorithm.kl_coef=0",
        "reference.from_policy must be left out where the algorithm compares with no reference, got true",
    ),
    # Rewards.
    (
        "ppo",
        "reward={}",
        "reward.functions must name at least one reward for ppo, or reward.models or reward.endpoints, got []",
    ),
    (
        "grpo",
        "reward={functions: [{name: exact_match, weight: 0}]}",
        "reward must have a source with a weight other than 0, got weight 0 for all of them",
    ),
    ("grpo", "reward.clip=-1", "reward.clip: must be above 0, got -1"),
    (
        "grpo",
        "reward={endpoints: ['localhost:8000']}",
        "reward.endpoints.0.url: must begin with http:// or https://, got 'localhost:8000'",
    ),
    # Groups of samples.
    (
        "grpo",
        "algorithm.samples_per_prompt=1",
        "algorithm.samples_per_prompt must be at least 2 for grpo with advantage group, which compares the samples of "
        "a group, got 1",
    ),
    (
        "grpo",
        "algorithm={name: grpo, samples_per_prompt: 1, advantage: leave_one_out}",
        "algorithm.samples_per_prompt must be at least 2 for grpo with advantage leave_one_out, which compares the "
        "samples of a group, got 1",
    ),
    (
        "grpo",
        "algorithm={name: grpo, samples_per_prompt: 1, advantage: reinforce_pp_baseline}",
        "algorithm.samples_per_prompt must be at least 2 for grpo with advantage reinforce_pp_baseline, which compares "
        "the samples of a group, got 1",
    ),
    (
        "grpo",
        "algorithm={name: grpo, samples_per_prompt: 1, advantage: reinforce_pp, dynamic_sampling: true}",
        "algorithm.samples_per_prompt must be at least 2 with dynamic_sampling, which compares the samples of a group, "
        "got 1",
    ),
    (
        "ppo",
        "algorithm.samples_per_update=100",
        "algorithm.samples_per_update must divide prompts_per_step x samples_per_prompt = 128, got 100",
    ),
    # Surrogates and how they are averaged.
    ("grpo", "algorithm.loss=cispo", "algorithm.cispo_max_ratio: required for loss cispo, got nothing"),
    (
        "grpo",
        "algorithm.cispo_max_ratio=5",
        "algorithm.cispo_max_ratio must be left out with loss clip, which does not read it, got 5",
    ),
    (
        "grpo",
        "algorithm={name: grpo, loss: sapo, dual_clip: 3}",
        "algorithm.dual_clip must be left out with loss sapo, which does not read it, got 3",
    ),
    ("ppo", "algorithm.dual_clip=1.1", "algorithm.dual_clip must be above 1 + clip_high = 1.2, got 1.1"),
    ("ppo", "algorithm.clip_low=1", "algorithm.clip_low: must be below 1, got 1"),
    (
        "grpo",
        "algorithm.loss=gspo",
        "algorithm.aggregation must be sequence with loss gspo, whose ratio is one of a sequence, got token",
    ),
    (
        "grpo",
        "algorithm.aggregation_constant=64",
        "algorithm.aggregation_constant must be left out with aggregation token, got 64",
    ),
    (
        "grpo",
        "algorithm.loss=cips",
        "algorithm.loss: must be one of 'clip', 'gspo', 'cispo' or 'sapo', got 'cips' (did you mean clip?)",
    ),
    # The KL to the reference.
    (
        "grpo",
        "algorithm={name: grpo, kl_coef: 0.01, kl_estimator: k1}",
        "algorithm.kl_estimator must be k2 or k3 with kl_in loss, where the gradient of k1 has mean 0 "
        "without kl_importance_ratio, got k1",
    ),
    (
        "grpo",
        "algorithm={name: grpo, kl_coef: 0.01, kl_estimator: k2, kl_importance_ratio: true}",
        "algorithm.kl_estimator must be k1 or k3 with kl_importance_ratio, as k2 is biased with it, got k2",
    ),
    (
        "ppo",
        "algorithm={name: ppo, kl_importance_ratio: true}",
        "algorithm.kl_importance_ratio must be left out with kl_in reward, got true",
    ),
    (
        "ppo",
        "algorithm={name: ppo, kl_target: 6, kl_coef: 0}",
        "algorithm.kl_target must be left out unless kl_in is reward and kl_coef above 0, got 6",
    ),
    (
        "ppo",
        "algorithm={name: ppo, kl_target: 6, kl_horizon: 20}",
        "algorithm.kl_horizon must be above a fifth of the 128 samples of a step, got 20",
    ),
    # Settings without effect.
    ("grpo", "algorithm.kl_in=reward", "algorithm.kl_in must be left out with kl_coef 0, got reward"),
    (
        "ppo",
        "algorithm={name: ppo, kl_coef: 0, kl_estimator: k3}",
        "algorithm.kl_estimator must be left out with kl_coef 0, got k3",
    ),
    ("ppo", "algorithm.kl_horizon=500", "algorithm.kl_horizon must be left out without kl_target, got 500"),
    *(
        (
            "grpo",
            f"algorithm={{name: grpo, importance_correction: {{}}, {name}: {value}}}",
            f"algorithm.{name} must be left out with importance_correction and one update a step, where the importance "
            f"ratio is 1, got {value}",
        )
        for name, value in {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 3}.items()
    ),
    (
        "grpo",
        "algorithm={name: grpo, max_staleness: 2, clip_high: 0.28}",
        "algorithm.clip_high must be left out with max_staleness 2 and one update a step, where the importance ratio "
        "is 1 unless importance_correction is null, got 0.28",
    ),
    (
        "ppo",
        "algorithm={name: ppo, max_staleness: 2, importance_correction: {}, dual_clip: 3}",
        "algorithm.dual_clip must be left out with importance_correction and one update a step, where the importance "
        "ratio is 1, got 3",
    ),
    *(
        (
            "grpo",
            f"algorithm={{name: grpo, loss: {loss}, {more}{name}: 0.1}}",
            f"algorithm.{name} must be left out with loss {loss}, which does not read it, got 0.1",
        )
        for name in ("clip_low", "clip_high")
        for loss, more in {"cispo": "cispo_max_ratio: 5, ", "sapo": ""}.items()
    ),
    (
        "grpo",
        "algorithm.sapo_temperatures=[1, 2]",
        "algorithm.sapo_temperatures must be left out with loss clip, which does not read it, got (1.0, 2.0)",
    ),
    (
        "grpo",
        "algorithm={name: grpo, advantage: leave_one_out, normalize_std: false}",
        "algorithm.normalize_std must be left out with advantage leave_one_out, which does not read it, got false",
    ),
    (
        "sft",
        "algorithm.stop_when={metric: eval/loss, at_least: 0.5}; data.eval=rows.jsonl",
        "algorithm.stop_when.at_least must be at_most for eval/loss, of which less is better (best_by takes the "
        "lowest), got 0.5",
    ),
    *(
        (
            "sft",
            f"algorithm.stop_when={{metric: eval/loss{more}}}; data.eval=rows.jsonl",
            f"algorithm.stop_when.at_least or at_most must be given, one of the two, got {got}",
        )
        for more, got in {"": "neither", ", at_most: 0.5, at_least: 0.5": "both"}.items()
    ),
    *(
        (
            job,
            f"rollout.{greedy}=1; {more}",
            f"rollout.{greedy} must not be 1 with algorithm.{what}: only the likeliest token is left, so all responses "
            "to a prompt would be the same, got 1",
        )
        for greedy in ("top_k", "min_p")
        for job, more, what in (
            ("grpo", "algorithm={name: grpo, samples_per_prompt: 4}", "samples_per_prompt 4"),
            (
                "ppo",
                "algorithm={name: ppo, kl_in: loss, kl_estimator: k3, eval_every: 5, eval_samples_per_prompt: 2}; "
                "data.eval=rows.jsonl",
                "eval_samples_per_prompt 2",
            ),
        )
    ),
    (
        "grpo",
        "algorithm={name: grpo, eval_every: 5, eval_samples_per_prompt: 4}; data.eval=rows.jsonl; "
        "reward.functions=[{name: math, weight: 0.5}, {name: exact_match, weight: 0.25}]",
        "algorithm.eval_pass_reward must be at most 0.75, the most that reward.functions with their weights give, or "
        "no response is ever solved, got 1",
    ),
    ("grpo", "rollout.keep_stop_string=true", "rollout.keep_stop_string must be left out without stop, got true"),
    (
        "grpo",
        "rollout.on_update=restart",
        "rollout.on_update must be left out with algorithm.max_staleness 0, where no response is running when new "
        "weights come, got restart",
    ),
    (
        "ppo",
        "rollout={engines: 2, update_order: rolling, transfer: {store: holder}}",
        "rollout.update_order must be left out with algorithm.max_staleness 0, where no response is running when new "
        "weights come, got rolling",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout={engines: 2, update_order: rolling}",
        "rollout.update_order must be left out with transfer.store broadcast, which serves all at once, got rolling",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout={update_order: rolling, transfer: {store: holder}}",
        "rollout.update_order must be left out with one engine, got rolling",
    ),
    (
        "grpo",
        "algorithm.dynamic_sampling_rounds=3",
        "algorithm.dynamic_sampling_rounds must be left out without dynamic_sampling, got 3",
    ),
    *(
        (
            job,
            f"algorithm={{name: {job}, mask_truncated: true, missing_eos_penalty: 1}}",
            "algorithm.missing_eos_penalty must be left out with mask_truncated, which leaves the responses that it "
            "punishes out of loss and baselines, got 1",
        )
        for job in ("ppo", "grpo")
    ),
    (
        "ppo",
        "algorithm={name: ppo, steps: 5, critic_warmup_steps: 5}",
        "algorithm.critic_warmup_steps must be below steps (5), or the policy never learns, got 5",
    ),
    *(
        (
            "dpo",
            f"algorithm={{name: dpo, steps: 5, loss: orpo, {name}: 0.7}}",
            f"algorithm.{name} must be left out without loss {loss}, the only one that reads it, got 0.7",
        )
        for name, loss in {
            "simpo_gamma": "simpo",
            "cpo_alpha": "cpo",
            "discopop_tau": "discopop",
            "desirable_weight": "kto",
            "undesirable_weight": "kto",
        }.items()
    ),
    (
        "dpo",
        "algorithm.loss=sft; algorithm.beta=0.5",
        "algorithm.beta must be left out for sft alone, which does not read it, got 0.5",
    ),
    (
        "dpo",
        "algorithm.loss={name: kto, weight: 2}",
        "algorithm.loss.0.weight must be left out for kto, which has desirable_weight and undesirable_weight, got 2",
    ),
    *(
        (
            job,
            f"reference={{ranks: 2}}{more}",
            "reference.ranks must be left out where the algorithm compares with no reference, got 2",
        )
        for job, more in {"sft": "", "reward": "", "grpo": "", "ppo": "; algorithm.kl_coef=0"}.items()
    ),
    (
        "dpo",
        "model.lora={}; reference={from_policy: true, gpus_per_rank: 0.5}",
        "reference.gpus_per_rank must be left out with from_policy, which starts no group, got 0.5",
    ),
    (
        "dpo",
        "reward={functions: [exact_match], clip: 5}",
        "reward must be left out for dpo, which samples no responses, got functions, clip",
    ),
    (
        "sft",
        "rollout.transfer.verify_every=2",
        "rollout must be left out for sft, which samples no responses, got transfer",
    ),
    *(
        (
            "grpo",
            f"reward={{models: [rm], {name}: 4}}",
            f"reward.{name} must be left out with reward.models alone, which are groups of their own, got 4",
        )
        for name in ("workers", "deadline_s")
    ),
    (
        "grpo",
        "data.max_length=64",
        "data.max_length must be left out for grpo, which reads rollout.max_prompt_tokens and "
        "rollout.max_response_tokens, got 64",
    ),
    (
        "sft",
        "policy.optimizer.min_lr_ratio=0.2",
        "policy.optimizer.min_lr_ratio must be left out with schedule constant_with_warmup, which does not read it, "
        "got 0.2",
    ),
    # Sampling and lengths.
    (
        "ppo",
        "rollout.top_p=0.9",
        "algorithm.kl_in must be loss, or kl_coef 0, with rollout.top_p 0.9: the reward's KL would be not the policy's "
        "but that of a part of its distribution, a hidden penalty for length",
    ),
    (
        "grpo",
        "algorithm={name: grpo, kl_coef: 0.1, kl_in: reward}; rollout.top_k=20",
        "algorithm.kl_in must be loss, or kl_coef 0, with rollout.top_k 20: the reward's KL would be not the policy's "
        "but that of a part of its distribution, a hidden penalty for length",
    ),
    (
        "ppo",
        "algorithm.importance_correction={}; rollout.top_p=0.9",
        "algorithm.importance_correction must be left out with rollout.top_p 0.9: the weights would compare the policy "
        "with a part of its distribution",
    ),
    (
        "grpo",
        "algorithm.importance_correction={level: sequence}; rollout.top_k=20",
        "algorithm.importance_correction must be left out with rollout.top_k 20: the weights would compare the policy "
        "with a part of its distribution",
    ),
    (
        "grpo",
        "algorithm.importance_correction={}; rollout.min_p=0.1",
        "algorithm.importance_correction must be left out with rollout.min_p 0.1: the weights would compare the policy "
        "with a part of its distribution",
    ),
    (
        "grpo",
        "algorithm.importance_correction={}; rollout.repetition_penalty=1.1",
        "algorithm.importance_correction must be left out with rollout.repetition_penalty 1.1: the weights would "
        "compare the policy with its distribution under the penalty",
    ),
    (
        "grpo",
        "algorithm.max_staleness=2; rollout.top_p=0.9",
        "algorithm.importance_correction must be null with rollout.top_p 0.9: the weights of max_staleness 2 would "
        "compare the policy with a part of its distribution",
    ),
    (
        "grpo",
        "algorithm.max_staleness=2; algorithm.importance_correction.level=sequence; rollout.top_p=0.9",
        "algorithm.importance_correction must be null with rollout.top_p 0.9: the weights would compare the policy "
        "with a part of its distribution",
    ),
    (
        "ppo",
        "rollout.presence_penalty=-0.5",
        "algorithm.kl_in must be loss, or kl_coef 0, with rollout.presence_penalty -0.5: the reward's KL would be not "
        "the policy's but that of its distribution under the penalty, a hidden penalty for length",
    ),
    *(
        ("grpo", f"rollout.{name}={value}", f"rollout.{name}: must be {rule}, got {value}")
        for name, value, rule in (
            ("min_p", 1.5, "at most 1"),
            ("repetition_penalty", 0, "above 0"),
            ("presence_penalty", -3, "at least -2"),
        )
    ),
    (
        "grpo",
        "rollout.stop_token_ids=[2, -1]",
        "rollout.stop_token_ids.1: must be at least 0, got -1",
    ),
    (
        "grpo",
        "algorithm.overlong={buffer: 17}",
        "algorithm.overlong.buffer must not exceed rollout.max_response_tokens (16), got 17",
    ),
    (
        "grpo",
        "rollout.max_response_tokens=1000",
        "rollout.max_prompt_tokens + rollout.max_response_tokens must not exceed model.init.max_positions (1024), "
        "got 1032",
    ),
    ("reward", "data.max_length=1025", "data.max_length must not exceed model.init.max_positions (1024), got 1025"),
    # Evaluation.
    *(
        (
            "ppo",
            f"algorithm.{name}={value}",
            f"algorithm.{name} must be left out without eval_every, got {value}",
        )
        for name, value in {"eval_samples_per_prompt": 4, "eval_temperature": 0}.items()
    ),
    (
        "grpo",
        "algorithm.steps=0",
        "algorithm.steps must be above 0 without eval_every, as 0 only evaluates, got 0",
    ),
    (
        "grpo",
        "algorithm={name: grpo, steps: 5, epochs: 2}",
        "algorithm.steps must be left out, or null, with epochs, which say how many there are, got 5",
    ),
    ("ppo", "algorithm.eval_every=5", "algorithm.eval_every needs data.eval or data.eval_fraction, got eval_every 5"),
    (
        "grpo",
        "algorithm.eval_pass_reward=0.5",
        "algorithm.eval_pass_reward must be left out without eval_every, got 0.5",
    ),
    (
        "ppo",
        "algorithm.best_by=eval/reward/mean; data.eval=rows.jsonl",
        "algorithm.best_by needs algorithm.eval_every, got eval/reward/mean without",
    ),
    (
        "grpo",
        "algorithm.best_by=eval/reward/mean",
        "algorithm.best_by needs data.eval or data.eval_fraction, got eval/reward/mean without",
    ),
    (
        "grpo",
        "algorithm={name: grpo, eval_every: 5, best_by: eval/rewards/mean}; data.eval=rows.jsonl",
        "algorithm.best_by must be one of eval/reward/mean (did you mean eval/reward/mean?), got eval/rewards/mean",
    ),
    (
        "ppo",
        "algorithm={name: ppo, eval_every: 5, eval_samples_per_prompt: 3, best_by: zzz}; data.eval=rows.jsonl; "
        "reward.functions=[exact_match, math]",
        "algorithm.best_by must be one of eval/reward/mean, eval/majority, eval/pass@1, eval/pass@2, eval/pass@3, "
        "eval/reward/exact_match, eval/reward/math, got zzz",
    ),
    (
        "grpo",
        "algorithm={name: grpo, eval_every: 5, stop_when: {metric: reward/mean, at_least: 1}}; data.eval=rows.jsonl",
        "algorithm.stop_when.metric must be one of eval/reward/mean, eval/reward/std, eval/failed "
        "(did you mean eval/reward/mean?), got reward/mean",
    ),
    (
        "reward",
        "algorithm.stop_when={metric: eval/accuracy, at_least: 0.9}",
        "algorithm.stop_when needs data.eval or data.eval_fraction, got none",
    ),
    (
        "grpo",
        "algorithm.stop_when={metric: eval/reward/mean, at_least: 0.9}; data.eval=rows.jsonl",
        "algorithm.stop_when needs algorithm.eval_every, got none",
    ),
    (
        "ppo",
        "algorithm={name: ppo, eval_temperature: 0, eval_samples_per_prompt: 4}",
        "algorithm.eval_samples_per_prompt must be 1 with eval_temperature 0, which gives the same response every "
        "time, got 4",
    ),
    # Jobs that learn from given rows.
    (
        "reward",
        "algorithm.epochs=1",
        "algorithm.steps must be given, or epochs, but not both, got both (algorithm.epochs=null drops the epochs)",
    ),
    ("reward", "algorithm.centering=-1", "algorithm.centering: must be at least 0, got -1"),
    ("dpo", "algorithm.loss=[]", "algorithm.loss must name at least one loss, got []"),
    ("dpo", "algorithm.loss=[hinge, hinge]", "algorithm.loss must name each loss once, got hinge, hinge"),
    (
        "dpo",
        "algorithm.loss=[kto, sigmoid]",
        "algorithm.loss kto reads single responses, not pairs, so it must be alone, got kto, sigmoid",
    ),
    ("dpo", "algorithm.loss=robust", "algorithm.label_smoothing must be above 0 for robust, got 0"),
    ("dpo", "algorithm.loss=[ipo, exo]", "algorithm.label_smoothing must be above 0 for exo, got 0"),
    (
        "dpo",
        "algorithm.loss=[ipo, hinge]; algorithm.label_smoothing=0.1",
        "algorithm.label_smoothing must be 0 for ipo, hinge, which do not read it, got 0.1",
    ),
    (
        "dpo",
        "algorithm.loss=orpo; algorithm.reference=precomputed",
        "algorithm.reference must be left out for orpo, which has none, got precomputed",
    ),
    (
        "dpo",
        "algorithm.loss=kto; algorithm.reference=precomputed",
        "algorithm.reference must be live for kto, which also reads responses to other prompts, got precomputed",
    ),
    (
        "dpo",
        "algorithm.loss=kto; algorithm.samples_per_update=1",
        "algorithm.samples_per_update must be at least 2 for kto, which mixes the rows of an update, got 1",
    ),
    (
        "sft",
        "algorithm.best_by=eval/loss",
        "algorithm.best_by needs data.eval or data.eval_fraction, got eval/loss without",
    ),
    # Jobs that learn to compare texts: losses.
    *(
        (job, "algorithm.loss=[]", "algorithm.loss must name at least one loss, got []")
        for job in ("embedding", "reranker")
    ),
    (
        "embedding",
        "algorithm.loss=[gist, {name: gist, weight: 2}]",
        "algorithm.loss must name each loss once, got gist, gist",
    ),
    ("reranker", "algorithm.loss=[bce, lambda, bce]", "algorithm.loss must name each loss once, got bce, lambda, bce"),
    (
        "embedding",
        "algorithm.loss=[infonce, cosent]",
        "algorithm.loss must name losses of one kind of rows: cosent, angle, cosine, contrastive, online_contrastive "
        "read two texts with a score, the others a query with passages, got infonce, cosent",
    ),
    (
        "embedding",
        "algorithm.loss=[infonce, gist]",
        "algorithm.guide must be the directory of an embedding model for loss gist, got none",
    ),
    (
        "embedding",
        "algorithm.loss=infonc",
        "algorithm.loss.0.name: must be one of 'infonce', 'gist', 'triplet', 'margin_mse', 'distill_kl', 'cosent', "
        "'angle', 'cosine', 'contrastive' or 'online_contrastive', got 'infonc' (did you mean infonce?)",
    ),
    (
        "reranker",
        "algorithm.loss=[bce, {name: lambdarank, weight: 2}]",
        "algorithm.loss.1.name: must be one of 'bce', 'mse', 'cross_entropy', 'ranknet', 'lambda', 'listnet', "
        "'listmle' or 'margin_mse', got 'lambdarank' (did you mean lambda?)",
    ),
    *(
        (
            "embedding",
            f"algorithm.loss={loss}; algorithm.negatives=0",
            f"algorithm.negatives must be at least 1 for loss {needing}, got 0",
        )
        for loss, needing in {
            "triplet": "triplet",
            "[infonce, margin_mse]": "margin_mse",
            "[distill_kl, triplet]": "distill_kl, triplet",
        }.items()
    ),
    (
        "embedding",
        "algorithm.loss=triplet; algorithm.negatives=2",
        "algorithm.negatives must be 1 for loss triplet, which reads one, got 2",
    ),
    (
        "embedding",
        "algorithm.matryoshka=[64, 32, 64]",
        "algorithm.matryoshka must name each size once, got [64, 32, 64]",
    ),
    (
        "reranker",
        "algorithm.loss=[bce, margin_mse]",
        "algorithm.targets must be scores for loss margin_mse, which learns a teacher's margins, got labels",
    ),
    (
        "reranker",
        "algorithm.loss=cross_entropy; algorithm.targets=scores",
        "algorithm.targets must be labels for loss cross_entropy alone, which reads no scores, got scores",
    ),
    (
        "reranker",
        "algorithm.loss=[bce, listnet]; algorithm.negatives=0",
        "algorithm.negatives must be at least 1 for loss bce, listnet, got 0",
    ),
    # Settings that a loss does not read.
    *(
        (
            "embedding",
            f"algorithm.loss={loss}; algorithm.{name}={value}",
            f"algorithm.{name} must be left out for loss {loss}, which does not read it, got {value}",
        )
        for loss, name, value in [
            ("triplet", "temperature", 0.1),
            ("cosent", "symmetric", "true"),
            ("cosine", "margin", 0.1),
            ("contrastive", "distance", "euclidean"),
            ("infonce", "teacher_temperature", 2),
            ("infonce", "guide", "other"),
            ("angle", "guide_margin", 0.1),
            ("infonce", "guide_margin_strategy", "relative"),
        ]
    ),
    (
        "embedding",
        "algorithm.loss=[cosent, angle]; algorithm.margin=0.1",
        "algorithm.margin must be left out for loss cosent, angle, which do not read it, got 0.1",
    ),
    (
        "embedding",
        "algorithm.loss=cosent; algorithm.negatives=1",
        "algorithm.negatives must be left out for losses of two texts with a score, got 1",
    ),
    # Several data sets.
    *(
        (
            "embedding",
            f"data.train={{a: x, b: y}}; algorithm.tasks={{a: {{}}, b: {{}}}}; algorithm.{name}={value}",
            f"algorithm.{name} must be left out with tasks, each of which says it for itself, got {got}",
        )
        for name, value, got in [
            ("loss", "{name: cosent, weight: 2}", '[{"name": "cosent", "weight": 2.0}]'),
            ("loss", "triplet", '[{"name": "triplet"}]'),
            ("prompts", "{query: 'query: '}", '{"query": "query: "}'),
            ("negatives", "3", "3"),
            ("symmetric", "true", "true"),
            ("matryoshka", "[8]", "[8]"),
        ]
    ),
    (
        "embedding",
        "data.train={a: x, b: y}; algorithm.tasks={a: {}, b: {loss: triplet, negatives: 0}}",
        "algorithm.tasks.b.negatives must be at least 1 for loss triplet, got 0",
    ),
    *(
        (
            job,
            "policy.logprob_chunk_tokens=7",
            f"policy.logprob_chunk_tokens must be left out for {job}, which has no logits, got 7",
        )
        for job in ("embedding", "reranker")
    ),
    (
        "embedding",
        "data.train={a: x, b: y}; algorithm.tasks={a: {weight: 2}, b: {}}",
        "algorithm.tasks.b.weight must be given where other tasks have one (a share of rows is on another scale), "
        "got nothing",
    ),
    (
        "embedding",
        "data.train={a: x}; algorithm.tasks={a: {temprature: 0.1}}",
        "algorithm.tasks.a.temprature: unknown field (did you mean temperature?), got 0.1",
    ),
    (
        "embedding",
        "data.train={a: x}; algorithm.tasks={a: {weight: 0}}",
        "algorithm.tasks.a.weight: must be above 0, got 0",
    ),
    *(
        ("embedding", f"data.train={value}", f"data.train must be one source without algorithm.tasks, got {got}")
        for value, got in {"{a: x, b: y}": "a, b", "{}": "none"}.items()
    ),
    ("reranker", "data.train={a: x, b: y}", "data.train must be one source for reranker, got a, b"),
    ("grpo", "data.eval={a: x, b: y}", "data.eval must be one source for grpo, got a, b"),
    ("grpo", "data.train={}", "data.train must name at least one set, got {}"),
    (
        "sft",
        "data.train={a/b: x}",
        "data.train must have names of letters, digits, _, . and - (they are parts of metrics' names), got 'a/b'",
    ),
    (
        "embedding",
        "data.eval={a/b: x}",
        "data.eval must have names of letters, digits, _, . and - (they are parts of metrics' names), got 'a/b'",
    ),
    (
        "grpo",
        "data.weights={a: 1}",
        "data.weights needs several sets in data.train, {name: source}, got one, rows.jsonl",
    ),
    (
        "grpo",
        "data.train={math: x, code: y}; data.weights={math: 1, coed: 2}",
        "data.weights.coed must be the name of a set in data.train (math, code) (did you mean code?)",
    ),
    (
        "grpo",
        "data.train={math: x, code: y}; data.weights={math: 1}",
        "data.weights must name every set in data.train, got none for code",
    ),
    (
        "grpo",
        "data.train={math: x, code: y}; data.weights={math: 0, code: 0}",
        "data.weights must be above 0 for a set, got 0 for math, code",
    ),
    (
        "grpo",
        "data.train={math: x, code: y}; data.weights={math: -1, code: 2}",
        "data.weights.math: must be at least 0, got -1",
    ),
    (
        "sft",
        "data.eval=x; data.eval_fraction=0.1",
        "data.eval_fraction must be left out with data.eval, got 0.1",
    ),
    ("sft", "data.system_prompt=' '", "data.system_prompt must not be empty (null for none), got ' '"),
    ("sft", "data.eval=null; data.eval_limit=5", "data.eval_limit must be left out without data.eval, got 5"),
    (
        "sft",
        "data.truncation_side=right",
        "data.truncation_side must be left out with overlong error, which cuts nothing, got right",
    ),
    (
        "grpo",
        "data.overlong=truncate; data.truncation_side=right",
        "data.truncation_side must be left for grpo: cut at the right, a prompt would lose what is to be answered, "
        "got right",
    ),
    (
        "reranker",
        "data.overlong=drop",
        "data.overlong must be left out for reranker, which cuts texts at algorithm.max_tokens, got drop",
    ),
    (
        "reranker",
        "data.eval_fraction=0.5",
        "data.eval_fraction must be left out for reranker, whose evaluation sets have columns of their own "
        "(data.eval), got 0.5",
    ),
    (
        "reranker",
        "data.max_bad_rows=0.1",
        "data.max_bad_rows must be left out for reranker, which skips no rows, got 0.1",
    ),
    (
        "embedding",
        "data.train={a: x}; algorithm.tasks={a: {}}; data.weights={a: 1}",
        "data.weights must be left out for embedding, whose tasks have a share (algorithm.tasks), got {'a': 1.0}",
    ),
    # Data and models of another kind.
    ("dpo", "data.corpus=texts.jsonl", "data.corpus must be left out for dpo, which searches nothing, got texts.jsonl"),
    (
        "embedding",
        "data.corpus=texts.jsonl",
        "data.corpus needs data.eval, which searches it or names its ids, got texts.jsonl without",
    ),
    (
        "reranker",
        "data.max_length=64",
        "data.max_length must be left out for reranker, which reads algorithm.max_tokens, got 64",
    ),
    (
        "embedding",
        "data.system_prompt=Be brief.",
        "data.system_prompt must be left out for embedding, which has prompts of its own, got Be brief.",
    ),
    (
        "embedding",
        "data.template_arguments={thinking: false}",
        "data.template_arguments must be left out for embedding, which reads texts, not conversations, got "
        "{'thinking': False}",
    ),
    (
        "embedding",
        "model.chat_template=own.jinja",
        "model.chat_template must be left out for embedding, which reads texts, not conversations, got own.jinja",
    ),
    (
        "embedding",
        "model.router_aux_loss=0.01",
        "model.router_aux_loss must be left out for embedding, which balances no experts, got 0.01",
    ),
    (
        "embedding",
        "model={path: owner/name, quantize: nf4, lora: {}}",
        "model.quantize must be left out for embedding, got nf4",
    ),
    (
        "reranker",
        "model.attention=packed_sdpa",
        "model.attention must be auto or flash_attention_2 for reranker, got packed_sdpa",
    ),
    (
        "embedding",
        "algorithm.pooling=null",
        "algorithm.pooling must be cls, mean, last or max with model.init, got nothing",
    ),
    (
        "reranker",
        "algorithm.max_tokens=1025",
        "algorithm.max_tokens must not exceed model.init.max_positions (1024), got 1025",
    ),
    *(
        (
            job,
            "model.init.family=bert",
            f"model.init.family must be qwen2 or llama for {job}, which reads forward only, got bert",
        )
        for job in ("sft", "grpo")
    ),
    *(
        (
            "reranker",
            f"model.init.{name}={value}",
            f"model.init.{name} must be left out for bert, which has neither, got {value}",
        )
        for name, value in {"kv_heads": "2", "tie_embeddings": "false"}.items()
    ),
    (
        "embedding",
        "reward={functions: [exact_match]}",
        "reward must be left out for embedding, which samples no responses, got functions",
    ),
    # Adapters, frozen and quantised weights.
    (
        "ppo",
        "model.lora={dropout: 0.1}",
        "model.lora.dropout must be 0 for ppo, whose importance ratio compares with the sampler, which drops nothing, "
        "got 0.1",
    ),
    (
        "dpo",
        "model.lora={dropout: 0.1}",
        "model.lora.dropout must be 0 for dpo, which compares with a reference that drops nothing, got 0.1",
    ),
    (
        "ppo",
        "critic.lora={dropout: 0.1}",
        "critic.lora.dropout must be 0, as the values that an update starts from are read without dropout, got 0.1",
    ),
    (
        "ppo",
        "rollout.transfer.max_merge_error=0.1",
        "rollout.transfer.max_merge_error must be left out without model.lora, got 0.1",
    ),
    (
        "grpo",
        "model.lora={}; rollout.transfer.max_merge_error=0.1",
        "rollout.transfer.max_merge_error must be left out where adapters are not merged, got 0.1",
    ),
    (
        "grpo",
        "model.lora={}; model.dtype=bf16; policy.zero_stage=1; rollout.transfer.lora=merged",
        "rollout.transfer.max_merge_error must be given with rollout.transfer.lora merged in model.dtype bf16, where "
        "rounding takes most of small changes: the share that may be lost (adapter and fp32 lose none), got none",
    ),
    (
        "dpo",
        "model.lora={}; model.dtype=bf16; policy.zero_stage=1; reference.sync_every=2",
        "reference.sync_every must be left out with model.lora in model.dtype bf16, as rounding would take from the "
        "reference most of what the adapters change, got 2",
    ),
    (
        "grpo",
        "rollout.transfer.lora=adapter; model.lora={dora: true}",
        "rollout.transfer.lora must be merged with model.lora.dora, which vLLM does not serve, got adapter",
    ),
    (
        "sft",
        "model.trust_remote_code=true",
        "model.trust_remote_code must be left out, as Tandem never runs code of a model's repository (transformers has "
        "the architectures that can be trained), got true",
    ),
    ("sft", "model.revision=v1", "model.revision must be left out with init, which builds a new model, got v1"),
    (
        "sft",
        "model.quantize=nf4",
        "model.quantize needs lora, as quantised weights cannot be trained, got nf4",
    ),
    (
        "sft",
        "model={path: owner/name, quantize: nf4, lora: {}}",
        "model.quantize nf4 needs a GPU (policy.gpus_per_rank above 0), got 0",
    ),
    (
        "sft",
        "model={path: owner/name, quantize: nf4, lora: {}}; policy={gpus_per_rank: 1, zero_stage: 3}",
        "policy.zero_stage must be 0, 1 or 2 with model.quantize, whose weights it cannot shard, got 3",
    ),
    (
        "dpo",
        "model={path: owner/name, quantize: nf4, lora: {}}; policy.gpus_per_rank=1; "
        "reference={gpus_per_rank: 1, zero_stage: 3}",
        "reference.zero_stage must be 0 with model.quantize, whose weights it cannot shard, got 3",
    ),
    (
        "dpo",
        "model={path: owner/name, quantize: nf4, lora: {}}; policy.gpus_per_rank=1",
        "model.quantize nf4 needs a GPU (reference.gpus_per_rank above 0), got 0",
    ),
    (
        "sft",
        "model.quantize=nf4; model.lora={}",
        "model.quantize needs model.path, whose weights it quantises, got nf4",
    ),
    (
        "grpo",
        "rollout.transfer.lora=adapter; model.lora={rank: 513}",
        "model.lora.rank must be at most 512 with rollout.transfer.lora adapter (merged has no limit), got 513",
    ),
    (
        "dpo",
        "model.lora={}; model.freeze=[model.embed_tokens.*]",
        "model.freeze must be left out with lora, which freezes all weights, got ['model.embed_tokens.*']",
    ),
    ("sft", "model.lora={rank: 0}", "model.lora.rank: must be above 0, got 0"),
    ("sft", "model={}", "model.path must be given, or init, but not both, got neither"),
    # Shapes, optimizers, devices.
    ("sft", "model.init.hidden_size=190", "model.init.hidden_size must be a multiple of heads (4), got 190"),
    (
        "sft",
        "model.init.hidden_size=48",
        "model.init.hidden_size / heads must be a multiple of 8 (rollout kernels need it), got 12",
    ),
    ("sft", "model.init.kv_heads=3", "model.init.heads must be a multiple of kv_heads (3), got 4"),
    (
        "ppo",
        "critic.optimizer={schedule: constant, warmup_updates: 5}",
        "critic.optimizer.warmup_updates must be 0 with schedule constant (constant_with_warmup warms up), got 5",
    ),
    (
        "ppo",
        "critic.optimizer={schedule: constant, warmup_ratio: 0.1}",
        "critic.optimizer.warmup_ratio must be 0 with schedule constant (constant_with_warmup warms up), got 0.1",
    ),
    (
        "sft",
        "policy.optimizer={warmup_updates: 5, warmup_ratio: 0.1}",
        "policy.optimizer.warmup_ratio must be 0 beside warmup_updates (5), got 0.1",
    ),
    ("sft", "policy.ema_decay=1", "policy.ema_decay: must be below 1, got 1"),
    ("ppo", "critic.ema_decay=0.9", "critic.ema_decay must be left out as a critic is not exported, got 0.9"),
    (
        "ppo",
        "critic.optimizer={name: adam, weight_decay: 0.1}",
        "critic.optimizer.weight_decay must be 0 for adam, which would scale it like a gradient (adamw does not), "
        "got 0.1",
    ),
    (
        "ppo",
        "critic.optimizer={name: sgd, eps: 0.1}",
        "critic.optimizer.eps must be left out for sgd, which has no moments, got 0.1",
    ),
    (
        "ppo",
        "critic.offload_optimizer=true",
        "critic.offload_optimizer needs zero_stage 1, 2 or 3, got zero_stage 0",
    ),
    (
        "sft",
        "policy={offload_parameters: true, zero_stage: 2}",
        "policy.offload_parameters needs zero_stage 3, got zero_stage 2",
    ),
    # A reference that follows the policy.
    (
        "dpo",
        "reference.sync_mix=0.5",
        "reference.sync_mix must be left out without sync_every, got 0.5",
    ),
    (
        "dpo",
        "model.lora={}; reference={from_policy: true, sync_every: 5}",
        "reference.sync_every must be left out with from_policy, whose weights are the policy's own, got 5",
    ),
    (
        "dpo",
        "algorithm.reference=precomputed; reference.sync_every=5",
        "reference.sync_every must be left out with algorithm.reference precomputed, whose logprobs are those of the "
        "initial policy, got 5",
    ),
    (
        "dpo",
        "model={path: other, lora: {}, quantize: nf4}; policy.gpus_per_rank=1; reference={gpus_per_rank: 1, "
        "sync_every: 5}",
        "reference.sync_every must be left out with model.quantize, whose weights cannot be replaced, got 5",
    ),
    (
        "grpo",
        "reference.sync_every=5",
        "reference.sync_every must be left out where the algorithm compares with no reference, got 5",
    ),
    # Names that Weights & Biases takes.
    (
        "sft",
        "tracking={wandb: false, tags: [a]}",
        "tracking.tags must be left out with wandb false, as nothing else has them, got ['a']",
    ),
    ("sft", f"tracking.tags=[a, {'b' * 65}]", f"tracking.tags must be of 1 to 64 characters, got '{'b' * 65}'"),
    ("sft", "tracking.entity=' '", "tracking.entity must be of 1 to 128 characters, got ' '"),
    ("sft", "run.hub_private=true", "run.hub_private must be left out without hub_model_id, got true"),
    (
        "sft",
        "run.hub_model_id=model",
        "run.hub_model_id must be OWNER/NAME, of letters, digits, single - and ., and _, got model",
    ),
    # What is passed through to DeepSpeed.
    (
        "sft",
        "policy.deepspeed={gradient_clipping: 2}",
        "policy.deepspeed.gradient_clipping must be left out (optimizer.max_grad_norm decides it), got 2",
    ),
    (
        "sft",
        "policy.deepspeed={zero_optimization: {stage: 2}}",
        "policy.deepspeed.zero_optimization.stage must be left out (zero_stage decides it), got 2",
    ),
    (
        "sft",
        "policy.zero_stage=2; policy.deepspeed={zero_optimization: {reduce_buket_size: 1}}",
        "policy.deepspeed.zero_optimization.reduce_buket_size must be a setting of DeepSpeed "
        "(did you mean reduce_bucket_size?), got 1",
    ),
    (
        "sft",
        "policy.deepspeed={timers: {other: 1}}",
        "policy.deepspeed.timers.other must be a setting of DeepSpeed (there are throughput), got 1",
    ),
    (
        "sft",
        "policy.deepspeed={timers: 3}",
        "policy.deepspeed.timers must be a section (throughput), got 3",
    ),
    (
        "sft",
        "policy.deepspeed={wall_clock_breakdown: 3}",
        "policy.deepspeed.wall_clock_breakdown must be true or false, got 3",
    ),
    (
        "sft",
        "policy.deepspeed={steps_per_print: true}",
        "policy.deepspeed.steps_per_print must be a whole number, at least 0, got true",
    ),
    (
        "sft",
        "policy.deepspeed={zero_optimization: {reduce_bucket_size: 1000}}",
        "policy.deepspeed.zero_optimization needs zero_stage 1, 2 or 3, got reduce_bucket_size with stage 0",
    ),
    (
        "sft",
        "policy.zero_stage=2; policy.deepspeed={zero_optimization: {sub_group_size: 1000}}",
        "policy.deepspeed.zero_optimization.sub_group_size needs zero_stage 3, which alone reads it, got 2",
    ),
    (
        "sft",
        "policy.zero_stage=3; policy.deepspeed={zero_optimization: {zero_quantized_weights: true}}",
        "policy.deepspeed.zero_optimization.zero_quantized_weights needs a GPU (gpus_per_rank above 0), got none",
    ),
    (
        "sft",
        "policy.zero_stage=2; policy.deepspeed={prescale_gradients: true}",
        "policy.deepspeed.prescale_gradients needs zero_stage 0, or zero_optimization.reduce_scatter false, got "
        "zero_stage 2",
    ),
    (
        "sft",
        "policy.zero_stage=2; policy.deepspeed={zero_optimization: {allgather_bucket_size: 5}}",
        "policy.deepspeed.zero_optimization must have a reduce_bucket_size above 0 and an even allgather_bucket_size, "
        "got {'allgather_bucket_size': 5}",
    ),
    (
        "dpo",
        "reference.deepspeed={dump_state: true}",
        "reference.deepspeed must be left out for a group without optimizer at zero_stage 0, which uses none of it, "
        "got {'dump_state': True}",
    ),
    (
        "ppo",
        "reward={models: [{path: rm, group: {zero_stage: 2}}]}",
        "reward.models.0.group.zero_stage must be 0 or 3 for a group without optimizer and gradients, got 2",
    ),
    (
        "ppo",
        "reference={zero_stage: 3, offload_optimizer: true}",
        "reference.offload_optimizer must be false for a group without optimizer, got true",
    ),
    (
        "ppo",
        "model.dtype=bf16; policy.zero_stage=1",
        "critic.zero_stage must be 1, 2 or 3 with model.dtype bf16, as DeepSpeed accumulates the gradients of stage 0 "
        "in bf16, got 0",
    ),
    ("sft", "model.attention=flash_attention_2", "model.attention flash_attention_2 needs dtype bf16, got fp32"),
    (
        "sft",
        "model.attention=flash_attention_2; model.dtype=bf16; policy.zero_stage=1",
        "model.attention flash_attention_2 needs policy.gpus_per_rank > 0, got 0",
    ),
    (
        "grpo",
        "rollout.tensor_parallel=2; rollout.gpus_per_engine=1",
        "rollout.gpus_per_engine must be 0 or tensor_parallel (2), got 1",
    ),
    (
        "ppo",
        "cluster.placement=shared; policy.gpus_per_rank=1; rollout.gpus_per_engine=1; critic.gpus_per_rank=0.5",
        "cluster.placement shared needs groups that ask for the same, at most 1, GPU, got policy.gpus_per_rank 1, "
        "rollout.gpus_per_engine 1, critic.gpus_per_rank 0.5",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout.max_attempts=5",
        "rollout.max_attempts must be left out with rollout.late wait, where none starts again, got 5",
    ),
    (
        "grpo",
        "rollout.max_step_tokens=8",
        "rollout.max_step_tokens must be left out with algorithm.max_staleness 0, where all tokens of a response are "
        "of one version, got 8",
    ),
    (
        "ppo",
        "algorithm.max_staleness=2; rollout.max_step_tokens=5",
        "rollout.max_step_tokens must be at least 6, as a response of rollout.max_response_tokens (16) has 3 versions "
        "to end in (algorithm.max_staleness 2 and 1), got 5",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout.max_step_tokens=16",
        "rollout.max_step_tokens must be below rollout.max_response_tokens (16), or no response is ever held, got 16",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout={max_step_tokens: 8, on_update: restart, max_response_tokens: 16}",
        "rollout.on_update must be recompute or keep_cache with rollout.max_step_tokens 8: responses that begin anew "
        "at every version would never have more tokens, got restart",
    ),
    (
        "grpo",
        "algorithm={name: grpo, max_staleness: 1, importance_correction: null}; rollout.presence_penalty=0.5; "
        "rollout.max_step_tokens=8",
        "rollout.presence_penalty must be 0 with rollout.max_step_tokens 8: vLLM would not penalize tokens that a "
        "response had before it went on, got 0.5",
    ),
    (
        "grpo",
        "rollout.late=restart",
        "rollout.late must be left out with algorithm.max_staleness 0, where no response becomes too old, got restart",
    ),
    (
        "grpo",
        "rollout.max_attempts=5",
        "rollout.max_attempts must be left out with algorithm.max_staleness 0, where no response becomes too old, "
        "got 5",
    ),
    (
        "ppo",
        "rollout.tail_share=0.5",
        "rollout.tail_share must be left out with rollout.tail none, got 0.5",
    ),
    (
        "grpo",
        "algorithm.max_staleness=1; rollout.tail=postpone",
        "rollout.tail must be none with algorithm.max_staleness 1, where no step waits for its longest responses, "
        "got postpone",
    ),
    (
        "grpo",
        "algorithm.overlap_reads=true",
        "algorithm.overlap_reads must be left out where a step reads nothing before its updates: no reference, no old "
        "logprobs, no values, got true",
    ),
    (
        "ppo",
        "algorithm={name: ppo, overlap_reads: true, max_staleness: 2, kl_coef: 0}",
        "algorithm.overlap_reads must be auto or false with algorithm.max_staleness 2, unless there is a reference "
        "group, without sync_every: other models learn meanwhile, got true",
    ),
    (
        "ppo",
        "algorithm={name: ppo, overlap_reads: true, max_staleness: 1}; reference.sync_every=4",
        "algorithm.overlap_reads must be auto or false with algorithm.max_staleness 1, unless there is a reference "
        "group, without sync_every: other models learn meanwhile, got true",
    ),
    (
        "ppo",
        "algorithm={name: ppo, overlap_reads: true}; rollout={gpus_per_engine: 1}; policy.gpus_per_rank=1; "
        "critic.gpus_per_rank=1; cluster.placement=shared",
        "algorithm.overlap_reads must be auto or false with cluster.placement shared, where engines and groups "
        "that read take turns on the same GPUs, got true",
    ),
    (
        "grpo",
        "algorithm.max_staleness=2; rollout={gpus_per_engine: 1}; policy.gpus_per_rank=1; cluster.placement=shared",
        "algorithm.max_staleness must be 0 with cluster.placement shared, where engines and policy take turns on the "
        "same GPUs, got 2",
    ),
    (
        "grpo",
        "rollout.transfer.backend=nccl",
        "rollout.transfer.backend nccl needs GPUs on both sides, got policy.gpus_per_rank 0 and "
        "rollout.gpus_per_engine 0",
    ),
    (
        "grpo",
        "rollout.transfer.backend=ipc; rollout.gpus_per_engine=1; policy.gpus_per_rank=1",
        "rollout.transfer.backend ipc needs cluster.placement shared, got split",
    ),
    (
        "grpo",
        "rollout.transfer.backend=nccl; rollout.gpus_per_engine=1; policy.gpus_per_rank=1; cluster.placement=shared",
        "rollout.transfer.backend must be ipc with cluster.placement shared, as NCCL refuses two processes on one GPU, "
        "got nccl",
    ),
    (
        "grpo",
        "rollout={gpus_per_engine: 1, engines: 2}; policy.gpus_per_rank=1; cluster.placement=shared",
        "rollout.engines must be at most policy.ranks (1) with cluster.placement shared, as an engine takes its "
        "weights from the policy's rank on its GPU, got 2",
    ),
    (
        "grpo",
        "rollout={gpus_per_engine: 1, transfer: {store: holder}}; policy.gpus_per_rank=1",
        "rollout.transfer.backend must be gloo with rollout.transfer.store holder, which keeps weights in host memory, "
        "got auto, which is nccl here",
    ),
    (
        "grpo",
        "rollout={gpus_per_engine: 1, transfer: {store: holder, backend: nccl}}; policy.gpus_per_rank=1",
        "rollout.transfer.backend must be gloo with rollout.transfer.store holder, which keeps weights in host memory, "
        "got nccl",
    ),
    # Nodes and environment.
    ("grpo", "policy={ranks: 4, ranks_per_node: 3}", "policy.ranks_per_node must divide ranks (4), got 3"),
    (
        "grpo",
        "policy={ranks: 6, ranks_per_node: 3, gpus_per_rank: 0.5}",
        "policy.ranks_per_node x gpus_per_rank must be whole GPUs, or a part of one, got 1.5",
    ),
    (
        "grpo",
        "rollout={engines: {min: 3, max: 3}}",
        "rollout.engines.min must be below max (3), or engines a number, got 3",
    ),
    (
        "grpo",
        "rollout={engines: {min: 2, max: 8}, engines_per_node: 2}",
        "rollout.engines_per_node must be left out where engines is a range, as each goes where there is room, got 2",
    ),
    (
        "grpo",
        "rollout={engines: {min: 2, max: 8}}; cluster.placement=shared",
        "rollout.engines must be a number with cluster.placement shared, where each has a bundle of the other groups, "
        "got {min: 2, max: 8}",
    ),
    (
        "grpo",
        "rollout={engines: {min: 2, max: 8}}; run.max_restarts=0",
        "rollout.engines must be a number with run.max_restarts 0, where none comes back, got {min: 2, max: 8}",
    ),
    (
        "sft",
        "checkpoint.memory_every=4",
        "checkpoint.memory_every must be left out for sft, whose groups go back to checkpoints alone, got 4",
    ),
    (
        "grpo",
        "checkpoint.memory_every=4; run.max_restarts=0",
        "checkpoint.memory_every must be left out with run.max_restarts 0, where no group is brought back, got 4",
    ),
    (
        "grpo",
        "checkpoint.memory_every=4; algorithm.overlap_gradients=true",
        "checkpoint.memory_every must be left out with algorithm.overlap_gradients, where groups go back to "
        "checkpoints alone, got 4",
    ),
    (
        "grpo",
        "checkpoint.memory_every=often",
        "checkpoint.memory_every: must be a whole number or auto or null, got 'often'",
    ),
    (
        "grpo",
        "checkpoint.memory_every=0",
        "checkpoint.memory_every: must be above 0, got 0",
    ),
    (
        "grpo",
        "rollout.engines=3; rollout.engines_per_node=2",
        "rollout.engines_per_node must divide engines (3), got 2",
    ),
    (
        "sft",
        "cluster.placement=separate",
        "cluster.placement must be split for sft, which has no rollout engines, got separate",
    ),
    (
        "grpo",
        "cluster.placement=shared; policy.ranks_per_node=1",
        "policy.ranks_per_node must be left out with cluster.placement shared, got 1",
    ),
    (
        "grpo",
        "cluster.placement=shared; policy.node_labels={a: x}; rollout.node_labels={a: y}",
        "rollout.node_labels.a must be that of the other groups with cluster.placement shared (x), got y",
    ),
    (
        "grpo",
        "policy.env={WANDB_API_KEY: x}",
        "policy.env.WANDB_API_KEY must come from the environment of the nodes: configurations are kept and shown",
    ),
    (
        "grpo",
        "cluster.env={MYPASSWORD: x}",
        "cluster.env.MYPASSWORD must come from the environment of the nodes: configurations are kept and shown",
    ),
    (
        "grpo",
        "rollout.env={HTTPS_PROXY: 'http://me:hush@proxy:3128'}",
        "rollout.env.HTTPS_PROXY must hold no URL with a password: configurations are kept and shown",
    ),
    (
        "sft",
        "cluster.env={LD_PRELOAD: x.so}",
        "cluster.env.LD_PRELOAD must be left out, as programs run other code by it, got 'x.so'",
    ),
    (
        "grpo",
        "cluster.env={OMP_NUM_THREADS: '4'}",
        "cluster.env.OMP_NUM_THREADS must be left out, as threads_per_rank and threads_per_engine set it, got '4'",
    ),
    (
        "grpo",
        "cluster.placement=separate; rollout.node_labels={ray.io/node-id: ab}",
        "rollout.node_labels.ray.io/node-id must be left out with cluster.placement separate, got ab",
    ),
    (
        "grpo",
        "policy.node_labels={zone: in(a}",
        "policy.node_labels.zone must be a label's value, or !value, in(a, b), !in(a, b), got 'in(a'",
    ),
    (
        "grpo",
        "cluster.driver_labels={a b: c}",
        "cluster.driver_labels.a b must be the name of a label: letters, digits, '-', '_' and '.', got 'a b'",
    ),
    (
        "sft",
        "tracking.alerts.limits=[{metric: loss/nl, above: 3}]",
        "tracking.alerts.limits.0.metric must be a metric that sft writes, as docs/outputs.md has them (did you mean "
        "loss/nll?), got loss/nl",
    ),
    (
        "ppo",
        "tracking.alerts.falling.metric=eval/reward/men",
        "tracking.alerts.falling.metric must be a metric that ppo writes, as docs/outputs.md has them (did you mean "
        "eval/reward/mean?), got eval/reward/men",
    ),
    (
        "grpo",
        "tracking.alerts.limits=[{metric: policy/kl, above: 3}, {metric: policy/kl}]",
        "tracking.alerts.limits.1.above or below must be given, one of the two, got neither",
    ),
    (
        "grpo",
        "tracking.alerts.limits=[{metric: policy/kl, above: 3, below: 1}]",
        "tracking.alerts.limits.0.above or below must be given, one of the two, got both (a rule each)",
    ),
    (
        "grpo",
        "tracking.alert_webhook_env=ALERTS",
        "tracking.alert_webhook_env must be the name of an environment variable that tells of a secret, such as "
        "SLACK_WEBHOOK_URL, got another text (not shown)",
    ),
    ("grpo", "cluster.env={A B: '4'}", "cluster.env.A B must be a name of letters, digits and _, got 'A B'"),
    (
        "grpo",
        "rollout.resources={GPU: 1}",
        "rollout.resources.GPU must be left out, as it is no custom resource, got 1",
    ),
]


def settings(job: str, overrides: str) -> dict[str, Any]:
    """The job's settings with `a.b=c; d=e` applied."""
    return apply_overrides(deepcopy(JOBS[job]), overrides.split("; "))


@pytest.mark.parametrize("job", JOBS)
def test_each_job_is_valid_as_long_as_no_rule_is_broken(job: str) -> None:
    assert isinstance(validate(JOBS[job]), RunConfig)


@pytest.mark.parametrize(
    ("job", "overrides"),
    [
        ("grpo", "algorithm={name: grpo, importance_correction: {}, samples_per_update: 64, clip_high: 0.28}"),
        ("grpo", "algorithm={name: grpo, max_staleness: 8, samples_per_update: 64, clip_high: 0.28}"),
        ("ppo", "algorithm={name: ppo, max_staleness: 1, importance_correction: null, clip_high: 0.28}"),
        ("grpo", "algorithm={name: grpo, max_staleness: 1, importance_correction: null}; rollout.top_p=0.9"),
        ("grpo", "algorithm={name: grpo, importance_correction: auto, clip_high: 0.28}; rollout.top_p=0.9"),
        ("grpo", "algorithm={name: grpo, mask_truncated: true, overlong: {buffer: 8}}"),
        ("grpo", "rollout={stop: [;], keep_stop_string: true}"),
        ("grpo", "rollout={on_update: recompute, update_order: together}"),
        ("grpo", "algorithm.max_staleness=8; rollout.on_update=keep_cache"),
        ("ppo", "algorithm={name: ppo, overlap_reads: true}; reference.sync_every=4"),
        ("ppo", "algorithm={name: ppo, overlap_reads: true, max_staleness: 2}"),
        ("ppo", "algorithm.overlap_reads=true; cluster.placement=shared"),
        ("grpo", "algorithm={name: grpo, overlap_reads: false, kl_coef: 0.1}"),
        ("grpo", "algorithm.max_staleness=2; rollout={max_step_tokens: 6, max_response_tokens: 16}"),
        ("ppo", "algorithm.max_staleness=1; rollout={engines: 2, update_order: rolling, transfer: {store: holder}}"),
        (
            "grpo",
            "algorithm={name: grpo, eval_every: 5, eval_samples_per_prompt: 4, eval_pass_reward: 0.75}; "
            "data.eval=rows.jsonl; "
            "reward.functions=[{name: math, weight: 0.5}, {name: exact_match, weight: 0.25}]",
        ),
        ("grpo", "algorithm={name: grpo, kl_coef: 0.1}; rollout.top_p=0.9"),
        ("grpo", "algorithm={name: grpo, epochs: 2, steps: null}"),
        (
            "grpo",
            "algorithm={name: grpo, eval_every: 5, eval_samples_per_prompt: 6, best_by: eval/pass@4, "
            "stop_when: {metric: eval/majority, at_least: 0.9}}; data.eval=rows.jsonl",
        ),
        ("ppo", "algorithm={name: ppo, epochs: 1, critic_warmup_steps: 500}"),
        ("sft", "tracking.alerts={falling: {metric: reward/mean, window_steps: 5}, limits: []}"),
        ("grpo", "tracking.alerts.limits=[{metric: policy/kl, above: 1}, {metric: eval/reward/mean, below: 0.1}]"),
        ("embedding", "tracking.alerts.limits=[{metric: embedding/accuracy, below: 0.1, for_steps: 9, level: error}]"),
        ("grpo", "algorithm={name: grpo, steps: 0, eval_every: 5}; data.eval=rows.jsonl"),
        ("ppo", "algorithm={name: ppo, steps: 0, eval_every: 5, critic_warmup_steps: 5}; data.eval=rows.jsonl"),
        ("grpo", "reward={models: [rm], functions: [exact_match], workers: 4}"),
        ("dpo", "algorithm.loss=[sft, sigmoid]; algorithm.beta=0.5"),
        ("embedding", "algorithm.loss=[triplet, infonce]; algorithm.negatives=4; algorithm.temperature=0.1"),
        ("embedding", "algorithm.loss=[{name: gist, weight: 2}]; algorithm.guide=other; algorithm.guide_margin=0.1"),
        ("embedding", "data.train={a: x, b: y}; algorithm.tasks={a: {loss: cosent}, b: {margin: 0.5}}"),
        ("embedding", "data.eval={a: x, b: y}; data.corpus=z; algorithm.best_by=eval/a/ndcg@10"),
        ("reranker", "algorithm.loss=[cross_entropy, margin_mse]; algorithm.targets=scores; algorithm.negatives=3"),
        ("reranker", "algorithm.loss=bce; algorithm.negatives=0"),
        ("reranker", "model.init={family: bert, hidden_size: 20, heads: 4}"),
    ],
)
def test_settings_that_have_an_effect_are_allowed(job: str, overrides: str) -> None:
    assert isinstance(validate(settings(job, overrides)), RunConfig)


@pytest.mark.parametrize("job", JOBS)
def test_a_resolved_configuration_breaks_no_rule(job: str) -> None:
    """It gives every field, also those without effect, which equal their defaults."""
    config = validate(JOBS[job])
    assert validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(("job", "overrides", "line"), CASES, ids=[f"{job} {what}" for job, what, _ in CASES])
def test_a_broken_rule_is_one_line(job: str, overrides: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(settings(job, overrides))
    assert caught.value.problems == (line,)


def raised_at(job: str, overrides: str) -> set[tuple[str, int]]:
    """File and line of the rules that a case breaks."""
    found = set()
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(settings(job, overrides))
    for problem in caught.value.errors():
        trace = getattr(problem.get("ctx", {}).get("error"), "__traceback__", None)
        while trace is not None:
            path = Path(trace.tb_frame.f_code.co_filename)
            found.add((path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name, trace.tb_lineno))
            trace = trace.tb_next
    return found


def test_every_rule_is_broken_by_a_case() -> None:
    """A rule that is added to the files of rules needs a case above."""
    rules = {
        (file, node.lineno)
        for file in RULE_FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "refuse_unused")
    }
    broken = set().union(*(raised_at(job, overrides) for job, overrides, _ in CASES))
    assert rules - broken == set()


INIT = ModelInit(hidden_size=32, layers=1, heads=1, alphabet="abcd", max_positions=64)
Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Saves a tiny model in the working directory and returns its name."""
    import transformers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def saved(kind: str, *, alphabet: str = "abcd", **settings: Any) -> str:
        tokenizer = build_char_tokenizer(alphabet)
        values = hf_config(INIT, "fp32", len(tokenizer), 2, 0) | settings
        config = transformers.AutoConfig.for_model(**values)
        getattr(transformers, kind).from_config(config).save_pretrained("other")
        tokenizer.save_pretrained("other")
        return "other"

    return saved


def check(job: str, **sections: Any) -> list[str]:
    """Warnings of `check` for a job with a tiny model."""
    rows = [{"prompt": "ab", "answer": "ba"}, {"prompt": "cd", "answer": "dc"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = deepcopy(JOBS[job]) | {"model": {"init": INIT.model_dump()}, "cluster": {"cpus": 4}} | sections
    if job in ("sft", "reward", "dpo"):
        base["data"] = base["data"] | {"max_length": 64}
    return preflight(validate(base))


def problems_of(job: str, **sections: Any) -> tuple[str, ...]:
    """Lines that `check` refuses the job with."""
    with pytest.raises(UserError) as caught:
        check(job, **sections)
    return caught.value.problems


SCORE, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"


@pytest.mark.parametrize("job", ["ppo", "grpo"])
def test_a_reward_model_has_a_score_head(save: Save, job: str) -> None:
    reward = {"models": [save(CAUSAL)]}
    expected = (
        "reward.models.0.path: must be a sequence-classification model, as the reward job exports it, "
        "got Qwen2ForCausalLM in other"
    )
    assert problems_of(job, reward=reward) == (expected,)


def test_a_name_alone_makes_no_score_head(save: Save) -> None:
    reward = {"models": [save(CAUSAL)]}
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForSequenceClassification"]}))
    expected = "reward.models.0.path: must hold the weights of a score head (score.weight), got none in other"
    assert problems_of("ppo", reward=reward) == (expected,)


def test_a_reward_model_gives_one_score(save: Save) -> None:
    reward = {"functions": ["exact_match"], "models": [save(SCORE, num_labels=3)]}
    assert problems_of("ppo", reward=reward) == ("reward.models.0.path: must give one score, got 3 classes in other",)


def test_a_reward_model_reads_the_policys_tokens(save: Save) -> None:
    reward = {"models": [{"path": save(SCORE, alphabet="abdc", num_labels=1), "weight": 0.5}, "./other"]}
    rule = "must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in other"
    expected = (f"reward.models.0.path: {rule}", f"reward.models.1.path: {rule}")
    assert problems_of("grpo", reward=reward) == expected


def test_a_critic_reads_the_policys_tokens(save: Save) -> None:
    critic = {"path": save(CAUSAL, alphabet="abcde")}
    rule = "must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in other"
    assert problems_of("ppo", critic=critic) == (f"critic.path: {rule}",)


@pytest.mark.parametrize("kind", [SCORE, CAUSAL])
def test_models_that_fit_pass(save: Save, kind: str) -> None:
    Path(save(kind, num_labels=1)).rename("start")
    assert check("ppo", reward={"models": [save(SCORE, num_labels=1)]}, critic={"path": "start"}) == []


def test_models_on_the_hub_are_not_looked_at(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    where = "is read from the hub when the run starts, not checked here"
    assert check("ppo", reward={"models": ["owner/scores"]}, critic={"path": "owner/values"}) == [
        f"reward.models.0.path: owner/scores {where}",
        f"critic.path: owner/values {where}",
    ]
    models = {"model": {"path": "owner/policy"}, "reward": {"models": [save(SCORE, num_labels=1)]}}
    assert check("ppo", **models) == [f"model.path: owner/policy {where}"]


def test_missing_and_damaged_models(save: Save) -> None:
    path = save(SCORE, num_labels=1)
    assert problems_of("ppo", reward={"models": ["./othr"]}, critic={"path": "run"}) == (
        "reward.models.0.path: must be a model directory with a config.json (did you mean other?), got othr",
        "critic.path: must be a model directory with a config.json, got run",
    )
    Path("other/model.safetensors").write_bytes(b"damaged!" * 9)
    [line] = problems_of("ppo", reward={"models": [path]})
    assert line.startswith(
        "reward.models.0.path: weights in other cannot be read, model.safetensors is no safetensors "
    )
    path = save(SCORE, num_labels=1)
    for file in Path("other").iterdir():
        if file.name.startswith("token"):
            file.unlink()
    assert problems_of("ppo", critic={"path": path})[0].startswith("critic.path: directory holds no tokenizer (")


PAIRS = [{"prompt": "ab", "chosen": "ba", "rejected": "ab"}]
LABELLED = [{"prompt": "ab", "completion": "ba", "label": True}]
WRONG_ROWS = {
    "kto with paired data": (
        "dpo",
        {"name": "dpo", "steps": 5, "loss": "kto"},
        PAIRS,
        "data.train: loss kto needs prompt + completion + label, these rows are pairs (columns prompt, chosen, "
        "rejected): choose another algorithm.loss, or make two labelled rows of each pair",
    ),
    "dpo with labelled rows": (
        "dpo",
        {"name": "dpo", "steps": 5},
        LABELLED,
        "data.train: preference pairs need chosen + rejected, these rows are single labelled responses (columns "
        "prompt, completion, label): dpo learns from them with algorithm.loss kto",
    ),
    "a reward model from prompts": (
        "reward",
        {"name": "reward", "steps": 5},
        [{"prompt": "ab", "answer": "ba"}],
        "data.train: row 1 has columns prompt, answer, preference pairs need one of: prompt + chosen + rejected; "
        "chosen + rejected; rename with data.columns, for example {chosen: answer}",
    ),
    "pairs that do not differ": (
        "reward",
        {"name": "reward", "steps": 5},
        [*PAIRS, {"prompt": "ab", "chosen": "ba", "rejected": "ba"}],
        "data.train: row 2: chosen and rejected must differ, got the same twice",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_ROWS)
def test_rows_of_another_kind(save: Save, mistake: str) -> None:
    job, algorithm, rows, line = WRONG_ROWS[mistake]
    Path("wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert problems_of(job, algorithm=algorithm, data={"train": "wrong.jsonl"}) == (line,)
