"""What inputs are made from: a real run, its files, and data of every form. Made once.

Everything is tiny and made here, so that nothing but the repository is needed.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslkit.host.recipe_files import shipped_recipes

from .fence import SECRET
from .oracle import Needs
from .sandbox import Outcome, call_sslkit, run

RECIPE = """\
name: tiny
data: {name: synthetic, num_train: 48, num_test: 24, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet}
method:
  name: simclr
  head: {name: mlp, hidden_dim: 16, out_dim: 8}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 2, batch_size: 16, device: cpu, loader_threads: 0, log_every_steps: 1}
evaluate:
  - {name: knn, k: 3, every_epochs: 1}
  - {name: collapse}
tracking: {name: none}
"""
"""Six steps."""
STORE = "sqlite:///mlflow.db"
"""Of the run that is tracked, in the folder in which the command runs."""
TRACKED = f"tracking={{name: mlflow, experiment: soak, tracking_uri: '{STORE}'}}"


EXPECTED = "expect={eval/knn/top1: {at_least: 0.0}}"


@dataclass(frozen=True)
class Stock:
    """Files to make inputs from. All lie below `root` and are copied, never changed."""

    root: Path
    recipes: dict[str, str]
    """Name -> text of every shipped recipe."""
    needs: dict[str, Needs]
    """Command -> what it takes on the clean files."""

    @property
    def run(self) -> Path:
        """A finished run."""
        return self.root / "run"

    @property
    def second(self) -> Path:
        """The same with another seed."""
        return self.root / "second"

    @property
    def tracked(self) -> Path:
        """A finished run in a store, `mlflow.db` beside it."""
        return self.root / "tracked"

    @property
    def images(self) -> Path:
        """Class folders `a` and `b` with 12 small PNG files each."""
        return self.root / "images"

    @property
    def parquet(self) -> Path:
        """The images, encoded, with labels."""
        return self.root / "images.parquet"

    @property
    def pack(self) -> Path:
        """The images, decoded."""
        return self.root / "images.pack"

    @property
    def journal(self) -> Path:
        """Of that pack, before it was finished."""
        return self.root / "journal"

    def digest(self) -> str:
        """Of all files: no command may change one, by whatever link it comes to it."""
        total = hashlib.blake2b()
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            if not {"clean", "making", "making-journal"} & set(path.parts):
                total.update(os.fsencode(path) + path.read_bytes())
        return total.hexdigest()

    def copy(self, source: Path, target: Path) -> Path:
        """A copy of a file or folder of the stock."""
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target


def make_stock(root: Path) -> Stock:
    """Makes everything, by the commands themselves. Raises RuntimeError where one fails."""
    recipes = {name: path.read_text(encoding="utf-8") for name, path in shipped_recipes().items()}
    stock = Stock(root, recipes, {})
    (root / "tiny.yaml").write_text(RECIPE)
    make_images(stock.images)
    make_parquet(stock.images, stock.parquet)
    (root / SECRET).mkdir()
    shutil.copy(next(stock.images.rglob("*.png")), root / SECRET / "secret.png")
    _make_run(root, stock.run)
    _make_run(root, stock.second, "seed=1")
    _make_run(root, stock.tracked, TRACKED)
    source = f"{{name: image_folder, train: {stock.images}}}"
    command(root, "pack", source, "--size", "16", "-O", str(stock.pack))
    for name, arguments in _clean_commands(stock).items():
        stock.needs[name] = _measured(stock, name, arguments)
    return stock


def _measured(stock: Stock, name: str, arguments: list[str]) -> Needs:
    """What a command takes on clean files; what it writes stays below `clean`."""
    folder = stock.root / "clean" / name
    work = folder / "work"
    work.mkdir(parents=True)
    for source in (stock.run, stock.tracked, stock.root / "mlflow.db", stock.root / "tiny.yaml"):
        stock.copy(source, work / source.name)
    if name == "resume":
        (work / "run" / "results.json").unlink()
    found = _checked(run(folder, arguments, call_sslkit), arguments)
    return Needs(found.cpu_s, found.peak_mb)


def command(root: Path, *arguments: str) -> Outcome:
    """Runs a command in `root / "making" / "work"`."""
    folder = root / "making"
    (folder / "work").mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "tiny.yaml", folder / "work")
    return _checked(run(folder, arguments, call_sslkit), arguments)


def _checked(outcome: Outcome, arguments: object) -> Outcome:
    if outcome.code:
        raise RuntimeError(f"{arguments} ended with {outcome.code}: {outcome.stderr[-2000:]}")
    return outcome


def _make_run(root: Path, target: Path, *overrides: str) -> None:
    words = [word for override in overrides for word in ("-o", override)]
    command(root, "run", "tiny.yaml", *words)
    work = root / "making" / "work"
    (made,) = (work / "runs").iterdir()
    made.rename(target)
    if (work / "mlflow.db").exists():
        (work / "mlflow.db").rename(root / "mlflow.db")


def make_images(folder: Path) -> None:
    """24 PNG files of noise in two class folders."""
    from PIL import Image

    random_state = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            pixels = random_state.integers(0, 255, (18, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")


def make_parquet(images: Path, target: Path) -> None:
    """The images as `datasets` writes them."""
    import pyarrow as pa
    from pyarrow import parquet

    paths = sorted(images.rglob("*.png"))
    rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    label = pa.array([int(path.parent.name == "b") for path in paths], pa.int64())
    parquet.write_table(pa.table({"image": image, "label": label}), target, row_group_size=10)


def _clean_commands(stock: Stock) -> dict[str, list[str]]:
    """Command -> arguments on clean files, for what it needs."""
    folder = f"{{name: image_folder, train: {stock.images}}}"
    recipe = ["--recipe", "tiny.yaml"]
    return {
        "validate": ["validate", "tiny.yaml"],
        "run": ["run", "tiny.yaml"],
        "dry-run": ["run", "tiny.yaml", "--dry-run"],
        "resume": ["run", "--resume", "run"],
        "fork": ["run", "tiny.yaml", "--fork", "run", "-o", "train.epochs=3"],
        "eval": ["eval", "run", "--protocol", "knn"],
        "eval-weights": ["eval", "run/encoder.safetensors", *recipe],
        "embed": ["embed", "run/checkpoints/step-00000006.pt", folder, "-O", "features.parquet"],
        "export": ["export", "run", "--format", "timm"],
        "sync": ["sync", "tracked"],
        "compare": ["compare", "run", str(stock.second), "--map", "none"],
        "verify": ["verify", "--run", "run", "tiny.yaml", "-o", EXPECTED],
        "load_encoder": ["load_encoder", "run"],
        "pack": ["pack", folder, "--size", "16", "-O", "new.pack"],
        "pack-verify": ["pack", "--verify", str(stock.pack)],
    }


def pick(generator: random.Random, weighted: dict[str, float]) -> str:
    """One of the keys, as often as its weight says."""
    (key,) = generator.choices(list(weighted), list(weighted.values()))
    return key
