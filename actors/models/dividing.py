"""Building models that no process could hold: each parameter is divided over the ranks as soon as it has its value.

transformers makes and loads models module by module and tensor by tensor, but has them whole in the end. PyTorch tells
of every parameter that a module is given (`register_module_parameter_registration_hook`): there, it is divided.

    a directory   modules without values -> tensor read by rank 0 -> parameter given to its module -> divided
    model.init    module made without values -> its values drawn, on every rank -> divided
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch._ops import OpOverload
from torch.nn import Parameter
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel


class Divider(Protocol):
    """Divides parameters over ranks; `actors.train.sharding.Sharding`. All methods are collective."""

    def divide(self, parameter: Parameter) -> None:
        """Keep this rank's share of what rank 0 has; in place."""
        ...

    def equal(self, one: Parameter, other: Parameter) -> bool:
        """Whether two divided parameters have the same values."""
        ...

    def share(self, tensor: torch.Tensor) -> None:
        """Give every rank what rank 0 has in a tensor that is not divided; in place."""
        ...


class OnlySettings:
    """A `Divider` for a model of which the settings alone are wanted: it keeps no values, and asks no other rank."""

    def divide(self, parameter: Parameter) -> None:
        """Leave nothing of it."""
        parameter.data = torch.empty(0, dtype=parameter.dtype)

    def equal(self, one: Parameter, other: Parameter) -> bool:
        """Whatever they were, nothing is left."""
        return True

    def share(self, tensor: torch.Tensor) -> None:
        """It is read in any case."""


def loading(divider: Divider | None) -> AbstractContextManager[None]:
    """A context in which `from_pretrained` divides what it loads; what a directory lacks, such as a new head, stays
    whole until the engine takes it."""
    return _loading(divider) if divider else nullcontext()


@contextmanager
def _loading(divider: Divider) -> Iterator[None]:
    divided: dict[int, Parameter] = {}

    def given(module: torch.nn.Module, name: str, parameter: Parameter | None) -> Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        before = module._parameters.get(name)
        if id(parameter) in divided:
            # It is tied to another one. transformers does not tie what a directory has with different values, but
            # cannot tell here: all that it sees of divided parameters is that both are empty.
            if before is not None and id(before) in divided and not divider.equal(before, parameter):
                return before
        # The mark of transformers for what comes out of a file. All else has yet to be drawn, and is whole until then.
        elif getattr(parameter, "_is_hf_initialized", False):
            divider.divide(parameter)
            divided[id(parameter)] = parameter
        return None

    with _given(given), _read_when_used(), _only_what_is_new():
        yield


@contextmanager
def _only_what_is_new() -> Iterator[None]:
    """Within it, transformers leaves modules alone that have all from a file: some families' ways to draw values ask
    for shapes, which divided parameters do not have."""
    kind: Any = PreTrainedModel
    initialize = kind._initialize_weights
    # It says of a class that is not transformers' own that its values are drawn in place.
    kind._initialize_weights = lambda model, module, *_: initialize(model, module, True)
    try:
        yield
    finally:
        kind._initialize_weights = initialize


def drawing(divider: Divider | None) -> AbstractContextManager[None]:
    """A context in which `from_config` divides the weights that it draws: the very same as without it."""
    return _drawing(divider) if divider else nullcontext()


@contextmanager
def _drawing(divider: Divider) -> Iterator[None]:
    kind: Any = PreTrainedModel
    initialize = kind._initialize_weights

    def given(module: torch.nn.Module, name: str, parameter: Parameter | None) -> Parameter | None:
        # Norms and biases are small, and what some are is said by their module and not drawn: they stay as they are.
        if parameter is None or parameter.ndim < 2:
            return None
        return Parameter(parameter.to("meta"), parameter.requires_grad)

    def draw(model: PreTrainedModel, module: torch.nn.Module, *settings: object) -> None:
        drawn = [name for name, each in module.named_parameters(recurse=False) if each.is_meta]
        for name in drawn:
            empty = module.get_parameter(name)
            module._parameters[name] = Parameter(torch.empty_like(empty, device="cpu"), empty.requires_grad)
        initialize(model, module, *settings)
        for name in drawn:
            divider.divide(module.get_parameter(name))

    # On the class, as the model is made within from_config; it is put back in any case.
    kind._initialize_weights = draw
    try:
        with _given(given), _DrawnAsIfReal():
            yield
    finally:
        kind._initialize_weights = initialize


class _DrawnAsIfReal(TorchDispatchMode):
    """Within it, drawing values of a tensor without values takes as many random numbers as if it had some.

    PyTorch's layers draw values when they are made, transformers others after them: without the first, the second would
    be other numbers.
    """

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            func(torch.empty_like(args[0], device="cpu"), *args[1:], **(kwargs or {}))
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _given(hook: Callable[..., Any]) -> Iterator[None]:
    """Within it, `hook` is told (module, name, parameter) of every parameter that is given to any module, and may
    answer with another one."""
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _read_when_used() -> Iterator[None]:
    """Within it, transformers reads a tensor when its turn has come: its threads would read ahead, all of them."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _Sharded:
    """What transformers has to know of a configuration of DeepSpeed here."""

    def is_zero3(self) -> bool:
        return True


@contextmanager
def gathered_by_peft(model: PreTrainedModel) -> Iterator[None]:
    """Within it, PEFT gathers the weights that it reads (DoRA's magnitudes are lengths of theirs), if they are divided:
    it asks transformers whether they are."""
    from transformers.integrations import deepspeed

    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        yield
        return
    settings = _Sharded()  # transformers keeps no more than a weak reference
    deepspeed.set_hf_deepspeed_config(settings)
    try:
        yield
    finally:
        deepspeed.unset_hf_deepspeed_config()
