"""The page of the methods under one budget, its CSV and its figure, from one JSON file a method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from .methods_csv import PROTOCOLS, in_percent, scores_of, steps_of, write_csv
from .methods_curves import figure_of_curves
from .methods_lines import write_paragraphs

_TRAINING_IMAGES = 50_000
_HALVES = {"Convolutional networks": False, "Vision transformers": True}

Result = Mapping[str, Any]


def write_page(results: Path, notes: Mapping[str, str], missing: Sequence[str] = ()) -> Path:
    """Writes `methods-one-budget.md` beside the folder of results, its figure and a CSV, and what
    each method reached on its own page.

    notes: method -> what a reader must know of its numbers. missing: the methods that belong in the
    table and have no result yet."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))
    ]
    if not found:
        raise SystemExit(f"no results in {results}: measure first")
    halves = _halves(found)
    pages = results.parents[1]
    write_csv(results / "table.csv", [each for half in halves.values() for each in half])
    figure = pages / "figures" / "methods-one-budget.svg"
    figure.parent.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "sslkit"}):  # the same picture gives the same file
        figure_of_curves(halves).savefig(figure, metadata={"Date": None})
    page = pages / "methods-one-budget.md"
    write_paragraphs(halves, pages.parent / "methods")
    pictures = sorted(figure.parent.glob("reconstructions-*.png"))
    lines = [*_page(halves, notes, missing), *_pictures(pictures)]
    page.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    return page


def _halves(found: Sequence[Result]) -> dict[str, Sequence[Result]]:
    """Title -> the arms of a half, best kNN first."""
    first = next(iter(PROTOCOLS.values()))
    halves = {
        title: sorted(
            (each for each in found if each["backbone"].startswith("vit") == is_vit),
            key=lambda each: -scores_of(each, first)["mean"],
        )
        for title, is_vit in _HALVES.items()
    }
    return {title: half for title, half in halves.items() if half}


def _page(
    halves: Mapping[str, Sequence[Result]], notes: Mapping[str, str], missing: Sequence[str]
) -> Iterable[str]:
    found = [each for half in halves.values() for each in half]
    yield "---\norphan: true\n---\n"
    yield "# Every method under one budget, CIFAR-10\n"
    if missing:
        yield f"Not measured yet: {', '.join(f'`{method}`' for method in missing)}.\n"
    yield from _conditions(found)
    for title, half in halves.items():
        yield f"## {title}\n"
        yield from _table_of_scores(half, notes)
        yield from _not_above(half)
    said = {each["method"]: notes[each["method"]] for each in found if each["method"] in notes}
    if said:
        yield "## Notes\n"
        yield from (f"- `{name}`: {note}" for name, note in said.items())
        yield ""
    yield from _pretext(found)
    yield from _given(found)
    yield from _search(found)
    yield from _cost(found)
    yield "## Curves\n"
    yield (
        "Top-1 of the online probe on training batches, with their augmentation, so methods with "
        "stronger crops and colours read lower: the curves show the course of a method and do not "
        "rank methods. Mean over seeds and over three neighbouring batches; the other methods of "
        "the half are drawn in grey.\n"
    )
    yield "![Accuracy of the online probe over training](figures/methods-one-budget.svg)\n"
    yield "Numbers: [CSV](results/methods/table.csv); the JSON files beside it hold all runs.\n"


def _pictures(pictures: Sequence[Path]) -> Iterable[str]:
    if not pictures:
        return
    yield "## Pictures\n"
    yield (
        "What the first run of a method makes of photographs that it has not seen, cut from the "
        "sample images of scikit-learn (danielbuechele, CC BY 2.0) and resized to 32 px.\n"
    )
    for picture in pictures:
        method = picture.stem.removeprefix("reconstructions-")
        yield f"`{method}`:\n"
        words = f"Images, what {method} sees of them, and what it makes of that"
        yield f"![{words}](figures/{picture.name})\n"


