"""From a recipe to a run that is ready for its first step: all construction, in order."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .data.loader import TrainLoader
from .data.splits import Splits, open_splits
from .data.store import ImageStore
from .engine.checkpoint import Checkpoints
from .engine.contract import Contract
from .engine.display import Display
from .engine.loop import NoLog, Training
from .engine.online_probe import OnlineProbe
from .engine.optimization import Optimization, checked_factor
from .engine.peek import Peek
from .engine.repeatable import check_augmentation, check_reader
from .engine.runtime import (
    Runtime,
    check_cuda_graphs,
    make_runtime,
    resolve_compile,
    resolve_device,
)
from .engine.state_check import StateCheck
from .engine.torch_faults import Convolution, find_faulty, recorded_convolutions
from .errors import PluginError, RecipeError
from .evaluation.features import eval_mode
from .evaluation.results import SuiteResult
from .evaluation.suites import EvaluationSuites
from .evaluation.untrained import holds_weights
from .interfaces import (
    Augmentation,
    Backbone,
    Facts,
    Method,
    Progress,
    RunView,
    Schedule,
    Slot,
)
from .nn.recompute import is_recomputed
from .randomness import seeded
from .recipe import Recipe, backbone_name, check_recipe, components, flatten, recipe_hash
from .stores import Stores, brought_facts, class_sizes, count_classes, open_stores
from .suites import Watched, evaluate_calibrated, make_suites
from .tracking.environment import git_state
from .tracking.folder import RunFolder
from .tracking.log import RunLog

_MANY = 1_000_000
_SCHEDULE_POINTS = 200
_LOG_STEPS = 50
_LEAST_POINTS = 10
"""Of a curve, where the run has as many steps."""


@dataclass
class Experiment:
    """A run that is built."""

    recipe: Recipe
    facts: Facts
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
        self.stores.train.write_report(self.folder.path / "corrupt_images.json")
        if self.stores.test is not None:
            self.stores.test.write_report(self.folder.path / "corrupt_test_images.json")

    def open_log(self) -> RunLog:
        """Opens the log behind `training`, from its current step on, and connects the tracker."""
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


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that depends on the machine written out (law 4)."""
    train = recipe.train
    augmentation = train.compile_augmentation
    settled = {
        "device": resolve_device(train.device),
        "compile": resolve_compile(train.compile),
        "compile_augmentation": resolve_compile(
            train.compile if augmentation is None else augmentation, "compile_augmentation"
        ),
    }
    resolved = train.model_copy(update=settled)
    check_cuda_graphs(resolved)
    return recipe.model_copy(update={"train": resolved})


def find_facts(recipe: Recipe, splits: Splits, augmentation: Augmentation) -> Facts:
    """What is known before the first step. Raises RecipeError when no whole batch exists."""
    train, reader, test = recipe.train, splits.train, splits.test
    if train.batch_size > len(reader):
        raise RecipeError(
            f"train.batch_size: {train.batch_size} is more than the {len(reader)} training images; "
            f"set train.batch_size={len(reader)} or less"
        )
    steps_per_epoch = len(reader) // train.batch_size
    total = train.epochs * steps_per_epoch
    facts = Facts(
        num_images=len(reader),
        channels=reader.channels,
        image_size=reader.image_size,
        num_classes=count_classes(reader),
        batch_size=train.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(total, train.max_steps) if train.max_steps else total,
        views=augmentation.views,
        num_test_images=0 if test is None else len(test),
        test_has_labels=test is not None and test.labels is not None,
        data_notes=splits.notes,
        class_sizes=class_sizes(reader.labels),
    )
    return replace(facts, evaluated_on=brought_facts(recipe, facts))


def check(recipe: Recipe) -> Facts:
    """Opens the data and finds every combination that cannot work, without building networks.

    Raises RecipeError with all of them."""
    facts = find_facts(recipe, open_splits(recipe.data), recipe.augmentation.build())
    problems = check_recipe(recipe, facts)
    if problems:
        raise RecipeError(*problems)
    return facts


