"""The model card of an export: `README.md`, in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from sslkit.errors import CheckpointError, RunFolderError
from sslkit.evaluation.scores import Estimate
from sslkit.recipe import backbone_name, hashed_view
from sslkit.recipe.yaml_positions import dump_document
from sslkit.report.harmless import fenced, in_markdown, markdown_table
from sslkit.runs.endings import SavedScore, read_results
from sslkit.runs.environment_file import read_environment
from sslkit.runs.folder import RunFolder

from . import preprocessing
from .formats import Format
from .round_trip import TOLERANCE, Difference
from .sample_images import Probe
from .source import ExportSource

FILE = "README.md"
_PACKAGES = ("sslkit", "torch", "timm", "onnx", "onnxscript", "onnxruntime")


def model_card(chosen: Format, source: ExportSource, difference: Difference, probe: Probe) -> str:
    """The card, in Markdown."""
    sections = [
        _front_matter(chosen, source),
        _title(source),
        _load(chosen, source),
        _preprocessing(chosen, source),
        _training(source),
        _results(source),
        _check(chosen, difference, probe),
        _use(source.sample.noun),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _front_matter(chosen: Format, source: ExportSource) -> Iterator[str]:
    yield "---"
    if chosen.name == "timm":
        yield "library_name: timm"
    yield f"pipeline_tag: {'image-' if source.sample.is_image else ''}feature-extraction"
    yield "tags:"
    method = [] if source.recipe is None else [_plain(source.recipe.method.name)]
    yield from (f"- {tag}" for tag in ("self-supervised-learning", "sslkit", *method))
    yield "---"


def _title(source: ExportSource) -> Iterator[str]:
    recipe, width, noun = source.recipe, source.encoder.num_features, source.sample.noun
    each = f"{width:,} features {'an' if noun == 'image' else 'a'} {noun}"
    name = source.run.name if source.run is not None else source.path.name
    yield in_markdown(f"# Encoder of {name}")
    yield ""
    if recipe is None:
        yield in_markdown(f"An encoder of {noun}s, {_backbone(source)}: {each}.")
        return
    yield (
        f"{backbone_name(recipe)}, trained without labels by {_plain(recipe.method.name)} on "
        f"{recipe.data.name}: {each}."
        if not recipe.method.cls.requires_labels
        else f"{backbone_name(recipe)}, trained by {_plain(recipe.method.name)}, which uses "
        f"labels, on {recipe.data.name}: {each}."
    )


def _load(chosen: Format, source: ExportSource) -> Iterator[str]:
    yield "## How to load"
    yield ""
    yield "```python"
    yield chosen.usage(source)
    yield "```"
    if chosen.name == "torch-export":
        yield ""
        yield (
            "Like every .pt2, load it only from where you trust: `torch.export.load` can be made "
            "to run code by a file that was changed."
        )


def _preprocessing(chosen: Format, source: ExportSource) -> Iterator[str]:
    preprocess = source.encoder.preparation
    if preprocess is None:
        yield "## Preprocessing"
        yield ""
        yield f"None: samples are taken as they are, {source.sample}."
        return
    inside = (
        "The network subtracts `mean` and divides by `std` itself: do not do it again."
        if chosen.normalization_inside
        else "Then subtract `mean` and divide by `std`: the network does not do it."
    )
    yield "## Preprocessing"
    yield ""
    yield (
        f"Values in [0, 1]. Resize the shorter side to {preprocess.resize} pixels "
        f"({preprocess.interpolation}, antialiased), cut out the {preprocess.size} pixels in the "
        f"centre. {inside} `{preprocessing.FILE}` has all of it:"
    )
    yield ""
    yield f"- mean: {_numbers(preprocess.mean)}"
    yield f"- std: {_numbers(preprocess.std)}"


def _training(source: ExportSource) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield in_markdown(f"- recipe hash: `{source.recipe_hash}`")
    if source.recipe is None or source.run is None:
        block = json.dumps(dict(source.backbone))
        yield in_markdown(f"- backbone: `{block}` of {source.distribution}")
        yield f"- nothing else is known: {source.alone}"
        return
    recipe, train = source.recipe, source.recipe.train
    method = recipe.method
    yield f"- method: {_plain(method.name)}, of {method.distribution} {method.version}"
    end = "" if train.max_steps is None else f" but at most {train.max_steps:,} steps"
    yield f"- seed {recipe.seed}, {train.epochs} epochs{end}, batch {train.batch_size:,}"
    yield f"- exported: {'the end of the run' if source.measured else f'`{source.path.name}`'}"
    yield from _environment(source)
    yield ""
    yield "<details><summary>What the hash covers, with paths left out</summary>"
    yield ""
    yield fenced(dump_document(hashed_view(recipe)).rstrip(), "yaml")
    yield ""
    yield "</details>"


def _environment(source: ExportSource) -> Iterator[str]:
    """Data and versions, as the run recorded them."""
    assert source.recipe is not None
    assert source.run is not None
    try:
        found = read_environment(source.run).values
    except CheckpointError:
        yield f"- data: {source.recipe.data.name}; the run has no environment.json"
        return
    facts, prints, packages = (found.get(key) for key in ("facts", "data", "packages"))
    if not (isinstance(facts, dict) and isinstance(prints, dict) and isinstance(packages, dict)):
        yield f"- data: {source.recipe.data.name}; the run's environment.json cannot be read"
        return
    splits = ", ".join(f"{split} `{value}`" for split, value in prints.items())
    yield in_markdown(
        f"- data: {source.recipe.data.name}, {facts.get('num_images')} training "
        f"{source.sample.noun}s "
        f"(fingerprints: {splits})"
    )
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    yield in_markdown(f"- trained with {versions}, on {found.get('device')}")


def _results(source: ExportSource) -> Iterator[str]:
    yield "## Results"
    yield ""
    if not source.measured or source.run is None:
        yield "Not measured: results are those of the end of a run, in its folder."
        return
    assert source.recipe is not None
    folder, noun, raw = RunFolder(source.run), source.sample.noun, source.sample.raw
    try:
        rows = [_row(score, noun, raw) for score in read_results(folder).scores]
    except (OSError, RunFolderError):
        yield f"Not known: {folder.results.name} of the run cannot be read."
        return
    if not rows:
        yield "The run was not evaluated."
        return
    yield (
        f"One run, seed {source.recipe.seed}, last epoch, as `{folder.results.name}` has it. In "
        f"brackets the 95 % interval, and what it is over: test {noun}s, or a protocol's draws; it "
        "says nothing about other seeds. `untrained` is the same network before the first step, "
        f"`{raw}` the {noun}s themselves. The settings of the protocols are in the recipe, under "
        "`evaluate`."
    )
    yield ""
    yield from markdown_table(["protocol", "metric", "this encoder", "untrained", raw], rows)


def _row(score: SavedScore, noun: str, raw: str) -> list[str]:
    subjects = ("trained", "untrained", raw)
    cells = [_estimate(score.values.get(name), noun) for name in subjects]
    return [score.evaluator, score.metric, *cells]


def _estimate(found: Estimate | None, noun: str) -> str:
    if found is None:
        return "-"
    text = f"{found.value:.4g}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:.4g}, {found.high:.4g}]"
        if over := replace(found, noun=noun).over:
            text += f", {over}"
    return text


def _check(chosen: Format, difference: Difference, probe: Probe) -> Iterator[str]:
    installed = {name: _version(name) for name in ("sslkit", "torch", "timm", *chosen.requires)}
    versions = ", ".join(f"{name} {found}" for name, found in installed.items())
    yield "## How it was checked"
    yield ""
    yield (
        f"After writing, `{chosen.file}` was loaded from disk and embedded {probe.origin}, "
        "prepared as this folder says. The features are those of the encoder in sslkit "
        f"{difference.words()} (their root mean square is {difference.scale:.4g}); beyond "
        f"{TOLERANCE:.0e} the export would not have been kept. Versions: {versions}."
    )


def _use(noun: str) -> Iterator[str]:
    yield "## Intended use"
    yield ""
    yield (
        f"Features for {noun}s like those it was trained on: retrieval, clustering, a linear "
        "classifier, the start of fine-tuning. Measure it on your own data before you rely on it; "
        f"it has whatever bias its training {noun}s have."
    )
    yield ""
    yield "## Licence"
    yield ""
    yield "Not stated: whoever publishes the weights decides, and the training data may bind them."


def _backbone(source: ExportSource) -> str:
    return str(source.backbone.get("model", source.backbone["name"]))


def _plain(name: str) -> str:
    return name.rpartition(":")[2]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that is not installed
        return "from source"
