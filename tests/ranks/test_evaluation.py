"""Evaluation on several ranks: the numbers of one process to the bit, every image once, and what
one rank finds, or ends by, known to all."""

from __future__ import annotations

import os
import signal
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.api import Evaluation, FeatureInput, Preprocess, Split, UnreadableImageError
from sslkit.builtin.crop_flip import CropFlip
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.evaluators.retrieval import Retrieval
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import StoredImages
from sslkit.data.splits import Splits
from sslkit.engine.display import Display, Silent
from sslkit.engine.signals import StopSignals
from sslkit.errors import DataError, RankError, SSLKitError, TrainingError
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.results import SuiteResult
from sslkit.evaluation.subjects import Subject
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.nn.compute import Compute
from sslkit.parallel.shared_work import SharedWork
from sslkit.parallel.world import World
from sslkit.recipe import load_recipe
from sslkit.runs.endings import why_stopped
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.runs.state import read_state
from sslkit.workflows.evaluate.measure import metrics_of
from sslkit.workflows.evaluate.saved_run import evaluate_run
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.evaluation.image_subjects import Arrays, Network, coloured, protocol
from tests.ranks.forked import on_ranks

RECIPE = """\
name: ranks
data: {name: synthetic, num_train: 1003, num_test: 517, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet}
method: {name: simclr, head: {name: mlp, hidden_dim: 16, out_dim: 8}}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
train: {epochs: 1, max_steps: 3, batch_size: 16, device: cpu, loader_threads: 0,
        online_probe: {lr: 0.1}}
tracking: {name: none}
"""
SCENES = "{name: scenes, num_train: 6, num_test: 5, size: 32}"
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]  # a quarter of a minute of CPU time
EVALUATORS = {
    "knn": "{name: knn, k: 20}",
    "linear": "{name: linear, l2: [0.1, 0.01]}",
    "few_label": "{name: few_label, labels_per_class: [2], draws: 3}",
    "semi_supervised": "{name: semi_supervised, fractions: [0.1], draws: 2, epochs: [1]}",
    "finetune": "{name: finetune, epochs: 1}",
    "clustering": "{name: clustering}",
    "retrieval": "{name: retrieval}",
    "collapse": "{name: collapse, num_images: 300, num_pairs: 50}",
    "segmentation": f"{{name: segmentation, max_iterations: 5, data: {SCENES}}}",
    "detection": "{name: detection, steps: 2, warmup_steps: 2, batch_size: 2, sizes: [32],"
    f" pyramid_width: 16, head_width: 16, data: {SCENES}}}",
    "knn_2": "{name: knn, k: 5, data: {name: synthetic, num_train: 601, num_test: 77, size: 16,"
    " data_seed: 3}}",
}
"""Every built-in evaluator, and one on data that it brings."""


def begin(folder: Path) -> RunFolder:
    (folder / "ranks.yaml").write_text(RECIPE)
    return RunFolder.create(folder, "ranks")


def built(folder: RunFolder, world: World, *overrides: str) -> Experiment:
    """An experiment that is ready for its first step."""
    recipe = resolve(load_recipe(folder.path.parent / "ranks.yaml", overrides))
    return build(recipe, check(recipe), folder, Silent(), world)


def returned(ends: list[Any]) -> list[Any]:
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


def findings(result: SuiteResult) -> dict[str, Any]:
    """All that was found, but times and the pixels of figures."""
    images = {
        f"{subject} {key} {name}": scores.values.tolist()
        for subject, keys in result.evaluations.items()
        for key, evaluation in keys.items()
        for name, scores in evaluation.per_image.items()
    }
    found = result.to_json() | {"images": images}
    return {part: value for part, value in found.items() if part not in ("seconds", "timings")}


# --- Every evaluator ------------------------------------------------------------------------------


def last_evaluation(folder: Path, world: World) -> list[Any]:
    """That of the end of a run, beside the baselines; on all ranks but the first the numbers."""
    with held_by_first(world, lambda: begin(folder)) as run, StopSignals() as stop:
        experiment = built(run, world, f"evaluate=[{', '.join(EVALUATORS.values())}]")
        before = {name: value.clone() for name, value in experiment.method.state_dict().items()}
        with experiment.evaluation.stopped_by(stop):
            results = experiment.evaluation.run_last(1, lambda: None, experiment.untrained)
        for name, value in experiment.method.state_dict().items():
            assert torch.equal(value, before[name]), name
        if world.is_first:
            return [findings(result) for result in results]
        assert all(not result.evaluations for result in results)
        return [result.metrics for result in results]


