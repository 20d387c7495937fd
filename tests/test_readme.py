import re
from pathlib import Path
from typing import Any

import torch

from samrobust.evaluation import Evaluated, LoopOptions, evaluate
from samrobust.protocol import load_protocol
from tests.conftest import MemoryDataset

README = (Path(__file__).parents[1] / "README.md").read_text()


def _block(language: str, opening: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(opening)]
    return str(found)


def test_the_segmenter_of_the_readme_runs_under_its_protocol(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(_block("toml", "name"))
    protocol = load_protocol(str(file))
    names: dict[str, Any] = {}
    exec(_block("python", "import torch"), names)
    segmenter = names["build"](None)
    ids = small_dataset.ids()
    results = list(
        evaluate(segmenter, small_dataset, protocol, sample_ids=ids, options=LoopOptions())
    )
    assert len(results) == 3
    for result in results:
        assert isinstance(result, Evaluated)
        assert len(result.scores) == 2 * 2  # two instances, IoU and Boundary IoU of one trial
    (size,) = segmenter.encode([small_dataset["a"].image])
    assert size.dtype == torch.float32
