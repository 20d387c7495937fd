"""What is known of the built-in segmenters before any is built: for `samrobust ls segmenters`."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samrobust.provenance import HQSEG_44K, origins_of_training
from samrobust.segmenters.published import (
    HQ_CHECKPOINTS,
    SAM_CHECKPOINTS,
    Checkpoint,
    cache_folder,
)

WEIGHTS = Path(__file__).parent / "weights"
"""The files that come with the package."""
BOTH, BOXES = "boxes and points", "boxes"
APACHE = "Apache-2.0"
SA_1B = "SA-1B"
OWN = "that of this package"
N_PARAMETERS: Mapping[tuple[str, str], int] = {
    ("sam", "vit_b"): 93_735_472,
    ("sam", "vit_l"): 312_342_832,
    ("sam", "vit_h"): 641_090_608,
    ("hq-sam", "vit_b"): 94_806_576,
    ("hq-sam", "vit_l"): 313_676_080,
    ("hq-sam", "vit_h"): 642_686_000,
    ("hq-sam", "vit_tiny"): 10_256_964,
    ("mobile-sam", ""): 9_808_452,
}
"""Of published models, all parts counted."""


@dataclass(frozen=True)
class Model:
    """One model of a segmenter.

    Attributes:
        variant: "" where there is one.
        weights: file name, size and where it is, in words.
        n_parameters: 0 where it has none, None where its file decides.
        trained_on: collections of images, as far as they are known.
    """

    variant: str
    weights: str
    n_parameters: int | None
    trained_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A segmenter.

    Attributes:
        prompts: that it accepts, in words.
        licence: of its published weights.
        models: one or more.
    """

    prompts: str
    licence: str
    models: tuple[Model, ...]


def segmenter_card(name: str) -> Card | None:
    """Return what is known of a segmenter, None of a plug-in's; looks at files and builds nothing.

    Args:
        name: as registered.
    """
    make = _CARDS.get(name)
    return make() if make else None


def card_lines(card: Card) -> Iterator[str]:
    """Yield a card as text: a line for what all of its models share, then one a model."""
    yield f"prompts {card.prompts}; licence {card.licence}"
    for model in card.models:
        count = "" if model.n_parameters is None else f"{_count(model.n_parameters)}; "
        seen = f"; trained on {', '.join(model.trained_on)}" if model.trained_on else ""
        yield f"{model.variant} {count}{model.weights}{seen}".strip()


def _count(n_parameters: int) -> str:
    if n_parameters == 0:
        return "no parameters"
    if n_parameters >= 10**6:
        return f"{n_parameters / 1e6:.1f} M parameters"
    return f"{n_parameters:,} parameters"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 10**6 else f"{n_bytes / 1e3:,.0f} kB"


def _published(
    name: str, checkpoints: Mapping[str, Checkpoint], trained_on: tuple[str, ...]
) -> tuple[Model, ...]:
    folder = cache_folder()
    return tuple(
        Model(
            variant,
            f"{each.file_name}, {_size(each.n_bytes)}, "
            + ("in the cache" if (folder / each.file_name).exists() else "not in the cache"),
            N_PARAMETERS[name, variant],
            trained_on,
        )
        for variant, each in checkpoints.items()
    )


def _packaged(file_name: str, *, variant: str = "", base: str = "") -> Model:
    """Return the model of a file of the package, as its header says.

    Args:
        file_name: of a safetensors file; it may be missing.
        variant: its name.
        base: file name of the model that it is a part of, "" for none.
    """
    path = WEIGHTS / file_name
    if not path.exists():
        return Model(variant, f"{file_name}, not in the package: train it", None)
    header = _header(path)
    n_parameters = sum(
        math.prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__"
    )
    metadata = header.get("__metadata__", {})
    seen = list(origins_of_training(metadata))
    words = f"{file_name}, {_size(path.stat().st_size)}, in the package"
    if base:
        words += f"; a part of {base.removesuffix('.safetensors')}"
        seen = [*origins_of_training(_header(WEIGHTS / base).get("__metadata__", {})), *seen]
    return Model(variant, words, n_parameters, tuple(dict.fromkeys(seen)))


def _header(path: Path) -> dict[str, Any]:
    """Return the JSON with which a safetensors file begins, read without torch."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _control(prompts: str) -> Callable[[], Card]:
    return lambda: Card(prompts, OWN, (Model("", "no weights", 0),))


def _own_file(what: str) -> Callable[[], Card]:
    return lambda: Card(BOTH, "of its base", (Model("", what, None),))


_NANO = "sam-nano.safetensors"
_CARDS: Mapping[str, Callable[[], Card]] = {
    "box-fill": _control(BOXES),
    "ellipse": _control(BOXES),
    "grabcut": _control(BOTH),
    "sam-nano": lambda: Card(BOTH, OWN, (_packaged(_NANO),)),
    "sam": lambda: Card(BOTH, APACHE, _published("sam", SAM_CHECKPOINTS, (SA_1B,))),
    "mobile-sam": lambda: Card(
        BOTH,
        APACHE,
        (
            Model(
                "",
                "mobile_sam.pt, to be named with --checkpoint",
                N_PARAMETERS["mobile-sam", ""],
                (SA_1B,),
            ),
        ),
    ),
    "hq-sam": lambda: Card(
        BOTH,
        APACHE,
        (
            *_published("hq-sam", HQ_CHECKPOINTS, (SA_1B, *HQSEG_44K)),
            _packaged("hq-sam.safetensors", variant="nano", base=_NANO),
        ),
    ),
    "stable-sam": lambda: Card(BOTH, OWN, (_packaged("stable-sam.safetensors", base=_NANO),)),
    "transformers": lambda: Card(
        BOTH,
        "of the model",
        (Model("", "any model id or folder; the library keeps its own cache", None),),
    ),
    "decoder-tuned": _own_file("a file that samrobust train writes, and its base"),
    "lora-tuned": _own_file("a file that samrobust train writes, and its base"),
    "token-tuned": _own_file("a file that samrobust train writes, and its base"),
}
