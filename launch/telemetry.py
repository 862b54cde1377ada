"""Reports about their use that libraries send to their makers: off, unless the user's environment says otherwise.

Imports only the standard library: it is asked before anything else.
"""

import os

OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "1",
}
"""Variable that a library reads -> the value that switches its reports off. The last one is read by several."""


def switch_off() -> None:
    """Set each variable that is not set, for this process and those that it starts."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)  # whoever has set it has chosen


def chosen() -> dict[str, str]:
    """What workers on other machines are to get: each variable as it is here."""
    return {name: os.environ.get(name, value) for name, value in OFF.items()}
