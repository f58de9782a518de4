"""TrainLoader: the same batches for any number of threads, from any step, resident or not."""

import threading

import numpy as np
import pytest
import torch

from sslkit.data import views
from sslkit.data.cached_split import CachedSplit
from sslkit.data.views import view_maker
from sslkit.errors import DataError, RecipeError
from sslkit.randomness import Order, SampleRandom
from tests.data.loaders import train_loader


def loader_of(reader, augmentation, num_threads=0, batch_size=8, **options):
    store = CachedSplit(
        reader, max_corrupt_fraction=0.2, seed=0, num_threads=2, retry_waits=(0.0,), **options
    )
    return train_loader(store, augmentation, batch_size, seed=0, num_threads=num_threads)


@pytest.fixture
def mixed(list_reader, photo):
    """A function that makes a reader of 50 images of several sizes, one of them damaged."""

    def make():
        images = [photo(i, 30 + i % 7, 60 - i % 11) for i in range(50)]
        images[11] = "truncated"
        return list_reader(images, [i % 3 for i in range(50)])

    return make


@pytest.fixture
def fixed(list_reader, photo):
    def make(size=(40, 48), channels=3):
        images = [photo(i, channels=channels) for i in range(50)]
        return list_reader(images, [i % 3 for i in range(50)], size, channels)

    return make


def assert_equal_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert len(a.views) == len(b.views) == 2
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        assert torch.equal(a.targets["flipped"], b.targets["flipped"])
        assert torch.equal(a.random.uniform("x", 3), b.random.uniform("x", 3))


@pytest.mark.parametrize("kind", ["mixed", "fixed"])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_any_number_of_threads_gives_the_same_bits(kind, num_threads, request, crop_augmentation):
    make = request.getfixturevalue(kind)
    augmentation = crop_augmentation((16, 24), brightness=0.2)
    alone = loader_of(make(), augmentation, 0, batch_size=40)
    threaded = loader_of(make(), augmentation, num_threads, batch_size=40)
    for epoch in (0, 3):
        assert_equal_batches(alone.epoch(epoch), threaded.epoch(epoch))


@pytest.mark.parametrize("kind", ["mixed", "fixed"])
def test_an_epoch_can_be_entered_at_any_step(kind, request, crop_augmentation):
    make = request.getfixturevalue(kind)
    whole = list(loader_of(make(), crop_augmentation(), 2).epoch(1))
    assert len(whole) == 6
    tail = loader_of(make(), crop_augmentation(), 2).epoch(1, start_step=4)
    assert_equal_batches(whole[4:], tail)
    assert list(loader_of(make(), crop_augmentation(), 2).epoch(1, start_step=6)) == []


def test_batches_follow_the_keyed_order_and_leave_out_the_last_part(fixed, crop_augmentation):
    loader = loader_of(fixed(), crop_augmentation())
    assert loader.steps_per_epoch == 6
    batches = list(loader.epoch(2))
    order = Order(0, 2, 50)[:]
    assert torch.equal(torch.cat([batch.indices for batch in batches]), order[:48])
    assert torch.equal(batches[0].labels, order[:8] % 3)
    view = batches[0].views[0]
    assert view.shape == (8, 3, 16, 16)
    assert view.dtype == torch.float32
    assert 0.0 <= float(view.min()) <= float(view.max()) <= 1.0
    assert not torch.equal(batches[0].views[0], batches[0].views[1])


def test_a_view_belongs_to_the_sample_and_not_to_its_place(fixed, crop_augmentation):
    small = loader_of(fixed(), crop_augmentation(), batch_size=5)
    large = loader_of(fixed(), crop_augmentation(), batch_size=50)
    views = {int(i): v for b in small.epoch(0) for i, v in zip(b.indices, b.views[1], strict=True)}
    (batch,) = large.epoch(0)
    for index, view in zip(batch.indices.tolist(), batch.views[1], strict=True):
        assert torch.allclose(views[index], view, atol=1e-6)


