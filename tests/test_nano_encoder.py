import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samrobust.segmenters.nano_encoder import NanoEncoder, Pointwise, SameConv

CHANNELS = 32


def normalised(n: int, side: int) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder() -> NanoEncoder:
    torch.manual_seed(0)
    return NanoEncoder(256, CHANNELS).eval()


@pytest.mark.parametrize("side", [256, 128, 64])
def test_a_position_of_the_embedding_is_16_pixels_at_every_side(
    encoder: NanoEncoder, side: int
) -> None:
    with torch.inference_mode():
        features = encoder(normalised(2, side))
    assert features.shape == (2, 4 * CHANNELS, side // 16, side // 16)
    assert features.is_contiguous()


def test_finer_features_see_what_is_near(encoder: NanoEncoder) -> None:
    images = normalised(1, 128)
    changed = images.clone()
    changed[..., 64:68, 64:68] += 5
    with torch.inference_mode():
        change = (encoder(changed) - encoder(images)).abs()
    for channels in (slice(CHANNELS, 2 * CHANNELS), slice(2 * CHANNELS, None)):
        place = int(change[0, channels].amax(dim=0).argmax())
        assert divmod(place, 8) in {(3, 3), (3, 4), (4, 3), (4, 4)}


def test_no_image_changes_the_embedding_of_another(encoder: NanoEncoder) -> None:
    images = normalised(3, 64)
    with torch.inference_mode():
        features = encoder(images)
        images[1] = 1e3
        again = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(features[[0, 2]], again[[0, 2]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(features[1], again[1], atol=1e-2)
    torch.testing.assert_close(again, alone, rtol=1e-4, atol=1e-4)


def test_features_keep_their_size_through_an_untrained_trunk(encoder: NanoEncoder) -> None:
    with torch.inference_mode():
        x = encoder.stem(normalised(2, 128))
        for stage in encoder.stages:
            x = stage(x)
            assert 0.2 < x.std() < 5


def test_the_second_stage_is_the_early_feature(encoder: NanoEncoder) -> None:
    with torch.inference_mode():
        early = encoder.stages[1](encoder.stages[0](encoder.stem(normalised(1, 64))))
    assert early.shape == (1, encoder.early_channels, 8, 8)
    assert encoder.early_share == 8 / (64 / 16)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_what_is_odd_of_a_padding_is_at_the_end(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = SameConv(2, 4, kernel, stride=stride, groups=2)
    x = torch.randn(1, 2, 12, 20)
    missing = kernel - stride  # of an even side, as TensorFlow counts it
    first, last = missing // 2, missing - missing // 2
    padded = functional.pad(x, (first, last, first, last))
    wanted = functional.conv2d(padded, layer.weight, layer.bias, stride=stride, groups=2)
    assert wanted.shape[-2:] == (12 // stride, 20 // stride)
    torch.testing.assert_close(layer(x), wanted)


def test_a_pointwise_layer_is_a_convolution_of_one_pixel() -> None:
    torch.manual_seed(0)
    layer = Pointwise(5, 7)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(
        layer(x), functional.conv2d(x, layer.weight[..., None, None], layer.bias)
    )
