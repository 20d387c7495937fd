"""Upscaling in which neighbouring positions of a prompt's image see each other.

In SAM's own each position becomes 4 x 4 pixels of a mask without a look at those beside it.
"""

from torch import Tensor, nn
from torch.nn import functional

KERNEL = 5
"""Side of what a block sees."""
BLOCKS = 2
"""Before each of the two doublings."""


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


def with_spatial_blocks(upscaling: nn.Sequential) -> nn.Sequential:
    """Return the upscaling of a mask decoder, its modules shared, with blocks before it doubles."""
    modules: list[nn.Module] = []
    for module in upscaling:
        if isinstance(module, nn.ConvTranspose2d):
            modules += [SpatialBlock(module.in_channels) for _ in range(BLOCKS)]
        modules.append(module)
    return nn.Sequential(*modules)
