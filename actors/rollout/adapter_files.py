"""The files of an adapter, for as long as vLLM reads them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.rollout.worker import Adapter

_MEMORY_FILES = Path("/dev/shm")


@contextmanager
def adapter_directory(adapter: Adapter) -> Iterator[str]:
    """A directory with the files of an adapter, in memory where that can be; it is gone behind the block."""
    memory = _MEMORY_FILES if os.access(_MEMORY_FILES, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tandem-adapter-", dir=memory) as directory:
        (Path(directory) / "adapter_config.json").write_text(adapter.config)
        (Path(directory) / "adapter_model.safetensors").write_bytes(adapter.weights)
        yield directory
