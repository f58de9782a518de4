"""What a plugin author implements and is given: contracts, a module for each subject.

Not here: what fulfils them (`builtin`, plugins), what calls them (`engine`, `data`, `evaluation`,
`tracking`), and ready parts to build from (`nn`)."""

from __future__ import annotations

from sslkit.nn.boxes import Boxes
from sslkit.run_files import RunFiles

from .backbones import (
    Backbone,
    FeatureStage,
    Head,
    NoFeatureMapsError,
    NoTimmModelError,
    Preprocess,
    StartingWeights,
    TimmModel,
)
from .component import (
    Component,
    ComponentConfig,
    FractionRange,
    PositiveRange,
    RunFacts,
    Slot,
    expand_paths,
    resolve_component,
    slot,
)
from .data import (
    IGNORED_PIXEL,
    Batch,
    DataSource,
    DataSourceConfig,
    HasBoxes,
    HasEncoded,
    HasMasks,
    ImageReader,
    SplitReader,
    UnreadableImageError,
)
from .evaluation import (
    Baseline,
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureEvaluator,
    ImageEvaluator,
    ImageScores,
    OwnDataEvaluator,
    Resamples,
)
from .evaluation_inputs import (
    AugmentedViews,
    Batches,
    EncoderName,
    EvaluationImages,
    FeatureBank,
    FeatureInput,
    ImageInput,
    MethodEmbeddings,
    OwnDataInput,
    PixelInput,
    Split,
    SubjectName,
)
from .kinds import INTERFACES
from .losses import Loss, LossInput, missing_parts, rewards_collapse
from .method import Apart, Method, ParamGroup, StepOutput
from .optimizers import Optimizer, OptimizerConfig, optimizer_groups, set_group_rules
from .renamed_fields import RenamedFrom
from .samples import SampleSpec, ViewSpec, largest_view, torch_dtype
from .schedules import Bounds, Progress, Schedule, ScheduledNumber, scheduled
from .streams import ImageStream, StreamReader
from .tokens import NoTokensError, TokenLayout, Tokens
from .tracking import Callback, MetricPoint, RunView, Tracker
from .transformer_start import start_transformer
from .views import Augmentation, Geometry, ImageAugmentation, Params

__all__ = [
    "IGNORED_PIXEL",
    "INTERFACES",
    "Apart",
    "Augmentation",
    "AugmentedViews",
    "Backbone",
    "Baseline",
    "Batch",
    "Batches",
    "Bounds",
    "Boxes",
    "Callback",
    "Component",
    "ComponentConfig",
    "DataSource",
    "DataSourceConfig",
    "EncoderName",
    "Evaluation",
    "EvaluationImages",
    "Evaluator",
    "EvaluatorConfig",
    "FeatureBank",
    "FeatureEvaluator",
    "FeatureInput",
    "FeatureStage",
    "FractionRange",
    "Geometry",
    "HasBoxes",
    "HasEncoded",
    "HasMasks",
    "Head",
    "ImageAugmentation",
    "ImageEvaluator",
    "ImageInput",
    "ImageReader",
    "ImageScores",
    "ImageStream",
    "Loss",
    "LossInput",
    "Method",
    "MethodEmbeddings",
    "MetricPoint",
    "NoFeatureMapsError",
    "NoTimmModelError",
    "NoTokensError",
    "Optimizer",
    "OptimizerConfig",
    "OwnDataEvaluator",
    "OwnDataInput",
    "ParamGroup",
    "Params",
    "PixelInput",
    "PositiveRange",
    "Preprocess",
    "Progress",
    "RenamedFrom",
    "Resamples",
    "RunFacts",
    "RunFiles",
    "RunView",
    "SampleSpec",
    "Schedule",
    "ScheduledNumber",
    "Slot",
    "Split",
    "SplitReader",
    "StartingWeights",
    "StepOutput",
    "StreamReader",
    "SubjectName",
    "TimmModel",
    "TokenLayout",
    "Tokens",
    "Tracker",
    "UnreadableImageError",
    "ViewSpec",
    "expand_paths",
    "largest_view",
    "missing_parts",
    "optimizer_groups",
    "resolve_component",
    "rewards_collapse",
    "scheduled",
    "set_group_rules",
    "slot",
    "start_transformer",
    "torch_dtype",
]
