"""Packages that embedding models and rerankers need beyond those of every job."""

import importlib.util

from actors.config import UserError
from algorithms.config_encoder import EncoderConfig


def check_encoder_packages(algorithm: EncoderConfig) -> None:
    """Raise UserError unless the packages that the job needs are installed."""
    needs = {"sentence-transformers": ("algorithm.name", algorithm.name)}
    needs |= {"mteb": ("algorithm.mteb", ", ".join(algorithm.mteb))} if algorithm.mteb else {}
    missing = {name: needs[name] for name in needs if importlib.util.find_spec(name.replace("-", "_")) is None}
    if missing:
        rule = "needs the package {}, which is not installed, got {}"
        raise UserError(*(f"{field}: {rule.format(name, value)}" for name, (field, value) in missing.items()))