def _conditions(found: Sequence[Result]) -> Iterable[str]:
    budget, pixels = found[0]["budget"], found[0]["pixels"]
    epochs = sorted(_epochs(each) for each in found)
    taken = sorted(seconds for each in found for seconds in _cpu_seconds(each))
    took = f", {taken[0]:.0f} to {taken[-1]:.0f} seconds," if taken else ""
    yield (
        f"Each method is given {budget['final_seconds']:.0f} seconds of CPU time, one thread "
        f"computing, with {budget['seeds']} seeds: as many steps as fit at its speed, the first "
        f"tenth of them warm-up. What the runs really took{took} is listed under [Cost](#cost). "
        f"This makes {epochs[0]:.1f} to {epochs[-1]:.1f} epochs, where papers train for hundreds: "
        "the table shows what a method gives in its first minutes, not what it gives in the end. "
        "It rewards fast starts and cheap steps; momentum teachers and queues have little time.\n"
    )
    yield (
        "The learning rate and one more setting were chosen by kNN on "
        f"{100 * budget['selection_fraction']:.0f} % of the training images, held out of training, "
        f"in one run of {budget['search_seconds']:.0f} seconds for each setting, with another "
        "seed. The search did not see the test set, which was used once per seed, for the chosen "
        "settings. All else is as in the recipe, or changed throughout as stated below. Some of "
        "the recipes, and the batch size of the transformers, had been tried on this test set "
        "before.\n"
    )
    yield (
        "In brackets: 95 % intervals over seeds (Student's t), not corrected for how many there "
        "are; differences from the untrained network are paired by seed. A seed sets the initial "
        "weights and the order and augmentation of images. The intervals do not cover the choice "
        "of test images (±1 point for 10,000, much the same for all methods), nor what another "
        "search would have chosen. Where the intervals of two methods overlap, their order is "
        "open.\n"
    )
    reached = " and ".join(
        f"{100 * pixels[metric]:.1f} % ({name})" for name, metric in PROTOCOLS.items()
    )
    yield (
        "Untrained: the same network with the same initial weights, before the first step. Its "
        "figures differ within a half where a method draws its own initial weights or is measured "
        f"on other features. Pixels, mean-centred, reach {reached}; they are the same for every "
        "run and were measured once. The bank of kNN and the linear classifier use all 50,000 "
        "training images; kNN has k = 200 and temperature 0.1.\n"
    )
    commits = sorted({commit for each in found for commit in each["commits"]})
    yield (
        f"{' and '.join(sorted({_machine(each) for each in found}))}; sslkit at "
        f"{', '.join(f'`{commit}`' for commit in commits)}.\n"
    )


def _machine(each: Result) -> str:
    packages = each["machine"]["packages"]
    cpu = each["machine"]["hardware"]["cpu"]
    return f"{cpu} with torch {packages['torch']}, timm {packages['timm']}"


def _table_of_scores(half: Sequence[Result], notes: Mapping[str, str]) -> Iterable[str]:
    against = "untrained | minus untrained | minus pixels"
    yield f"| method | {' | '.join(f'{name} | {against}' for name in PROTOCOLS)} |"
    yield f"|---{'|---' * 4 * len(PROTOCOLS)}|"
    for each in half:
        rows = [scores_of(each, metric) for metric in PROTOCOLS.values()]
        cells = [
            cell
            for row in rows
            for cell in (
                in_percent(row),
                f"{100 * row['untrained']:.1f}",
                in_percent(row["minus_untrained"], "+.1f"),
                in_percent(row["minus_pixels"], "+.1f"),
            )
        ]
        note = " ([note](#notes))" if each["method"] in notes else ""
        yield f"| `{each['method']}`{note} | {' | '.join(cells)} |"
    yield ""


