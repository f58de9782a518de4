"""The augmentation as a whole: recipes, validation, distributions, keys, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from sslkit.api import Params, RunFacts, ViewSpec
from sslkit.builtin.augmentations import SimCLRAugmentation, SimCLRConfig
from sslkit.nn.image import crop_resize
from sslkit.randomness import SampleRandom

RECIPES = yaml.safe_load((Path(__file__).parent / "recipes.yaml").read_text())
EVERYTHING = {"rotation_degrees": 25, "rotation_probability": 0.6, "solarize_probability": 0.3}


def config_for(**fields: Any) -> SimCLRConfig:
    return SimCLRConfig.model_validate({"size": 32, **fields})


def recipe(name: str) -> SimCLRConfig:
    fields = {key: value for key, value in RECIPES[name].items() if key != "name"}
    return SimCLRConfig.model_validate(fields)


def facts_for(channels: int, size: int = 32) -> RunFacts:
    return RunFacts(1000, channels, (size, size), None, 10, 100, 1000)


def random_for(indices: Tensor) -> SampleRandom:
    return SampleRandom(0, "augment", 3, indices)


def draw(config: SimCLRConfig, count: int, side: int = 32) -> list[Params]:
    sizes = torch.full((count, 2), side)
    return SimCLRAugmentation(config).draw(random_for(torch.arange(count)), sizes)


def views_of(config: SimCLRConfig, images: Tensor, indices: Tensor) -> list[Tensor]:
    """All views, made as the loader makes them. images: (B, C, H, W) uint8."""
    augmentation = SimCLRAugmentation(config)
    sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
    views = []
    for view, params in enumerate(augmentation.draw(random_for(indices), sizes)):
        crop = augmentation.geometry(view, params, sizes)
        cropped = crop_resize(images, crop.box, crop.flip, crop.size, crop.interpolation)
        views.append(augmentation.photometric(view, cropped, params))
    return views


# --- Recipes and validation -----------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_round_trip_and_run(name, small_images):
    config = recipe(name)
    assert SimCLRConfig.model_validate(config.model_dump(mode="json")) == config
    assert list(SimCLRAugmentation.problems(config, facts_for(3))) == []
    views = views_of(config, small_images[:2], torch.arange(2))
    for spec, view in zip(SimCLRAugmentation(config).views, views, strict=True):
        assert view.shape == (2, 3, spec.size, spec.size)
        assert 0.0 <= view.min() <= view.max() <= 1.0


def test_views_of_recipes():
    two = (ViewSpec(224), ViewSpec(224))
    assert SimCLRAugmentation(recipe("byol")).views == two
    assert SimCLRAugmentation(recipe("mae")).views == two[:1]
    assert SimCLRAugmentation(recipe("swav")).views == (*two, *[ViewSpec(96, "local")] * 6)
    assert SimCLRAugmentation(recipe("dino")).views == (*two, *[ViewSpec(96, "local")] * 8)
    assert recipe("dino").num_views == 10
    assert SimCLRConfig(size=32, views=({"count": 3},)).num_views == 3


def test_published_settings():
    """The effective numbers of the published recipes."""
    (simclr,), (cifar,) = recipe("simclr_imagenet").blocks(), recipe("simclr_cifar").blocks()
    assert simclr.strengths == {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    assert (simclr.blur_kernel_size, simclr.blur_rate, simclr.blur_sigma) == (23, 0.5, (0.1, 2.0))
    assert cifar.strengths == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    assert cifar.blur_rate == 0.0
    first, second = recipe("byol").blocks()
    assert (first.blur_rate, first.solarize_probability) == (1.0, 0.0)
    assert (second.blur_rate, second.solarize_probability) == (0.1, 0.2)
    assert first.strengths == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    assert recipe("dino").blocks()[2].blur_kernel_size == 9  # 10 % of 96 px


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"siez": 3}, "siez"),
        ({"size": 0}, "size"),
        (
            {"crop_scale": [0.5, 0.1]},
            "crop_scale: Value error, [0.5, 0.1] is no range: set 0 < low <= high <= 1",
        ),
        ({"crop_scale": [0.0, 1.0]}, "crop_scale"),
        ({"crop_scale": [0.5, 1.5]}, "crop_scale"),
        ({"crop_scale": [0.5]}, "crop_scale"),
        ({"crop_ratio": [0, 1]}, "crop_ratio"),
        ({"blur_sigma": [2.0, 0.1]}, "blur_sigma"),
        ({"blur_kernel": 4}, "blur_kernel: 4 is even"),
        ({"flip": 1.1}, "flip"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"jitter_strength": -1}, "jitter_strength"),
        ({"hue": 0.4, "jitter_strength": 2}, "hue: 0.8 after jitter_strength"),
        ({"views": [{}, {"hue": 0.6}]}, "views.1.hue: 0.6 after jitter_strength"),
        ({"views": []}, "views"),
        ({"views": [{"num_views": 2}]}, "views.0.num_views"),
        ({"views": [{"count": 0}]}, "views.0.count"),
        ({"views": [3]}, "views.0"),
        ({"views": [{"blur_kernel": 2}]}, "blur_kernel: 2 is even"),
        ({"views": [{}, {}], "num_views": 3}, "num_views: 3, but `views` makes 2"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(ValidationError) as error:
        config_for(**fields)
    places = [".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.value.errors()]
    assert any(message in place for place in places), places


def test_size_is_required():
    with pytest.raises(ValidationError, match="size"):
        SimCLRConfig.model_validate({})


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_operations_need_rgb(channels):
    found = dict(SimCLRAugmentation.problems(config_for(blur=False), facts_for(channels)))
    assert list(found) == ["saturation", "hue", "grayscale_probability"]
    assert found["hue"] == f"needs RGB images and these have {channels} channel(s): set hue: 0"
    per_view = config_for(hue=0, saturation=0, grayscale_probability=0, views=[{}, {"hue": 0.1}])
    found = dict(SimCLRAugmentation.problems(per_view, facts_for(channels)))
    assert list(found) == ["views.1.hue"]
    no_jitter = config_for(jitter_probability=0, grayscale_probability=0)
    assert list(SimCLRAugmentation.problems(no_jitter, facts_for(channels))) == []
    assert list(SimCLRAugmentation.problems(recipe("digits"), facts_for(channels))) == []


def test_problems_name_the_field_as_it_stands_in_the_recipe():
    """A setting of the top level is reported once and there, however many views share it."""
    config = config_for(views=[{}, {}, {"grayscale_probability": 0.5}])
    found = [path for path, _ in SimCLRAugmentation.problems(config, facts_for(1))]
    assert found == ["saturation", "hue", "grayscale_probability", "views.2.grayscale_probability"]


def test_blur_kernel_must_fit():
    (problem,) = SimCLRAugmentation.problems(config_for(size=8, blur_kernel=17), facts_for(3))
    assert problem[0] == "blur_kernel"
    assert "at most 15" in problem[1]
    fits = config_for(size=8, blur_kernel=15)
    assert list(SimCLRAugmentation.problems(fits, facts_for(3))) == []
    views_of(fits, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2))


# --- Distributions --------------------------------------------------------------------------------


def assert_rate(happened: Tensor, probability: float) -> None:
    spread = 4 * (probability * (1 - probability) / len(happened)) ** 0.5
    assert abs(happened.float().mean().item() - probability) <= spread


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert low <= values.min() < low + 0.002 * (high - low)
    assert high - 0.002 * (high - low) < values.max() <= high
    counts = torch.histc((values - low) / (high - low), bins=20, min=0, max=1)
    expected = len(values) / 20
    assert ((counts - expected).square() / expected).sum() < 52  # chi-square, 19 dof, p = 1e-4


def test_probabilities_and_ranges():
    config = config_for(jitter_strength=0.5, **EVERYTHING)
    for params in draw(config, 10000):
        assert_rate(params["flip"], 0.5)
        assert_rate(params["jitter"], 0.8)
        assert_rate(params["grayscale"], 0.2)
        assert_rate(params["blur"], 0.5)
        assert_rate(params["solarize"], 0.3)
        assert_rate(params["rotate"], 0.6)
        assert_uniform(params["brightness"], 0.6, 1.4)
        assert_uniform(params["contrast"], 0.6, 1.4)
        assert_uniform(params["saturation"], 0.6, 1.4)
        assert_uniform(params["hue"], -0.1, 0.1)
        assert_uniform(params["sigma"], 0.1, 2.0)
        assert_uniform(params["degrees"], -25, 25)


def test_factors_are_never_negative():
    params = draw(config_for(brightness=1.5), 10000)[0]
    assert_uniform(params["brightness"], 0.0, 2.5)


def test_orders_are_uniform():
    order = draw(config_for(), 10000)[0]["jitter_order"]
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(10000, 4))
    codes = (order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    expected = 10000 / 24
    assert ((counts - expected).square() / expected).sum() < 59  # chi-square, 23 dof, p = 5e-5


def test_operations_and_views_draw_independently():
    first, second = draw(config_for(**EVERYTHING), 10000)
    scalars = [value.float() for value in first.values() if value.dim() == 1]
    scalars += [second["flip"].float(), second["hue"], second["brightness"]]
    scalars += [first["jitter_order"][:, 0].float(), first["box"][:, 0]]
    correlation = torch.corrcoef(torch.stack(scalars)) - torch.eye(len(scalars))
    assert correlation.abs().max() < 0.045  # 4.5 standard errors


def test_a_setting_does_not_shift_other_draws():
    plain = draw(config_for(blur=False, jitter_probability=0, grayscale_probability=0), 50)
    full = draw(config_for(**EVERYTHING), 50)
    third = draw(config_for(num_views=3), 50)
    assert len(plain[0]) < len(full[0])
    for view in range(2):
        for name, value in plain[view].items():
            assert torch.equal(value, full[view][name])
        for name, value in third[view].items():
            assert torch.equal(value, full[view][name])


# --- Samples and batches --------------------------------------------------------------------------


def test_each_sample_has_its_own_parameters(small_images):
    same = small_images[20:21].expand(20, -1, -1, -1)
    for view in views_of(config_for(), same, torch.arange(20)):
        assert len(view.flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [32, 33])
def test_a_sample_does_not_depend_on_its_batch(small_images, size, threads):
    """Same bits alone, in another place, and in a batch of another size."""
    torch.set_num_threads(threads)
    config, indices = config_for(size=size, **EVERYTHING), torch.arange(100, 124)
    whole = views_of(config, small_images, indices)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:17]
    shuffled = views_of(config, small_images[order], indices[order])
    for view in range(2):
        assert torch.equal(shuffled[view], whole[view][order])
    for row in range(0, 24, 5):
        alone = views_of(config, small_images[row : row + 1], indices[row : row + 1])
        for view in range(2):
            assert torch.equal(alone[view][0], whole[view][row])


def test_large_samples_do_not_depend_on_their_batch(large_images):
    config, indices = config_for(size=224, num_views=1, **EVERYTHING), torch.arange(4)
    (whole,) = views_of(config, large_images, indices)
    (alone,) = views_of(config, large_images[2:3], indices[2:3])
    assert torch.equal(alone[0], whole[2])


def test_epochs_differ(small_images):
    augmentation, sizes = SimCLRAugmentation(config_for()), torch.full((24, 2), 32)
    boxes = [
        augmentation.draw(SampleRandom(0, "augment", epoch, torch.arange(24)), sizes)[0]["box"]
        for epoch in (0, 1)
    ]
    assert not torch.equal(*boxes)


OFF = {"jitter_probability": 0, "grayscale_probability": 0, "blur": False, "flip": 0}


def test_probability_zero_changes_nothing(small_images):
    config = config_for(**OFF, crop_scale=[1, 1], crop_ratio=[1, 1], rotation_degrees=0)
    for view in views_of(config, small_images, torch.arange(24)):
        assert torch.equal((view * 255).round().to(torch.uint8), small_images)
    augmentation = SimCLRAugmentation(config)
    images = torch.rand(24, 3, 32, 32)
    params = draw(config, 24)[0]
    assert torch.equal(augmentation.photometric(0, images, params), images)
    never = {"rotation_degrees": 30, "rotation_probability": 0, "blur": True, "blur_probability": 0}
    assert draw(config_for(**{**OFF, **never}), 24)[0].keys() == params.keys()


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        ("jitter", {"jitter_probability": 0.5}),
        ("grayscale", {"grayscale_probability": 0.5}),
        ("blur", {"blur": True, "blur_probability": 0.5}),
        ("solarize", {"solarize_probability": 0.5}),
        ("rotate", {"rotation_degrees": 30, "rotation_probability": 0.5}),
    ],
)
def test_each_operation_touches_its_samples_alone(small_images, mask, fields):
    config = config_for(**{**OFF, **fields})
    images, params = small_images.float() / 255, draw(config, 24)[0]
    before = images.clone()
    changed = SimCLRAugmentation(config).photometric(0, images, params)
    assert torch.equal(images, before)
    assert torch.equal(changed[~params[mask]], images[~params[mask]])
    assert (changed != images).flatten(1).any(dim=1)[params[mask]].all()
    assert 5 < params[mask].sum() < 20


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_are_not_rgb(channels):
    config = config_for(hue=0, saturation=0, grayscale_probability=0, **EVERYTHING)
    assert list(SimCLRAugmentation.problems(config, facts_for(channels))) == []
    images = torch.randint(0, 256, (6, channels, 28, 28), dtype=torch.uint8)
    for view in views_of(config, images, torch.arange(6)):
        assert view.shape == (6, channels, 32, 32)
        assert 0.0 <= view.min() <= view.max() <= 1.0


# --- Parity with torchvision ----------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224])
def test_whole_augmentation_equals_torchvision(
    size, interpolation, small_images, large_images, replay
):
    images = small_images.repeat(3, 1, 1, 1) if size == 32 else large_images
    config = config_for(size=size, interpolation=interpolation, num_views=1, **EVERYTHING)
    (ours,) = views_of(config, images, torch.arange(len(images)))
    params = draw(config, len(images), images.shape[-1])[0]
    for row, image in enumerate(images):
        expected = replay(config, image.float() / 255, params, row)
        assert (ours[row] - expected).abs().max() <= 1 / 255, row


def test_whole_augmentation_on_real_photographs(imagenet_images, replay):
    config = config_for(size=224, num_views=1, **EVERYTHING)
    (ours,) = views_of(config, imagenet_images, torch.arange(len(imagenet_images)))
    params = draw(config, len(imagenet_images), 256)[0]
    for row, image in enumerate(imagenet_images):
        assert (ours[row] - replay(config, image.float() / 255, params, row)).abs().max() <= 1 / 255
