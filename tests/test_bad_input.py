"""Files of strangers: whatever is in them, a command ends with one line, and writes nothing."""

import pickle
from pathlib import Path

import pytest
import torch

from tests import hostile as put
from tests.conftest import Shell
from tests.hostile import CONDITIONS, PROTOCOL, RECIPE, Evil, Put

EVAL = "eval --segmenter ellipse --protocol gt-box --workers 0 "
FOLDER = EVAL + "--dataset folder --data-root ."
COCO = EVAL + "--dataset coco --data-root . --split val"
OWN = "eval --segmenter sam-nano --workers 0 --protocol own.toml"
TRAIN = "train sam-nano --workers 0 --recipe own.toml"
REPORT = "report run"
HUGE = 10**12
STEPS = "steps = 8"

PICTURES: list[tuple[Put, str, str]] = [
    (put.picture(put.png(100_000, 100_000)), FOLDER, "p.png: cannot be decoded: Image size (1000"),
    (put.picture(put.png(100_000, 100_000), "masks/p.png"), FOLDER, "masks/p.png: cannot be deco"),
    (put.picture(put.jpeg(65_500, 65_500)), FOLDER, "p.png: cannot be decoded: Image size (42902"),
    (put.picture(put.bmp(100_000, 100_000)), FOLDER, "p.png: cannot be decoded: Image size (1000"),
    (put.picture(put.png(2**31 - 1, 1)), FOLDER, "p.png: cannot be decoded"),
    (put.picture(put.png(0, 0)), FOLDER, "p.png: "),
    (
        put.picture(put.png(chunks=put.text_bomb())),
        FOLDER,
        "p.png: cannot be decoded: Decompressed",
    ),
    (
        put.picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        FOLDER,
        "is not an image of",
    ),
    (put.picture(b"", "images/p.jpg"), FOLDER, "p.jpg: is not an image of a known format"),
    (put.pipe, FOLDER, "images/p.png: is not a regular file"),
    (put.loop, FOLDER, "images/p.png: cannot be decoded: Too many levels"),
    (put.nothing, "show --image /dev/zero --box 1,1,5,5", "/dev/zero: is not a regular file"),
    (put.nothing, "show --image x.png --box 1,nan,5,5", "--box must be four numbers x0,y0,x1,y1"),
]
ANNOTATIONS: list[tuple[Put, str, str]] = [
    (put.coco(image={"file_name": "../../x.png"}), COCO, "file name '../../x.png' leaves the data"),
    (
        put.coco(image={"file_name": "/etc/x.png"}),
        COCO,
        "file name '/etc/x.png' leaves the data ro",
    ),
    (put.coco(image={"file_name": "C:\\x.png"}), COCO, "leaves the data root"),
    (put.coco(image={"file_name": "..\\x.png"}), COCO, "leaves the data root"),
    (put.coco(image={"file_name": "a\0.png"}), COCO, "a file name has a zero byte"),
    (put.coco(image={"file_name": "\ud800.png"}), COCO, "is not a COCO instance file"),
    (put.coco(image={"file_name": "x" * 5_000}), COCO, "File name too long"),
    (put.coco(image={"file_name": ""}), COCO, "val: is not a regular file"),
    (put.coco(image={"width": HUGE, "height": HUGE}), COCO, "says 1000000000000x1000000000000"),
    (
        put.coco(image={"width": -61, "height": -40}),
        COCO,
        "is 61x40, instances_val.json says -61x-",
    ),
    (put.coco(image={"width": [1] * 9_999, "height": 0}), COCO, "whole numbers, got 0 and [1, 1, "),
    (put.coco(image={"id": float("inf")}), COCO, "its id must be a whole number, got inf"),
    (put.coco(image={"id": float("nan")}), COCO, "its id must be a whole number, got nan"),
    (
        put.coco(segmentation={"size": [10**9, 10**9], "counts": "0"}),
        COCO,
        "is 1000000000x10000000",
    ),
    (
        put.coco(segmentation={"size": [40, 61], "counts": "o" * 10**6}),
        COCO,
        "counts are not run l",
    ),
    (
        put.coco(segmentation={"size": [40, 61], "counts": "0\u00e9"}),
        COCO,
        "counts are not run len",
    ),
    (put.coco(segmentation={"size": [40, 61], "counts": "0Po"}), COCO, "end within a run length"),
    (
        put.coco(segmentation={"size": [40, 61], "counts": "000000"}),
        COCO,
        "do not add up to the si",
    ),
    (
        put.coco(segmentation={"size": [40, 61], "counts": [10**30]}),
        COCO,
        "do not add up to the si",
    ),
    (put.coco(segmentation={"size": [40, 61], "counts": {"0": 1}}), COCO, "cannot be decoded"),
    (put.coco(segmentation={"size": 40, "counts": "0"}), COCO, "cannot be decoded"),
    (
        put.coco(segmentation=[[1, 2, float("nan"), 4, 5, 6]]),
        COCO,
        "must be at most 100000000 pixels",
    ),
    (
        put.coco(segmentation=[[1, 2, float("inf"), 4, 5, 6]]),
        COCO,
        "must be at most 100000000 pixels",
    ),
    (put.coco(segmentation=[[1, 2, 1e300, 4, 5, 6]]), COCO, "must be at most 100000000 pixels"),
    (put.coco(segmentation=[[1, 2, 10**30, 4, 5, 6]]), COCO, "a polygon must be a list of x"),
    (put.coco(segmentation=[[0, 0, 9e7, 0, 0, 9e7]]), COCO, "270000003 pixels long, more than 41"),
    (put.coco(segmentation=[[0, 0, 60, 39] * 50_000]), COCO, "pixels long, more than 4194304"),
    (
        put.coco(segmentation=[["1", "2", "3", "4", "5", "6"]]),
        COCO,
        "a polygon must be a list of x",
    ),
    (
        put.coco(segmentation=[{"size": [40, 61], "counts": "0"}]),
        COCO,
        "a polygon must be a list of x",
    ),
    (put.coco_text("[" * 100_000), COCO, "is not JSON: maximum recursion"),
    (put.coco_text("null"), COCO, "it is None, not an object with images"),
    (put.coco_text('{"images": [{"id": ' + "9" * 5_000 + "}]}"), COCO, "is not JSON: Exceeds"),
    (put.coco_text('{"\x1b]0;title\x07": 1}'), COCO, "is not JSON: Invalid control"),
    (put.text(b"\xff\xfe\x00", "ids.txt"), EVAL + "--ids ids.txt", "ids.txt: cannot be read"),
    (put.nothing, EVAL + "--split 1000000000000", "scenes: split '1000000000000' must be"),
    (put.nothing, EVAL + "--split 9999999x64x48", "positive integers with N up to 1000000"),
]
PROTOCOLS: list[tuple[Put, str, str]] = [
    (put.protocol("trials = 4", f"trials = {HUGE}"), OWN, "trials must be at most 1000, got 10000"),
    (
        put.protocol("count = 3", "count = 1_000_000_000"),
        OWN,
        "count must be a whole number of at l",
    ),
    (
        put.protocol("count = 3", f"count = 3\nbackground = {HUGE}"),
        OWN,
        "background must be a whole",
    ),
    (
        put.text(PROTOCOL + PROTOCOL[CONDITIONS:] * 1_000),
        OWN,
        "conditions must have at most 1000 rows, got 1001",
    ),
    (
        put.text(
            PROTOCOL.replace("trials = 4", "trials = 1_000")
            + "".join(PROTOCOL[CONDITIONS:].replace('"points"', f'"{n}"') for n in range(20))
        ),
        OWN,
        "21000 prompts per object, at most 20000 are allowed",
    ),
    (
        put.protocol("seed = 3", "seed = 0x" + "f" * 9_999),
        OWN,
        "seed must be a whole number of 64 bits",
    ),
    (put.protocol("seed = 3", "seed = " + "9" * 5_000), OWN, "own.toml: is not TOML: "),
    (put.protocol("seed = 3", "seed = " + "[" * 9_999), OWN, "own.toml: is not TOML: "),
    (put.protocol("seed = 3", "seed" + ".a" * 9_999 + " = 3"), OWN, "a key has more than 16 parts"),
    (
        put.protocol("seed = 3", "seed = " + "[" * 99 + "]" * 99),
        OWN,
        "seed must be a whole number, got [",
    ),
    (put.protocol("count = 3", "count = 1e300"), OWN, "count must be a whole number, got 1e+300"),
    (
        put.protocol("count = 3", "count = 3\nlevel = inf"),
        OWN,
        "level must be a finite number below",
    ),
    (put.protocol("seed = 3", "seed = 3\n#" + "x" * 2**18), OWN, "is larger than 262,144 bytes"),
    (put.text(bytes(range(256))), OWN, "own.toml: is not TOML: "),
    (put.nothing, "eval --protocol /dev/zero", "/dev/zero: is larger than 262,144 bytes"),
    (put.nothing, "eval --trials 1000000000000", "trials must be at most 1000, got 1000000000000"),
    (put.protocol("count = 3", "count = 3\nx = '\\u001b'"), OWN, "has no parameter 'x'"),
]
RECIPES: list[tuple[Put, str, str]] = [
    (
        put.recipe(STEPS, f"steps = {HUGE}"),
        TRAIN,
        "row 1 of 'phases': steps must be at most 1000000000, got",
    ),
    (
        put.recipe(STEPS, "epochs = 1e8"),
        TRAIN,
        "row 1 of 'phases': epochs must be at most 1000000, got 1000000",
    ),
    (
        put.recipe("images = 2", "images = 1_000_000_000"),
        TRAIN,
        "images must be at most 4096, got 1",
    ),
    (
        put.recipe("objects = 3", f"objects = {HUGE}"),
        TRAIN,
        "objects must be at most 1000, got 1000",
    ),
    (
        put.recipe("images = 2", f"images = 2\nkinds = {HUGE}"),
        TRAIN,
        "kinds must be at most 100, got",
    ),
    (
        put.recipe("side = 64", "side = 32_000_000"),
        TRAIN,
        "side must be at most 4096, got 32000000",
    ),
    (
        put.recipe("count = 3", "count = 1_000_000_000"),
        TRAIN,
        "count must be a whole number of at l",
    ),
    (put.recipe("12x64x48", "1000000000x64x48"), TRAIN, "scenes: split '1000000000x64x48' must be"),
    (
        put.recipe('"12x64x48"', '"../x"'),
        TRAIN,
        "own.toml: row 1 of 'data': split '../x' leaves the data root",
    ),
    (
        put.recipe("held_out", 'folder = "../../etc"\nheld_out'),
        TRAIN,
        "folder '../../etc' leaves the",
    ),
    (
        put.recipe("held_out", 'folder = "/etc"\nheld_out'),
        TRAIN,
        "folder '/etc' leaves the data roo",
    ),
    (
        put.text(RECIPE + "[[prompts]]\ndegradation = 'exact-box'\nweight = 1\n" * 1_000),
        TRAIN,
        "prompts must have at most 1000 rows, got 1002",
    ),
    (
        put.recipe("seed = 5", "seed = 0x" + "f" * 9_999),
        TRAIN,
        "seed must be a whole number of 64 bits",
    ),
    (
        put.nothing,
        "train sam-nano --scale-steps 1e300",
        "the factor of steps must be above 0 and at most 1e+06",
    ),
]
EVIL = put.weights({"x": Evil()})
WEIGHTS: list[tuple[Put, str, str]] = [
    (
        EVIL,
        "eval --segmenter sam --checkpoint w.pth",
        "w.pth: holds more than tensors, such as an object",
    ),
    (
        EVIL,
        "eval --segmenter hq-sam --checkpoint w.pth",
        "w.pth: holds more than tensors",
    ),
    (
        EVIL,
        "eval --segmenter mobile-sam --checkpoint w.pth",
        "w.pth: holds more than tensors",
    ),
    *(
        (
            EVIL,
            f"eval --segmenter {name} --checkpoint w.pth",
            "w.pth: cut short, or not a safetensors",
        )
        for name in ("sam-nano", "stable-sam", "decoder-tuned", "token-tuned", "lora-tuned")
    ),
    *(
        (
            put.part_of_nano(kind),
            f"eval --segmenter {name} --checkpoint part.safetensors --base-checkpoint w.pth",
            "w.pth: cut short, or not a safetensors file",
        )
        for name, kind in (
            ("hq-sam", "hq-sam-parts"),
            ("stable-sam", "stable-sam-plugins"),
            ("lora-tuned", "lora-tuned-weights"),
        )
    ),
    (EVIL, "train stable-sam --base sam --checkpoint w.pth", "w.pth: holds more than tensors"),
    (EVIL, "draw reading --checkpoint w.pth", "w.pth: cut short, or not a safetensors file"),
    (
        put.text(pickle.dumps(Evil()), "w.pth"),
        "eval --segmenter sam --checkpoint w.pth",
        "cut short",
    ),
    (put.evil_training, TRAIN, "sam-nano-training/state.pt: is not a training state; remove it"),
    (put.weights({5: torch.zeros(1)}), "eval --segmenter sam --checkpoint w.pth", "something else"),
    (
        put.weights({"x": torch.zeros(3).to_sparse()}),
        "eval --segmenter sam --checkpoint w.pth",
        "w.pth: holds something else than the weights of a model",
    ),
    (
        put.weights({"x": torch.zeros(3, device="meta")}),
        "eval --segmenter sam --checkpoint w.pth",
        "w.pth: holds something else than the weights of a model",
    ),
    (
        put.text(b"\xff" * 7 + b"\x7f{", "w.pth"),
        "eval --segmenter sam-nano --checkpoint w.pth",
        "w.pth: cut short, or not a safetensors file",
    ),
]
SCORES = "run: is not a valid run: "
RUNS: list[tuple[Put, str, str]] = [
    (put.run_with("manifest.json", "[" * 100_000), REPORT, "manifest.json: is not JSON"),
    (put.run_with("manifest.json", "[1]"), REPORT, "manifest.json: is not a JSON object"),
    (
        put.run(lambda plain: plain.pop("protocol")),
        REPORT,
        "the manifest needs the parameter 'protocol'",
    ),
    (put.run(lambda plain: plain.update(protocol=5)), REPORT, "protocol must be a table, got 5"),
    (
        put.run(lambda plain: plain.update(n_samples="x")),
        REPORT,
        "n_samples must be a whole number, got 'x'",
    ),
    (put.run(lambda plain: plain.update(device="\ud800")), REPORT, "manifest.json: is not JSON"),
    (
        put.run(lambda plain: plain["dataset"].update(split=3)),
        REPORT,
        "dataset: split must be text, got 3",
    ),
    (
        put.run(lambda plain: plain["segmenter"].update(frame=[])),
        REPORT,
        "segmenter: frame must be text, got []",
    ),
    (
        put.run(lambda plain: plain["protocol"].update(conditions=[])),
        REPORT,
        "protocol: conditions must not be empty",
    ),
    (
        put.run(lambda plain: plain["protocol"]["conditions"][0].update(trials="many")),
        REPORT,
        "row 1 of 'conditions': trials must be a whole number, got 'many'",
    ),
    (put.run_with("failures.json", "[]"), REPORT, "failures.json: is not a JSON object"),
    (
        put.run_with("failures.json", '{"a": [1]}'),
        REPORT,
        SCORES + "a value of 'the failures' must be text",
    ),
    (put.run_with("scores/part-00000.parquet", "PAR1"), REPORT, "parquet: cannot be read, perhaps"),
    (
        put.run_with_scores(lambda table: table.drop_columns(["trial"])),
        REPORT,
        "parquet: cannot be re",
    ),
    (put.run_with_scores(put.many_rows), REPORT, "holds more than a part can: 6000000 rows"),
    (put.run_with_scores(put.no_text), REPORT, "parquet: cannot be read, perhaps"),
    (
        put.run_with_scores(put.with_column("trial", 10**9)),
        REPORT,
        SCORES + "trials 1000000000 to 1",
    ),
    (
        put.run_with_scores(put.with_column("trial", -9)),
        REPORT,
        SCORES + "trials -9 to -9 are not th",
    ),
    (
        put.run_with_scores(put.with_column("value", float("nan"))),
        REPORT,
        SCORES + "a value is not",
    ),
    (
        put.run_with_scores(put.with_column("condition", "x")),
        REPORT,
        SCORES + "the condition 'x' is ",
    ),
    (
        put.run_with_scores(put.with_column("metric", "x")),
        REPORT,
        SCORES + "the metric 'x' is not in",
    ),
    (
        put.run_with_scores(put.with_column("sample_id", None)),
        REPORT,
        SCORES + "the column sample_id",
    ),
    (
        put.run_with_kept(put.jpeg(61, 40), b"0", (10**6, 10**6)),
        f"{REPORT} --format html",
        "run/photographs: a photograph cannot be 1000000x1000000",
    ),
    (
        put.run_with_kept(put.jpeg(65_500, 65_500), b"0"),
        f"{REPORT} --format html",
        "a kept photograph is no JPEG that can be read",
    ),
    (
        put.run_with_kept(put.jpeg(61, 40), b"o" * 10**6),
        f"{REPORT} --format html",
        "run: a kept mask is not of its image: counts are not run lengths",
    ),
]


@pytest.mark.parametrize(
    ("on_disk", "command", "message"),
    [*PICTURES, *ANNOTATIONS, *PROTOCOLS, *RECIPES, *WEIGHTS, *RUNS],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_strangers_file_ends_a_command_with_one_line(
    shell: Shell, on_disk: Put, command: str, message: str
) -> None:
    on_disk()
    before = _files()
    result = shell(*command.split())
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert len(line) < 2_100
    assert line.isprintable()
    assert result.out == ""
    after = _files()
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before} <= {
        "manifest.json",
        ".lock",
        ".shard-1-of-1.lock",
    }


def _files() -> dict[Path, int]:
    """Return when each file was last written."""
    return {path: path.lstat().st_mtime_ns for path in Path().rglob("*") if not path.is_dir()}
