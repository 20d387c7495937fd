"""`samrobust eval` by several processes: torchrun and --shard."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from samrobust.errors import RunError
from samrobust.evaluation.runner import joined_ranks
from samrobust.runs.sharing import Ranks, Shard
from samrobust.runs.store import RunWriter, read_run
from tests.conftest import Shell

COMMAND = (
    "eval", "--dataset", "scenes", "--split", "24x96x64", "--protocol", "gt-box", "--protocol",
    "box-shift", "--trials", "2", "--segmenter", "ellipse", "--workers", "0",
)  # fmt: skip
N_IMAGES, STORED_BEFORE_THE_KILL = 24, 4
RANK_1_DIES = f"""
import os, signal
from samrobust.runs import store
from samrobust.cli import main
store.FLUSH_SECONDS = -1  # each image is stored at once
write, n = store.RunWriter.write, 0
def dying(self, *image, **more):
    global n
    n += os.environ["RANK"] == "1"
    if n > {STORED_BEFORE_THE_KILL}:
        self._wait()  # for the thread that writes
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *image, **more)
store.RunWriter.write = dying
main()
"""


def torchrun(
    n: int, folder: Path, *script: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` by as many processes."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n))
    return subprocess.run(
        [sys.executable, *launch, *script, *COMMAND],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=check,
        timeout=600,
    )


def rows(folder: Path) -> pd.DataFrame:
    """Return the scores of a run in an order of their own."""
    scores = read_run(folder).scores
    return scores.sort_values(list(scores.columns)).reset_index(drop=True)


def folder_of(protocol: str, results: Path = Path("results")) -> Path:
    """Return the only run of a protocol."""
    (folder,) = results.glob(f"{protocol}--*")
    return folder


def assert_same_rows(results: Path, whole: Path) -> None:
    for protocol in ("gt-box", "box-shift"):
        found = rows(folder_of(protocol, results))
        pd.testing.assert_frame_equal(found, rows(folder_of(protocol, whole)))


def test_a_rank_is_killed_and_others_finish_to_the_rows_of_one_process(
    shell: Shell, tmp_path: Path
) -> None:
    one = shell(*COMMAND, "--out", "whole")
    Path("dying.py").write_text(RANK_1_DIES)
    killed = torchrun(2, tmp_path, "dying.py", check=False)
    assert killed.returncode != 0
    assert f"Signal {int(signal.SIGKILL)} (SIGKILL)" in killed.stderr
    assert "mIoU" not in killed.stdout
    stored = pd.read_parquet(folder_of("gt-box") / "scores")["sample_id"]
    own = [*(folder_of("gt-box") / "scores").glob("part-2of2-*.parquet")]
    n_own = STORED_BEFORE_THE_KILL // 2  # of each of the two protocols
    assert len(own) == n_own  # of the one that was killed, and none is lost
    assert n_own <= stored.nunique() < N_IMAGES

    rest = torchrun(3, tmp_path, "-m", "samrobust")
    assert_same_rows(Path("results"), Path("whole"))
    for protocol in ("gt-box", "box-shift"):
        name = folder_of(protocol).name
        told = [line for line in rest.stdout.splitlines() if line.endswith(f"results/{name}")]
        assert len(told) == 1  # by one rank of three
    assert rest.stdout.replace("results/", "whole/") == one.out

    before = sorted(Path("results").rglob("part-*.parquet"))
    assert shell(*COMMAND).out.replace("results/", "whole/") == one.out
    assert sorted(Path("results").rglob("part-*.parquet")) == before


def test_shards_in_any_order_give_the_rows_of_one_process(shell: Shell) -> None:
    shell(*COMMAND, "--out", "whole")
    ids = [f"scene-{number:05d}" for number in range(N_IMAGES)]
    expected = 0
    for number in (3, 1):
        expected += len(Shard(number, 3).share_of(ids))
        result = shell(*COMMAND, "--shard", f"{number}/3")
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 2  # one a run
        assert f"shard {number}/3 is done; {expected} of {N_IMAGES} images are stored" in lines[0]
    left = shell(*COMMAND, "--shard", "2/3").err
    assert f"{N_IMAGES} of {N_IMAGES} images are stored" in left
    assert_same_rows(Path("results"), Path("whole"))
    parts = sorted(Path("results").rglob("part-*.parquet"))
    shell(*COMMAND, "--shard", "4/5")  # all is there
    assert sorted(Path("results").rglob("part-*.parquet")) == parts


def test_a_shard_beside_the_whole_run_and_no_shard_are_one_line(shell: Shell) -> None:
    shell(*COMMAND, "--limit", "1")
    folder = folder_of("gt-box")
    with RunWriter(Path("results"), read_run(folder).manifest):
        for more in ((), ("--shard", "1/2")):
            line = shell.refuses(*COMMAND, "--limit", "1", *more)
            assert line == f"{folder}: another process is writing this run"
    assert shell.refuses(*COMMAND, "--shard", "3/2").endswith("as 2/8, got '3/2'")


def test_ended_by_sigterm_a_run_keeps_what_it_has(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from samrobust.runs import store\n"
        "from samrobust.cli import main\n"
        "write = store.RunWriter.write\n"
        "def ended(self, *image, **more):\n"
        "    write(self, *image, **more)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "store.RunWriter.write = ended\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *COMMAND, "--shard", "1/2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 130
    lines = result.stderr.splitlines()
    assert len(lines) == 2  # one per run
    assert lines[0].startswith("interrupted; rerun the same command to resume results/gt-box--")
    scores = read_run(folder_of("gt-box", tmp_path / "results")).scores
    assert len(scores.drop_duplicates("sample_id")) == 1


def test_a_rank_has_its_place_its_device_and_its_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.from_environment() == Ranks()
    assert Ranks().own_device("cuda:1") == "cuda:1"
    said = "RANK=5 WORLD_SIZE=6 LOCAL_RANK=2 LOCAL_WORLD_SIZE=3"
    for name, value in (word.split("=") for word in shlex.split(said)):
        monkeypatch.setenv(name, value)
    ranks = Ranks.from_environment()
    assert ranks == Ranks(rank=5, world=6, local_rank=2, local_world=3)
    assert ranks.own_device("cuda") == ranks.own_device("cuda:0") == "cuda:2"
    assert ranks.own_device("cpu") == "cpu"
    assert ranks.part_of() == Shard(6, 6)
    assert ranks.part_of(Shard(2, 2)) == Shard(12, 12)


def test_ranks_that_do_not_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:  # the real one leaves a mark in this process
        raise ValueError("environment variable MASTER_ADDR expected, but not set")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    with (
        pytest.raises(
            RunError, match=r"rank 1 cannot connect to the others: .*expected, but not set"
        ),
        joined_ranks(Ranks(rank=1, world=2)),
    ):
        pass
