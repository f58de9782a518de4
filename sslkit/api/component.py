"""Components and their configuration.

Every component is a class with a nested pydantic `Config`. A recipe names the component, and the
other fields of its block are the `Config`:

    loss: {name: my_loss, temperature: 0.2}        # recipe

    class MyLoss(Loss):                            # plugin
        class Config(ComponentConfig):
            temperature: PositiveFloat = 0.5
            \"\"\"Softmax temperature.\"\"\"

        def forward(self, inputs: LossInput) -> Tensor: ...

Shapes, here and in the other contracts: B samples (images, mostly) of the batch, V views of each, C
channels, S side of a square view in pixels, D embedding width, N samples of a data set, F feature
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from sslkit import installed_components
from sslkit.errors import PluginError

from .renamed_fields import Renamable
from .samples import SampleSpec, ViewSpec

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue


class ComponentConfig(Renamable):
    """Base of every `Config`: frozen, unknown fields rejected, attribute docstrings documented. In
    paths a leading `~` is the home of the user."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        return expand_paths(value)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    return _checked_range(value, math.inf)


def _at_most_one(value: tuple[float, float]) -> tuple[float, float]:
    return _checked_range(value, 1.0)


def _checked_range(value: tuple[float, float], most: float) -> tuple[float, float]:
    low, high = value
    if not 0.0 < low <= high <= most:
        valid = "0 < low <= high" + ("" if math.isinf(most) else f" <= {most:g}")
        raise ValueError(f"[{low:g}, {high:g}] is no range: set {valid}")
    return value


def _ends(**bounds: float) -> WithJsonSchema:
    end = {"type": "number", "exclusiveMinimum": 0, **bounds}
    return WithJsonSchema(
        {"type": "array", "prefixItems": [end, end], "minItems": 2, "maxItems": 2}
    )


PositiveRange = Annotated[tuple[float, float], AfterValidator(_ordered), _ends()]
"""Type of a field: [low, high], the ends of a range of numbers above 0."""
FractionRange = Annotated[tuple[float, float], AfterValidator(_at_most_one), _ends(maximum=1)]
"""Type of a field: [low, high], the ends of a range of parts of a whole, above 0 and at most 1."""


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
class RunFacts:
    """What is known before the first step, for `Component.problems` and for constructors."""

    num_images: int
    channels: int
    """Channels of a sample; 0 where it has no axis of channels."""
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
    evaluated_on: Mapping[str, RunFacts] = field(default_factory=dict)
    """Path of an entry of `evaluate` that measures on images of its own -> the facts with those."""
    other_samples: SampleSpec | None = None
    """What the samples are where they are no images; see `sample`."""
    streamed: bool = False
    """Whether the training split is a `StreamReader`: `num_images` is what an epoch is made of, and
    the positions of samples go on from epoch to epoch."""

    @property
    def num_labelled(self) -> int:
        """Training images that have a label; all of them where sizes of classes are not known."""
        return sum(self.class_sizes) or self.num_images

    @property
    def classes_present(self) -> int | None:
        """Classes that have a labelled training image, which may be fewer than the data names; all
        of these where sizes of classes are not known. None where the data has no labels."""
        return len(self.class_sizes) or self.num_classes

    @property
    def sample(self) -> SampleSpec:
        """Shape and type of a sample, be it an image or not."""
        if self.other_samples is not None:
            return self.other_samples
        return SampleSpec((self.channels, *(self.image_size or (None, None))))


class Component:
    """Anything that a recipe names. `kind` is set by the interface, never by a plugin."""

    kind: ClassVar[str]
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        """Yields (field path inside the block, message) for every reason why this configuration
        cannot run on this data. Called before anything is built."""
        return ()

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        """Yields (field path inside the block, message) for what will run and is rarely meant: what
        it is and what to do. Called like `problems`; shown by `sslkit plan` and as a run starts."""
        return ()

    @classmethod
    def plan_facts(cls, config: Any, facts: RunFacts) -> Mapping[str, str | int | float]:
        """Name -> value of what follows from this configuration and this data and is worth knowing
        before a run, such as "negatives per anchor"; shown by `sslkit plan`. Where components
        inside others state the same name, the outermost is believed."""
        return {}

    @classmethod
    def facts_inside(cls, config: Any, facts: RunFacts) -> RunFacts:
        """The facts for the components inside this one, where they serve a training of its own: a
        evaluator that fine-tunes has another batch size, and other steps, than the run."""
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

    def with_config(self, config: ComponentConfig) -> Slot[C]:
        """The same component with another configuration."""
        return Slot(self.cls, self.name, config, self.distribution, self.version)

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
            return resolve_block(kind, value, info.context)

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
    return resolve_block(kind, block, {"registry": registry})


def resolve_block(kind: str, block: Mapping[str, Any], context: Any) -> Slot[Any]:
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
        inside = {**context, "component": f"{kind} '{block['name']}'"}
        config = found.cls.Config.model_validate(fields, context=inside)
    except ValidationError:
        raise
    except Exception as error:  # a validator of a plugin that fails in its own way
        reason = f"the Config of {kind} '{block['name']}' failed: {type(error).__name__}: {error}"
        raise PydanticCustomError("component", "{reason}", {"reason": reason}) from error
    return Slot(found.cls, block["name"], config, found.distribution, found.version)


def slot(name: str, **fields: Any) -> Any:
    """The default of a `Slot` field: the component `name` with these fields."""
    return Field(default={"name": name, **fields}, validate_default=True)
