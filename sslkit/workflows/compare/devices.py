"""Where the runs of a comparison go on: each device takes one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sslkit.environment_variables import CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS
from sslkit.errors import RecipeError
from sslkit.experiment.resolve import resolve_device
from sslkit.workflows.pack import available_cores


@dataclass(frozen=True)
class Device:
    """A place for one run at a time."""

    name: str
    """As it was asked for: `cuda:1`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What a process needs to find this device as its only one."""

    @property
    def kind(self) -> str:
        """The value of `train.device`."""
        return self.name.partition(":")[0]


def parse_devices(text: str) -> list[Device]:
    """`cuda:0,cuda:1` or `cpu,cpu` -> the devices; a device that is named twice takes two runs.

    The cores of this process are divided: every run gets as many threads as its share, unless
    OMP_NUM_THREADS says how many. Raises RecipeError for what is not there, and for devices of
    several kinds, whose times and roundings differ."""
    names = [name.strip() for name in text.split(",")]
    kinds = {name.partition(":")[0] for name in names}
    if len(kinds) > 1:
        raise RecipeError(
            f"--devices {text}: are of several kinds; give one kind, such as cuda:0,cuda:1"
        )
    threads = {}
    if len(names) > 1 and OMP_NUM_THREADS.text() is None:
        threads[OMP_NUM_THREADS.name] = str(max(1, available_cores() // len(names)))
    return [Device(name, {**_visible(name, text), **threads}) for name in names]


def shared(devices: Sequence[Device]) -> bool:
    """Whether several runs go on at once on one piece of hardware, so that they slow each other
    down."""
    names = [device.name for device in devices]
    return len(devices) > 1 and (len(set(names)) < len(names) or devices[0].kind != "cuda")


def _visible(name: str, text: str) -> dict[str, str]:
    """What makes this device the only one. Raises RecipeError where it is not there."""
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise RecipeError(
            f"--devices {text}: {name!r} is no device; valid are cpu, mps, cuda, cuda:0, ..."
        )
    resolve_device(kind, f"--devices {text}")
    if not colon:
        return {}
    import torch

    there = _cuda_names(torch.cuda.device_count())
    if int(number) >= len(there):
        known = ", ".join(f"cuda:{index}" for index in range(len(there)))
        raise RecipeError(f"--devices {text}: {name} is not available here; available: {known}")
    return {CUDA_VISIBLE_DEVICES.name: there[int(number)]}


def _cuda_names(count: int) -> list[str]:
    """What CUDA calls the devices that this process sees, in its numbering."""
    given = CUDA_VISIBLE_DEVICES.text()
    names = [str(index) for index in range(count)] if given is None else given.split(",")
    return [name.strip() for name in names][:count]
