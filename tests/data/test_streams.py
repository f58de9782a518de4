"""A stream is read from front to back, goes on from epoch to epoch, and is the same to the bit
for any number of threads and after a resume."""

from __future__ import annotations

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import calibration_rows
from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import StreamSampler
from sslkit.data.splits import Splits, with_classes
from sslkit.data.stream_passes import StreamPasses
from sslkit.data.views import view_maker
from sslkit.engine.display import Silent
from sslkit.errors import DataError, RecipeError
from sslkit.recipe import load_recipe
from sslkit.runs.state import read_state
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start
from tests.data.streams import Numbers

PLAIN = ["evaluate=[]", "train.epochs=2", "train.checkpoint_every_epochs=9"]


@pytest.fixture
def streamed(tiny, monkeypatch):
    """The tiny recipe, whose training images come as a stream."""
    monkeypatch.setattr(
        Synthetic, "open", lambda self, split: Numbers(shuffle=8) if split == "train" else None
    )
    return str(tiny)


def number(image):
    """What `Numbers` wrote into an image (H, W, C)."""
    return int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])


def store(reader, **options):
    given = {"max_corrupt_fraction": 0.2, "seed": 0, "num_threads": 1, "retry_waits": (0.0,)}
    return CachedSplit(reader, **{**given, **options})


def batches(sampler, epochs):
    return [sampler.batch(e, s) for e in range(epochs) for s in range(sampler.steps_per_epoch)]


def test_an_epoch_goes_on_where_the_last_one_ended():
    sampler = StreamSampler(20, 8, seed=0, shuffle=1)  # 2 steps; the other 4 come next
    assert torch.equal(torch.cat(batches(sampler, 3)), torch.arange(48))


def test_groups_are_shuffled_each_by_itself():
    positions = torch.cat(batches(StreamSampler(20, 10, seed=1, shuffle=8), 4))
    groups = [set(range(first, first + 8)) for first in range(0, 80, 8)]
    assert [set(part.tolist()) for part in positions.split(8)] == groups
    orders = [(part % 8).tolist() for part in positions.split(8)]
    assert all(one != other for one, other in pairwise(orders))


def test_positions_are_read_in_one_pass_by_many_threads():
    reader = Numbers(shuffle=64)
    passes = StreamPasses(reader)
    wanted = torch.cat(batches(StreamSampler(640, 32, seed=2, shuffle=64), 2)).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert [number(image) for image in pool.map(passes.read, wanted)] == wanted
    assert reader.opened == [0]
    assert reader.taken == len(wanted)


def test_what_is_read_does_not_depend_on_the_order():
    reader = Numbers(shuffle=16)
    passes = StreamPasses(reader)
    chosen = random.Random(0)
    wanted = [chosen.randrange(60_000) for _ in range(50)] + [3, 3, 2, 1, 0]
    assert [number(passes.read(position)) for position in wanted] == wanted


def test_what_is_held_is_bounded():
    reader = Numbers(shuffle=10)
    passes = StreamPasses(reader)
    for position in range(4_000, 60_000, 4_000):  # what lies between is passed over
        passes.read(position)
    assert reader.opened == [4_000]
    assert sum(len(each.held) for each in passes._passes) <= 2 * 10 + 4096


def test_the_pass_of_an_evaluation_does_not_disturb_that_of_the_training():
    reader = Numbers()
    passes = StreamPasses(reader)
    for step in range(200):
        assert number(passes.read(20_000 + step)) == 20_000 + step
        assert number(passes.read(step)) == step
    assert reader.opened == [20_000, 0]


def test_a_stream_that_ends_is_told():
    with pytest.raises(DataError, match=r"the stream ended after 30 samples.*begin again"):
        StreamPasses(Numbers(end=30)).read(30)


