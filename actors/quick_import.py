"""transformers and vLLM, imported without what Tandem's processes do not need: a start is mostly imports.

One line of transformers alone took a quarter of the time of `tandem check`: since version 5 it asks
importlib.metadata.packages_distributions() when it is imported. Where few packages have a top_level.txt (wheels of
today have none), that function of Python 3.11 makes a Path of every file of every installed package: 40,000 of them and
0.4 s for Tandem's own requirements.
"""

import csv
import importlib.metadata
import re
import sys
import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def quick_package_list() -> Iterator[None]:
    """Within the block, `importlib.metadata.packages_distributions` gives the same answer in a tenth of the time.

    Later versions of Python have another rule for it, and theirs stays in place.
    """
    if sys.version_info >= (3, 12):
        yield
        return
    original = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = packages_distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = original


def packages_distributions() -> Mapping[str, list[str]]:
    """Importable top-level name -> distributions that have it, by Python 3.11's rule: what top_level.txt declares,
    else the first part of the path of every .py file in RECORD."""
    found: dict[str, list[str]] = defaultdict(list)
    for distribution in importlib.metadata.distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        for name in declared or _inferred(distribution):
            found[name].append(_name(distribution))
    return dict(found)


def _inferred(distribution: importlib.metadata.Distribution) -> set[str]:
    record = distribution.read_text("RECORD")
    if record is None:  # an egg, or a package of the system's: rare, and there are other lists of its files
        paths = [str(path) for path in distribution.files or ()]
    else:
        paths = [row[0] for row in csv.reader(record.splitlines()) if row]
    modules = [path for path in paths if path.endswith(".py")]
    return {path.partition("/")[0].removesuffix(".py") for path in modules}


def _name(distribution: importlib.metadata.Distribution) -> str:
    """The Name field, which stands among the first lines of METADATA; the email parser reads all of it."""
    found = re.match(r"(?:[^\n]+\n)*?Name: *([^\n]+?)\s*\n", distribution.read_text("METADATA") or "")
    return found[1] if found else distribution.metadata["Name"]


def without_science() -> None:
    """Import transformers such that it takes scikit-learn and SciPy for not installed: 2 s less for every process.

    It uses them for assisted generation and for finding objects in pictures, whose modules every model imports.
    """
    with quick_package_list():
        import transformers.utils as utils
        import transformers.utils.import_utils as import_utils
    for module in (utils, import_utils):
        for name in ("is_sklearn_available", "is_scipy_available"):
            setattr(module, name, _no)


@contextmanager
def quick_vllm(*, compiled: bool) -> Iterator[None]:
    """Within the block, vLLM is imported without SciPy's signals, which it has for sound: 1 s less.

    Where nothing is `compiled`, it also leaves torch's compiler as it is, 1 s less: it imports some of it only to
    change it, in a module that does nothing else of use on CPUs.
    """
    if not compiled:
        _leave_compiler()
    sys.modules.setdefault("scipy.signal", None)  # type: ignore[arg-type]  # As if it were not installed.
    try:
        yield
    finally:
        if sys.modules["scipy.signal"] is None:
            del sys.modules["scipy.signal"]


def _leave_compiler() -> None:
    stub = types.ModuleType("vllm.env_override")
    vars(stub)["_apply_constrain_to_fx_strides_patch"] = lambda: None
    # Whoever imports the real module finds this one.
    sys.modules.setdefault(stub.__name__, stub)


def _no() -> bool:
    return False
