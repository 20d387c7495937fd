"""Some of the images of a data set, named in a file; their prompts stay the same."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from samrobust.errors import DatasetError
from samrobust.interfaces import Dataset
from samrobust.shards import image_cost
from samrobust.types import DatasetInfo, Sample


@dataclasses.dataclass(frozen=True)
class Subset:
    """A data set of some images of another.

    Attributes:
        whole: the other.
        sample_ids: of `whole`, in its order.
        name: of what chose them.
    """

    whole: Dataset
    sample_ids: tuple[str, ...]
    name: str

    @property
    def info(self) -> DatasetInfo:
        """Return what it is: another fingerprint, but the key, and so every prompt, of `whole`."""
        info = self.whole.info
        text = "\n".join([info.fingerprint, *self.sample_ids])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        return dataclasses.replace(info, fingerprint=fingerprint, part=self.name)

    def ids(self) -> Sequence[str]:
        """Return the chosen ids."""
        return self.sample_ids

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its objects."""
        return self.whole[sample_id]

    def cost(self, sample_id: str) -> float:
        """Return what the image costs in `whole`."""
        return image_cost(self.whole, sample_id)


def read_subset(whole: Dataset, path: Path) -> Subset:
    """Return the images of a data set whose ids stand in a file, one a line.

    Raises:
        DatasetError: the file cannot be read, names no image, or one that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be read: {reason}") from error
    wanted = {line.strip() for line in lines if line.strip()}
    known = [sample_id for sample_id in whole.ids() if sample_id in wanted]
    missing = sorted(wanted - set(known))
    if missing:
        raise DatasetError(f"{path}: '{missing[0]}' is no image of {whole.info.label}")
    if not known:
        raise DatasetError(f"{path}: names no image")
    return Subset(whole, tuple(known), path.stem)
