"""What is uploaded for a job: a zip of the working directory's files and of the resolved configuration.

Its name is a hash of names, modes and contents, so that the cluster is sent an unchanged tree only once.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from actors.config import UserError
from launch.config import RunConfig
from launch.jobs.selection import Selection

CONFIG_FILE = "tandem-run.json"
"""The resolved configuration, at the root of the package."""
MIB = 2**20
LARGEST_PACKAGE, LARGEST_QUIET_FILE = 512 * MIB, 10 * MIB
"""What Ray's head accepts, and the size from which a file is warned about, in bytes."""
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
        UserError: more than Ray accepts, with the largest entries; a file that cannot be read or named in a zip.
    """
    sizes = {path: size for path, size in selection.files.items() if path != CONFIG_FILE}
    _check_size(sizes)
    digest = hashlib.sha256()
    file = tempfile.TemporaryFile()  # noqa: SIM115, as its closing ends it and the upload still reads it
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        resolved = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True).encode()
        _add(archive, digest, CONFIG_FILE, 0o644, iter([resolved]))
        for path in sizes:
            try:
                path.encode()
                source = selection.root / path
                mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
                _add(archive, digest, path, mode, _chunks(source))
            except OSError as error:
                raise UserError(f"upload: {path} must be a file that can be read ({error.strerror})") from None
            except UnicodeEncodeError:
                raise UserError(f"upload: a file's name must be UTF-8, got {os.fsencode(path)!r}") from None
    size = file.tell()
    file.seek(0)
    return Package(file, digest.hexdigest(), len(sizes) + 1, size)


def package_warnings(selection: Selection) -> list[str]:
    """Files that one may not want to upload: large ones, and those that usually hold secrets."""
    found = []
    for path, size in selection.files.items():
        if size > LARGEST_QUIET_FILE:
            rule = "goes with every upload; .rayignore leaves it out, storage that all nodes share holds it better"
            found.append(f"upload: {path} ({shown_size(size)}) {rule}")
        name = path.rpartition("/")[2]
        if name in (".env", ".netrc", "auth_token") or name.endswith((".pem", ".key")):
            found.append(f"upload: {path} is readable for all who use the cluster; if it holds secrets, .rayignore it")
    return found


def shown_size(size: float) -> str:
    """Bytes for people. Example: shown_size(1_363_149) == "1.3 MiB"."""
    return f"{size / MIB:.1f} MiB" if size >= MIB / 10 else f"{size / 1024:.1f} KiB"


def _check_size(sizes: dict[str, int]) -> None:
    total = sum(sizes.values())
    if total <= LARGEST_PACKAGE:
        return
    weights: Counter[str] = Counter()
    for path, size in sizes.items():
        top, slash, _ = path.partition("/")
        weights[top + slash] += size
    largest = ", ".join(f"{name} {shown_size(size)}" for name, size in weights.most_common(4))
    raise UserError(
        f"upload: must not exceed {shown_size(LARGEST_PACKAGE)} (.rayignore leaves files out), "
        f"got {shown_size(total)} in {len(sizes)} files: {largest}"
    )


def _add(archive: zipfile.ZipFile, digest: "hashlib._Hash", path: str, mode: int, chunks: Iterator[bytes]) -> None:
    """Add one file, and to the digest what it is; its content's hash has a fixed length, so no two trees are alike."""
    info = zipfile.ZipInfo(path, _EARLIEST)
    info.external_attr = (0o100000 | mode) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    content = hashlib.sha256()
    with archive.open(info, "w") as target:
        for chunk in chunks:
            content.update(chunk)
            target.write(chunk)
    digest.update(f"{len(path.encode())} {path} {mode:o} {content.hexdigest()}\n".encode())


def _chunks(path: os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(MIB):
            yield chunk
