"""What a plugin author implements. One file, one sitting; `docs/tutorial` walks through it.

Every component is a class with a nested pydantic `Config`. A recipe names the component, and the
other fields of its block are the `Config`:

    loss: {name: my_loss, temperature: 0.2}        # recipe

    class MyLoss(Loss):                            # plugin
        class Config(ComponentConfig):
            temperature: PositiveFloat = 0.5
            \"\"\"Softmax temperature.\"\"\"

        def forward(self, inputs: LossInput) -> Tensor: ...

Shapes: B images of the batch, V views per image, C channels, S side of a view in pixels,
D embedding width, N images of a data set, F feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticCustomError, core_schema
from torch import Tensor, nn

from . import installed_components
from .errors import PluginError
from .nn.blocks import map_rows
from .nn.depth import Named, groups_by_module_order
from .nn.numerics import Precision, autocast
from .randomness import SampleRandom

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue


# --- Components and their configuration -----------------------------------------------------------


class ComponentConfig(BaseModel):
    """Base of every `Config`: frozen, unknown fields rejected, attribute docstrings documented. In
    paths a leading `~` is the home of the user."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        return expand_paths(value)


def expand_paths(value: Any) -> Any:
    """A path, or a list of paths, with its leading `~` replaced by the home it stands for; any
    other value as it is. Raises ValueError for a home that nobody has and for a path that is no
    text."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Path) for item in value):
        return type(value)(expand_paths(item) for item in value)
    if not isinstance(value, Path):
        return value
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8; rename the folder or file, or link to it") from None
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("starts with the home of a user that this machine does not know") from None


@dataclass(frozen=True)
class Facts:
    """What is known before the first step, for `Component.problems` and for constructors."""

    num_images: int
    channels: int
    image_size: tuple[int, int] | None
    """(height, width) where all images have the same, else None."""
    num_classes: int | None
    """None where the data has no labels."""
    batch_size: int
    """Images per optimiser step over all ranks."""
    steps_per_epoch: int
    total_steps: int
    views: tuple[ViewSpec, ...] = ()
    num_test_images: int | None = None
    """0 where there is no test split; None where nothing is known of it."""
    test_has_labels: bool = True
    data_notes: tuple[str, ...] = ()
    """What opening the data brought up that a person should know, a sentence each."""
    class_sizes: tuple[int, ...] = ()
    """Labelled training images of each class that has any; empty where they are not known."""
    evaluated_on: Mapping[str, Facts] = field(default_factory=dict)
    """Path of an entry of `evaluate` that measures on images of its own -> the facts with those."""


class Component:
    """Anything that a recipe names. `kind` is set by the interface, never by a plugin."""

    kind: ClassVar[str]
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[tuple[str, str]]:
        """Yields (field path inside the block, message) for every reason why this configuration
        cannot run on this data. Called before anything is built."""
        return ()

    @classmethod
    def warnings(cls, config: Any, facts: Facts) -> Iterable[tuple[str, str]]:
        """Yields (field path inside the block, message) for what will run and is rarely meant: what
        it is and what to do. Called like `problems`; shown by `sslkit plan` and as a run starts."""
        return ()

    @classmethod
    def plan_facts(cls, config: Any, facts: Facts) -> Mapping[str, str | int | float]:
        """Name -> value of what follows from this configuration and this data and is worth knowing
        before a run, such as "negatives per anchor"; shown by `sslkit plan`. Where components
        inside others state the same name, the outermost is believed."""
        return {}

    @classmethod
    def facts_inside(cls, config: Any, facts: Facts) -> Facts:
        """The facts for the components inside this one, where they serve a training of its own: a
        protocol that fine-tunes has another batch size, and other steps, than the run."""
        return facts


C = TypeVar("C", bound=Component)


class Slot(Generic[C]):
    """A field that holds a component: `head: Slot[Head] = slot("mlp")`.

    After validation it carries the class and its validated config; `build(...)` makes the object.
    """

    def __init__(
        self, cls: type[C], name: str, config: ComponentConfig, distribution: str, version: str
    ) -> None:
        self.cls = cls
        self.name = name
        self.config = config
        self.distribution = distribution
        self.version = version

    def build(self, *args: Any, **kwargs: Any) -> C:
        """The component, constructed as `cls(config, *args, **kwargs)`."""
        return self.cls(self.config, *args, **kwargs)  # type: ignore[call-arg]

    def dump(self) -> dict[str, Any]:
        """The block as it would stand in a recipe, every default written out."""
        return {"name": self.name, **self.config.model_dump(mode="json")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and self.dump() == other.dump()

    def __hash__(self) -> int:
        return hash((self.cls, self.name))

    def __repr__(self) -> str:
        return f"Slot({self.dump()})"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        (component,) = get_args(source)
        kind: str = component.kind

        def validate(value: Any, info: core_schema.ValidationInfo) -> Slot[Any]:
            if isinstance(value, Slot):
                return value
            if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
                reason = f"expected a block that names its {kind}, such as {{name: ...}}"
                raise PydanticCustomError("component_block", "{reason}", {"reason": reason})
            return _resolve(kind, value, info.context)

        return core_schema.with_info_plain_validator_function(
            validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda slot: slot.dump()
            ),
            metadata={"sslkit_kind": kind},
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # `sslkit schema` replaces this by a reference to all components of the kind; pydantic
        # cannot resolve a reference to a definition that it has not made.
        return {"sslkit_kind": schema["metadata"]["sslkit_kind"]}


def resolve_component(registry: Any, kind: str, block: Mapping[str, Any]) -> Slot[Any]:
    """The slot of a component block, outside a recipe."""
    return _resolve(kind, block, {"registry": registry})


def _resolve(kind: str, block: Mapping[str, Any], context: Any) -> Slot[Any]:
    """Finds the class through the registry in the validation context and validates its config.
    Without a context, as where a test writes `SimCLR.Config()`, names are those of what is
    installed.

    A ValidationError of the config passes through: pydantic prefixes its locations with ours.
    """
    context = context or {"registry": installed_components()}
    try:
        found = context["registry"].resolve(kind, block["name"])
    except PluginError as error:
        raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from error
    fields = {key: value for key, value in block.items() if key != "name"}
    try:
        config = found.cls.Config.model_validate(fields, context=context)
    except ValidationError:
        raise
    except Exception as error:  # a validator of a plugin that fails in its own way
        reason = f"the Config of {kind} '{block['name']}' failed: {type(error).__name__}: {error}"
        raise PydanticCustomError("component", "{reason}", {"reason": reason}) from error
    return Slot(found.cls, block["name"], config, found.distribution, found.version)


def slot(name: str, **fields: Any) -> Any:
    """The default of a `Slot` field: the component `name` with these fields."""
    return Field(default={"name": name, **fields}, validate_default=True)


# --- Data -----------------------------------------------------------------------------------------


class UnreadableImageError(Exception):
    """Raised by `ImageReader.read` for an image that is damaged and will stay so."""


IGNORED_PIXEL = 255
"""The value of `ImageReader.mask` where a pixel belongs to no class and counts nowhere."""


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of one image, M of them."""

    corners: NDArray[np.float32]
    """(M, 4) left, top, right, bottom in pixels; right > left, bottom > top."""
    labels: NDArray[np.int64]
    """(M,) positions in `ImageReader.box_classes`."""
    difficult: NDArray[np.bool_]
    """(M,) True: need not be found, and is no error where it is (VOC's `difficult`)."""
    crowd: NDArray[np.bool_]
    """(M,) True: a region with many objects of the class; like `difficult`, and any number of
    detections inside it is no error (COCO's `iscrowd`)."""

    def __len__(self) -> int:
        return len(self.labels)


