"""The two plugins of Stable-SAM (Fan et al. 2025), DSP and DRP, and the attention that has them.

The paper's code was never released, so what it does not fix is the project's own choice. Such
choices are marked "ours:" in the docstrings; the rest is from docs/sources/stable-sam.md,
"Architecture". Letters as everywhere: N prompts, T tokens, C channels, (h, w) the embedding grid,
L = h * w.
"""

from dataclasses import dataclass

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

from samrobust.errors import SegmenterError
from samrobust.segmenters.plugin_settings import PluginSettings, Position
from samrobust.segmenters.sam_decoder import Mixture

KERNEL = 5
"""Side of the depthwise convolution."""
HIDDEN_SHARE = 8
"""Ours: the router's hidden width is C / 8, 32 for SAM. The paper's total of 0.08 M leaves room for
16 or 32."""
ROUTED_TOKEN = 1
"""Row of the output token t_o among the decoder's tokens: SAM's mask token for a single mask. Ours:
with several masks too, as all tokens read the same features."""


@dataclass(frozen=True)
class Samples:
    """Where and how strongly DSP samples a grid, with G groups of channels.

    Attributes:
        features: (N, h, w, C), what is sampled at the locations, times the amplitude.
        locations: (N, h, w, G, 2) xy in positions of the grid: p + offset.
        amplitude: (N, h, w, G) in (0, 2); 1 where there is none.
    """

    features: Tensor
    locations: Tensor
    amplitude: Tensor


