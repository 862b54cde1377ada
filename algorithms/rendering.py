"""From messages to text by the chat template, and from text to token ids: what all jobs share."""

from typing import TYPE_CHECKING, Any

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.readers import Message, RowError

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


def with_system_prompt(messages: list[Message], data: DataConfig) -> list[Message]:
    """The messages after data.system_prompt; raises RowError when they have a system message of their own."""
    if data.system_prompt is None:
        return messages
    if messages[0]["role"] == "system":
        raise RowError("has a system message of its own, and data.system_prompt is set too")
    return [{"role": "system", "content": data.system_prompt}, *messages]


def render_messages(messages: list[Message], tokenizer: "PreTrainedTokenizerFast", **options: Any) -> Any:
    """apply_chat_template to text, or with return_dict=True to ids; raises RowError with the template's complaint."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise RowError("messages need a tokenizer with a chat template, got one without")
    options = {"tokenize": False, **options}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError) as error:
        raise RowError(f"the chat template refuses it ({error})") from error


def encode_texts(texts: list[str], tokenizer: "PreTrainedTokenizerFast", *, plain: bool) -> list[list[int]]:
    """Token ids of each text; a plain text gets the BOS token that the tokenizer adds by itself, if it adds one.

    A template writes its own BOS, so that adding one there would double it (huggingface/trl issue 1073).
    """
    encoded: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    bos: Any = tokenizer.bos_token_id
    automatic: Any = tokenizer("")["input_ids"]
    if not plain or bos is None or automatic[:1] != [bos]:
        return encoded
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]


def check_token_lengths(lengths: list[int], limit: int, what: str, rule: str, field: str) -> None:
    """Raise UserError when a row of `lengths` has no tokens, or more than `limit`, which is called `rule`."""
    if 0 in lengths:
        raise UserError(f"{field}: row {lengths.index(0) + 1}: {what} has no tokens")
    over = [number for number, length in enumerate(lengths, start=1) if length > limit]
    if over:
        raise UserError(
            f"{field}: row {over[0]}: {what} has {lengths[over[0] - 1]} tokens, {rule} is {limit} "
            f"({len(over)} of {len(lengths)} rows are longer, the longest has {max(lengths)})"
        )
