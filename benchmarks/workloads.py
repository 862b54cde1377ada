"""The workloads on which Tandem is compared with others: one model directory and one data file serve all sides.

The models are random with nearly uniform logits, so that every token ends a response with probability 1/VOCABULARY:
lengths are geometric, cut at the limit, and at a learning rate of 1e-6 they stay so. With 128 tokens and a limit of 256
the mean is (1 - (127/128)^256) * 128 = 110.8 tokens and 13 % of the responses are cut.

The third, `tail`, has lengths with a long tail: the last character of a prompt decides how long its responses are on
average, by the quantiles of a lognormal distribution, and those of one prompt are geometric around that.

    python -m benchmarks.workloads long DIRECTORY
"""

import argparse
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

VOCABULARY = 128
LOGIT_STD = 0.045
"""Standard deviation of the logits: the end-of-sequence probability stays within some percent of 1/VOCABULARY."""
SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Model size and batch of one comparison; whatever is not here is the same in both workloads.

    `prompt_tokens` is the (shortest, longest) prompt; a token is a character.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    prompts_per_step: int
    samples_per_prompt: int
    max_response_tokens: int
    prompt_tokens: tuple[int, int]
    median_and_sigma: tuple[float, float] | None = None
    """Of the lognormal distribution of mean lengths; None: all prompts are alike."""

    @property
    def samples_per_step(self) -> int:
        """Samples of one step: prompts_per_step x samples_per_prompt."""
        return self.prompts_per_step * self.samples_per_prompt


WORKLOADS = {
    "long": Workload(
        name="long",
        hidden_size=512,
        intermediate_size=1088,
        layers=8,
        heads=8,
        prompts_per_step=8,
        samples_per_prompt=8,
        max_response_tokens=256,
        prompt_tokens=(12, 32),
    ),
    "short": Workload(
        name="short",
        hidden_size=192,
        intermediate_size=512,
        layers=4,
        heads=4,
        prompts_per_step=16,
        samples_per_prompt=8,
        max_response_tokens=4,
        prompt_tokens=(4, 8),
    ),
    # As where rollouts take most of a step: small layers, and one prompt in sixteen whose responses reach the limit.
    "tail": Workload(
        name="tail",
        hidden_size=256,
        intermediate_size=544,
        layers=4,
        heads=4,
        prompts_per_step=16,
        samples_per_prompt=8,
        max_response_tokens=1024,
        prompt_tokens=(8, 16),
        median_and_sigma=(40.0, 1.1),
    ),
}
LEARNING_RATE = 1e-6
CLASSES = 16
"""Of characters, in workload tail: a response stays among those of the class that its prompt ends with."""
_STAYS = 12.0
"""Logit of the characters of the class, against 0 of all others."""
THREADS = 2


def model_directory(directory: Path) -> Path:
    """Where `build` puts weights and tokenizer."""
    return directory / "model"


def prompts_file(directory: Path) -> Path:
    """Where `build` puts the prompts, one JSON object with the key `prompt` a line."""
    return directory / "prompts.jsonl"


def build(workload: Workload, directory: Path, *, prompts: int = 512) -> int:
    """Write model directory and prompts of a workload; the same bytes every time.

    Returns:
        Number of parameters.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    with prompts_file(directory).open("w", encoding="utf-8") as file:
        for _ in range(prompts):
            length = generator.randint(*workload.prompt_tokens)
            end = chr(64 + generator.randrange(CLASSES)) if workload.median_and_sigma else "="
            prompt = "".join(generator.choices("0123456789+-*", k=length - 1)) + end
            file.write(json.dumps({"prompt": prompt}) + "\n")
    eos, pad = _write_tokenizer(model_directory(directory))
    return _write_model(workload, model_directory(directory), eos, pad)


def _write_tokenizer(directory: Path) -> tuple[int, int]:
    """Save a tokenizer of VOCABULARY tokens, one per ASCII character, without chat template; returns eos and pad ids.

    It is byte-level BPE without merges: AutoTokenizer loads every qwen2 directory as a Qwen2Tokenizer, which keeps the
    vocabulary and replaces the rest by byte-level BPE, so that only such a tokenizer means the same to both sides.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    characters = [byte_level.pre_tokenize_str(chr(code))[0][0] for code in range(128)]
    tokens = [*SPECIAL_TOKENS, *characters[len(SPECIAL_TOKENS) :]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)
    return tokens.index("<eos>"), tokens.index("<pad>")


def _write_model(workload: Workload, directory: Path, eos: int, pad: int) -> int:
    """Save a Qwen2 with random weights and nearly uniform logits; returns its number of parameters."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=workload.hidden_size,
        intermediate_size=workload.intermediate_size,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.heads,
        max_position_embeddings=max(1024, 2 * workload.max_response_tokens),
        tie_word_embeddings=False,
        eos_token_id=eos,
        pad_token_id=pad,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=LOGIT_STD / workload.hidden_size**0.5)
    if workload.median_and_sigma:
        _let_classes_decide(model, mean_lengths(*workload.median_and_sigma), eos)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    model.save_pretrained(directory)
    return model.num_parameters()


def mean_lengths(median: float, sigma: float) -> list[float]:
    """Mean length of the responses in each class: equally likely quantiles of a lognormal distribution."""
    normal = NormalDist()
    return [median * math.exp(sigma * normal.inv_cdf((number + 0.5) / CLASSES)) for number in range(CLASSES)]


def _let_classes_decide(model: Any, lengths: list[float], eos: int) -> None:
    """Give every token a direction of its class, by which the next token is of the same class, or the end.

    In class k the logits of its n tokens are a, and that of the end log((n exp(a) + others) / (length - 1)).
    """
    import torch

    size = model.config.hidden_size
    with torch.no_grad():
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
        classes = torch.arange(VOCABULARY) % CLASSES
        embedding.mul_(0.1)
        embedding[torch.arange(VOCABULARY), classes] += size**0.5  # after the last norm as long as it is now
        head[torch.arange(VOCABULARY), classes] += _STAYS / size**0.5
        head[eos] = 0
        for number, length in enumerate(lengths):
            own = int((classes == number).sum()) - (eos % CLASSES == number)
            stays = own * math.exp(_STAYS) + VOCABULARY - 1 - own
            head[eos, number] = math.log(stays / (length - 1)) / size**0.5


def main() -> None:
    """Build one workload from the command line."""
    parser = argparse.ArgumentParser(description="Write model and prompts of a benchmark workload.")
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    parameters = build(WORKLOADS[arguments.workload], arguments.directory)
    print(f"{arguments.workload}: {parameters / 1e6:.2f}M parameters in {arguments.directory}")


if __name__ == "__main__":
    main()