@cache
def evaluated(size: int) -> list[list[Any]]:
    """What each rank says of the trained encoder and of the baselines."""
    with TemporaryDirectory() as folder:
        return returned(on_ranks(partial(last_evaluation, Path(folder)), size))


def of_evaluator(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What an evaluator found, of all that was."""
    stem = f"{name}/" if name == "collapse" else f"eval/{name}/"
    return {
        "metrics": {key: v for key, v in found["metrics"].items() if key.startswith(stem)},
        "evaluations": {key: every.get(name) for key, every in found["evaluations"].items()},
        "images": {key: v for key, v in found["images"].items() if key.split()[1] == name},
        **{part: found[part].get(name) for part in ("skipped", "errors", "warnings", "notes")},
    }


@pytest.mark.slow  # 31 seconds
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(EVALUATORS.keys() - {"collapse"}))
def test_every_evaluator_finds_on_ranks_what_it_finds_in_one_process(size: int, name: str) -> None:
    for alone, together in zip(evaluated(1)[0], evaluated(size)[0], strict=True):
        assert of_evaluator(name, together) == of_evaluator(name, alone)
        assert of_evaluator(name, alone)["metrics"]
        assert not alone["errors"]


@pytest.mark.slow  # 32 seconds
@pytest.mark.parametrize("size", SIZES)
def test_embeddings_alone_differ_in_their_last_digits(size: int) -> None:
    """Those are as a step of training on ranks makes them, whose batch statistics are added up in
    another order."""
    alone, together = (evaluated(ranks)[0][0]["metrics"] for ranks in (1, size))
    assert together.keys() == alone.keys()
    spreads = {name for name in alone if name.startswith("collapse/embedding_spread")}
    assert len(spreads) >= 3
    assert {name: together[name] for name in spreads} == pytest.approx(
        {name: alone[name] for name in spreads}, rel=1e-5
    )
    others = alone.keys() - spreads
    assert {name: together[name] for name in others} == {name: alone[name] for name in others}


@pytest.mark.slow  # 19 seconds
@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_are_told_the_numbers(size: int) -> None:
    first, *others = evaluated(size)
    for told in others:
        assert told == [result["metrics"] for result in first]


@pytest.mark.slow  # 16 seconds
def test_the_baselines_are_among_them() -> None:
    found = evaluated(1)[0][1]["evaluations"]
    assert found["pixels"].keys() >= {"knn", "linear", "segmentation", "knn_2"}
    assert found["untrained"].keys() == EVALUATORS.keys() - {"collapse"}


# --- Every image once -----------------------------------------------------------------------------


class Files(Arrays):
    """Images that are read when they are needed, and noted; some cannot be."""

    def __init__(self, num: int, seed: int, damaged: Sequence[int] = ()) -> None:
        pixels, labels = coloured(num, seed, noise=0.3)
        super().__init__(pixels, labels)
        self.image_size = None
        self.damaged = damaged
        self.reads: Counter[int] = Counter()

    def read(self, index: int) -> NDArray[np.uint8]:
        self.reads[index] += 1
        if index in self.damaged:
            raise UnreadableImageError("damaged")
        return super().read(index)


class Watched(Network):
    """Counts the batches, and how many of its outputs are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[weakref.ref[Tensor]] = []
        self.most_kept = 0

    def forward(self, images: Tensor) -> Tensor:
        self.most_kept = max(self.most_kept, sum(ref() is not None for ref in self.outputs))
        found = super().forward(images)
        self.outputs.append(weakref.ref(found))
        return found


def files_evaluated(
    num_train: int, num_test: int, damaged: Sequence[int], world: World
) -> tuple[Any, Counter[int], Counter[int], Watched]:
    """Findings, reads of both splits, the network."""
    readers = Files(num_train, 0), Files(num_test, 1, damaged)
    splits = Splits(*readers).map(
        lambda reader: CachedSplit(reader, max_corrupt_fraction=0.1, seed=0, num_threads=2)
    )
    compute = Compute(torch.device("cpu"), "fp32", channels_last=False, world=world)
    images = StoredImages(
        splits,
        Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.2,) * 3),
        compute,
        seed=0,
        augmentation=CropFlip(CropFlip.Config(size=8)),
    )

    def settle() -> None:
        for split in splits.present().values():
            split.agree(world)

    work = SharedWork(world, settle)
    suite = EvaluationSuite(
        named_evaluators([("knn", protocol("knn", k=5)), ("linear", protocol("linear"))]),
        images,
        calibrate=partial(images.calibrate, work=work),
        work=work,
    )
    network = Watched()
    with suite.calibrated(network):
        statistics = [value.tolist() for value in network.buffers()]
        found = suite.run(network, 1, final=True)
    told = findings(found) if world.is_first else found.metrics
    labels = [images.labels("train").tolist(), images.labels("test").tolist()]
    return (told, statistics, labels), readers[0].reads, readers[1].reads, network


