"""Promptable segmenters behind one interface: one row per segmenter says all that is known of it.

To add one, write a file that has its builder, and a row here; packages add theirs by entry points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samrobust.errors import SegmenterError
from samrobust.provenance import HQSEG_44K
from samrobust.registry import Entry, Registry
from samrobust.segmenters.published import Checkpoint, HubModel
from samrobust.types import (
    EncoderDtype,
    Frame,
    PromptKind,
    Segmenter,
    SegmenterBuilder,
    SegmenterOptions,
)

if TYPE_CHECKING:
    from samrobust.segmenters.user_models import UserModel


@dataclass(frozen=True)
class SegmenterEntry(Entry):
    """A built-in segmenter.

    Attributes:
        prompts: the kinds of prompt that it accepts.
        licence: of its weights.
        checkpoints: published weights files by variant, downloaded when they are first used.
        packaged: weights files of the package by variant ("" where there is one).
        models: published models of the transformers library by variant.
        weights: where weights come from that are neither published nor packaged, in words.
        n_parameters: of a model with such weights; None where the file decides.
        trained_on: collections that its published weights have seen images of.
        is_base: whether a part can be trained on it while the rest is frozen.
        is_foreign: whether the code that predicts is another package's; it is tested before a run.
    """

    prompts: tuple[PromptKind, ...] = ("box", "points")
    licence: str = "Apache-2.0"
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    packaged: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, HubModel] = field(default_factory=dict)
    weights: str = ""
    n_parameters: int | None = None
    trained_on: tuple[str, ...] = ()
    is_base: bool = False
    is_foreign: bool = False


_META = "https://dl.fbaipublicfiles.com/segment_anything"
_HQ = "https://huggingface.co/lkeab/hq-sam/resolve/main"
_RESEARCH = "Apache-2.0; some of its training photographs are for research only"
_OF_BASE, _TRAINED = "of its base", "a file that samrobust train writes, and its base"

_SA_V = ("SA-1B", "SA-V")
_MODELS = {
    # ids, licences and sizes of files as their pages say; parameters counted in the library, by
    # which the size of each file is met; of SAM 2.1 and EdgeTAM as their authors say, with the
    # parts for videos, which are left out here
    "slimsam-77": HubModel("Zigeng/SlimSAM-uniform-77", "sam", "Apache-2.0", 9_723_784, 38_900_000),
    "slimsam-50": HubModel(
        "Zigeng/SlimSAM-uniform-50", "sam", "Apache-2.0", 27_962_032, 112_000_000
    ),
    "edgetam": HubModel(
        "yonigozlan/EdgeTAM-hf", "edgetam", "Apache-2.0", 13_900_000, trained_on=_SA_V
    ),
    **{
        f"sam2.1-{size}": HubModel(
            f"facebook/sam2.1-hiera-{size}", "sam2", "Apache-2.0", n_parameters, trained_on=_SA_V
        )
        for size, n_parameters in (
            ("tiny", 38_900_000),
            ("small", 46_000_000),
            ("base-plus", 80_800_000),
            ("large", 224_400_000),
        )
    },
    **{
        f"sam-hq-{size}": HubModel(
            f"syscv-community/sam-hq-vit-{size}",
            "sam_hq",
            "Apache-2.0",
            n_parameters,
            trained_on=("SA-1B", *HQSEG_44K),
        )
        for size, n_parameters in (("base", 94_806_832), ("huge", 642_686_256))
    },
}
"""Of the transformers library, by the short names that `--variant` takes besides ids."""

ROWS: Mapping[str, SegmenterEntry] = {
    "box-fill": SegmenterEntry(
        "samrobust.segmenters.baselines:build_box_fill",
        "control: the box itself, filled",
        takes=(),
        prompts=("box",),
        weights="no weights",
        n_parameters=0,
    ),
    "ellipse": SegmenterEntry(
        "samrobust.segmenters.baselines:build_ellipse",
        "control: the ellipse inscribed in the box",
        takes=(),
        prompts=("box",),
        weights="no weights",
        n_parameters=0,
    ),
    "grabcut": SegmenterEntry(
        "samrobust.segmenters.baselines:build_grabcut",
        "control: OpenCV's GrabCut, 3 iterations",
        takes=(),
        weights="no weights",
        n_parameters=0,
    ),
    "sam-nano": SegmenterEntry(
        "samrobust.segmenters.nano:build_sam_nano",
        "a small SAM that comes with the package",
        takes=("--checkpoint",),
        licence=_RESEARCH,
        packaged={"": "sam-nano.safetensors"},
        is_base=True,
    ),
    "sam": SegmenterEntry(
        "samrobust.segmenters.sam:build_sam",
        "Segment Anything",
        prompts=("box", "points", "mask"),
        takes=("--variant", "--checkpoint"),
        hints={
            "vit": "--segmenter sam --variant vit_b",
            "samvit": "--segmenter sam --variant vit_b",
        },
        licence="Apache-2.0",
        checkpoints={  # sizes and hashes: docs/sources/hq-sam.md 3.2
            "vit_b": Checkpoint(
                f"{_META}/sam_vit_b_01ec64.pth",
                "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
                375_042_383,
                embed_dim=768,
                n_parameters=93_735_472,
            ),
            "vit_l": Checkpoint(
                f"{_META}/sam_vit_l_0b3195.pth",
                "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
                1_249_524_607,
                embed_dim=1024,
                n_parameters=312_342_832,
            ),
            "vit_h": Checkpoint(
                f"{_META}/sam_vit_h_4b8939.pth",
                "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
                2_564_550_879,
                embed_dim=1280,
                n_parameters=641_090_608,
            ),
        },
        trained_on=("SA-1B",),
        is_base=True,
    ),
    "mobile-sam": SegmenterEntry(
        "samrobust.segmenters.mobile_sam:build_mobile_sam",
        "MobileSAM, from a file of yours",
        prompts=("box", "points", "mask"),
        takes=("--checkpoint",),
        licence="Apache-2.0",
        weights="mobile_sam.pt, to be named with --checkpoint",
        n_parameters=9_808_452,
        trained_on=("SA-1B",),
    ),
    "tiny-sam": SegmenterEntry(
        "samrobust.segmenters.mobile_sam:build_tiny_sam",
        "TinySAM, from a file of yours",
        takes=("--checkpoint",),
        hints={"tinysam": "--segmenter tiny-sam --checkpoint tinysam.pth"},
        licence="Apache-2.0",
        weights="tinysam.pth of xinghaochen/TinySAM, release 1.0, to be named with --checkpoint; "
        "SHA-256 not known; its own code gives three masks alone: --selection best-quality",
        n_parameters=9_808_452,
        trained_on=("SA-1B",),
    ),
    "repvit-sam": SegmenterEntry(
        "samrobust.segmenters.repvit_sam:build_repvit_sam",
        "RepViT-SAM, from a file of yours",
        takes=("--checkpoint",),
        hints={"repvit": "--segmenter repvit-sam --checkpoint repvit_sam.pt"},
        licence="Apache-2.0",
        weights="repvit_sam.pt of THU-MIG/RepViT, release v1.0, to be named with --checkpoint; "
        "SHA-256 not known",
        n_parameters=27_223_480,
        trained_on=("SA-1B",),
    ),
    "hq-sam": SegmenterEntry(
        "samrobust.segmenters.hq_sam:build_hq_sam",
        "HQ-SAM, the official models or parts that samrobust train wrote",
        prompts=("box", "points", "mask"),
        takes=("--variant", "--checkpoint", "--base-checkpoint", "--output"),
        hints={"samhq": "--segmenter hq-sam"},
        licence="Apache-2.0",
        checkpoints={  # whole models; sizes and hashes: docs/sources/hq-sam.md 3.2
            "vit_b": Checkpoint(
                f"{_HQ}/sam_hq_vit_b.pth",
                "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57",
                379_335_069,
                embed_dim=768,
                n_parameters=94_806_576,
            ),
            "vit_l": Checkpoint(
                f"{_HQ}/sam_hq_vit_l.pth",
                "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343",
                1_254_865_805,
                embed_dim=1024,
                n_parameters=313_676_080,
            ),
            "vit_h": Checkpoint(
                f"{_HQ}/sam_hq_vit_h.pth",
                "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35",
                2_570_940_653,
                embed_dim=1280,
                n_parameters=642_686_000,
            ),
            "vit_tiny": Checkpoint(
                f"{_HQ}/sam_hq_vit_tiny.pth",
                "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196",
                42_526_881,
                embed_dim=320,
                n_parameters=10_256_964,
            ),
        },
        trained_on=("SA-1B", *HQSEG_44K),
    ),
    "stable-sam": SegmenterEntry(
        "samrobust.segmenters.stable_sam:build_stable_sam",
        "Stable-SAM; comes with plugins for sam-nano",
        takes=("--checkpoint", "--base-checkpoint"),
        licence=_RESEARCH,
        packaged={"": "stable-sam.safetensors"},
    ),
    "transformers": SegmenterEntry(
        "samrobust.segmenters.transformers:build_transformers",
        "SAM, SAM-HQ, SAM 2, EdgeTAM, SAM 3 by model id or folder",
        prompts=("box", "points", "mask"),
        takes=("--variant", "--checkpoint", "--output"),
        hints={
            "sam2": "--segmenter transformers --variant facebook/sam2.1-hiera-tiny",
            "edgetam": "--segmenter transformers --variant yonigozlan/EdgeTAM-hf",
            "sam3": "--segmenter transformers --variant facebook/sam3",
            "slimsam": "--segmenter transformers --variant slimsam-77",
        },
        licence="of the model",
        models=_MODELS,
        weights="any model id or folder; the library keeps its own cache",
        is_foreign=True,
    ),
    "decoder-tuned": SegmenterEntry(
        "samrobust.segmenters.adapters:build_decoder_tuned",
        "a SAM with a tuned mask decoder",
        takes=("--checkpoint", "--base-checkpoint"),
        licence=_OF_BASE,
        weights=_TRAINED,
    ),
    "lora-tuned": SegmenterEntry(
        "samrobust.segmenters.adapters:build_lora_tuned",
        "a SAM with low-rank updates in its mask decoder",
        takes=("--checkpoint", "--base-checkpoint"),
        licence=_OF_BASE,
        weights=_TRAINED,
    ),
    "token-tuned": SegmenterEntry(
        "samrobust.segmenters.adapters:build_token_tuned",
        "a SAM with tuned mask tokens",
        takes=("--checkpoint", "--base-checkpoint"),
        licence=_OF_BASE,
        weights=_TRAINED,
    ),
}

OPTIONS = {
    "--variant": "variant",
    "--checkpoint": "checkpoint",
    "--base-checkpoint": "base_checkpoint",
    "--output": "output",
}
"""Options of single segmenters, which a row's `takes` is made of, and their `SegmenterOptions`."""


