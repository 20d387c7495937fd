import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from samrobust.errors import RecipeError, UnknownNameError
from samrobust.training.models import TRAINEES, default_recipe
from samrobust.training.recipe import (
    CorrectiveClicks,
    LossWeights,
    Phase,
    Recipe,
    counted,
    describe_recipe,
    lengthened,
    load_recipe,
    packaged_recipes,
    recipe_for,
    recipe_hash,
    recipe_summary,
    with_data,
)
from tests.trainings import TINY, tiny_recipe

GOOD = TINY.read_text(encoding="utf-8")
FIRST_PHASE = GOOD[GOOD.index("[[phases]]") : GOOD.index('[[phases]]\nname = "small"')]
PHASES = GOOD[GOOD.index("[[phases]]") : GOOD.index("[[data]]")]
DATA = GOOD[GOOD.index("[[data]]") : GOOD.index("[[prompts]]")]
PROMPTS = GOOD[GOOD.index("[[prompts]]") :]
NUMBER = re.compile(r"^(\w+) = ([\d.]+(?:e-\d+)?)$", re.MULTILINE)


def _load(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "own.toml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(str(file))


RECIPES = ["hq-sam", "robust", "sam-nano"]
CHANGES = [
    "careful",
    "distilled",
    "dsp",
    "imagenet",
    "nano-plugins",
    "photographs",
    "plain",
    "robust-prompts",
    "whole-masks",
]


@pytest.mark.parametrize("changes", [[], *([each] for each in CHANGES), CHANGES])
@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_load_and_train_what_can_be_trained(name: str, changes: list[str]) -> None:
    recipe = load_recipe(name, *changes)
    assert recipe.name == "+".join([name, *changes])
    assert set(recipe.models) <= set(TRAINEES.names())
    assert counted(recipe, 500).n_steps >= 125
    assert any(row.held_out for row in recipe.data)  # or nobody would see how good it gets


def test_all_packaged_files_are_known_by_one_line() -> None:
    assert set(packaged_recipes()) == {*RECIPES, *CHANGES}
    for name in packaged_recipes():
        assert 20 < len(recipe_summary(name)) < 100


def test_changes_take_the_place_of_keys_and_leave_the_others() -> None:
    recipe, plain = load_recipe("robust"), load_recipe("robust", "plain", "dsp")
    assert [row.kind for row in plain.prompts] == ["exact-box", "random-points"]
    assert (recipe.plugins.routing, plain.plugins.routing) == (True, False)
    unchanged = dataclasses.replace(
        plain, name=recipe.name, prompts=recipe.prompts, plugins=recipe.plugins
    )
    assert unchanged == recipe


def test_changes_alone_are_no_recipe_and_a_wrong_change_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"^plain\.toml: the recipe needs the parameter 'version'"
    ):
        load_recipe("plain")
    (tmp_path / "own.toml").write_text("[loss]\ndise = 1.0", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^robust\.toml \+ own\.toml: loss has no parameter"):
        load_recipe("robust", str(tmp_path / "own.toml"))


def test_every_trainable_model_has_a_recipe() -> None:
    for model in TRAINEES.names():
        assert recipe_for(load_recipe(default_recipe(model)), model).models == (model,)
    with pytest.raises(UnknownNameError, match="unknown trainable model 'sam'"):
        default_recipe("sam")


def test_a_recipe_for_a_model_has_its_learning_rates() -> None:
    recipe = load_recipe("robust")
    (phase,) = recipe.phases
    stable, decoder = (recipe_for(recipe, name) for name in ("stable-sam", "decoder-tuned"))
    assert stable.phases == recipe.phases
    (slower,) = decoder.phases
    assert slower == dataclasses.replace(phase, learning_rate=0.1 * phase.learning_rate)
    assert recipe_hash(stable) != recipe_hash(recipe_for(recipe, "token-tuned"))
    with pytest.raises(RecipeError, match=r"trains stable-sam, hq-sam, .*, not sam"):
        recipe_for(recipe, "sam-nano")


def test_epochs_become_steps_that_draw_as_many_images() -> None:
    recipe = load_recipe("robust")
    assert [phase.images for phase in recipe.phases] == [4]
    assert counted(recipe, 401).n_steps == 101
    assert counted(lengthened(recipe, 2.5), 401).n_steps == 251
    assert counted(lengthened(recipe, 1e-6), 401).n_steps == 1
    assert counted(tiny_recipe(), 401) == tiny_recipe()


def test_data_sets_can_take_the_place_of_all_with_their_images_alike() -> None:
    recipe = with_data(load_recipe("robust", "photographs"), ["fss", "ecssd"], "x", in_root=True)
    assert [row.dataset for row in recipe.data] == ["fss", "ecssd"]
    for row in recipe.data:
        assert (row.folder, row.split, row.held_out, row.per_image) == (".", "x", 0.01, True)
    (row,) = with_data(recipe, ["scenes"], "", in_root=False).data
    assert row.folder == ""


def test_a_file_becomes_a_recipe() -> None:
    recipe = tiny_recipe()
    assert recipe.phases == (
        Phase(
            "grounding",
            2,
            3,
            2e-3,
            steps=8,
            last_learning_rate=1e-3,
            warmup=2,
            side=64,
            source="ellipses",
        ),
        Phase("small", 2, 2, 1e-3, steps=8, side=64),
    )
    assert [(row.split, row.weight, row.held_out) for row in recipe.data] == [
        ("12x64x48", 1, 0.3),
        ("3x96x64", 0, 1),
    ]
    assert [(row.kind, row.weight) for row in recipe.prompts] == [
        ("box-noise", 2),
        ("random-points", 1),
    ]
    assert recipe.loss == LossWeights(2.0, 0.0, 1.0, 0.5)
    assert recipe.augmentation.least_crop == 0.4


def test_tables_of_settings_may_be_left_out(tmp_path: Path) -> None:
    loss = GOOD[GOOD.index("[loss]") : GOOD.index("[augmentation]")]
    assert _load(tmp_path, GOOD.replace(loss, "")).loss == LossWeights()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # the recipe itself
        ("seed = 5", "seed 5", "is not TOML"),
        ("seed = 5\n", "", "the recipe needs the parameter 'seed'"),
        ("seed = 5", f"seed = {2**63}", "seed must be at most 9223372036854775807, got 9"),
        ("seed = 5", "seed = -1", "seed must be at least 0, got -1"),
        ("seed = 5", "seed = 0.5", "the recipe: seed must be a whole number, got 0.5"),
        (
            "seed = 5",
            "seed = 5\nsede = 5",
            "the recipe has no parameter 'sede'. Did you mean 'seed'? Known: ",
        ),
        (
            "clip_norm = 1.0",
            "clip_norm = nan",
            "clip_norm must be a finite number below 1e+09, got nan",
        ),
        ("clip_norm = 1.0", "clip_norm = -1", "clip_norm must be at least 0, got -1"),
        ("weight_decay = 0.05", "weight_decay = -1", "weight_decay must be at least 0, got -1"),
        ("average = 0.9", "average = 1.1", "average must be at most 1, got 1.1"),
        ("corrections = 0.3", "corrections = -1", "corrections must be at least 0, got -1"),
        ("judge_every = 9", "judge_every = 0", "judge_every must be at least 1, got 0"),
        ("judge_images = 1", "judge_images = -1", "judge_images must be at least 0, got -1"),
        # loss and augmentation
        (
            "dice = 1.0",
            "dise = 1.0",
            "loss has no parameter 'dise'. Did you mean 'dice'? Known: candi",
        ),
        ("dice = 1.0", "dice = '1'", "loss: dice must be a number, got '1'"),
        ("dice = 1.0", "dice = -1.0", "loss: dice must be at least 0, got -1.0"),
        ("flip = 0.5", "flip = 2", "augmentation: flip must be at most 1, got 2"),
        ("[loss]", "[[loss]]", "loss must be a table, opened by [loss]"),
        # phases
        (PHASES, "", "the recipe needs the parameter 'phases'"),
        (PHASES, "[phases]\nsteps = 8\n", "phases must be a list of tables, each opened by [["),
        (
            "steps = 8",
            "steps = 0",
            "row 1 of 'phases': either steps or epochs must be above 0, not both",
        ),
        (
            "steps = 8",
            "stepps = 8",
            "row 1 of 'phases' has no parameter 'stepps'. Did you mean 'steps'",
        ),
        ("images = 2", "images = 2.5", "row 1 of 'phases': images must be a whole number, got 2.5"),
        ("objects = 3", "objects = 0", "row 1 of 'phases': objects must be at least 1, got 0"),
        ("objects = 3\n", "", "row 1 of 'phases' needs the parameter 'objects'"),
        ("side = 64", "side = 65", "row 1 of 'phases': side must be a multiple of 32, got 65"),
        ("side = 64", "side = -64", "row 1 of 'phases': side must be at least 0, got -64"),
        ("warmup = 2", "warmup = -2", "row 1 of 'phases': warmup must be at least 0, got -2"),
        ("= 2e-3", "= -2e-3", "row 1 of 'phases': learning_rate must be at least 0, got -0.002"),
        ('"ellipses"', '"elipses"', "source: unknown value 'elipses'. Did you mean 'ellipses'?"),
        (
            "steps = 8",
            "steps = 8\nepochs = 1",
            "row 1 of 'phases': either steps or epochs must be above 0",
        ),
        ("steps = 8", "epochs = -1", "row 1 of 'phases': epochs must be at least 0, got -1"),
        (
            "images = 2",
            "images = 2\nkinds = 0",
            "row 1 of 'phases': kinds must be at least 1, got 0",
        ),
        # models, plugins and rates
        ('models = ["sam-nano"]', "models = 'sam-nano'", "models must be a list, got 'sam-nano'"),
        ('models = ["sam-nano"]', "models = []", "models must not be empty"),
        ("[loss]", "[plugins]\nlayers = [2, 1]\n[loss]", "plugins: layers must be ascending, got "),
        ("[loss]", "[plugins]\nroting = true\n[loss]", "plugins has no parameter 'roting'"),
        ("[loss]", "[rates]\na = 'b'\n[loss]", "a value of 'rates' must be a number, got "),
        ("[loss]", "[rates]\na = -1\n[loss]", "a value of 'rates' must be at least 0, got "),
        (
            "[loss]",
            "[trunk]\nstart = 'coco'\n[loss]",
            "trunk: start: unknown value 'coco'. Known: im",
        ),
        ("[loss]", "[trunk]\nrate = -1\n[loss]", "trunk: rate must be at least 0, got -1"),
        ("dice = 1.0", "sampled = 1.5", "loss: sampled must be at most 1, got 1.5"),
        # data
        (DATA, "", "the recipe needs the parameter 'data'"),
        ('split = "12x', 'spit = "12x', "row 1 of 'data' has no parameter 'spit'. Did you"),
        (
            "weight = 1\nheld_out",
            "weight = -1\nheld_out",
            "row 1 of 'data': weight must be at least 0",
        ),
        ("weight = 1\nheld_out", "weight = 0\nheld_out", "no row of 'data' has a weight above 0"),
        ("held_out = 0.3", "held_out = 30", "row 1 of 'data': held_out must be at most 1, got 30"),
        # prompts
        (PROMPTS, "", "the recipe needs the parameter 'prompts'"),
        ('"box-noise"', '"box-nose"', "unknown degradation 'box-nose'. Did you mean 'box-noise'?"),
        ("weight = 2\n", "", "row 1 of 'prompts' needs the parameter 'weight'"),
        ("weight = 2\n", "weight = 0\n", "row 1 of 'prompts': weight must be above 0, got 0"),
        ("shift = 0.1", "shfit = 0.1", "box-noise has no parameter 'shfit'. Did you mean 'shift'"),
        ("shift = 0.1", "shift = -1", "box-noise: shift must be a finite number of at least 0"),
        ("count = 3", "count = 0", "random-points: count must be a whole number of at least 1"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        _load(tmp_path, GOOD.replace(old, new, 1))
    line = str(caught.value)
    assert message in line
    assert "own.toml: " in line
    assert "\n" not in line


def test_missing_files_and_unknown_names_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read: No such file"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(
        UnknownNameError, match=r"unknown recipe 'sam-nao'\. Did you mean 'sam-nano'"
    ):
        load_recipe("sam-nao")
    (tmp_path / "own.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"own\.toml: is not TOML"):
        load_recipe(str(tmp_path / "own.toml"))


def test_phases_follow_each_other() -> None:
    recipe = tiny_recipe()
    assert recipe.n_steps == 16
    places = [recipe.phase_at(step) for step in range(16)]
    assert [phase.name for phase, _ in places] == ["grounding"] * 8 + ["small"] * 8
    assert [step for _, step in places] == [*range(8), *range(8)]
    with pytest.raises(IndexError, match="the recipe has 16 steps"):
        recipe.phase_at(16)


@pytest.mark.parametrize("number", [*NUMBER.finditer(GOOD)], ids=lambda found: found.group())
def test_the_hash_changes_with_every_number(tmp_path: Path, number: re.Match[str]) -> None:
    value = number[2]
    other = str(int(value) + 32) if value.isdigit() and value != "1" else str(float(value) / 2)
    if number[1] in {"version", "judge_images"}:
        other = "2"
    changed = GOOD[: number.start(2)] + other + GOOD[number.end(2) :]
    assert recipe_hash(_load(tmp_path, changed)) != recipe_hash(tiny_recipe())


def test_the_hash_changes_with_what_is_learned_from(tmp_path: Path) -> None:
    found = {recipe_hash(tiny_recipe())}
    for old, new in (
        ("12x64x48", "13x64x48"),
        ('"ellipses"', '"data"'),
        ('"random-points"', '"border-points"'),
        (FIRST_PHASE, ""),
    ):
        found.add(recipe_hash(_load(tmp_path, GOOD.replace(old, new))))
    assert len(found) == 5


def test_the_hash_does_not_change_with_how_a_file_is_written(tmp_path: Path) -> None:
    other = _load(tmp_path, "# a remark\n" + GOOD.replace("2e-3", "0.002").replace(" = ", "="))
    assert recipe_hash(other) == recipe_hash(tiny_recipe())


def test_a_described_recipe_is_json_and_says_all() -> None:
    recipe = tiny_recipe()
    described = json.loads(json.dumps(describe_recipe(recipe)))
    named = {field.name for field in dataclasses.fields(recipe)}
    assert {*described, "clicks", "interpolation"} == named
    loss = dataclasses.replace(recipe.loss, distilled=0.5)
    augmentation = dataclasses.replace(recipe.augmentation, mix=0.5)
    whole = dataclasses.replace(
        recipe, clicks=CorrectiveClicks(), interpolation=0.5, loss=loss, augmentation=augmentation
    )
    assert set(describe_recipe(whole)) == named
    for table in ("loss", "augmentation"):
        assert describe_recipe(whole)[table] == dataclasses.asdict(whole)[table]
        assert set(described[table]) < set(describe_recipe(whole)[table])
    assert described["prompts"][0] == {
        "weight": 2,
        "kind": "box-noise",
        "degradation": {"shift": 0.1, "scale": 0.1},
    }
    assert described["phases"][0]["learning_rate"] == 2e-3


def test_a_longer_recipe_has_more_steps_of_every_phase_and_another_hash() -> None:
    recipe = load_recipe("sam-nano")
    longer = lengthened(recipe, 2.5)
    for before, after in zip(recipe.phases, longer.phases, strict=True):
        assert after.steps == 2.5 * before.steps
        assert dataclasses.replace(after, steps=before.steps) == before
    assert recipe_hash(longer) != recipe_hash(recipe)
    assert lengthened(recipe, 1) == recipe
    assert lengthened(recipe, 1e-9).n_steps == len(recipe.phases)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_no_length_is_refused(factor: float) -> None:
    with pytest.raises(
        RecipeError, match=r"the factor of steps must be above 0 and at most 1e\+06, got"
    ):
        lengthened(load_recipe("sam-nano"), factor)