class ImageReader(ABC):
    """One split of a data set. `read`, `mask` and `boxes` are called from several threads at
    once."""

    channels: int
    image_size: tuple[int, int] | None = None
    """(height, width) where all images have the same, else None."""
    labels: NDArray[np.int64] | None = None
    """(N,) classes, -1 where an image has none; or None. With `class_names` they are positions
    among these; without, any whole numbers from 0, and the classes are the values that occur."""
    class_names: Sequence[str] | None = None
    notes: Sequence[str] = ()
    """What a person should know of how the split was opened, such as files that are not read: a
    sentence each, shown before the run starts."""
    pixels: NDArray[np.uint8] | None = None
    """(N, C, H, W), where all images are at hand as one array, such as a memory-mapped file; `read`
    gives the same. It is used where it is: neither copied as a whole nor written to."""
    mask_classes: Sequence[str] | None = None
    """Names of the classes of `mask`, at most 255; None where there are no masks."""
    box_classes: Sequence[str] | None = None
    """Names of the classes of `boxes`; None where there are no boxes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as (H, W, C) uint8. Raises UnreadableImageError for a damaged image and
        OSError for a fault that may pass (it is retried)."""

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel of image `index`: (H, W), the size of the image, positions in
        `mask_classes` or IGNORED_PIXEL. Raises DataError for a bad annotation, PluginError where
        there are no masks."""
        raise PluginError(
            f"{type(self).__name__} has no masks; a source with them defines mask(index)"
        )

    def boxes(self, index: int) -> Boxes:
        """The objects of image `index`. Raises DataError for a bad annotation, PluginError where
        there are no boxes."""
        raise PluginError(
            f"{type(self).__name__} has no boxes; a source with them defines boxes(index)"
        )

    def describe(self, index: int) -> str:
        """What to call this image in a report, for example its path."""
        return f"image {index}"

    def encoded_sizes(self) -> NDArray[np.int64] | None:
        """(N,) bytes of each image as it is stored, where `encoded` gives that; else None. Test
        images are then found among training images without decoding all of them."""
        return None

    def encoded(self, index: int) -> bytes | memoryview:
        """Image `index` as it is stored. Raises what `read` raises."""
        raise PluginError(f"{type(self).__name__} has no encoded images")

    def key(self, index: int) -> str:
        """What tells this image from the others wherever the data lies and in whatever order it is
        listed, for example its path below the folder; `test_fraction` chooses by it."""
        return str(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when the data changes."""


