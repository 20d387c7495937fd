"""SAMs of which a small part was trained: the part's file, and tuned decoders, tokens and LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.provenance import origins_of_training
from samrobust.registry import known
from samrobust.segmenters import ROWS, SEGMENTERS
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import Sam
from samrobust.segmenters.weights import fill_model, load_header, load_tensors
from samrobust.types import SegmenterInfo, SegmenterOptions

DECODER, TOKENS, LORA = "decoder-tuned", "token-tuned", "lora-tuned"
BASES = tuple(name for name, row in ROWS.items() if row.is_base)
"""Names of the segmenters on which parts can be trained."""
RANK, ALPHA = 8, 8
"""Rank of each update; ALPHA / RANK multiplies it (ours: no table that we follow has LoRA here)."""
TARGETS = ("q_proj", "v_proj")
"""Queries and values of every attention of the decoder, as Hu et al. 2022, sec. 7.1, advise."""


@dataclass(frozen=True)
class PartFile:
    """A safetensors file of a part that was trained on a frozen SAM. Make one with `open_part`.

    Attributes:
        path: of the file.
        header: its metadata, which names the base by `describe_base`.
    """

    path: Path
    header: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        return file_sha256(self.path)

    def open_base(self, options: SegmenterOptions) -> Sam:
        """Return the SAM that the part was trained on, with its own weights.

        Args:
            options: the base's checkpoint is `base_checkpoint`, by default the published one; a
                variant is refused, as the file says which.

        Raises:
            SegmenterError: a variant is asked for.
            CheckpointError: the base is unknown or its weights cannot be had.
        """
        if options.variant:
            raise SegmenterError(
                f"{self.path.name} says itself what it is for: "
                f"--variant {options.variant} is not for it"
            )
        name, variant = self.header.get("base-name", ""), self.header.get("base-variant", "")
        if name not in BASES:
            raise CheckpointError(f"{self.path.name}: is for '{name}'; allowed: {', '.join(BASES)}")
        own = replace(options, checkpoint=options.base_checkpoint, base_checkpoint=None, output="")
        return build_base(name, replace(own, variant=variant))

    def check_base(self, base: Sam) -> None:
        """Raise a CheckpointError where the file is for another SAM, or does not say for which."""
        try:
            wanted = tuple(self.header[f"base-{key}"] for key in ("name", "variant", "sha256"))
        except KeyError as error:
            raise CheckpointError(
                f"{self.path.name}: its header cannot be read: {error}"
            ) from error
        info = base.info
        if wanted != (info.name, info.variant, info.checkpoint_sha256):
            name, variant, sha256 = wanted
            raise CheckpointError(
                f"{self.path.name}: is for {f'{name} {variant}'.strip()} with SHA-256 "
                f"{sha256[:4]}…, not for {info.label} with SHA-256 {info.checkpoint_sha256[:4]}…"
            )

    def fill(self, part: nn.Module) -> None:
        """Copy the file's weights into a part.

        Raises:
            CheckpointError: the file is damaged or of another size.
        """
        fill_model(part, load_tensors(self.path), path=self.path)

    def trained_on(self, base: Sam) -> tuple[str, ...]:
        """Return the collections that the base and the part were trained on."""
        return tuple(dict.fromkeys((*base.info.trained_on, *origins_of_training(self.header))))


def open_part(path: Path, kind: str) -> PartFile:
    """Return a file of a trained part after checking what it holds.

    Args:
        path: of a safetensors file.
        kind: what its header must say that it is: a segmenter's name and what of it
            ("hq-sam-parts").

    Raises:
        CheckpointError: it is missing, is no safetensors file, or of another kind.
    """
    header = load_header(path)
    if header.get("kind") != kind:
        name, _, content = kind.rpartition("-")
        raise CheckpointError(f"{path.name}: holds no {content} of {name}")
    return PartFile(path, header)


def describe_base(kind: str, base: Sam) -> dict[str, str]:
    """Return what the header of a file must say for `PartFile.check_base`.

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