def check_measuring(recipe: Recipe) -> Facts:
    """`check` for an encoder that is only measured: whatever training is about is not looked at, as
    the batch size, which may be above the number of images.

    Raises RecipeError with everything that cannot work."""
    splits = open_splits(recipe.data)
    batch_size = min(recipe.train.batch_size, len(splits.train))
    train = recipe.train.model_copy(update={"batch_size": batch_size})
    fitting = recipe.model_copy(update={"train": train})
    facts = find_facts(fitting, splits, recipe.augmentation.build())
    problems = check_recipe(recipe, facts, training=False)
    if problems:
        raise RecipeError(*problems)
    return facts


def check_without_data(recipe: Recipe) -> None:
    """Finds the combinations that cannot work whatever the data are, and opens none.

    Raises RecipeError with all of them."""
    views, train = recipe.augmentation.build().views, recipe.train
    steps = train.max_steps or train.epochs * _MANY
    found = []
    for channels in (3, 1):
        # Labelled, and so many images that no number is above theirs.
        facts = Facts(
            _MANY * train.batch_size, channels, None, 2, train.batch_size, _MANY, steps, views
        )
        found.append(check_recipe(recipe, facts, data=False))
    problems = [line for line in found[0] if line in found[1]]
    if problems:
        raise RecipeError(*problems)


def make_method(recipe: Recipe, facts: Facts) -> Method:
    """The method and its networks, initialised from the recipe's seed alone."""
    with seeded(recipe.seed, "initialisation"):
        return recipe.method.build(make_backbone(recipe, facts), facts)


def make_backbone(recipe: Recipe, facts: Facts) -> Backbone:
    """The backbone, initialised from the generators as they are."""
    size = max(view.size for view in facts.views)
    return recipe.backbone.build(channels=facts.channels, image_size=size)


def missing_untrained(recipe: Recipe, facts: Facts) -> str | None:
    """Why there can be no untrained encoder to compare with: the backbone gets weights that do not
    come from the seed, although it was asked for none. None where there can be one."""
    bare, networks = without_starting_weights(recipe), []
    for stream in ("initialisation", "another initialisation"):
        with seeded(recipe.seed, stream):
            networks.append(make_backbone(bare, facts))
    if not holds_weights(*networks):
        return None
    slot = recipe.backbone
    return (
        f"backbone '{slot.name}' of {slot.distribution} {slot.version} has the same weights under "
        f"two seeds, so they are not random; {slot.cls.__name__}.architecture must give a "
        "config that loads none"
    )


def say_missing_untrained(recipe: Recipe, facts: Facts, display: Display) -> str | None:
    """`missing_untrained`, said in the first lines, where a protocol would want the encoder."""
    if not any(slot.cls.baselines for slot in recipe.evaluate):
        return None
    reason = missing_untrained(recipe, facts)
    if reason is not None:
        display.message(f"warning: no untrained baseline: {reason}")
    return reason


def without_starting_weights(recipe: Recipe) -> Recipe:
    """The recipe with a backbone that is built without loading or downloading weights."""
    return recipe.model_copy(update={"backbone": without_weights(recipe.backbone)})


def without_weights(backbone: Slot[Backbone]) -> Slot[Backbone]:
    """The backbone alone, in the same way."""
    config = backbone.cls.architecture(backbone.config)
    return Slot(backbone.cls, backbone.name, config, backbone.distribution, backbone.version)


def initial_method(recipe: Recipe, facts: Facts, runtime: Runtime) -> Method:
    """The method as it was before the first step, made again from the seed, on the device."""
    method = make_method(recipe, facts)
    runtime.prepare(method)
    return method


def compile_backbones(method: Method, *, cuda_graphs: bool = False) -> None:
    """Compiles the encoder, and a teacher's, which is a backbone too.

    Raises RecipeError where blocks are recomputed: what they do is not for a compiler."""
    if is_recomputed(method):
        raise RecipeError(
            "train.compile: blocks that the backbone recomputes cannot be compiled; set "
            "train.compile=false, or backbone.recompute=false"
        )
    for module in method.modules():
        if isinstance(module, Backbone):
            module.compile(mode="reduce-overhead" if cuda_graphs else None)


