"""What benchmarks count and make, at tiny sizes; no timing is a gate."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.ablation
import benchmarks.rows
from benchmarks.ablation import BASE, NOISE, STUDIES, regained
from benchmarks.careful import scores_by_opencv
from benchmarks.router_sees import explained
from benchmarks.rows import measure, store_runs
from benchmarks.setting import Setting
from benchmarks.watch import Tally, Traffic
from benchmarks.ways import ours, work
from samrobust.metrics.overlap import boundary_iou, iou
from samrobust.report.summary import summarise
from samrobust.runs.store import read_run, read_runs
from samrobust.segmenters.nano import nano_model
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.training.checkpoints import save_weights
from samrobust.training.recipe import load_recipe
from tests.conftest import Shell, blobs
from tests.sam_weights import randomise
from tests.trainings import tiny_recipe

TINY = Setting("sam-nano", "", "cpu", "float32", objects=1, trials=2, images=1, workers=0)


def test_work_is_two_flops_a_multiplication_and_the_bytes_of_operands_and_results() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    tally = Tally()
    with torch.inference_mode(), tally("part"):
        torch.mm(left, right)
    assert tally.flops["part"] == 2 * 3 * 5 * 7
    assert tally.n_bytes["part"] == 4 * (15 + 35 + 21)


def test_views_are_no_traffic_and_what_is_repeated_counts_once() -> None:
    x = torch.ones(4, 6)
    with Traffic() as traffic:
        x.T.reshape(6, 4)[1:].expand(2, 5, 4)
    assert traffic.n_bytes == 0
    with Traffic() as traffic:
        x[:1].expand(1000, 6).sum()  # the storage of all of x
        x.add_(1)
    assert traffic.n_bytes == 4 * (24 + 1) + 4 * (24 + 24)


@pytest.mark.parametrize("size_hw", [(41, 67), (90, 33), (1, 9)])
def test_the_careful_loop_scores_as_samrobust(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(size_hw[0])
    mask, target = blobs(rng, size_hw), blobs(rng, size_hw)
    found = scores_by_opencv(mask, target)
    masks, of = torch.from_numpy(mask)[None], torch.from_numpy(target)
    assert found == pytest.approx((iou(masks, of).item(), boundary_iou(masks, of).item()))


def test_parts_of_an_evaluation_are_within_its_time_and_its_work_is_counted() -> None:
    found = ours(TINY)
    parts = found["encode"] + found["predict"] + found["metrics"]
    assert 0 < parts < found["total"]
    assert found["busy"] == pytest.approx(parts / found["total"])
    assert found["prompts"] == 1 + 6 * 2
    counted = work(TINY, TINY.stock())
    counter = FlopCounterMode(display=False)
    segmenter, photographs = TINY.segmenter(), TINY.photographs(1)
    with torch.no_grad(), counter:
        segmenter.encode([photographs[photographs.ids()[0]].image])
    assert counted["encode"]["flops"] == counter.get_total_flops() > 0
    assert counted["predict"]["flops"] > 0


def test_made_up_rows_are_read_and_aggregated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.rows, "FLUSH_ROWS", 5_000)
    folders = store_runs(tmp_path, n_rows=30_000, n_runs=2)
    assert measure(folders)["rows"] == 2 * 30 * 2 * 248
    assert len(list((folders[0] / "scores").iterdir())) == 3
    runs = [read_run(folder) for folder in folders]
    (section,) = summarise(runs)
    assert section.table["n_images"].iloc[0] == runs[0].manifest.n_samples
    one = runs[0].scores[runs[0].scores["condition"] == "box-noise-0.4"]
    iou_rows = one[one["metric"] == "iou"]["value"].astype("float64")
    rows = section.table
    chosen = (rows["segmenter"] == "sam vit_b") & (rows["condition"] == "box-noise-0.4")
    assert rows[chosen]["miou"].item() == pytest.approx(iou_rows.mean(), abs=1e-12)


def test_attention_by_one_kernel_is_counted_as_two_products() -> None:
    tally = Tally()
    q, k, v = (torch.ones(1, 2, n, 16) for n in (8, 12, 12))
    with torch.inference_mode(), tally("part"):
        functional.scaled_dot_product_attention(q, k, v)
    assert tally.flops["part"] == 2 * (2 * 2 * 8 * 12 * 16)


def test_what_a_token_says_is_explained_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    x, owner = rng.normal(size=(400, 8)), np.arange(400) // 4
    said = x @ rng.normal(size=8)
    assert explained(x, said, owner, 1.0) > 0.99
    assert explained(x, rng.normal(size=400), owner, 1.0) < 0.05
    of_owner = rng.normal(size=100)[owner]  # alike within an owner: nothing about others
    names = np.eye(100)[owner]
    assert explained(names, of_owner, owner, 1.0) < 0.05


def test_each_row_of_the_ablation_changes_one_setting_of_the_plugins() -> None:
    default = load_recipe("robust", "photographs")
    assert default.plugins == PluginSettings()
    found = {}
    for name, (model, changes) in STUDIES["options"].items():
        recipe = load_recipe("robust", "photographs", *changes)
        assert model in recipe.models
        assert replace(recipe, name=default.name, plugins=default.plugins) == default
        settings = asdict(recipe.plugins).items() - asdict(PluginSettings()).items()
        found[name] = dict(settings)
    assert found == {
        "default": {},
        "amplitude-none": {"amplitude": "none"},
        "samples-plain": {"samples": "plain"},
        "first-figure": {"amplitude": "none", "samples": "plain"},
        "offset-cell": {"offset_range": "cell"},
        "offset-unlimited": {"offset_range": "unlimited"},
        "groups-4": {"groups": 4},
        "position-moves": {"position": "moves"},
        "layers-1-2-3": {"layers": (1, 2, 3)},
        "no-routing": {"routing": False},
        "decoder-tuned": {},
    }


def test_what_is_regained_is_a_share_of_what_noise_costs_the_base() -> None:
    frame = pd.DataFrame(
        {
            ("miou", BASE, "exact-box"): [0.8, 0.8],
            ("miou", BASE, NOISE): [0.6, 0.7],
            ("miou", "stable-sam", NOISE): [0.65, 0.65],
        }
    )
    assert regained(frame, "stable-sam").tolist() == pytest.approx([0.25, -0.5])


def test_the_ablation_trains_judges_and_goes_on(
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "out"
    torch.manual_seed(0)
    save_weights(base, randomise(nano_model()).state_dict(), tiny_recipe())

    def in_this_process(arguments: Sequence[str], _: benchmarks.ablation.Plan) -> None:
        assert shell(*arguments, "--workers", "0", "--quiet").code == 0

    monkeypatch.setattr(benchmarks.ablation, "_run", in_this_process)
    options = ["--tiny", "--out", str(out), "--base-checkpoint", str(base), "--jobs", "1"]
    options += ["--images", "2", "--trials", "2", "--only", "groups-4"]
    benchmarks.ablation.main(options)
    printed = capsys.readouterr().out
    weights = out / "groups-4.safetensors"
    written = weights.stat().st_mtime_ns

    rows = [line for line in printed.splitlines() if line[:2] == "| " and "---" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| model", "| sam-nano", "| groups-4"] * 2
    assert all(row.split(" | ")[1] == f"{22_613 + 3 * 387:,}" for row in rows[2::3])
    (run,) = (
        run
        for run in read_runs(out / "results")
        if run.manifest.protocol["name"] == "ablation"
        and run.manifest.segmenter.name == "stable-sam"
    )
    assert run.manifest.segmenter.settings["groups"] == 4
    scores = run.scores[run.scores["metric"] == "iou"]
    for place, condition in ((2, "exact-box"), (3, NOISE), (5, "points-1")):
        mean = scores[scores["condition"] == condition]["value"].astype("float64").mean()
        assert rows[2].split(" | ")[place].startswith(f"{100 * mean:.1f} ±")

    benchmarks.ablation.main(options)
    assert capsys.readouterr().out == printed
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match=r"is of other options: trials 2; name another --out"):
        benchmarks.ablation.main([*options, "--trials", "3"])
