"""All styles of chat templates: what models in use have, written anew, and some that are hard to train with."""

from tests.chat.style import ChatStyle
from tests.chat.styles_chatml import CHATML
from tests.chat.styles_llama import LLAMA
from tests.chat.styles_others import OTHERS

STYLES: dict[str, ChatStyle] = {style.name: style for style in (*CHATML, *LLAMA, *OTHERS)}
"""By name; the template's text is in `templates/`, in a file of that name."""
