"""Talk to a model directory with transformers, on a GPU when there is one."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.config import UserError
from actors.failure import reason_of
from actors.models.as_source import generation_problem, tokens_for_generation
from actors.models.hub_cache import cached_snapshot, is_hub_id
from actors.models.tokenizer import load_tokenizer
from actors.quick_import import without_science
from algorithms.data.rendering import run_template
from launch.models.files import template_fault
from launch.models.tensors import check_whole
from launch.models.transformers_source import causal_architectures
from launch.models.values import READ_BOTH_WAYS, architecture_of, model_values, unfinished
from launch.screen.shown import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.configuration_utils import PreTrainedConfig

Message = dict[str, str]
_LONGEST_ANSWER = 512
# What families call the length of their context in config.json.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def model_directory(path: str, field: str = "MODEL") -> Path:
    """The Hugging Face directory meant by `path`: the export of a run directory, or the directory itself.

    Raises:
        UserError: with `field`: there is none.
    """
    directory = Path(path)
    if found := _model_in(directory):
        return found
    if (directory / "export" / "config.json").is_file():
        model_values(directory / "export", field)
    if state := unfinished(directory):
        raise UserError(f"{field}: {state}, got {path}")
    # Something is there, or would be if a shell had expanded ~: this raises what is wrong with it.
    if os.path.lexists(directory) or path.startswith("~"):
        model_values(directory, field)
    siblings = [str(entry) for entry in directory.parent.glob("*") if _model_in(entry)]
    near = difflib.get_close_matches(path, siblings, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"{field}: must be a model directory or a run directory with an export{hint}, got {path}")


def chat(model: str, *, prompt: str | None, temperature: float, max_tokens: int | None) -> int:
    """Answer `prompt`, or hold a conversation until Ctrl-D; answers stream to standard output. Returns exit code 0.

    Without `max_tokens` an answer has at most 512, or what the model's positions leave of them.

    Raises:
        UserError: no model, none that generates text, one that is damaged, a template that refuses the conversation, or
            more tokens than the model has positions.
    """
    directory = (is_hub_id(model) and cached_snapshot(model)) or model_directory(model)
    values = _require_speaker(directory, model)
    if max_tokens is not None and (limit := _positions(values)) and max_tokens >= limit:
        raise UserError(f"--max-tokens: must be below the model's {limit} positions, got {max_tokens}")
    if prompt is not None:
        # A prompt is known now; lines of a conversation are counted as they come.
        _require_room(directory, values, prompt)
    # Imports torch, which takes seconds: all that can be refused without it has been.
    speaker = _Speaker(directory, temperature, max_tokens)
    if prompt is not None:
        speaker.answer([{"role": "user", "content": prompt}])
        return 0
    print(f"{directory} (Ctrl-D ends)")
    conversation: list[Message] = []
    while (line := _ask()) is not None:
        if line.strip():
            conversation.append({"role": "user", "content": line})
            conversation.append({"role": "assistant", "content": speaker.answer(conversation)})
    return 0


def _require_speaker(directory: Path, model: str) -> Mapping[str, object]:
    """The fields of config.json; raises UserError for what can be known to fail before torch is imported."""
    values = check_whole(directory, "MODEL")
    architecture = architecture_of(values)
    if (directory / "modules.json").is_file():
        raise UserError(
            f"MODEL: must generate text, and an embedding model or reranker searches: `tandem search {model}`, "
            f"got {architecture or 'no architecture'} in {directory}"
        )
    if architecture.endswith("ForSequenceClassification"):
        raise UserError(
            f"MODEL: must generate text, and a reward model or reranker gives scores (of passages: `tandem search "
            f"{model}`), got {architecture} in {directory}"
        )
    known, kind = causal_architectures(), values["model_type"]
    if known and (kind not in known or kind in READ_BOTH_WAYS):
        raise UserError(f"MODEL: must be a causal language model, got {architecture or kind} in {directory}")
    try:
        tokenizer = load_tokenizer(str(directory))
    except UserError as error:
        raise UserError(*(problem.replace("model.path", "MODEL", 1) for problem in error.problems)) from None
    if fault := template_fault(tokenizer):
        raise UserError(f"MODEL: the tokenizer's chat template is broken ({fault}), got {directory}")
    return values


def _positions(values: "Mapping[str, object] | PreTrainedConfig") -> int | None:
    """Tokens that a model's context has by its configuration, a mapping or an object; None where it does not say."""
    read = values.get if isinstance(values, Mapping) else lambda name: getattr(values, name, None)
    for name in _POSITIONS:
        if isinstance(found := read(name), int):
            return found
    return None


