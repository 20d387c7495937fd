"""RepViT-SAM beside its forward pass written anew, on files with the official names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samrobust.errors import SegmenterError
from samrobust.evaluation.self_test import check_adapter
from samrobust.segmenters import ROWS, build_segmenter
from samrobust.segmenters.repvit_sam import (
    RepVitEncoder,
    build_repvit_sam,
    repvit_sam_model,
    with_timm_names,
)
from samrobust.segmenters.weights import State
from samrobust.types import SegmenterOptions

pytest.importorskip("timm")
STAGES = ((80, "1010100"), (160, "1010100"), (320, "10" * 17 + "0"), (640, "10"))
"""Width, and for each block that keeps the size whether it has squeeze and excitation."""


def blocks() -> Iterator[tuple[int, int, int, bool, bool]]:
    """Yield number, channels in and out, whether it halves, and has squeeze and excitation."""
    number, before = 0, 80
    for width, squeezes in STAGES:
        if width != 80:
            number += 1
            yield number, before, width, True, False
        for has_se in squeezes:
            number += 1
            yield number, width, width, False, has_se == "1"
        before = width


def convolution(name: str, out: int, into: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a convolution without bias and its batch normalisation."""
    statistics = ("weight", "bias", "running_mean", "running_var")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.c.weight": (out, into, kernel, kernel)}
    shapes |= {f"{name}.bn.{each}": (out,) for each in statistics}
    return {**shapes, f"{name}.bn.num_batches_tracked": ()}


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the official encoder, after its code."""
    shapes = convolution("features.0.0", 40, 3, 3) | convolution("features.0.2", 80, 40, 3)
    for number, before, width, halves, has_se in blocks():
        at = f"features.{number}"
        if halves:
            shapes |= convolution(f"{at}.token_mixer.0", before, 1, 3)
            shapes |= convolution(f"{at}.token_mixer.2", width, before, 1)
        else:
            shapes |= convolution(f"{at}.token_mixer.0.conv", width, 1, 3)
            shapes[f"{at}.token_mixer.0.conv1.weight"] = (width, 1, 1, 1)
            shapes[f"{at}.token_mixer.0.conv1.bias"] = (width,)
            bn = convolution(f"{at}.token_mixer.0", width, 1, 1)
            shapes |= {name: shape for name, shape in bn.items() if ".bn." in name}
        if has_se:
            reduced = max(8, int(width / 4 + 4) // 8 * 8)
            for layer, shape in (("fc1", (reduced, width)), ("fc2", (width, reduced))):
                shapes[f"{at}.token_mixer.1.{layer}.weight"] = (*shape, 1, 1)
                shapes[f"{at}.token_mixer.1.{layer}.bias"] = shape[:1]
        shapes |= convolution(f"{at}.channel_mixer.m.0", 2 * width, width, 1)
        shapes |= convolution(f"{at}.channel_mixer.m.2", width, 2 * width, 1)
    shapes |= {"neck.0.weight": (256, 640, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    for layer in ("neck.1", "neck.3"):
        shapes |= {f"{layer}.weight": (256,), f"{layer}.bias": (256,)}
    return shapes


@pytest.fixture(scope="module")
def state() -> State:
    """Return random weights of the official encoder that keep the scale of what passes through."""
    torch.manual_seed(0)
    made: State = {}
    for name, shape in official_shapes().items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(0)
        elif name.endswith(("running_var", "bn.weight", "neck.1.weight", "neck.3.weight")):
            made[name] = torch.rand(shape) * 0.4 + 0.8
        elif len(shape) == 4:
            made[name] = torch.randn(shape) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5 * 0.5
        else:
            made[name] = torch.randn(shape) * 0.1
    return made


def forward(state: State, x: Tensor) -> Tensor:
    """Return the features of images, as the official code computes them."""

    def normalised(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.bn.{each}"] for each in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias)

    def convolved(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.c.weight"]
        groups = 1 if weight.shape[1] > 1 or len(x[0]) == 1 else len(x[0])
        x = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        return normalised(name, x)

    def mixed(at: str, x: Tensor) -> Tensor:
        hidden = functional.gelu(convolved(f"{at}.channel_mixer.m.0", x))
        return x + convolved(f"{at}.channel_mixer.m.2", hidden)

    x = convolved("features.0.2", functional.gelu(convolved("features.0.0", x, 2)), 2)
    for number, before, width, halves, has_se in blocks():
        at = f"features.{number}"
        if halves:
            x = convolved(f"{at}.token_mixer.0", x, 1 if before == 320 else 2)
            x = mixed(at, convolved(f"{at}.token_mixer.2", x))
            continue
        mixer = f"{at}.token_mixer.0"
        one = functional.conv2d(
            x, state[f"{mixer}.conv1.weight"], state[f"{mixer}.conv1.bias"], groups=width
        )
        x = normalised(mixer, convolved(f"{mixer}.conv", x) + one + x)
        if has_se:
            gate = x.mean((2, 3), keepdim=True)
            for layer in ("fc1", "fc2"):
                name = f"{at}.token_mixer.1.{layer}"
                gate = functional.conv2d(gate, state[f"{name}.weight"], state[f"{name}.bias"])
                gate = gate.relu() if layer == "fc1" else gate.sigmoid()
            x = x * gate
        x = mixed(at, x)
    for convolution_name, norm, padding in (("neck.0", "neck.1", 0), ("neck.2", "neck.3", 1)):
        x = functional.conv2d(x, state[f"{convolution_name}.weight"], padding=padding)
        x = functional.layer_norm(
            x.movedim(1, 3), (256,), state[f"{norm}.weight"], state[f"{norm}.bias"], 1e-6
        ).movedim(3, 1)
    return x


@torch.inference_mode()
def test_the_encoder_is_the_official_one_with_other_names(state: State) -> None:
    encoder = RepVitEncoder().eval()
    named = with_timm_names({f"image_encoder.{name}": each for name, each in state.items()})
    encoder.load_state_dict({k.removeprefix("image_encoder."): v for k, v in named.items()})
    images = torch.randn(2, 3, 96, 64)
    found, wanted = encoder(images), forward(state, images)
    assert found.shape == (2, 256, 6, 4)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_an_official_file_is_loaded_strictly_and_segments(state: State, tmp_path: Path) -> None:
    model = repvit_sam_model()
    assert ROWS["repvit-sam"].n_parameters == sum(x.numel() for x in model.parameters())
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith("image_encoder.")}
    whole = rest | {f"image_encoder.{name}": each for name, each in state.items()}
    torch.save(whole, tmp_path / "repvit_sam.pt")
    segmenter = build_segmenter("repvit-sam", checkpoint=tmp_path / "repvit_sam.pt", device="cpu")
    check_adapter(segmenter, segmenter.info.prompts)
    assert segmenter.info.label == "repvit-sam"
    del whole["image_encoder.features.51.token_mixer.0.bn.bias"]
    torch.save(whole, tmp_path / "cut.pt")
    with pytest.raises(SegmenterError, match=r"cut\.pt: does not fit the model: 1 tensors"):
        build_repvit_sam(SegmenterOptions(checkpoint=tmp_path / "cut.pt"))
    with pytest.raises(SegmenterError, match="use --segmenter repvit-sam"):
        build_segmenter("sam", checkpoint=tmp_path / "repvit_sam.pt", device="cpu")
    with pytest.raises(SegmenterError, match=r"name its repvit_sam\.pt"):
        build_repvit_sam(SegmenterOptions())
