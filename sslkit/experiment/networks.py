"""Building the method and its networks, trained or not."""

from __future__ import annotations

from sslkit.api import Backbone, Method, RunFacts, Slot
from sslkit.engine.display import Display
from sslkit.errors import RecipeError
from sslkit.evaluation.untrained import holds_weights
from sslkit.nn.compute import Compute
from sslkit.nn.recompute import is_recomputed
from sslkit.randomness import seeded
from sslkit.recipe import Recipe

from .samples import build_backbone, input_shape


def make_method(recipe: Recipe, facts: RunFacts) -> Method:
    """The method and its networks, initialised from the recipe's seed alone."""
    with seeded(recipe.seed, "initialisation"):
        return recipe.method.build(make_backbone(recipe, facts), facts)


def make_backbone(recipe: Recipe, facts: RunFacts) -> Backbone:
    """The backbone, initialised from the generators as they are."""
    return build_backbone(recipe.backbone, input_shape(facts))


def missing_untrained(recipe: Recipe, facts: RunFacts) -> str | None:
    """Why there can be no untrained encoder to compare with: the backbone gets weights that do not
    come from the seed, although it was asked for none. None where there can be one."""
    bare, networks = without_starting_weights(recipe), []
    for stream in ("initialisation", "another initialisation"):
        with seeded(recipe.seed, stream):
            networks.append(make_backbone(bare, facts))
    if not holds_weights(*networks):
        return None
    slot = recipe.backbone
    return (
        f"backbone '{slot.name}' of {slot.distribution} {slot.version} has the same weights under "
        f"two seeds, so they are not random; {slot.cls.__name__}.without_weights must give a "
        "config that loads none"
    )


def say_missing_untrained(recipe: Recipe, facts: RunFacts, display: Display) -> str | None:
    """`missing_untrained`, said in the first lines, where an evaluator would want the encoder."""
    parts = [part for slot in recipe.evaluate for part in slot.build().parts()]
    if not any("untrained" in part.baselines for part in parts):
        return None
    reason = missing_untrained(recipe, facts)
    if reason is not None:
        display.message(f"warning: no untrained baseline: {reason}")
    return reason


def starting_source(recipe: Recipe) -> str | None:
    """What the backbone starts from, in words; None for random weights."""
    found = recipe.backbone.cls.starting_weights(recipe.backbone.config)
    return found.source if found is not None else None


def without_starting_weights(recipe: Recipe) -> Recipe:
    """The recipe with a backbone that is built without loading or downloading weights."""
    return recipe.model_copy(update={"backbone": without_weights(recipe.backbone)})


def without_weights(backbone: Slot[Backbone]) -> Slot[Backbone]:
    """The backbone alone, in the same way."""
    config = backbone.cls.without_weights(backbone.config)
    return Slot(backbone.cls, backbone.name, config, backbone.distribution, backbone.version)


def initial_method(recipe: Recipe, facts: RunFacts, compute: Compute) -> Method:
    """The method as it was before the first step, made again from the seed, on the device."""
    method = make_method(recipe, facts)
    compute.prepare(method)
    return method


def compile_backbones(method: Method, *, cuda_graphs: bool = False) -> None:
    """Compiles the encoder, and a teacher's, which is a backbone too.

    Raises RecipeError where blocks are recomputed: what they do is not for a compiler."""
    if is_recomputed(method):
        raise RecipeError(
            "train.compile: blocks that the backbone recomputes cannot be compiled; set "
            "train.compile=false, or backbone.recompute=false"
        )
    for module in method.modules():
        if isinstance(module, Backbone):
            module.compile(mode="reduce-overhead" if cuda_graphs else None)
