import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor

from samrobust.cli.options import with_caches
from samrobust.errors import SamrobustError
from samrobust.runs.store import read_run
from samrobust.segmenters.adapters import TOKENS, build_token_tuned, tuned_header, tuned_part
from samrobust.segmenters.embedding_cache import (
    Cacheable,
    CachedSegmenter,
    EmbeddingCache,
    with_cache,
)
from samrobust.segmenters.hq_sam import HqEmbedding, HqSam
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import SAM_CHECKPOINTS, Sam, SamEmbedding, SamOptions
from samrobust.segmenters.stable_sam import StableSam, build_stable_sam
from samrobust.types import Image, Segmenter, SegmenterOptions, SharesEmbeddings
from tests.conftest import GrownBox, Shell
from tests.sam_weights import random_image, random_parts, random_prompts, small_sam

SIZE_HW = (123, 57)
WEIGHTS = "a" * 64
"""Stands for the SHA-256 of a file."""
LARGE = 2**30


class Counting:
    """A cache before a segmenter, and how many images its encoder has seen."""

    def __init__(self, segmenter: Sam | StableSam | HqSam, cache: EmbeddingCache) -> None:
        self.n_encoded = 0
        base = segmenter if isinstance(segmenter, Sam) else segmenter.base
        base.model.image_encoder.register_forward_hook(self._count)
        self.segmenter = with_cache(segmenter, cache)
        assert isinstance(self.segmenter, CachedSegmenter)

    def _count(self, _encoder: object, inputs: tuple[Tensor], _output: object) -> None:
        self.n_encoded += len(inputs[0])

    def encode(self, *images: Image) -> list[SamEmbedding]:
        with torch.inference_mode():
            found: list[SamEmbedding] = self.segmenter.encode(images)
        return found


def tiny_sam() -> SamModel:
    return small_sam(128, channels=64)


def sam(options: SamOptions | None = None, sha256: str = WEIGHTS) -> Sam:
    return Sam(tiny_sam(), options, variant="vit_b", checkpoint_sha256=sha256)


def hq_sam() -> HqSam:
    base = sam()
    return HqSam(base, random_parts(base.model), checkpoint_sha256="b" * 64)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.embedding"))


def tensors(embedding: SamEmbedding) -> dict[str, Tensor]:
    return {name: x for name, x in vars(embedding).items() if isinstance(x, Tensor)}


@pytest.mark.parametrize("build", [sam, hq_sam])
def test_what_is_kept_gives_the_same_masks_and_no_encoding(
    build: Callable[[], Sam | HqSam], tmp_path: Path
) -> None:
    image, prompts = random_image(SIZE_HW), random_prompts(SIZE_HW, 3, 1, boxes=True)
    plain = build()
    with torch.inference_mode():
        (wanted,) = plain.encode([image])
        masks, quality = plain.logits(wanted, prompts)
    first = Counting(build(), EmbeddingCache(tmp_path, LARGE))
    again = Counting(build(), EmbeddingCache(tmp_path, LARGE))
    for each, n_encoded in ((first, 1), (again, 0)):
        (found,) = each.encode(image)
        assert each.n_encoded == n_encoded
        assert type(found) is type(wanted)
        assert (found.size_hw, found.input_size_hw) == (wanted.size_hw, wanted.input_size_hw)
        for name, tensor in tensors(wanted).items():
            assert torch.equal(tensors(found)[name], tensor)
            assert tensors(found)[name].stride() == tensor.stride()
        with torch.inference_mode():
            ours, our_quality = plain.logits(found, prompts)
        assert torch.equal(ours, masks)
        assert torch.equal(our_quality, quality)


def test_segmenters_with_the_same_encoder_share(tmp_path: Path) -> None:
    cache, image = EmbeddingCache(tmp_path, LARGE), random_image(SIZE_HW)
    plain, stable = Counting(sam(), cache), Counting(StableSam(sam()), cache)
    plain.encode(image)
    stable.encode(image)
    assert (plain.n_encoded, stable.n_encoded) == (1, 0)
    hq = Counting(hq_sam(), cache)  # needs more than they keep
    assert isinstance(hq.encode(image)[0], HqEmbedding)
    assert hq.n_encoded == 1
    assert len(files(tmp_path)) == 2


