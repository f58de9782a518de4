"""What components promise each other is checked before the first step is over, by `--dry-run` too:
one line with the class, its place in the recipe, what was found and what is valid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslkit.api import ParamGroup, StepOutput
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.losses import NTXent
from sslkit.builtin.mlp_head import MLPHead
from sslkit.builtin.optimizers import AdamW
from sslkit.builtin.schedules import Cosine
from sslkit.builtin.simclr import SimCLR
from sslkit.builtin.sources.synthetic import SyntheticReader
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.engine.contract import OWN_METRICS, metric_fault
from sslkit.engine.display import Silent
from sslkit.errors import PluginError, SSLKitError
from sslkit.workflows.plan import make_plan
from sslkit.workflows.train import start

Break = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What a method of a component becomes."""


def result(change: Callable[[Any], Any]) -> Break:
    """The method, its result changed."""
    return lambda method: lambda *given: change(method(*given))


def first(change: Callable[[Tensor], Tensor]) -> Break:
    """Every entry of a dict of embeddings changed."""
    return result(lambda found: {name: change(value) for name, value in found.items()})


def drawing(use: Callable[[], object]) -> Break:
    """The method, which uses a global generator on the way."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any) -> Any:
            use()
            return method(*given)

        return changed

    return wrap


def watching(named: dict[str, str]) -> Break:
    """The method, which names other entries that must not collapse."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any) -> Any:
            given[0].must_not_collapse = named
            return method(*given)

        return changed

    return wrap


def noise(found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Other parameters each time, from a generator that nobody seeded."""
    made = np.random.default_rng().random(len(found[0]["flip"]))
    return [{**view, "noise": torch.from_numpy(made)} for view in found]


def by_place(found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Parameters that depend on the place in the batch."""
    return [{**view, "place": torch.arange(len(view["flip"]))} for view in found]


def no_features(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"z": found["z"]}


def nan_features(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**found, "features": found["features"] * math.nan}


def narrow(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**found, "features": found["features"][..., :5]}


BROKEN: list[tuple[type[Any], str, Break, str]] = [
    (SimCLR, "embed", result(lambda e: e["z"]), r"method: SimCLR\.embed gave a tensor .* a dict"),
    (SimCLR, "embed", result(lambda e: None), r"SimCLR\.embed gave nothing; valid is a dict"),
    (SimCLR, "embed", result(lambda e: {}), r"SimCLR\.embed gave an empty dict"),
    (SimCLR, "embed", result(no_features), r"gave 'z' and no 'features'.*online_probe=null"),
    (SimCLR, "embed", result(nan_features), r"SimCLR\.embed gave 'features' with nan in it"),
    (SimCLR, "embed", result(narrow), r"'features' as .* \(16, 2, 5\).*num_features"),
    (SimCLR, "embed", first(lambda v: v[:7]), r"\(7, 2, .*for 16 images; .*one row per image"),
    (SimCLR, "embed", first(lambda v: v.long()), r"valid are floating-point embeddings"),
    (SimCLR, "embed", first(lambda v: v.tolist()), r"'features' as a list for 16 images"),
    (SimCLR, "objective", result(lambda o: o.loss), r"objective gave a tensor .* StepOutput"),
    (SimCLR, "objective", result(lambda o: replace(o, loss=1.0)), r"gave a float as its loss"),
    (SimCLR, "objective", result(lambda o: replace(o, loss=o.loss.detach())), "without gradient"),
    (SimCLR, "objective", result(lambda o: replace(o, metrics=None)), "gave nothing as metrics"),
    (SimCLR, "objective", result(lambda o: StepOutput(o.loss, {"m": torch.ones(3)})),
     r"or its loss gave the metric 'm' as a tensor of shape \(3,\)"),
    (SimCLR, "objective", result(lambda o: StepOutput(o.loss, {"lr": 1.0})),
     "gave a metric the name 'lr'; train/lr is logged by sslkit itself"),
    (NTXent, "forward", result(lambda x: x.detach()), "forward gave a scalar without gradient, of"),
    (SimCLR, "embed", watching({"zz": "spread"}), "names 'zz'; valid are the entries of embed"),
    (SimCLR, "embed", watching({"z": "prototype"}), "'z' as 'prototype'; valid are 'spread' and"),
    (SimCLR, "param_groups", result(lambda g: [*g, *g]), r"names the parameter '[\w.]+' twice"),
    (SimCLR, "param_groups", result(lambda g: []), "has no parameter to train"),
    (SimCLR, "param_groups", result(lambda g: [ParamGroup([("w", nn.Parameter(torch.ones(2)))])]),
     r"param_groups names 'w', which is no parameter of the method"),
    (SimCLR, "param_groups", result(lambda g: [ParamGroup([p for _, p in g[0].params])]),
     "valid are pairs of a name and a parameter"),
    (SimCLR, "param_groups", result(lambda g: g[0].params), r"gave a list of tuple; .* ParamGroup"),
    (MLPHead, "forward", result(lambda z: z[:, :3]),
     r"method\.head: MLPHead\.forward gave a tensor of shape \(32, 3\).*its out_dim 8"),
    (NTXent, "forward", result(lambda x: x.repeat(4)), r"method\.loss: NTXent\.forward .*\(4,"),
    (TimmBackbone, "forward", result(lambda f: f[:, :9]), "backbone: 'timm' .* num_features"),
    (Cosine, "factor", result(lambda f: math.nan), r"schedule: Cosine\.factor gave nan after 0 of"),
    (Cosine, "factor", result(lambda f: -f - 1.0), r"Cosine\.factor gave -.* not negative"),
    (Cosine, "factor", result(lambda f: "1"), r"Cosine\.factor gave '1'"),
    (AdamW, "create", result(lambda o: None), r"optimizer: AdamW\.create gave NoneType"),
    (AdamW, "create", result(lambda o: torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)),
     r"AdamW\.create made an optimiser of 1 parameters \(0 of the"),
    (SimCLRAugmentation, "draw", result(lambda p: p[:1]), r"draw gave 1 views; .*parameters for 2"),
    (SimCLRAugmentation, "draw", result(lambda p: [{"a": torch.ones(3)}, p[1]]),
     r"draw gave 'a' of view 0 as a tensor of shape \(3,\).* for 64 images"),
    (SimCLRAugmentation, "draw", result(noise), "other parameters for the same sample and key"),
    (SimCLRAugmentation, "draw", result(by_place), "other parameters for the same sample and key"),
    (SimCLRAugmentation, "draw", drawing(lambda: torch.rand(1)), "global random numbers of torch"),
    (SimCLRAugmentation, "draw", drawing(lambda: np.random.rand()), "random numbers of numpy"),  # noqa: NPY002
    (SimCLRAugmentation, "draw", drawing(random.random), "global random numbers of Python"),
    (SimCLRAugmentation, "geometry", result(lambda g: replace(g, size=9)), r"view 0 the size 9"),
    (SimCLRAugmentation, "geometry", result(lambda g: None), r"gave view 0 as nothing"),
    (SimCLRAugmentation, "geometry", result(lambda g: replace(g, flip=g.flip.float())), "the flip"),
    (SimCLRAugmentation, "photometric", result(lambda x: x * 255),
     r"augmentation: SimCLRAugmentation\.photometric gave view 0 as values from .* in \[0, 1\]"),
    (SimCLRAugmentation, "photometric", result(lambda x: x - 0.5), "values from -0"),
    (SimCLRAugmentation, "photometric", result(lambda x: x * math.nan), "values with nan among"),
    (SimCLRAugmentation, "photometric", result(lambda x: x[:, :, 1:]), r"shape \(8, 3, 15, 16\)"),
    (SimCLRAugmentation, "photometric", result(lambda x: (x * 255).byte()), "uint8; valid is f"),
    (SimCLRAugmentation, "photometric", drawing(lambda: torch.rand(1)), "photometric uses the g"),
    (SimCLRAugmentation, "targets", result(lambda t: {"turn": torch.ones(3)}),
     r"targets gave 'turn' as a tensor of shape \(3,\).* for 64 images"),
    (SyntheticReader, "read", drawing(lambda: np.random.rand()), "data: SyntheticReader.read uses"),  # noqa: NPY002
]  # fmt: skip


