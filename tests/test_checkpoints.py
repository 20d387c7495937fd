import argparse
import contextlib
import gc
import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from samrobust.errors import CheckpointError
from samrobust.files import CACHE_VARIABLE, cache_folder
from samrobust.segmenters import ROWS
from samrobust.segmenters.published import Checkpoint, fetch, file_sha256
from samrobust.segmenters.weights import fill_model, load_state

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@dataclass
class Behaviour:
    """What the server does, and what was asked of it.

    Attributes:
        length: what it says of the rest of the file instead of its length.
        shift: how far beyond what was asked for it starts.
        pause_s: before it answers.
        moved_to: where it says that the file is now.
        starts: of the ranges that were asked for.
    """

    content: bytes = CONTENT
    breaks_off_after: int | None = None
    knows_ranges: bool = True
    status: int = 200
    length: str = ""
    shift: int = 0
    pause_s: float = 0.0
    moved_to: str = ""
    starts: list[int] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """A file server on this machine, with a Range header, and connections that break."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = Behaviour()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if behaviour.moved_to and self.path != "/moved.pth":
            self.send_response(302)
            self.send_header("Location", behaviour.moved_to)
            self.end_headers()
            return
        time.sleep(behaviour.pause_s)
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        start = start if behaviour.knows_ranges else 0
        behaviour.starts.append(start)
        if behaviour.status != 200:
            self.send_error(behaviour.status)
            return
        self.send_response(206 if behaviour.knows_ranges else 200)
        start += behaviour.shift
        rest, total = behaviour.content[start:], len(behaviour.content)
        if behaviour.knows_ranges:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", behaviour.length or str(len(rest)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the other side may have had enough
            self.wfile.write(rest[: behaviour.breaks_off_after])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "made when needed"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def checkpoint(server: Server) -> Checkpoint:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return Checkpoint(server.url, sha256, len(CONTENT), embed_dim=8, n_parameters=1)


def test_a_file_is_fetched_once(server: Server, cache: Path, checkpoint: Checkpoint) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(checkpoint, progress=lambda here, total: told.append((here, total)))
    assert path == cache / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert told == sorted(told)
    assert fetch(checkpoint) == path
    assert server.behaviour.starts == [0]
    assert sorted(x.name for x in cache.iterdir()) == ["weights.pth", "weights.pth.lock"]


def test_broken_connections_are_taken_up_where_they_broke(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    server.behaviour.breaks_off_after = 1_200_000
    assert fetch(checkpoint).read_bytes() == CONTENT
    starts = server.behaviour.starts
    assert len(starts) > 2
    assert starts == sorted(starts)
    assert cache_folder() == cache


def test_a_later_run_goes_on_with_the_part_of_an_earlier_one(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENT[:1_000_001])
    assert fetch(checkpoint).read_bytes() == CONTENT
    assert server.behaviour.starts == [1_000_001]


def test_a_server_without_ranges_sends_the_whole_again(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(b"other")
    server.behaviour.knows_ranges = False
    assert fetch(checkpoint).read_bytes() == CONTENT


@pytest.mark.usefixtures("cache")
def test_a_server_that_always_breaks_off_is_given_up(
    server: Server, checkpoint: Checkpoint
) -> None:
    server.behaviour.breaks_off_after = 1_200_000
    server.behaviour.knows_ranges = False
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(checkpoint)
    assert len(server.behaviour.starts) == 2


@pytest.mark.usefixtures("cache")
def test_a_shorter_file_there_is_given_up(server: Server, checkpoint: Checkpoint) -> None:
    server.behaviour.content = CONTENT[:100]
    with pytest.raises(CheckpointError, match="the server ends it too early"):
        fetch(checkpoint)


# urllib3 leaves the socket of a header with two lengths to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("length", ["100000", "4000000", "-1", "many", "3000000, 17"])
def test_a_server_that_lies_about_the_length_is_not_believed(
    server: Server, cache: Path, checkpoint: Checkpoint, length: str
) -> None:
    server.behaviour.length = length
    with contextlib.suppress(CheckpointError):
        fetch(checkpoint)
    path = cache / "weights.pth"
    assert not path.exists() or path.read_bytes() == CONTENT
    server.behaviour.length = ""
    assert fetch(checkpoint).read_bytes() == CONTENT
    gc.collect()  # or the socket would be found in another test


def test_a_server_that_sends_another_part_is_given_up_and_what_was_here_is_kept(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENT[:1_000_001])
    server.behaviour.shift = 5
    with pytest.raises(CheckpointError, match="the server sends another part than asked for"):
        fetch(checkpoint)
    assert (cache / "weights.pth.part").read_bytes() == CONTENT[:1_000_001]
    server.behaviour.shift = 0
    assert fetch(checkpoint).read_bytes() == CONTENT
    assert server.behaviour.starts == [1_000_001] * 2


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_a_server_sends_beyond_the_file_is_not_taken(
    server: Server, cache: Path, checkpoint: Checkpoint, *, knows_ranges: bool
) -> None:
    server.behaviour.content = CONTENT + bytes(30_000_000)
    server.behaviour.knows_ranges = knows_ranges
    told: list[int] = []
    path = fetch(checkpoint, progress=lambda here, _: told.append(here))
    assert path.read_bytes() == CONTENT
    assert max(told) == len(CONTENT)
    assert sorted(x.name for x in cache.iterdir()) == ["weights.pth", "weights.pth.lock"]


def test_a_damaged_part_is_dropped_at_the_end_and_the_next_call_starts_anew(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(bytes(1_000_000))
    with pytest.raises(CheckpointError, match="SHA-256 of what was downloaded is not"):
        fetch(checkpoint)
    assert [x.name for x in cache.iterdir()] == ["weights.pth.lock"]
    assert fetch(checkpoint).read_bytes() == CONTENT
    assert server.behaviour.starts == [1_000_000, 0]


@pytest.mark.usefixtures("cache")
def test_a_file_that_has_moved_is_followed_but_not_for_ever(
    server: Server, checkpoint: Checkpoint
) -> None:
    server.behaviour.moved_to = "/weights.pth"
    with pytest.raises(CheckpointError, match="HTTP status 302"):
        fetch(checkpoint)
    server.behaviour.moved_to = "file:///etc/hostname"
    with pytest.raises(CheckpointError, match="InvalidSchema"):
        fetch(checkpoint)
    server.behaviour.moved_to = "/moved.pth"
    server.behaviour.breaks_off_after = 2_000_000
    assert fetch(checkpoint).read_bytes() == CONTENT


def test_two_processes_that_want_a_file_fetch_it_once(
    server: Server, cache: Path, checkpoint: Checkpoint
) -> None:
    server.behaviour.pause_s = 0.5
    script = (
        "from samrobust.segmenters.published import Checkpoint, fetch\n"
        f"print(fetch({checkpoint!r}))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outs = [process.communicate()[0] for process in processes]
    assert outs == [f"{cache / 'weights.pth'}\n"] * 2
    assert server.behaviour.starts == [0]
    assert (cache / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "HTTP status 404"), (416, "HTTP status 416"), (0, "ConnectionError")],
)
def test_what_cannot_be_fetched_can_be_brought_by_hand(
    server: Server, cache: Path, checkpoint: Checkpoint, status: int, reason: str
) -> None:
    server.behaviour.status = status
    if status == 0:  # nobody listens
        checkpoint = replace(checkpoint, url="http://127.0.0.1:9/weights.pth")
    with pytest.raises(CheckpointError) as caught:
        fetch(checkpoint)
    assert str(caught.value) == (
        f"weights.pth: cannot be downloaded from {checkpoint.url} ({reason}); "
        f"put it into {cache}, or name it with --checkpoint"
    )
    cache.mkdir(exist_ok=True)
    (cache / "weights.pth").write_bytes(CONTENT)
    assert fetch(checkpoint) == cache / "weights.pth"


def test_a_wrong_file_is_not_kept(server: Server, cache: Path, checkpoint: Checkpoint) -> None:
    server.behaviour.content = CONTENT[::-1]
    with pytest.raises(CheckpointError) as caught:
        fetch(checkpoint)
    assert str(caught.value) == (
        f"{cache}/weights.pth: SHA-256 of what was downloaded is not {checkpoint.sha256[:4]}…; "
        "it was deleted, try again"
    )
    assert [x.name for x in cache.iterdir()] == ["weights.pth.lock"]


def test_a_wrong_file_brought_by_hand_is_refused(cache: Path, checkpoint: Checkpoint) -> None:
    cache.mkdir()
    (cache / "weights.pth").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"weights.pth: SHA-256 is .*another variant"):
        fetch(checkpoint)
    assert (cache / "weights.pth").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_line(cache: Path, checkpoint: Checkpoint) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError) as caught:
        fetch(checkpoint)
    assert str(caught.value) == (
        f"weights.pth: cannot be written to {cache}: No space left on device"
    )


def test_the_cache_is_the_users_unless_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    assert cache_folder().name == "samrobust"


def test_published_files_are_told_apart() -> None:
    families = [row.checkpoints for row in ROWS.values() if row.checkpoints]
    assert [list(family) for family in families] == [
        ["vit_b", "vit_l", "vit_h"],
        ["vit_b", "vit_l", "vit_h", "vit_tiny"],
    ]
    for family in families:
        assert len({each.embed_dim for each in family.values()}) == len(family)
    published = [checkpoint for family in families for checkpoint in family.values()]
    for kind in ("file_name", "sha256", "n_bytes"):
        assert len({getattr(each, kind) for each in published}) == 7
    assert all(len(each.sha256) == 64 for each in published)


class TinyModel(nn.Module):
    """A model with the tensor that tells variants apart."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.image_encoder = nn.Module()
        self.image_encoder.pos_embed = nn.Parameter(torch.randn(1, 2, 2, embed_dim))


