"""Which methods train the class token that leaves the encoder, and what runs of the others say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mim_setup import make, make_batch
from tokenizer_setup import write_tokenizer

from sslkit.api import Progress, Tokens
from sslkit.recipe import find_recipe, load_recipe
from sslkit.recipe.warnings import network_warnings

FIELDS: dict[str, dict[str, Any]] = {
    "mae": {"decoder": {"width": 16, "depth": 2, "heads": 2}},
    "simmim": {"cell": 8},
    "beit": {"min_block": 2},
    "maskfeat": {"cell": 4, "min_block": 2},
    "data2vec": {"layers": 2, "min_block": 2},
}


@pytest.fixture
def fields(name: str, tmp_path: Path) -> dict[str, Any]:
    if name != "beit":
        return FIELDS[name]
    return {**FIELDS[name], "tokenizer": write_tokenizer(tmp_path / "tokenizer.safetensors")}


@pytest.mark.parametrize("name", list(FIELDS))
def test_the_loss_reaches_the_class_token_where_the_method_says_so(
    name: str, fields: dict[str, Any]
) -> None:
    method, batch = make(name, **fields), make_batch()
    take, prefixes = method.backbone.tokens, []

    def tokens(*args: Any, **options: Any) -> Tokens:
        found: Tokens = take(*args, **options)
        found.prefix.retain_grad()
        prefixes.append(found.prefix)
        return found

    vars(method.backbone)["tokens"] = tokens
    method.objective(method.embed(batch), batch, Progress(0, 1, 1)).loss.backward()
    (prefix,) = prefixes
    reached = prefix.grad is not None and bool(prefix.grad.any())
    assert reached == method.trains_class_token == (name == "mae")


@pytest.mark.parametrize("name", list(FIELDS))
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_class_token_that_is_measured_untrained_is_warned_of(
    name: str, pool: str, fields: dict[str, Any]
) -> None:
    recipe = load_recipe(find_recipe(f"cpu/{name}_cifar10_short"))
    found = network_warnings(recipe, make(name, {"pool": pool}, **fields))
    warned = pool == "token" and name != "mae"
    assert [advice.path for advice in found] == ["backbone"] * warned
    assert all(f"no loss of {name} reaches" in advice.message for advice in found)
