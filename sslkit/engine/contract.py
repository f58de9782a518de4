"""What components promise each other, checked in the first step of a process and in `--dry-run`.

A method whose `embed` leaves out the features, a head of another width, a view with values up to
255: each would train to the end and give numbers. The checks read from the device, so they end
with the first step."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sslkit.api import (
    Apart,
    Backbone,
    Batch,
    Component,
    Head,
    Loss,
    LossInput,
    Method,
    StepOutput,
    ViewSpec,
    torch_dtype,
)
from sslkit.errors import PluginError

from .not_finite import odd_value

_TOLERANCE = 1e-3
"""By which views may leave [0, 1]: filters round."""

FEATURES = "features"
OWN_METRICS = frozenset({"loss", "lr", "grad_norm", "epoch", "loss_scale"})
"""What the engine logs as `train/<name>`, beside what follows a schedule and the online probe's."""
_METRIC_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


def metric_fault(name: object, taken: Collection[str] = OWN_METRICS) -> str | None:
    """What is wrong with the name of a metric; None where nothing is. taken: names in use."""
    if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
        return "valid are letters, digits and any of _ . - /"
    if name in taken or name.startswith("online_probe/"):
        return f"train/{name} is logged by sslkit itself; choose another name"
    return None


class Contract:
    """The checks of one run."""

    def __init__(
        self,
        places: Mapping[type[Component], str],
        views: Sequence[ViewSpec],
        channels: int,
        *,
        bounded: bool = True,
        probe_width: int | None,
        scheduled: Collection[str] = (),
        hook_backbones: bool = True,
    ) -> None:
        """places: where in the recipe each class stands. bounded: whether views are images, with
        values in [0, 1]. probe_width: that of the features which the online probe takes; None where
        there is none. scheduled: names under which numbers that follow a schedule are logged.
        hook_backbones: False where they are compiled, hooks and all."""
        self.open = True
        self._places = places
        self._views = views
        self._channels = channels
        self._bounded = bounded
        self._probe_width = probe_width
        self._own_metrics = OWN_METRICS | set(scheduled)
        self._hook_backbones = hook_backbones

    def close(self) -> None:
        """The first step is done."""
        self.open = False

    # --- What comes in -----------------------------------------------------------------------

    def check_batch(self, batch: Batch) -> None:
        """Raises PluginError where the views or targets of a batch are not what was announced."""
        if not self.open:
            return
        where = "augmentation: the batch"
        if len(batch.views) != len(self._views):
            raise PluginError(
                f"{where} has {len(batch.views)} views; valid are the {len(self._views)} that the "
                "augmentation's `views` name"
            )
        for number, (view, spec) in enumerate(zip(batch.views, self._views, strict=True)):
            announced = ViewShape.of(spec, len(batch), self._channels, self._bounded)
            check_view(f"{where} has view {number} as", view, announced)
        for name, target in batch.targets.items():
            if not isinstance(target, Tensor) or target.ndim == 0 or len(target) != len(batch):
                raise PluginError(
                    f"{where} has target '{name}' as {describe(target)}; valid is one row for each "
                    f"of {len(batch)} images"
                )

    # --- What the method gives ---------------------------------------------------------------

    def check_embeddings(self, method: Method, embeddings: Any, rows: int) -> None:
        """Raises PluginError where `embed` did not give one row per image. rows: images of the
        batch, or of the part of it that was embedded."""
        who = f"method: {type(method).__name__}.embed"
        if not isinstance(embeddings, Mapping) or not embeddings:
            raise PluginError(
                f"{who} gave {describe(embeddings)}; valid is a dict of tensors (B, ...)"
            )
        for name, value in embeddings.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
                raise PluginError(
                    f"{who} gave '{name}' as {describe(value)} for {rows} images; valid is a "
                    "tensor with one row per image"
                )
        if self.open:
            self._check_features(who, embeddings)
            _check_watched(method, embeddings)

    def _check_features(self, who: str, embeddings: Mapping[str, Tensor]) -> None:
        if not any(value.is_floating_point() for value in embeddings.values()):
            kinds = ", ".join(f"'{k}' as {v.dtype}" for k, v in embeddings.items())
            raise PluginError(f"{who} gave {kinds}; valid are floating-point embeddings")
        if self._probe_width is None:
            return
        if FEATURES not in embeddings:
            given = ", ".join(f"'{name}'" for name in embeddings)
            raise PluginError(
                f"{who} gave {given} and no '{FEATURES}', on which the online probe trains; add "
                "the encoder's output, or set train.online_probe=null"
            )
        features = embeddings[FEATURES]
        width = self._probe_width
        if features.ndim < 2 or features.shape[-1] != width or not features.is_floating_point():
            raise PluginError(
                f"{who} gave '{FEATURES}' as {describe(features)}; valid for the online probe is a "
                f"floating-point (B, ..., {width}), {width} being num_features of the encoder; or "
                "set train.online_probe=null"
            )

    def check_output(self, method: Method, output: Any) -> None:
        """Raises PluginError where `objective` gave what cannot be minimised."""
        who = f"method: {type(method).__name__}.objective"
        if not isinstance(output, StepOutput):
            raise PluginError(f"{who} gave {describe(output)}; valid is a StepOutput(loss)")
        if not isinstance(output.metrics, Mapping):
            raise PluginError(
                f"{who} gave {describe(output.metrics)} as metrics; valid is a mapping of a name "
                "to a number"
            )
        stated = {id(loss) for loss, _ in output.losses}
        for module in method.modules() if self.open else ():
            if not isinstance(module, Loss) or id(module) in stated:
                continue
            if type(module).after_step is not Loss.after_step:
                raise PluginError(
                    f"{who} says nothing of its loss {type(module).__name__}, which changes after "
                    "each step; give StepOutput(..., losses=[(self.loss, inputs)])"
                )
        loss = output.loss
        if not isinstance(loss, Tensor) or loss.ndim > 0 or not loss.is_floating_point():
            found = describe(loss)
        elif not loss.requires_grad:
            found = "a scalar without gradient"
        else:
            return
        raise PluginError(
            f"{who} gave {found} as its loss; valid is a floating-point scalar tensor that depends "
            "on the parameters"
        )

    def check_numbers(
        self, method: Method, embeddings: Mapping[str, Tensor], output: StepOutput
    ) -> None:
        """Raises PluginError where an embedding is not finite though the loss is, or where a metric
        is no number."""
        if not self.open:
            return
        who = f"method: {type(method).__name__}"
        for name, value in embeddings.items():
            if (odd := odd_value(value)) is not None:
                raise PluginError(
                    f"{who}.embed gave '{name}' with {odd} in it, which its loss does not see; "
                    "valid are finite embeddings"
                )
        for name, metric in output.metrics.items():
            if (fault := metric_fault(name, self._own_metrics)) is not None:
                raise PluginError(f"{who} or its loss gave a metric the name {name!r}; {fault}")
            if not isinstance(metric, (int, float)) and not (
                isinstance(metric, Tensor) and metric.numel() == 1
            ):
                raise PluginError(
                    f"{who} or its loss gave the metric '{name}' as {describe(metric)}; valid is "
                    "one number"
                )

    # --- What networks give ------------------------------------------------------------------

    def watching(self, method: Method) -> AbstractContextManager[None]:
        """Checks what heads, losses and backbones give, while the block runs."""
        return self._hooked(method) if self.open else nullcontext()

    @contextmanager
    def _hooked(self, method: Method) -> Iterator[None]:
        handles = [
            module.register_forward_hook(check)
            for module in method.modules()
            if (check := self._check_of(module)) is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_of(self, module: nn.Module) -> Callable[[Any, Any, Any], None] | None:
        if isinstance(module, Loss):
            return self._check_loss
        if isinstance(module, Head):
            return self._check_head
        return (
            self._check_backbone if isinstance(module, Backbone) and self._hook_backbones else None
        )

    def _check_loss(self, loss: Loss, inputs: Any, output: Any) -> None:
        if inputs and isinstance(inputs[0], LossInput) and not _is_scalar(output):
            raise PluginError(
                f"{self._who(loss)}.forward gave {describe(output)}; valid is a floating-point "
                "scalar tensor"
            )
        if inputs and isinstance(inputs[0], LossInput) and _is_cut(inputs[0], output):
            raise PluginError(
                f"{self._who(loss)}.forward gave a scalar without gradient, of embeddings that "
                "have one; valid is a scalar that depends on them: no detach, no item, no no_grad"
            )

    def _check_head(self, head: Head, inputs: Any, output: Any) -> None:
        self._check_map(head, inputs, output, "out_dim", getattr(head, "out_dim", None))

    def _check_backbone(self, backbone: Backbone, inputs: Any, output: Any) -> None:
        width = getattr(backbone, "num_features", None)
        if inputs and isinstance(inputs[0], Tensor):
            inputs = (inputs[0].flatten(1),)
        self._check_map(backbone, inputs, output, "num_features", width)

    def _check_map(
        self, module: Component, inputs: Any, output: Any, name: str, width: object
    ) -> None:
        if not inputs or not isinstance(inputs[0], Tensor):
            return
        expected = (*inputs[0].shape[:-1], width)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            raise PluginError(
                f"{self._who(module)}.forward gave {describe(output)}; valid is a tensor "
                f"{expected} with its {name} {width}"
            )

    def _who(self, component: Component) -> str:
        cls = type(component)
        return f"{self._places.get(cls, cls.kind)}: {cls.__name__}"


def _check_watched(method: Method, embeddings: Mapping[str, Tensor]) -> None:
    """Raises PluginError where a collapse of what the method names could not be seen."""
    for name, apart in (method.must_not_collapse or {}).items():
        who = f"method: {type(method).__name__}.must_not_collapse names"
        if name not in embeddings:
            given = ", ".join(f"'{each}'" for each in embeddings)
            raise PluginError(f"{who} '{name}'; valid are the entries of embed: {given}")
        if apart not in get_args(Apart):
            valid = " and ".join(f"'{each}'" for each in get_args(Apart))
            raise PluginError(f"{who} '{name}' as {apart!r}; valid are {valid}")


@dataclass(frozen=True)
class ViewShape:
    """What the views of a batch were announced to be."""

    shape: tuple[int, ...]
    """(B, *shape of the view)."""
    dtype: str
    """`float32` stands for any floating-point type: half precision is a matter of the run."""
    bounded: bool
    """Whether values lie in [0, 1]."""

    @classmethod
    def of(cls, spec: ViewSpec, rows: int, channels: int, bounded: bool) -> ViewShape:
        """The shape of a view of so many samples, which have so many channels."""
        return cls((rows, *spec.shape(channels)), spec.dtype, bounded)

    def fits(self, view: Tensor) -> bool:
        """Whether shape and type are those."""
        if tuple(view.shape) != self.shape:
            return False
        return view.is_floating_point() if self.is_floating else view.dtype == self.torch_dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type. Raises PluginError where there is none of its name."""
        return torch_dtype(self.dtype)

    @property
    def is_floating(self) -> bool:
        """Whether the values are floating-point numbers."""
        return self.torch_dtype.is_floating_point

    def __str__(self) -> str:
        kind = "floating-point" if self.is_floating else self.dtype
        return f"{kind} {self.shape}{' with values in [0, 1]' if self.bounded else ''}"


def check_view(what: str, view: Any, announced: ViewShape) -> None:
    """Raises PluginError where a view has another shape or type, values that are not finite, or
    values that are not in [0, 1] where they have to be. what: begins the message."""
    valid = f"valid is {announced}"
    if not isinstance(view, Tensor) or not announced.fits(view):
        raise PluginError(f"{what} {describe(view)}; {valid}")
    if announced.is_floating and (odd := odd_value(view)) is not None:
        raise PluginError(f"{what} values with {odd} among them; {valid}")
    if view.numel() and announced.bounded:
        low, high = (float(value) for value in view.detach().aminmax())
        if low < -_TOLERANCE or high > 1.0 + _TOLERANCE:
            raise PluginError(f"{what} values from {low:.4g} to {high:.4g}; {valid}")


def describe(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(value.shape)}, {dtype}"
    if value is None:
        return "nothing"
    return f"an empty {type(value).__name__}" if value == {} else f"a {type(value).__name__}"


def _is_cut(inputs: LossInput, output: Tensor) -> bool:
    """Whether a gradient ends in a loss."""
    given = (*inputs.views, *inputs.online)
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    return wanted and not output.requires_grad


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and torch.is_floating_point(value)
