"""Evaluators, and what they return. What they are given is in `evaluation_inputs`.

An entry of `evaluate` is one of three things, by what it works on:

- `FeatureEvaluator`: features of the run's images, taken once for all of them (kNN, a probe);
- `ImageEvaluator`: the run's images, through networks of its own (fine-tuning, an ensemble);
- `OwnDataEvaluator`: data that its configuration names (segmentation, detection).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveInt
from torch import Tensor

from sslkit.deprecation import warn_of_old
from sslkit.errors import PluginError

from .component import Component, ComponentConfig, Slot
from .data import DataSource
from .evaluation_inputs import FeatureInput, ImageInput, OwnDataInput, PixelInput, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Baseline = Literal["pixels", "untrained"]
"""What is measured beside the trained encoder."""


@dataclass(frozen=True)
class ImageScores:
    """What each test image adds to a metric that is a mean over them."""

    values: Tensor
    """(M,) 0 to 1, in the order of the labelled test images; the mean over draws where there are
    several. NaN where an image does not count."""
    weights: Tensor | None = None
    """(M,) how much each counts, such as 1 / (images of its class); None: all alike."""


@dataclass(frozen=True)
class Resamples:
    """A metric that is no mean over test images, such as a ratio of sums, on test splits that were
    drawn from this one with replacement: `sslkit.nn.resampling.resample`."""

    values: Tensor
    """(R,) 0 to 1; NaN where a split has no value."""
    num_images: int
    """Test images that were drawn from."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """name -> value; logged as `eval/<evaluator>/<name>` unless the name holds a slash. Names that
    begin with `top1` are accuracies, 0 to 1, and stand in the tables; so do `recall_at_...`,
    `map`, `nmi`, `ari`, `miou`, `pixel_accuracy` and `ap...`. A comparison shows these or, where
    there is none, the first metric."""
    draws: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """name -> the values whose mean the metric is, for intervals and paired differences."""
    per_image: Mapping[str, ImageScores] = field(default_factory=dict)
    """name -> the scores of the test images whose mean the metric is. From them come the interval
    over images, and that of the difference to a baseline, paired by image; where the metric has
    draws too, over both."""
    resamples: Mapping[str, Resamples] = field(default_factory=dict)
    """name -> the metric on resampled test splits, where it is no mean over images: for the same
    intervals."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    skipped: str | None = None
    """The reason, where nothing could be measured."""
    warning: str | None = None
    """What is wrong with the training, in one line, for the user to see."""
    notes: Sequence[str] = ()
    """What a reader must know beside the numbers, one line each: what was left out, and why."""
    stop: str | None = None
    """Why training should end here, in one line: the run then ends with a checkpoint."""


class EvaluatorConfig(ComponentConfig):
    """Fields that every evaluator has."""

    every_epochs: PositiveInt | None = None
    """Also run after every so many epochs. It always runs after the last."""
    data: Slot[DataSource] | None = None
    """A data source to measure on, both splits of it, in place of the recipe's: a labelled set that
    watches a training without labels. Batch statistics stay those of the training images."""
    baselines: tuple[Baseline, ...] | None = None
    """Which of its baselines are measured at the end; null: all that it has. A search, where they
    are the same each time, may leave them out: []."""


class Evaluator(Component, ABC):
    """What all evaluators have in common. Subclass one of the three kinds below, or give several
    of them as `parts`.

    The host constructs it as `cls(config)`, once for a run. `evaluate` is called on the thread of
    the training loop, between two steps and at the end of the run, once for each subject: after
    `every_epochs` for the trained encoder, and at the end for the baselines too. Several processes
    take the features together, and the first alone calls `evaluate`, while the others wait. Of
    every subject it is called with the same state of torch's generators, which follows from the
    seed of the recipe and the name of the evaluator; those of the training are left alone.
    Gradients are on, float32 is computed in float32, and networks are in eval mode. A network that
    it changed is put back to the bit, and the evaluation reported as failed. An exception ends this
    evaluation and never the run. What an evaluator keeps in `self` is still there at its next call,
    and is lost when a run is resumed."""

    kind = "evaluator"
    Config: ClassVar[type[ComponentConfig]] = EvaluatorConfig
    requires_labels: ClassVar[bool] = True
    """True: skipped, with a reason, where labels of the run's images can tell nothing. False: runs
    without them too."""
    changes_no_metric: ClassVar[frozenset[str]] = frozenset({"every_epochs"})
    """Fields of `Config` that no number depends on, such as what is to happen at a finding: runs
    stand in one comparison whatever they say there."""
    baselines: tuple[Baseline, ...] = ("pixels", "untrained")
    """What is also measured at the end of a run, beside the trained encoder. It may follow from the
    configuration: set it in `__init__`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        old: Any = vars(cls).get("baselines")
        if isinstance(old, bool):
            written = '("pixels", "untrained")' if old else "()"
            warn_of_old(
                f"{cls.__name__}.baselines = {old}", f"baselines = {written}", in_class=True
            )
            if old:
                del cls.baselines  # inherited
            else:
                cls.baselines = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def parts(self) -> Sequence[Evaluator]:
        """The evaluators that this one is made of, whose findings are reported as one: itself, or
        some of the three kinds. Labels are required as this one says, baselines as each part says.
        Called once."""


class FeatureEvaluator(Evaluator):
    """Measures features of the run's images; pixels are a subject like any other."""

    splits: ClassVar[tuple[Split, ...]] = ("train", "test")
    """The splits whose features it reads. `("test",)` saves most of the time where no other
    evaluator is due; where there is no test split, it gets the training split all the same."""
    projection_layer: int = 0
    """The highest layer of the projection head that it reads. A run whose method has fewer is
    refused before its first step. It may follow from the configuration: set it in `__init__`."""

    def parts(self) -> Sequence[Evaluator]:
        """Itself."""
        return (self,)

    @abstractmethod
    def evaluate(self, given: FeatureInput) -> Evaluation:
        """Measures one subject. Where labels are required, the bank has labelled images alone.
        Features are finite; they are shared with other evaluators: change none in place."""


class ImageEvaluator(Evaluator):
    """Sends the run's images through networks of its own. Raw pixels are no baseline of it."""

    baselines: tuple[Baseline, ...] = ("untrained",)
    projection_layer: int = 0
    """As in `FeatureEvaluator`."""

    def parts(self) -> Sequence[Evaluator]:
        """Itself."""
        return (self,)

    @abstractmethod
    def evaluate(self, given: ImageInput) -> Evaluation:
        """Measures one encoder, or what becomes of a copy of it."""


class OwnDataEvaluator(Evaluator):
    """Measures encoders on the data that `config.data` names, both splits of it, and on no image of
    the run. It opens the data itself, and says in `problems` what is wrong with it."""

    requires_labels: ClassVar[bool] = False
    baselines: tuple[Baseline, ...] = ("untrained",)

    def parts(self) -> Sequence[Evaluator]:
        """Itself."""
        return (self,)

    @abstractmethod
    def evaluate(self, given: OwnDataInput) -> Evaluation:
        """Measures one encoder, or what becomes of a copy of it."""

    def evaluate_pixels(self, given: PixelInput) -> Evaluation:
        """Measures raw pixels; called where `baselines` has them. Raises PluginError where a class
        does not define it; like all that an evaluator raises, it is reported and ends no run."""
        raise PluginError(
            f"{type(self).__name__} names raw samples in `baselines` and does not measure them; "
            "define evaluate_pixels, or leave them out"
        )