@pytest.mark.slow  # 8 seconds
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("num_train", "num_test"), [(1003, 517), (1025, 3), (2563, 1537)])
def test_every_image_is_read_once(size: int, num_train: int, num_test: int) -> None:
    def work(world: World) -> Any:
        found, train, test, network = files_evaluated(num_train, num_test, (), world)
        return found, train, test, len(network.outputs), network.most_kept

    ((expected, *_),) = returned(on_ranks(work, 1))
    ranks = returned(on_ranks(work, size))
    told, statistics, _ = ranks[0][0]
    assert told == expected[0]
    assert all(found[1] == statistics == expected[1] for found, *_ in ranks)
    train = sum((train for _, train, *_ in ranks), Counter())
    test = sum((test for _, _, test, *_ in ranks), Counter())
    assert train == Counter(dict.fromkeys(range(num_train), 2))  # batch statistics and features
    assert test == Counter(range(num_test))
    calibrating, training, testing = (
        ceil(num / 512) for num in (num_train - (num_train == 1025), num_train, num_test)
    )  # one image alone has no batch statistics, and joins the batch before
    assert sum(passed for *_, passed, _ in ranks) == calibrating + training + testing
    for *_, most_kept in ranks[1:]:
        assert most_kept <= 2  # those of the last batch and the one before


@pytest.mark.slow  # 6 seconds
def test_what_one_rank_cannot_read_has_the_same_label_on_all() -> None:
    damaged = [3, 600, 1100]  # of the first batch, the second, the third

    def work(world: World) -> Any:
        found, *_ = files_evaluated(70, 1300, damaged, world)
        return found

    ((told, statistics, labels),) = returned(on_ranks(work, 1))
    whole = coloured(1300, 1, noise=0.3)[1].tolist()
    assert labels[1] != whole
    for rank, found in enumerate(returned(on_ranks(work, 2))):
        assert found == (told if rank == 0 else told["metrics"], statistics, labels)


# --- The embedding monitor ------------------------------------------------------------------------


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize(("size", "whole"), [(2, 16), (4, 8)])
def test_embeddings_are_those_of_the_whole_micro_batch(
    tmp_path: Path, size: int, whole: int
) -> None:
    def work(world: World) -> Any:
        with held_by_first(world, lambda: begin(tmp_path)) as folder:
            experiment = built(folder, world, f"train.micro_batch_size={whole}")
        monitor, method = experiment.evaluation.monitor, experiment.method
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.mul_(1.1)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        passed = []
        embed = type(method).embed

        def counted(self: Any, batch: Any) -> Any:
            passed.append(len(batch))
            return embed(self, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(method), "embed", counted)
            with monitor.on_all_ranks():
                found = monitor.now(), monitor.untrained()
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
        return found, passed

    ((alone, images),) = returned(on_ranks(work, 1))
    (together, shares), *others = returned(on_ranks(work, size))
    assert images == [whole] * 2
    assert shares == [whole // size] * 2
    for one, several in zip(alone, together, strict=True):
        assert one.keys() == several.keys()
        for name, value in one.items():
            torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-5)
    now, untrained = (each["z"] for each in alone)
    assert (now - untrained).abs().max() > 1e-2
    assert all(found == ({}, {}) for found, _ in others)


# --- Whole runs -----------------------------------------------------------------------------------

EVALUATE = "evaluate=[{name: knn, k: 20, every_epochs: 1}, {name: retrieval, every_epochs: 1}]"
TWO_EPOCHS = ["train.epochs=2", "train.max_steps=null", "data.num_train=32"]


def run(folder: Path, world: World, *overrides: str, display: Display | None = None) -> RunResult:
    """One rank's part of a run."""
    path = folder / f"{world.rank}.yaml"
    path.write_text(f"{RECIPE}runs_dir: {folder / 'runs'}\n")
    with StopSignals() as stop:
        return start(str(path), overrides, display=display or Silent(), stop=stop, world=world)


