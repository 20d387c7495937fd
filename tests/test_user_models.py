"""Segmenters in files, modules and plug-ins, and what their runs depend on."""

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest

import samrobust
from samrobust.errors import SegmenterError
from samrobust.runs.manifest import run_name
from samrobust.runs.store import read_run
from samrobust.segmenters import SEGMENTERS, build_segmenter
from samrobust.segmenters.user_models import as_segmenter, plugin_model
from samrobust.types import SegmenterInfo, SegmenterOptions, SharesEmbeddings
from tests.conftest import Shell

EVAL = ("eval", "--protocol", "gt-box", "--split", "1x64x48", "--workers", "0", "--quiet")
MODEL = """
    import functools
    import torch
    from samrobust.types import Prediction, SegmenterInfo

    class Fill:
        def __init__(self, by=0):
            self.by = by

        def encode(self, images):
            return [image.shape[:2] for image in images]

        def predict(self, embedding, prompts, *, multimask=False):
            masks = torch.zeros(len(prompts), 1, *embedding, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, prompts.boxes.round().astype(int)):
                mask[0, y0 : y1 + 1 - self.by, x0 : x1 + 1] = True
            return Prediction(masks, torch.zeros(len(prompts), 1))

    class Named(Fill):
        info = SegmenterInfo("named", frozenset({"box"}))
        encoder_key = "mine"

    def build():
        return Fill()

    def threshold(options):
        return Fill(int(options.checkpoint.read_text()))

    def with_default(options=None):
        assert options is not None
        return Named()

    READY = Fill(1)
    number = 3
    NET = torch.nn.Linear(2, 2)
    partly = functools.partial(Fill, 2)
    dict_type = dict

    def broken():
        raise KeyError("weights")

    def wrong():
        return 5
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_model.py"
    path.write_text(dedent(MODEL))
    return path


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("my_model.py:build", "my_model"),
        ("my_model.py", "my_model"),
        ("my_model.py:Fill", "Fill"),
        ("my_model.py:READY", "READY"),
        ("my_model.py:partly", "partly"),
        ("my_model.py:Named", "named"),
        ("my_model.py:with_default", "named"),
        ("my_model:build", "my_model"),
    ],
)
def test_a_model_in_a_file_is_evaluated(shell: Shell, place: str, name: str) -> None:
    result = shell(*EVAL, "--segmenter", place, "--segmenter", "box-fill")
    assert (result.code, result.err) == (0, "")
    assert name in result.out
    (run,) = samrobust.evaluate(place, "scenes", "gt-box", results="own", limit=1)
    assert run.manifest.segmenter.name == name
    assert len(str(run.manifest.segmenter.settings["source_sha256"])) == 64


def test_a_model_of_a_changed_file_is_another_one(model: Path) -> None:
    first = build_segmenter("my_model.py:READY").info
    assert build_segmenter("my_model.py:READY").info == first
    model.write_text(model.read_text().replace("READY = Fill(1)", "READY = Fill(2)"))
    again = build_segmenter("my_model.py:READY")
    assert again.info.settings != first.settings
    assert replace(again.info, settings=first.settings) == first
    assert again.model.by == 2  # type: ignore[attr-defined]


@pytest.mark.usefixtures("model")
def test_two_checkpoints_are_two_runs(shell: Shell) -> None:
    for by in (0, 20):
        Path(f"by-{by}.txt").write_text(str(by))
        shell(*EVAL, "--segmenter", "my_model.py:threshold", "--checkpoint", f"by-{by}.txt")
    runs = [read_run(folder) for folder in Path("results").iterdir()]
    assert {run.manifest.segmenter.label for run in runs} == {"threshold by-0", "threshold by-20"}
    assert len({tuple(run.scores["value"]) for run in runs}) == 2
    names = {run_name(run.manifest) for run in runs}
    Path("by-0.txt").write_text("20")  # the same name, other weights
    shell(*EVAL, "--segmenter", "my_model.py:threshold", "--checkpoint", "by-0.txt")
    assert len({folder.name for folder in Path("results").iterdir()} - names) == 1


def test_all_that_is_handed_to_a_plugin_is_in_its_identity(model: Path) -> None:
    def build(options: SegmenterOptions) -> object:
        seen.append(options)
        return Silent()

    seen: list[SegmenterOptions] = []
    point = EntryPoint("silent", "tests.test_user_models:Silent", "samrobust.segmenters")
    plugin = plugin_model(point, lambda: build)
    folder = model.parent / "folder"
    folder.mkdir()
    (folder / "weights").write_text("1")
    plain = SegmenterOptions()
    asked = [
        plain,
        replace(plain, variant="large"),
        replace(plain, output="hq"),
        replace(plain, checkpoint=model),
        replace(plain, base_checkpoint=model),
        replace(plain, checkpoint=folder),
        replace(plain, checkpoint=Path("nowhere")),
        replace(plain, dtype="bfloat16"),
        replace(plain, frame="squash"),
        replace(plain, compile=True),
    ]
    settings = [dict(plugin.build(options).info.settings) for options in asked]
    assert seen == asked
    assert len({str(sorted(each.items())) for each in settings}) == len(asked)
    assert set(settings[0]) == {"source_sha256"}
    (folder / "weights").write_text("2")
    assert plugin.build(asked[5]).info.settings != settings[5]
    assert plugin.build(replace(plain, device="cuda")).info.settings == settings[0]


class Silent:
    """A segmenter of which the info says nothing of where it comes from."""

    info = SegmenterInfo("silent", frozenset({"box"}))
    encoder_key = "shared"

    def encode(self) -> None: ...

    def predict(self) -> None: ...


@pytest.mark.usefixtures("model")
def test_what_a_segmenter_has_besides_is_kept() -> None:
    segmenter = build_segmenter("my_model.py:Named")
    assert isinstance(segmenter, SharesEmbeddings)
    assert segmenter.encoder_key == "mine"
    assert not isinstance(build_segmenter("my_model.py:Fill"), SharesEmbeddings)
    assert as_segmenter(segmenter) is segmenter


def test_built_ins_are_what_they_were() -> None:
    assert set(build_segmenter("ellipse").info.settings) == set()
    assert "source_sha256" not in build_segmenter("sam-nano").info.settings


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("my_model.py:dict_type", "my_model.py:dict_type: dict has no method 'encode'"),
        ("my_model.py:NET", "my_model.py:NET: Linear has no method 'encode'"),
        ("none.py:build", "none.py: cannot be read: No such file or directory"),
        ("my_model.py:biuld", "my_model.py: has no 'biuld'. Did you mean 'build'? Known: "),
        ("my_model.py:", "my_model.py: has no ''. Known: "),
        (
            "nowhere.at_all:build",
            "module 'nowhere.at_all': cannot be imported: ModuleNotFoundError: No module ",
        ),
        (":build", "module '': cannot be imported: ValueError: Empty module name"),
        (
            "my_model.py:number",
            "my_model.py:number: int has no method 'encode'; a segmenter needs encode(images)",
        ),
        (
            "my_model.py:wrong",
            "my_model.py:wrong: int has no method 'encode'; a segmenter needs encode(images)",
        ),
        (
            "my_model.py:broken",
            "my_model.py:broken: cannot be built: KeyError: 'weights' (my_model.py, line 40)",
        ),
        (
            "syntax.py:build",
            "syntax.py: cannot be imported: SyntaxError: '(' was never closed (syntax.py, line 2)",
        ),
        (
            "raises.py:build",
            "raises.py: cannot be imported: ZeroDivisionError: division by zero (raises.py",
        ),
        (
            "imports.py:build",
            "imports.py: cannot be imported: ModuleNotFoundError: No module named 'no_such'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(shell: Shell, place: str, message: str) -> None:
    Path("syntax.py").write_text("\nbuild(")
    Path("raises.py").write_text("1 / 0")
    Path("imports.py").write_text("import no_such")
    found = shell.refuses(*EVAL, "--segmenter", place)
    assert message in found
    with pytest.raises(SegmenterError):
        build_segmenter(place)


@pytest.mark.usefixtures("model")
def test_an_option_for_a_builder_that_takes_none_is_refused(shell: Shell) -> None:
    message = shell.refuses(*EVAL, "--segmenter", "my_model.py:build", "--checkpoint", "x.pth")
    assert message == "my_model.py:build takes no --checkpoint, got x.pth"
    with pytest.raises(SegmenterError, match="takes no --variant, got large"):
        build_segmenter("my_model.py:READY", variant="large")
    assert SEGMENTERS.takes("my_model.py:threshold", "--checkpoint")


def test_a_model_may_import_what_lies_beside_it(model: Path) -> None:
    (model.parent / "beside_it.py").write_text("BY = 3")
    model.write_text(model.read_text() + "from beside_it import BY\nother = Fill(BY)\n")
    assert build_segmenter("my_model.py:other").model.by == 3  # type: ignore[attr-defined]
