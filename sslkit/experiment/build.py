"""From a recipe to a run that is ready for its first step: all construction, in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from sslkit.api import (
    Callback,
    ImageAugmentation,
    Method,
    Progress,
    RunFacts,
    RunView,
)
from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import sampler_of
from sslkit.data.views import view_maker
from sslkit.engine.callbacks import Callbacks
from sslkit.engine.contract import Contract
from sslkit.engine.display import Display
from sslkit.engine.embedder import Embedder, ShardedEmbedder
from sslkit.engine.embedding_monitor import EmbeddingMonitor
from sslkit.engine.online_probe import OnlineProbe
from sslkit.engine.optimization import Optimization
from sslkit.engine.training import Learner, NoLog, Output, Pace, Training
from sslkit.errors import RecipeError
from sslkit.evaluation.suite import EvaluationSuites
from sslkit.nn.compute import Compute
from sslkit.parallel.division import Division
from sslkit.parallel.sharding import blocks
from sslkit.parallel.world import World
from sslkit.recipe import Recipe, TrainConfig, components, flatten, scheduled_numbers
from sslkit.runs.checkpoint import BackgroundCheckpoints, Checkpoints
from sslkit.runs.endings import write_unreadable
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import RunLog

from .description import describe_run, run_tags
from .measuring import Watched, make_suites
from .networks import (
    compile_backbones,
    initial_method,
    say_missing_untrained,
    starting_source,
    without_starting_weights,
)
from .resolve import make_compute, settle
from .run_evaluation import Measured, MeasuredCopy, RunEvaluation
from .stores import Stores, open_stores
from .trials import (
    check_convolutions,
    check_disk_space,
    check_encoder,
    check_repeatable,
    check_schedules,
)


@dataclass
class Experiment:
    """A run that is built."""

    recipe: Recipe
    facts: RunFacts
    folder: RunFolder
    stores: Stores
    evaluation: RunEvaluation
    training: Training
    no_untrained: str | None
    """Why there is no untrained encoder to compare with, where there is none."""

    @property
    def compute(self) -> Compute:
        """Where and how it computes."""
        return self.training.compute

    @property
    def suite(self) -> EvaluationSuites:
        """The evaluators of the run."""
        return self.evaluation.suites

    @property
    def method(self) -> Method:
        """The method as it is measured and exported."""
        return self.evaluation.measured.method

    def describe(self) -> dict[str, Any]:
        """What the recipe does not say about the run, here and now."""
        return describe_run(self.recipe, self.facts, self.stores, self.compute)

    def write_unreadable(self) -> list[str]:
        """Lists the samples that could not be read, and says of each split how many they are, where
        there are any."""
        said = []
        for split, store in (("train", self.stores.train), ("test", self.stores.test)):
            if store is not None and self.folder.writable:
                noun = self.facts.sample.noun
                said += write_unreadable(self.folder, split, store.report(), noun)
        return said

    def open_log(self) -> RunLog | NoLog:
        """Opens the log behind `training`, from its current step on, and connects the tracker; on
        rank 0 alone."""
        if not self.folder.writable:
            return NoLog()
        self.folder.truncate_metrics(self.training.progress.step)
        log = RunLog(self.folder, self.recipe.tracking.build(), self.training.output.run)
        self.training.output.log = log
        return log

    def untrained(self) -> Method | None:
        """The method with random weights from the seed, as it was before the first step, unless it
        started from weights: for its encoder and projection layers. None where there is none."""
        if self.no_untrained is not None:
            return None
        bare = without_starting_weights(self.recipe)
        return initial_method(bare, self.facts, self.compute, whole=False)


def build(
    recipe: Recipe,
    facts: RunFacts,
    folder: RunFolder,
    display: Display,
    world: World,
    stores: Stores | None = None,
) -> Experiment:
    """Builds a resolved recipe whose facts `check` found, in a run folder. stores: the images,
    where a run of the same data and augmentation has opened and tried them before."""
    recipe = settle(recipe, facts)
    compute = make_compute(recipe.train, world)
    tried = stores is not None
    stores = stores or open_stores(recipe, display, world)
    no_untrained = say_missing_untrained(recipe, facts, display)
    if not tried:
        check_repeatable(recipe, facts, stores.train)
    loader = make_loader(recipe, compute, stores)

    method = initial_method(recipe, facts, compute)
    check_encoder(recipe, facts, compute, method.encoder)
    check_convolutions(recipe, facts, compute, method.encoder)
    measured = MeasuredCopy(method, compute.device) if compute.sharded else Measured(method)
    if compute.compiled:
        compile_backbones(method, compute)
    learner = make_learner(recipe, facts, compute, method)
    check_schedules(recipe, facts)
    check_disk_space(recipe, folder, method)

    monitor = make_monitor(recipe, facts, compute, loader, measured.method)
    watched = Watched(learner.probe, loader.maker, monitor)
    suites = make_suites(recipe, compute, stores, measured.method, watched)
    evaluation = RunEvaluation(suites, measured, monitor, stores, folder)
    training = Training(
        compute,
        loader,
        learner,
        Progress(0, facts.total_steps, facts.steps_per_epoch),
        make_pace(recipe),
        evaluation,
        make_output(recipe, folder, display, compute),
    )
    return Experiment(recipe, facts, folder, stores, evaluation, training, no_untrained)


def make_loader(recipe: Recipe, compute: Compute, stores: Stores) -> TrainLoader:
    """The training batches."""
    compiled = compute.compiled_augmentation
    maker = view_maker(stores.train, recipe.augmentation.build(), compute.device, compiled=compiled)
    return TrainLoader(
        maker,
        sampler_of(stores.train.reader, recipe.train.batch_size, recipe.seed),
        seed=recipe.seed,
        num_threads=recipe.train.loader_threads,
        division=make_division(recipe, compute.world),
    )


def make_division(recipe: Recipe, world: World) -> Division:
    """How a batch is cut into micro-batches and shared by the ranks."""
    train = recipe.train
    return Division.of(train.batch_size, train.micro_batch_size, world.rank, world.size)


def make_learner(recipe: Recipe, facts: RunFacts, compute: Compute, method: Method) -> Learner:
    """What is trained, with all that a step needs."""
    embedder = make_embedder(compute, method)  # first: it may take the parameters apart
    optimization = Optimization(
        method,
        recipe.optimizer.build(),
        recipe.schedule.build(),
        batch_size=recipe.train.batch_size,
        max_grad_norm=recipe.train.max_grad_norm,
        scaler=compute.make_scaler(),
    )
    probe = make_probe(recipe, facts, compute, method)
    contract = Contract(
        {slot.cls: path for path, slot in components(recipe)},
        facts.views,
        facts.channels,
        bounded=issubclass(recipe.augmentation.cls, ImageAugmentation),
        probe_width=method.encoder.num_features if probe else None,
        scheduled=scheduled_numbers(recipe),
        hook_backbones=not compute.compiled,
    )
    return Learner(
        method,
        optimization,
        probe,
        contract,
        recipe.seed,
        embedder=embedder,
        division=make_division(recipe, compute.world),
        starts_from=starting_source(recipe),
    )


def make_embedder(compute: Compute, method: Method) -> Embedder:
    """How batches pass through the networks. Raises RecipeError where weights are to lie in parts
    and none can."""
    if compute.sharded and not blocks(method):
        raise RecipeError(
            f"train.parallel: fsdp divides blocks that repeat, and {type(method).__name__} has "
            "none in its networks; set train.parallel=ddp"
        )
    if compute.sharded:
        return ShardedEmbedder(method, compute.world, compute.device)
    return Embedder(method, compute.world)


def make_monitor(
    recipe: Recipe, facts: RunFacts, compute: Compute, loader: TrainLoader, method: Method
) -> EmbeddingMonitor:
    """What shows the embeddings of one batch to evaluators."""
    return EmbeddingMonitor(
        loader.another(),
        method,
        compute,
        seed=recipe.seed,
        division=loader.division,
        make_untrained=partial(initial_method, recipe, facts, compute),
    )


def make_pace(recipe: Recipe) -> Pace:
    """When things happen. recipe: settled."""
    train = recipe.train
    assert train.log_every_steps is not None
    return Pace(
        train.log_every_steps,
        train.checkpoint_every_steps,
        train.checkpoint_every_epochs,
        scheduled_numbers(recipe),
    )


def make_output(recipe: Recipe, folder: RunFolder, display: Display, compute: Compute) -> Output:
    """Where results go; the log is opened when the run begins."""
    name = f"{recipe.name}-s{recipe.seed}"
    return Output(
        RunView(folder.path, name, flatten(recipe), run_tags(recipe)),
        folder,
        make_checkpoints(folder, recipe.train),
        display,
        make_callbacks(recipe, compute),
    )


def make_checkpoints(folder: RunFolder, train: TrainConfig) -> Checkpoints:
    """Where and how the run is saved."""
    kind = BackgroundCheckpoints if train.checkpoint_in_background else Checkpoints
    return kind(folder.checkpoints, train.keep_checkpoints)


def make_callbacks(recipe: Recipe, compute: Compute) -> Callbacks:
    """The callbacks of the recipe, which the first rank calls. Raises RecipeError for one that sees
    gradients, of which that rank has a part."""
    for place, slot in enumerate(recipe.callbacks if compute.sharded else ()):
        if slot.cls.on_gradients is not Callback.on_gradients:
            raise RecipeError(
                f"callbacks.{place}: {slot.name} sees gradients, of which each process has a part "
                "with train.parallel=fsdp; leave it out, or set train.parallel=ddp"
            )
    watching = recipe.callbacks if compute.world.is_first else ()
    return Callbacks([(slot.name.rpartition(":")[2], slot.build()) for slot in watching])


def make_probe(
    recipe: Recipe, facts: RunFacts, compute: Compute, method: Method
) -> OnlineProbe | None:
    """The online probe, where the recipe wants it and the data has labels."""
    config = recipe.train.online_probe
    if config is None or not facts.num_classes:
        return None
    return OnlineProbe(
        method.encoder.num_features,
        facts.num_classes,
        lr=config.lr,
        weight_decay=config.weight_decay,
        seed=recipe.seed,
        device=compute.device,
    )
