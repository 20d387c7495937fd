from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from segment_anything.modeling.transformer import Attention
from torch import Tensor
from torch.nn import functional

from samrobust.errors import SegmenterError
from samrobust.files import convert
from samrobust.segmenters.plugin_settings import OffsetRange, PluginSettings, Position
from samrobust.segmenters.sam_decoder import Mixture
from samrobust.segmenters.stable_plugins import (
    DeformableSampling,
    DynamicRouting,
    PluggedAttention,
    Plugin,
    Plugins,
    n_parameters,
    regular_locations,
    sample_bilinear,
)

N, H, W, C = 3, 5, 7, 16
WIDE = PluginSettings(offset_range=0.5)
GROUPS = 4
OPTIONS = [
    PluginSettings(),
    PluginSettings(amplitude="none"),
    PluginSettings(samples="plain"),
    PluginSettings(samples="plain", amplitude="none"),
    PluginSettings(offset_range="cell"),
    PluginSettings(offset_range="unlimited"),
    PluginSettings(groups=GROUPS),
    PluginSettings(groups=C, amplitude="none", offset_range="unlimited"),
]


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def grid() -> Tensor:
    return tokens(0, N, H, W, C)


def made_up(settings: PluginSettings | None = None) -> Plugin:
    """Return a plugin that has learned something, in float64."""
    torch.manual_seed(0)
    plugin = Plugin(C, settings or WIDE).double()
    with torch.no_grad():
        for weight in plugin.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return plugin