def build_base(name: str, options: SegmenterOptions) -> Sam:
    """Return a SAM on which a part can be trained.

    Raises:
        UnknownNameError: no such SAM is known.
        SegmenterError: an option is not one of its own, or its weights cannot be had.
    """
    return cast(Sam, SEGMENTERS.load(known(name, BASES, kind="base"))(options))


def adapted_info(
    base: Sam,
    name: str,
    checkpoint_sha256: str = "",
    settings: Mapping[str, str | float] | None = None,
) -> SegmenterInfo:
    """Return the info of a SAM with a part put into it.

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
        settings={**base.info.settings, **of_base, **(settings or {})},
    )


def tuned_part(base: Sam, name: str) -> nn.Module:
    """Return the part of a SAM that is tuned under a name.

    Ours: of the output tokens, the four that make masks are tuned, not the one of the quality.

    Args:
        base: a SAM; its decoder gets the updates of LORA.
        name: DECODER, TOKENS or LORA.
    """
    if name == LORA:
        return LoraUpdates(base)
    decoder: nn.Module = base.model.mask_decoder
    tokens: nn.Module = base.model.mask_decoder.mask_tokens
    return decoder if name == DECODER else tokens


def tuned_header(base: Sam, name: str) -> Mapping[str, str]:
    """Return what a file of a tuned part must say, of the base as it was read."""
    return describe_base(f"{name}-weights", base)


def build_tuned(options: SegmenterOptions, *, name: str) -> Sam:
    """Return a SAM with the tuned part of a file that training wrote.

    Args:
        options: the file is the checkpoint; its name stands as the variant.
        name: DECODER, TOKENS or LORA.

    Raises:
        SegmenterError: no file is named.
        CheckpointError: the file is missing, damaged, of another kind, base or size.
    """
    path = options.checkpoint
    if path is None:
        raise SegmenterError(
            f"{name} comes without weights: name a file with --checkpoint, "
            f"which 'samrobust train {name}' writes"
        )
    file = open_part(path, f"{name}-weights")
    base = file.open_base(options)
    file.check_base(base)
    part = tuned_part(base, name)
    file.fill(part)
    if isinstance(part, LoraUpdates):
        part.merge()
    info = adapted_info(base, name, file.sha256)
    base.info = replace(info, variant=path.stem, trained_on=file.trained_on(base))
    return base


build_decoder_tuned = partial(build_tuned, name=DECODER)
build_token_tuned = partial(build_tuned, name=TOKENS)
build_lora_tuned = partial(build_tuned, name=LORA)


class LoraUpdates(nn.ModuleDict):
    """The low-rank updates of a SAM's mask decoder, by the layer that each is added to.

    They are parametrizations of the layers' weights, which every decoder reads with the update.

    Args:
        base: its decoder's layers get updates, 0 at first.
    """

    def __init__(self, base: Sam) -> None:
        super().__init__()
        self._layers: list[nn.Linear] = []
        for name, layer in list(base.model.mask_decoder.named_modules()):
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in TARGETS:
                self[name.replace(".", "-")] = update = _update(layer)
                parametrize.register_parametrization(layer, "weight", _Added(update))
                self._layers.append(layer)

    def merge(self) -> None:
        """Add the updates to the weights; from then on they cost nothing."""
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


class _Added(nn.Module):
    """A weight with its low-rank update."""

    def __init__(self, update: nn.ModuleList) -> None:
        super().__init__()
        self.update = update

    def forward(self, weight: Tensor) -> Tensor:
        first, second = (cast(nn.Linear, each).weight for each in self.update)
        return torch.addmm(weight, second, first, alpha=ALPHA / RANK)


def _update(layer: nn.Linear) -> nn.ModuleList:
    """Return an update of 0: a random matrix, then one of zeros (Hu et al. 2022, sec. 4.1)."""
    device = layer.weight.device
    first = nn.Linear(layer.in_features, RANK, bias=False, device=device)
    second = nn.Linear(RANK, layer.out_features, bias=False, device=device)
    nn.init.zeros_(second.weight)
    return nn.ModuleList([first, second])
