"""The jobs of `benchmarks.recorded`, their rows and their reward.

Nothing here is of the code that they run: rows and reward are this file's own, threads and seeds are given, and the
settings are old ones, so that checkouts of different age can be compared.
"""

import json
import random
from difflib import SequenceMatcher
from pathlib import Path

STEPS = 20
LETTERS = "abcdefgh"


def likeness(completion: str, answer: str) -> float:
    """The jobs' reward, which seldom is the same for two different completions: how alike they are to the answer."""
    return SequenceMatcher(None, completion, answer).ratio() - 0.01 * len(completion)


def jobs(data: Path, model: Path) -> dict[str, dict[str, object]]:
    """Name -> configuration, but for what all have in common; `data` is the directory that `write_rows` has filled."""
    words = {"train": str(data / "words.jsonl"), "eval": str(data / "words-eval.jsonl")}
    pairs = {"train": str(data / "pairs.jsonl"), "eval": str(data / "pairs-eval.jsonl")}
    lora = {"rank": 8, "alpha": 16}
    engine = {"max_prompt_tokens": 16, "max_response_tokens": 8, "threads_per_engine": 1}
    functions = ["exact_match", {"name": f"{Path(__file__).resolve()}:likeness", "weight": 0.5}]
    rl = {"data": words, "rollout": engine, "reward": {"functions": functions}}
    grpo = {"name": "grpo", "steps": STEPS, "prompts_per_step": 8, "samples_per_prompt": 8, "eval_every": 10}
    ppo = {"name": "ppo", "steps": STEPS, "prompts_per_step": 32, "samples_per_update": 16, "eval_every": 10}
    ppo |= {"gae_lambda": 0.95, "missing_eos_penalty": 0.5, "kl_coef": 0.05}
    # Both give an update whole groups in their order; with several updates a step, which ones is drawn.
    passes = {"epochs_per_step": 2}
    drawn = {"samples_per_update": 16, "importance_correction": {}, "kl_coef": 0.02, "entropy_coef": 0.001}
    return {
        "grpo": {**rl, "algorithm": grpo | passes, "policy": _learning(1e-3)},
        "grpo-updates": {**rl, "algorithm": grpo | drawn, "policy": _learning(5e-4), "reference": _frozen()},
        "ppo": {**rl, "algorithm": ppo, "policy": _learning(5e-4), "critic": _learning(1e-3), "reference": _frozen()},
        "ppo-lora": {
            **rl,
            "model": {"path": str(model), "lora": lora},
            "algorithm": ppo | {"critic_warmup_steps": 2},
            "policy": _learning(2e-3),
            "critic": _learning(2e-3) | {"lora": lora},
            "reference": {"from_policy": True},
            "rollout": engine | {"transfer": {"lora": "adapter"}},
        },
        "sft": {
            "algorithm": {"name": "sft", "steps": STEPS, "samples_per_update": 32, "eval_every": 5},
            "data": words | {"max_length": 32},
            "policy": _learning(1e-3, schedule="cosine", weight_decay=0.01),
        },
        "dpo": {
            "algorithm": {"name": "dpo", "steps": STEPS, "samples_per_update": 16, "eval_every": 5},
            "data": pairs | {"max_length": 32},
            "policy": _learning(3e-4, schedule="cosine_with_min_lr"),
            "reference": _frozen(),
        },
    }


def _learning(rate: float, **optimizer: object) -> dict[str, object]:
    # Below 1, at which older checkouts clip once more, and almost always reached.
    return _frozen() | {"optimizer": {"lr": rate, "max_grad_norm": 0.5, **optimizer}}


def _frozen() -> dict[str, object]:
    # Several micro-batches an update, and sums whose order does not depend on the machine's cores.
    return {"threads_per_rank": 1, "micro_batch_tokens": 256}


def start(data: Path) -> dict[str, object]:
    """Configuration of the run that makes the jobs' model, which is still wrong most of the time."""
    init = {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": LETTERS, "max_positions": 64}
    return {
        "model": {"init": init},
        "algorithm": {"name": "sft", "steps": 60, "samples_per_update": 64},
        "data": {"train": str(data / "words.jsonl"), "max_length": 32},
        "policy": {"threads_per_rank": 1, "optimizer": {"lr": 3e-3}},
    }


def write_rows(data: Path) -> None:
    """Write words to be written backwards, and pairs of a right answer and a wrong one; the same bytes every time."""
    data.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    words = {"".join(generator.choices(LETTERS, k=generator.randint(3, 6))): None for _ in range(1500)}
    rows, pairs = [], []
    for word in words:
        answer = word[::-1]
        rejected = answer
        while rejected == answer:
            place = generator.randrange(len(word))
            rejected = answer[:place] + generator.choice(LETTERS) + answer[place + generator.randint(0, 1) :]
        rows.append({"prompt": word, "completion": answer, "answer": answer})
        pairs.append({"prompt": word, "chosen": answer, "rejected": rejected})
    for name, found in (("words", rows), ("pairs", pairs)):
        for file, part in ((f"{name}-eval.jsonl", found[:64]), (f"{name}.jsonl", found[64:])):
            (data / file).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