def settle(recipe: Recipe, facts: Facts) -> Recipe:
    """The recipe with everything that depends on the length of the run written out (law 4)."""
    if recipe.train.log_every_steps is not None:
        return recipe
    steps = max(1, min(_LOG_STEPS, facts.total_steps // _LEAST_POINTS))
    train = recipe.train.model_copy(update={"log_every_steps": steps})
    return recipe.model_copy(update={"train": train})


def build(recipe: Recipe, facts: Facts, folder: RunFolder, display: Display) -> Experiment:
    """Builds a resolved recipe whose facts `check` found, in a run folder."""
    recipe = settle(recipe, facts)
    runtime = make_runtime(recipe.train)
    stores = open_stores(recipe, display)
    no_untrained = say_missing_untrained(recipe, facts, display)
    augmentation = recipe.augmentation.build()
    check_repeatable(recipe, facts, stores.train)
    loader = TrainLoader(
        stores.train,
        augmentation,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        device=runtime.device,
        num_threads=recipe.train.loader_threads,
        compiled=runtime.compiled_augmentation,
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
    check_schedule(optimization.schedule, facts)
    probe = make_probe(recipe, facts, runtime, method)
    contract = Contract(
        {slot.cls: path for path, slot in components(recipe)},
        facts.views,
        facts.channels,
        probe_width=method.encoder.num_features if probe else None,
        hook_backbones=not runtime.compiled,
    )
    check_disk_space(recipe, folder, method)

    peek = Peek(
        loader,
        method,
        runtime,
        seed=recipe.seed,
        images=recipe.train.micro_batch_size or recipe.train.batch_size,
        make_untrained=lambda: initial_method(recipe, facts, runtime),
    )
    suite = make_suites(recipe, runtime, stores, method, Watched(probe, loader.maker, peek))

    def evaluate(epoch: int) -> SuiteResult:
        found = evaluate_calibrated(suite, method, epoch, final=False)
        if found.stops:  # before they are logged: a kill between the two forgets nothing
            step = training.progress.step
            folder.write_json(folder.stopped, {"step": step, "stops": dict(found.stops)})
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
        callbacks=[callback.build() for callback in recipe.callbacks],
        checkpoints=Checkpoints(folder.checkpoints, recipe.train.keep_checkpoints),
        log=NoLog(),
        display=display,
        progress=Progress(0, facts.total_steps, facts.steps_per_epoch),
        log_every_steps=recipe.train.log_every_steps or _LOG_STEPS,
        checkpoint_every_steps=recipe.train.checkpoint_every_steps,
        checkpoint_every_epochs=recipe.train.checkpoint_every_epochs,
        micro_batch_size=recipe.train.micro_batch_size,
        evaluate=evaluate,
        evaluation_due=lambda epoch: bool(suite.due(epoch, final=False)),
        contract=contract,
        state_check=StateCheck(method, optimization),
        keep=folder.write_json,
    )
    return Experiment(recipe, facts, folder, runtime, stores, loader, suite, training, no_untrained)


def check_encoder(recipe: Recipe, facts: Facts, runtime: Runtime, encoder: Backbone) -> None:
    """Sends two black images through the encoder, in eval mode. Raises PluginError where it fails
    or its features do not have the width that it states."""
    slot, size = recipe.backbone, encoder.preprocess.size
    who = f"backbone: '{slot.name}' of {slot.distribution} {slot.version}"
    images = torch.zeros(2, facts.channels, size, size, device=runtime.device)
    try:
        with torch.no_grad(), eval_mode(encoder):
            features = encoder(runtime.layout(images))
    except Exception as error:  # whatever a network raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise PluginError(f"{who} cannot take images {tuple(images.shape)}: {reason}") from error
    if tuple(features.shape) != (2, encoder.num_features):
        raise PluginError(
            f"{who} turns images {tuple(images.shape)} into features {tuple(features.shape)}, "
            f"expected (2, num_features) with its num_features {encoder.num_features}"
        )


def check_convolutions(recipe: Recipe, facts: Facts, runtime: Runtime, encoder: Backbone) -> None:
    """Raises RecipeError where torch would give the encoder gradients that are not set."""
    if runtime.device.type != "cpu" or runtime.precision == "fp32":
        return
    seen: set[Convolution] = set()
    for size in {view.size for view in facts.views}:
        images = torch.zeros(2, facts.channels, size, size)
        # A view may be for another network: what fails here says nothing.
        with (
            suppress(Exception),
            torch.no_grad(),
            eval_mode(encoder),
            recorded_convolutions(encoder, seen),
        ):
            encoder(runtime.layout(images))
    if faulty := find_faulty(seen, runtime.precision):
        raise RecipeError(
            f"train.precision: {runtime.precision} on a CPU: torch {torch.__version__} leaves part "
            f"of the weight gradient of {faulty[0]} of the backbone unset"
            f"{f', and of {len(faulty) - 1} more' if len(faulty) > 1 else ''}; set "
            "train.precision=fp32, make the views larger, or take a backbone that shrinks them less"
        )


def check_repeatable(recipe: Recipe, facts: Facts, store: ImageStore) -> None:
    """Raises PluginError where views or images are not functions of the recipe."""
    if store.reader.pixels is None:
        check_reader(store.reader, "data")
    for path, slot in components(recipe):
        if not issubclass(slot.cls, Augmentation):
            continue
        if path == "augmentation" or not _on_own_data(recipe, path):
            check_augmentation(slot.build(), path, facts.channels, facts.image_size)


def _on_own_data(recipe: Recipe, path: str) -> bool:
    """Whether a component lies in a protocol that measures on other data than the run's."""
    owners = [slot.cls for where, slot in components(recipe) if path.startswith(f"{where}.")]
    return any(getattr(owner, "own_data", False) for owner in owners)


def check_schedule(schedule: Schedule, facts: Facts) -> None:
    """Raises PluginError where the schedule gives no learning rate at some point of the run."""
    total = facts.total_steps
    for step in {round(i * (total - 1) / _SCHEDULE_POINTS) for i in range(_SCHEDULE_POINTS + 1)}:
        checked_factor(schedule, Progress(step, total, facts.steps_per_epoch))


def check_disk_space(recipe: Recipe, folder: RunFolder, method: Method) -> None:
    """Raises RecipeError where the checkpoints of the run would not fit on the disk: weights and
    two moments of the optimiser each, and one more file while the next is written."""
    state = sum(value.nbytes for value in method.state_dict().values())
    needed = 3 * state * (recipe.train.keep_checkpoints + 1)
    # A resume replaces the checkpoints that are there.
    own = sum(path.stat().st_size for path in folder.checkpoints.glob("*.pt"))
    free = shutil.disk_usage(folder.path).free + own
    if needed > free:
        raise RecipeError(
            f"runs_dir: the checkpoints need up to {needed / 1e9:.1f} GB and {folder.path.parent} "
            f"has {free / 1e9:.1f} GB free; choose another runs_dir or lower train.keep_checkpoints"
        )


def make_probe(
    recipe: Recipe, facts: Facts, runtime: Runtime, method: Method
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


def run_tags(recipe: Recipe) -> dict[str, str]:
    """The tags of a run, under the names that stay."""
    git = git_state(Path.cwd())
    origins = {slot.distribution: slot.version for _, slot in components(recipe)}
    tags = {
        "sslkit.method": recipe.method.name,
        "sslkit.backbone": backbone_name(recipe),
        "sslkit.dataset": recipe.data.name,
        "sslkit.seed": str(recipe.seed),
        "sslkit.recipe_hash": recipe_hash(recipe),
        "sslkit.version": origins.get("sslkit", "unknown"),
        "sslkit.plugins": ", ".join(
            f"{name} {version}" for name, version in sorted(origins.items())
        ),
    }
    if git is not None:
        tags |= {"mlflow.source.git.commit": git.commit, "sslkit.git_dirty": str(git.dirty).lower()}
    return tags
