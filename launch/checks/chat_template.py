"""The chat template of a run: whether it can render, knows the arguments it is given, and what ends its answers."""

from actors.config import UserError
from actors.models.tokenizer import tokenizer_for
from algorithms.words import nearest
from launch.config import RunConfig

_OURS = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
"""Variables that a template has anyway."""


def check_chat_template(config: RunConfig) -> list[str]:
    """A line that says what ends answers, where anything does.

    Raises:
        UserError: a template that is broken; a name in data.template_arguments that it does not read.
    """
    from algorithms.data.chat_format import ChatFormat
    from launch.models.files import template_fault

    tokenizer = tokenizer_for(config.model)
    field = "model.chat_template" if config.model.chat_template else "model.path"
    if reason := template_fault(tokenizer):
        given = config.model.chat_template or config.model.path
        what = "the template" if config.model.chat_template else "the tokenizer's chat template"
        raise UserError(f"{field}: {what} is broken ({reason}), got {given}")
    chat = ChatFormat(tokenizer, config.data.template_arguments)
    if config.data.template_arguments:
        _check_arguments(config, chat.variables if chat.template else frozenset())
    stops = chat.habits().stops
    if not stops:
        return []
    written = f" ({chat.habits().last or 'nothing'} behind the last one)" if chat.habits().last != stops[0] else ""
    further = f", also with {', '.join(stops[1:])}" if stops[1:] else ""
    return [f"model: answers end with {stops[0]}{written if chat.template else ''}{further}"]


def _check_arguments(config: RunConfig, variables: frozenset[str]) -> None:
    for name, value in config.data.template_arguments.items():
        if name in _OURS:
            raise UserError(
                f"data.template_arguments.{name}: must be left out, as rows and tokenizer give it, got {value!r}"
            )
        if name not in variables:
            known = sorted(variables - _OURS - {"raise_exception", "strftime_now"})
            raise UserError(
                f"data.template_arguments.{name}: must be a variable that the chat template reads"
                f"{f' ({chr(44).join(known)})' if known else ', which reads none'}{nearest(name, known)}, got {value!r}"
            )
