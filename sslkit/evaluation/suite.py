"""Runs the protocols of a recipe on one encoder, and on the baselines at the end.

Names. A protocol is called by its name in the recipe; listed again it is `knn_2`, `knn_3`, and so
on, in the order of the recipe. Its metrics are `eval/<protocol>/<metric>`; a metric whose name
holds a slash stands as it is (`collapse/std`), except that a repeated protocol adds its number to
the first part (`collapse_2/std`). Baselines add the subject: `eval/knn/top1_untrained`.

Failures. An evaluation never ends a run. A protocol that raises is reported as skipped, with the
exception as the reason and its traceback in `SuiteResult.errors`, and a warning is given; so is
one that changes the encoder, which is put back to the bit. Only unreadable data, or an encoder
that cannot run at all, raises.

Batch statistics. A network is measured with the statistics that it has: `calibrated` gives it those
that every encoder of a run is measured with, and takes them away again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslkit.api import Apart, EvaluationImages, FeatureBank, Subject
from sslkit.nn.batch_norm import calibrate_batch_norm, has_batch_statistics, kept_batch_statistics
from sslkit.nn.numerics import Precision

from .collector import Collector, NamedEvaluator
from .features import BankSpec, centre_, count_not_finite, eval_mode, extract, pixel_features
from .isolation import isolated, unchanged
from .labels import (
    NO_LABELS,
    any_labelled,
    beside,
    label_notes,
    label_problem,
    labelled_rows,
    numbered_classes,
)
from .results import SuiteResult

Embeddings = Callable[[], Mapping[str, Tensor]]
"""See `Subject.embeddings`."""

Batches = Callable[[], Iterable[Tensor]]
"""Each call starts again: (B, C, S, S) float images in [0, 1], in the order of the labels."""

Features = Callable[[Iterable[Tensor], BankSpec | None], Tensor]
"""Features of all batches; how much room to make for them."""

NO_TEST_SPLIT = "no test split"


class EvaluationSuite:
    """The protocols of a run. See the module's text for names and failures."""

    def __init__(
        self,
        protocols: Sequence[NamedEvaluator],
        *,
        train_batches: Batches,
        test_batches: Batches | None,
        train_labels: Tensor | None = None,
        test_labels: Tensor | None = None,
        num_train: int | None = None,
        num_test: int | None = None,
        device: torch.device | None = None,
        class_names: Sequence[str] | None = None,
        positive_pairs: Callable[[int], tuple[Tensor, Tensor]] | None = None,
        calibrate: Callable[[nn.Module], None] | None = None,
        embeddings: tuple[Embeddings, Embeddings] | None = None,
        must_not_collapse: Mapping[str, Apart] | None = None,
        images: EvaluationImages | None = None,
        seed: int = 0,
        precision: Precision = "fp32",
        channels_last: bool = False,
    ) -> None:
        """protocols: under unique names, see `named_evaluators`.
        train_labels, test_labels: (N,) int64 class indices, negative where an image has none.
        num_train, num_test: images of each split, where labels do not say it; with them features
        take no more memory than they need. device: where protocols compute; default: where the
        features are.
        positive_pairs(n): two views of n images, each (n, C, S, S) in [0, 1].
        calibrate: see `EvaluationImages.calibrate`; None: on all of `train_batches`.
        embeddings: of one batch, by the method that is trained and by the same before its first
        step; must_not_collapse: see `Subject`.
        images: the same images, for protocols that train networks of their own."""
        self._protocols = list(protocols)
        self._train_batches = train_batches
        self._test_batches = test_batches
        self._train_labels = train_labels
        self._test_labels = test_labels
        self._num_train = len(train_labels) if train_labels is not None else num_train
        self._num_test = len(test_labels) if test_labels is not None else num_test
        self._class_names = tuple(class_names or numbered_classes(train_labels, test_labels))
        self._positive_pairs = positive_pairs
        self._calibrate = calibrate or self._calibrate_on_all
        self._embeddings = embeddings
        self._must_not_collapse = must_not_collapse
        self._images = images
        self._device = device
        self._seed = seed
        self._extract: dict[str, Any] = {"precision": precision, "channels_last": channels_last}

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names of the protocols, in the order of the recipe."""
        return tuple(protocol.key for protocol in self._protocols)

    def due(self, epoch: int, final: bool) -> list[str]:
        """The protocols to run when `epoch` epochs are done. All of them run after the last."""
        return [protocol.key for protocol in self._due(epoch, final)]

    def takes_features(self, epoch: int, final: bool) -> bool:
        """Whether a protocol that is then due needs features, and not images alone."""
        return any(protocol.evaluator.uses_features for protocol in self._due(epoch, final))

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
        """Measures the encoder, as it is, with the protocols that are due. Features are taken once
        for all of them; the encoder is left as it was, to the bit.

        projection_layers: see `Method.projection_layers`. calibration_seconds: to be counted with
        the rest."""
        start = time.perf_counter() - calibration_seconds
        report = Collector(f"after epoch {epoch}", started=start)
        report.calibrated("trained", calibration_seconds)
        protocols = self._measurable(self._due(epoch, final), "trained", report)
        if protocols:
            self._measure_encoder(protocols, encoder, projection_layers, "trained", report)
        return report.result()

    def baselines(
        self, untrained: nn.Module | None, projection_layers: Sequence[nn.Module] = ()
    ) -> SuiteResult:
        """Measures mean-centred pixels and the untrained encoder, `calibrated`, with every
        protocol that asks for baselines. untrained: None where there is no such encoder."""
        report = Collector("of the baselines")
        wanted = [protocol for protocol in self._protocols if protocol.evaluator.baselines]
        pixels = self._measurable([p for p in wanted if _measures_pixels(p)], "pixels", report)
        encoder = self._measurable(wanted, "untrained", report) if untrained is not None else []
        if pixels:
            bank = self._empty_bank()
            if any(protocol.evaluator.uses_features for protocol in pixels):
                with report.timed("features/pixels"):
                    bank = self._bank(lambda batches, room: pixel_features(batches, room=room))
                    centre_(bank)
            self._measure(pixels, Subject("pixels", bank, self._seed), report)
            del bank
        if encoder and untrained is not None:
            with self.calibrated(untrained, projection_layers) as seconds:
                report.calibrated("untrained", seconds)
                self._measure_encoder(encoder, untrained, projection_layers, "untrained", report)
        return report.result()

    def seconds_per_image(self, encoder: nn.Module) -> float:
        """Seconds that the features of a training image take, measured on the second batch (on the
        first where there is no other)."""
        seconds, images = 0.0, 1
        batches = iter(self._train_batches())
        for _ in range(2):
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            extract(encoder, [batch], **self._extract).sum().item()  # waits for the device
            seconds, images = time.perf_counter() - start, len(batch)
        return seconds / images

    def _calibrate_on_all(self, network: nn.Module) -> None:
        calibrate_batch_norm(network, self._train_batches(), **self._extract)

    # --- One subject ---------------------------------------------------------------------------

    def _due(self, epoch: int, final: bool) -> list[NamedEvaluator]:
        def is_due(protocol: NamedEvaluator) -> bool:
            every: int | None = getattr(protocol.evaluator.config, "every_epochs", None)
            return final or (every is not None and epoch > 0 and epoch % every == 0)

        return [protocol for protocol in self._protocols if is_due(protocol)]

    def _measurable(
        self, protocols: Sequence[NamedEvaluator], subject: str, report: Collector
    ) -> list[NamedEvaluator]:
        """The protocols that have what they need; the others are reported."""
        reason = self._label_problem()
        if reason is None and any(protocol.evaluator.requires_labels for protocol in protocols):
            assert self._train_labels is not None
            assert self._test_labels is not None
            if notes := label_notes(self._train_labels, self._test_labels):
                report.notes["labels"] = notes
        for protocol in protocols:
            if reason and protocol.evaluator.requires_labels:
                report.skip(protocol, subject, reason)
        return [p for p in protocols if not (reason and p.evaluator.requires_labels)]

    def _label_problem(self) -> str | None:
        if not any_labelled(self._train_labels):
            return NO_LABELS
        if self._test_batches is None:
            return NO_TEST_SPLIT
        return label_problem(self._train_labels, self._test_labels)

    def _measure_encoder(
        self,
        protocols: Sequence[NamedEvaluator],
        encoder: nn.Module,
        projection_layers: Iterable[nn.Module],
        name: Literal["trained", "untrained"],
        report: Collector,
    ) -> None:
        def features(batches: Iterable[Tensor], room: BankSpec | None = None) -> Tensor:
            return extract(encoder, batches, room=room, **self._extract)

        def pairs(num: int) -> tuple[Tensor, Tensor]:
            assert self._positive_pairs is not None
            first, second = self._positive_pairs(num)
            return features(torch.split(first, 256)), features(torch.split(second, 256))

        users = [p.evaluator for p in protocols if p.evaluator.uses_features]
        bank = self._empty_bank()
        if users:
            with report.timed(f"features/{name}"):
                bank = self._bank(features, any(user.uses_train for user in users))
        broken = count_not_finite(bank.train) + count_not_finite(bank.test)
        if broken:
            total = len(bank.train) + len(bank.test)
            for protocol in protocols:
                report.skip(protocol, name, f"features of {broken} of {total} images not finite")
            return
        layers = tuple(projection_layers)
        with eval_mode(nn.Sequential(encoder, *layers)):
            pairs_or_none = pairs if self._positive_pairs else None
            subject = Subject(
                name,
                bank,
                self._seed,
                encoder,
                pairs_or_none,
                images=self._images,
                projection_layers=layers,
            )
            if name == "trained" and self._embeddings is not None:
                now, untrained = self._embeddings
                subject = replace(
                    subject,
                    embeddings=now,
                    untrained_embeddings=untrained,
                    must_not_collapse=self._must_not_collapse,
                )
            self._measure(protocols, subject, report)

    def _empty_bank(self) -> FeatureBank:
        nothing = torch.empty(0, 0)
        return FeatureBank(nothing, nothing, class_names=self._class_names, device=self._device)

    def _bank(self, features: Features, with_train: bool = True) -> FeatureBank:
        """Features of both splits; without those of the training split where nothing uses them."""
        together = (self._num_train or 0) + (self._num_test or 0)

        def of(batches: Batches, num: int | None) -> Tensor:
            return features(batches(), None if num is None else BankSpec(num, together))

        with_train = with_train or self._test_batches is None
        parts = []
        if with_train:
            parts.append(of(self._train_batches, self._num_train))
        if self._test_batches is not None:
            parts.append(of(self._test_batches, self._num_test))
        nothing = parts[0].new_empty(0, parts[0].shape[1])
        train = parts[0] if with_train else nothing
        test = parts[-1] if self._test_batches is not None else nothing
        train_labels, test_labels = self._train_labels, self._test_labels
        if train_labels is not None and not with_train:
            train_labels = train_labels[:0]
        if self._test_batches is None:
            test_labels = None
        return FeatureBank(
            train,
            test,
            beside(train_labels, train),
            beside(test_labels, test),
            self._class_names,
            self._device,
        )

    def _measure(
        self, protocols: Sequence[NamedEvaluator], subject: Subject, report: Collector
    ) -> None:
        labelled = replace(subject, bank=labelled_rows(subject.bank))
        networks = [] if subject.encoder is None else [subject.encoder, *subject.projection_layers]
        whole = nn.Sequential(*networks)
        for protocol in protocols:
            each = labelled if protocol.evaluator.requires_labels else subject
            with report.timed(f"{protocol.key}/{subject.name}"):
                try:
                    with isolated(self._seed, protocol.key), unchanged(whole):
                        found = protocol.evaluator.evaluate(each)
                    report.add(protocol, subject.name, found)
                except (Exception, SystemExit) as error:
                    report.fail(protocol, subject.name, error)


def _measures_pixels(protocol: NamedEvaluator) -> bool:
    evaluator = protocol.evaluator
    return evaluator.pixel_baseline and (evaluator.uses_features or evaluator.own_data)
