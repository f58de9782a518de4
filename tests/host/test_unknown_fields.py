"""Unknown fields say where the setting is, or that there is none; any number is bounded."""

from __future__ import annotations

import pytest

from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import did_you_mean
from sslkit.recipe import Recipe, problems, unknown
from sslkit.recipe.fields import Place
from sslkit.recipe.foreign import ABSENT, RENAMED, VALUES
from sslkit.recipe.loading import parse_recipe

RECIPE = """\
name: t
data: {name: digits}
augmentation: {name: simclr, size: 32}
backbone: {name: timm, model: resnet10t}
method: {name: simclr, loss: {name: nt_xent, temperature: 0.2}}
optimizer: {name: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 8}
evaluate: [{name: knn, k: 5}]
"""
REGISTRY = load_plugins().registry


def said(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "x.yaml", overrides, REGISTRY)
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train.num_workers", "unknown field; in sslkit it is train.loader_threads"),
        ("num-workers", "unknown field; in sslkit it is train.loader_threads"),
        ("train.max_epochs", "unknown field; in sslkit it is train.epochs"),
        ("train.gradient_clip_val", "unknown field; in sslkit it is train.max_grad_norm"),
        ("train.accelerator", "unknown field; in sslkit it is train.device"),
        ("seed_everything", "unknown field; in sslkit it is seed"),
        ("train.seed_everything", "unknown field; in sslkit it is seed"),
        ("optimizer.learning_rate", "unknown field; in sslkit it is optimizer.lr"),
        ("train.learning_rate",
         "unknown field; in sslkit it is optimizer.lr or train.online_probe.lr"),
        ("method.proj_output_dim", "unknown field; in sslkit it is method.head.out_dim"),
        ("method.tau", "unknown field; in sslkit it is method.loss.temperature"),
        ("evaluate.0.tau", "unknown field; in sslkit it is evaluate.0.temperature"),
        ("method.moco_k",
         "unknown field; in sslkit it is 'queue_size', which the method of this recipe does not "
         "have"),
        ("method.temperature", "unknown field here, it belongs at method.loss.temperature"),
        ("temperature",
         "unknown field here, it belongs at method.loss.temperature or evaluate.0.temperature"),
        ("train.lr",
         "unknown field here; this recipe has it at optimizer.lr or train.online_probe.lr"),
        ("train.temperature",
         "unknown field here; this recipe has it at method.loss.temperature or "
         "evaluate.0.temperature"),
        ("train.devices", "unknown field; a recipe says nothing of processes: sslkit run RECIPE"),
        ("gpus", "unknown field; a recipe says nothing of processes: sslkit run RECIPE"),
        ("train.strategy", "unknown field; in sslkit it is train.parallel"),
        ("train.accumulate_grad_batches",
         "unknown field; sslkit does not add up the gradients of small batches"),
        ("train.drop_last", "unknown field; there is no such setting"),
        ("evaluate.0.selection_fraction",
         "unknown field; settings are cross-validated now: selection_folds, the number of parts"),
        ("train.epoch", "unknown field, did you mean 'epochs'? Valid: epochs, batch_size"),
        ("train.zzz", "unknown field; nothing in this recipe has it. Valid: epochs, batch_size"),
    ],
)  # fmt: skip
def test_the_file_and_an_override_say_the_same(path: str, expected: str) -> None:
    (override,) = said(RECIPE, f"{path}=3")
    assert override.startswith(f"-o {path}=3: {expected}")
    block, _, field = path.rpartition(".")
    lines = RECIPE.splitlines()
    if block.startswith("evaluate"):
        changed = RECIPE.replace("k: 5", f"k: 5, {field}: 3")
    elif block:
        changed = "\n".join(
            line.rstrip("}") + f", {field}: 3" + "}" * (len(line) - len(line.rstrip("}")))
            if line.startswith(f"{block}:") and block != "method"
            else line.replace("simclr,", f"simclr, {field}: 3,") if line.startswith(f"{block}:")
            else line
            for line in lines
        )  # fmt: skip
    else:
        changed = f"{RECIPE}{field}: 3\n"
    (line,) = said(changed)
    assert line.split(": ", 2)[2] == override.split(": ", 1)[1]
    assert line.split(": ", 2)[1] == path


