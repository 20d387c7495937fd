"""SAM-nano's own layers: its image encoder, and the blocks in its decoder's upscaling."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

STEM_WIDTH = 32
GROUPS = 8
RESIDUAL = 0.2
"""Of a residual branch at the start, against what it is added to."""
KERNEL = 5
"""Side of what a block sees."""
BLOCKS = 2
"""Before each of the two doublings."""


@dataclass(frozen=True)
class BlockRow:
    """Some inverted residual blocks, one after the other.

    Attributes:
        count: of blocks.
        width: channels out.
        kernel: side of the depthwise convolution.
        stride: of the first block.
        expansion: channels inside for one that enters.
    """

    count: int
    width: int
    kernel: int
    stride: int
    expansion: int = 6


STEM_ROW = BlockRow(1, 16, 3, 1, expansion=1)
STAGES: Sequence[Sequence[BlockRow]] = (
    (BlockRow(3, 24, 3, 2),),
    (BlockRow(3, 48, 5, 2),),
    (BlockRow(4, 88, 3, 2), BlockRow(4, 120, 5, 1)),
    (BlockRow(5, 208, 5, 2), BlockRow(1, 352, 3, 1)),
)
"""At strides 4, 8, 16 and 32 of the input: EfficientNet-Lite2 (Tan and Le 2019, table 1, made wider
by 1.1 and deeper by 1.2, without squeeze and excitation, without the last convolution)."""


class NanoEncoder(nn.Module):
    """Image features at stride 8: EfficientNet-Lite2 as a trunk, fused from coarse to fine.

    The trunk's four stages are fused from the coarsest up (Lin et al. 2017, FPN); the finest
    joins with its 2x2 positions in one, so that masks finer than the grid can be drawn.

    Args:
        side: pixels of the square input, a multiple of 32.
        channels: C of the embedding.

    Attributes:
        early_channels: of the first stage's output.
        early_share: positions of it along each side for one of the embedding.
    """

    early_share = 2

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.img_size = side  # as SAM's own encoder calls it
        self.stem = nn.Sequential(
            SameConv(3, STEM_WIDTH, 3, stride=2),
            nn.ReLU6(),
            InvertedBlock(STEM_WIDTH, STEM_ROW, stride=1),
        )
        self.stages = nn.ModuleList()
        widths = [STEM_ROW.width]
        for rows in STAGES:
            blocks = []
            for row in rows:
                for index in range(row.count):
                    before = row.width if index else widths[-1]
                    stride = 1 if index else row.stride
                    blocks.append(InvertedBlock(before, row, stride=stride))
                widths.append(row.width)
            self.stages.append(nn.Sequential(*blocks))
        last = [rows[-1].width for rows in STAGES]
        self.early_channels = last[0]
        self.finest = nn.Sequential(
            nn.Conv2d(last[0], channels, 2, stride=2), nn.GroupNorm(GROUPS, channels)
        )
        self.laterals = nn.ModuleList(
            nn.Sequential(Pointwise(width, channels), nn.GroupNorm(GROUPS, channels))
            for width in last[1:]
        )
        self.fuse = nn.ModuleList(NanoBlock(channels) for _ in self.laterals)
        self.neck = LayerNorm2d(channels)
        self.apply(_start)

    @property
    def early(self) -> nn.Module:
        """Return the layer whose output is an HQ-SAM's early features: the first stage."""
        return self.stages[0]

    @property
    def trunk(self) -> Sequence[nn.Module]:
        """Return the parts that are EfficientNet's."""
        return self.stem, self.stages

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, C, side / 8, side / 8) of normalised images (B, 3, side, side).

        Sides may differ from the encoder's own, for training on small images.
        """
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        finest, *coarser = stages
        context: Tensor | None = None
        for lateral, fuse, features in zip(
            reversed(self.laterals), reversed(self.fuse), reversed(coarser), strict=True
        ):
            fused = lateral(features)
            if context is not None:
                fused = fused + functional.interpolate(context, scale_factor=2.0, mode="nearest")
            if features is coarser[0]:
                fused = fused + self.finest(finest)
            context = fuse(fused)
        embedding: Tensor = self.neck(context)
        return embedding.contiguous()


class SameConv(nn.Conv2d):
    """A convolution of ceil(side / stride), padded as TensorFlow does: what is odd, at the end.

    Args:
        width_in: channels in.
        width_out: channels out.
        kernel: side.
        stride: of the output's positions.
        groups: of channels that do not see each other.
    """

    def __init__(
        self, width_in: int, width_out: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = 0 if stride > 1 else kernel // 2
        super().__init__(width_in, width_out, kernel, stride=stride, padding=padding, groups=groups)
        missing = kernel - stride if stride > 1 else 0
        self.missing = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width_out, h / stride, w / stride); h and w must be multiples of it."""
        return super().forward(functional.pad(x, 2 * self.missing) if any(self.missing) else x)


class Pointwise(nn.Linear):
    """A 1x1 convolution as one matrix product, which a CPU does faster where channels lie last."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width_out, h, w) of (B, width_in, h, w)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class InvertedBlock(nn.Module):
    """An inverted residual block (Sandler et al. 2018): wider, depthwise, narrower.

    There are no norms: those of the trained EfficientNet are part of the convolutions, which have
    biases instead. So no image changes another's embedding.

    Args:
        width_in: channels in.
        row: all else.
        stride: of the depthwise convolution.
    """

    def __init__(self, width_in: int, row: BlockRow, *, stride: int) -> None:
        super().__init__()
        inside = width_in * row.expansion
        self.expand = Pointwise(width_in, inside) if row.expansion > 1 else None
        self.depthwise = SameConv(inside, inside, row.kernel, stride=stride, groups=inside)
        self.project = Pointwise(inside, row.width)
        self.residual = stride == 1 and width_in == row.width

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h / stride, w / stride)."""
        wide = x if self.expand is None else functional.relu6(self.expand(x))
        y: Tensor = self.project(functional.relu6(self.depthwise(wide)))
        return x + y if self.residual else y


class NanoBlock(nn.Module):
    """A residual block: 3x3 convolution, group norm, GELU, 1x1 convolution.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.mix = Pointwise(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w) of the same."""
        y: Tensor = self.mix(functional.gelu(self.norm(self.spatial(x))))
        return x + y


def with_spatial_blocks(upscaling: nn.Sequential) -> nn.Sequential:
    """Return the upscaling of a mask decoder, its modules shared, with blocks before it doubles."""
    modules: list[nn.Module] = []
    for module in upscaling:
        if isinstance(module, nn.ConvTranspose2d):
            modules += [SpatialBlock(module.in_channels) for _ in range(BLOCKS)]
        modules.append(module)
    return nn.Sequential(*modules)


class SpatialBlock(nn.Module):
    """A residual block: depthwise convolution, layer norm, 1x1, GELU, 1x1.

    The order is ConvNeXt's (Liu et al. 2022), which is wider inside. It begins as the identity.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, h, w) of the same."""
        near = self.norm(self.depthwise(x).movedim(1, -1))
        y: Tensor = self.mix(functional.gelu(self.widen(near)))
        return x + y.movedim(-1, 1)


def _start(module: nn.Module) -> None:
    """Let features keep their size through a trunk without norms (He et al. 2015)."""
    if isinstance(module, InvertedBlock):
        for layer in (module.expand, module.depthwise):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(module.project.weight, std=module.project.in_features**-0.5)
        if module.residual:
            with torch.no_grad():
                module.project.weight.mul_(RESIDUAL)
