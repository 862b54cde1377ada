"""TRL's side of the comparison: runs GRPO on a workload and prints one JSON line a step, under Tandem's metric names.

Runs inside the environment that trl_env makes; the driver starts it:

    benchmarks/.cache/trl/bin/python -m benchmarks.trl_grpo long DIRECTORY --steps 3
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.reward import score
from benchmarks.workloads import LEARNING_RATE, THREADS, WORKLOADS, Workload, model_directory, prompts_file


class StepReport(TrainerCallback):
    """Scores completions and prints a line at the end of every step, with what the scored batch held."""

    __name__ = "letter_fraction"  # TRL names its reward metrics after the function.

    def __init__(self) -> None:
        self._batch: dict[str, float] = {}
        self._started = 0.0

    def __call__(self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: object):
        """Rewards of a generation batch; called once a step, as TRL calls reward functions."""
        rewards = score(completions)
        prompt_lengths, lengths = list(map(len, prompts)), list(map(len, completion_ids))
        padded = len(prompts) * (max(prompt_lengths) + max(lengths))
        self._batch = {
            "samples": len(completions),
            "tokens/generated": sum(lengths),
            "tokens/padding_fraction": round(1 - (sum(prompt_lengths) + sum(lengths)) / padded, 4),
            "reward/mean": round(sum(rewards) / len(rewards), 4),
        }
        return rewards

    def on_step_begin(self, args, state, control, **_: object) -> None:
        if state.global_step == 0:
            self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **_: object) -> None:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        samples = self._batch["samples"]
        timing = {"time/step": round(seconds, 4), "samples_per_second": round(samples / seconds, 3)}
        print(json.dumps({"step": state.global_step, **timing, **self._batch}), flush=True)


def settings(workload: Workload, steps: int, seed: int, micro_batch: int, output: str) -> GRPOConfig:
    """TRL's settings: the algorithm of benchmarks/long.yaml and short.yaml, and nothing written or logged."""
    return GRPOConfig(
        output_dir=output,
        max_steps=steps,
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=workload.samples_per_step // micro_batch,
        num_generations=workload.samples_per_prompt,
        max_completion_length=workload.max_response_tokens,
        shuffle_dataset=False,
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",  # mean over all tokens of the update
        epsilon=0.2,
        epsilon_high=0.2,
        scale_rewards="group",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    """Run the steps of one workload."""
    parser = argparse.ArgumentParser(description="TRL GRPO on a benchmark workload, one JSON line a step.")
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("directory", type=Path, help="what benchmarks.workloads wrote")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro-batch", type=int, help="samples in one forward pass (default: the whole batch)")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    torch.set_num_threads(THREADS)
    model_path = str(model_directory(arguments.directory))
    rows = [json.loads(line) for line in prompts_file(arguments.directory).read_text(encoding="utf-8").splitlines()]
    report = StepReport()
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(model_path),
            reward_funcs=report,
            train_dataset=Dataset.from_list(rows),
            args=settings(
                workload, arguments.steps, arguments.seed, arguments.micro_batch or workload.samples_per_step, output
            ),
            callbacks=[report],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
