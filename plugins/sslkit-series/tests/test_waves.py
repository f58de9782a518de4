"""The source `waves`: forms, keys and what tells series apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import signal
from sslkit_series.waves import WAVES, Waves, WavesReader, normal, unit_wave

EXACT = {"noise": 0.0, "offset": 0.0, "amplitude": (1.0, 1.0)}


def reader(split: Any = "train", **fields: Any) -> WavesReader:
    found = Waves(Waves.Config(num_train=200, num_test=50, **fields)).open(split)
    assert found is not None
    return found


def test_forms_are_those_of_scipy() -> None:
    time, periods, phase = np.arange(128) / 128, 5.0, 0.3
    turns = 2 * np.pi * (phase + periods * time)
    expected = {
        "sine": np.sqrt(2) * np.sin(turns),
        "square": signal.square(turns),
        "sawtooth": np.sqrt(3) * signal.sawtooth(turns),
        # its frequency at time 0 and 1: 0.4 and 1.6 times the mean
        "chirp": np.sqrt(2)
        * signal.chirp(time, 0.4 * periods, 1.0, 1.6 * periods, phi=360 * phase - 90),
    }
    assert expected.keys() == set(WAVES)
    for wave, values in expected.items():
        found = unit_wave(wave, np.array([[phase]]), np.array([periods]), 128)
        np.testing.assert_allclose(found, values[None], atol=1e-9, err_msg=wave)


def test_all_forms_have_the_same_power() -> None:
    for wave in WAVES:
        values = unit_wave(wave, np.array([[0.25]]), np.array([8.0]), 8000)
        assert np.mean(values**2) == pytest.approx(1.0, abs=0.03), wave


def test_noise_is_normal() -> None:
    values = normal("a name", 200_000)
    assert values.mean() == pytest.approx(0.0, abs=0.01)
    assert values.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(np.abs(values) < 1.96) == pytest.approx(0.95, abs=0.003)
    assert np.abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_vector() -> None:
    """These values may not change without a new version in the fingerprint."""
    found = reader()
    assert found.labels[:8].tolist() == [2, 2, 2, 2, 2, 2, 3, 2]
    np.testing.assert_allclose(
        found.read(3)[0, :4], [1.0189435, 0.8484961, 0.8279922, 0.6728498], rtol=1e-6
    )


def test_a_series_depends_on_its_key_alone() -> None:
    found = reader()
    alone = [found.read(index) for index in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(reader().read, reversed(range(20))))
    for one, other in zip(alone, reversed(together), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(reader("test").read(0), alone[0])
    assert not np.array_equal(reader(data_seed=1).read(0), alone[0])


def test_what_a_reader_says() -> None:
    found = reader(channels=2, length=64)
    assert found.sample.shape == (2, 64)
    assert found.sample.dtype == "float32"
    series = found.read(0)
    assert (series.shape, series.dtype) == ((2, 64), np.float32)
    assert not np.array_equal(series[0], series[1])
    assert found.class_names == WAVES
    assert np.bincount(found.labels).min() > 30
    assert reader().fingerprint() == reader().fingerprint()
    fingerprints = {reader().fingerprint(), reader("test").fingerprint()}
    fingerprints |= {reader(noise=0.2).fingerprint(), reader(data_seed=1).fingerprint()}
    assert len(fingerprints) == 4
    assert Waves(Waves.Config(num_test=0)).open("test") is None


def test_the_fields_are_followed() -> None:
    found = reader(**EXACT)
    for index in range(30):
        series = found.read(index)[0]
        if found.class_names[found.labels[index]] == "square":
            assert set(np.unique(series)) <= {-1.0, 1.0}
    lifted = reader(noise=0.0, offset=2.0, amplitude=(1e-6, 1e-6))
    offsets = np.array([lifted.read(index).mean() for index in range(200)])
    assert -2.0 <= offsets.min() < -1.8
    assert 1.8 < offsets.max() <= 2.0
    noisy = reader(noise=0.5, offset=0.0, amplitude=(1e-6, 1e-6))
    assert np.std([noisy.read(index) for index in range(50)]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"periods": (3.0, 40.0)}, "periods: 40 is above length / 4; set at most 32"),
        ({"amplitude": (0.0, 1.0)}, "set 0 < low <= high"),
        ({"length": 4}, "greater than or equal to 16"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Waves.Config(**fields)