class DeformableSampling(nn.Module):
    """DSP: reads, for each position p of the grid, features at p + offset.

    x* is a 1x1 convolution of the image tokens; a 5x5 depthwise convolution of x* with layer norm
    and GELU, and another 1x1 convolution, give the offsets (docs/sources/stable-sam.md,
    "Architecture"). Sampled bilinearly is x*, or, as in the paper's first figure, the tokens
    themselves. Untrained it returns its input.

    Ours: the last convolution starts as zeros, and x*, where it is sampled, as the identity;
    convolutions have biases; the norm is over channels. An offset of range R is R tanh(z / R)
    positions: a plain number of positions while it is small; an unlimited one is z, and its
    location is clamped to the grid. An amplitude, where there is one, is another number of the last
    convolution: 2 sigmoid(z), so that none is 0 or negative. With groups, the last convolution has
    as many times the numbers, each read from all channels (DAT: from those of the group). Samples
    beyond the grid's border are those of the border.

    Args:
        channels: C.
        settings: how it is made.

    Raises:
        SegmenterError: the groups do not divide the channels.
    """

    def __init__(self, channels: int, settings: PluginSettings) -> None:
        super().__init__()
        if channels % settings.groups:
            raise SegmenterError(
                f"plugins cannot have {settings.groups} groups of {channels} channels; "
                "allowed: divisors of the number of channels"
            )
        self.settings = settings
        # 1x1 convolutions are linear: channels come last, as in the decoder's tokens
        self.project = nn.Linear(channels, channels)
        self.spatial = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        n_moves = 3 if settings.amplitude == "map" else 2
        self.move = nn.Linear(channels, n_moves * settings.groups)
        if settings.samples == "projected":
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def forward(self, x: Tensor) -> Samples:
        """Return the samples of image tokens (N, h, w, C)."""
        projected = self.project(x)
        context = self.spatial(projected.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # N x h x w x C
        moves = self.move(functional.gelu(self.norm(context)))
        moves = moves.unflatten(-1, (self.settings.groups, -1))  # N x h x w x G x (2 or 3)
        locations = self._locations(x, moves[..., :2])
        if self.settings.amplitude == "map":
            amplitude = 2 * torch.sigmoid(moves[..., 2])
        else:
            amplitude = moves.new_ones(moves.shape[:-1])
        sampled = projected if self.settings.samples == "projected" else x
        return Samples(sample_bilinear(sampled, locations, amplitude), locations, amplitude)

    def _locations(self, grid: Tensor, moves: Tensor) -> Tensor:
        """Return (N, h, w, G, 2), where a grid (N, h, w, C) is sampled; moves are likewise."""
        regular = regular_locations(grid)[:, :, None]
        size_xy = moves.new_tensor([grid.shape[2], grid.shape[1]])
        offset_range = self.settings.offset_range
        if offset_range == "unlimited":
            return (regular + moves).clamp(torch.zeros_like(size_xy), size_xy - 1)
        reach = torch.ones_like(size_xy) if offset_range == "cell" else offset_range * size_xy
        return regular + reach * torch.tanh(moves / reach)


class DynamicRouting(nn.Module):
    """DRP: how much of the deformed and of the regular features a prompt's decoder reads.

    A linear layer with layer norm and GELU, and a second linear layer, turn the output token into
    two weights (docs/sources/stable-sam.md, "Architecture").

    Ours: a softmax, so that the weights are in [0, 1] and sum to 1; the last layer starts as
    zeros, so that both are 1/2 untrained. The token is the one that attends: SAM's token after
    self attention plus the constant that SAM adds to it.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // HIDDEN_SHARE
        self.hidden = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.route = nn.Linear(hidden, 2)
        nn.init.zeros_(self.route.weight)
        nn.init.zeros_(self.route.bias)

    def forward(self, token: Tensor) -> Tensor:
        """Return the weights (N, 2) of deformed and regular features for tokens (N, C)."""
        weights: Tensor = self.route(functional.gelu(self.norm(self.hidden(token))))
        return weights.softmax(dim=-1)


class Plugin(nn.Module):
    """DSP and DRP of one decoder layer: what its tokens read instead of the image tokens.

    Untrained, the mixture is the keys and values that it is given, bit by bit.

    Ours: keys and values read the same mixture; the positional encoding, where it moves, is
    sampled (each group of its channels where the features of the group are) and mixed as the
    features are, without their amplitude and their 1x1 convolution.

    Args:
        channels: C.
        settings: how it is made; its layers do not matter here.

    Raises:
        SegmenterError: the groups do not divide the channels.
    """

    def __init__(self, channels: int, settings: PluginSettings) -> None:
        super().__init__()
        self.dsp = DeformableSampling(channels, settings)
        self.drp = DynamicRouting(channels) if settings.routing else None
        self.position: Position = settings.position

    def forward(self, keys: Tensor, values: Tensor, token: Tensor) -> Mixture:
        """Return what to read, as regular ones and their change.

        Args:
            keys: (N, h, w, C), image tokens and their position; or (1, h, w, C) where the prompts
                share them.
            values: likewise, the image tokens alone.
            token: (N, C), the output token of each prompt.
        """
        samples: Samples = self.dsp(values)
        value_change = samples.features - values
        key_change = value_change
        if self.position == "moves":
            position = keys - values
            key_change = key_change + (sample_bilinear(position, samples.locations) - position)
        return Mixture(
            keys=keys.flatten(1, 2),
            values=values.flatten(1, 2),
            key_change=key_change.flatten(1, 2),
            value_change=value_change.flatten(1, 2),
            share=self.share(token),
        )

    def share(self, token: Tensor) -> Tensor:
        """Return (N,), the routing weight of the deformed features for (N, C); (1,) without DRP."""
        if self.drp is None:
            return token.new_ones(1)
        weights: Tensor = self.drp(token)
        return weights[:, 0]


class PluggedAttention(nn.Module):
    """An attention from tokens to image that reads what a plugin makes of the image.

    It takes the place of `cross_attn_token_to_image` of a decoder layer. Load SAM's weights first:
    their names change.

    Args:
        attention: SAM's own, unchanged.
        plugin: of the layer.
        grid_hw: (h, w) of the embedding grid.
    """

    def __init__(self, attention: Attention, plugin: Plugin, grid_hw: tuple[int, int]) -> None:
        super().__init__()
        self.attention = attention
        self.plugin = plugin
        self.grid_hw = grid_hw

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (N, T, C), what tokens q (N, T, C) take from keys and values (N, L, C)."""
        taken: Tensor = self.attention(q, *self.calibrate(q, k, v).mixed())
        return taken

    def calibrate(self, q: Tensor, k: Tensor, v: Tensor) -> Mixture:
        """Return what is read in place of k and v, (N, L, C) or, where shared, (1, L, C)."""
        keys, values = (x.view(len(x), *self.grid_hw, -1) for x in (k, v))
        mixture: Mixture = self.plugin(keys, values, q[:, ROUTED_TOKEN])
        return mixture


class Plugins(nn.ModuleDict):
    """One plugin a layer, under the layer's number; untrained they change nothing.

    The first weights of the depthwise convolution and of the router's first layer are torch's own,
    drawn with its global generator.

    Args:
        channels: C.
        settings: how they are made; default: as the paper, and our own choices.

    Raises:
        SegmenterError: the groups do not divide the channels.

    Example:
        >>> n_parameters(Plugins(256))
        82085
    """

    def __init__(self, channels: int, settings: PluginSettings | None = None) -> None:
        self.settings = settings or PluginSettings()
        super().__init__(
            {str(layer): Plugin(channels, self.settings) for layer in self.settings.layers}
        )


def n_parameters(module: nn.Module) -> int:
    """Return how many numbers a module can learn."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def regular_locations(grid: Tensor) -> Tensor:
    """Return (h, w, 2), xy of each position of a grid (N, h, w, C); the first is (0, 0)."""
    y, x = (torch.arange(side, device=grid.device, dtype=grid.dtype) for side in grid.shape[1:3])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def sample_bilinear(grid: Tensor, locations: Tensor, amplitude: Tensor | float = 1.0) -> Tensor:
    """Return (N, h, w, C), a grid (N, h, w, C) at locations between its positions.

    A weighted sum of four rows a location. `grid_sample` has channels first: turning them around
    takes several times as long as this sum.

    Args:
        grid: the features; at least 2 x 2.
        locations: (N, h, w, G, 2) xy as `regular_locations`, for each of G groups of channels that
            follow each other; beyond the border, the border's count.
        amplitude: (N, h, w, G), multiplies the result.
    """
    n, height, width, channels = grid.shape
    groups = locations.shape[-2]
    last_xy = locations.new_tensor([width - 1, height - 1])
    inside = locations.clamp(torch.zeros_like(last_xy), last_xy)
    first_xy = torch.minimum(inside.detach().floor(), last_xy - 1)
    near = inside - first_xy  # N x h x w x G x 2, in [0, 1]
    of_x, of_y = torch.stack([1 - near, near], dim=-1).unbind(
        dim=-2
    )  # N x h x w x G x 2 neighbours
    amplitude = amplitude[..., None] if isinstance(amplitude, Tensor) else amplitude
    weights = (of_y * amplitude)[..., None] * of_x[..., None, :]  # N x h x w x G x 2 x 2
    column, row = first_xy.long().unbind(dim=-1)
    image = torch.arange(n, device=grid.device).view(n, 1, 1, 1)
    first = (image * height + row) * width + column
    positions = first[..., None] + first.new_tensor([0, 1, width, width + 1])
    rows = positions * groups + torch.arange(groups, device=grid.device)[:, None]
    sampled = functional.embedding_bag(
        rows.view(-1, 4),
        grid.reshape(-1, channels // groups),  # a row a position and group
        mode="sum",
        per_sample_weights=weights.view(-1, 4),
    )
    return sampled.view(grid.shape)
