"""What a tracker promises: to mirror a run folder, whatever happens on the way, once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args
from unittest import SkipTest

from sslkit import installed_components
from sslkit.api import MetricPoint, resolve_component
from sslkit.engine.loop import train
from sslkit.engine.signals import StopSignals
from sslkit.errors import hide_logins
from sslkit.runs.folder import RunFolder
from sslkit.runs.upload_state import Status

from .any_facts import FactsLaws
from .laws import LawBrokenError, UntriedError, law, refuse
from .small_runs import SmallRuns, Tensors, changed, copied, listed, other_bits
from .tracker_bench import Bench, Unreliable, at_home

_FOLLOWS = ("it-follows-a-run",)
_STORES = (*_FOLLOWS, "a-run-is-continued")
_MANY = 1500
_ODD: Mapping[str, float] = {
    "eval/knn/top1": 0.5,
    "collapse/embedding_spread/projection of view 2/0": 0.0,
    "callback/mine/größe": -1e300,
    "system/gpu_0_memory_mb": 1e-300,
}


class TrackerLaws(FactsLaws):
    """The laws of `Tracker`, each tried through the uploader of a run."""

    kind = "tracker"

    @law(
        "look at what the service says; sqlite3 and other clients are opened in `start`, which is "
        "called on the thread that then uses them"
    )
    def it_follows_a_run(self) -> str:
        """Made on one thread and used on another, it takes metrics and files of a run, and how it
        ended."""
        bench = self._bench()
        bench.log({"train/loss": 1.0}, 1)
        bench.add_file(bench.folder.report.name)
        bench.send_all()
        bench.log({"train/loss": 0.5, "eval/knn/top1": 0.25}, 2)
        bench.send_all("finished")
        refuse(bench.uploader.has_work(), "the run is over, and it has not everything")
        run_id = bench.uploader.cursor.run_id
        refuse(run_id is not None and not isinstance(run_id, str), f"start gave {run_id!r}")
        return "3 metrics, 1 file" + ("" if run_id is None else f", as run {run_id}")

    @law(
        "look in `start` for the run of the id that is given, or of the run folder, and return its "
        "id; make a run only where there is none",
        needs=_FOLLOWS,
    )
    def a_run_is_continued(self) -> str:
        """`start` with an id that it gave before returns that id: in the same process, and in
        another one."""
        bench = self._bench()
        bench.log({"train/loss": 1.0}, 1)
        bench.send_all()
        first = bench.uploader.cursor.run_id
        if first is None:
            raise SkipTest("it gives its runs no ids")
        for words, other in (("again", bench.tracker), ("by another one", self._bench().tracker)):
            found = bench.start(other, first)
            refuse(found != first, f"run {first} became {found!r} where start was called {words}")
        return f"run {first}"

    # --- What the service has ---------------------------------------------------------------------

    @law(
        "find out in `start`, which comes after every failure, what the service has of each "
        "metric, and leave that out in log_metrics",
        needs=_STORES,
    )
    def what_was_stored_is_not_stored_again(self) -> str:
        """Where the service stored metrics and its answer was lost, they are sent again, and are
        there once."""
        bench = self._bench()
        bench.log({"train/loss": 1.0, "train/lr": 0.1}, 1)
        bench.log({"train/loss": 0.5, "train/lr": 0.2}, 2)
        bench.tracker.fails["log_metrics"] = "after"
        bench.expect_failure()
        bench.send_all()
        return self._refuse_doubles(bench, "after an answer that was lost")

    @law(
        "ask the service in `start`, not what the process remembers",
        needs=(*_STORES, "what-was-stored-is-not-stored-again"),
    )
    def another_process_stores_nothing_again(self) -> str:
        """Where a process was killed between storing metrics and noting it, the next one finds them
        there, and they are there once."""
        bench = self._bench()
        bench.log({"train/loss": 1.0}, 1)
        bench.send_all()
        killed = bench.saved_state()
        bench.log({"train/loss": 0.5}, 2)
        bench.send_all()
        bench.forget_to(killed, self._bench().tracker)
        bench.log({"train/loss": 0.25}, 3)
        bench.send_all()
        return self._refuse_doubles(bench, "after a kill")

    @law(
        "raise what the service raises: points whose call returns are taken for stored",
        needs=_STORES,
    )
    def nothing_is_lost(self) -> str:
        """Where the service is away for each kind of call in turn, in the end it has every point,
        those of a metric in the order of their steps."""
        bench = self._bench()
        for step, call in enumerate(("start", "log_metrics", "log_artifact")):
            bench.log({"train/loss": 1.0 / (step + 1), "perf/images_per_second": 0.0}, step)
            bench.add_file(f"file{step}.txt")
            bench.tracker.fails[call] = "before"
            bench.expect_failure()
            bench.send_all()
        stored = self._stored(bench)
        sent, found = _counted(bench.sent), _counted(stored)
        missing = list((sent - found).elements())
        refuse(missing, f"of {len(bench.sent)} points {len(missing)} are missing: {missing[:2]}")
        for key in {point.key for point in stored}:
            steps = [point.step for point in stored if point.key == key]
            refuse(steps != sorted(steps), f"'{key}' has the steps {steps}")
        return f"{len(stored)} points"

    @law(
        "take every status, and open a run again that has ended: a resume goes on with it",
        needs=_FOLLOWS,
    )
    def every_end_is_taken(self) -> None:
        """A run may end as finished, failed or killed, and go on after that."""
        statuses: Sequence[Status] = get_args(Status)
        for status in statuses:
            bench = self._bench()
            bench.log({"train/loss": 1.0}, 1)
            self._try(bench, status, f"a run that is {status}")
            bench.resume()
            bench.log({"train/loss": 0.5}, 2)
            self._try(bench, "finished", f"a run that goes on after it was {status}")

    @law(
        "cut, replace or quote what the service does not take, as long as keys stay apart",
        needs=_FOLLOWS,
    )
    def it_takes_what_runs_have(self) -> None:
        """It takes params of every type and length, names of metrics with slashes, blanks and
        letters of any language, numbers of any size, and many at once."""
        bench = self._bench(
            params={
                "seed": 0, "compile": True, "nothing": None, "lr": 1e-300,
                "augmentation.views": "x" * 9000, "method.größe": "ä",
            },
            tags={"sslkit.method": "simple", "sslkit.recipe": "y" * 9000},
        )  # fmt: skip
        for step in range(0, 4):
            bench.log(_ODD, step)
        self._try(bench, None, "names and params of every kind")
        for step in range(4, 4 + _MANY):
            bench.log({"train/loss": 1.0}, step)
        self._try(bench, "finished", f"{_MANY} points")

    # --- What it leaves alone ---------------------------------------------------------------------

    @law(
        "keep files of the service elsewhere: the run folder is mirrored, not used", needs=_FOLLOWS
    )
    def the_run_folder_is_left(self) -> None:
        """It changes, adds and removes no file of the run folder."""
        bench = self._bench()
        bench.log({"train/loss": 1.0}, 1)
        bench.add_file(bench.folder.report.name)
        before = _contents(bench.folder)
        bench.send_all("finished")
        after = _contents(bench.folder)
        odd = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
        refuse(odd, f"it changed {listed(sorted(odd))}")

    @law(
        "change no setting of torch, and draw no random numbers",
        needs=_FOLLOWS,
        slow=True,
    )
    def results_stay(self) -> None:
        """A run that it follows has the bits of a run without a tracker."""
        followed, alone = self._state_after_a_run(follow=True), self._state_after_a_run()
        odd = other_bits(alone, followed)
        refuse(odd, f"{listed(odd)} differ after a run that it follows")

    def _state_after_a_run(self, *, follow: bool = False) -> Tensors:
        with at_home(self.subject.folder):
            runs = SmallRuns(self.subject)
            none = resolve_component(installed_components(), "tracker", {"name": "none"})
            tracker = self.subject.slot if follow else none
            settings = changed(runs.recipe.train, epochs=1)
            runs.recipe = runs.recipe.model_copy(update={"tracking": tracker, "train": settings})
            experiment = runs.build()
            with experiment.open_log():
                train(experiment.training, StopSignals())
        return copied(experiment.method.state_dict())

    # --- What it says -----------------------------------------------------------------------------

    @law(
        "return from named_store a text that may be shown, without a login, or None; and from "
        "ui_command a list of texts, or None"
    )
    def it_says_where_it_stores(self) -> str | None:
        """`named_store` and `ui_command` give what may be shown and started, or nothing."""
        tracker = self._bench().tracker.inner
        store = tracker.named_store()
        refuse(store is not None and (not isinstance(store, str) or not store), f"store {store!r}")
        shown = store is None or hide_logins(store) == store
        refuse(not shown, f"named_store shows a login: {hide_logins(store or '')}")
        command = tracker.ui_command("127.0.0.1", 5000)
        is_command = (
            isinstance(command, list) and command and all(isinstance(word, str) for word in command)
        )
        refuse(command is not None and not is_command, f"ui_command gave {command!r}")
        return f"in {store}" if store else None

    @law(
        "find the group by its key, and return fields of Config",
        needs=_FOLLOWS,
    )
    def groups_are_found_again(self) -> str:
        """`open_group` of the same key gives the same fields, which its Config has, and
        `close_group` takes files."""
        bench = self._bench()
        first = bench.on_thread(lambda: dict(bench.tracker.inner.open_group("key", "a comparison")))
        if not first:
            raise SkipTest("it shows no groups")
        again = self._bench()
        second = again.on_thread(lambda: dict(again.tracker.inner.open_group("key", "other words")))
        refuse(first.keys() != second.keys(), f"fields {sorted(first)} became {sorted(second)}")
        slot = self.subject.slot
        config = {**slot.config.model_dump(mode="json"), **first}
        slot.cls.Config.model_validate(config)
        report = self.subject.folder / "comparison.md"
        report.write_text("# A comparison\n", encoding="utf-8")
        again.on_thread(lambda: again.tracker.inner.close_group("key", [report]))
        return listed(sorted(first))

    def _bench(
        self,
        params: Mapping[str, str | int | float | bool | None] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Bench:
        with at_home(self.subject.folder):
            tracker = Unreliable(self.subject.slot.build())
        return Bench(tracker, self.subject.folder, params or {"seed": 0}, tags or {})

    def _try(self, bench: Bench, status: Status | None, words: str) -> None:
        try:
            bench.send_all(status)
        except Exception as error:
            error.args = (f"{error} (of {words})",)
            raise

    def _stored(self, bench: Bench) -> Sequence[MetricPoint]:
        stored = bench.stored(self._bench().tracker)
        if stored is None:
            raise UntriedError("define stored_points, by which it tells what it has")
        return stored

    def _refuse_doubles(self, bench: Bench, when: str) -> str:
        stored = self._stored(bench)
        twice = [point for point, count in _counted(stored).items() if count > 1]
        if twice:
            raise LawBrokenError(f"{when} the service has (step, value) {twice[0][:2]} twice")
        refuse(len(stored) < len(bench.sent), f"{when} points are missing: {len(stored)} are there")
        return f"{len(stored)} points"


def _counted(points: Sequence[MetricPoint]) -> Counter[tuple[int, float, int]]:
    """Without their keys, which a service may write in its own way."""
    return Counter((point.step, point.value, point.time_ms) for point in points)


def _contents(folder: RunFolder) -> dict[str, str]:
    """File -> hash of what it holds, but for the state of the uploader itself."""
    return {
        str(path.relative_to(folder.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.path.rglob("*")
        if path.is_file() and path != folder.tracker
    }
