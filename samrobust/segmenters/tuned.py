"""SAMs of which a part was tuned as it is: what Stable-SAM is compared with.

Tuned is the whole mask decoder, or nothing but the mask tokens: the paper's DT-SAM and PT-SAM
(facts/stable-sam.md, "Evaluation").
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from samrobust.errors import SegmenterError
from samrobust.interfaces import SegmenterOptions
from samrobust.segmenters.adapted import (
    all_origins,
    check_base,
    describe_base,
    open_base,
    read_header,
)
from samrobust.segmenters.checkpoints import file_sha256, fill_model, load_tensors
from samrobust.segmenters.sam import Sam

DECODER, TOKENS = "decoder-tuned", "token-tuned"


def tuned_part(base: Sam, name: str) -> nn.Module:
    """Return the part of a SAM that is tuned under a name.

    Ours: of the output tokens, the four that make masks are tuned, not the one of the quality.

    Args:
        base: a SAM.
        name: DECODER or TOKENS.
    """
    decoder: nn.Module = base.model.mask_decoder
    tokens: nn.Module = base.model.mask_decoder.mask_tokens
    return decoder if name == DECODER else tokens


def tuned_header(base: Sam, name: str) -> Mapping[str, str]:
    """Return what a file of a tuned part must say, of the base as it was read."""
    return describe_base(f"{name}-weights", base)


def load_tuned(base: Sam, path: Path, *, name: str) -> Sam:
    """Return a SAM with the tuned part of a file, which was trained on the very same SAM.

    Args:
        base: taken over, and changed, where nothing is raised.
        path: of the file.
        name: DECODER or TOKENS.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, base or size.
    """
    header = read_header(path, f"{name}-weights", holds=f"weights of {name}")
    check_base(path, header, base)
    fill_model(tuned_part(base, name), load_tensors(path), path=path)
    mark_tuned(base, name, checkpoint_sha256=file_sha256(path))
    base.info = replace(base.info, trained_on=all_origins(base, header))
    return base


def mark_tuned(base: Sam, name: str, *, checkpoint_sha256: str = "") -> None:
    """Let a SAM say what has become of it."""
    of_base = {"base": base.info.label, "base_sha256": base.info.checkpoint_sha256}
    base.info = replace(
        base.info,
        name=name,
        checkpoint_sha256=checkpoint_sha256,
        settings={**base.info.settings, **of_base},
    )


def build_decoder_tuned(options: SegmenterOptions) -> Sam:
    """Return a SAM with a tuned mask decoder, from a file that training wrote.

    Raises:
        SegmenterError: there is no such file, or it does not fit.
    """
    return _build(options, DECODER)


def build_token_tuned(options: SegmenterOptions) -> Sam:
    """Return a SAM with tuned mask tokens, from a file that training wrote.

    Raises:
        SegmenterError: there is no such file, or it does not fit.
    """
    return _build(options, TOKENS)


def _build(options: SegmenterOptions, name: str) -> Sam:
    path = options.checkpoint
    if path is None:
        raise SegmenterError(
            f"{name} comes without weights: name a file with --checkpoint, "
            f"which 'samrobust train {name}' writes"
        )
    header = read_header(path, f"{name}-weights", holds=f"weights of {name}")
    tuned = load_tuned(open_base(path, header, options), path, name=name)
    tuned.info = replace(tuned.info, variant=path.stem)
    return tuned
