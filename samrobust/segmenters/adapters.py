"""SAMs of which a small part was trained: its files, and tuned decoders, tokens and LoRA."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.provenance import origins_of_training
from samrobust.registry import known
from samrobust.segmenters.nano import NAME as NANO
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam, SamOptions, build_sam
from samrobust.segmenters.weights import file_sha256, fill_model, load_header, load_tensors
from samrobust.types import SegmenterInfo, SegmenterOptions

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


NAME = "lora-tuned"
KIND = "lora-tuned-weights"
RANK, ALPHA = 8, 8
"""Rank of each update; ALPHA / RANK multiplies it (ours: no table that we follow has LoRA here)."""
TARGETS = ("q_proj", "v_proj")
"""Queries and values of every attention of the decoder, as Hu et al. 2022, sec. 7.1, advise."""
_HOLDS = f"weights of {NAME}"


class LoraUpdates(nn.ModuleDict):
    """The low-rank updates of a SAM's mask decoder, by the layer that each is added to.

    Args:
        base: its decoder's layers are replaced by some that add their updates, 0 at first.

    Raises:
        SegmenterError: peft is not installed.
    """

    def __init__(self, base: Sam) -> None:
        super().__init__()
        if find_spec("peft") is None:
            raise SegmenterError(
                f"{NAME} needs peft; install it with pip install 'samrobust[lora]'"
            )
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        decoder = inject_adapter_in_model(config, base.model.mask_decoder)
        self._layers: dict[str, Any] = {
            name.replace(".", "-"): layer
            for name, layer in decoder.named_modules()
            if hasattr(layer, "lora_A")
        }
        for name, layer in self._layers.items():
            (first,), (second,) = layer.lora_A.values(), layer.lora_B.values()
            self[name] = nn.ModuleList([first, second])

    def merge(self) -> None:
        """Add the updates to the weights; from then on they cost nothing."""
        for layer in self._layers.values():
            layer.merge()


def add_lora(base: Sam) -> tuple[Sam, LoraUpdates]:
    """Return a SAM with untrained updates, which is the SAM that it is made of, and these.

    It runs segment_anything's own decoder: the fast one reads weights, past the updates.

    Args:
        base: taken over.

    Raises:
        SegmenterError: peft is not installed.
    """
    updates, info = LoraUpdates(base), base.info
    frame = info.frame or "longest-side"
    sam = Sam(base.model, SamOptions(frame, attention="stock", decoder="stock"))
    sam.info = replace(info, settings={**info.settings, "decoder": "stock"})
    mark_tuned(sam, NAME)
    return sam, updates


def lora_header(base: Sam) -> Mapping[str, str]:
    """Return what a file of updates must say, of the base as it was read."""
    return describe_base(KIND, base)


def load_lora(base: Sam, path: Path) -> Sam:
    """Return a SAM with the updates of a file added to its weights.

    Args:
        base: the very same that the file was trained on; taken over, and changed.
        path: of the file.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, base or size.
        SegmenterError: peft is not installed.
    """
    header = read_header(path, KIND, holds=_HOLDS)
    check_base(path, header, base)
    updates = LoraUpdates(base)
    fill_model(updates, load_tensors(path), path=path)
    updates.merge()
    mark_tuned(base, NAME, checkpoint_sha256=file_sha256(path))
    base.info = replace(base.info, trained_on=all_origins(base, header))
    return base


def build_lora_tuned(options: SegmenterOptions) -> Sam:
    """Return a SAM with updates, from a file that training wrote.

    Raises:
        SegmenterError: there is no such file, it does not fit, or peft is not installed.
    """
    path = options.checkpoint
    if path is None:
        raise SegmenterError(
            f"{NAME} comes without weights: name a file with --checkpoint, "
            f"which 'samrobust train {NAME}' writes"
        )
    base = open_base(path, read_header(path, KIND, holds=_HOLDS), options)
    tuned = load_lora(base, path)
    tuned.info = replace(tuned.info, variant=path.stem)
    return tuned