PUBLISHED = {
    "small": Checkpoint("http://127.0.0.1:9/small.pth", "0" * 64, 1, embed_dim=8, n_parameters=1),
    "large": Checkpoint("http://127.0.0.1:9/large.pth", "1" * 64, 1, embed_dim=16, n_parameters=1),
}


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def test_weights_and_their_hash_are_loaded(tmp_path: Path) -> None:
    source, model = TinyModel(8), TinyModel(8)
    path = saved(source, tmp_path / "my.pth")
    state, sha256, unwrapped = load_state(path, variant="small", published=PUBLISHED)
    assert unwrapped == ""
    fill_model(model, state, path=path)
    assert torch.equal(model.get_parameter(_POSITIONS), source.get_parameter(_POSITIONS))
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


_POSITIONS = "image_encoder.pos_embed"


def test_a_changed_file_has_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert file_sha256(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert file_sha256(path) == hashlib.sha256(b"three").hexdigest()


def test_another_variant_is_named(tmp_path: Path) -> None:
    path = saved(TinyModel(16), tmp_path / "my.pth")
    with pytest.raises(CheckpointError) as caught:
        load_state(path, variant="small", published=PUBLISHED)
    assert str(caught.value) == ("my.pth: looks like large, not like small; is it --variant large?")
    published = {**PUBLISHED, "large": replace(PUBLISHED["large"], sha256=file_sha256(path))}
    with pytest.raises(CheckpointError) as caught:
        load_state(path, variant="small", published=published)
    assert str(caught.value) == (
        "my.pth: is the published large, not small; is it --variant large?"
    )


@pytest.mark.parametrize("kept", [0, 20, 1000])
def test_a_file_cut_short_is_said_so(tmp_path: Path, kept: int) -> None:
    path = saved(TinyModel(8), tmp_path / "my.pth")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as caught:
        load_state(path, variant="small", published=PUBLISHED)
    assert str(caught.value) == "my.pth: cut short, or not a file of torch.save"


def test_another_kind_of_file_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "page.pth"
    path.write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"^page.pth: cut short, or not a file of torch.save"):
        load_state(path, variant="small", published=PUBLISHED)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"^page.pth: holds something else than"):
        load_state(path, variant="small", published=PUBLISHED)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_state(tmp_path / "none.pth", variant="small", published=PUBLISHED)


