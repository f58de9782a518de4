"""What the pretext tasks that are classifications have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from sslkit.api import Head, RunFacts, StepOutput
from sslkit.errors import RecipeError
from sslkit.nn.deferred import Deferred


def classified(logits: Tensor, classes: Tensor) -> StepOutput:
    """The mean cross entropy, and how often the highest logit is right: `train/pretext_top1`.

    logits: (N, K). classes: (N,) int64. Equal logits have a loss of ln K."""
    hits = logits.detach().argmax(dim=1) == classes
    return StepOutput(
        F.cross_entropy(logits, classes), Deferred(lambda: {"pretext_top1": hits.float().mean()})
    )


def one_square_image(name: str, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Why a pretext task that takes square images apart, `name`, cannot run on these views."""
    if facts.other_samples is not None and not facts.other_samples.is_image:
        yield "", f"{name} is for images, and these samples are {facts.other_samples}"
        return
    if len(facts.views) != 1:
        yield (
            "",
            (
                f"{name} needs 1 view, but the augmentation makes {len(facts.views)}: set "
                "augmentation.num_views to 1"
            ),
        )
    for view in facts.views[:1]:
        if not view.is_square:
            yield "", f"{name} needs square views, but the augmentation makes {view}"


def refuse_other_width(field: str, head: Head, num_classes: int) -> None:
    """Raises RecipeError where a head does not give one logit for each class."""
    if head.out_dim != num_classes:
        raise RecipeError(
            f"method.{field}: its output has width {head.out_dim}, and there are {num_classes} "
            f"classes to tell apart; set out_dim: {num_classes}"
        )