def _not_above(half: Sequence[Result]) -> Iterable[str]:
    """Names the methods that are not above their untrained network, or not above the pixels."""
    others = {"minus_untrained": "untrained network", "minus_pixels": "pixels"}
    for name, metric in PROTOCOLS.items():
        for against, words in others.items():
            bounds = {each["method"]: scores_of(each, metric)[against] for each in half}
            open_ = {arm for arm, found in bounds.items() if not (found["low"] or 0.0) > 0.0}
            below = {arm for arm in open_ if (bounds[arm]["high"] or 0.0) < 0.0}
            said = [
                f"{how} the {words}: {', '.join(f'`{arm}`' for arm in bounds if arm in arms)}"
                for how, arms in (("below", below), ("not shown to be above", open_ - below))
                if arms
            ]
            above = f"every interval against the {words} is above 0"
            yield f"{name}: {'; '.join(said) or above}.\n"


def _pretext(found: Sequence[Result]) -> Iterable[str]:
    tasks = {each["method"]: each["pretext_top1"] for each in found if each.get("pretext_top1")}
    if tasks:
        yield "## Pretext tasks\n"
        yield "Accuracy of the task itself at the end, in training, by seed:\n"
        for name, accuracies in tasks.items():
            yield f"- `{name}`: {', '.join(f'{100 * value:.1f}' for value in accuracies)} %"
        yield ""


def _given(found: Sequence[Result]) -> Iterable[str]:
    yield "## What each method was given\n"
    yield (
        "Views and their augmentation are those of each recipe. Features are what kNN and the "
        "linear classifier see.\n"
    )
    yield "| method | recipe | changed in it | network | features | views | precision |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        yield (
            f"| `{each['method']}` | `{each['recipe']}` | {_code(each['overrides'])} | "
            f"`{each['backbone']}` | {each['features']} | {each['views']} | {each['precision']} |"
        )
    yield ""


def _search(found: Sequence[Result]) -> Iterable[str]:
    kept = _TRAINING_IMAGES * found[0]["budget"]["selection_fraction"]
    yield "## What was searched\n"
    yield (
        "All combinations of a few values, and then a third or three times the learning rate where "
        "the best one was the smallest or the largest. Where the best is still at an end, a better "
        f"one may lie beyond it. One run each, measured on {kept:,.0f} images: differences of one "
        "or two points are chance. These runs are shorter than those of the table, and where a "
        "method is slow all of them may be near the untrained network: its settings were then "
        "drawn rather than chosen.\n"
    )
    yield "| method | tried (kNN on kept images, %) | chosen |\n|---|---|---|"
    for each in found:
        tried = "; ".join(f"{_words(t['settings'])}: {100 * t['top1']:.1f}" for t in each["search"])
        yield f"| `{each['method']}` | {tried} | {_words(each['chosen'])} |"
    yield ""


def _cost(found: Sequence[Result]) -> Iterable[str]:
    budget = found[0]["budget"]
    yield "## Cost\n"
    yield (
        "The cost of a step was measured beforehand, in turns with steps of "
        f"`{budget['reference']}` ({_code(budget['reference_overrides'])}), which count as "
        f"{budget['reference_speed']:,} images per CPU second: CPU time itself varies on a machine "
        "that others use. CPU seconds: what the training of each seed really took, all threads, as "
        "the run recorded it.\n"
    )
    yield "| method | images per CPU second | batch | steps | images seen | epochs | CPU seconds |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        images, speed = each["costs"]["images_seen"], each["images_per_cpu_second"]
        taken, steps = _cpu_seconds(each), steps_of(each)
        yield (
            f"| `{each['method']}` | {speed:,.0f} | {images // steps} | {steps:,} | {images:,} | "
            f"{_epochs(each):.1f} | {', '.join(f'{seconds:.0f}' for seconds in taken)} |"
        )
    yield ""


def _cpu_seconds(each: Result) -> Sequence[float]:
    """Of the training of each seed, where a run noted it."""
    return [seconds for seconds in each["training_cpu_seconds"] if seconds is not None]


def _epochs(each: Result) -> float:
    return float(each["costs"]["images_seen"]) / _TRAINING_IMAGES


def _code(overrides: Sequence[str]) -> str:
    return ", ".join(f"`{override}`" for override in overrides)


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in settings.items())
