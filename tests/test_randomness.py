"""The keyed randomness is pinned: a changed bit would change every published run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslkit.randomness import (
    Order,
    SampleRandom,
    permuted,
    philox,
    random_subset,
    seeded,
    stream_key,
)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        ),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, expected):
    """The vectors that come with Random123 (philox4x32, 10 rounds)."""
    result = philox(tuple(torch.tensor([value]) for value in counter), key)
    assert tuple(word.item() for word in result) == expected


def test_philox_takes_one_key_per_column():
    counter = tuple(torch.arange(3)[:, None] for _ in range(4))
    keys = (torch.tensor([5, 7]), torch.tensor([6, 0xFFFFFFFF]))
    both = torch.stack(philox(counter, keys))
    for column, key in enumerate([(5, 6), (7, 0xFFFFFFFF)]):
        assert torch.equal(both[:, :, column], torch.stack(philox(counter, key))[:, :, 0])


def test_pinned_stream_key():
    assert stream_key(0, "order") == (2793599726, 3502041465)


def test_pinned_bits():
    random = SampleRandom(0, "augment", 0, torch.tensor([0, 1, 49999]))
    assert random.bits("crop", 5).tolist() == [
        [0xE7689B16, 0x4E02DE17, 0x1AB453D6, 0xDD7E8A62, 0x1FB70354],
        [0x6645DBC0, 0x9B40F8F5, 0x6F2371BD, 0x430433A4, 0xC0B06A6B],
        [0xC824CEC8, 0xFA69580C, 0x15400E7D, 0x84164A97, 0x93C04E9E],
    ]
    assert random.substream("view", 1).bits("crop", 2).tolist() == [
        [3162286571, 3803861376],
        [2875236488, 2617584074],
        [3805063751, 4279352510],
    ]
    large_index = SampleRandom(1, "augment", 3, torch.tensor([2**33 + 1]))
    assert large_index.bits("crop", 2).tolist() == [[3151554302, 1810309066]]


def test_pinned_values():
    random = SampleRandom(0, "augment", 0, torch.tensor([0, 1, 49999]))
    assert random.uniform("u", 2).tolist() == [
        [0.13177460432052612, 0.9584777355194092],
        [0.7151889801025391, 0.4923962950706482],
        [0.31219589710235596, 0.7520784735679626],
    ]
    assert random.integers("i", 4, 10).tolist() == [[1, 0, 3, 4], [9, 3, 6, 2], [1, 1, 0, 6]]
    assert random.permutation("p", 4).tolist() == [[3, 2, 1, 0], [0, 1, 2, 3], [3, 0, 1, 2]]


def test_pinned_orders():
    assert Order(0, 0, 10)[:].tolist() == [9, 4, 8, 2, 7, 5, 1, 0, 6, 3]
    assert Order(0, 1, 10)[:].tolist() == [7, 8, 0, 5, 6, 3, 2, 1, 4, 9]
    assert Order(5, 0, 10)[:].tolist() == [0, 2, 6, 1, 9, 5, 7, 3, 4, 8]
    assert Order(0, 0, 50000)[:5].tolist() == [19669, 30678, 27275, 37786, 39622]
    assert Order(0, 0, 1_281_167)[:4].tolist() == [778862, 1277600, 1133962, 968248]
    assert Order(3, 7, 10**9)[10**9 - 3 :].tolist() == [603691761, 63943550, 196800460]
    assert Order(3, 7, 10**15, "pairs")[5:7].tolist() == [576768970669340, 123051754944582]


def keys_of(seed):
    return [stream_key(seed, "order", 0, number) for number in range(8)]


def whole(size, seed=0):
    return permuted(np.arange(size, dtype=np.uint64), size, keys_of(seed)).astype(np.int64)


def test_every_order_is_a_permutation():
    sizes = [*range(1, 130), 255, 256, 257, 1000, 4095, 4096, 65535, 65536, 65537, 99991]
    for size in sizes:
        assert np.array_equal(np.sort(whole(size)), np.arange(size)), size
    for size in (0, 1, 2, 5000, 65536, 65537, 100_003):
        assert torch.equal(Order(3, 2, size)[:].sort().values, torch.arange(size)), size


def test_no_place_of_a_huge_order_is_given_twice():
    size = 10**9
    places = np.unique(np.random.default_rng(0).integers(0, size, 300_000)).astype(np.uint64)
    found = permuted(places, size, keys_of(4))
    assert len(np.unique(found)) == len(places)
    assert int(found.max()) < size
    # by the birthday rule, independent numbers would hold about 45 pairs of equal ones


def test_a_part_of_an_order_is_that_of_the_whole():
    order = Order(1, 2, 70_000)
    every = order[:]
    assert torch.equal(order[69_990:80_000], every[69_990:])
    assert torch.equal(order[500:517], every[500:517])
    assert len(order) == len(every) == 70_000


def test_orders_differ_by_seed_epoch_and_stream():
    orders = [Order(0, 0, 10**6), Order(1, 0, 10**6), Order(0, 1, 10**6), Order(0, 0, 10**6, "x")]
    heads = {tuple(order[:20].tolist()) for order in orders}
    assert len(heads) == 4


@pytest.mark.parametrize("size", [7, 12, 40])
def test_large_orders_are_made_by_a_function_that_is_uniform_even_for_small_ones(size):
    """Each number at each place, and each pair beside one another, equally often: 3,000 keys."""
    drawn = 3000
    at, beside = np.zeros((size, size)), np.zeros((size, size))
    for seed in range(drawn):
        order = whole(size, seed)
        at[np.arange(size), order] += 1
        beside[order[:-1], order[1:]] += 1
    expected, others = drawn / size, ~np.eye(size, dtype=bool)
    statistic = ((at - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    pairs = drawn * (size - 1) / others.sum()
    statistic = ((beside[others] - pairs) ** 2 / pairs).sum()
    freedom = others.sum()
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_neighbours_of_a_large_order_are_strangers():
    """Places next to one another go to numbers whose difference, and whose parity, tell nothing."""
    size = 10**8
    found = permuted(np.arange(200_000, dtype=np.uint64), size, keys_of(9)).astype(np.int64)
    counts = np.bincount(found * 64 // size, minlength=64)
    assert ((counts - 3125) ** 2 / 3125).sum() < 63 + 5 * 126**0.5
    correlation = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(correlation) < 5 / 200_000**0.5
    for bits in (1, 3, 6):
        low = np.bincount(found & ((1 << bits) - 1))
        expected = len(found) / (1 << bits)
        assert ((low - expected) ** 2 / expected).sum() < (1 << bits) + 6 * (2 << bits) ** 0.5


def test_values_belong_to_the_sample_and_not_to_its_place():
    whole = SampleRandom(3, "augment", 2, torch.arange(20))
    rows = torch.tensor([7, 3, 19])
    part = SampleRandom(3, "augment", 2, rows)
    assert torch.equal(part.uniform("x", 6), whole.uniform("x", 6)[rows])
    assert torch.equal(whole.select(rows).uniform("x", 6), part.uniform("x", 6))
    assert torch.equal(whole.select(slice(4, 9)).uniform("x", 6), whole.uniform("x", 6)[4:9])


def test_more_values_of_a_name_begin_with_the_fewer():
    random = SampleRandom(3, "augment", 2, torch.arange(5))
    assert torch.equal(random.bits("x", 9)[:, :3], random.bits("x", 3))


def test_streams_are_independent():
    indices = torch.arange(4000)
    base = SampleRandom(0, "augment", 0, indices)
    others = [
        SampleRandom(1, "augment", 0, indices),
        SampleRandom(0, "method", 0, indices),
        SampleRandom(0, "augment", 1, indices),
        base.substream("view", 0),
        base.substream("view", 1),
    ]
    values = torch.stack([r.uniform("x", 1)[:, 0] for r in [base, *others]])
    values = torch.cat([values, base.uniform("y", 1).T])
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    assert correlation.abs().max() < 0.06  # 4 standard errors


def test_prepared_values_are_the_same():
    random = SampleRandom(3, "augment", 2, torch.tensor([0, 5, 2**40]))
    prepared = random.prepare({"x": 10, "y": 1, "z": 4})
    for name, count in (("x", 10), ("x", 3), ("y", 1), ("y", 6), ("z", 4), ("other", 2)):
        assert torch.equal(prepared.bits(name, count), random.bits(name, count))
    assert torch.equal(prepared.select(slice(1, 3)).bits("x", 2), random.bits("x", 2)[1:])
    assert torch.equal(prepared.substream("v").bits("x", 2), random.substream("v").bits("x", 2))


def test_uniform_and_integers_cover_their_ranges():
    random = SampleRandom(0, "test", 0, torch.arange(2000))
    values = random.uniform("u", 8, -2.0, 3.0)
    assert -2.0 <= values.min() < -1.99
    assert 2.99 < values.max() < 3.0
    counts = random.integers("i", 8, 5).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert (counts - 3200).abs().max() < 220  # 4.3 standard deviations


def test_seeded_restores_the_generator():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(0, "init"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, "init"):
        assert torch.equal(torch.rand(3), inside)
    with seeded(1, "init"):
        assert not torch.equal(torch.rand(3), inside)


def test_seeded_draws_what_manual_seed_would() -> None:
    low, high = stream_key(3, "train", 7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((high << 31) ^ low)
        expected = torch.rand(5)
    with seeded(3, "train", 7):
        assert torch.equal(torch.rand(5), expected)


def test_subsets_depend_on_seed_and_stream():
    chosen = random_subset(0, "a", 1000, 100)
    assert len(chosen.unique()) == 100
    assert torch.equal(chosen, chosen.sort().values)
    assert 400 < chosen.float().mean() < 600
    assert torch.equal(random_subset(0, "a", 1000, 100), chosen)
    assert not torch.equal(random_subset(1, "a", 1000, 100), chosen)
    assert not torch.equal(random_subset(0, "b", 1000, 100), chosen)
    assert torch.equal(random_subset(0, "a", 7, 7), torch.arange(7))
    assert torch.equal(random_subset(0, "a", 7, 9), torch.arange(7))
