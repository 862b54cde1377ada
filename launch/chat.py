"""Talk to a model directory with transformers, on a GPU when there is one."""

import difflib
import json
from pathlib import Path
from typing import Any

from actors.config import UserError
from launch.shown import visible

Message = dict[str, str]


def model_directory(path: str) -> Path:
    """The Hugging Face directory meant by `path`: the export of a run directory, or the directory itself.

    Raises:
        UserError: when there is none.
    """
    directory = Path(path)
    if found := _model_in(directory):
        return found
    if unfinished := _unfinished(directory):
        raise UserError(f"MODEL: {unfinished}, got {path}")
    siblings = [str(entry) for entry in directory.parent.glob("*") if _model_in(entry)]
    near = difflib.get_close_matches(path, siblings, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"MODEL: must be a model directory or a run directory with an export{hint}, got {path}")


def chat(model: str, *, prompt: str | None, temperature: float, max_tokens: int) -> int:
    """Answer `prompt`, or hold a conversation until Ctrl-D; answers stream to standard output. Returns exit code 0."""
    directory = model_directory(model)
    architecture = next(iter(json.loads((directory / "config.json").read_text()).get("architectures") or []), "")
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


class _Speaker:
    """A loaded model and how it samples; temperature 0 is greedy."""

    def __init__(self, directory: Path, temperature: float, max_tokens: int) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        self._model = model.to(self._device)
        self._max_tokens = max_tokens
        self._sampling: dict[str, Any] = {"do_sample": temperature > 0}
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
            self._render(conversation),
            return_tensors="pt",
            return_token_type_ids=False,
            add_special_tokens=not self._tokenizer.chat_template,
        ).to(self._device)
        length = inputs["input_ids"].shape[1]
        room = self._model.config.max_position_embeddings - length
        if room < 1:
            raise UserError(
                f"conversation: must be shorter than the model's {self._model.config.max_position_embeddings} tokens, "
                f"got {length}"
            )
        streamer = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        vars(streamer)["on_finalized_text"] = _print_visibly
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                streamer=streamer,
                max_new_tokens=min(self._max_tokens, room),
                pad_token_id=self._tokenizer.pad_token_id,
                **self._sampling,
            )
        return self._tokenizer.decode(output[0, length:], skip_special_tokens=True)

    def _render(self, conversation: list[Message]) -> str:
        """The chat template's text; a base model without one reads the turns one after the other."""
        if self._tokenizer.chat_template:
            return self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return "".join(message["content"] for message in conversation)


def _print_visibly(text: str, stream_end: bool = False) -> None:
    """Print a part of an answer, without what would act on the terminal."""
    print(visible(text, lines=True), flush=True, end="\n" if stream_end else "")


def _model_in(directory: Path) -> Path | None:
    for candidate in (directory / "export", directory):
        if (candidate / "config.json").is_file() and _has_weights(candidate):
            return candidate
    return None


def _unfinished(directory: Path) -> str | None:
    """What a run directory without an export has instead of a model; None for any other directory."""
    try:
        algorithm = json.loads((directory / "config.json").read_text(encoding="utf-8"))["algorithm"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = directory / "config.json"
    try:
        step = (directory / "checkpoints" / "latest").read_text(encoding="utf-8").strip().removeprefix("step-")
    except OSError:
        return f"the run has not finished and has no checkpoint; start it again with `tandem run {name}`"
    total = f" of {algorithm['steps']}" if algorithm.get("steps") else ""
    return (
        f"the run has not finished: there is a checkpoint of step {step}{total}, but no model yet; "
        f"resume it with `tandem run {name} checkpoint.resume=true`"
    )


def _has_weights(directory: Path) -> bool:
    return any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "*.bin"))


def _ask() -> str | None:
    """A line from the person, None at the end of input."""
    try:
        return input("> ")
    except EOFError:
        print()
        return None
