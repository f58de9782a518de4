"""`sslkit compare`: makes the runs that are missing, and holds them side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sslkit.engine.display import Display
from sslkit.errors import RecipeError, SSLKitError
from sslkit.parallel.finding import require_one_process
from sslkit.report.comparison.side_by_side import Arm, Comparison, Match, RunRecord

from .agreement import ArmConditions, disagreements
from .arm_statistics import make_comparison
from .arms import (
    Identity,
    PlannedArm,
    kept_fields,
    label_runs,
    plan_arms,
    planned_conditions,
)
from .comparison_folder import PAGE, ComparisonFolder, default_path, write_comparison
from .devices import Device, shared
from .groups import Groups
from .pictures import PictureOptions, make_pictures
from .process import Job, StoppedError, run_jobs
from .records import read_run
from .request import ComparisonRequest

_ALL_PICTURES = PictureOptions()
_SHARED = "shared_device"
"""Key of the manifest."""

ExistingRuns = Mapping[Identity, Sequence[RunRecord]]


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to."""

    folder: Path
    status: Literal["finished", "failed", "stopped"]
    """`failed`: some run has no result; the table says which."""
    comparison: Comparison | None = None
    """None where it was stopped."""

    @property
    def page(self) -> Path:
        """The report for people; there where there is a comparison."""
        return self.folder / PAGE

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        document = self.comparison.to_json(self.folder) if self.comparison else {}
        return {"folder": str(self.folder), "status": self.status, **document}


def compare(
    request: ComparisonRequest,
    *,
    baseline: str | None = None,
    time_tolerance: float = 0.1,
    pictures: PictureOptions = _ALL_PICTURES,
    display: Display,
) -> Outcome:
    """Compares finished runs (folders) and recipes (files or names), which it runs first.

    Each recipe is run in every variation with `seeds` seeds; a finished run of the same experiment
    stands for its seed. The same call goes on where one before was cut off. baseline: the arm that
    others are held against; None: the first. time_tolerance: how much longer counts as equal.
    Raises RecipeError where the arms must not be compared, before anything is run."""
    require_one_process()
    planned, given, folders = planned_and_given(request)
    labels = arm_labels(planned, given)
    if baseline is not None and baseline not in labels.values():
        raise RecipeError(
            f"--baseline {baseline}: is no arm; valid: {', '.join(map(repr, labels.values()))}"
        )
    with ComparisonFolder(request.out or default_path(planned, folders)) as folder:
        folder.adopt([{"label": label, "hash": arm[1]} for arm, label in labels.items()])
        groups = Groups(folder, display)
        try:
            failed = make_runs(planned, given, folder, groups, request.devices, display)
        except StoppedError:
            display.message("stopped; the same command goes on from here")
            return Outcome(folder.path, "stopped")
        arms = collect(labels, planned, given, folder, failed)
        refuse_unlike_runs(arms, request.match)
        comparison = make_comparison(
            folder.path.name, arms, baseline or arms[0].label, request.match, time_tolerance
        )
        drawn, notes = make_pictures(comparison, pictures, display)
        notes += kept_fields(planned)
        if folder.manifest.get(_SHARED):
            notes.append(
                "Some runs were made at the same time on one device, so that they took longer than "
                "they would have alone."
            )
        comparison = replace(comparison, notes=[*comparison.notes, *notes])
        report = write_comparison(comparison, folder.path, drawn)
        groups.close([arm.recipe.tracking for arm in planned], report)
        return Outcome(folder.path, "failed" if failed else "finished", comparison)


def planned_and_given(
    request: ComparisonRequest,
) -> tuple[list[PlannedArm], ExistingRuns, list[Path]]:
    """The arms that recipes are, the finished runs, and their folders; see `compare`.

    Raises RecipeError where they must not be compared."""
    folders = [Path(each) for each in request.inputs if Path(each).is_dir()]
    recipes = [each for each in request.inputs if not Path(each).is_dir()]
    if not recipes and (request.overrides or request.vary or request.seeds != 1):
        raise RecipeError("-o, --vary and --seeds change recipes, and only runs were given")
    records = [read_run(path) for path in folders]
    untrained = [record.path.name for record in records if not record.images_seen]
    if request.match == "time" and untrained:
        raise RecipeError(f"--match time: {untrained[0]} was measured and not trained")
    given = group_runs(records)
    placed = [f"train.device={request.devices[0].kind}"] if request.devices else []
    overrides = [*request.overrides, *placed]
    planned = plan_arms(recipes, overrides, request.vary, request.seeds)
    refuse_disagreement(planned, records, request.match)
    return planned, given, folders


