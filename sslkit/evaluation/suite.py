"""Runs the evaluators of a recipe on one encoder, and on the baselines at the end.

Names. An evaluator is called by its name in the recipe; listed again it is `knn_2`, `knn_3`, and so
on, in the order of the recipe. Its metrics are `eval/<evaluator>/<metric>`; a metric whose name
holds a slash stands as it is (`collapse/std`), except that a repeated evaluator adds its number to
the first part (`collapse_2/std`). Baselines add the subject: `eval/knn/top1_untrained`.

Failures. An evaluation never ends a run. An evaluator that raises is reported as skipped, with the
exception as the reason and its traceback in `SuiteResult.errors`, and a warning is given; so is
one that changes the encoder, which is put back to the bit. Only unreadable data, or an encoder
that cannot run at all, raises.

Ranks. All ranks call the same methods in the same order. They share the batches of what takes most
of the time, features and batch statistics; evaluators work on rank 0 while the others wait.

Batch statistics. A network is measured with the statistics that it has: `calibrated` gives it those
that every encoder of a run is measured with, and takes them away again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import nn

from sslkit.api import EncoderName, EvaluationImages, FeatureBank, MethodEmbeddings, SubjectName
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.nn.batch_norm import has_batch_statistics, kept_batch_statistics
from sslkit.nn.modes import eval_mode
from sslkit.parallel.shared_work import SharedWork

from .collector import Collector, NamedEvaluator
from .features import count_not_finite, extract
from .isolation import isolated, unchanged
from .labels import NO_LABELS, any_labelled, label_notes, label_problem, labelled_rows
from .results import SuiteResult, joined
from .subjects import EncoderSubject, RawSubject, Subject, empty_bank

NO_TEST_SPLIT = "no test split"


class EvaluationSuite:
    """The evaluators of a run. See the module's text for names and failures."""

    def __init__(
        self,
        evaluators: Sequence[NamedEvaluator],
        images: EvaluationImages,
        *,
        seed: int = 0,
        calibrate: Callable[[nn.Module], None] | None = None,
        embeddings: MethodEmbeddings | None = None,
        work: SharedWork | None = None,
    ) -> None:
        """evaluators: under unique names, see `named_evaluators`. images: what they measure on.
        seed: of the recipe. calibrate: gives a network the batch statistics that every encoder is
        measured with, where they are not those of these images. embeddings: of the method that is
        trained. work: of the ranks that evaluate together, the same of all suites of a run; None:
        this one alone."""
        self._evaluators = list(evaluators)
        self._images = images
        self._seed = seed
        self._calibrate = calibrate or images.calibrate
        self._embeddings = embeddings or MethodEmbeddings()
        self.work = work or SharedWork()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the evaluators, in the order of the recipe."""
        return tuple(named.key for named in self._evaluators)

    def due(self, epoch: int, final: bool) -> list[str]:
        """The evaluators to run when `epoch` epochs are done. All of them run after the last."""
        return [named.key for named in self._due(epoch, final)]

    def images_encoded(self, subject: EncoderName, epoch: int, final: bool) -> int:
        """Images whose features are taken one after the other where the evaluators that are then
        due measure an encoder; ranks take theirs side by side. Not counted is what evaluators make
        of images by themselves, such as views."""
        due = self._measurable(self._due(epoch, final), subject, Collector("planned"))
        readers = [part for named in due for part in named.feature_parts_on(subject)]
        if not readers:
            return 0
        train, test = (
            self.work.one_after_another(count, EVALUATION_BATCH)
            for count in (self._images.num_images("train"), self._images.num_images("test"))
        )
        with_train = not test or any("train" in part.splits for part in readers)
        return test + (train if with_train else 0)

    @contextmanager
    def calibrated(
        self, encoder: nn.Module, projection_layers: Sequence[nn.Module] = ()
    ) -> Iterator[float]:
        """Within the block the networks have the batch statistics with which every encoder is
        measured and exported (decision 0038), in place; afterwards their own again, to the bit.
        Gives the seconds that it took, 0 without BatchNorm."""
        network = nn.Sequential(encoder, *projection_layers)
        if not has_batch_statistics(network):
            yield 0.0
            return
        with kept_batch_statistics(network):
            start = time.perf_counter()
            self._calibrate(network)
            self.work.settle()
            yield time.perf_counter() - start

    def run(
        self,
        encoder: nn.Module,
        epoch: int,
        final: bool,
        projection_layers: Sequence[nn.Module] = (),
        *,
        calibration_seconds: float = 0.0,
    ) -> SuiteResult:
        """Measures the encoder, as it is, with the evaluators that are due. Features are taken once
        for all of them; the encoder is left as it was, to the bit.

        projection_layers: see `Method.projection_layers`. calibration_seconds: to be counted with
        the rest."""
        start = time.perf_counter() - calibration_seconds
        report = Collector(f"after epoch {epoch}", started=start)
        report.calibrated("trained", calibration_seconds)
        due = self._measurable(self._due(epoch, final), "trained", report)
        if due:
            subject = self._encoder_subject("trained", encoder, projection_layers, self._embeddings)
            self._measure(due, subject, report)
        return self._told(report)

    def baselines(
        self, untrained: nn.Module | None, projection_layers: Sequence[nn.Module] = ()
    ) -> SuiteResult:
        """Measures the samples themselves, mean-centred, and the untrained encoder, `calibrated`,
        with every evaluator that asks for them. untrained: None where there is no such encoder."""
        report = Collector("of the baselines")
        raw = self._measurable(self._evaluators, self._images.sample.raw, report)
        encoder = self._evaluators if untrained is not None else []
        encoder = self._measurable(encoder, "untrained", report)
        if raw:
            self._measure(raw, RawSubject(self._images, self._seed, self.work), report)
        if encoder and untrained is not None:
            with self.calibrated(untrained, projection_layers) as seconds:
                report.calibrated("untrained", seconds)
                subject = self._encoder_subject("untrained", untrained, projection_layers)
                self._measure(encoder, subject, report)
        return self._told(report)

    def seconds_per_image(self, encoder: nn.Module) -> float:
        """Seconds that the features of a training image take, measured on the second batch (on the
        first where there is no other)."""
        images, seconds, count = self._images, 0.0, 1
        batches = iter(images.preprocessed("train"))
        for _ in range(2):
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            features = extract(encoder, [batch], images.compute)
            features.sum().item()  # waits for the device
            seconds, count = time.perf_counter() - start, len(batch)
        return seconds / count

    def _due(self, epoch: int, final: bool) -> list[NamedEvaluator]:
        def is_due(named: NamedEvaluator) -> bool:
            every: int | None = getattr(named.evaluator.config, "every_epochs", None)
            return final or (every is not None and epoch > 0 and epoch % every == 0)

        return [named for named in self._evaluators if is_due(named)]

    def _measurable(
        self, evaluators: Sequence[NamedEvaluator], subject: SubjectName, report: Collector
    ) -> list[NamedEvaluator]:
        """Those that measure this subject and have what they need; where labels are missing, the
        others are reported."""
        wanted = [named for named in evaluators if named.parts_on(subject)]
        on_labels = [named for named in wanted if named.evaluator.requires_labels]
        if not on_labels:
            return wanted
        reason = self._label_problem()
        if reason is None:
            if notes := self._label_notes():
                report.notes["labels"] = notes
            return wanted
        for named in on_labels:
            report.skip(named, subject, reason)
        return [named for named in wanted if not named.evaluator.requires_labels]

    def _label_problem(self) -> str | None:
        train = self._images.labels("train")
        if not any_labelled(train):
            return NO_LABELS
        if not self._images.num_images("test"):
            return NO_TEST_SPLIT
        return label_problem(train, self._images.labels("test"), self._images.sample.noun)

    def _label_notes(self) -> list[str]:
        images = self._images
        return label_notes(images.labels("train"), images.labels("test"), images.sample.noun)

    # --- One subject ---------------------------------------------------------------------------

    def _encoder_subject(
        self,
        name: EncoderName,
        encoder: nn.Module,
        projection_layers: Sequence[nn.Module],
        embeddings: MethodEmbeddings | None = None,
    ) -> EncoderSubject:
        return EncoderSubject(
            name,
            encoder,
            projection_layers,
            self._images,
            self._seed,
            embeddings or MethodEmbeddings(),
            self.work,
        )

    def _measure(
        self, evaluators: Sequence[NamedEvaluator], subject: Subject, report: Collector
    ) -> None:
        bank = empty_bank(self._images)
        readers = [part for named in evaluators for part in named.feature_parts_on(subject.name)]
        if readers:
            with report.timed(f"features/{subject.name}"):
                bank = subject.take_bank(any("train" in part.splits for part in readers))
        broken, total = self.work.once(lambda: _count_not_finite(bank))
        if broken:
            for named in evaluators:
                noun = self._images.sample.noun
                report.skip(
                    named, subject.name, f"features of {broken} of {total} {noun}s not finite"
                )
            return
        labelled = labelled_rows(bank)
        with eval_mode(subject.networks):
            for named in evaluators:
                given = labelled if named.evaluator.requires_labels else bank
                with report.timed(f"{named.key}/{subject.name}"):
                    self.work.once(partial(self._measure_one, named, subject, given, report))

    def _measure_one(
        self, named: NamedEvaluator, subject: Subject, bank: FeatureBank, report: Collector
    ) -> None:
        try:
            found = []
            for part in named.parts_on(subject.name):
                with isolated(self._seed, named.key), unchanged(subject.networks):
                    found.append(subject.evaluate(part, bank))
            report.add(named, subject.name, found)
        except (Exception, SystemExit) as error:
            report.fail(named, subject.name, error)

    def _told(self, report: Collector) -> SuiteResult:
        """What was found, which only rank 0 knows; the others are told what they need."""
        result = report.result()
        told = self.work.once(lambda: result.told)
        return result if self.work.world.is_first else told


def _count_not_finite(bank: FeatureBank) -> tuple[int, int]:
    """Rows that hold a NaN or an infinity, and all rows."""
    broken = count_not_finite(bank.train) + count_not_finite(bank.test)
    return broken, len(bank.train) + len(bank.test)


class EvaluationSuites:
    """A suite on the data of the run, and further ones on the data of entries of `evaluate`. Every
    encoder is measured with the batch statistics of the run's training images, on all of them: it
    is the one that is exported."""

    def __init__(self, own: EvaluationSuite, others: Sequence[EvaluationSuite] = ()) -> None:
        """own: on the data of the run. The names of all evaluators are unique."""
        self._own = own
        self._all = (own, *others)

    @property
    def work(self) -> SharedWork:
        """What the ranks do together, of all suites."""
        return self._own.work

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the evaluators, those on the data of the run first."""
        return tuple(name for suite in self._all for name in suite.names)

    def due(self, epoch: int, final: bool) -> list[str]:
        """See `EvaluationSuite.due`."""
        return [name for suite in self._all for name in suite.due(epoch, final)]

    def images_encoded(self, subject: EncoderName, epoch: int, final: bool) -> int:
        """See `EvaluationSuite.images_encoded`."""
        return sum(suite.images_encoded(subject, epoch, final) for suite in self._all)

    def calibrated(
        self, encoder: nn.Module, projection_layers: Sequence[nn.Module] = ()
    ) -> AbstractContextManager[float]:
        """See `EvaluationSuite.calibrated`; on the data of the run."""
        return self._own.calibrated(encoder, projection_layers)

    def run(
        self,
        encoder: nn.Module,
        epoch: int,
        final: bool,
        projection_layers: Sequence[nn.Module] = (),
        *,
        calibration_seconds: float = 0.0,
    ) -> SuiteResult:
        """See `EvaluationSuite.run`."""
        first, *others = self._all
        results = [
            first.run(
                encoder, epoch, final, projection_layers, calibration_seconds=calibration_seconds
            )
        ]
        results += [other.run(encoder, epoch, final, projection_layers) for other in others]
        return joined(results)

    def baselines(
        self, untrained: nn.Module | None, projection_layers: Sequence[nn.Module] = ()
    ) -> SuiteResult:
        """See `EvaluationSuite.baselines`."""
        return joined([suite.baselines(untrained, projection_layers) for suite in self._all])

    def seconds_per_image(self, encoder: nn.Module) -> float:
        """See `EvaluationSuite.seconds_per_image`."""
        return self._own.seconds_per_image(encoder)
