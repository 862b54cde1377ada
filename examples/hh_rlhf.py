"""HH-RLHF (arXiv 2204.05862) for Tandem: `data.converter: examples/hh_rlhf.py:to_messages`.

Its rows hold two whole conversations as text, "\\n\\nHuman: ...\\n\\nAssistant: ...", that differ in the last answer.
"""

import re

ROLES = {"Human": "user", "Assistant": "assistant"}


def to_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]] | None:
    """Both conversations as messages; None where a turn is empty or out of order, or more than the end differs."""
    chosen, rejected = _messages(row["chosen"]), _messages(row["rejected"])
    if chosen is None or rejected is None or chosen == rejected or chosen[:-1] != rejected[:-1]:
        return None
    return {"chosen": chosen, "rejected": rejected}


def _messages(text: str) -> list[dict[str, str]] | None:
    """The turns of a conversation, or None unless people and the assistant take turns and the assistant ends."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", text)
    messages = [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    roles = [message["role"] for message in messages]
    in_order = roles == ["user", "assistant"] * (len(roles) // 2) and roles
    return messages if in_order and not before.strip() and all(message["content"] for message in messages) else None