class DatasetConfig(ComponentConfig):
    """Fields that every data source has."""

    max_corrupt_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """Above this fraction of unreadable images the run stops; below it, each is replaced."""
    test_fraction: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keeps this part of each class for testing, chosen by a hash of `test_seed` and the image's
    name; for sources with labels that have no test split. The same images for every seed of the
    run, so that repetitions are measured on the same ones."""
    test_seed: NonNegativeInt = 0
    """Another one keeps other images for testing. Without effect unless `test_fraction` is set."""


class Dataset(Component, ABC):
    """A data source. `open` is cheap: it reads indices and headers, not all pixels."""

    kind = "dataset"
    Config: ClassVar[type[ComponentConfig]] = DatasetConfig
    divides_itself: ClassVar[bool] = False
    """True: `open` follows the field `test_fraction` by itself."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def open(self, split: Literal["train", "test"]) -> ImageReader | None:
        """The reader of a split; None where there is no test split. Raises DataError."""


@dataclass(frozen=True)
class ViewSpec:
    """The size and the part of a view: which views a method treats alike."""

    size: int
    """Side of the square view, pixels."""
    role: str = "global"


@dataclass(frozen=True)
class Batch:
    """What a method sees of one step (or of one micro-batch of it)."""

    views: tuple[Tensor, ...]
    """V tensors (B, C, S_v, S_v), float, values in [0, 1]."""
    indices: Tensor
    """(B,) int64: position of each image in the training set."""
    random: SampleRandom
    """Keyed randomness for masks and the like."""
    labels: Tensor | None = None
    """(B,) int64, or None. Only methods that declare `requires_labels` may need them."""
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    """What the augmentation produced for a pretext task, each (B, ...)."""

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, rows: slice) -> Batch:
        """A part of the batch."""
        return replace(
            self,
            views=tuple(view[rows] for view in self.views),
            indices=self.indices[rows],
            random=self.random.select(rows),
            labels=None if self.labels is None else self.labels[rows],
            targets={name: value[rows] for name, value in self.targets.items()},
        )


# --- Augmentation ---------------------------------------------------------------------------------

Params = Mapping[str, Tensor]
"""The random parameters of one view: each tensor is (B, ...), one row per sample."""


@dataclass(frozen=True)
class Geometry:
    """The crop of one view, executed while decoding or on the batch."""

    box: Tensor
    """(B, 4) float32: top, left, height, width in source pixels."""
    flip: Tensor
    """(B,) bool: mirror left-right after resizing."""
    size: int
    """Side of the square result, pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Antialiased when it shrinks."""


class Augmentation(Component, ABC):
    """Makes the views of a batch. Parameters are drawn per sample; pixels are worked on in whole
    batches on the training device."""

    kind = "augmentation"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    @abstractmethod
    def views(self) -> tuple[ViewSpec, ...]:
        """Size and role of each view."""

    @abstractmethod
    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        """The parameters of each view, on the CPU. sizes: (B, 2) height and width of the images."""

    @abstractmethod
    def geometry(self, view: int, params: Params, sizes: Tensor) -> Geometry:
        """The crop of a view."""

    @abstractmethod
    def photometric(self, view: int, images: Tensor, params: Params) -> Tensor:
        """Everything after the crop: (B, C, S, S) float in [0, 1] to the same shape and range."""

    def targets(self, params: list[Params]) -> Mapping[str, Tensor]:
        """Labels that the drawn parameters define, for pretext tasks; each (B, ...)."""
        return {}