@pytest.mark.parametrize(("cls", "method", "change", "expected"), BROKEN)
def test_a_dry_run_names_what_breaks_its_contract(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    cls: type[Any],
    method: str,
    change: Break,
    expected: str,
) -> None:
    if cls is SyntheticReader:
        monkeypatch.setattr(cls, "pixels", None, raising=False)
    monkeypatch.setattr(cls, method, change(getattr(cls, method)))
    with pytest.raises(PluginError, match=expected) as caught:
        make_plan(str(tiny), [], Silent())
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("micro_batch", ["null", "4"])
def test_a_run_ends_before_the_accuracy_of_an_untrained_probe_is_shown(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: str
) -> None:
    embed = SimCLR.embed
    monkeypatch.setattr(SimCLR, "embed", lambda self, batch: no_features(embed(self, batch)))
    changes = [f"train.micro_batch_size={micro_batch}"]
    with pytest.raises(PluginError, match="no 'features'"):
        start(str(tiny), changes, display=Silent())
    without = [*changes, "train.online_probe=null", "train.max_steps=2", "evaluate=[]"]
    metrics = start(str(tiny), without, display=Silent()).metrics
    assert not [name for name in metrics if "probe" in name]


def test_the_checks_end_with_the_first_step(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read from the device."""
    hooks = []
    after_step = SimCLR.after_step

    def count(self: SimCLR, *given: Any) -> None:
        hooks.append(sum(len(module._forward_hooks) for module in self.modules()))
        after_step(self, *given)

    monkeypatch.setattr(SimCLR, "after_step", count)
    start(str(tiny), ["train.max_steps=3", "evaluate=[]"], display=Silent())
    assert hooks[0] > 0
    assert hooks[1:] == [0, 0]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("cls", "method"),
    [
        (SimCLR, "embed"), (SimCLR, "__init__"), (SimCLR, "after_step"), (SyntheticReader, "read"),
        (SimCLRAugmentation, "draw"), (AdamW, "create"),
    ],
)  # fmt: skip
def test_a_plugin_that_ends_the_process_is_an_error(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    cls: type[Any],
    method: str,
    error: BaseException,
) -> None:
    def leave(*given: Any, **named: Any) -> None:
        raise error

    if cls is SyntheticReader:
        monkeypatch.setattr(cls, "pixels", None, raising=False)
    monkeypatch.setattr(cls, method, leave)
    with pytest.raises(SSLKitError, match=type(error).__name__) as caught:
        start(str(tiny), [], display=Silent())
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loss", "train/loss is logged by sslkit itself"),
        ("lr", "train/lr is logged by sslkit itself"),
        ("online_probe/top1", "is logged by sslkit itself"),
        ("temperature", "train/temperature is logged by sslkit itself"),
        ("a b", "valid are letters, digits"),
        ("", "valid are letters, digits"),
    ],
)
def test_names_of_metrics_that_stand_for_something_else(name: str, says: str) -> None:
    fault = metric_fault(name, OWN_METRICS | {"temperature"})
    assert fault is not None
    assert says in fault


def test_other_names_of_metrics_are_free() -> None:
    assert [metric_fault(name) for name in ("contrastive_top1", "view/0.std", "t")] == [None] * 3
