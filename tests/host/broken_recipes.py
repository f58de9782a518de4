"""Recipes with mistakes, and what must be said about each. The tests of the command line run the
same table through `sslkit validate`."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = """\
name: tiny
seed: 0
data: {name: digits}
augmentation: {name: simclr, size: 32}
backbone: {name: timm, model: resnet18}
method:
  name: simclr
  head: {name: mlp, out_dim: 64}
  loss: {name: nt_xent, temperature: 0.5}
optimizer: {name: sgd, lr: 3e-4}
schedule: {name: cosine}
train:
  epochs: 2
  batch_size: 64
evaluate:
  - {name: knn, k: 20}
tracking: {name: none}
"""
"""A recipe without mistakes; most of the broken ones change one thing in it."""


@dataclass(frozen=True)
class BrokenRecipe:
    """FILE in `expected` stands for the path of the recipe."""

    name: str
    text: str | bytes
    expected: tuple[str, ...]
    """What the messages hold: each a part of one line."""
    overrides: tuple[str, ...] = ()
    lines: int = 1
    """How many problems there are."""


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


BROKEN_RECIPES = (
    # --- Misspelt names ---
    BrokenRecipe(
        "misspelt top-level field",
        changed("train:\n", "trian:\n"),
        ("FILE:12:1: trian: unknown field, did you mean 'train'? Valid: name, seed, data",),
    ),
    BrokenRecipe(
        "misspelt field of a component",
        changed("temperature: 0.5", "temperatur: 0.5"),
        ("FILE:9:25: method.loss.temperatur: unknown field, did you mean 'temperature'? Valid:",),
    ),
    BrokenRecipe(
        "misspelt component",
        changed("nt_xent", "ntxent"),
        (
            "FILE:9:16: method.loss: unknown loss 'ntxent', did you mean 'nt_xent'? Valid:",
            "See: sslkit plugins list --kind loss",
        ),
    ),
    BrokenRecipe(
        "unknown evaluator in a list",
        changed("{name: knn, k: 20}", "{name: knn, k: 20}\n  - {name: liner}"),
        ("FILE:17:12: evaluate.1: unknown evaluator 'liner', did you mean 'linear'?",),
    ),
    BrokenRecipe(
        "field in the wrong block",
        changed("  name: simclr\n", "  name: simclr\n  temperature: 0.2\n"),
        ("FILE:8:3: method.temperature: unknown field here, it belongs at method.loss.temp",),
    ),
    BrokenRecipe(
        "unknown distribution",
        changed("name: nt_xent", "name: acme:nt_xent"),
        ("FILE:9:16: method.loss: unknown loss 'acme:nt_xent'",),
    ),
    # --- Missing fields and blocks ---
    BrokenRecipe(
        "missing block",
        changed("optimizer: {name: sgd, lr: 3e-4}\n", ""),
        ("FILE:1:1: optimizer: is required (The optimiser and its learning rate): {name: ...}",),
    ),
    BrokenRecipe(
        "missing field",
        changed("  epochs: 2\n", ""),
        ("FILE:12:1: train.epochs: is required (Passes over the training images)",),
    ),
    BrokenRecipe(
        "component without a name",
        changed("{name: nt_xent, temperature: 0.5}", "{temperature: 0.5}"),
        ("FILE:9:9: method.loss: expected a block that names its loss, such as {name: ...}",),
    ),
    BrokenRecipe(
        "component as text",
        changed("{name: cosine}", "cosine"),
        ("FILE:11:11: schedule: expected a block that names its schedule",),
    ),
    BrokenRecipe(
        "only a name",
        "name: tiny\n",
        ("data: is required", "backbone: is required", "train: is required"),
        lines=6,
    ),
    # --- Wrong types and values ---
    BrokenRecipe(
        "text for a number",
        changed("epochs: 2", "epochs: many"),
        ("FILE:13:11: train.epochs: expected a whole number, got the text 'many'",),
    ),
    BrokenRecipe(
        "quoted number",
        changed("lr: 3e-4", 'lr: "3e-4"'),
        ("FILE:10:28: optimizer.lr: expected a number, got the text '3e-4': write it without",),
    ),
    BrokenRecipe(
        "underscores in a number",
        changed("batch_size: 64", "batch_size: 1_024"),
        ("FILE:14:15: train.batch_size: expected a whole number, got the text '1_024': write it",),
    ),
    BrokenRecipe(
        "fraction for a whole number",
        changed("epochs: 2", "epochs: 1.5"),
        ("FILE:13:11: train.epochs: expected a whole number, got 1.5",),
    ),
    BrokenRecipe(
        "boolean for a number",
        changed("epochs: 2", "epochs: true"),
        ("FILE:13:11: train.epochs: expected a whole number, got true",),
    ),
    BrokenRecipe(
        "yes for a boolean",
        changed("  epochs: 2\n", "  epochs: 2\n  channels_last: yes\n"),
        (
            "FILE:14:18: train.channels_last: expected true or false",
            "got the text 'yes': write true",
        ),
    ),
    BrokenRecipe(
        "number for text",
        changed("name: tiny", "name: 12"),
        ("FILE:1:7: name: expected text, got 12: put it in quotes",),
    ),
    BrokenRecipe(
        "out of range",
        changed("temperature: 0.5", "temperature: -0.5"),
        ("FILE:9:38: method.loss.temperature: expected a number above 0", "got -0.5"),
    ),
    BrokenRecipe(
        "not finite",
        changed("lr: 3e-4", "lr: .inf"),
        ("FILE:10:28: optimizer.lr: expected a finite number, got inf",),
    ),
    BrokenRecipe(
        "not one of the choices",
        changed("  epochs: 2\n", "  epochs: 2\n  precision: fp8\n"),
        ("FILE:14:14: train.precision: expected 'fp32' or 'bf16' or 'fp16', got the text 'fp8'",),
    ),
    BrokenRecipe(
        "neither member of a union",
        changed("  epochs: 2\n", "  epochs: 2\n  compile: if_possible\n"),
        ("FILE:14:12: train.compile: expected true or false or 'if_available', got the text",),
    ),
    BrokenRecipe(
        "block for a list",
        changed("evaluate:\n  - {name: knn, k: 20}", "evaluate: {name: knn, k: 20}"),
        ("FILE:15:11: evaluate: expected a list, got a block of fields",),
    ),
    BrokenRecipe(
        "list for a block",
        changed("train:\n  epochs: 2\n  batch_size: 64", "train: [2, 64]"),
        ("FILE:12:8: train: expected a block of fields, got a list of 2",),
    ),
    BrokenRecipe(
        "name that is no folder name",
        changed("name: tiny", "name: ../tiny"),
        ("FILE:1:7: name: expected text that matches",),
    ),
    # --- Bad YAML ---
    BrokenRecipe(
        "duplicate key",
        changed("  batch_size: 64", "  batch_size: 64\n  epochs: 3"),
        ("FILE:15:3: train.epochs: duplicate key, first given at 13:3",),
    ),
    BrokenRecipe(
        "tab",
        changed("  epochs: 2", "\tepochs: 2"),
        ("FILE:13:1: not valid YAML: a tab; indent with spaces",),
    ),
    BrokenRecipe(
        "unclosed bracket",
        changed("{name: cosine}", "{name: cosine"),
        ("FILE:12:6: not valid YAML: while parsing a flow mapping",),
    ),
    BrokenRecipe(
        "wrong indentation",
        changed("  epochs", " epochs"),
        ("FILE:14:13: not valid YAML: mapping values", "check the indentation"),
    ),
    BrokenRecipe("empty file", "# nothing\n", ("FILE: is empty",)),
    BrokenRecipe("top-level list", "- name: tiny\n", ("FILE:1:1: expected fields such as",)),
    BrokenRecipe(
        "second document",
        GOOD + "---\nname: other\n",
        ("FILE:18:1: a second document; a recipe is one document",),
    ),
    BrokenRecipe(
        "anchor, alias and merge key",
        changed("seed: 0", "seed: &s 0").replace("epochs: 2", "epochs: *s\n  <<: {}"),
        (
            "FILE:2:7: seed: the anchor '&s' is not",
            "FILE:13:11: train.epochs: the alias '*s'",
            "FILE:14:3: train: the merge key '<<'",
        ),
        lines=3,
    ),
    BrokenRecipe(
        "tag",
        changed("seed: 0", "seed: !!python/object/apply:os.system [true]"),
        ("FILE:2:7: seed: the tag '!!python/object/apply:os.system' is not supported",),
    ),
    BrokenRecipe("not UTF-8", b"name: caf\xe9\n", ("FILE:1:10: is not UTF-8 text (byte 0xe9)",)),
    BrokenRecipe("control character", "name: a\x00b\n", ("FILE: not valid YAML",)),
    BrokenRecipe("block as key", "{a: 1}: 2\n", ("FILE:1:1: a key must be text",)),
    BrokenRecipe("nested too deep", "a: " + "[" * 60 + "]" * 60, ("nested more than 50 levels",)),
    # --- Impossible combinations ---
    BrokenRecipe(
        "expectation that nothing measures",
        GOOD + "expect: {eval/linear/top1: {at_least: 0.5}}\n",
        ("FILE:18:10: expect.eval/linear/top1: nothing measures it: 'linear' is not listed",),
    ),
    BrokenRecipe(
        "empty range",
        GOOD + "expect: {eval/knn/top1: {at_least: 0.9, at_most: 0.5}}\n",
        ("FILE:18:25: expect.eval/knn/top1: at_least 0.9 is above at_most 0.5",),
    ),
    # --- Overrides ---
    BrokenRecipe(
        "override of an unknown field",
        GOOD,
        ("-o train.epoch=3: unknown field, did you mean 'epochs'? Valid: epochs",),
        overrides=("train.epoch=3",),
    ),
    BrokenRecipe(
        "override of a wrong type",
        GOOD,
        ("-o train.epochs=abc: expected a whole number, got the text 'abc'",),
        overrides=("train.epochs=abc",),
    ),
    BrokenRecipe(
        "override without a value",
        GOOD,
        ("-o train.epochs: expected PATH=VALUE, such as train.epochs=5",),
        overrides=("train.epochs",),
    ),
    BrokenRecipe(
        "override beyond a list",
        GOOD,
        ("-o evaluate.1.k=5: evaluate is a list of 1, '1' is not an index of it. Valid: 0 to 0",),
        overrides=("evaluate.1.k=5",),
    ),
    BrokenRecipe(
        "override into a number",
        GOOD,
        ("-o seed.x=1: seed is 0 and has no fields",),
        overrides=("seed.x=1",),
    ),
    BrokenRecipe(
        "override that is bad YAML",
        GOOD,
        ("-o evaluate=[1: not valid YAML",),
        overrides=("evaluate=[1",),
    ),
    BrokenRecipe(
        "override of a name drops the fields",
        GOOD,
        ("-o optimizer.name=lars: optimizer.lr: is required",),
        overrides=("optimizer.name=lars",),
    ),
    # --- Everything at once ---
    BrokenRecipe(
        "many problems",
        changed("nt_xent", "ntxent").replace("epochs: 2", "epochs: 0").replace("k: 20", "kk: 20"),
        (
            "FILE:9:16: method.loss: unknown loss",
            "FILE:13:11: train.epochs: expected a number above 0, got 0",
            "FILE:16:17: evaluate.0.kk: unknown field",
            "-o seed=x: expected a whole number",
            "-o nmae=x: unknown field, did you mean 'name'?",
        ),
        overrides=("seed=x", "nmae=x"),
        lines=5,
    ),
)
