"""What can be known to be wrong before any network is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sslkit.api import Augmentation, ImageAugmentation, RunFacts, SplitReader, StreamReader
from sslkit.data.splits import Splits, notes_of, open_splits
from sslkit.errors import RecipeError
from sslkit.recipe import Recipe, check_recipe

from .stores import brought_facts, class_sizes, count_classes

_MANY = 1_000_000


def find_facts(recipe: Recipe, splits: Splits[SplitReader], augmentation: Augmentation) -> RunFacts:
    """What is known before the first step. Raises RecipeError when no whole batch exists."""
    train, reader, test = recipe.train, splits.train, splits.test
    if train.batch_size > len(reader):
        raise RecipeError(
            f"train.batch_size: {train.batch_size} is more than the {len(reader)} training images; "
            f"set train.batch_size={len(reader)} or less"
        )
    steps_per_epoch = len(reader) // train.batch_size
    total = train.epochs * steps_per_epoch
    facts = RunFacts(
        num_images=len(reader),
        channels=reader.sample.channels,
        image_size=getattr(reader, "image_size", None),
        num_classes=count_classes(reader),
        batch_size=train.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=min(total, train.max_steps) if train.max_steps else total,
        views=augmentation.views,
        num_test_images=0 if test is None else len(test),
        test_has_labels=test is not None and test.labels is not None,
        data_notes=notes_of(splits),
        class_sizes=class_sizes(reader.labels),
        other_samples=None if reader.sample.is_image else reader.sample,
        streamed=isinstance(reader, StreamReader),
    )
    refuse_other_samples(recipe, facts)
    return replace(facts, evaluated_on=brought_facts(recipe, facts))


def check(recipe: Recipe) -> RunFacts:
    """Opens the data and finds every combination that cannot work, without building networks.

    Raises RecipeError with all of them."""
    facts = find_facts(recipe, open_splits(recipe.data), recipe.augmentation.build())
    problems = check_recipe(recipe, facts)
    if problems:
        raise RecipeError(*problems)
    return facts


def check_measuring(recipe: Recipe) -> RunFacts:
    """`check` for an encoder that is only measured: whatever training is about is not looked at, as
    the batch size, which may be above the number of images.

    Raises RecipeError with everything that cannot work."""
    splits = open_splits(recipe.data)
    batch_size = min(recipe.train.batch_size, len(splits.train))
    train = recipe.train.model_copy(update={"batch_size": batch_size})
    fitting = recipe.model_copy(update={"train": train})
    facts = find_facts(fitting, splits, recipe.augmentation.build())
    problems = check_recipe(recipe, facts, training=False)
    if problems:
        raise RecipeError(*problems)
    return facts


def check_without_data(recipe: Recipe) -> None:
    """Finds the combinations that cannot work whatever the data are, and opens none.

    Raises RecipeError with all of them."""
    views, train = recipe.augmentation.build().views, recipe.train
    steps = train.max_steps or train.epochs * _MANY
    # Labelled, and so many images that no number is above theirs.
    facts = RunFacts(
        num_images=_MANY * train.batch_size, channels=3, image_size=None, num_classes=2,
        batch_size=train.batch_size, steps_per_epoch=_MANY, total_steps=steps, views=views,
    )  # fmt: skip
    problems = check_recipe(recipe, facts, data=False)
    if problems:  # those of grey images too do not depend on the data
        grey = check_recipe(recipe, replace(facts, channels=1), data=False)
        problems = [line for line in problems if line in grey]
    if problems:
        raise RecipeError(*problems)


def refuse_other_samples(recipe: Recipe, facts: RunFacts) -> None:
    """Raises RecipeError where a component cannot take what it would be given."""
    problems = [*_of_views(recipe, facts), *_of_backbone(recipe, facts)]
    if problems:
        raise RecipeError(*problems)


def _of_views(recipe: Recipe, facts: RunFacts) -> Iterator[str]:
    sample, name = facts.sample, recipe.augmentation.name
    if issubclass(recipe.augmentation.cls, ImageAugmentation):
        if not sample.is_image:
            yield (
                f"augmentation: '{name}' makes views of images, and the samples of "
                f"'{recipe.data.name}' are {sample}; choose an augmentation for those"
            )
    elif sample.sides is None:
        yield (
            f"data: the samples of '{recipe.data.name}' are {sample}, and '{name}' works on "
            "batches of one shape; pad or cut them in the data source, or choose an augmentation "
            "of images"
        )


def _of_backbone(recipe: Recipe, facts: RunFacts) -> Iterator[str]:
    slot, sample = recipe.backbone, facts.sample
    if not slot.cls.takes_images:
        if sample.sides is None:
            yield (
                f"data: the samples of '{recipe.data.name}' are {sample}, and backbone "
                f"'{slot.name}' is measured on whole samples of one shape; pad or cut them in the "
                "data source"
            )
        return
    others = [view for view in facts.views if not view.is_square]
    if not sample.is_image or others:
        what = f"views of {others[0]}" if others else f"samples of {sample}"
        yield (
            f"backbone: '{slot.name}' takes square images, and would be given {what}; choose a "
            "backbone for those"
        )
