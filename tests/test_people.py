"""Raters: their spread, split on known distributions; the fit of people's boxes."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from samrobust import evaluate, load_protocol, summarise
from samrobust.datasets.scenes import build_scenes
from samrobust.degradations.human import HumanBox
from samrobust.errors import PromptError
from samrobust.evaluation.prompts import recorded_losses
from samrobust.prompt_files import load_prompts, write_rows, written_row
from samrobust.report.formats import raters_csv
from samrobust.report.people import fit_people, protocol_text
from samrobust.report.raters import Places, split_raters
from samrobust.report.tables import terminal_tables
from samrobust.runs.manifest import RaterRow
from samrobust.seeding import keyed_generator
from samrobust.types import DatasetOptions, Floats
from tests.conftest import GrownBox, Shell

SCENES = build_scenes(DatasetOptions(split="12x160x120"))
BETWEEN, WITHIN = 0.06, 0.1
"""Standard deviations of raters' means and of the rest."""


def scored(seed: int, *, share: float = 1.0) -> tuple[Floats, Places, Places]:
    """Return scores of 12 raters on 30 objects, of which each gave a share, with their indices."""
    rng = np.random.default_rng(seed)
    objects, raters = (index.ravel() for index in np.indices((30, 12)))
    scores = rng.normal(0.7, 0.2, 30)[objects] + BETWEEN * rng.standard_normal(12)[raters]
    scores += WITHIN * rng.standard_normal(len(scores))
    given = rng.random(len(scores)) < share
    return scores[given], objects[given].astype(np.intp), raters[given].astype(np.intp)


def test_the_split_of_a_balanced_design_is_the_textbooks() -> None:
    scores, objects, raters = scored(0)
    split = split_raters(scores, objects, raters)
    assert split is not None
    table = scores.reshape(30, 12)
    of_raters = 30 * table.mean(axis=0).var(ddof=1)  # two-way analysis of variance
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    of_rest = (rest**2).sum() / (29 * 11)
    assert split.within == pytest.approx(of_rest**0.5)
    assert split.between == pytest.approx(((of_raters - of_rest) / 30) ** 0.5)
    assert split.icc == pytest.approx(split.between**2 / (split.between**2 + split.within**2))
    ratio = of_raters / of_rest / stats.f(11, 319).ppf([0.975, 0.025])
    assert split.icc_ends == pytest.approx(tuple((ratio - 1) / (ratio + 29)))


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(share: float) -> None:
    truth = {"between": BETWEEN, "within": WITHIN, "icc": BETWEEN**2 / (BETWEEN**2 + WITHIN**2)}
    held = dict.fromkeys(truth, 0)
    estimates = []
    for seed in range(300):
        split = split_raters(*scored(seed, share=share))
        assert split is not None
        estimates.append([split.between**2, split.within**2])
        for name, value in truth.items():
            low, high = getattr(split, f"{name}_ends")
            held[name] += low <= value <= high
    for name, count in held.items():
        assert 0.92 <= count / 300 <= 1, name
    assert np.mean(estimates, axis=0) == pytest.approx([BETWEEN**2, WITHIN**2], rel=0.06)


