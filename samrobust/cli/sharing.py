"""`samrobust eval` by several processes: what this one takes, and what is said at the end."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from samrobust.cli.report import print_report
from samrobust.cli.terminal import note_line
from samrobust.shards import WHOLE, Shard

if TYPE_CHECKING:
    from samrobust.ranks import Meeting, Ranks


@contextmanager
def stopped_as_by_key() -> Iterator[None]:
    """Let SIGTERM, by which torchrun and Slurm end processes, stop as Ctrl-C does: work is kept."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_together(
    folders: Sequence[Path], ranks: "Ranks", shard: Shard, meeting: "Meeting | None"
) -> None:
    """Print the report where all of it is there: of a shard what is stored, by one rank of all.

    Args:
        folders: of the runs.
        ranks: this process's place.
        shard: what `--shard` says, the whole run without it.
        meeting: of the ranks, None where there is one.

    Raises:
        RunError: a rank ended early.
    """
    if meeting is not None:
        meeting.tell_done()
        if ranks.rank > 0:
            return
        meeting.wait(lambda: _others_write(folders, ranks.part_of(shard)))
    if shard == WHOLE:
        print_report(folders)
    else:
        _say_what_is_stored(folders, shard)


def _others_write(folders: Sequence[Path], shard: Shard) -> bool:
    from samrobust.writers import others_write

    return any(others_write(folder, shard) for folder in folders)


def _say_what_is_stored(folders: Sequence[Path], shard: Shard) -> None:
    from samrobust.manifests import read_manifest
    from samrobust.store import stored_images

    for folder in folders:
        n_samples = read_manifest(folder).n_samples
        n_stored = len(stored_images(folder))
        note_line(
            f"{folder}: shard {shard.number}/{shard.count} is done; {n_stored} of {n_samples} "
            "images are stored; samrobust report shows them"
        )
