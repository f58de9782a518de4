"""The files that a finished run leaves for people: report.md and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sslkit.api import RunFacts
from sslkit.recipe import Recipe, backbone_name, recipe_hash
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import MetricLine, read_lines

from .figures import draw_accuracies, draw_curves
from .harmless import in_markdown, markdown_table
from .terminal import TITLE

if TYPE_CHECKING:
    from .final_results import FinalResults


def write_report(
    folder: RunFolder, recipe: Recipe, facts: RunFacts, results: FinalResults, notes: Sequence[str]
) -> list[Path]:
    """Writes report.md and the figures of a run; returns their paths. notes: what a reader must
    know of its data."""
    figures = []
    lines = list(read_lines(folder.metrics))
    drawn = {"curves": draw_curves(lines), **results.trained.figures}
    if rows := results.compared():
        drawn["accuracies"] = draw_accuracies(rows)
    for name, figure in drawn.items():
        path = folder.figures / f"{name.replace('/', '_')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, bbox_inches="tight")
        figures.append(path)
    pictures = sorted(folder.figures.glob("*.png"))
    text = "\n".join(_markdown(recipe, facts, results, notes, lines, pictures))
    return [folder.write_text(folder.report, text + "\n"), *figures]


def _markdown(
    recipe: Recipe,
    facts: RunFacts,
    results: FinalResults,
    notes: Sequence[str],
    lines: Sequence[MetricLine],
    figures: list[Path],
) -> Iterable[str]:
    yield f"# {recipe.name}, seed {recipe.seed}"
    yield ""
    yield (
        f"{recipe.method.name} with {backbone_name(recipe)} on {recipe.data.name} "
        f"({facts.num_images:,} {facts.sample.noun}s), {recipe.train.epochs} epochs of "
        f"{facts.steps_per_epoch:,} steps, batch {facts.batch_size:,}. "
        f"Recipe hash `{recipe_hash(recipe)}`; the whole recipe is in `recipe.resolved.yaml`, the "
        "machine and the versions in `environment.json`."
    )
    yield ""
    heads, rows = results.table()
    if rows:
        yield f"{TITLE}:"
        yield ""
        yield from markdown_table(heads, rows)
        yield ""
    others = results.others()
    if others:
        yield from markdown_table(
            ["metric", "value"], [[key, f"{value:.4g}"] for key, value in others.items()]
        )
        yield ""
    for protocol, reason in results.trained.skipped.items():
        yield in_markdown(f"- {protocol}: skipped: {reason}")
    for note in results.notes():
        yield in_markdown(f"- note: {note}")
    for protocol, found in {**results.trained.warnings, **results.trained.stops}.items():
        yield in_markdown(f"- {protocol}: warning: {found}")
    for note in notes:
        yield in_markdown(f"- data: warning: {note}")
    yield from _cost(lines, results, facts.sample.noun)
    for figure in figures:
        yield f"\n![{figure.stem}](figures/{figure.name})"


def _cost(lines: Sequence[MetricLine], results: FinalResults, noun: str) -> Iterable[str]:
    speeds = [line.metrics["perf/images_per_second"] for line in lines
              if "perf/images_per_second" in line.metrics]  # fmt: skip
    if speeds:
        middle = sorted(speeds)[len(speeds) // 2]
        yield f"Training: {middle:,.0f} {noun}s/s (median over log steps)."
    yield (
        f"Last evaluation: {results.trained.seconds:.1f} s, "
        f"baselines: {results.baselines.seconds:.1f} s."
    )
    yield from results.sentences()
