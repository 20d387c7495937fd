import numpy as np
import pytest
import torch

from samrobust.types import Instance, Prediction, Prompt, PromptBatch, Sample
from tests.conftest import rectangle

BOX = np.array([1, 2, 3, 4], np.float32)
IMAGE = np.zeros((10, 20, 3), np.uint8)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of instance '7' is empty"):
        Instance("7", np.zeros((3, 4), np.bool_))


def test_a_mask_becomes_read_only() -> None:
    mask = rectangle((10, 20), (1, 1, 2, 2))
    Instance("0", mask)
    assert not mask.flags.writeable


def test_wrong_shapes_and_dtypes_are_named() -> None:
    with pytest.raises(ValueError, match=r"box must be float32 of shape \(4\), got float64"):
        Prompt(box=np.zeros(5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels must be int32 of shape \(1\)"):
        Prompt(points=np.zeros((1, 2), np.float32), labels=np.zeros(2, np.int32))


def test_a_sample_checks_sizes_and_ids() -> None:
    small = Instance("0", rectangle((9, 20), (1, 1, 2, 2)))
    with pytest.raises(ValueError, match="mask must be bool of shape"):
        Sample("a", IMAGE, [small])
    twice = [Instance("0", rectangle((10, 20), (1, 1, 2, 2))) for _ in range(2)]
    with pytest.raises(ValueError, match="an instance id twice"):
        Sample("a", IMAGE, twice)
    with pytest.raises(ValueError, match="has no instances"):
        Sample("a", IMAGE, [])


def test_a_prompt_is_neither_empty_nor_inverted_nor_mislabelled() -> None:
    with pytest.raises(ValueError, match="needs a box or at least one point"):
        Prompt()
    with pytest.raises(ValueError, match="x0 <= x1"):
        Prompt(box=np.array([3, 0, 2, 5], np.float32))
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        Prompt(points=np.zeros((1, 2), np.float32), labels=np.array([2], np.int32))


def test_prompts_of_one_structure_stack_and_others_do_not() -> None:
    point = Prompt(points=np.zeros((1, 2), np.float32), labels=np.ones(1, np.int32))
    batch = PromptBatch.stack([Prompt(box=BOX), Prompt(box=BOX + 1)])
    assert batch.structure == (True, 0, False)
    assert len(PromptBatch.join([batch, batch[1:]])) == 3
    with pytest.raises(ValueError, match="must share a structure"):
        PromptBatch.stack([Prompt(box=BOX), point])
    with pytest.raises(ValueError, match="at least one prompt"):
        batch[2:]


def test_a_prediction_has_a_quality_for_each_candidate() -> None:
    with pytest.raises(ValueError, match="quality"):
        Prediction(torch.zeros(2, 3, 4, 5, dtype=torch.bool), torch.zeros(2))
