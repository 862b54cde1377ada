"""transformers, imported without its slowest line, which alone took a quarter of the time of `tandem check`.

Since version 5 transformers asks importlib.metadata.packages_distributions() when it is imported. Where few packages
have a top_level.txt (wheels of today have none), that function of Python 3.11 makes a Path of every file of every
installed package: 40,000 of them and 0.4 s for Tandem's own requirements.
"""

import csv
import importlib.metadata
import re
import sys
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
