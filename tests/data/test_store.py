"""CachedSplit: residence, replacement of damaged images, retries."""

import json

import numpy as np
import pytest
import torch

from sslkit.data.cached_split import CachedSplit
from sslkit.errors import DataError

NO_WAIT = (0.0, 0.0, 0.0)


def store_of(reader, **options):
    settings = {"max_corrupt_fraction": 0.5, "seed": 0, "num_threads": 0, "retry_waits": NO_WAIT}
    return CachedSplit(reader, **{**settings, **options})


def test_images_of_one_size_become_resident(list_reader, photo):
    images = [photo(i) for i in range(300)]
    store = store_of(list_reader(images, image_size=(40, 48)), num_threads=3)
    assert store.resident.shape == (300, 3, 40, 48)
    assert store.resident.dtype == torch.uint8
    assert all(
        np.array_equal(store.resident[i].permute(1, 2, 0), image) for i, image in enumerate(images)
    )


def test_sets_above_the_limit_and_of_several_sizes_stay_outside(list_reader, photo):
    images = [photo(i) for i in range(4)]
    limit = 4 * 3 * 40 * 48
    assert (
        store_of(list_reader(images, image_size=(40, 48)), resident_bytes=limit).resident
        is not None
    )
    assert (
        store_of(list_reader(images, image_size=(40, 48)), resident_bytes=limit - 1).resident
        is None
    )
    store = store_of(list_reader([photo(0, 30, 30), photo(1, 20, 50)]))
    assert store.resident is None
    assert store.read(1).shape == (3, 20, 50)


def test_one_odd_size_that_the_reader_missed_ends_residence(list_reader, photo):
    store = store_of(list_reader([photo(0), photo(1), photo(2, 8, 8)], image_size=(40, 48)))
    assert store.resident is None
    assert store.image_size is None
    assert store.read(2).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(40, 48), None])
def test_replacement_is_readable_truthful_and_independent_of_order(list_reader, photo, size):
    images = [photo(i) for i in range(40)]
    for bad in (3, 4, 17):
        images[bad] = "truncated"
    labels = [i % 5 for i in range(40)]

    def contents(order, **options):
        store = store_of(list_reader(images, labels, image_size=size), **options)
        read = {index: store.read(index).clone() for index in order}
        return store, read

    first, forwards = contents(range(40))
    second, backwards = contents(reversed(range(40)), num_threads=4)
    assert set(first.corrupt) == set(second.corrupt) == {3, 4, 17}
    assert all(torch.equal(forwards[i], backwards[i]) for i in range(40))
    assert torch.equal(first.labels, second.labels)
    for bad in (3, 4, 17):
        sources = [
            i
            for i, image in enumerate(images)
            if not isinstance(image, str) and np.array_equal(forwards[bad].permute(1, 2, 0), image)
        ]
        assert len(sources) == 1
        assert first.labels[bad] == labels[sources[0]]
    other_seed, _ = contents(range(40), seed=1)
    chosen = [entry["replaced_by"] for entry in first.report()["unreadable"]]
    assert chosen != [entry["replaced_by"] for entry in other_seed.report()["unreadable"]]


def test_report_lists_what_was_replaced(list_reader, photo):
    images = [photo(0), "not an image file of a known format", photo(2)]
    store = store_of(list_reader(images))
    assert store.report()["unreadable"] == []
    store.read(1)
    written = json.loads(json.dumps(store.report()))
    assert written["num_images"] == 3
    assert written["num_unreadable"] == 1
    (entry,) = written["unreadable"]
    assert entry["image"] == "picture-1"
    assert entry["reason"] == "not an image file of a known format"
    assert entry["replaced_by"] in (0, 2)


def test_too_many_unreadable_images_stop_with_names_and_field(list_reader, photo):
    images = ["truncated" if i % 2 else photo(i) for i in range(20)]
    store = store_of(list_reader(images), max_corrupt_fraction=0.1)
    with pytest.raises(DataError) as caught:
        list(map(store.read, range(20)))
    assert len(store.corrupt) == 3
    text = str(caught.value)
    assert "\n" not in text
    assert "picture-1 (truncated)" in text
    assert "max_corrupt_fraction" in text
    assert caught.value.exit_code == 1


def test_nothing_readable_at_all_ends(list_reader):
    store = store_of(list_reader(["zero bytes"] * 5), max_corrupt_fraction=1.0)
    with pytest.raises(DataError, match="not one of the 5 images is readable"):
        store.read(0)


def test_empty_set_is_refused(list_reader):
    with pytest.raises(DataError, match="no images"):
        store_of(list_reader([]))


def test_passing_fault_is_retried_and_not_counted(list_reader, photo):
    reader = list_reader([photo(0), 2])
    store = store_of(reader)
    assert torch.equal(store.read(1), store.read(0))
    assert store.corrupt == {}
    assert reader.failures[1] == 0


def test_lasting_fault_stops_after_the_retries(list_reader, photo):
    reader = list_reader([photo(0), 1000])
    store = store_of(reader)
    with pytest.raises(
        DataError, match=r"picture-1: .*Input/output error; tried 4 times"
    ) as caught:
        store.read(1)
    assert reader.reads == 4
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="picture-1"):
        store_of(list_reader([photo(0), 1000], image_size=(40, 48)), num_threads=2)


def test_reader_that_breaks_its_promise_is_named(list_reader, photo):
    with pytest.raises(DataError, match=r"valid is uint8 \(height, width, 3\)"):
        store_of(list_reader([photo(0, channels=1)])).read(0)


def test_labels_of_another_length_are_refused(list_reader, photo):
    with pytest.raises(DataError, match="3 labels for 2 images"):
        store_of(list_reader([photo(0), photo(1)], [0, 1, 2]))


def test_num_classes_without_names(list_reader, photo):
    reader = list_reader([photo(0)], [0])
    assert store_of(reader).num_classes == 1
    assert store_of(list_reader([photo(0)])).num_classes is None
    assert store_of(list_reader([photo(0)])).labels is None


def test_images_that_are_views_turned_round(list_reader, photo):
    images = [photo(0)[::-1], photo(1)[:, ::-1], photo(2)[:1][::-1], photo(3, 9, 7)]
    store = CachedSplit(list_reader(images), max_corrupt_fraction=0.0, seed=0, num_threads=0)
    for index, image in enumerate(images):
        assert np.array_equal(store.read(index).permute(1, 2, 0).numpy(), image)