def test_a_fault_that_passes_is_retried_where_it_was():
    class Faulty(Numbers):
        faults = 1

        def stored(self, position):
            for stored in super().stored(position):
                if stored == 5 and self.faults:
                    self.faults -= 1
                    raise OSError("the network")
                yield stored

    reader = Faulty()
    split = store(reader)
    found = [number(split.read(index).permute(1, 2, 0)) for index in range(8)]
    assert found == list(range(8))
    assert reader.opened == [0, 5]
    reader.faults = 9
    with pytest.raises(DataError, match="cannot read image 5: the network; tried 2 times"):
        store(reader).read(5)


def test_the_next_readable_one_takes_the_place_of_a_damaged_one():
    split = store(Numbers(damaged=[50, 51, 90]))
    found = [number(split.read(index).permute(1, 2, 0)) for index in range(45, 95)]
    expected = {50: 52, 51: 52, 90: 91}
    assert found == [expected.get(index, index) for index in range(45, 95)]
    assert split.report()["num_unreadable"] == 3


def test_damage_is_a_part_of_what_was_read_not_of_an_epoch():
    damaged = range(0, 4_000, 100)  # 1 in 100; as many as an epoch has samples
    split = store(Numbers(epoch_samples=40, damaged=damaged), max_corrupt_fraction=0.03)
    for index in range(30, 4_000):
        split.read(index)
    split = store(Numbers(damaged=[1, 3]), max_corrupt_fraction=0.03)
    split.read(1)
    with pytest.raises(DataError, match=r"2 of 40 images are unreadable so far \(5.00%\)"):
        split.read(3)


def test_a_stream_of_nothing_readable_ends():
    split = store(Numbers(damaged=range(500)), max_corrupt_fraction=1.0)
    with pytest.raises(DataError, match="none of the 65 images from position 7 on is readable"):
        split.read(7)


def test_labels_are_refused():
    reader = Numbers()
    reader.labels = np.zeros(40, dtype=np.int64)
    with pytest.raises(DataError, match=r"gave labels for a stream.*entry of `evaluate`"):
        with_classes(Splits(reader, None))


def test_batch_statistics_are_of_its_first_samples():
    rows = calibration_rows(store(Numbers(epoch_samples=100_000, shuffle=16)), seed=0)
    assert sorted(rows.tolist()) == list(range(10_000))
    assert not torch.equal(rows, torch.arange(10_000))


def test_views_are_the_same_for_any_number_of_threads(tiny):
    augmentation = load_recipe(tiny, []).augmentation.build()

    def loaded(num_threads):
        maker = view_maker(store(Numbers(shuffle=8)), augmentation, torch.device("cpu"))
        sampler = StreamSampler(40, 16, seed=3, shuffle=8)
        return list(TrainLoader(maker, sampler, seed=3, num_threads=num_threads).epoch(5))

    for one, other in zip(loaded(0), loaded(3), strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.views[0], other.views[0])


@pytest.mark.slow  # 3 seconds
def test_a_resumed_run_ends_with_the_same_bits(streamed, monkeypatch):
    whole = start(streamed, [*PLAIN, "name=whole"], display=Silent())

    def stop(self, run, metrics, progress):
        if progress.step == 2:  # of 4, in the first epoch
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(AugmentedViews, "on_step", stop)
        callback = "callbacks=[{name: augmented_views}]"
        part = start(streamed, [*PLAIN, callback, "name=part"], display=Silent())
    assert read_state(part.run_dir)["step"] == 2
    end = start(None, [], resume=str(part.run_dir), display=Silent())
    states = [read_state(run.run_dir)["method"] for run in (whole, end)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_plan_leaves_nothing_out_and_a_batch_above_an_epoch_is_refused(streamed):
    plan = make_plan(streamed, PLAIN, Silent()).to_json()  # 40 an epoch, 16 a batch
    assert plan["data"]["left_out_per_epoch"] == 0
    assert plan["total_steps"] == 4
    with pytest.raises(RecipeError, match="batch_size: 41 is more than the 40 training images"):
        make_plan(streamed, [*PLAIN, "train.batch_size=41"], Silent())
