import signal
import subprocess
import sys
from pathlib import Path

import pytest

import samrobust.runs.sharing
import samrobust.runs.store
from samrobust.errors import RunError
from samrobust.runs.sharing import WHOLE, Shard, starting
from samrobust.runs.store import RunWriter, read_run
from tests.test_store import MANIFEST, _scores


def test_shards_of_one_number_write_at_once_and_overwrite_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_SECONDS", -1)
    with (
        RunWriter(tmp_path, MANIFEST, Shard(1, 2)) as one,
        RunWriter(tmp_path, MANIFEST, Shard(2, 2)) as two,
    ):
        for writer, sample_id in ((one, "a"), (two, "b"), (two, "c")):
            writer.write(sample_id, _scores(sample_id))
        one.fail("d", "d.jpg: is broken")
        two.fail("e", "e.jpg: is broken")
    run = read_run(one.folder)
    assert sorted(run.scores["sample_id"]) == sorted([*"abc"] * 3)
    assert run.failures == {"d": "d.jpg: is broken", "e": "e.jpg: is broken"}
    assert RunWriter(tmp_path, MANIFEST).done == {*"abc"}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (WHOLE, WHOLE, "another process is writing this run$"),
        (WHOLE, Shard(1, 2), "another process is writing this run$"),
        (Shard(2, 3), Shard(2, 3), "another process is writing shard 2/3 of this run$"),
        (Shard(2, 3), WHOLE, "shard 2/3 of this run; only other shards of 3 can be written at the"),
        (Shard(2, 3), Shard(1, 6), "2/3 of this run; only other shards of 3 can be written at the"),
    ],
)
def test_who_might_write_the_same_images_leaves_with_one_line(
    tmp_path: Path, first: Shard, second: Shard, message: str
) -> None:
    with RunWriter(tmp_path, MANIFEST, first), pytest.raises(RunError, match=message):
        RunWriter(tmp_path, MANIFEST, second)
    with RunWriter(tmp_path, MANIFEST, second) as writer:  # the first one is done
        writer.write("a", _scores("a"))


def test_a_second_process_waits_while_another_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        pass
    monkeypatch.setattr(samrobust.runs.sharing, "STARTING_SECONDS", 0.1)
    with (
        starting(writer.folder),
        pytest.raises(RunError, match="another process is writing this run"),
    ):
        RunWriter(tmp_path, MANIFEST)


def test_a_writer_removes_what_its_shard_left_half_written_and_the_whole_run_all(
    tmp_path: Path,
) -> None:
    def half_written(label: str) -> Path:
        path = folder / "scores" / f"part-{label}00007.parquet.tmp"
        path.write_bytes(b"PAR1")
        return path

    with RunWriter(tmp_path, MANIFEST, Shard(1, 3)) as writer:
        folder = writer.folder
        own, former, whole = half_written("2of3-"), half_written("1of2-"), half_written("")
        alive, longer = half_written("1of3-"), half_written("12of3-")
        failures = folder / "failures-1of3.json.tmp"
        failures.touch()
        with RunWriter(tmp_path, MANIFEST, Shard(2, 3)):
            assert not own.exists()
            assert all(path.exists() for path in (former, whole, alive, failures, longer))
    with RunWriter(tmp_path, MANIFEST):
        assert not list(folder.rglob("*.tmp"))


def test_a_killed_writer_bars_nobody(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from samrobust.runs.sharing import Shard\n"
        "from samrobust.runs.store import RunWriter\n"
        "from tests.test_store import MANIFEST\n"
        "with RunWriter(pathlib.Path(sys.argv[1]), MANIFEST, Shard(1, 2)):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with RunWriter(tmp_path, MANIFEST, Shard(2, 2)) as beside:
            with pytest.raises(RunError, match="another process is writing shard 1/2"):
                RunWriter(tmp_path, MANIFEST, Shard(1, 2))
            process.kill()
            assert process.wait() == -signal.SIGKILL
            with RunWriter(tmp_path, MANIFEST, Shard(1, 2)):
                assert beside.folder.is_dir()
    with RunWriter(tmp_path, MANIFEST):
        pass
