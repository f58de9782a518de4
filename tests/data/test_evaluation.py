"""Evaluation batches and pairs of views."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from sslkit.api import Preprocess, ViewSpec
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import augmented_pairs, evaluation_batches
from sslkit.data.resize import resize
from sslkit.data.views import view_maker


def preprocess(size, resize, interpolation="bilinear"):
    return Preprocess(size, resize, interpolation, (0.5,) * 3, (0.2,) * 3)


def store_of(reader, num_threads=0, **options):
    return CachedSplit(reader, max_corrupt_fraction=0.1, seed=0, num_threads=num_threads, **options)


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_every_image_comes_once_and_in_order(list_reader, photo, resident_bytes, num_threads):
    images = [photo(i, 24, 24) for i in range(53)]
    store = store_of(
        list_reader(images, image_size=(24, 24)), num_threads, resident_bytes=resident_bytes
    )
    batches = list(evaluation_batches(store, preprocess(24, 24), 20, "cpu"))
    assert [len(batch) for batch in batches] == [20, 20, 13]
    together = torch.cat(batches)
    assert together.dtype == torch.float32
    expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255.0
    assert torch.allclose(together, expected, atol=1e-6)
    some = torch.tensor([52, 0, 7])
    (chosen,) = evaluation_batches(store, preprocess(24, 24), 20, "cpu", some)
    assert torch.allclose(chosen, expected[some], atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 80), (81, 50), (40, 40)])
@pytest.mark.parametrize("resident_bytes", [0, 2**30])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_centre_crop_equal_torchvision(
    list_reader, photo, shape, resident_bytes, interpolation
):
    images = [photo(i, *shape) for i in range(3)]
    store = store_of(list_reader(images, image_size=shape), resident_bytes=resident_bytes)
    how = preprocess(32, 37, interpolation)
    (batch,) = evaluation_batches(store, how, 8, "cpu")
    for image, result in zip(images, batch, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1) / 255.0
        mode = InterpolationMode(interpolation)
        resized = tv.resize(tensor, 37, mode, antialias=True).clamp(0, 1)
        expected = tv.center_crop(resized, [32, 32])
        assert float((result - expected).abs().max()) <= 1.005 / 255


def test_resize_below_the_crop_is_refused(list_reader, photo):
    store = store_of(list_reader([photo(0)]))
    with pytest.raises(ValueError, match="at least as large"):
        list(evaluation_batches(store, preprocess(32, 24), 8, "cpu"))


def test_pillow_agrees_on_photographs(photographs):
    """The order of operations that the field uses: Pillow, shorter side to 256, centre 224."""
    from sslkit.builtin.sources.image_folder import ImageFolder

    reader = ImageFolder(ImageFolder.Config(train=photographs)).open("train")
    store = store_of(reader)
    indices = torch.tensor([0, 50, 100, 150])
    (batch,) = evaluation_batches(store, preprocess(224, 256), 8, "cpu", indices)
    for index, result in zip(indices.tolist(), batch, strict=True):
        image = Image.open(reader.describe(index)).convert("RGB")
        image = tv.center_crop(tv.resize(image, 256, InterpolationMode.BILINEAR), [224, 224])
        difference = (result * 255 - torch.from_numpy(np.array(image)).permute(2, 0, 1)).abs()
        assert float(difference.max()) <= 2.0  # both round twice
        assert float(difference.mean()) <= 0.2


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_pairs_are_views_of_a_fixed_choice(list_reader, photo, crop_augmentation, resident_bytes):
    images = [photo(i, 24, 24) for i in range(60)]

    def pairs(num, seed=0):
        store = store_of(list_reader(images, image_size=(24, 24)), resident_bytes=resident_bytes)
        return augmented_pairs(store, crop_augmentation(), num, seed, "cpu")

    a, b = pairs(20)
    assert a.shape == b.shape == (20, 3, 16, 16)
    again = pairs(20)
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])
    assert not torch.equal(a, b)
    assert not torch.equal(a, pairs(20, seed=1)[0])
    assert len(pairs(1000)[0]) == 60


def test_pairs_are_the_first_two_global_views(list_reader, photo, crop_augmentation):
    augmentation = crop_augmentation((8, 16, 20))
    augmentation.specs = (ViewSpec(8, "local"), ViewSpec(16), ViewSpec(20))
    store = store_of(list_reader([photo(i) for i in range(4)]))
    a, b = augmented_pairs(store, augmentation, 4, 0, "cpu")
    assert (a.shape[-1], b.shape[-1]) == (16, 20)
    single = crop_augmentation((16,))
    a, b = augmented_pairs(store, single, 4, 0, "cpu")
    assert a.shape == b.shape
    assert not torch.equal(a, b)


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_pairs_do_not_depend_on_threads_or_on_whose_maker_it_is(
    list_reader, photo, crop_augmentation, resident_bytes
):
    images = [photo(i, 24, 24) for i in range(300)]
    reader = list_reader(images, image_size=(24, 24))
    expected = None
    for num_threads in (0, 3):
        store = store_of(reader, num_threads, resident_bytes=resident_bytes)
        augmentation = crop_augmentation((16,))  # one view, drawn twice
        maker = view_maker(store, augmentation, torch.device("cpu"))
        for given in (None, maker):
            pair = augmented_pairs(store, augmentation, 280, 0, "cpu", given)
            expected = expected or pair
            assert torch.equal(pair[0], expected[0])
            assert torch.equal(pair[1], expected[1])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_resized_channel_by_channel_to_the_same_bits(
    photo, monkeypatch, interpolation, channels
):
    """As floats, the largest image that is read would take 800 MB, in each thread."""
    image = torch.from_numpy(photo(0, 300, 411))[..., :channels].permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate
    taken = []

    def noted(given, **options):
        taken.append(given.shape[1])
        return resized(given, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", noted)
    for images in (image, image / 255.0):
        for size in ((64, 88), (224, 307)):
            monkeypatch.setattr("sslkit.data.resize._LARGE", 300 * 411)
            whole = resize(images, size, interpolation)
            taken.clear()
            monkeypatch.setattr("sslkit.data.resize._LARGE", 300 * 411 - 1)
            assert torch.equal(resize(images, size, interpolation), whole)
            is_small = images.dtype == torch.uint8 and interpolation == "bilinear"
            assert taken == ([channels] if is_small else [1] * channels)
