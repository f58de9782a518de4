"""Samples of any shape and type, through readers, stores, views and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslkit.api import HasBoxes, HasEncoded, HasMasks, ImageReader, SampleSpec, ViewSpec
from sslkit.builtin.sources.scenes import Scenes
from sslkit.data.evaluation_images import augmented_pairs, evaluation_batches
from sslkit.data.examine import examine
from sslkit.data.part_reader import part_of
from sslkit.data.sample_views import SampleViews
from sslkit.data.splits import Splits
from sslkit.data.views import DecodedViews, ResidentViews, view_maker
from sslkit.errors import DataError, PluginError, RecipeError
from sslkit.nn.image import crop_resize
from sslkit.randomness import SampleRandom
from tests.data.loaders import train_loader
from tests.data.series import LENGTH, Waves, Windows, store


def batches(reader, augmentation, threads=0, **options):
    loader = train_loader(store(reader, **options), augmentation, 7, seed=5, num_threads=threads)
    return list(loader.epoch(1))


def test_views_of_series_are_what_the_augmentation_says_and_no_thread_changes_them():
    reader, windows = Waves(), Windows()
    expected = batches(reader, windows)
    assert len(expected) == 7
    for batch in expected:
        assert [tuple(view.shape) for view in batch.views] == [(7, 2, 16)] * 2
        assert torch.equal(batch.labels, batch.indices % 3)
        for row, index in enumerate(batch.indices.tolist()):
            start = int(batch.targets["start"][row])
            window = torch.from_numpy(reader.values[index, :, start : start + 16])
            factor = batch.views[0][row] / window
            torch.testing.assert_close(factor, factor[0, 0].expand(2, 16), rtol=1e-6, atol=0)
            assert 0.5 <= float(factor[0, 0]) <= 2.0
    for threads, resident in ((0, 0), (4, 0), (4, 1 << 30)):
        found = batches(reader, windows, threads, resident_bytes=resident)
        for batch, other in zip(expected, found, strict=True):
            assert all(map(torch.equal, batch.views, other.views))
            assert torch.equal(batch.targets["start"], other.targets["start"])


def test_tokens_have_no_axis_of_channels_and_stay_whole_numbers():
    reader = Waves("int64", tokens=True)
    (batch, *_) = batches(reader, Windows(scale=False))
    assert reader.sample.channels == 0
    assert batch.views[0].shape == (7, 16)
    assert batch.views[0].dtype == torch.int64
    index, start = int(batch.indices[2]), int(batch.targets["start"][2])
    assert batch.views[0][2].tolist() == reader.values[index, start : start + 16].tolist()


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_an_encoder_that_takes_samples_as_they_are_is_measured_on_whole_ones(resident_bytes):
    reader = Waves()
    found = list(evaluation_batches(store(reader, resident_bytes=resident_bytes), None, 16, "cpu"))
    assert [len(part) for part in found] == [16, 16, 16, 2]
    assert torch.equal(torch.cat(found), torch.from_numpy(reader.values))
    first, second = augmented_pairs(store(reader), Windows(), 9, 0, "cpu")
    assert first.shape == second.shape == (9, 2, 16)


def test_pixels_that_are_taken_whole_are_in_the_unit_interval(list_reader, photo):
    images = [photo(i, 24, 32) for i in range(5)]
    (whole,) = evaluation_batches(store(list_reader(images, None, (24, 32))), None, 5, "cpu")
    assert torch.equal(whole[3], torch.from_numpy(images[3]).permute(2, 0, 1) / 255.0)
    mixed = store(list_reader([photo(0), photo(1, 30, 30)]))
    with pytest.raises(DataError, match="3 x any x any uint8 and the backbone takes whole ones"):
        list(evaluation_batches(mixed, None, 5, "cpu"))


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_views_of_images_need_not_be_square(list_reader, photo, crop_augmentation, resident_bytes):
    images = [photo(i, 40, 48) for i in range(8)]
    augmentation = crop_augmentation(((12, 20), 16))
    (batch,) = batches(
        list_reader(images, None, (40, 48)), augmentation, resident_bytes=resident_bytes
    )[:1]
    assert [tuple(view.shape) for view in batch.views] == [(7, 3, 12, 20), (7, 3, 16, 16)]
    sizes = torch.tensor([[40, 48]]).expand(7, 2)
    random = type(batch.random)(5, "augment", 1, batch.indices)
    params = augmentation.draw(random, sizes)[0]
    crop = augmentation.geometry(0, params, sizes)
    pixels = torch.stack([torch.from_numpy(images[i]) for i in batch.indices]).permute(0, 3, 1, 2)
    for row in range(7):
        top, left, height, width = crop.box[row].long().tolist()
        part = pixels[row : row + 1, :, top : top + height, left : left + width] / 255.0
        resized = torch.nn.functional.interpolate(part, (12, 20), mode="bilinear", antialias=True)[
            0
        ]
        resized = resized.flip(-1) if crop.flip[row] else resized
        assert (batch.views[0][row] - resized).abs().max() <= 1 / 255 + 1e-6


def test_the_two_parts_of_an_augmentation_of_images_are_its_whole(crop_augmentation, photo):
    augmentation = crop_augmentation((16,), brightness=0.2)
    samples = torch.stack([torch.from_numpy(photo(i)) for i in range(4)]).permute(0, 3, 1, 2)
    random = torch.arange(4)
    sizes = torch.tensor([[40, 48]]).expand(4, 2)
    (params,) = augmentation.draw(SampleRandom(0, "x", 0, random), sizes)
    crop = augmentation.geometry(0, params, sizes)
    cropped = crop_resize(samples, crop.box, crop.flip, 16)
    expected = augmentation.photometric(0, cropped, params)
    assert torch.equal(augmentation.make(0, samples, params), expected)


def test_the_maker_follows_from_augmentation_and_store(list_reader, photo, crop_augmentation):
    images = list_reader([photo(i) for i in range(3)], None, (40, 48))
    device, whole = torch.device("cpu"), store(images)
    read = store(images, resident_bytes=0)
    assert isinstance(view_maker(whole, crop_augmentation(), device), ResidentViews)
    assert isinstance(view_maker(read, crop_augmentation(), device), DecodedViews)
    assert isinstance(view_maker(store(Waves()), Windows(), device), SampleViews)
    mixed = store(list_reader([photo(0), photo(1, 30, 30)]))
    with pytest.raises(DataError, match="Windows works on batches of one shape"):
        view_maker(mixed, Windows(), device)


def test_a_sample_that_is_not_as_announced_is_refused():
    for values, found in (
        (np.zeros((2, LENGTH + 1), np.float32), r"float32 \(2, 41\)"),
        (np.zeros((2, LENGTH), np.float64), r"float64 \(2, 40\)"),
    ):
        reader = Waves()
        reader.read = lambda index, values=values: values
        with pytest.raises(DataError, match=rf"sample 0 came as {found}; valid is 2 x 40 float32"):
            store(reader, resident_bytes=0).read(0)
    reader = Waves()
    reader.samples = reader.values.astype(np.float64)
    with pytest.raises(DataError, match="valid are 50 of 2 x 40 float32"):
        store(reader)


def test_one_array_of_all_samples_is_used_where_it_is():
    reader = Waves()
    reader.samples = reader.values
    assert store(reader).resident.data_ptr() == reader.values.ctypes.data


def test_samples_are_looked_for_in_the_other_split_by_their_bytes():
    train, test = Waves(), Waves(count=20)
    test.values = np.concatenate([train.values[7:9], -train.values[9:27]])
    (note,) = examine(Splits(store(train), store(test)))
    assert note.startswith("2 of 20 test images are also training images (sample 0 is sample 7)")


def test_samples_that_are_mostly_background_are_found_in_the_other_split():
    """The values that keys are made of are equal in most of them."""
    places = np.random.default_rng(0).permutation(1000)[:600]
    train, test = Waves(count=600), Waves(count=300)
    train.spec = test.spec = SampleSpec((1, 1000), "float32")
    train.values = np.zeros((600, 1, 1000), np.float32)
    train.values[np.arange(600), 0, places] = 1.0
    test.values = train.values[::-2].copy()
    with pytest.raises(RecipeError, match="300 of 300 test images are also training images"):
        examine(Splits(store(train), store(test)))
    test.values[::3] *= 2.0
    (note,) = examine(Splits(store(train), store(test)))
    assert note.startswith("200 of 300 test images are also training images (sample 1 is sample")


def test_parts_have_the_abilities_of_the_whole(list_reader, photo):
    scenes = Scenes(Scenes.Config(num_train=5)).open("train")
    part = part_of(scenes, np.array([3, 1]))
    assert isinstance(part, ImageReader)
    assert isinstance(part, HasMasks)
    assert isinstance(part, HasBoxes)
    assert not isinstance(part, HasEncoded)
    assert np.array_equal(part.mask(0), scenes.mask(3))
    assert np.array_equal(part.boxes(1).corners, scenes.boxes(1).corners)
    assert part.mask_classes == scenes.mask_classes
    plain = part_of(list_reader([photo(0)]))
    assert isinstance(plain, ImageReader)
    assert not isinstance(plain, (HasMasks, HasBoxes))
    series = part_of(Waves(), np.array([4]))
    assert not isinstance(series, ImageReader)
    assert series.sample == SampleSpec((2, LENGTH), "float32")
    assert np.array_equal(series.read(0), Waves().values[4])


def test_what_specs_say():
    image = SampleSpec((3, None, None))
    assert (str(image), image.channels, image.sides, image.is_image) == (
        "3 x any x any uint8",
        3,
        None,
        True,
    )
    tokens = SampleSpec((77,), "int64")
    assert (tokens.channels, tokens.sides, tokens.is_image) == (0, (77,), False)
    assert image.fits((3, 8, 9), "uint8")
    assert not image.fits((1, 8, 9), "uint8")
    assert not image.fits((3, 8, 9), "float32")
    assert ViewSpec(32).shape(3) == (3, 32, 32)
    assert ViewSpec((24, 32)).shape(1) == (1, 24, 32)
    assert ViewSpec((96,)).shape(2) == (2, 96)
    assert ViewSpec((64,), channels=0).shape(0) == (64,)
    assert [ViewSpec(32).is_square, ViewSpec((8, 8)).is_square, ViewSpec((8, 9)).is_square] == [
        True,
        True,
        False,
    ]
    with pytest.raises(PluginError, match="'float3' is no type of samples or views"):
        _ = SampleSpec((3,), "float3").torch_dtype