# --- Networks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocess:
    """How to prepare an image for an encoder at evaluation and in use. Pixel values stay in
    [0, 1]: the backbone normalises by itself."""

    size: int
    """Side of the input, pixels."""
    resize: int
    """Length of the shorter side before the centre crop; equal to `size` for small images."""
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    """What the backbone subtracts (for the record; already inside the backbone)."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class FeatureStage:
    """A place in a backbone where features lie on a grid."""

    name: str
    channels: int
    stride: int
    """Pixels of the image from one position to the next."""


class NoFeatureMapsError(Exception):
    """Raised by `Backbone.feature_maps` where a backbone has none; the message is one line."""


class Backbone(Component, nn.Module, ABC):
    """An image encoder, (B, C, S, S) in [0, 1] to (B, num_features). Owns its normalisation.

    Constructed as `cls(config, channels=C, image_size=S)`, where S is the largest view."""

    kind = "backbone"
    num_features: int
    preprocess: Preprocess
    feature_stages: Sequence[FeatureStage] = ()
    """Where `feature_maps` can take features, first to last; empty where it cannot."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...

    def feature_maps(self, images: Tensor, stages: Sequence[int] = (-1,)) -> list[Tensor]:
        """Features on a grid, for dense tasks: one (B, channels, H, W) for each of `stages`, which
        are positions in `feature_stages`, from the end where negative. images: as for `forward`,
        and of other sizes and shapes where the network takes them. Optional.

        Raises NoFeatureMapsError where the backbone has no such features."""
        raise NoFeatureMapsError(f"the backbone {type(self).__name__} offers no feature maps")

    def export_state(self) -> dict[str, Tensor]:
        """The weights for `encoder.safetensors`, under the names that other tools expect."""
        return dict(self.state_dict())

    def import_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `export_state` gave."""
        self.load_state_dict(dict(state))

    def depth_groups(self) -> Sequence[Sequence[Named]]:
        """Every parameter with its name, once, in groups from the input to the output: the layers
        of fine-tuning with layer-wise decay. By default they follow from the order of modules."""
        return groups_by_module_order(self)

    @classmethod
    def architecture(cls, config: Any) -> Any:
        """`config` without its starting weights: what builds the network that trained weights are
        loaded into."""
        return config


class Head(Component, nn.Module, ABC):
    """Maps (B, in_dim) to (B, out_dim). Constructed as `cls(config, in_dim=...)`."""

    kind = "head"
    out_dim: int

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...

    def as_layers(self) -> Sequence[nn.Module]:
        """The head as layers that are applied one after the other, a layer being a linear map with
        its normalisation and activation. By default the head is one layer."""
        return (self,)


@dataclass(frozen=True)
class LossInput:
    """What a method hands to its loss. Embeddings are unnormalised unless the loss says so."""

    views: tuple[Tensor, ...]
    """V tensors (B, D): row i of each is a view of image i."""
    labels: Tensor | None = None
    """(B,) int64; present where the loss requires "labels"."""
    negatives: Tensor | None = None
    """(K, D) further negatives, such as a queue; present where the loss requires "negatives"."""


class Loss(Component, nn.Module, ABC):
    """A loss on embeddings: a scalar, computed in float32. Constructed as `cls(config)`."""

    kind = "loss"
    requires: ClassVar[frozenset[Literal["labels", "negatives"]]] = frozenset()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, inputs: LossInput) -> Tensor: ...

    def metrics(self, inputs: LossInput) -> Mapping[str, Tensor]:
        """Scalars worth watching, without gradient; called at log steps only."""
        return {}


def rewards_collapse(loss: Loss) -> bool:
    """Whether a loss is no higher when all embeddings are equal than when each image has its own:
    then nothing in it keeps images apart. Tried on small embeddings; False where that fails."""
    labels = torch.arange(4)
    apart = torch.eye(4, 8)
    negatives = torch.eye(8)[4:] if "negatives" in loss.requires else None
    try:
        with torch.no_grad():
            equal = apart[:1].expand(4, 8)
            collapsed = loss(LossInput((equal, equal), labels, negatives))
            return bool(collapsed <= loss(LossInput((apart, apart), labels, negatives)) + 1e-6)
    except Exception:  # a plugin's, which may need other embeddings: no reason to warn
        return False


# --- Methods --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` optimiser steps are done."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return self.step / self.steps_per_epoch

    @property
    def epochs_done(self) -> int:
        """Whole epochs done."""
        return self.step // self.steps_per_epoch

    def next(self) -> Progress:
        """One step later."""
        return replace(self, step=self.step + 1)

    @property
    def fraction(self) -> float:
        """Part of training that is done, 0 to 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class StepOutput:
    """What `Method.objective` returns."""

    loss: Tensor
    """Scalar."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Scalars, logged as `train/<name>`. Read at log steps only, where `nn.deferred.Deferred` saves
    the cost of the others, and read right after `objective`: before the backward pass, the
    optimiser and `after_step`. So they may refer to a queue, a teacher or a parameter, and are
    those of the step whose loss they stand beside."""
    carry: Any = None
    """Handed to `after_step`, for example the keys that enter a queue."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share optimiser rules. A parameter that no group names is frozen."""

    params: Sequence[tuple[str, nn.Parameter]]
    lr_scale: float = 1.0
    lr_constant: bool = False
    """True: the schedule does not touch this group (SimSiam's predictor)."""
    weight_decay_scale: float = 1.0
    max_grad_norm: float | None = None
    """Clips each tensor of this group on its own (DINO); `train.max_grad_norm` clips the whole."""


