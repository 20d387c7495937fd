"""A SAM with low-rank updates in its mask decoder (Hu et al. 2022, LoRA), made by peft."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.tuned import mark_tuned

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
