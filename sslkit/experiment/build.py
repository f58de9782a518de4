"""From a recipe to a run that is ready for its first step: all construction, in order."""

from __future__ import annotations

from dataclasses import dataclass

from sslkit.api import ImageAugmentation, Method, Progress, RunFacts, RunView
from sslkit.data.loader import TrainLoader
from sslkit.data.sampler import ShuffledSampler
from sslkit.data.views import view_maker
from sslkit.engine.callbacks import Callbacks
from sslkit.engine.contract import Contract
from sslkit.engine.display import Display
from sslkit.engine.embedding_monitor import EmbeddingMonitor
from sslkit.engine.online_probe import OnlineProbe
from sslkit.engine.optimization import Optimization
from sslkit.engine.runtime import (
    Runtime,
    make_runtime,
)
from sslkit.engine.state_check import StateCheck
from sslkit.engine.training import NoLog, Training
from sslkit.evaluation.joined import EvaluationSuites
from sslkit.evaluation.results import SuiteResult
from sslkit.parallel.world import World
from sslkit.recipe import Recipe, components, flatten, scheduled_numbers
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.endings import write_failure, write_stop, write_unreadable
from sslkit.runs.folder import RunFolder
from sslkit.tracking.log import RunLog

from .measuring import Watched, evaluate_calibrated, make_suites
from .networks import (
    compile_backbones,
    initial_method,
    say_missing_untrained,
    starting_source,
    without_starting_weights,
)
from .resolve import LOG_STEPS, settle
from .stores import Stores, open_stores
from .tags import run_tags
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
    runtime: Runtime
    stores: Stores
    loader: TrainLoader
    suite: EvaluationSuites
    training: Training
    no_untrained: str | None
    """Why there is no untrained encoder to compare with, where there is none."""

    @property
    def method(self) -> Method:
        """The method that is trained."""
        return self.training.method

    def write_unreadable(self) -> None:
        """Lists the images that could not be read, where there are any."""
        if not self.folder.writable:
            return
        write_unreadable(self.folder, "train", self.stores.train.report())
        if self.stores.test is not None:
            write_unreadable(self.folder, "test", self.stores.test.report())

    def open_log(self) -> RunLog | NoLog:
        """Opens the log behind `training`, from its current step on, and connects the tracker; on
        rank 0 alone."""
        if not self.folder.writable:
            return NoLog()
        self.folder.truncate_metrics(self.training.progress.step)
        log = RunLog(self.folder, self.recipe.tracking.build(), self.training.run)
        self.training.log = log
        return log

    def untrained(self) -> Method | None:
        """The method with random weights from the seed: as it was before the first step, unless it
        started from weights. None where there is no such thing."""
        if self.no_untrained is not None:
            return None
        bare = without_starting_weights(self.recipe)
        return initial_method(bare, self.facts, self.runtime)


def build(
    recipe: Recipe, facts: RunFacts, folder: RunFolder, display: Display, world: World
) -> Experiment:
    """Builds a resolved recipe whose facts `check` found, in a run folder."""
    recipe = settle(recipe, facts)
    runtime = make_runtime(recipe.train, world)
    stores = open_stores(recipe, display)
    no_untrained = say_missing_untrained(recipe, facts, display)
    augmentation = recipe.augmentation.build()
    check_repeatable(recipe, facts, stores.train)
    loader = TrainLoader(
        view_maker(
            stores.train, augmentation, runtime.device, compiled=runtime.compiled_augmentation
        ),
        ShuffledSampler(len(stores.train), recipe.train.batch_size, recipe.seed),
        seed=recipe.seed,
        num_threads=recipe.train.loader_threads,
    )

    method = initial_method(recipe, facts, runtime)
    check_encoder(recipe, facts, runtime, method.encoder)
    check_convolutions(recipe, facts, runtime, method.encoder)
    if runtime.compiled:
        compile_backbones(method, cuda_graphs=runtime.cuda_graphs)
    optimization = Optimization(
        method,
        recipe.optimizer.build(),
        recipe.schedule.build(),
        batch_size=recipe.train.batch_size,
        max_grad_norm=recipe.train.max_grad_norm,
        scaler=runtime.make_scaler(),
    )
    check_schedules(recipe, facts)
    probe = make_probe(recipe, facts, runtime, method)
    contract = Contract(
        {slot.cls: path for path, slot in components(recipe)},
        facts.views,
        facts.channels,
        bounded=issubclass(recipe.augmentation.cls, ImageAugmentation),
        probe_width=method.encoder.num_features if probe else None,
        hook_backbones=not runtime.compiled,
    )
    check_disk_space(recipe, folder, method)

    monitor = EmbeddingMonitor(
        loader,
        method,
        runtime,
        seed=recipe.seed,
        images=recipe.train.micro_batch_size or recipe.train.batch_size,
        make_untrained=lambda: initial_method(recipe, facts, runtime),
    )
    suite = make_suites(recipe, runtime, stores, method, Watched(probe, loader.maker, monitor))

    def evaluate(epoch: int) -> SuiteResult:
        stores.agree(world)
        return world.once(lambda: evaluate_here(epoch))

    def evaluate_here(epoch: int) -> SuiteResult:
        found = evaluate_calibrated(suite, method, epoch, final=False)
        if found.stops:  # before they are logged: a kill between the two forgets nothing
            write_stop(folder, training.progress.step, found.stops)
        return found

    view = RunView(folder.path, f"{recipe.name}-s{recipe.seed}", flatten(recipe), run_tags(recipe))
    training = Training(
        run=view,
        seed=recipe.seed,
        runtime=runtime,
        loader=loader,
        method=method,
        optimization=optimization,
        probe=probe,
        callbacks=make_callbacks(recipe, world),
        checkpoints=Checkpoints(folder.checkpoints, recipe.train.keep_checkpoints),
        log=NoLog(),
        display=display,
        progress=Progress(0, facts.total_steps, facts.steps_per_epoch),
        log_every_steps=recipe.train.log_every_steps or LOG_STEPS,
        checkpoint_every_steps=recipe.train.checkpoint_every_steps,
        checkpoint_every_epochs=recipe.train.checkpoint_every_epochs,
        micro_batch_size=recipe.train.micro_batch_size,
        evaluate=evaluate,
        evaluation_due=lambda epoch: bool(suite.due(epoch, final=False)),
        contract=contract,
        state_check=StateCheck(method, optimization),
        scheduled=scheduled_numbers(recipe),
        starts_from=starting_source(recipe),
        keep_failure=lambda record: write_failure(folder, record),
    )
    return Experiment(recipe, facts, folder, runtime, stores, loader, suite, training, no_untrained)


def make_callbacks(recipe: Recipe, world: World) -> Callbacks:
    """The callbacks of the recipe, which the first rank calls."""
    watching = recipe.callbacks if world.is_first else ()
    return Callbacks([(slot.name.rpartition(":")[2], slot.build()) for slot in watching])


def make_probe(
    recipe: Recipe, facts: RunFacts, runtime: Runtime, method: Method
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
        device=runtime.device,
    )