Apart = Literal["spread", "prototypes"]
"""How to tell whether images are kept apart: `spread`, by the spread of their embeddings;
`prototypes`, by how many prototypes are in use, for probabilities over them, or other scores of
which the highest is assigned."""


class Method(Component, nn.Module, ABC):
    """A self-supervised method. Constructed as `cls(config, backbone, facts)`.

    One optimiser step is: `before_step`; `embed` on the batch or on parts of it; `objective` once
    on all embeddings; backward; `after_backward`; optimiser; `after_step`. State other than
    BatchNorm statistics (teacher, queue, prototypes) changes only in `before_step` and
    `after_step`, so that micro-batches are exact and a checkpoint between steps is complete.
    Everything in `state_dict()` is saved and restored.
    """

    kind = "method"
    requires_labels: ClassVar[bool] = False
    must_not_collapse: Mapping[str, Apart] | None = None
    """Entries of `embed` that keep the images of a batch apart in a healthy run, each judged on its
    own, at every view, by the protocol `collapse`; one that does not, such as a predictor that
    begins by predicting the mean, is left out. None: every entry but "features"; probabilities are
    taken as those over prototypes."""

    def __init__(self, config: Any, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    @property
    def encoder(self) -> Backbone:
        """The network that is evaluated and exported."""
        return self.backbone

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        """The projection head as layers, the first of which takes the features of `encoder`; see
        `Head.as_layers`. Protocols can measure, and fine-tune from, any of them. Empty: none."""
        return ()

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample tensors, each (B, ...), from networks. The entry "features", (B, ..., F), if
        present, feeds the online probe."""

    @abstractmethod
    def objective(self, embeddings: Mapping[str, Tensor], batch: Batch) -> StepOutput:
        """The loss of the whole batch from the embeddings of all its parts, which come in float32
        and outside autocast. `batch.views` may be empty here. Networks belong into `embed`."""

    def param_groups(self) -> list[ParamGroup]:
        """Learning rate, decay, freezing and clipping rules; by default one group of all
        parameters that require a gradient."""
        params = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [ParamGroup(params)]

    def before_step(self, progress: Progress) -> None:
        """Called before each optimiser step."""

    def after_backward(self, progress: Progress) -> None:
        """Called when gradients are complete, before clipping and the optimiser."""

    def after_step(self, progress: Progress, carry: Any) -> None:
        """Called after each optimiser step (`progress.step` counts it) with `StepOutput.carry`."""


# --- Optimisation ---------------------------------------------------------------------------------


class OptimizerConfig(ComponentConfig):
    """Fields that every optimiser has."""

    lr: float = Field(gt=0.0)
    """Peak learning rate, before `lr_scaling`."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """`linear`: lr * batch_size / lr_reference_batch; `sqrt`: lr * sqrt(batch_size /
    lr_reference_batch); `none`: lr as it stands."""
    lr_reference_batch: PositiveInt = 256
    """Batch size, in images, at which `lr` holds. Without effect where `lr_scaling` is `none`."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay."""
    exclude_bias_and_norm: bool = True
    """Leaves biases and normalisation parameters (all tensors with fewer than two dimensions) out
    of weight decay, and of LARS adaptation."""

    def peak_lr(self, batch_size: int) -> float:
        """The peak learning rate at this batch size, in images (Chen et al. 2020,
        arXiv:2002.05709, B.1)."""
        ratio = batch_size / self.lr_reference_batch
        factor: float = {"none": 1.0, "linear": ratio, "sqrt": ratio**0.5}[self.lr_scaling]
        return self.lr * factor


def optimizer_groups(
    config: OptimizerConfig, groups: Iterable[ParamGroup], lr: float
) -> list[dict[str, Any]]:
    """What `Optimizer.create` takes: biases and norms apart from weights, which are decayed.

    Beside torch's keys each has `lr_scale` and `lr_constant`, for whoever sets learning rates."""
    parts = []
    for group in groups:
        shared = {"lr": lr, "lr_scale": group.lr_scale, "lr_constant": group.lr_constant}
        decay = config.weight_decay * group.weight_decay_scale
        excluded = [p for _, p in group.params if config.exclude_bias_and_norm and p.ndim < 2]
        kept = [p for _, p in group.params if not (config.exclude_bias_and_norm and p.ndim < 2)]
        parts += [
            {"params": kept, "weight_decay": decay, "adapt": True, **shared},
            {"params": excluded, "weight_decay": 0.0, "adapt": False, **shared},
        ]
    return [part for part in parts if part["params"]]


class Optimizer(Component, ABC):
    """Makes a torch optimiser from groups. Each group is a dict with `params`, `lr`,
    `weight_decay` and `adapt` (False: left out of layer-wise adaptation)."""

    kind = "optimizer"
    Config: ClassVar[type[ComponentConfig]] = OptimizerConfig
    usual_lr: ClassVar[tuple[float, float] | None] = None
    """Lowest and highest peak learning rate of published recipes, brought to 256 images by
    `batch_rule`; ten times beyond, `sslkit plan` warns. None: it never does."""
    batch_rule: ClassVar[Literal["linear", "sqrt"]] = "linear"
    """How the learning rate usually follows the batch size."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def warnings(cls, config: Any, facts: Facts) -> Iterable[tuple[str, str]]:
        batch, peak = facts.batch_size, config.peak_lr(facts.batch_size)
        if config.lr_scaling == "none" and config.lr_reference_batch not in (256, batch):
            yield (
                "lr_reference_batch",
                f"{config.lr_reference_batch} has no effect while lr_scaling is none; set "
                "lr_scaling: linear or sqrt, or leave it out",
            )
        if cls.usual_lr is None:
            return
        factor = batch / 256 if cls.batch_rule == "linear" else (batch / 256) ** 0.5
        low, high = (factor * value for value in cls.usual_lr)
        if not low / 10 <= peak <= high * 10:
            yield (
                "lr",
                f"the peak is {peak:.3g} at {batch:,} images, where published recipes come to "
                f"{low:.2g} to {high:.2g} by the {cls.batch_rule} rule; check lr and lr_scaling",
            )

    @abstractmethod
    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer: ...


class Schedule(Component, ABC):
    """The learning rate over the run, as a factor of its peak."""

    kind = "schedule"

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The factor for the step that follows `progress.step` finished ones."""


# --- Evaluation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureBank:
    """Features of both splits, float32, in one place: on the training device, or in CPU memory
    where they are many."""

    train: Tensor  # (N_train, F)
    test: Tensor  # (N_test, F)
    train_labels: Tensor | None = None  # (N_train,) int64
    test_labels: Tensor | None = None  # (N_test,) int64
    class_names: Sequence[str] = ()
    device: torch.device | None = None
    """The training device, for protocols to move blocks of features to; None: where they are."""

    @property
    def compute_device(self) -> torch.device:
        """Where protocols should compute."""
        return self.device or self.train.device

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)


