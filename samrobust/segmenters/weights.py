"""Weights files: how they get here, which family they are of, and how a model takes them in."""

import contextlib
import hashlib
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import requests
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from samrobust.errors import CheckpointError
from samrobust.segmenters.published import SAM_CHECKPOINTS, Checkpoint, cache_folder

State = dict[str, Tensor]
Progress = Callable[[int, int], None]
"""Told how many bytes are here and how many there are, while a file comes in."""

_PIECE = 2**20
"""Bytes written, and told of, at once."""
_TIMEOUT_S = (10, 60)
"""To connect, and between two pieces."""
UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)
"""What `torch.load` raises on damaged files, as found by damaging some thousands."""
_TELLING = "image_encoder.pos_embed"
"""The tensor whose last side tells variants apart."""


def fetch(checkpoint: Checkpoint, *, progress: Progress | None = None) -> Path:
    """Return where a published file is in the cache; what is missing of it is fetched first.

    A broken transfer is taken up where it broke, in this call and in later ones.

    Raises:
        CheckpointError: it cannot be fetched or written, or is not the published file.
    """
    path = cache_folder() / checkpoint.file_name
    if path.exists():
        _check_hash(path, checkpoint)
    else:
        _fetch_to(path, checkpoint, progress or (lambda _here, _all: None))
    return path


def load_state(
    path: Path, *, variant: str, published: Mapping[str, Checkpoint] = SAM_CHECKPOINTS
) -> tuple[State, str]:
    """Return the weights in a file, on the CPU, and its SHA-256; no code in the file is run.

    Args:
        path: of a state dict that `torch.save` wrote.
        variant: what it must be.
        published: the files of all variants, which tell whose file it is instead.

    Raises:
        CheckpointError: the file is missing, broken or of another variant.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    sha256 = file_sha256(path)
    for owner, checkpoint in published.items():
        if owner != variant and checkpoint.sha256 == sha256:
            raise CheckpointError(
                f"{path.name}: is the published {owner}, not {variant}; is it --variant {owner}?"
            )
    state = _read(path)
    sides = state[_TELLING].shape if _TELLING in state else ()
    for owner, checkpoint in published.items():
        if owner != variant and sides[-1:] == (checkpoint.embed_dim,):
            raise CheckpointError(
                f"{path.name}: looks like {owner}, not like {variant}; is it --variant {owner}?"
            )
    return state, sha256


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors files do; False where there is none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_tensors(path: Path) -> State:
    """Return the tensors of a safetensors file, on the CPU, as float32.

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
    """
    with _opened(path):
        state = load_file(path)
    return {name: tensor.float() for name, tensor in state.items()}


def load_header(path: Path) -> dict[str, str]:
    """Return what the header of a safetensors file says besides its tensors.

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
    """
    with _opened(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def fill_model(model: nn.Module, state: State, *, path: Path) -> None:
    """Copy weights into a model: every tensor of the one is in the other, of the same shape.

    Raises:
        CheckpointError: they do not fit; the message names `path`, where they came from.
    """
    wanted = model.state_dict()
    misfits = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    )
    if misfits:
        raise CheckpointError(
            f"{path.name}: does not fit the model: {len(misfits)} tensors are missing, unknown or "
            f"of another shape, as {misfits[0]}"
        )
    model.load_state_dict(state)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, computed once while it is unchanged."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Say in one line why a safetensors file cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: cut short, or not a safetensors file") from error


def _check_hash(path: Path, checkpoint: Checkpoint) -> None:
    found = file_sha256(path)
    if found != checkpoint.sha256:
        raise CheckpointError(
            f"{path.with_name(checkpoint.file_name)}: SHA-256 is {found[:4]}…, "
            f"expected {checkpoint.sha256[:4]}…; is it another variant?"
        )


def _fetch_to(path: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):  # another process may want it too
            if not path.exists():
                _complete(part, checkpoint, progress)
                _keep(part, path, checkpoint)
    except OSError as error:
        raise CheckpointError(
            f"{path.name}: cannot be written to {path.parent}: {error.strerror}"
        ) from error


def _complete(part: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """Append to a partial file until it is whole, as long as each request brings something."""
    here = part.stat().st_size if part.exists() else 0
    while here < checkpoint.n_bytes:
        before, failure = here, None
        try:
            for size in _append(checkpoint, part, before):
                here = size
                progress(here, checkpoint.n_bytes)
        except requests.RequestException as error:
            failure = error
        if here <= before:
            raise CheckpointError(
                f"{checkpoint.file_name}: cannot be fetched from {checkpoint.url} "
                f"({_reason(failure)}); put it into {part.parent}, or name it with --checkpoint"
            ) from failure


def _append(checkpoint: Checkpoint, part: Path, here: int) -> Iterator[int]:
    """Append what a server has beyond `here` bytes, and yield the size after each piece.

    What it sends beyond the size of the file is not taken: it might never end.
    """
    headers = {"Range": f"bytes={here}-", "Accept-Encoding": "identity"}
    with requests.get(checkpoint.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        resumes = response.status_code == requests.codes.partial_content
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            raise requests.exceptions.InvalidHeader("it sends another part than asked for")
        with part.open("ab" if resumes else "wb") as file:
            for piece in response.iter_content(_PIECE):
                file.write(piece[: checkpoint.n_bytes - file.tell()])
                yield file.tell()
                if file.tell() >= checkpoint.n_bytes:
                    return


def _reason(failure: requests.RequestException | None) -> str:
    if failure is None:
        return "it ends too early there"
    if failure.response is not None:
        return f"HTTP status {failure.response.status_code}"
    if isinstance(failure, requests.exceptions.InvalidHeader):
        return str(failure)
    return type(failure).__name__


def _keep(part: Path, path: Path, checkpoint: Checkpoint) -> None:
    """Give a whole file its name, or drop it if it is not the published one."""
    try:
        _check_hash(part, checkpoint)
    except CheckpointError:
        part.unlink()
        raise
    part.replace(path)


def _read(path: Path) -> State:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is no dense tensor is refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path.name}: cut short, or not a file of torch.save") from error
    if not isinstance(state, dict) or not all(map(_is_weight, state.items())):
        raise CheckpointError(f"{path.name}: holds something else than the weights of a model")
    return state


def _is_weight(item: tuple[object, object]) -> bool:
    name, tensor = item
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


Family = Literal["SAM", "HQ-SAM", "MobileSAM", "Light HQ-SAM"]

ACCEPTED: Mapping[Family, tuple[Family, ...]] = {
    "SAM": ("SAM", "HQ-SAM"),
    "HQ-SAM": ("HQ-SAM",),
    "MobileSAM": ("MobileSAM", "Light HQ-SAM"),
    "Light HQ-SAM": ("Light HQ-SAM",),
}
"""What will do for each: in a file of the HQ kind is the model that it was made of, unchanged."""
HQ_TENSORS = (
    "mask_decoder.hf_token.",
    "mask_decoder.hf_mlp.",
    "mask_decoder.compress_vit_feat.",
    "mask_decoder.embedding_encoder.",
    "mask_decoder.embedding_maskfeature.",
)
"""How the names of the 25 tensors begin that HQ-SAM adds to SAM (facts/hq-sam.md 3.1)."""
_VIT, _TINY_VIT = "image_encoder.pos_embed", "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor of SAM's image encoder, and one of TinyViT, in MobileSAM and Light HQ-SAM."""
_WORDS: Mapping[Family, str] = {
    "SAM": "a SAM, without the 25 tensors of HQ-SAM: use --segmenter sam",
    "HQ-SAM": "an HQ-SAM: use --segmenter hq-sam",
    "MobileSAM": "a MobileSAM, whose image encoder is a TinyViT: use --segmenter mobile-sam",
    "Light HQ-SAM": (
        "a Light HQ-SAM, whose image encoder is a TinyViT: use --segmenter hq-sam "
        "--variant vit_tiny"
    ),
}
_DECODER_ALONE = (
    "a mask decoder alone, as HQ-SAM's training reads and writes: it has neither image encoder nor "
    "prompt encoder, and its names lack 'mask_decoder.' in front"
)