@pytest.mark.parametrize(
    ("wrap", "unwrapped"),
    [
        (lambda state: {"model": state}, "model"),
        (lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3}, "model"),
        (lambda state: {"state_dict": state, "hyper_parameters": {"lr": 0.1}}, "state_dict"),
        (lambda state: _prefixed("module.", state), "module."),
        (lambda state: _prefixed("sam.", state), "sam."),
        (lambda state: {"state_dict": _prefixed("model.", state)}, "state_dict model."),
        (lambda state: {"model": _prefixed("module.net.", state)}, "model module. net."),
        (lambda state: _prefixed("_orig_mod.", state), "_orig_mod."),
    ],
)
def test_the_weights_in_a_checkpoint_of_a_training_are_found(
    tmp_path: Path, wrap: Callable[[object], object], unwrapped: str
) -> None:
    source, path = TinyModel(8), tmp_path / "last.ckpt"
    torch.save(wrap(source.state_dict()), path)
    found = load_state(path, variant="small", published=PUBLISHED)
    assert found.unwrapped == unwrapped
    assert found.settings == {"unwrapped": unwrapped}
    model = TinyModel(8)
    fill_model(model, found.state, path=path)
    assert torch.equal(model.get_parameter(_POSITIONS), source.get_parameter(_POSITIONS))


def _prefixed(prefix: str, state: Mapping[str, object]) -> dict[str, object]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(0.5), "numpy._core.multiarray.scalar"),
        (torch.optim.SGD([torch.zeros(1)]), "torch.optim.sgd.SGD"),
        (nn.Identity(), "torch.nn.modules.linear.Identity"),
    ],
)
def test_a_file_that_holds_more_than_tensors_is_said_so(
    tmp_path: Path, extra: object, name: str, *, is_zip: bool
) -> None:
    path = tmp_path / "last.pth"
    content = {"model": TinyModel(8).state_dict(), "extra": extra}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError) as caught:
        load_state(path, variant="small", published=PUBLISHED)
    assert str(caught.value) == (
        f"last.pth: holds more than tensors, such as an object {name}, and reading that could run "
        "code of the file; where you trust it, save its weights alone: "
        "torch.save(model.state_dict(), FILE)"
    )
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"cut short, or not a file of torch\.save"):
        load_state(path, variant="small", published=PUBLISHED)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"x": Evil(tmp_path / "touched")}, path)
    with pytest.raises(CheckpointError):
        load_state(path, variant="small", published=PUBLISHED)
    assert not (tmp_path / "touched").exists()


class Evil:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_that_do_not_fit_leave_a_model_as_it_was(tmp_path: Path) -> None:
    model = TinyModel(8)
    before = model.get_parameter(_POSITIONS).clone()
    for state in (
        {},
        {_POSITIONS: torch.zeros(1, 2, 2, 12)},
        {_POSITIONS: torch.zeros(1, 2, 2, 8), "mask_decoder.hf_token.weight": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match="does not fit the model: 1 tensors are"):
            fill_model(model, state, path=tmp_path / "my.pth")
    assert torch.equal(model.get_parameter(_POSITIONS), before)