class Batches(Protocol):
    """Batches of augmented training images; see `Images.augmented`."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, on the training device."""


class Images(ABC):
    """The images of both splits, for protocols that send them through networks of their own:

        batches = images.augmented(augmentation, batch_size=256, rows=images.labelled("train"))
        for epoch in range(epochs):
            for batch in batches.epoch(epoch):
                with images.autocast():
                    logits = network(batch.views[0])
                ...                                        # loss against batch.labels
        for views in images.preprocessed("test"): ...      # in the order of images.labels("test")

    Batches are made as they are needed, on the training device; no data set is copied."""

    device: torch.device
    """The training device, where every batch is."""
    channels: int
    preprocess: Preprocess
    """Of the encoder: what `preprocessed` does."""
    precision: Precision
    """Number format of activations in evaluation; see `autocast`."""
    channels_last: bool
    """Whether the run keeps images and networks so; batches come in this layout."""

    @abstractmethod
    def labels(self, split: Literal["train", "test"]) -> Tensor | None:
        """(N,) int64 on the CPU, negative where an image has none; None without labels. Where an
        image turns out to be unreadable as it is first read, its label is replaced with it."""

    @abstractmethod
    def augmented(
        self, augmentation: Augmentation, *, batch_size: int, rows: Tensor | None = None
    ) -> Batches:
        """Training images through an augmentation. Order and views of an epoch follow from the
        seed of the recipe, the epoch and the positions of the images, and from nothing else; they
        are not those of the run. The last, partial batch of an epoch is left out.

        rows: (n,) positions of the images to use, default all; fewer than `batch_size` of them
        make one batch of all. Each batch has `labels` where there are any."""

    @abstractmethod
    def preprocessed(
        self, split: Literal["train", "test"], rows: Tensor | None = None, batch_size: int = 512
    ) -> Iterator[Tensor]:
        """(B, C, S, S) float32 in [0, 1]: the images as the encoder is evaluated on them, once
        each and in order, the last batch partial. rows: (n,) positions, default all."""

    @abstractmethod
    def calibrate(self, network: nn.Module) -> None:
        """Gives the BatchNorm layers of a network the statistics with which every encoder is
        measured, in place: those of training images, prepared as for evaluation. For networks that
        a protocol has trained, before it measures them; costs nothing without BatchNorm."""

    def labelled(self, split: Literal["train", "test"]) -> Tensor:
        """Positions of the images that have a label; the rows of `Subject.bank`, where a protocol
        requires labels, are these."""
        labels = self.labels(split)
        return torch.arange(0) if labels is None else (labels >= 0).nonzero().squeeze(1)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of evaluation, float32 where that is `fp16`; losses belong outside."""
        # float16 would need a scaled loss, which every protocol would have to know of.
        return autocast(self.device, "fp32" if self.precision == "fp16" else self.precision)


@dataclass(frozen=True)
class Subject:
    """What a protocol measures: the trained encoder, the untrained one, or raw pixels."""

    name: Literal["trained", "untrained", "pixels"]
    bank: FeatureBank
    seed: int
    """The seed of the recipe; protocols that draw (few-label) draw from it, equally for every
    subject, so that differences are paired."""
    encoder: nn.Module | None = None
    """In eval mode; None for pixels. A protocol that trains it works on a copy."""
    positive_pairs: Callable[[int], tuple[Tensor, Tensor]] | None = None
    """positive_pairs(n): encoder features of two augmented views of n images, each (n, F)."""
    embeddings: Callable[[], Mapping[str, Tensor]] | None = None
    """What `Method.embed` makes of the first batch of the run in training mode, without gradient;
    present for the trained encoder, during and at the end of a run."""
    untrained_embeddings: Callable[[], Mapping[str, Tensor]] | None = None
    """The same batch, through the method as it was before the first step."""
    must_not_collapse: Mapping[str, Apart] | None = None
    """What the method says of these embeddings; see `Method.must_not_collapse`."""
    images: Images | None = None
    """The images themselves; None for raw pixels."""
    projection_layers: Sequence[nn.Module] = ()
    """The layers of the projection head, in eval mode; the first takes the encoder's features.
    Empty for pixels, and where the method gives none."""

    def projected(self, layer: int) -> Subject:
        """This subject with the output of layer `layer` of the projection head as its features; 0:
        as it is. Raises ValueError where there is no such layer."""
        if layer == 0:
            return self
        if layer > len(self.projection_layers):
            raise ValueError(f"the projection head has {len(self.projection_layers)} layers")
        head = nn.Sequential(*self.projection_layers[:layer])
        train, test = (
            map_rows(head, features, self.bank.compute_device)
            for features in (self.bank.train, self.bank.test)
        )
        return replace(self, bank=replace(self.bank, train=train, test=test))


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
    """What a protocol found."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """name -> value; logged as `eval/<protocol>/<name>` unless the name holds a slash. Names that
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
    """Fields that every protocol has."""

    every_epochs: PositiveInt | None = None
    """Also run after every so many epochs. It always runs after the last."""
    data: Slot[Dataset] | None = None
    """A data source to measure on, both splits of it, in place of the recipe's: a labelled set that
    watches a training without labels. Batch statistics stay those of the training images."""


