"""Runs on disk: finding them, reading their state, taking the encoder out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from .batch_statistics import calibrate_as_in_run
from .engine.checkpoint import Checkpoints
from .engine.checkpoint import load as load_checkpoint
from .errors import CheckpointError, RecipeError, RunFolderError, TrainingError
from .experiment import Experiment, make_method, without_starting_weights, without_weights
from .files import read_json, reason
from .interfaces import Backbone, Facts, Method, resolve_component
from .nn import safetensors_file
from .nn.batch_norm import has_batch_statistics
from .recipe import Derived, Recipe, components, hashed_view, load_recipe, read_field, recipe_hash
from .tracking.atomic import UMASK
from .tracking.folder import RunFolder, sanitise_name
from .tracking.metrics_file import read_lines

RESULTS = "results.json"
"""Written last: a run folder that has it is finished."""
_MAX_SIDE = 1 << 14
"""Pixels of a side, and channels, of images that a network may be built for."""
_FACTS: TypeAdapter[Facts] = TypeAdapter(Facts)
_REASON = 250
"""Characters of one reason: a list of missing keys can be pages long."""


def is_finished(path: Path) -> bool:
    """Whether a run came to its end."""
    return (path / RESULTS).exists()


def why_stopped(path: Path) -> str | None:
    """The protocol that ended a run before its time, and its reason; None where none did. Raises
    RunFolderError where the record cannot be read."""
    file = RunFolder(path).stopped
    try:
        found = read_json(file, inside=path)
        stops = "; ".join(f"{protocol}: {why}" for protocol, why in found["stops"].items())
        return f"step {int(found['step'])}: stopped by {stops}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunFolderError(f"{file}: cannot be read ({reason(error)}); remove it") from error


def is_fork(path: Path) -> bool:
    """Whether a run started from another one's state: it is no repetition of its recipe."""
    try:
        return read_environment(path).get("forked_from") is not None
    except CheckpointError:  # killed before it was written, and so before the first step
        return False


def find_unfinished(recipe: Recipe) -> Path | None:
    """The newest run of this recipe, on the same paths, that has not come to its end."""
    found = []
    mine = f"{sanitise_name(recipe.name)}-*"
    for path in Path(recipe.runs_dir).glob(f"{mine}/recipe.resolved.yaml"):
        try:
            folder = RunFolder.open(path.parent)
            if is_finished(folder.path) or is_fork(folder.path):
                continue
            saved = load_recipe(path)
        except (RecipeError, RunFolderError):  # of another version, or no run of ours
            continue
        if _identity(saved) == _identity(recipe):
            found.append(folder)
    return max(found, key=lambda folder: folder.id).path if found else None


def _identity(recipe: Recipe) -> tuple[object, ...]:
    return recipe.name, recipe.seed, recipe_hash(recipe), _paths(recipe)


def _paths(recipe: Recipe) -> dict[str, Path]:
    """Every path in the components of a recipe, absolute; the hash leaves their values out."""
    return {
        f"{where}.{field}": value.absolute()
        for where, slot in components(recipe)
        for field, value in slot.config
        if isinstance(value, Path) and not where.startswith(("tracking", "callbacks"))
    }


def refuse_changes(saved: Recipe, wanted: Recipe, path: Path) -> None:
    """Raises RecipeError where a resume would change what the run computes."""
    before, after = _flat(hashed_view(saved)), _flat(hashed_view(wanted))
    before["seed"], after["seed"] = saved.seed, wanted.seed
    changed = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )
    if changed:
        raise RecipeError(
            *(
                f"{key}: the run has {before.get(key)!r}, this recipe {after.get(key)!r}; a resume "
                f"keeps the recipe: use --fork {path} for a new run from there"
                for key in changed
            )
        )


def refuse_other_data(experiment: Experiment, folder: RunFolder | None = None) -> None:
    """Raises CheckpointError where the data is not what the run was started with. folder: of that
    run; default: the experiment's own."""
    folder = folder or experiment.folder
    saved = read_environment(folder.path).get("data", {})
    found = experiment.stores.fingerprints
    for split, before in saved.items():
        if before != found.get(split):
            raise CheckpointError(
                f"{folder.path}: the {split} data has changed since this run began (fingerprint "
                f"{before}, now {found.get(split)}); start a new run with --fork {folder.path}"
            )


def read_environment(path: Path) -> dict[str, Any]:
    """environment.json of a run folder. Raises CheckpointError."""
    try:
        environment = read_json(path / "environment.json", inside=path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: environment.json cannot be read ({reason(error)})"
        ) from error
    if not isinstance(environment, dict):
        raise CheckpointError(f"{path}: environment.json holds no block of fields")
    return environment


