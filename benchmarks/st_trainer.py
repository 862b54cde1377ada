"""sentence-transformers' side of `compare_st`: its trainer with the settings of embedding.yaml, one JSON line a step.

python -m benchmarks.st_trainer MODEL PAIRS --batch 32 --steps 13 [--cached 32]
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Lines(TrainerCallback):
    """Prints the time of every step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """One line."""
        now = time.perf_counter()
        print(json.dumps({"step": state.global_step, "time/step": now - self.started}), file=sys.__stdout__, flush=True)
        self.started = now


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--cached", type=int, help="texts of a mini-batch of the cached loss (default: not cached)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    model = SentenceTransformer(arguments.model, device="cpu")
    model.max_seq_length = 128
    with open(arguments.pairs, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    loss = (
        losses.CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=arguments.cached)
        if arguments.cached
        else losses.MultipleNegativesRankingLoss(model, scale=20.0)
    )
    settings = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="st-trainer-"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        warmup_steps=2,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        dataloader_pin_memory=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    data = Dataset.from_dict({"anchor": [row["query"] for row in rows], "positive": [row["pos"][0] for row in rows]})
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its own summary
        SentenceTransformerTrainer(model, settings, data, loss=loss, callbacks=[Lines()]).train()


if __name__ == "__main__":
    main()
