"""SAM-nano's image encoder."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from samrobust.segmenters.sam_decoder import nested

STEM_WIDTH = 32
GROUPS = 8
RESIDUAL = 0.2
"""Of a residual branch at the start, against what it is added to."""


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
    """Image features at stride 16, and finer ones: EfficientNet-Lite2 as a trunk, fused top down.

    The trunk's stages are fused from the coarsest up (Lin et al. 2017, FPN). What the fused stages
    of strides 8 and 4 see joins the pixels of the decoder, so that masks finer than the grid can be
    drawn; it is computed once an image, not once a prompt.

    Args:
        side: pixels of the square input, a multiple of 32.
        channels: C of the decoder.

    Attributes:
        early_channels: of the second stage's output.
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
        self.early_channels = last[1]
        fused = [channels // 4, channels // 2, channels, channels]  # channels at strides 4 to 32
        self.laterals = nn.ModuleList(
            nn.Sequential(Pointwise(width, inside), nn.GroupNorm(GROUPS, inside))
            for width, inside in zip(last, fused, strict=True)
        )
        self.fuse = nn.ModuleList(NanoBlock(inside) for inside in fused)
        self.descend = nn.ModuleList(
            Pointwise(above, inside) for inside, above in itertools.pairwise(fused)
        )
        self.finest = nn.Sequential(
            nn.Conv2d(last[1], channels, 2, stride=2), nn.GroupNorm(GROUPS, channels)
        )
        self.neck = LayerNorm2d(channels)
        self.doubled_once = Pointwise(fused[1], channels // 4)
        self.doubled_twice = Pointwise(fused[0], channels // 8)
        self.apply(_start)

    @property
    def early(self) -> nn.Module:
        """Return the layer whose output is an HQ-SAM's early features: the second stage."""
        return self.stages[1]

    @property
    def trunk(self) -> Sequence[nn.Module]:
        """Return the parts that are EfficientNet's."""
        return self.stem, self.stages

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, 4C, side / 16, side / 16) of images (B, 3, side, side).

        Sides may differ from the encoder's own, for training on small images.
        """
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        fused = [lateral(x) for lateral, x in zip(self.laterals, stages, strict=True)]
        fused[2] = fused[2] + self.finest(stages[1])
        fused[3] = self.fuse[3](fused[3])
        for n in (2, 1, 0):
            above = functional.interpolate(self.descend[n](fused[n + 1]), scale_factor=2.0)
            fused[n] = self.fuse[n](fused[n] + above)
        finer = nested(self.doubled_once(fused[1]), 1), nested(self.doubled_twice(fused[0]), 2)
        return torch.cat([self.neck(fused[2]), *finer], dim=1)


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