def read_state(run_or_checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint, or in the newest good checkpoint of a run folder."""
    if not run_or_checkpoint.exists():
        raise CheckpointError(f"{run_or_checkpoint}: no such run folder or checkpoint")
    if run_or_checkpoint.is_dir():
        state, _ = Checkpoints(RunFolder.open(run_or_checkpoint).checkpoints, keep=1).load_newest()
        if state is None:
            raise CheckpointError(f"{run_or_checkpoint}: the run has no checkpoint")
        return state
    return load_checkpoint(run_or_checkpoint)


def restore(experiment: Experiment, state: Mapping[str, Any], source: str) -> None:
    """Puts a checkpoint's state into an experiment. Raises CheckpointError if it does not fit; the
    experiment is then of no use, since parts of the state may have been taken over."""
    step_of(state, source)
    mine = experiment.facts.steps_per_epoch
    if state.get("steps_per_epoch") != mine:
        raise CheckpointError(
            f"{source}: has {state.get('steps_per_epoch')} steps an epoch and this recipe {mine} "
            "(batch size or data differ); start a run with backbone.weights instead"
        )
    try:
        experiment.training.load_state_dict(state)
    except Exception as error:  # a file of anybody's: any value may stand anywhere in it
        raise CheckpointError(
            f"{source}: its state does not fit this recipe ({misfit(error)}); to take over the "
            "backbone alone, start a run with backbone.weights"
        ) from error


def step_of(state: Mapping[str, Any], source: str) -> int:
    """The steps that a checkpoint has done. Raises CheckpointError where it does not say."""
    step = state.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"{source}: its step is {step!r:.40}; valid is a whole number from 0")
    return step


def misfit(error: Exception) -> str:
    """Why a state does not fit, in one line: the first two reasons that torch gives, and how many
    others there are."""
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    lines = str(error).splitlines() or [type(error).__name__]
    first, *others = [" ".join(line.split()).rstrip(".") for line in lines]
    others = [line for line in others if line]
    if not others:
        return first
    shown = "; ".join(
        line if len(line) <= _REASON else f"{line[:_REASON]}..." for line in others[:2]
    )
    rest = len(others) - 2
    return shown + (f"; and {rest} more" if rest > 0 else "")


def load_method(
    run_or_checkpoint: Path, overrides: Sequence[str] = ()
) -> tuple[Recipe, Facts, Method]:
    """Recipe, facts and trained method (on the CPU) of a run or checkpoint. Weights that the run
    started from need not be there any more.

    Raises CheckpointError, RecipeError and RunFolderError."""
    state = read_state(run_or_checkpoint)
    folder = run_folder_of(run_or_checkpoint)
    recipe = load_recipe(folder.recipe, overrides)
    facts = read_facts(folder.path)
    method = make_method(without_starting_weights(recipe), facts)
    try:
        method.load_state_dict(state["method"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{run_or_checkpoint}: its weights do not fit the recipe ({misfit(error)}); leave "
            "method and backbone as the run has them"
        ) from error
    return recipe, facts, method


def run_folder_of(run_or_checkpoint: Path) -> RunFolder:
    """The run folder that a path is, or that a checkpoint lies in. Raises RunFolderError."""
    path = run_or_checkpoint
    if not path.exists():
        raise RunFolderError(f"{path}: no such run folder or checkpoint")
    return RunFolder.open(path if path.is_dir() else path.parent.parent)


def protocol_overrides(recipe_file: Path, protocols: Sequence[str] | None) -> list[str]:
    """Overrides that leave these protocols in a recipe: with its settings where it has them, with
    defaults where it has not."""
    if protocols is None:
        return []
    listed = read_field(recipe_file, "evaluate")
    blocks = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    known = {block.get("name"): block for block in reversed(blocks)}
    chosen = [known.get(name, {"name": name}) for name in protocols]
    return [Derived(f"evaluate={json.dumps(chosen)}", f"--protocol {','.join(protocols)}")]


def was_evaluated(folder: RunFolder, step: int) -> bool:
    """Whether the log already holds an evaluation after `step`; a resume must not repeat it."""
    return any(
        line.step == step and any(key.startswith(("eval/", "collapse/")) for key in line.metrics)
        for line in read_lines(folder.metrics)
    )


def last_metrics(folder: RunFolder) -> dict[str, float]:
    """The last value of each metric of a run."""
    metrics: dict[str, float] = {}
    for line in read_lines(folder.metrics):
        metrics.update(line.metrics)
    return metrics


def read_facts(path: Path) -> Facts:
    """The facts of a run, as its environment.json records them. Raises CheckpointError."""
    try:
        facts = _FACTS.validate_python(read_environment(path)["facts"])
    except KeyError as error:
        raise CheckpointError(
            f"{path}: environment.json has no {error}; it is not of this version"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the facts in environment.json are not those of this version ({where}: "
            f"{first['msg']})"
        ) from error
    sizes = (facts.channels, *(view.size for view in facts.views))
    if not facts.views or not all(0 < number <= _MAX_SIDE for number in sizes):
        raise CheckpointError(
            f"{path}: the facts in environment.json are not those of this version (channels and "
            f"sizes {sizes})"
        )
    return facts


def save_encoder(experiment: Experiment) -> Path:
    """Writes `encoder.safetensors`: the encoder's weights under the names that other tools expect,
    and in its metadata what it takes to build the encoder again."""
    encoder, slot = experiment.method.encoder, experiment.recipe.backbone
    config = slot.cls.architecture(slot.config)
    described = {
        "backbone": {"name": slot.name, **config.model_dump(mode="json")},
        "channels": experiment.facts.channels,
        "image_size": max(view.size for view in experiment.facts.views),
        "preprocess": dataclasses.asdict(encoder.preprocess),
        "recipe_hash": recipe_hash(experiment.recipe),
    }
    weights = {
        name: value.detach().cpu().contiguous() for name, value in encoder.export_state().items()
    }
    temporary = experiment.folder.encoder.with_suffix(".tmp")
    try:
        safetensors_file.save(temporary, weights, described)
        temporary.chmod(0o666 & ~UMASK)  # safetensors lets only the owner read
        temporary.replace(experiment.folder.encoder)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{experiment.folder.encoder}: cannot be written ({reason(error)}); mend that, then "
            "resume the run"
        ) from error
    return experiment.folder.encoder


def load_encoder(run_or_checkpoint: str | Path) -> Backbone:
    """See `sslkit.load_encoder`. Accepts a run folder, a checkpoint, or an encoder.safetensors."""
    path = Path(run_or_checkpoint)
    if path.is_dir() and (path / "encoder.safetensors").exists():
        path = path / "encoder.safetensors"
    if path.suffix == ".safetensors":
        return _encoder_from_file(path).eval()
    return load_measured_method(path)[2].encoder.eval()


def load_measured_method(run_or_checkpoint: Path) -> tuple[Recipe, Facts, Method]:
    """`load_method` with the batch statistics with which the run measures and exports its encoder:
    those of its training images, which must be there where the encoder has BatchNorm."""
    recipe, facts, method = load_method(run_or_checkpoint)
    if has_batch_statistics(method.encoder):
        fingerprint = training_data_of(run_folder_of(run_or_checkpoint))
        calibrate_as_in_run(method, recipe, run_or_checkpoint, fingerprint)
    return recipe, facts, method.to(memory_format=torch.contiguous_format)


def training_data_of(folder: RunFolder) -> str | None:
    """The fingerprint of the training images of a run, where it is recorded."""
    data = read_environment(folder.path).get("data")
    return str(data["train"]) if isinstance(data, Mapping) and "train" in data else None


def input_channels(run_or_checkpoint: str | Path) -> int:
    """Channels of the images that the encoder of `load_encoder` takes. Raises CheckpointError."""
    path = Path(run_or_checkpoint)
    if path.suffix == ".safetensors":
        return int(encoder_metadata(path)["channels"])
    return read_facts(run_folder_of(path).path).channels


def _encoder_from_file(path: Path) -> Backbone:
    from .plugins import load_plugins

    described = encoder_metadata(path)
    slot = resolve_component(load_plugins().registry, "backbone", described["backbone"])
    bare = without_weights(slot)  # the file has the weights: nothing else is loaded
    encoder: Backbone = bare.build(
        channels=described["channels"], image_size=described["image_size"]
    )
    try:
        encoder.import_state(safetensors_file.load(path))
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        # Names or shapes that the network does not have, too: a file of another encoder.
        raise CheckpointError(f"{path}: cannot be read as an encoder: {reason(error)}") from error
    return encoder


def encoder_metadata(path: Path) -> dict[str, Any]:
    """What `save_encoder` wrote beside the weights. Raises CheckpointError."""
    try:
        described = safetensors_file.describe(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as an encoder: {reason(error)}") from error
    if described is None:
        raise CheckpointError(
            f"{path}: not written by sslkit (no '{safetensors_file.META}' in its metadata); "
            "load plain timm weights with backbone.weights"
        )
    numbers = (described.get("channels"), described.get("image_size"))
    sizes_fit = all(isinstance(each, int) and 0 < each <= _MAX_SIDE for each in numbers)
    if not sizes_fit or not isinstance(described.get("backbone"), dict):
        raise CheckpointError(f"{path}: its metadata is not that of this version of sslkit")
    return described


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        items = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, (list, tuple)) and tree:
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        return {prefix: tree}
    return {
        key: value
        for name, branch in items
        for key, value in _flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }
