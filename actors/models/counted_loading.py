"""How much of a model transformers has loaded: its progress bar, told by the pulse of the process that loads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from actors.pulse import Watched

_LOADS = "Loading weights"
"""What the bar is called that counts the tensors of a model (transformers 5)."""


@contextmanager
def counted_loading() -> Iterator[None]:
    """Within it, tensors that are loaded count as what the process does; other bars stay as they are."""
    work = Watched.work

    class Counted(tqdm):  # pyright: ignore[reportMissingTypeArgument]
        """The same bar, each step of which is told."""

        def __iter__(self) -> Iterator[Any]:
            work.expect(len(self), "tensors")
            for item in super().__iter__():
                yield item
                work.progressed()

    def bar(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return (Counted if options.get("desc") == _LOADS else factory)(*arguments, **options)

    before = logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
