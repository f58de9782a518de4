"""SupCon as the engine drives it, and what it says of the data."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    ComponentConfig,
    Method,
    Preprocess,
    Progress,
    RunFacts,
    Slot,
    ViewSpec,
    resolve_component,
)
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.randomness import SampleRandom
from sslkit.workflows.train import start

SIDE, WIDTH, BATCH = 8, 6, 12
FIRST = Progress(0, 5, 5)
FACTS = RunFacts(
    60, 3, (SIDE, SIDE), 4, BATCH, 5, 5, (ViewSpec(SIDE),) * 2, class_sizes=(15, 15, 15, 15)
)


class SmallNet(Backbone):
    """A convolution with BatchNorm and a mean over positions."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.num_features = WIDTH
        self.preprocess = Preprocess(SIDE, SIDE, "bilinear", (0.0,), (1.0,))
        layers = (nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.Tanh())
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features.flatten(1)


def method_slot(**fields: Any) -> Slot[Method]:
    return resolve_component(load_plugins().registry, "method", {"name": "supcon", **fields})


def make_supcon(**fields: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method_slot(**fields).build(SmallNet(), FACTS).double()


def make_batch(step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    indices = torch.randperm(60, generator=generator)[:BATCH]
    shape = (BATCH, 3, SIDE, SIDE)
    views = tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(-1, 4, (BATCH,), generator=generator)
    return Batch(views, indices, SampleRandom(0, "method", 0, indices), labels)


def test_both_views_pass_together() -> None:
    """As in the reference code: BatchNorm has statistics of both."""
    supcon, batch = make_supcon(), make_batch()
    found = supcon.embed(batch)
    features = supcon.backbone(torch.cat(batch.views))
    torch.testing.assert_close(found["features"].transpose(0, 1).flatten(0, 1), features)
    torch.testing.assert_close(found["z"].transpose(0, 1).flatten(0, 1), supcon.head(features))
    shapes = [tuple(p.shape) for p in supcon.head.parameters()]
    assert shapes == [(WIDTH, WIDTH), (WIDTH,), (128, WIDTH), (128,)]  # no BatchNorm, biases


def test_steps_written_out() -> None:
    """Three steps beside networks and the paper's formula in loops."""
    supcon = make_supcon(head={"name": "mlp", "hidden_norm": "none", "out_dim": 4})
    networks = nn.ModuleList([copy.deepcopy(supcon.backbone), copy.deepcopy(supcon.head)])
    optimizer = torch.optim.SGD([p for _, p in supcon.param_groups()[0].params], lr=0.1)
    for step in range(3):
        batch, progress = make_batch(step), replace(FIRST, step=step)
        output = supcon.objective(supcon.embed(batch), replace(batch, views=()), progress)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        z = networks[1](networks[0](torch.cat(batch.views)))
        loss = of_rows(z / z.norm(dim=1, keepdim=True), batch.labels)
        networks.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in networks.parameters():
                parameter -= 0.1 * parameter.grad  # type: ignore[operator]
        torch.testing.assert_close(output.loss, loss, rtol=1e-10, atol=0)
    for part, written in zip((supcon.backbone, supcon.head), networks, strict=True):
        for name, value in written.state_dict().items():
            torch.testing.assert_close(part.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def of_rows(z: Tensor, labels: Tensor | None) -> Tensor:
    """The loss of the rows of two views, one after the other, at temperature 0.1."""
    assert labels is not None
    names = [f"alone {n}" if label < 0 else str(label) for n, label in enumerate(labels.tolist())]
    names = names * 2
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        log_sum = torch.stack([z[i] @ z[a] / 0.1 for a in others]).logsumexp(dim=0)
        terms = [log_sum - z[i] @ z[p] / 0.1 for p in others if names[p] == names[i]]
        total = total + torch.stack(terms).mean()
    return 0.1 / 0.07 * total / len(z)


# --- What it says of data -------------------------------------------------------------------------


def said(of: str, facts: RunFacts = FACTS, **fields: Any) -> list[str]:
    slot = method_slot(**fields)
    return [text for _, text in getattr(slot.cls, of)(slot.config, facts)]


def test_problems_and_warnings() -> None:
    assert said("problems") == said("warnings") == []
    one, small = (ViewSpec(8),), (ViewSpec(8), ViewSpec(4))
    assert "makes 1: use 2" in said("problems", replace(FACTS, views=one))[0]
    assert "views of one size" in said("problems", replace(FACTS, views=small))[0]
    assert "batch_size >= 2" in said("problems", replace(FACTS, batch_size=1))[0]
    assert "all images are of one class" in said("warnings", replace(FACTS, class_sizes=(60,)))[0]
    few = replace(FACTS, class_sizes=(10, 10))
    assert said("warnings", few) == ["40 of 60 images have no label; each is a class of its own"]


def test_the_plan_counts_positives() -> None:
    """In a batch of 12 an image meets 11 others, of which 14 in 59 are of its class."""
    slot = method_slot()
    found = slot.cls.plan_facts(slot.config, FACTS)
    assert found["positives per anchor"] == round(1 + 22 * 14 / 59, 1)
    assert found["negatives per anchor"] == round(22 * 45 / 59, 1)
    assert slot.cls.plan_facts(slot.config, replace(FACTS, class_sizes=())) == {}


def test_data_without_labels_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_images(folder, 20)
    data = f"data={{name: image_folder, train: {folder}}}"
    with pytest.raises(RecipeError) as refused:
        start("quickstart", [data, "method={name: supcon}", "train.batch_size=8"], display=Silent())
    (line,) = [line for line in str(refused.value).splitlines() if "labels" in line]
    assert "method 'supcon' needs labels, and the data has none; take data with labels" in line


def write_images(folder: Path, count: int) -> None:
    from PIL import Image

    for number in range(count):
        pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
