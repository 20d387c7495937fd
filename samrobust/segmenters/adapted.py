"""Files that hold a small part of a SAM, and the very SAM that such a part was trained on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.interfaces import SegmenterOptions
from samrobust.origins import origins_of_training
from samrobust.registry import known
from samrobust.segmenters.checkpoints import load_header
from samrobust.segmenters.nano import NAME as NANO
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam, build_sam
from samrobust.types import SegmenterInfo

BASES = {NANO: build_sam_nano, "sam": build_sam}
"""What can be adapted, by its name among the segmenters."""


def describe_base(kind: str, base: Sam) -> dict[str, str]:
    """Return what the header of a file must say for `check_base`.

    Args:
        kind: what the file holds.
        base: that it was trained on, as it was read.
    """
    return {
        "kind": kind,
        "base-name": base.info.name,
        "base-variant": base.info.variant,
        "base-sha256": base.info.checkpoint_sha256,
    }


def read_header(path: Path, kind: str, *, holds: str) -> Mapping[str, str]:
    """Return the header of a file of some kind.

    Args:
        path: of a safetensors file.
        kind: what it must hold.
        holds: the same in words, for the message.

    Raises:
        CheckpointError: it is missing, is no safetensors file, or of another kind.
    """
    header = load_header(path)
    if header.get("kind") != kind:
        raise CheckpointError(f"{path.name}: holds no {holds}")
    return header


def check_base(path: Path, header: Mapping[str, str], base: Sam) -> None:
    """Raise a CheckpointError where a file was trained on another SAM, or does not say on which."""
    try:
        name, variant, sha256 = (header[f"base-{key}"] for key in ("name", "variant", "sha256"))
    except KeyError as error:
        raise CheckpointError(f"{path.name}: its header cannot be read: {error}") from error
    info = base.info
    if (name, variant, sha256) != (info.name, info.variant, info.checkpoint_sha256):
        raise CheckpointError(
            f"{path.name}: is for {f'{name} {variant}'.strip()} with SHA-256 {sha256[:4]}…, "
            f"not for {info.label} with SHA-256 {info.checkpoint_sha256[:4]}…"
        )


def adapted_info(
    base: Sam, name: str, checkpoint_sha256: str, settings: Mapping[str, str | float]
) -> SegmenterInfo:
    """Return what a SAM with a part put into it says of itself.

    Args:
        base: the SAM; its settings, name and SHA-256 stand among the result's.
        name: as registered.
        checkpoint_sha256: of the part's file, "" where there is none.
        settings: of the part.
    """
    of_base = {"base": base.info.label, "base_sha256": base.info.checkpoint_sha256}
    return replace(
        base.info,
        name=name,
        checkpoint_sha256=checkpoint_sha256,
        settings={**base.info.settings, **of_base, **settings},
    )


def all_origins(base: Sam, header: Mapping[str, str]) -> tuple[str, ...]:
    """Return the collections that a base and a part of it were trained on."""
    return tuple(dict.fromkeys((*base.info.trained_on, *origins_of_training(header))))


def open_base(path: Path, header: Mapping[str, str], options: SegmenterOptions) -> Sam:
    """Return the SAM that a file was trained on, with its own weights.

    Args:
        path: of the file.
        header: its.
        options: the base's checkpoint is `base_checkpoint`, by default the published one; a variant
            is refused, as the file says which.

    Raises:
        SegmenterError: a variant is asked for.
        CheckpointError: the base is unknown or its weights cannot be had.
    """
    if options.variant:
        raise SegmenterError(
            f"{path.name} says itself what it is for: --variant {options.variant} is not for it"
        )
    name, variant = header.get("base-name", ""), header.get("base-variant", "")
    if name not in BASES:
        allowed = ", ".join(BASES)
        raise CheckpointError(f"{path.name}: is for '{name}'; allowed: {allowed}")
    return build_base(name, replace(options, variant=variant, checkpoint=options.base_checkpoint))


def build_base(name: str, options: SegmenterOptions) -> Sam:
    """Return a SAM that can be adapted.

    Raises:
        UnknownNameError: nothing of that name can.
        SegmenterError: an option is not one of its own, or its weights cannot be had.
    """
    return BASES[known(name, BASES, kind="base")](options)