class Evaluator(Component, ABC):
    """An evaluation protocol. Constructed as `cls(config)`."""

    kind = "evaluator"
    Config: ClassVar[type[ComponentConfig]] = EvaluatorConfig
    requires_labels: ClassVar[bool] = True
    baselines: ClassVar[bool] = True
    """True: at the end it also measures raw pixels and the untrained encoder."""
    uses_train: ClassVar[bool] = True
    """False: it works on the test split where there is one. The features of the training split may
    then be missing (no rows), which saves most of the time where nothing else needs them."""
    uses_features: bool = True
    """False: it works on `Subject.images` alone, or on data of its own. `Subject.bank` may then be
    empty, and raw pixels are no baseline of it, unless the data is its own. It may follow from the
    configuration: set it in `__init__`."""
    own_data: ClassVar[bool] = False
    """True: it measures on data that its configuration names, and not on that of the run."""
    pixel_baseline: bool = True
    """False: the untrained encoder is the only baseline."""
    projection_layer: int = 0
    """The highest layer of the projection head that it needs; a run whose method has fewer is
    refused before its first step."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def evaluate(self, subject: Subject) -> Evaluation: ...


# --- Tracking and callbacks -----------------------------------------------------------------------


@dataclass(frozen=True)
class RunView:
    """What trackers and callbacks know of a run."""

    run_dir: Path
    run_name: str
    """`<recipe name>-s<seed>`."""
    params: Mapping[str, str | int | float | bool | None]
    """The resolved recipe, flattened: "method.loss.temperature" -> 0.5."""
    tags: Mapping[str, str]


@dataclass(frozen=True)
class MetricPoint:
    """One logged value."""

    key: str
    value: float
    step: int
    time_ms: int
    """Milliseconds since 1970."""


class Tracker(Component, ABC):
    """Mirrors the run folder to a tracking service. All calls come from one background thread; an
    exception means that the service could not be reached: the points are kept and sent again."""

    kind = "tracker"

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def start(self, run: RunView, run_id: str | None) -> str | None:
        """Opens the run, or continues `run_id`. Returns the service's id of the run. Called again
        after every failure, so it must find out what the service already has."""

    @abstractmethod
    def log_metrics(self, points: Sequence[MetricPoint]) -> None: ...

    @abstractmethod
    def log_artifact(self, path: Path, folder: str) -> None:
        """Uploads a file of the run folder into `folder` of the run."""

    @abstractmethod
    def finish(self, status: Literal["finished", "failed", "killed"]) -> None: ...

    def named_store(self) -> str | None:
        """The store that the configuration itself names, as it may be shown; None where the user's
        environment decides, such as by `MLFLOW_TRACKING_URI`. A run folder may come from a
        stranger, so `sslkit eval` sends nothing to a store that only the folder's recipe names."""
        return f"that of the tracker {type(self).__name__}"

    def ui_command(self, host: str, port: int) -> list[str] | None:
        """The command that opens the service's own pages; None where it has none."""
        return None

    def open_group(self, key: str, name: str) -> Mapping[str, Any]:
        """Opens what the service shows the runs of a comparison under, or finds it by its unique
        `key`. Returns the fields of this `Config` that put a run there; none where the service
        has no such thing."""
        return {}

    def close_group(self, key: str, artifacts: Sequence[Path]) -> None:
        """The comparison is made: uploads its files to what `open_group` opened."""


class Callback(Component):
    """Watches a run. Runs only where a recipe lists it, and must not change results."""

    kind = "callback"

    def __init__(self, config: Any) -> None:
        self.config = config

    def on_start(self, run: RunView, method: Method) -> None:
        """Before the first step, also after a resume."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        """After the views of a batch are made, before the step."""

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> None:
        """At log steps."""

    def on_evaluation(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> None:
        """After the protocols of an epoch ran."""


INTERFACES: tuple[type[Component], ...] = (
    Method, Backbone, Head, Loss, Augmentation, Dataset,
    Evaluator, Optimizer, Schedule, Tracker, Callback,
)  # fmt: skip
"""Every kind of component, in the order of the hooks."""