def group_runs(records: Sequence[RunRecord]) -> dict[Identity, list[RunRecord]]:
    """Finished runs by experiment. Raises RecipeError where one seed is there twice."""
    groups: dict[Identity, dict[int, RunRecord]] = defaultdict(dict)
    for record in records:
        same = groups[record.identity].setdefault(record.seed, record)
        if same is not record:
            raise RecipeError(
                f"{same.path.name} and {record.path.name}: both are seed {record.seed} of one "
                "recipe; give one of them"
            )
    return {key: [runs[seed] for seed in sorted(runs)] for key, runs in groups.items()}


def arm_labels(planned: Sequence[PlannedArm], given: ExistingRuns) -> dict[Identity, str]:
    """Arm -> its name; recipes first, then the finished runs that belong to none of them."""
    labels = {arm.identity: arm.label for arm in planned}
    rest = [group for key, group in given.items() if key not in labels]
    for group, label in zip(rest, label_runs(rest), strict=True):
        key = group[0].identity
        labels[key] = f"{label} ({key[1][:6]})" if label in labels.values() else label
    return labels


def refuse_disagreement(
    planned: Sequence[PlannedArm], records: Sequence[RunRecord], match: Match
) -> None:
    """Raises RecipeError where data, evaluators or budget of the arms differ."""
    conditions = [
        *planned_conditions(planned),
        *(ArmConditions.of_run(record) for record in records),
    ]
    problems = disagreements(conditions, match)
    if problems:
        raise RecipeError(*problems)


def make_runs(
    planned: Sequence[PlannedArm],
    given: ExistingRuns,
    folder: ComparisonFolder,
    groups: Groups,
    devices: Sequence[Device],
    display: Display,
) -> dict[tuple[Identity, int], str]:
    """Makes every run that is missing: all arms with the first seed, then all with the next, so
    that a part of the comparison is a comparison. Returns (arm, seed) -> why a run failed."""
    there = {(key, record.seed) for key, group in given.items() for record in group}
    there |= folder.finished().keys()
    wanted = sorted(
        ((arm, seed) for arm in planned for seed in arm.seeds),
        key=lambda each: each[0].seeds.index(each[1]),
    )
    jobs: dict[tuple[Identity, int], Job] = {}
    for number, (arm, seed) in enumerate(wanted, start=1):
        what = f"[{number}/{len(wanted)}] {arm.label}, seed {seed}"
        if (arm.identity, seed) in there:
            display.message(f"{what}: done before")
            continue
        own = [
            f"seed={seed}",
            f"runs_dir={json.dumps(str(folder.runs))}",
            *groups.overrides(arm.recipe.tracking),
        ]
        log = folder.log(arm.identity, seed)
        jobs[arm.identity, seed] = Job(what, arm.source, [*arm.overrides, *own], log)
    if shared(devices) and len(jobs) > 1:
        folder.manifest[_SHARED] = True
        folder.save()
    failed = run_jobs(list(jobs.values()), devices, display)
    return {key: failed[place] for place, key in enumerate(jobs) if place in failed}


def collect(
    labels: Mapping[Identity, str],
    planned: Sequence[PlannedArm],
    given: ExistingRuns,
    folder: ComparisonFolder,
    failed: Mapping[tuple[Identity, int], str],
) -> list[Arm]:
    """The arms with the runs that were asked for; of the folder's runs no others."""
    finished = folder.finished()
    arms = []
    for key, label in labels.items():
        records = {record.seed: record for record in given.get(key, ())}
        for arm in planned:
            if arm.identity == key:
                for seed in arm.seeds:
                    if seed not in records and (key, seed) in finished:
                        records[seed] = read_run(finished[key, seed])
        reasons = {seed: reason for (arm_key, seed), reason in failed.items() if arm_key == key}
        arms.append(Arm(label, [records[seed] for seed in sorted(records)], reasons))
    return arms


def refuse_unlike_runs(arms: Sequence[Arm], match: Match) -> None:
    """Raises SSLKitError where no run has a result, and RecipeError where runs turned out to
    differ in what must be equal, such as data that changed between two of them."""
    records = [record for arm in arms for record in arm.records]
    if not records:
        reasons = [f"{arm.label}: seed {seed}: {reason}"
                   for arm in arms for seed, reason in arm.failed.items()]  # fmt: skip
        raise SSLKitError("\n".join(reasons))
    problems = disagreements([ArmConditions.of_run(record) for record in records], match)
    if problems:
        raise RecipeError(*problems)