def test_a_field_under_another_name_is_not_missing_too() -> None:
    (line,) = said(RECIPE.replace("epochs: 1", "max_epochs: 1"))
    assert line == "x.yaml:7:9: train.max_epochs: unknown field; in sslkit it is train.epochs"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.precision=16-mixed", "write fp16"),
        ("train.precision=32", "write fp32"),
        ("train.precision=bf16-mixed", "write bf16"),
        ("train.device=gpu", "write cuda"),
    ],
)
def test_values_of_other_frameworks(override: str, hint: str) -> None:
    (line,) = said(RECIPE, override)
    assert line.endswith(hint)


def test_the_table_leads_to_fields_that_exist() -> None:
    """No name of ours is in it, and every target is a field of some component of its block."""
    root = Place(Recipe, {}, REGISTRY)
    fields = set(root.keys() or ())
    kinds: dict[str, set[str]] = {"train": set(), "": fields}
    for path, place in root.walk():
        kinds.setdefault(str(path[0]) if path else "", set()).update(place.keys() or ())
    for entry in REGISTRY.entries():
        block = {"dataset": "data", "evaluator": "evaluate", "head": "method", "loss": "method"}
        names = set(REGISTRY.resolve(entry.kind, entry.qualified).cls.Config.model_fields)
        kinds.setdefault(block.get(entry.kind, entry.kind), set()).update(names)
    train = Place(Recipe, {"train": {}}, REGISTRY).child("train")
    assert train is not None
    kinds["train"] |= set(train.keys() or ())
    for target in RENAMED.values():
        block_name, _, field = target.rpartition(".")
        assert field in kinds[block_name], target
    assert not fields & (RENAMED.keys() | ABSENT.keys())
    assert not kinds["train"] & (RENAMED.keys() | ABSENT.keys())
    assert set(VALUES.values()) == {"fp16", "bf16", "fp32", "cuda"}


@pytest.mark.slow  # 4 seconds
@pytest.mark.parametrize("block", ["", "train", "method.loss"])
def test_ten_thousand_unknown_keys(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 are explained; what costs time is done for these only."""
    asked = []

    def counted(given: str, valid: object) -> str:
        asked.append(given)
        return did_you_mean(given, valid)  # type: ignore[arg-type]

    monkeypatch.setattr(unknown, "did_you_mean", counted)
    monkeypatch.setattr(problems, "did_you_mean", counted)
    keys = [f"epochs{number}: 1" for number in range(10_000)]
    text = {
        "": RECIPE + "\n".join(keys) + "\n",
        "train": RECIPE.replace("epochs: 1", ", ".join(keys)),
        "method.loss": RECIPE.replace("temperature: 0.2", ", ".join(keys)),
    }[block]
    lines = said(text)
    assert len(lines) == 51
    assert lines[-1] == "x.yaml: and 9,950 more problems"
    assert len(asked) <= 100


def test_thousands_of_overrides_are_bounded_too() -> None:
    lines = said(RECIPE, *(f"train.k{number}=1" for number in range(1_000)))
    assert len(lines) == 51
    assert lines[-1] == "-o: and 950 more problems"


@pytest.mark.parametrize(
    ("text", "expected", "number"),
    [
        ("a: &a [1, 1]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 20}]\n" for i in range(400)),
         "the anchor '&a' is not supported", 51),
        (RECIPE + "name: x\n" * 5000, "duplicate key", 51),
        (RECIPE + f"x: [{'1, ' * 30_000}]\n", "more than 20,000 values", 1),
        (RECIPE.replace("size: 32", f"size: 32, views: [{'{sizee: 3}, ' * 9_000}]"),
         "did you mean 'size'?", 51),
        (RECIPE.replace("name: knn", "name: " + "k" * 300_000), "unknown evaluator 'kkk", 1),
        (RECIPE + f"x: {'{a: ' * 400}", "nested more than 50 levels deep", 1),
    ],
    ids=["aliases", "duplicates", "long list", "views", "long name", "deep"],
)  # fmt: skip
def test_hostile_recipes_are_refused_in_few_short_lines(
    text: str, expected: str, number: int
) -> None:
    lines = said(text)
    assert expected in lines[0]
    assert len(lines) == number
    assert max(map(len, lines)) <= 2_100
