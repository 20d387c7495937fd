"""Published weights files: what identifies one, and how it is downloaded and cached."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from samrobust.errors import CheckpointError
from samrobust.files import cache_folder

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and those of the whole file during a download."""

_PIECE = 2**20
"""Bytes written, and reported, at once."""
_TIMEOUT_S = (10, 60)
"""To connect, and between two pieces."""


@dataclass(frozen=True)
class Checkpoint:
    """A published weights file.

    Attributes:
        url: where it is downloaded from; ends with the file's name.
        sha256: of the file.
        n_bytes: its size.
        embed_dim: channels of its image encoder, which tell variants apart; of a TinyViT those of
            its last stage.
        n_parameters: of the whole model.
    """

    url: str
    sha256: str
    n_bytes: int
    embed_dim: int
    n_parameters: int

    @property
    def file_name(self) -> str:
        """Return the last part of the address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class HubModel:
    """A published model of the transformers library, which downloads and caches it.

    Attributes:
        model_id: under which the library finds it.
        family: what its configuration calls its image model, as "sam2".
        licence: of its weights.
        n_parameters: of the whole model as published, rounded where its authors round.
        n_bytes: of its weights file, None where it is not known.
        sha256: of its weights file, "" where it is not known.
        trained_on: collections that it has seen images of.
    """

    model_id: str
    family: str
    licence: str
    n_parameters: int
    n_bytes: int | None = None
    sha256: str = ""
    trained_on: tuple[str, ...] = ("SA-1B",)


def fetch(checkpoint: Checkpoint, *, progress: Progress | None = None) -> Path:
    """Return the path of a published file in the cache, after downloading it where it is missing.

    A broken transfer resumes where it broke, in this call and in later ones.

    Raises:
        CheckpointError: it cannot be downloaded or written, or is not the published file.
    """
    import pooch  # type: ignore[import-untyped]
    from filelock import FileLock
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")
    path = cache_folder() / checkpoint.file_name
    part = path.with_name(f"{path.name}.part")

    def download(_url: str, output: str, _pooch: object) -> None:
        _complete(part, checkpoint, progress or (lambda _here, _all: None))
        part.replace(output)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):  # another process may want it too
            if not path.exists():
                known = f"sha256:{checkpoint.sha256}"
                pooch.retrieve(checkpoint.url, known, path.name, path.parent, downloader=download)
    except RequestException as error:
        raise CheckpointError(
            f"{path.name}: cannot be downloaded from {checkpoint.url} ({_reason(error)}); "
            f"put it into {path.parent}, or name it with --checkpoint"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path.name}: cannot be written to {path.parent}: {error.strerror}"
        ) from error
    except ValueError as error:  # pooch has deleted it
        raise CheckpointError(
            f"{path}: SHA-256 of what was downloaded is not {checkpoint.sha256[:4]}…; "
            "it was deleted, try again"
        ) from error
    found = file_sha256(path)
    if found != checkpoint.sha256:
        raise CheckpointError(
            f"{path}: SHA-256 is {found[:4]}…, expected {checkpoint.sha256[:4]}…; "
            "is it another variant?"
        )
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, computed once while it is unchanged."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(part: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """Append to a partial file until it is whole, as long as each request brings something."""
    from requests import RequestException

    here = part.stat().st_size if part.exists() else 0
    while here < checkpoint.n_bytes:
        before, failure = here, RequestException("the server ends it too early")
        try:
            _append(part, checkpoint, progress)
        except RequestException as error:
            failure = error
        here = part.stat().st_size if part.exists() else 0
        if here <= before:
            raise failure


def _append(part: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """Append what a server has beyond a partial file, but nothing beyond the file's size."""
    import requests

    here = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={here}-", "Accept-Encoding": "identity"}
    with requests.get(checkpoint.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        resumes = response.status_code == requests.codes.partial_content
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            raise requests.RequestException("the server sends another part than asked for")
        with part.open("ab" if resumes else "wb") as file:
            for piece in response.iter_content(_PIECE):
                file.write(piece[: checkpoint.n_bytes - file.tell()])
                progress(file.tell(), checkpoint.n_bytes)
                if file.tell() >= checkpoint.n_bytes:
                    return


def _reason(error: Exception) -> str:
    from requests import RequestException

    if isinstance(error, RequestException) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    return str(error) if type(error) is RequestException else type(error).__name__
