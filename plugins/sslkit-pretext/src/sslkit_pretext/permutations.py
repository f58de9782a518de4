"""Permutations that are far from each other: the classes of Jigsaw."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor

from sslkit.randomness import shuffled


@lru_cache(maxsize=4)
def far_permutations(count: int, seed: int, length: int = 9) -> Tensor:
    """(count, length) int64: different permutations of 0..length-1, each the one with the highest
    mean Hamming distance to those before it, of all that there are.

    The first, and which of several that are equally far comes next, follow from the seed, on every
    machine. Raises ValueError where there are not that many.
    Source: Noroozi and Favaro 2016, arXiv 1603.09246, algorithm 1 with the maximal mean."""
    if not 1 <= count <= factorial(length):
        raise ValueError(f"there are {factorial(length)} permutations of {length}, not {count}")
    every = torch.tensor(list(permutations(range(length))), dtype=torch.uint8)
    candidates = shuffled(every, seed).T.contiguous().numpy()  # in the order that breaks ties
    # The mean distance is highest where the places that agree with the chosen ones are fewest.
    agreements = np.zeros(candidates.shape[1], dtype=np.int64)
    chosen = [0]
    while len(chosen) < count:
        last = chosen[-1]
        same = candidates == candidates[:, last, None]
        agreements += np.add.reduce(same, axis=0, dtype=np.uint8)
        agreements[last] = np.iinfo(np.int64).max // 2  # never again
        chosen.append(int(agreements.argmin()))
    return torch.from_numpy(candidates[:, chosen].T.astype(np.int64))
