"""The components that the pages show meet the laws of their kinds."""

from __future__ import annotations

import importlib
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit.testing import check_plugin

DOCS = Path(__file__).parents[2] / "docs"
MEMBERS = [{"name": "timm", "model": "test_resnet"}, {"name": "timm", "model": "test_vit"}]


def npz(folder: Path) -> dict[str, Any]:
    noise = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[split] = noise.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(folder / "x.npz", **arrays)
    return {"path": folder / "x.npz"}


def shards(folder: Path) -> dict[str, Any]:
    noise = np.random.default_rng(0)
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for name in range(12):
                data = io.BytesIO()
                pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data, "PNG")
                member = tarfile.TarInfo(f"{name}.png")
                member.size = data.tell()
                data.seek(0)
                shard.addfile(member, data)
    return {"path": folder, "epoch_samples": 30}


SHOWN: list[tuple[str, str, str, Callable[[Path], dict[str, Any]]]] = [
    ("howto/components.md", "augmentation.py", "CropGamma", lambda folder: {"size": 16}),
    ("howto/components.md", "per_image.py", "PerImage", lambda folder: {"size": 16}),
    ("howto/components.md", "data.py", "Npz", npz),
    ("howto/components.md", "stream.py", "TarShards", shards),
    ("howto/ensemble.md", "backbone.py", "Ensemble", lambda folder: {"members": MEMBERS}),
    ("howto/small_components.md", "centred.py", "Centred", lambda folder: {}),
    ("howto/small_components.md", "head.py", "LinearHead", lambda folder: {}),
    ("howto/components.md", "backbone.py", "TinyConv", lambda folder: {}),
]


def written(page: str, file: str, name: str, folder: Path) -> Path:
    """The file that a page has its reader write, as a module that no other page has."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- file: \S+/{file} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    path = folder / f"shown_{name.lower()}.py"
    path.write_text(found[1], encoding="utf-8")
    return path


@pytest.mark.slow  # seconds for each, and pages change rarely
@pytest.mark.parametrize(("page", "file", "name", "data"), SHOWN, ids=[each[2] for each in SHOWN])
def test_laws(
    page: str,
    file: str,
    name: str,
    data: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = written(page, file, name, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(path.stem)
    folder = tmp_path / "data"
    folder.mkdir()
    report = check_plugin(getattr(module, name), fast=True, **data(folder))
    assert not report.broken
    assert any(row["status"] == "passed" for row in report.rows)
