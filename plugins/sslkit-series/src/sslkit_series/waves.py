"""Classes of waves that are computed from keys: for tests and for trying things out without
data."""

from __future__ import annotations

import hashlib
import math
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sslkit.api import DataSource, DataSourceConfig, PositiveRange, SampleSpec, SplitReader
from sslkit.randomness import SampleRandom

WAVES = ("sine", "square", "sawtooth", "chirp")

_VERSION = 1
"""Of the waves; goes up whenever the values change."""


class Waves(DataSource):
    """Series of one wave each: sine, square, sawtooth or chirp, with random phase, frequency,
    amplitude, offset and noise. The class is the form alone: all forms have the same mean power and
    the same distribution of everything else."""

    class Config(DataSourceConfig):
        """Fields of the `waves` source."""

        num_train: int = Field(default=2000, ge=1, le=10_000_000)
        """Number of training series."""
        num_test: int = Field(default=1000, ge=0, le=10_000_000)
        """Number of test series; 0 for none."""
        length: int = Field(default=128, ge=16, le=1_000_000)
        """Values of a series."""
        channels: int = Field(default=1, ge=1, le=10_000)
        """Channels: the same wave, each with a phase and noise of its own."""
        periods: PositiveRange = (3.0, 8.0)
        """Range of the periods in a series, log-uniform; of a chirp its mean."""
        amplitude: PositiveRange = (0.5, 1.5)
        """Range of the root mean square of the wave, uniform."""
        offset: float = Field(default=0.5, ge=0.0)
        """Offset of the whole series, uniform in plus or minus this."""
        noise: float = Field(default=0.3, ge=0.0)
        """Standard deviation of the Gaussian noise."""
        data_seed: int = 0
        """Seed of the series. Apart from the seed of the run, so that runs share their data."""

        @model_validator(mode="after")
        def _check_periods(self) -> Self:
            most = self.length / 4
            if self.periods[1] > most:
                raise ValueError(
                    f"periods: {self.periods[1]:g} is above length / 4; set at most {most:g}"
                )
            return self

    config: Config

    def open(self, split: Literal["train", "test"]) -> WavesReader | None:
        """The reader of a split: draws what tells series apart, computes none."""
        count = self.config.num_train if split == "train" else self.config.num_test
        return WavesReader(self.config, split, count) if count else None


class WavesReader(SplitReader):
    """Series i is a function of (data_seed, split, i) alone and is computed when it is read."""

    def __init__(self, config: Waves.Config, split: str, count: int) -> None:
        self._config = config
        self._split = split
        random = SampleRandom(config.data_seed, f"waves/{split}", 0, torch.arange(count))
        self.labels: NDArray[np.int64] = random.integers("wave", 1, len(WAVES))[:, 0].numpy()
        self.class_names = WAVES
        low, high = config.periods
        exponent = random.uniform("periods", 1).double().numpy()
        self._periods = low * (high / low) ** exponent
        self._amplitude = random.uniform("amplitude", 1, *config.amplitude).double().numpy()
        self._offset = random.uniform("offset", 1, -config.offset, config.offset).double().numpy()
        self._phase = random.uniform("phase", config.channels).double().numpy()

    @property
    def sample(self) -> SampleSpec:
        """(C, L) float32."""
        return SampleSpec((self._config.channels, self._config.length), "float32")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.float32]:
        config = self._config
        wave = WAVES[self.labels[index]]
        values = unit_wave(wave, self._phase[index][:, None], self._periods[index], config.length)
        values = self._offset[index] + self._amplitude[index] * values
        name = f"{config.data_seed}\0{self._split}\0{index}"
        noise = normal(name, values.size).reshape(values.shape)
        noisy: NDArray[np.float32] = (values + config.noise * noise).astype(np.float32)
        return noisy

    def describe(self, index: int) -> str:
        return f"{self._split} series {index} ({WAVES[self.labels[index]]})"

    def fingerprint(self) -> str:
        text = f"{_VERSION}\0{self._split}\0{len(self)}\0{self._config.model_dump_json()}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def unit_wave(
    wave: str, phase: NDArray[np.float64], periods: NDArray[np.float64], length: int
) -> NDArray[np.float64]:
    """`length` values of a wave whose mean square over whole periods is 1.

    phase: (C, 1), in periods. periods: (1,), in the whole series. The frequency of a chirp rises
    from 0.4 to 1.6 times its mean, linearly. Returns (C, length).
    """
    time = np.arange(length) / length
    sweep = 0.4 + 0.6 * time if wave == "chirp" else 1.0
    cycle: NDArray[np.float64] = phase + periods * time * sweep
    part = cycle % 1.0
    forms = {
        "square": np.where(part < 0.5, 1.0, -1.0),
        "sawtooth": math.sqrt(3.0) * (2.0 * part - 1.0),
    }
    return forms.get(wave, math.sqrt(2.0) * np.sin(2.0 * math.pi * cycle))


def normal(name: str, count: int) -> NDArray[np.float64]:
    """(count,) independent normal values, a function of the name alone: Box-Muller on the words of
    Philox4x64-10."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key).random_raw(2 * count)
    unit = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    values: NDArray[np.float64] = np.sqrt(-2.0 * np.log(unit[:count])) * np.cos(
        2.0 * np.pi * unit[count:]
    )
    return values