REMEDY = " + "
"""Stands between the name of a segmenter and those of remedies for bad prompts."""
REMEDIES: Registry[Any] = Registry(
    "remedy",
    {
        name: Entry(f"samrobust.segmenters.remedies:{target}", summary)
        for name, target, summary in (
            (
                "ensemble-boxes",
                "EnsembleBoxes",
                "vote over COUNT boxes, as far off as people's",
            ),
            ("medoid", "Medoid", "of such answers, the one most like the others"),
            ("agree-weighted", "AgreeWeighted", "vote weighted by likeness to the others"),
            ("box-from-mask", "BoxFromMask", "ask again, ROUNDS times, with the answer's box"),
            ("elastic-box", "ElasticBox", "grow the box to what is like the answer (SAMs)"),
            ("stability-select", "StabilitySelect", "the most stable of three masks (SAMs)"),
            ("ensemble-flips", "EnsembleFlips", "vote over mirror images"),
        )
    },
    group="samrobust.remedies",
)
"""What `NAME + REMEDY:ARGUMENT,ARGUMENT` puts around a segmenter."""


class SegmenterRegistry(Registry[SegmenterBuilder]):
    """Segmenters by name, or by where a user's own is: my_model.py:build or package.module:build.

    Either may be followed by remedies for bad prompts: "sam-nano + ensemble-boxes:5".

    A built-in's builder is reached only with options that its row takes. The info of all others is
    completed by what was handed over and by the hash of their code: a run depends on both.
    """

    def known(self, name: str) -> str:
        """Return a name that somebody owns, or a place, which is looked at later."""
        inner, *remedies = name.split(REMEDY)
        for remedy in remedies:
            REMEDIES.known(remedy.partition(":")[0].strip())
        if not _is_place(inner):
            super().known(inner)
        return name

    def takes(self, name: str, option: str) -> bool:
        """Return whether a name is told the value of an option; others than built-ins: of all."""
        name = name.split(REMEDY)[0]
        return super().takes(name, option) if name in ROWS else self._model(name).takes_options

    def load(self, name: str) -> SegmenterBuilder:
        """Import and return the builder of a name or place; it refuses what the name does not take.

        Raises:
            UnknownNameError: nobody owns the name.
            SegmenterError: the place, or what a package registers, cannot be imported.
        """
        name, *remedies = name.split(REMEDY)
        builder = super().load(name) if name in ROWS else self._model(name).build
        return partial(self._build, name, builder, remedies)

    def _model(self, name: str) -> "UserModel":
        from samrobust.segmenters.user_models import find_model, plugin_model

        if _is_place(name):
            return find_model(name)
        self.known(name)
        return plugin_model(self._plugins()[name], partial(super().load, name))

    def _build(
        self,
        name: str,
        builder: SegmenterBuilder,
        remedies: Sequence[str],
        options: SegmenterOptions,
    ) -> Segmenter[Any]:
        for option, field_name in OPTIONS.items():
            value = getattr(options, field_name)
            if value and not self.takes(name, option):
                raise SegmenterError(f"{name} takes no {option}, got {value}")
        segmenter = builder(options)
        if remedies:
            from samrobust.segmenters.remedies import with_remedy

            for remedy in remedies:
                segmenter = with_remedy(segmenter, remedy)
        return segmenter