def test_images_gathered_by_threads_give_the_same_bits(fixed, crop_augmentation, monkeypatch):
    """As for a GPU whose memory the images do not fit into: several chunks to a batch."""
    plain = loader_of(fixed(), crop_augmentation(), batch_size=20)
    gathered = loader_of(fixed(), crop_augmentation(), batch_size=20, num_threads=3)
    monkeypatch.setattr("sslkit.data.views._GATHER_CHUNK", 8)
    gathered._maker._gathered_by_threads = gathered._maker.threaded = True
    assert_equal_batches(plain.epoch(0), gathered.epoch(0))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resident_and_decoded_views_agree(fixed, crop_augmentation, interpolation, channels):
    augmentation = crop_augmentation((16, 56), interpolation)
    resident = loader_of(fixed(channels=channels), augmentation)
    decoded = loader_of(fixed(channels=channels), augmentation, 2, resident_bytes=0)
    assert resident.store.resident is not None
    assert decoded.store.resident is None
    for a, b in zip(resident.epoch(0), decoded.epoch(0), strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            # Both passes of the uint8 resize round, so the worst case of bilinear is 1.004 / 255;
            # bicubic is clamped after the first pass too, which shows beside hard edges.
            difference = (x - y).abs()
            clamped = difference > 1.005 / 255
            assert float(difference.mean()) <= 0.5 / 255
            assert float(difference.max()) <= (1.005 if interpolation == "bilinear" else 20) / 255
            assert float(clamped.float().mean()) <= 0.01


def test_labels_of_replaced_images_are_those_of_their_stand_ins(mixed, crop_augmentation):
    loader = loader_of(mixed(), crop_augmentation(), 2, batch_size=50)
    (batch,) = loader.epoch(0)
    (entry,) = loader.store.report()["unreadable"]
    place = int((batch.indices == 11).nonzero())
    assert entry["index"] == 11
    assert int(batch.labels[place]) == entry["replaced_by"] % 3


def test_images_of_a_single_pixel_train(list_reader, photo, crop_augmentation):
    images = [None, photo(1, 1, 30), photo(2, 30, 1), photo(3, 2, 3)]
    images[0] = np.full((1, 1, 3), 51, np.uint8)
    (batch,) = loader_of(list_reader(images), crop_augmentation(), 2, batch_size=4).epoch(0)
    place = int((batch.indices == 0).nonzero())
    assert torch.allclose(batch.views[0][place], torch.tensor(0.2))


def test_unlabelled_data_trains(list_reader, photo, crop_augmentation):
    loader = loader_of(list_reader([photo(i) for i in range(20)]), crop_augmentation(), 1)
    assert all(batch.labels is None for batch in loader.epoch(0))


def test_lasting_fault_reaches_the_consumer_and_threads_end(list_reader, photo, crop_augmentation):
    images = [photo(i) for i in range(64)]
    images[40] = 10**6
    loader = loader_of(list_reader(images), crop_augmentation(), 3)
    with pytest.raises(DataError, match="picture-40"):
        list(loader.epoch(0))
    assert not [t for t in threading.enumerate() if t.name.startswith("sslkit-data")]


def test_leaving_an_epoch_early_ends_its_threads(mixed, crop_augmentation):
    loader = loader_of(mixed(), crop_augmentation(), 3)
    for batch in loader.epoch(0):
        assert len(batch) == 8
        break
    del batch
    assert not [t for t in threading.enumerate() if t.name.startswith("sslkit-data")]
    assert loader.wait_s > 0.0


def test_batch_larger_than_the_set_is_refused(fixed, crop_augmentation):
    with pytest.raises(RecipeError, match=r"train.batch_size: 51 is more than the 50"):
        loader_of(fixed(), crop_augmentation(), batch_size=51)


def test_decoded_views_do_not_depend_on_torch_threads(list_reader, photo, request):
    """Loader threads work alone, and so does the training thread in their place: torch splits the
    mean of a grey image among its threads, which changes the last bits."""
    from sslkit.builtin.augmentations import SimCLRAugmentation, SimCLRConfig

    off = {"saturation": 0.0, "hue": 0.0, "grayscale_probability": 0.0}
    augmentation = SimCLRAugmentation(SimCLRConfig(size=512, blur=False, **off))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    request.addfinalizer(lambda: torch.set_num_threads(before))

    def views(num_threads):
        reader = list_reader([photo(i, 40 + i, 50, channels=1) for i in range(4)], None, None, 1)
        (batch,) = loader_of(reader, augmentation, num_threads, batch_size=4).epoch(0)
        return batch.views

    assert all(torch.equal(x, y) for x, y in zip(views(0), views(3), strict=True))
    assert torch.get_num_threads() == 4


def test_large_images_are_held_few_at_a_time(list_reader, crop_augmentation, photo, monkeypatch):
    """The views are the same to the bit, and so is what was drawn."""
    images = [photo(i, 200 + i, 300) for i in range(32)]
    store = CachedSplit(list_reader(images), max_corrupt_fraction=0.0, seed=0, num_threads=0)
    made = []
    for held in (views._HELD_BYTES, 1_000_000):
        monkeypatch.setattr(views, "_HELD_BYTES", held)
        maker = view_maker(store, crop_augmentation(brightness=0.3), torch.device("cpu"))
        portions = [len(found) for _, found in maker._portions(torch.arange(32))]
        assert sum(portions) == 32
        assert (max(portions) <= 6) == (held == 1_000_000)
        made.append(maker.make(SampleRandom(0, "augment", 0, torch.arange(32))))
    assert all(map(torch.equal, made[0].images, made[1].images))
    assert torch.equal(made[0].targets["flipped"], made[1].targets["flipped"])
