import numpy as np

from samrobust.types import DatasetInfo, DatasetOptions, Instance, Sample


class Discs:
    """Three photographs, so to speak, of a bright disc."""

    info = DatasetInfo("discs", split="", fingerprint="1")  # another one when the images change

    def ids(self) -> list[str]:
        return ["12", "16", "20"]

    def __getitem__(self, sample_id: str) -> Sample:
        y, x = np.ogrid[:48, :64]
        mask = (x - 30) ** 2 + (y - 20) ** 2 <= int(sample_id) ** 2
        image = np.where(mask, 200, 90).astype(np.uint8)
        return Sample(sample_id, np.stack([image] * 3, axis=-1), [Instance("disc", mask)])


def build(options: DatasetOptions) -> Discs:
    return Discs()
