"""What is uploaded for a job: a zip of the working directory's files and of the resolved configuration.

Its name is a hash of names, modes and contents, so that the cluster is sent an unchanged tree only once.
"""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from actors.config import UserError
from launch.config import RunConfig
from launch.jobs.selection import LINK, SECRET_FILE, Selection

CONFIG_FILE = "tandem-run.json"
"""The resolved configuration, at the root of the package."""
MIB = 2**20
LARGEST_PACKAGE, LARGEST_QUIET_FILE = 100 * MIB, 10 * MIB
"""What Ray's dashboard accepts (its DASHBOARD_CLIENT_MAX_SIZE), and from where a file is warned about, in bytes."""
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON may hold as it is and YAML may not, or takes for the end of a line."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold: when files were touched does not matter


@dataclass(frozen=True, slots=True)
class Package:
    """A zip, ready to be uploaded."""

    data: IO[bytes]
    """Open at its beginning."""
    digest: str
    """Hash of configuration and files, 64 hex digits."""
    files: int
    size: int
    """Bytes of the zip."""

    @property
    def name(self) -> str:
        """Its name on the cluster."""
        return f"_ray_pkg_{self.digest[:32]}.zip"

    @property
    def uri(self) -> str:
        """As a runtime environment names it."""
        return f"gcs://{self.name}"


def package_files(selection: Selection, config: RunConfig) -> Package:
    """Zip the files and the configuration; a `tandem-run.json` of the working directory is not among them.

    Raises:
        UserError: more than Ray accepts, with the largest files; a file that cannot be read.
    """
    # A file of this name, as from another upload that was unpacked, would be there twice.
    sizes = {path: size for path, size in selection.files.items() if path != CONFIG_FILE}
    digest = hashlib.sha256()
    file = tempfile.TemporaryFile()  # noqa: SIM115, as its closing ends it and the upload still reads it

    def check() -> None:
        _check_size(file.tell(), sizes)

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, digest, CONFIG_FILE, 0o644, iter([_resolved(config)]))
        for path in sizes:
            try:
                source = selection.root / path
                # Of the mode only this, as in git: the rest differs by the umask of whoever made the clone.
                mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
                _add(archive, digest, path, mode, _chunks(source, check))
            except OSError as error:
                raise UserError(f"upload: {path} must be a file that can be read ({error.strerror})") from None
    check()
    size = file.tell()
    file.seek(0)
    return Package(file, digest.hexdigest(), len(sizes) + 1, size)


def package_warnings(selection: Selection) -> list[str]:
    """Files that one may not want to upload, as they are large; what was left out as a likely secret or as a link."""
    found = []
    for path, size in selection.files.items():
        if size > LARGEST_QUIET_FILE:
            rule = "goes with every upload; .rayignore leaves it out, storage that all nodes share holds it better"
            found.append(f"upload: {path} ({shown_size(size)}) {rule}")
    if secret := ", ".join(path for path, rule in selection.left_out.items() if rule == SECRET_FILE):
        found.append(f"upload: left out, as they look like secrets (a ! line of .rayignore brings back): {secret}")
    links = [(path, rule) for path, rule in selection.left_out.items() if rule.startswith(LINK)]
    found += [f"upload: {path} is left out by {rule}" for path, rule in links]
    return found


def shown_size(size: float) -> str:
    """Bytes for people. Example: shown_size(1_363_149) == "1.3 MiB"."""
    return f"{size / MIB:.1f} MiB" if size >= MIB / 10 else f"{size / 1024:.1f} KiB"


def _resolved(config: RunConfig) -> bytes:
    """The configuration as JSON that YAML reads as the same."""
    # Sorted, so that the same configuration gives the same digest.
    text = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    try:
        return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        rule = "must be Unicode text, with characters such as emoji as they are, not as two \\u escapes"
        raise UserError(f"config file: {rule}, got {half}") from None


def _check_size(zipped: int, sizes: dict[str, int]) -> None:
    if zipped <= LARGEST_PACKAGE:
        return
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    raise UserError(
        f"upload: must be a zip of at most {shown_size(LARGEST_PACKAGE)}, as Ray's dashboard takes no more "
        f"(.rayignore leaves files out), got more in {len(sizes)} files, the largest: "
        + ", ".join(f"{path} {shown_size(size)}" for path, size in largest)
    )


def _add(archive: zipfile.ZipFile, digest: "hashlib._Hash", path: str, mode: int, chunks: Iterator[bytes]) -> None:
    """Add one file, and to the digest what it is; its content's hash has a fixed length, so no two trees are alike."""
    info = zipfile.ZipInfo(path, _EARLIEST)
    info.external_attr = (0o100000 | mode) << 16  # the upper half is the mode of Unix; 0o100000 is a plain file
    info.compress_type = zipfile.ZIP_DEFLATED
    content = hashlib.sha256()
    with archive.open(info, "w") as target:
        for chunk in chunks:
            content.update(chunk)
            target.write(chunk)
    digest.update(f"{len(path.encode())} {path} {mode:o} {content.hexdigest()}\n".encode())


def _chunks(path: os.PathLike[str], check: Callable[[], None]) -> Iterator[bytes]:
    """The file's bytes; `check` ends it early."""
    with open(path, "rb") as file:
        while chunk := file.read(MIB):
            yield chunk  # checked as it is written: a tree of gigabytes is refused at the limit
            check()