def test_raters_that_share_no_object_cannot_be_compared() -> None:
    ones = np.arange(6)
    assert split_raters(np.linspace(0, 1, 6), ones, ones % 2) is None
    assert split_raters(np.zeros(1), np.zeros(1, int), np.zeros(1, int)) is None
    two_islands = split_raters(
        np.array([0.0, 0.1, 0.2, 0.5, 0.0, 0.1, 0.2, 0.6]),
        np.array([0, 0, 1, 1, 2, 2, 3, 3]),
        np.array([0, 1, 0, 1, 2, 3, 2, 3]),
    )
    assert two_islands is not None
    alike = split_raters(np.full(12, 0.5), np.arange(12) // 3, np.arange(12) % 3)
    assert alike is not None
    assert (alike.between, alike.within) == (0, 0)


def people(path: Path, shape: float, scale: float, *, n_raters: int = 4) -> Path:
    """Write boxes whose losses have a known distribution; the last rater gives each twice."""
    rows = [
        written_row(
            HumanBox(None, shape, scale)(
                instance.mask, keyed_generator("people", sample_id, instance.instance_id, number)
            ),
            image=sample_id,
            instance=instance.instance_id,
            rater=f"rater {min(number, n_raters - 1)}",
            condition="",
            trial=number,
            width=160,
            height=120,
        )
        for sample_id in SCENES.ids()
        for instance in SCENES[sample_id].instances
        for number in range(n_raters + 1)
    ]
    write_rows(path, rows)
    return path


@pytest.mark.parametrize(("shape", "scale"), [(1.7891956, 0.1210484), (3.0, 0.05)])
def test_a_known_distribution_is_recovered(tmp_path: Path, shape: float, scale: float) -> None:
    path = people(tmp_path / "people.parquet", shape, scale, n_raters=20)
    losses = recorded_losses(SCENES, load_prompts(path, SCENES))
    fit = fit_people(losses)
    values = np.array([row.loss for row in losses], np.float64)
    wanted = stats.gamma.fit(values, floc=0)
    assert (fit.shape, fit.scale) == pytest.approx((wanted[0], wanted[2]))
    # the last percent of the distribution is cut off, which makes tails a little shorter
    assert fit.shape_interval[0] - 0.15 <= shape <= fit.shape_interval[1]
    assert fit.scale_interval[0] <= scale <= fit.scale_interval[1] + 0.01
    assert fit.shape_interval[0] < fit.shape < fit.shape_interval[1]
    assert fit.ks < 0.05
    assert fit.n_boxes == len(values)
    file = tmp_path / "mine.toml"
    file.write_text(protocol_text(fit, name="mine", source='people "of mine".parquet'))
    protocol = load_protocol(str(file))
    assert [each.name for each in protocol.conditions] == [
        each.name for each in load_protocol("human-box").conditions
    ]
    degradation = protocol.conditions[-1].degradation
    assert isinstance(degradation, HumanBox)
    assert degradation.shape == pytest.approx(fit.shape, rel=1e-5)


def test_boxes_that_cannot_be_fitted_are_refused() -> None:
    rows = [RaterRow("a", "1", "box", trial, "", 0.0) for trial in range(30)]
    with pytest.raises(PromptError, match="at least 20 different boxes are needed, got 0"):
        fit_people(rows)
    rng = np.random.default_rng(0)
    some = [RaterRow("a", "1", "box", 0, "", float(loss)) for loss in rng.gamma(2, 0.1, 50)]
    fit = fit_people([*rows, *some])
    assert (fit.n_tight, fit.n_images) == (30, 1)
    assert np.isnan(fit.shape_interval).all()  # one image has no interval
    wild = fit_people([RaterRow("a", "1", "box", 0, "", float(x)) for x in rng.gamma(2, 1, 50)])
    with pytest.raises(PromptError, match="one box in a hundred has a loss above 1"):
        protocol_text(wild, name="wild", source="wild.csv")


def test_a_report_splits_raters_and_shows_agreement(tmp_path: Path) -> None:
    protocol = load_prompts(people(tmp_path / "people.csv", 2.0, 0.1), SCENES)
    assert [(each.name, each.trials) for each in protocol.conditions] == [
        ("box", 4),
        ("box-again", 1),
        ("human-box-p25", 20),
    ]
    (section,) = summarise(evaluate(GrownBox(), SCENES, protocol, results=tmp_path / "results"))
    (row,) = section.raters.to_dict("records")
    assert (row["condition"], row["n_raters"]) == ("box", 4)
    for name in ("between", "within", "icc", "agreement", "local"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["agreement"] < row["local"]
    main = section.table.set_index("condition")["agreement"]
    assert (row["agreement"], row["local"]) == (main["box"], main["human-box-p25"])
    losses = [
        each.loss
        for each in recorded_losses(SCENES, protocol)
        if each.loss is not None and each.condition == "box"
    ]
    human = section.human_percentiles
    assert human["box"] == pytest.approx(
        100 * stats.gamma(1.7891956, scale=0.1210484).cdf(np.median(losses))
    )
    assert human["human-box-p25"] == pytest.approx(25)
    titles = [table.title.rpartition("; ")[2] for table in terminal_tables([section])]
    assert titles[-2:] == ["raters", "agreement of masks"]
    assert terminal_tables([section])[-2].rows[0][1] == "box, 4 raters"
    assert raters_csv([section]).splitlines()[0].startswith("protocol,version,dataset,marks,segm")


def test_the_command_fits_and_writes_a_protocol(shell: Shell) -> None:
    people(Path("people.jsonl"), 2.0, 0.1)
    result = shell("prompts", "fit", "people.jsonl", "--out", "mine.toml")
    assert result.code == 0
    assert result.out.startswith("people.jsonl: 115 boxes of 12 images; shape ")
    assert "BREPS' fit" in result.out
    run = ("eval", "--protocol", "mine.toml", "--segmenter", "ellipse", "--limit", "1")
    assert "human-box-p95" in shell(*run, "--trials", "2").out