@pytest.mark.slow  # 11 seconds
def test_a_run_on_two_ranks_says_of_its_encoder_what_one_process_says(tmp_path: Path) -> None:
    names = ("knn", "linear", "collapse")
    blocks = f"evaluate=[{', '.join(EVALUATORS[name] for name in names)}]"
    first, second = returned(on_ranks(lambda world: run(tmp_path, world, blocks)))
    found = evaluate_run(first.run_dir, None, [], Silent()).results
    for key, value in metrics_of(found).items():
        assert first.metrics[key] == value, key
    logged = {key for key in first.metrics if key.startswith(("eval/", "collapse/"))}
    monitored = {key for key in logged if "embedding_spread" in key or "online_probe" in key}
    assert logged - monitored == metrics_of(found).keys()
    assert second.metrics == first.metrics


@pytest.mark.slow  # 4 seconds
def test_a_policy_ends_the_run_on_all_ranks(tmp_path: Path) -> None:
    block = "evaluate=[{name: collapse, policy: stop, min_rankme: 1000, every_epochs: 1}]"
    first, second = on_ranks(lambda world: run(tmp_path, world, block, *TWO_EPOCHS))
    assert isinstance(first, TrainingError)
    assert "epoch 1: stopped by collapse" in str(first)
    assert isinstance(second, RankError)
    assert second.said
    assert "stopped by collapse" in str(second)
    (folder,) = (tmp_path / "runs").iterdir()
    assert "collapse" in str(why_stopped(folder))


def on_rank(rank: int) -> bool:
    """Whether this process, forked from the test, is that one."""
    return os.environ.get("RANK") == str(rank)


@pytest.mark.slow  # 13 seconds
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (DataError("data: the disk is gone"), "data: the disk is gone"),
        (RuntimeError("std::bad_alloc"), "memory"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_ends_the_share_of_a_rank_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, raised: Exception, said: str
) -> None:
    batches = Subject._batches

    def broken(self: Subject, split: Split) -> Iterator[Tensor]:
        for number, images in enumerate(batches(self, split)):
            if number == 1 and on_rank(rank):
                raise raised
            yield images

    monkeypatch.setattr(Subject, "_batches", broken)
    ends = on_ranks(lambda world: run(tmp_path, world, EVALUATE, "data.num_train=2563"))
    assert all(isinstance(end, SSLKitError) for end in ends)
    assert all(said in str(end) for end in ends)
    assert not getattr(ends[0], "said", False)
    assert f"rank {rank}" in str(ends[1 - rank]) or rank == 0


@pytest.mark.slow  # 5 seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_taking_of_features_after_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    batches = Subject._batches
    taken: list[int] = []

    def signalled(self: Subject, split: Split) -> Iterator[Tensor]:
        for images in batches(self, split):
            if not taken and on_rank(rank):
                signal.raise_signal(signal.SIGUSR1)
            taken.append(len(images))
            yield images

    monkeypatch.setattr(Subject, "_batches", signalled)

    def work(world: World) -> tuple[RunResult, list[int]]:
        return run(tmp_path, world, EVALUATE, "data.num_train=2563", "train.max_steps=1"), taken

    for result, shares in returned(on_ranks(work)):
        assert result.status == "stopped"
        assert shares == [512]
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_state(folder)["step"] == 1


@pytest.mark.slow  # 6 seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_an_evaluator_works_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """At once, also where it comes to the rank that waits for it."""
    worked: list[str] = []

    def signalled(self: KNN, given: FeatureInput) -> Evaluation:
        worked.append("knn begun")
        os.kill(int((tmp_path / f"{rank}.pid").read_text()), signal.SIGTERM)
        sleep(100)
        worked.append("knn done")
        return Evaluation({"top1": 0.5})

    def after(self: Retrieval, given: FeatureInput) -> Evaluation:
        worked.append("retrieval begun")
        return Evaluation({"top1": 0.5})

    monkeypatch.setattr(KNN, "evaluate", signalled)
    monkeypatch.setattr(Retrieval, "evaluate", after)

    def work(world: World) -> tuple[RunResult, list[str]]:
        (tmp_path / f"{world.rank}.pid").write_text(str(os.getpid()))
        return run(tmp_path, world, EVALUATE, *TWO_EPOCHS), worked

    (first, done), (second, idle) = returned(on_ranks(work))
    assert first.status == second.status == "stopped"
    assert done == ["knn begun"]
    assert idle == []
    assert read_state(first.run_dir)["step"] == 2