SEGMENTERS = SegmenterRegistry("segmenter", ROWS, group="samrobust.segmenters")


def build_segmenter(
    name: str,
    *,
    variant: str = "",
    checkpoint: str | Path | None = None,
    base_checkpoint: str | Path | None = None,
    output: str = "",
    device: str = "auto",
    dtype: EncoderDtype = "float32",
    frame: Frame = "longest-side",
) -> Segmenter[Any]:
    """Return a segmenter, ready to run; published weights are downloaded and cached.

    Args:
        name: as registered; `samrobust ls segmenters` lists all with their variants. Or where one
            of your own is: "my_model.py:build", "package.module:build". Remedies for bad prompts
            may follow: "sam-nano + ensemble-boxes:5".
        variant: one of its models, as "vit_b"; "" for its default.
        checkpoint: a weights file, None for the published or packaged one.
        base_checkpoint: weights file of the SAM that `checkpoint` is a part of.
        output: which masks an HQ-SAM gives, "sum" or "hq"; "" for its default.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: precision of the image encoder.
        frame: how images reach a SAM: "longest-side" (aspect kept) or "squash".

    Raises:
        UnknownNameError: no segmenter has that name.
        SegmenterError: an option is not one of its own, or its weights cannot be had.
    """
    from samrobust.segmenters.device import resolve_device

    options = SegmenterOptions(
        variant,
        None if checkpoint is None else Path(checkpoint),
        resolve_device(device),
        dtype,
        frame,
        None if base_checkpoint is None else Path(base_checkpoint),
        output,
    )
    return SEGMENTERS.load(name)(options)


def published_sha256(segmenter: str, variant: str) -> str:
    """Return the SHA-256 of the published weights of a segmenter's variant, "" where none are."""
    checkpoints = ROWS[segmenter].checkpoints if segmenter in ROWS else {}
    return checkpoints[variant].sha256 if variant in checkpoints else ""


def _is_place(name: str) -> bool:
    return ":" in name or name.endswith(".py")
