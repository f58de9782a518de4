"""`sslkit runs clean`: what goes, what stays, and that nobody's run goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslkit.errors import RunFolderError
from sslkit.runs.checkpoint import Checkpoints
from sslkit.runs.folder import RunFolder, lock_folder, unlock_folder
from sslkit.workflows import run_cleaning
from sslkit.workflows.run_cleaning import Cleaning, clean
from sslkit.workflows.run_list import RunQuery
from tests.workflows.made_runs import age, make_run


def removed(found: Cleaning) -> set[str]:
    return {each.path.name.strip(".").partition("-")[0] for each in found.removals}


def everything(tmp_path: Path) -> RunQuery:
    make_run(tmp_path, "empty", status="failed")
    make_run(tmp_path, "saved", checkpoints=2)
    make_run(tmp_path, "paused", status="killed", checkpoints=1)
    make_run(tmp_path, "done", results={"knn/top1": 0.5}, checkpoints=3)
    return RunQuery([tmp_path])


def test_nothing_goes_without_yes(tmp_path: Path) -> None:
    query = everything(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = clean(query, unfinished=True, checkpoints=True)
    assert (found.done, len(found.removals)) == (False, 4)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_nobody_can_go_on_from_goes(tmp_path: Path) -> None:
    found = clean(everything(tmp_path), remove=True)
    assert removed(found) == {"empty"}
    assert {each.path.name.partition("-")[0]: each.why for each in found.kept} == {
        "saved": "stale at step 4, can go on from step-00000002.pt; --unfinished removes it",
        "paused": "stopped at step 4, can go on from step-00000001.pt; --unfinished removes it",
    }
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert left == {"saved", "paused", "done"}


def test_unfinished_runs_go_where_that_is_asked_for(tmp_path: Path) -> None:
    query = everything(tmp_path)
    assert removed(clean(query, unfinished=True, remove=True)) == {"empty", "saved", "paused"}
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["done"]


def test_of_the_checkpoints_of_a_finished_run_the_last_stays(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path, results={"knn/top1": 0.5}))
    checkpoints = Checkpoints(folder.checkpoints, keep=9)
    for step in (5, 10):
        checkpoints.save(step, {"x": torch.zeros(3)})
    found = clean(RunQuery([tmp_path]), checkpoints=True, remove=True)
    assert [each.why for each in found.removals] == ["finished; keeps step-00000010.pt"]
    assert [path.name for path in checkpoints.paths()] == ["step-00000010.pt"]
    assert clean(RunQuery([tmp_path]), checkpoints=True, remove=True).removals == ()


def test_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    folder = RunFolder(make_run(tmp_path, results={"knn/top1": 0.5}))
    checkpoints = Checkpoints(folder.checkpoints, keep=9)
    for step in (5, 10):
        newest = checkpoints.save(step, {"x": torch.zeros(3)})
    newest.write_bytes(newest.read_bytes()[:-1])
    found = clean(RunQuery([tmp_path]), checkpoints=True, remove=True)
    assert (found.removals, found.failed) == ((), 1)
    assert "is damaged; the checkpoints before it stay" in found.kept[0].why
    assert len(checkpoints.paths()) == 2


def test_parts_of_files_go_and_the_run_stays(tmp_path: Path) -> None:
    path = make_run(tmp_path, results={"knn/top1": 0.5})
    part = path / "checkpoints" / ".step-00000010.pt.abcd1234.tmp"
    part.write_bytes(b"x" * 1000)
    found = clean(RunQuery([tmp_path]), remove=True)
    assert [(each.why, each.bytes) for each in found.removals] == [
        ("parts of files that a kill left", 1000)
    ]
    assert path.is_dir()
    assert not part.exists()


# --- What must not go -----------------------------------------------------------------------------


def test_a_run_that_a_process_has_is_not_touched(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    lock = lock_folder(path)
    found = clean(RunQuery([tmp_path]), unfinished=True, remove=True)
    assert (found.removals, found.kept) == ((), ())
    unlock_folder(path, lock)
    assert removed(clean(RunQuery([tmp_path]), remove=True)) == {"tiny"}


def test_a_run_that_begins_between_the_look_and_the_removal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path)
    lock_it, locks = lock_folder, []

    def taken(folder: Path) -> object:
        locks.append(lock_it(folder))  # the run is first
        return lock_it(folder)

    monkeypatch.setattr(run_cleaning, "lock_folder", taken)
    found = clean(RunQuery([tmp_path]), remove=True)
    assert (found.removals, found.failed) == ((), 1)
    assert "in use by process" in found.kept[0].why
    unlock_folder(path, locks[0])
    assert RunFolder(path).recipe.is_file()


def test_a_run_that_has_gone_on_since_the_look_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path)
    lock_it = lock_folder

    def resumed(folder: Path) -> object:
        (folder / "checkpoints" / "step-00000006.pt").touch()  # and stopped again
        return lock_it(folder)

    monkeypatch.setattr(run_cleaning, "lock_folder", resumed)
    found = clean(RunQuery([tmp_path]), remove=True)
    assert (found.removals, found.failed) == ((), 1)
    assert "has changed meanwhile" in found.kept[0].why
    assert path.is_dir()


def test_a_resume_finds_a_removed_run_in_use_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path)
    rename, seen = Path.rename, []

    def tried(self: Path, target: Path) -> Path:
        with pytest.raises(RunFolderError, match="in use by"):
            RunFolder.open(path, write=True)
        moved = rename(self, target)
        with pytest.raises(RunFolderError, match="no such run folder"):
            RunFolder.open(path, write=True)
        seen.append(moved)
        return moved

    monkeypatch.setattr(Path, "rename", tried)
    clean(RunQuery([tmp_path]), remove=True)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_cut_off_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(RunQuery([tmp_path]), remove=True)
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".tiny-")
    assert RunQuery([tmp_path]).find() == []
    assert [each.why for each in clean(RunQuery([tmp_path]), remove=True).removals] == [
        "its removal was cut off"
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_links_lead_to_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    linked = make_run(tmp_path / "runs", "linked")
    (linked / "figures" / "all").symlink_to(precious)
    outside = make_run(tmp_path / "outside", "outside")
    (tmp_path / "runs" / outside.name).symlink_to(outside)
    found = clean(RunQuery([tmp_path / "runs"]), unfinished=True, remove=True)
    assert found.removals == ()
    assert sorted(each.why.partition(": ")[2][:9] for each in found.kept)
    assert {"is a link" in each.why for each in found.kept} == {True}
    assert (precious / "thesis.txt").exists()
    assert RunFolder(outside).recipe.exists()


@pytest.mark.parametrize("place", ["notes.txt", "code/train.py", "checkpoints/mine.pt"])
def test_a_folder_with_files_of_a_person_stays(tmp_path: Path, place: str) -> None:
    path = make_run(tmp_path)
    (path / place).parent.mkdir(exist_ok=True)
    (path / place).touch()
    found = clean(RunQuery([tmp_path]), unfinished=True, remove=True)
    assert found.removals == ()
    assert "which no run writes: remove it by hand" in found.kept[0].why
    assert (path / place).exists()


def test_what_is_no_run_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "project" / "checkpoints").mkdir(parents=True)
    (tmp_path / "project" / "checkpoints" / "step-00000001.pt").touch()
    damaged = RunFolder(make_run(tmp_path, "damaged"))
    damaged.environment.unlink()
    found = clean(RunQuery([tmp_path]), unfinished=True, remove=True)
    assert found.removals == ()
    assert [each.why for each in found.kept] == [
        "damaged (environment.json: is missing); look at it, and remove it by hand"
    ]


def test_a_folder_of_a_run_that_never_began_goes_once_it_is_old(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    folder = RunFolder(path)
    for each in (folder.recipe, folder.environment, folder.metrics, folder.tracker):
        each.unlink()
    assert clean(RunQuery([tmp_path]), remove=True).removals == ()  # it may be starting
    age(path, 3600)
    assert [each.why for each in clean(RunQuery([tmp_path]), remove=True).removals] == [
        "stale at step 0, saved nothing"
    ]
    assert not path.exists()


def test_a_run_that_was_measured_stays(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    (path / "evaluations").mkdir()
    (path / "evaluations" / "20261101-000000-0000.json").write_text("{}")
    assert clean(RunQuery([tmp_path]), remove=True).removals == ()
    assert removed(clean(RunQuery([tmp_path]), unfinished=True, remove=True)) == {"tiny"}


def test_a_folder_that_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    found = clean(RunQuery([tmp_path]), remove=True)
    assert (found.removals, found.failed) == ((), 1)
    assert found.kept[0].why == "could not be removed: Permission denied"
    assert RunFolder(path).recipe.exists()


def test_conditions_hold_for_cleaning_too(tmp_path: Path) -> None:
    make_run(tmp_path, "a", params={"method.name": "byol"})
    make_run(tmp_path, "b")
    assert removed(clean(RunQuery([tmp_path], where=["method.name=byol"]), remove=True)) == {"a"}


def test_a_folder_that_is_gone_does_not_come_into_being_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two may clean at once."""
    path = make_run(tmp_path)
    judge = run_cleaning._judge

    def gone(*given: object) -> object:
        found = list(judge(*given))  # type: ignore[arg-type]
        path.rename(tmp_path.parent / f"{tmp_path.name}-gone")
        return iter(found)

    monkeypatch.setattr(run_cleaning, "_judge", gone)
    found = clean(RunQuery([tmp_path]), remove=True)
    assert (found.removals, found.failed) == ((), 1)
    assert "has changed meanwhile" in found.kept[0].why
    assert list(tmp_path.iterdir()) == []
