"""What a comparison reads and computes, from run folders with chosen numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslkit.errors import RecipeError, RunFolderError
from sslkit.recipe import file_digests, parse_recipe, recipe_hash
from sslkit.report.comparison.side_by_side import Arm, Comparison, Match, Row, RunRecord
from sslkit.report.comparison.tables import text_tables
from sslkit.report.final_results import main_metrics
from sslkit.runs.metrics_file import MetricLine, encode_line
from sslkit.workflows.compare.agreement import ArmConditions, disagreements
from sslkit.workflows.compare.arm_statistics import make_comparison
from sslkit.workflows.compare.compare import group_runs
from sslkit.workflows.compare.comparison_folder import write_comparison
from sslkit.workflows.compare.records import read_run, seconds_at
from tests.conftest import TINY
from tests.report.run_folders import IMAGES, A, arm, make_run, make_two_arms


@pytest.fixture(name="two_arms")
def two_arms_of_three_seeds(tmp_path: Path) -> list[Arm]:
    return make_two_arms(tmp_path)


def row_of(comparison: Comparison, label: str) -> Row:
    (row,) = [row for row in comparison.rows if row.arm == label]
    return row


def test_statistics_are_those_worked_out_by_hand(two_arms: list[Arm]) -> None:
    # A: mean 0.53, squares 0.0026 / 2 / 3, t(2) = 4.302653; B - A: 0.05, 0.06, 0.02.
    comparison = make_comparison("x", two_arms, "a")
    a, b = row_of(comparison, "a"), row_of(comparison, "b")
    assert a.mean == pytest.approx((0.53, 0.53 - 0.0895670, 0.53 + 0.0895670), abs=1e-6)
    assert a.against_baseline is None
    middle = 0.13 / 3
    assert b.against_baseline == pytest.approx(
        (middle, middle - 0.0517114, middle + 0.0517114), abs=1e-6
    )
    assert b.pairs == 3
    assert a.against["pixels"] == pytest.approx(
        (0.13, 0.13 - 0.0895670, 0.13 + 0.0895670), abs=1e-6
    )
    # Paired by run, 0.20, 0.21, 0.25: not the difference of two means with two spreads.
    assert a.against["untrained"].mean == pytest.approx(0.22)
    assert a.against["untrained"].high == pytest.approx(0.22 + 4.302653 * (0.0007 / 3) ** 0.5)
    assert a.epochs == 3


def test_runs_that_start_from_other_files_are_no_repetitions(tmp_path: Path) -> None:
    def made(seed: int, digest: str) -> RunRecord:
        path = make_run(tmp_path, "a", seed, 0.5, files={"backbone.weights": digest})
        return read_run(path)

    alike = [made(0, "aaaa"), made(1, "aaaa")]
    groups = group_runs([*alike, made(0, "bbbb")])
    assert [len(group) for group in groups.values()] == [2, 1]
    plain = read_run(make_run(tmp_path, "a", 0, 0.5))
    assert plain.hash == recipe_hash(plain.recipe), "of a run without files nothing changes"


def test_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    first, second, copy = (tmp_path / name for name in ("first.pth", "second.pth", "copy.pth"))
    for path, content in ((first, b"a"), (second, b"b"), (copy, b"a")):
        path.write_bytes(content)
    folder = tmp_path / "a-run"
    folder.mkdir()
    (folder / "encoder.safetensors").write_bytes(b"a")

    def digests(path: Path) -> dict[str, str]:
        return file_digests(parse_recipe(TINY, "x", [f"backbone.weights={path}"]))

    assert digests(first) == digests(copy) == digests(folder) != digests(second)
    assert digests(first).keys() == {"backbone.weights"}
    assert digests(tmp_path / "nothing.pth") == {}
    assert file_digests(parse_recipe(TINY, "x")) == {}, "data have fingerprints"


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "weights.pth"
    path.write_bytes(b"a")
    recipe = parse_recipe(TINY, "x", [f"backbone.weights={path}"])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match=r"^backbone\.weights: .* cannot be read: .*") as found:
        file_digests(recipe)
    assert "\n" not in str(found.value)


def test_costs_are_means_over_seeds(two_arms: list[Arm]) -> None:
    a, b = make_comparison("x", two_arms, "a").costs
    assert a.training_seconds == pytest.approx(IMAGES / 100)
    assert b.training_seconds == pytest.approx(IMAGES / 50)
    assert (b.images_per_second, b.peak_memory_mb, b.evaluation_seconds) == (50, 103, 7)
    assert b.images_seen == IMAGES


def test_only_shared_seeds_are_paired(tmp_path: Path) -> None:
    first = [make_run(tmp_path, "a", seed, 0.5) for seed in (0, 1)]
    second = [make_run(tmp_path, "b", seed, top1) for seed, top1 in ((1, 0.6), (2, 0.9))]
    comparison = make_comparison("x", [arm("a", first), arm("b", second)], "a")
    b = row_of(comparison, "b")
    assert b.pairs == 1
    assert b.against_baseline is not None
    assert b.against_baseline.mean == pytest.approx(0.1)  # of seed 1 alone
    assert "+10.0 (1 of 2 paired)" in str(text_tables(comparison))


def test_one_run_has_no_interval_and_says_so(tmp_path: Path) -> None:
    comparison = make_comparison("x", [arm("a", [make_run(tmp_path, "a", 0, 0.5)])], "a")
    assert comparison.to_json(tmp_path)["accuracies"][0]["low"] is None
    assert "n = 1, so no interval over seeds: a." in comparison.notes
    assert "[" not in str(text_tables(comparison)[0][2][0][3])


def test_two_runs_have_no_interval_and_say_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", seed, 0.5 + 0.1 * seed) for seed in (0, 1)]
    comparison = make_comparison("x", [arm("a", runs)], "a")
    assert comparison.to_json(tmp_path)["accuracies"][0]["low"] is None
    assert comparison.to_json(tmp_path)["intervals_over"] == "seeds"
    assert "n = 2, so no interval over seeds: a." in comparison.notes
    title, _, rows = text_tables(comparison)[0]
    assert "over seeds" in title
    assert rows[0][3] == "55.0"


def test_intervals_over_seeds_stay_within_0_and_100(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", seed, top1) for seed, top1 in enumerate((0.99, 1.0, 0.93))]
    low = [make_run(tmp_path, "b", seed, top1) for seed, top1 in enumerate((0.0, 0.05, 0.01))]
    comparison = make_comparison("x", [arm("a", runs), arm("b", low)], "a")
    a, b = row_of(comparison, "a").mean, row_of(comparison, "b").mean
    assert a.high == 1.0
    assert a.low < 0.93
    assert b.low == 0.0
    assert row_of(comparison, "b").against_baseline.low >= -1.0


def test_equal_seeds_have_no_interval_without_a_width(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", seed, 1.0) for seed in range(3)]
    comparison = make_comparison("x", [arm("a", runs)], "a")
    assert text_tables(comparison)[0][2][0][3] == "100.0"
    assert any("is equal for all 3 seeds" in note for note in comparison.notes)


def test_matched_time_reads_the_curves_where_the_fastest_ended(two_arms: list[Arm]) -> None:
    comparison = make_comparison("x", two_arms, "a", "time")
    assert comparison.time_limit == pytest.approx(IMAGES / 100)
    a, b = row_of(comparison, "a"), row_of(comparison, "b")
    assert a.values == pytest.approx(A)  # its own end
    # b had done 1.5 epochs: the evaluation after the first counts, the next one not yet.
    assert b.values == pytest.approx((0.30, 0.31, 0.32))
    assert (a.epochs, b.epochs) == (3, 1)
    assert b.seconds == pytest.approx(IMAGES / 3 / 50)
    notes = "\n".join(comparison.notes)
    assert "the fastest run ended after 2.9 s of training" in notes
    assert "in the middle of its learning-rate schedule: b." in notes


def test_matched_time_without_evaluations_on_the_way_is_not_available(tmp_path: Path) -> None:
    fast = arm("a", [make_run(tmp_path, "a", 0, 0.5, speed=100)])
    slow = arm("b", [make_run(tmp_path, "b", 0, 0.6, speed=50)])
    comparison = make_comparison("x", [fast, slow], "a", "time")
    assert [row.arm for row in comparison.rows] == ["a"]
    assert any("b: not available at that time: knn/top1" in note for note in comparison.notes)


def test_times_that_are_nearly_equal_count_as_equal(tmp_path: Path) -> None:
    arms = [
        arm(name, [make_run(tmp_path, name, 0, top1, speed=speed)])
        for name, top1, speed in (("a", 0.5, 100.0), ("b", 0.6, 95.0), ("c", 0.7, 90.0))
    ]
    assert [row.arm for row in make_comparison("x", arms, "a", "time").rows] == ["a", "b"]
    assert [row.arm for row in make_comparison("x", arms, "a", "time", 0.12).rows] == [
        "a",
        "b",
        "c",
    ]
    assert [row.arm for row in make_comparison("x", arms, "a", "time", 0.0).rows] == ["a"]


def test_failed_seeds_and_other_machines_are_noted(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "a", 0, 0.5), make_run(tmp_path, "b", 0, 0.5)
    environment = json.loads((second / "environment.json").read_text())
    environment["hardware"]["cpu"] = "another processor"
    environment["packages"]["torch"] = "2.1"
    (second / "environment.json").write_text(json.dumps(environment))
    broken = Arm("b", [read_run(second)], {1: "the loss is nan"})
    notes = "\n".join(make_comparison("x", [arm("a", [first]), broken], "a").notes)
    assert "b: seed 1 has no result and is left out (the loss is nan)" in notes
    assert "Times are not comparable" in notes
    assert "different versions of torch: 2.0, 2.1" in notes


def test_other_precisions_of_evaluation_are_noted(tmp_path: Path) -> None:
    one, same, other = (
        arm(name, [make_run(tmp_path, name, 0, 0.5, overrides=overrides)])
        for name, overrides in (("a", []), ("b", []), ("c", ["evaluation_precision=bf16"]))
    )
    assert "precisions" not in "\n".join(make_comparison("x", [one, same], "a").notes)
    notes = "\n".join(make_comparison("x", [one, other], "a").notes)
    assert "Measured in different precisions (evaluation_precision): a: fp32, c: bf16." in notes


@pytest.mark.parametrize(
    ("fields", "match", "expected"),
    [
        ({"data": "cccc"}, "epochs", "the train data differ (fingerprints aaaa and cccc)"),
        ({"overrides": ["evaluate.0.k=7"]}, "epochs", "protocol knn has k 5 in one and 7"),
        ({"overrides": ["evaluate.0.temperature=0.07"]}, "time", "has temperature 0.1 in one"),
        ({"overrides": ["train.epochs=4"]}, "epochs", "288 and 384 images seen (1.33 times)"),
        ({"overrides": ["train.epochs=4"]}, "time", None),
        ({"overrides": ["evaluate.0.every_epochs=2"]}, "epochs", None),
        ({"overrides": ["method.loss.temperature=0.1"]}, "epochs", None),
    ],
)
def test_what_must_agree(
    tmp_path: Path, fields: dict[str, object], match: Match, expected: str | None
) -> None:
    folders = [make_run(tmp_path, "a", 0, 0.5), make_run(tmp_path, "b", 0, 0.5, **fields)]  # type: ignore[arg-type]
    problems = disagreements([ArmConditions.of_run(read_run(path)) for path in folders], match)
    assert len(problems) == (expected is not None)
    assert expected is None or expected in problems[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("policy: stop", None),
        ("policy: off, min_std: 0.1, min_rankme: 2.0", None),
        ("min_embedding_spread: 0.1, min_prototypes: 0.2, every_epochs: 1", None),
        ("num_pairs: 9", "protocol collapse has num_pairs 512 in one and 9 in the other"),
    ],
)
def test_what_is_done_at_a_collapse_may_differ(
    tmp_path: Path, fields: str, expected: str | None
) -> None:
    """It changes no number that a comparison shows."""
    folders = [
        make_run(tmp_path, name, 0, 0.5, overrides=[f"evaluate=[{{name: collapse{more}}}]"])
        for name, more in (("a", ""), ("b", f", {fields}"))
    ]
    found = disagreements([ArmConditions.of_run(read_run(path)) for path in folders], "epochs")
    assert [expected in line for line in found] == ([True] if expected else [])


def test_folders_that_are_no_finished_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0, 0.5)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "forked_from": "elsewhere"}))
    with pytest.raises(RunFolderError, match="was forked from elsewhere"):
        read_run(run)
    (run / "environment.json").write_text("{}")
    with pytest.raises(RunFolderError, match="not those of this version"):
        read_run(run)
    (run / "results.json").unlink()
    with pytest.raises(RunFolderError, match=r"is no finished run.*--resume"):
        read_run(run)


def test_every_evaluator_is_compared_by_its_main_metrics(tmp_path: Path) -> None:
    more = {"retrieval": {"recall_at_1": 0.7, "map": 0.4, "queries": 48.0},
            "dense": {"miou": 0.3, "ap50": 0.2, "ap": 0.1, "boxes": 9.0},
            "plugin": {"error": 12.5, "other": 1.0}}  # fmt: skip
    runs = [make_run(tmp_path, "a", seed, 0.5, more=more) for seed in (0, 1)]
    comparison = make_comparison("x", [arm("a", runs)], "a")
    assert comparison.metrics == [
        "eval/knn/top1", "eval/retrieval/recall_at_1", "eval/retrieval/map",
        "eval/dense/miou", "eval/dense/ap50", "eval/dense/ap", "eval/plugin/error",
    ]  # fmt: skip
    cells = {row[0]: row[3] for row in text_tables(comparison)[0][2]}
    assert cells["retrieval map"] == "40.0"
    assert cells["plugin error (not in %)"] == "12.5"
    assert main_metrics(["collapse/std", "f1", "top1_10"]) == ["top1_10"]
    assert main_metrics(["collapse/std"]) == []


def test_seconds_between_log_steps_are_interpolated() -> None:
    clock = [(0, 0.0), (10, 2.0), (20, 6.0)]
    assert [seconds_at(clock, step) for step in (0, 5, 10, 15, 20, 99)] == [0, 1, 2, 4, 6, 6]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"nan"', "true", "9" * 4000, "[1]"])
@pytest.mark.parametrize("field", ["value", "low", "evaluation_seconds"])
def test_results_are_finite_numbers(tmp_path: Path, field: str, value: str) -> None:
    run = make_run(tmp_path, "a", 0, 0.5)
    results = json.loads((run / "results.json").read_text())
    place = results["cost"] if field == "evaluation_seconds" else (
        results["comparison"][0]["values"]["trained"]
    )  # fmt: skip
    place[field] = "@"
    (run / "results.json").write_text(json.dumps(results).replace('"@"', value))
    with pytest.raises(RunFolderError) as refused:
        read_run(run)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("subject", ["trained", "pixels"])
def test_results_that_were_changed_are_refused(tmp_path: Path, subject: str) -> None:
    run = make_run(tmp_path, "a", 0, 0.5)
    assert read_run(run).scores["eval/knn/top1"].trained == 0.5
    results = json.loads((run / "results.json").read_text())
    results["comparison"][0]["values"][subject]["value"] = 0.93
    (run / "results.json").write_text(json.dumps(results))
    key = "eval/knn/top1" + ("" if subject == "trained" else "_pixels")
    with pytest.raises(RunFolderError, match=rf"results.json has {key} 0\.93, which was never"):
        read_run(run)


def test_numbers_of_a_log_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0, 0.5)
    odd = {"perf/peak_memory_mb": float("inf"), "perf/images_per_second": float("nan")}
    with (run / "metrics.jsonl").open("a") as log:
        log.write(encode_line(MetricLine(18, 0, odd)))
    record = read_run(run)
    assert (record.peak_memory_mb, record.images_per_second) == (103.0, 100.0)
    write_comparison(make_comparison("x", [Arm("a", [record])], "a"), tmp_path / "out")
