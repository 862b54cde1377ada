"""What a run knows of conversations: the chat template that it renders with, and the tokens that end an answer."""

from actors.models.chat_settings import ChatSettings
from actors.models.tokenizer import chat_template_of, tokenizer_for
from algorithms.data.chat_format import stop_ids
from launch.config import RunConfig


def chat_settings(config: RunConfig, *, answers: bool) -> ChatSettings:
    """What an export says of it; without `answers`, of a model that gives none. Raises UserError as tokenizer_for."""
    ends = answer_ends(config) if answers else []
    return ChatSettings(template=chat_template_of(config.model), ends=ends)


def answer_ends(config: RunConfig) -> list[int]:
    """Ids of the tokens at which sampling ends; raises UserError as tokenizer_for does."""
    return stop_ids(tokenizer_for(config.model), config.data.template_arguments)