def _require_room(directory: Path, values: Mapping[str, object], prompt: str) -> None:
    """Raise UserError, before torch is imported, for a prompt that leaves no room for an answer."""
    tokenizer = load_tokenizer(str(directory))
    text = _render(tokenizer, [{"role": "user", "content": prompt}])
    # A chat template writes the special tokens itself.
    ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    _require_length(len(ids), _positions(values))


def _require_length(length: int, limit: int | None) -> None:
    if not length:
        raise UserError("conversation: must have at least one token, got none")
    if limit and length >= limit:
        raise UserError(f"conversation: must be shorter than the model's {limit} tokens, got {length}")


class _Speaker:
    """A loaded model and how it samples; temperature 0 is greedy."""

    def __init__(self, directory: Path, temperature: float, max_tokens: int | None) -> None:
        without_science()  # before anything imports a model's module
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            # As training reads it: AutoTokenizer of transformers 5 may read texts otherwise than tokenizer.json says.
            self._tokenizer: Any = load_tokenizer(str(directory))
            loader = transformers.AutoModelForCausalLM
            options: dict[str, object] = {"dtype": "auto"}
            if generation_problem(directory):
                options["generation_config"] = transformers.GenerationConfig(**tokens_for_generation(directory))
            # Any: by the annotations of transformers, no model it loads can be moved, or generate.
            model: Any = loader.from_pretrained(directory, trust_remote_code=False, **options)
            self._model = model.to(self._device)
        except Exception as error:  # each architecture has its own way not to load
            raise UserError(f"MODEL: cannot be loaded ({reason_of(error)}), got {directory}") from error
        self._max_tokens = max_tokens or _LONGEST_ANSWER
        self._sampling: dict[str, float | bool] = {"do_sample": temperature > 0}
        if temperature > 0:
            # top_k 0: the whole distribution, as in training; transformers would keep 50 tokens.
            self._sampling.update(temperature=temperature, top_k=0, top_p=1.0)

    def answer(self, conversation: list[Message]) -> str:
        """Print the answer as it is generated, and return it.

        Raises:
            UserError: when the conversation leaves no room in the model's context.
        """
        import torch
        from transformers import TextStreamer

        inputs = self._tokenizer(
            _render(self._tokenizer, conversation),
            return_tensors="pt",
            return_token_type_ids=False,  # generate() refuses what the model does not take
            add_special_tokens=not self._tokenizer.chat_template,
        ).to(self._device)
        length = inputs["input_ids"].shape[1]
        limit = _positions(self._model.config)
        _require_length(length, limit)
        streamer = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        # In place of its own, which would print control characters as they are.
        vars(streamer)["on_finalized_text"] = _print_visibly
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                streamer=streamer,
                max_new_tokens=min(self._max_tokens, limit - length) if limit else self._max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **self._sampling,
            )
        return self._tokenizer.decode(output[0, length:], skip_special_tokens=True)


def _render(tokenizer: "PreTrainedTokenizerBase", conversation: list[Message]) -> str:
    """The chat template's text; a base model without one reads the turns one after the other."""
    if tokenizer.chat_template:
        try:
            return run_template(tokenizer, conversation, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template's expressions raise
            reason = reason_of(error)
            raise UserError(f"conversation: must be one that the chat template renders, got {reason}") from error
    return "".join(message["content"] for message in conversation)


def _print_visibly(text: str, stream_end: bool = False) -> None:
    """Print a part of an answer, without what would act on the terminal."""
    print(visible(text, lines=True), flush=True, end="\n" if stream_end else "")


def _model_in(directory: Path) -> Path | None:
    for candidate in (directory / "export", directory):
        if (candidate / "config.json").is_file() and _has_weights(candidate):
            return candidate
    return None


def _has_weights(directory: Path) -> bool:
    return any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))


def _ask() -> str | None:
    """A line from the person, None at the end of input."""
    try:
        return input("> ")
    except EOFError:
        print()
        return None