def read(plugin: Plugin, keys: Tensor, values: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values that prompts read, as grids."""
    mixture: Mixture = plugin(keys, values, token)
    read_keys, read_values = mixture.mixed()
    return read_keys.view(-1, H, W, C), read_values.view(-1, H, W, C)


def test_at_256_channels_they_have_82085_parameters() -> None:
    plugins = Plugins(256)
    parts = {name: weight.numel() for name, weight in plugins.named_parameters()}
    assert sum(n for name, n in parts.items() if name.startswith("2.dsp.project")) == 65_792
    assert sum(n for name, n in parts.items() if name.startswith("2.dsp.spatial")) == 6_656
    assert sum(n for name, n in parts.items() if name.startswith("2.dsp.norm")) == 512
    assert sum(n for name, n in parts.items() if name.startswith("2.dsp.move")) == 771
    assert sum(n for name, n in parts.items() if name.startswith("2.drp")) == 8_354
    assert n_parameters(plugins) == 82_085 <= 85_000
    assert n_parameters(plugins.requires_grad_(False)) == 0


@pytest.mark.parametrize(
    ("channels", "settings", "n"),
    [
        (256, PluginSettings(routing=False), 73_731),
        (256, PluginSettings(layers=(1, 2)), 164_170),
        (128, PluginSettings(), 22_613),
        (128, PluginSettings(routing=False), 20_483),
        (256, PluginSettings(amplitude="none"), 65_792 + 6_656 + 512 + 514 + 8_354),
        (256, PluginSettings(amplitude="none", routing=False), 73_474),
        (256, PluginSettings(samples="plain", offset_range="unlimited"), 82_085),
        (256, PluginSettings(groups=8), 82_085 + 7 * 771),
        (256, PluginSettings(groups=8, amplitude="none"), 81_828 + 7 * 514),
    ],
)
def test_parameters_of_other_plugins(channels: int, settings: PluginSettings, n: int) -> None:
    assert n_parameters(Plugins(channels, settings)) == n


def test_sampling_is_scipys_and_ends_at_the_border(grid: Tensor) -> None:
    size_xy = torch.tensor([W, H])
    locations = (2 * torch.rand(N, H, W, 2, dtype=torch.float64) - 0.5) * size_xy
    assert bool((locations < 0).any())
    assert bool((locations > size_xy - 1).any())
    found = sample_bilinear(grid, locations[..., None, :])
    x, y = locations.numpy().transpose(3, 0, 1, 2)
    wanted = np.empty(grid.shape)
    for n in range(N):
        for c in range(C):
            wanted[n, ..., c] = ndimage.map_coordinates(
                grid[n, ..., c].numpy(), [y[n], x[n]], order=1, mode="nearest"
            )
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-13)


def test_regular_locations_sample_the_grid_itself(grid: Tensor) -> None:
    regular = regular_locations(grid)
    assert regular.shape == (H, W, 2)
    assert regular[2, 5].tolist() == [5, 2]
    assert torch.equal(sample_bilinear(grid, regular[:, :, None].expand(N, -1, -1, -1, -1)), grid)


@pytest.mark.parametrize("n_groups", [1, 2, C])
def test_each_group_of_channels_is_sampled_as_by_torch_at_its_own_locations(
    grid: Tensor, n_groups: int
) -> None:
    last_xy = torch.tensor([W - 1, H - 1])
    locations = torch.rand(N, H, W, n_groups, 2, dtype=torch.float64) * last_xy
    amplitude = torch.rand(N, H, W, n_groups, dtype=torch.float64)
    found = sample_bilinear(grid, locations, amplitude).chunk(n_groups, dim=-1)
    for group, channels in enumerate(grid.permute(0, 3, 1, 2).chunk(n_groups, dim=1)):
        places = 2 * locations[..., group, :] / last_xy - 1
        wanted = functional.grid_sample(channels, places, align_corners=True)
        wanted = wanted.permute(0, 2, 3, 1) * amplitude[..., group, None]
        torch.testing.assert_close(found[group], wanted)


@pytest.mark.parametrize("settings", OPTIONS)
def test_untrained_sampling_returns_its_input(grid: Tensor, settings: PluginSettings) -> None:
    samples = DeformableSampling(C, settings).double()(grid)
    assert torch.equal(samples.features, grid)
    regular = regular_locations(grid)[:, :, None].expand(N, -1, -1, settings.groups, -1)
    assert torch.equal(samples.locations, regular)
    assert torch.equal(samples.amplitude, torch.ones(N, H, W, settings.groups).double())


def test_offsets_are_in_positions_along_x_and_y(grid: Tensor) -> None:
    dsp = DeformableSampling(C, PluginSettings(offset_range=1.0)).double()
    with torch.no_grad():  # R tanh(z / R) is 2 along x and -1 along y
        dsp.move.bias[0] = W * np.arctanh(2 / W)
        dsp.move.bias[1] = H * np.arctanh(-1 / H)
    samples = dsp(grid)
    torch.testing.assert_close(samples.features[:, 1:, :-2], grid[:, :-1, 2:])
    torch.testing.assert_close(samples.features[:, 0, -1], grid[:, 0, -1])  # the border's


@pytest.mark.parametrize(("offset_range", "farthest"), [(0.25, [W / 4, H / 4]), ("cell", [1, 1])])
@pytest.mark.parametrize("n_groups", [1, GROUPS])
def test_no_offset_is_beyond_its_range(
    grid: Tensor, n_groups: int, offset_range: OffsetRange, farthest: list[float]
) -> None:
    settings = PluginSettings(offset_range=offset_range, groups=n_groups)
    dsp = DeformableSampling(C, settings).double()
    torch.nn.init.normal_(dsp.move.weight, std=1e3)
    samples = dsp(grid)
    moved = (samples.locations - regular_locations(grid)[:, :, None]).abs().amax((0, 1, 2))
    wanted = torch.tensor(farthest, dtype=torch.float64).expand(n_groups, -1)
    torch.testing.assert_close(moved, wanted)
    assert float(samples.amplitude.detach().min()) >= 0
    assert float(samples.amplitude.detach().max()) <= 2


def test_unlimited_offsets_are_plain_positions_and_end_at_the_border(grid: Tensor) -> None:
    settings = PluginSettings(offset_range="unlimited", amplitude="none", samples="plain")
    dsp = DeformableSampling(C, settings).double()
    with torch.no_grad():
        dsp.move.bias.copy_(torch.tensor([W - 2.5, -2]))
    samples = dsp(grid)
    last_xy = torch.tensor([W - 1, H - 1])
    wanted = (regular_locations(grid) + torch.tensor([W - 2.5, -2])).clamp(0 * last_xy, last_xy)
    assert torch.equal(samples.locations[..., 0, :], wanted.expand(N, -1, -1, -1))
    torch.testing.assert_close(
        samples.features.permute(0, 3, 1, 2),
        functional.grid_sample(
            grid.permute(0, 3, 1, 2),
            (2 * wanted / last_xy - 1).expand(N, -1, -1, -1),
            align_corners=True,
        ),
    )


@pytest.mark.parametrize("settings", OPTIONS)
def test_what_is_sampled_and_multiplied_is_as_the_settings_say(
    grid: Tensor, settings: PluginSettings
) -> None:
    dsp = made_up(settings).dsp
    samples = dsp(grid)
    n_groups = settings.groups
    assert samples.locations.shape == (N, H, W, n_groups, 2)
    assert samples.amplitude.shape == (N, H, W, n_groups)
    assert bool((samples.amplitude == 1).all()) == (settings.amplitude == "none")
    sampled = grid if settings.samples == "plain" else dsp.project(grid)
    wanted = np.empty(grid.shape)
    for n, c in np.ndindex(N, C):
        group = c // (C // n_groups)
        x, y = samples.locations[n, ..., group, :].detach().numpy().transpose(2, 0, 1)
        wanted[n, ..., c] = samples.amplitude[n, ..., group].detach().numpy() * (
            ndimage.map_coordinates(
                sampled[n, ..., c].detach().numpy(), [y, x], order=1, mode="nearest"
            )
        )
    np.testing.assert_allclose(samples.features.detach().numpy(), wanted, rtol=0, atol=1e-12)


def test_alike_groups_are_one_group(grid: Tensor) -> None:
    one = made_up(PluginSettings()).dsp
    many = made_up(PluginSettings(groups=GROUPS)).dsp
    state = one.state_dict()
    for name in ("move.weight", "move.bias"):
        state[name] = torch.cat([state[name]] * GROUPS)
    many.load_state_dict(state)
    torch.testing.assert_close(many(grid).features, one(grid).features)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(SegmenterError) as caught:
        Plugins(C, PluginSettings(groups=3))
    assert str(caught.value) == (
        "plugins cannot have 3 groups of 16 channels; allowed: divisors of the number of channels"
    )


def test_an_offset_depends_on_the_5_x_5_tokens_around_it(grid: Tensor) -> None:
    dsp = made_up().dsp
    changed = grid.clone()
    changed[0, 1, 2] += 1
    moved = (dsp(grid).locations != dsp(changed).locations).any(-1)[..., 0]
    expected = torch.zeros(N, H, W, dtype=torch.bool)
    expected[0, 0:4, 0:5] = True
    assert torch.equal(moved, expected)


def test_prompts_do_not_change_each_other(grid: Tensor) -> None:
    plugin = made_up()
    keys, token = grid + tokens(1, 1, H, W, C), tokens(2, N, C)
    together = read(plugin, keys, grid, token)
    for n in range(N):
        alone = read(plugin, keys[n : n + 1], grid[n : n + 1], token[n : n + 1])
        for ours, single in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[n : n + 1], single)


def test_routing_weights_sum_to_one_and_follow_the_token() -> None:
    token = tokens(0, 40, C)
    untrained = DynamicRouting(C).double()(token)
    assert torch.equal(untrained, torch.full((40, 2), 0.5, dtype=torch.float64))
    drp = made_up().drp
    assert drp is not None
    weights = drp(token)
    torch.testing.assert_close(weights.sum(-1), torch.ones(40, dtype=torch.float64))
    assert float(weights.detach().min()) > 0
    assert float(weights.detach()[:, 0].std()) > 0.01


@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("settings", OPTIONS)
def test_untrained_plugins_return_what_they_are_given(
    grid: Tensor, settings: PluginSettings, routing: bool, position: Position
) -> None:
    plugin = Plugin(C, replace(settings, routing=routing, position=position)).double()
    keys = grid + tokens(1, 1, H, W, C)
    found = read(plugin, keys, grid, tokens(2, N, C))
    for ours, given in zip(found, (keys, grid), strict=True):
        assert torch.equal(ours, given)


def test_deformed_and_regular_features_are_mixed_for_each_prompt(grid: Tensor) -> None:
    plugin = made_up()
    position, token = tokens(1, 1, H, W, C), tokens(2, N, C)
    keys, values = read(plugin, grid + position, grid, token)
    assert plugin.drp is not None
    deformed, regular = plugin.drp(token).T[..., None, None, None]
    torch.testing.assert_close(values, deformed * plugin.dsp(grid).features + regular * grid)
    torch.testing.assert_close(keys, values + position)


def test_without_routing_the_deformed_features_are_read_alone(grid: Tensor) -> None:
    plugin = made_up(PluginSettings(routing=False))
    position = tokens(1, 1, H, W, C)
    keys, values = read(plugin, grid + position, grid, tokens(2, N, C))
    assert plugin.drp is None
    torch.testing.assert_close(values, plugin.dsp(grid).features)
    torch.testing.assert_close(keys, values + position)


@pytest.mark.parametrize("n_groups", [1, GROUPS])
def test_a_position_that_moves_is_sampled_and_mixed_as_the_features(
    grid: Tensor, n_groups: int
) -> None:
    plugin = made_up(PluginSettings(position="moves", groups=n_groups))
    position, token = tokens(1, N, H, W, C), tokens(2, N, C)
    keys, values = read(plugin, grid + position, grid, token)
    share = plugin.share(token)[:, None, None, None]
    moved = sample_bilinear(position, plugin.dsp(grid).locations)
    torch.testing.assert_close(keys - values, share * moved + (1 - share) * position)


@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("settings", OPTIONS)
def test_a_shared_image_is_the_image_repeated(
    settings: PluginSettings, routing: bool, position: Position
) -> None:
    plugin = made_up(replace(settings, routing=routing, position=position))
    image, token = tokens(0, 1, H, W, C), tokens(2, N, C)
    keys = image + tokens(1, 1, H, W, C)
    shared = read(plugin, keys, image, token)
    repeated = read(plugin, keys.expand(N, -1, -1, -1), image.expand(N, -1, -1, -1), token)
    for ours, wanted in zip(shared, repeated, strict=True):
        assert len(ours) == (N if routing else 1)
        torch.testing.assert_close(ours.expand(N, -1, -1, -1), wanted)


def test_a_plugged_attention_reads_calibrated_keys_and_values(grid: Tensor) -> None:
    torch.manual_seed(0)
    attention = Attention(C, num_heads=2, downsample_rate=2).double()
    plugin = made_up()
    q, v = tokens(3, N, 6, C), grid.flatten(1, 2)
    k = v + tokens(1, 1, H * W, C)
    found = PluggedAttention(attention, plugin, (H, W))(q=q, k=k, v=v)
    keys, values = read(plugin, k.view(N, H, W, C), grid, q[:, 1])
    assert torch.equal(found, attention(q, keys.flatten(1, 2), values.flatten(1, 2)))
    assert not torch.allclose(found, attention(q, k, v))


@pytest.mark.parametrize("settings", [WIDE, *OPTIONS[1:]])
@pytest.mark.parametrize("position", get_args(Position))
def test_gradients_are_those_of_finite_differences(
    settings: PluginSettings, position: Position
) -> None:
    plugin = made_up(replace(settings, position=position))
    image, token = tokens(0, 1, 3, 4, C), tokens(2, 2, C)
    encoding = tokens(1, 1, 3, 4, C)
    names, weights = zip(*plugin.named_parameters(), strict=True)

    def calibrated(*weights: Tensor) -> tuple[Tensor, Tensor]:
        given = (image + encoding, image, token)
        found: Mixture = torch.func.functional_call(
            plugin, dict(zip(names, weights, strict=True)), given
        )
        return found.mixed()

    assert torch.autograd.gradcheck(calibrated, weights, fast_mode=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": []}, "plugins: layers must not be empty"),
        ({"layers": 2}, "plugins: layers must be a list, got 2"),
        ({"layers": [2, 1]}, "plugins: layers must be ascending, got [2, 1]"),
        ({"layers": [1, 1]}, "plugins: layers must be ascending, got [1, 1]"),
        ({"layers": [0]}, "plugins: row 1 of 'layers' must be at least 1, got 0"),
        ({"layers": ["2"]}, "plugins: row 1 of 'layers' must be a whole number, got '2'"),
        ({"offset_range": 0.0}, "plugins: offset_range must be above 0, got 0.0"),
        ({"offset_range": 2}, "plugins: offset_range must be at most 1, got 2"),
        (
            {"offset_range": "1/4"},
            "plugins: offset_range: unknown value '1/4'. Known: cell, unlimited or a number",
        ),
        ({"offset_range": [1]}, "plugins: offset_range must be a number or text, got [1]"),
        ({"position": "runs"}, "plugins: position: unknown value 'runs'. Known: moves, stays"),
        (
            {"amplitude": "projection"},
            "plugins: amplitude: unknown value 'projection'. Known: map, none",
        ),
        (
            {"samples": "x*"},
            "plugins: samples: unknown value 'x*'. Known: plain, projected",
        ),
        ({"groups": 0}, "plugins: groups must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="plugins: ") as caught:
        convert(wrong, PluginSettings, where="plugins")
    assert str(caught.value) == message


def test_a_list_of_layers_is_taken_as_files_have_it() -> None:
    settings = convert({"layers": [1, 3]}, PluginSettings, where="plugins")
    assert settings == PluginSettings(layers=(1, 3))
    assert list(Plugins(C, settings)) == ["1", "3"]


def test_settings_of_version_0_1_0_are_described_as_then() -> None:
    assert PluginSettings((1, 2), routing=False, position="moves").described == {
        "layers": (1, 2),
        "routing": False,
        "offset_range": 0.25,
        "position": "moves",
    }
    for settings in OPTIONS[1:]:
        described = settings.described
        assert described != OPTIONS[0].described
        assert PluginSettings(**described) == settings