def load_family(
    path: Path, family: Family, *, variant: str, published: Mapping[str, Checkpoint]
) -> tuple[State, str]:
    """Return the weights of a file of one family, on the CPU, and its SHA-256.

    Args:
        path: of the file.
        family: what it must be, or one of what will do, which is returned whole.
        variant: of the family.
        published: files by variant, among them that of this one.

    Raises:
        CheckpointError: it is missing, broken, or of another family or variant; the message says of
            which.
    """
    state, sha256 = load_state(path, variant=variant, published=published)
    found = family_of(state)
    if found in ACCEPTED[family]:
        return state, sha256
    wanted = f"{published[variant].file_name} or alike" if variant in published else f"a {family}"
    raise CheckpointError(f"{path.name}: is {_words(state, found)}; wanted is {wanted}")


def family_of(state: State) -> Family | None:
    """Return the family of a whole model, None where it is none of them."""
    has_hq = bool(split_hq(state)[1])
    if _VIT in state:
        return "HQ-SAM" if has_hq else "SAM"
    if _TINY_VIT in state:
        return "Light HQ-SAM" if has_hq else "MobileSAM"
    return None


def split_hq(state: State) -> tuple[State, State]:
    """Return SAM's own tensors, and those that HQ-SAM adds, these without "mask_decoder."."""
    added = {name: tensor for name, tensor in state.items() if name.startswith(HQ_TENSORS)}
    own = {name: tensor for name, tensor in state.items() if name not in added}
    return own, {name.removeprefix("mask_decoder."): tensor for name, tensor in added.items()}


def _words(state: State, found: Family | None) -> str:
    if found is not None:
        return _WORDS[found]
    if "hf_token.weight" in state:
        return f"HQ-SAM's: {_DECODER_ALONE}"
    if "mask_tokens.weight" in state:
        return f"SAM's: {_DECODER_ALONE}"
    return "neither a SAM nor an HQ-SAM"
