"""Samples that a reader has as one array, used where they are."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.api import SampleSpec
from sslkit.errors import DataError


def tensor_of(samples: NDArray[Any], count: int, sample: SampleSpec) -> Tensor:
    """A tensor on the memory of the array. count, sample: what it is to hold. Raises DataError
    where it holds something else."""
    if samples.shape[:1] != (count,) or not sample.fits(samples.shape[1:], samples.dtype.name):
        raise DataError(
            f"data: the source has an array {samples.shape} {samples.dtype} of all samples; "
            f"valid are {count} of {sample}; correct the data source"
        )
    with warnings.catch_warnings():  # that it must not be written to, which nothing here does
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(samples)
