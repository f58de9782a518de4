"""Self-supervised methods: what happens in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sslkit.parallel.world import OneProcess, World

from .backbones import Backbone
from .component import Component, RunFacts
from .data import Batch
from .losses import Loss, LossInput
from .schedules import Progress


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
    losses: Sequence[tuple[Loss, LossInput]] = ()
    """Each call of a loss with its input: `Loss.metrics` of them is logged beside `metrics`, unless
    those have the name, and `Loss.after_step` is called with them."""


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
    divides_objective: ClassVar[bool] = False
    """Whether, with several processes, `objective` and `after_step` see this one's share of the
    batch in place of all of it: for an objective that is too large to repeat on each. Its loss is
    then the mean over its samples, given statistics of the batch that it takes through
    `world.sum`, `world.mean` or `world.gather`, which are differentiable; and it keeps state equal
    on all by the same means, its losses none. BatchNorm in it is over the whole batch. With one
    process the share is the batch."""
    world: World = OneProcess()
    """The processes that share a batch; set before the first step. Needed where
    `divides_objective` alone."""
    must_not_collapse: Mapping[str, Apart] | None = None
    """Entries of `embed` that keep the images of a batch apart in a healthy run, each judged on its
    own, at every view, by the evaluator `collapse`; one that does not, such as a predictor that
    begins by predicting the mean, is left out. None: every entry but "features"; probabilities are
    taken as those over prototypes. Empty: nothing can collapse, as where each image is its own
    target."""
    trains_class_token: ClassVar[bool] = True
    """Whether the loss reaches the class token as it leaves the encoder, where there is one. False
    for a loss on patches alone: a run whose features are that token is warned of."""

    def __init__(self, config: Any, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    @classmethod
    def for_encoder(cls, config: Any, backbone: Backbone, facts: RunFacts) -> Method:
        """The method where `encoder` and `projection_layers` alone are used: it is given the state
        of a checkpoint, or measured untrained, and takes no step. By default the whole method.

        For a constructor that reads what only training needs, such as a file that may be gone by
        then. `encoder` and `projection_layers` start from the same random numbers as in the whole
        method, and `load_state_dict` takes the state of that one."""
        return cls(config, backbone, facts)

    @property
    def encoder(self) -> Backbone:
        """The network that is evaluated and exported."""
        return self.backbone

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        """The projection head as layers, the first of which takes the features of `encoder`; see
        `Head.as_layers`. Evaluators can measure, and fine-tune from, any of them. Empty: none."""
        return ()

    @abstractmethod
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Per-sample tensors, each (B, ...), from networks. The entry "features", (B, ..., F), if
        present, feeds the online probe."""

    @abstractmethod
    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        """The loss of the whole batch from the embeddings of all its parts, which come in float32
        and outside autocast. `batch.views` may be empty here. Networks belong into `embed`.
        progress: as `before_step` had it; what schedules are read at."""

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
        """Called after each optimiser step (`progress.step` counts it) with `StepOutput.carry`.
        A schedule has the value of the step just taken at `progress.previous()`."""