def test_whatever_changes_an_embedding_is_another_one(tmp_path: Path) -> None:
    image = random_image(SIZE_HW)
    other = image.copy()
    other[-1, -1, -1] += 1
    images = [image, other, image.reshape(SIZE_HW[1], SIZE_HW[0], 3)]
    cache = EmbeddingCache(tmp_path, LARGE)
    encoder = Counting(sam(), cache)
    encoder.encode(*images)
    assert encoder.n_encoded == 3
    for changed in (
        sam(sha256="c" * 64),
        sam(SamOptions(frame="squash")),
        sam(SamOptions(dtype="bfloat16")),
        sam(SamOptions(attention="stock")),
    ):
        encoder = Counting(changed, cache)
        encoder.encode(image)
        assert encoder.n_encoded == 1
    encoder = Counting(sam(SamOptions(decoder="stock")), cache)
    encoder.encode(*images)
    assert encoder.n_encoded == 0  # the decoder changes none


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda _: b"",
        lambda content: content[:999] + bytes([content[999] ^ 1]) + content[1000:],
    ],
)
def test_damaged_files_are_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Counting(sam(), EmbeddingCache(tmp_path, LARGE))
    (wanted,) = encoder.encode(random_image(SIZE_HW))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    (found,) = encoder.encode(random_image(SIZE_HW))
    assert encoder.n_encoded == 2
    assert torch.equal(found.features, wanted.features)
    assert path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: is damaged and encoded anew"
    ]


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x" * 10_000)
    leftover = tmp_path / f"{'0' * 64}.embedding.tmp"  # of a process that was killed
    leftover.write_bytes(bytes(10_000))
    os.utime(leftover, ns=(0, 0))
    values = {"x": torch.zeros(1000)}
    keys = ["1" * 64, "2" * 64, "3" * 64]
    cpu = torch.device("cpu")
    EmbeddingCache(tmp_path, LARGE).store(keys[0], values)
    size = files(tmp_path)[0].stat().st_size
    cache = EmbeddingCache(tmp_path, 2 * size)
    cache.store(keys[1], values)
    assert not leftover.exists()
    for age, key in enumerate(keys[:2]):
        os.utime(tmp_path / f"{key}.embedding", ns=(age + 1, age + 1))
    assert cache.load(keys[0], cpu) is not None  # so that the second is the oldest
    cache.store(keys[2], values)
    assert [cache.load(key, cpu) is not None for key in keys] == [True, False, True]
    assert (tmp_path / "mine.txt").exists()


def test_where_it_cannot_be_written_nothing_else_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    encoder = Counting(sam(), EmbeddingCache(file / "cache", LARGE))
    encoder.encode(random_image(SIZE_HW), random_image(SIZE_HW))
    assert encoder.n_encoded == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{file / 'cache'}: cannot be written: Not a directory; nothing more is cached"
    )


def test_it_is_used_where_a_folder_is_named_and_embeddings_can_be_shared(tmp_path: Path) -> None:
    others: list[Segmenter[Any]] = [
        GrownBox(),
        Sam(tiny_sam()),  # whose weights are of no file
        HqSam(sam()),  # whose parts are of no file
    ]
    assert with_caches(others, tmp_path, 1.0) == others
    shared: list[Cacheable] = [
        sam(),
        hq_sam(),
        StableSam(sam()),
        build_sam_nano(SegmenterOptions()),
    ]
    for one in shared:
        assert with_caches([one], None, 1.0) == [one]
        (cached,) = with_caches([one], tmp_path, 1.0)
        assert isinstance(cached, CachedSegmenter)
        assert cached.info == one.info
        assert cached.encoder_key == one.encoder_key


def test_keys_are_equal_where_embeddings_are(tmp_path: Path) -> None:
    nano = build_sam_nano(SegmenterOptions())
    assert StableSam(sam()).encoder_key == sam().encoder_key
    assert build_stable_sam(SegmenterOptions()).encoder_key == nano.encoder_key
    assert sam(SamOptions(decoder="stock")).encoder_key == sam().encoder_key
    different: list[Cacheable] = [
        nano,
        sam(),
        hq_sam(),
        sam(sha256="c" * 64),
        sam(SamOptions(frame="squash")),
        sam(SamOptions(dtype="bfloat16")),
        sam(SamOptions(attention="stock")),
    ]
    assert len({segmenter.encoder_key for segmenter in different}) == len(different)
    assert all(isinstance(segmenter, SharesEmbeddings) for segmenter in different)
    assert not isinstance(GrownBox(), SharesEmbeddings)
    path = tmp_path / "tuned.safetensors"
    part = tuned_part(nano, TOKENS)
    save_file(part.state_dict(), path, metadata=dict(tuned_header(nano, TOKENS)))
    tuned = build_token_tuned(SegmenterOptions(checkpoint=path))
    assert tuned.encoder_key == nano.encoder_key


def test_options_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, size, message in (
        (None, 0.0, "--cache-size must be above 0, got 0"),
        (None, float("nan"), "--cache-size must be above 0, got nan"),
        (tmp_path / "file", 1.0, f"--cache {tmp_path / 'file'}: is not a folder"),
    ):
        with pytest.raises(SamrobustError) as caught:
            with_caches([], folder, size)
        assert str(caught.value) == message


def test_a_second_run_of_the_command_line_encodes_nothing(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"vit_b": replace(SAM_CHECKPOINTS["vit_b"], embed_dim=32)}
    encoders = []

    def model() -> Any:  # noqa: ANN401
        found = tiny_sam()
        found.image_encoder.register_forward_hook(lambda *_: encoders.append(found))
        return found

    monkeypatch.setattr("samrobust.segmenters.sam.SAM_CHECKPOINTS", table)
    monkeypatch.setattr("samrobust.segmenters.sam.sam_model_registry", {"vit_b": model})
    torch.save(tiny_sam().state_dict(), tmp_path / "tiny.pth")
    command = ["eval", "--segmenter", "sam", "--checkpoint", "tiny.pth", "--limit", "2"]
    command += ["--trials", "1", "--workers", "0", "--quiet"]
    scores, n_encoded = [], []
    for number, caching in enumerate(([], ["--cache", "kept"], ["--cache", "kept"])):
        encoders.clear()
        out = tmp_path / str(number)
        assert shell(*command, *caching, "--out", out).code == 0
        (run,) = out.iterdir()
        scores.append(read_run(run).scores)
        n_encoded.append(len(encoders))
    assert n_encoded == [2, 2, 0]
    assert len(files(tmp_path / "kept")) == 2
    assert np.ptp(scores[0]["value"]) > 0
    for found in scores[1:]:
        assert found.equals(scores[0])
