"""Numbers that follow a schedule: values, forms in a recipe, hash, schema, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from sslkit.api import (
    Bounds,
    ComponentConfig,
    LossInput,
    Progress,
    RunFacts,
    ScheduledNumber,
    resolve_component,
    scheduled,
)
from sslkit.builtin.losses import NTXent
from sslkit.errors import PluginError, RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.recipe import (
    dump_resolved,
    flatten,
    json_schema,
    load_recipe,
    parse_recipe,
    recipe_hash,
    scheduled_numbers,
)

FACTS = RunFacts(100, 3, None, None, 10, 10, 100)


class Fields(ComponentConfig):
    share: Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)] = scheduled(0.9)


def number(value: Any) -> ScheduledNumber:
    return Fields.model_validate({"share": value}).share


def course(value: Any, total: int = 100) -> list[float]:
    return [number(value).at(Progress(step, total, 10)) for step in range(total + 1)]


# --- Values ---------------------------------------------------------------------------------------


def test_a_plain_number_is_constant() -> None:
    assert set(course(0.25)) == {0.25}
    assert number(1).at(None) == 1.0
    assert Fields().share.is_constant


@pytest.mark.parametrize(("start", "end"), [(0.996, 1.0), (0.04, 0.4), (0.9, 0.1)])
def test_a_cosine_is_that_of_byol_and_dino(start: float, end: float) -> None:
    """DINO: final + (base - final) (1 + cos(pi i / K)) / 2 (arXiv 2104.14294; its utils.py)."""
    found = course({"name": "cosine", "start": start, "end": end})
    expected = [end + (start - end) * (1 + math.cos(math.pi * k / 100)) / 2 for k in range(101)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert (found[0], found[-1]) == (pytest.approx(start, rel=1e-15), end)


def test_a_cosine_has_the_bits_that_methods_wrote_by_themselves() -> None:
    for k, found in enumerate(course({"name": "cosine", "start": 0.99, "end": 1.0}, 37)):
        assert found == 1.0 - (1.0 - 0.99) * 0.5 * (1.0 + math.cos(math.pi * (k / 37)))


def test_dinos_teacher_temperature_rises_and_stays() -> None:
    """np.linspace(0.04, 0.07, 3 epochs) and constant after; here by the step."""
    found = course({"name": "linear", "start": 0.04, "end": 0.07, "epochs": 3})
    assert found[15] == pytest.approx(0.055)
    assert found[:31] == pytest.approx([0.04 + 0.001 * k for k in range(31)])
    assert set(found[30:]) == {0.07}


def test_a_linear_schedule_ends_with_the_run() -> None:
    found = course({"name": "linear", "start": 1.0, "end": 0.0})
    assert found == pytest.approx([1 - k / 100 for k in range(101)])


def test_a_warm_up_rises_from_the_end() -> None:
    found = course({"name": "cosine", "start": 0.5, "end": 0.1, "warmup_epochs": 2})
    assert (found[0], found[10], found[20]) == pytest.approx((0.1, 0.3, 0.5))


def test_values_over_a_run_hold_first_and_last_step() -> None:
    found = number({"name": "linear", "start": 1.0, "end": 0.0}).values(FACTS)
    assert len(found) == 100
    assert (found[0], found[-1]) == pytest.approx((1.0, 0.01))
    assert number(0.3).values(FACTS) == [0.3]


def test_a_number_that_changes_needs_the_step() -> None:
    with pytest.raises(PluginError, match="was not told the step"):
        number({"name": "cosine", "start": 1, "end": 0}).at(None)


def test_a_number_that_is_misread_says_whose_field_it_is() -> None:
    cosine = {"name": "cosine", "start": 1.0, "end": 0.5}
    registry = load_plugins().registry
    loss = resolve_component(registry, "loss", {"name": "nt_xent", "temperature": cosine}).config
    inside = resolve_component(registry, "method", {"name": "simclr", "loss": loss_block(cosine)})
    for config in (loss, inside.config.loss.config):
        with pytest.raises(
            PluginError, match=r"^loss 'nt_xent', temperature: Scheduled.* changes "
        ):
            float(config.temperature)
        with pytest.raises(PluginError, match=r"^loss 'nt_xent', temperature follows "):
            config.temperature.at(None)
    with pytest.raises(PluginError, match=r"no plain number: write config\.share\.at\(progress\)"):
        _ = number(cosine) * 2.0
    with pytest.raises(PluginError, match=r"^ScheduledNumber\(.*: write \.at\(progress\)"):
        _ = ScheduledNumber(1.0, 0.5, number(cosine).schedule) * 2.0


def loss_block(temperature: Any) -> dict[str, Any]:
    return {"name": "nt_xent", "temperature": temperature}


def test_a_loss_reads_its_temperature_at_the_step() -> None:
    from torch import eye

    config = NTXent.Config(temperature={"name": "linear", "start": 1.0, "end": 0.5})
    loss, rows = NTXent(config), eye(4, 8)
    for step, temperature in ((0, 1.0), (5, 0.75)):
        constant = NTXent(NTXent.Config(temperature=temperature))
        found = loss(LossInput((rows, rows.roll(1, 0)), progress=Progress(step, 10, 10)))
        assert found.item() == constant(LossInput((rows, rows.roll(1, 0)))).item()


# --- In a recipe ----------------------------------------------------------------------------------

COSINE = "{name: cosine, start: 0.04, end: 0.4}"


def test_forms_hash_params_and_the_way_back(tiny: Path) -> None:
    plain = load_recipe(tiny)
    assert flatten(plain)["optimizer.weight_decay"] == 0.01
    assert recipe_hash(load_recipe(tiny, ["optimizer.weight_decay=1e-2"])) == recipe_hash(plain)
    changed = load_recipe(tiny, [f"optimizer.weight_decay={COSINE}"])
    params = flatten(changed)
    assert params["optimizer.weight_decay.name"] == "cosine"
    assert params["optimizer.weight_decay.end"] == 0.4
    assert params["optimizer.weight_decay.warmup_epochs"] == 0.0
    assert recipe_hash(changed) != recipe_hash(plain)
    again = parse_recipe(dump_resolved(changed), "resolved")
    assert (again, recipe_hash(again)) == (changed, recipe_hash(changed))
    assert changed != plain
    assert again.origins["optimizer.weight_decay"].distribution == "sslkit"


def test_overrides_reach_the_ends_and_the_fields(tiny: Path) -> None:
    found = load_recipe(
        tiny,
        [
            f"optimizer.weight_decay={COSINE}",
            "optimizer.weight_decay.end=0.2",
            "optimizer.weight_decay.update=epoch",
        ],
    ).optimizer.config.weight_decay
    assert (found.start, found.end) == (0.04, 0.2)
    assert found.schedule.config.update == "epoch"


@pytest.mark.parametrize(
    ("value", "where", "what"),
    [
        ("'0.1'", "optimizer.weight_decay", "expected a number or a schedule"),
        ("true", "optimizer.weight_decay", "expected a number or a schedule"),
        ("[0.1]", "optimizer.weight_decay", "expected a number or a schedule"),
        ("{start: 1, end: 2}", "optimizer.weight_decay", "expected a number or a schedule"),
        ("-1", "optimizer.weight_decay", "expected at least 0.0, got -1"),
        (".nan", "optimizer.weight_decay", "expected a finite number"),
        ("{name: cosine, start: -1, end: 0}", "optimizer.weight_decay.start", "at least 0"),
        ("{name: cosine, start: 1}", "optimizer.weight_decay.end", "is required"),
        ("{name: cosine, start: 1, end: x}", "optimizer.weight_decay.end", "expected a number"),
        ("{name: cosine, start: 1, end: .inf}", "optimizer.weight_decay.end", "finite number"),
        ("{name: cosin, start: 1, end: 0}", "optimizer.weight_decay", "cosine"),
        ("{name: cosine, start: 1, end: 0, fin: 2}", "optimizer.weight_decay.fin", "unknown field"),
        (
            "{name: cosine, start: 1, end: 0, warmup_epochs: -1}",
            "optimizer.weight_decay.warmup_epochs",
            "at least 0",
        ),
    ],
)
def test_what_is_refused_and_where(tiny: Path, value: str, where: str, what: str) -> None:
    with pytest.raises(RecipeError) as found:
        load_recipe(tiny, [f"optimizer.weight_decay={value}"])
    (line,) = str(found.value).splitlines()
    assert f"{where}: " in line or line.startswith(f"-o {where}=")
    assert what in line


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        # The misspelt field stands for the missing one, and is reported once.
        ("{name: cosine, start: 1, ende: 0}", [".ende: unknown field, did you mean 'end'?"]),
        (
            "{name: cosine, start: 1, ende: 0, fin: 2}",
            [".ende: unknown field, did you mean 'end'?", ".fin: unknown field"],
        ),
        ("{name: cosine, start: 1, fin: 2}", [".fin: unknown field", ".end: is required"]),
        ("{name: cosin, end: 0}", ["unknown schedule 'cosin', did you", ".start: is required"]),
        (
            "{name: cosine, start: x, end: 0, warmup_epochs: -1}",
            [".start: expected a number, got ", ".warmup_epochs: expected at least 0"],
        ),
    ],
)
def test_all_that_is_wrong_with_one_number_is_said(
    tiny: Path, value: str, lines: list[str]
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(tiny, [f"optimizer.weight_decay={value}"])
    found = str(error.value).splitlines()
    assert len(found) == len(lines), found
    for expected in lines:
        assert any(expected in line for line in found), found


def test_a_temperature_never_reaches_zero(tiny: Path) -> None:
    wrong = "method.loss.temperature={name: cosine, start: 0.5, end: 0}"
    with pytest.raises(RecipeError, match="expected above 0, got 0"):
        load_recipe(tiny, [wrong])


def test_ends_are_no_fields_of_the_learning_rate(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="unknown field"):
        load_recipe(tiny, ["schedule.start=0.1"])


def test_names_in_the_log(tiny: Path) -> None:
    found = scheduled_numbers(
        load_recipe(tiny, [f"optimizer.weight_decay={COSINE}", f"method.loss.temperature={COSINE}"])
    )
    assert list(found) == ["temperature", "weight_decay"]
    assert scheduled_numbers(load_recipe(tiny)) == {}


def test_the_schema_has_a_number_and_the_schedules_with_ends(tiny: Path) -> None:
    import jsonschema
    import yaml

    schema = json_schema(load_plugins().registry)
    json.dumps(schema)

    def errors(value: Any) -> list[Any]:
        tree = yaml.safe_load(tiny.read_text())
        tree["optimizer"] |= {"lr": 1e-3, "weight_decay": value}
        return list(jsonschema.Draft202012Validator(schema).iter_errors(tree))

    assert errors(0.1) == []
    assert errors({"name": "cosine", "start": 0.1, "end": 0.2}) == []
    for wrong in (-1, "0.1", {"name": "cosine", "start": 0.1}, {"name": "cosine", "begin": 1}):
        assert errors(wrong)
    assert any("multistep" in name for name in schema["$defs"] if "scheduled number" in name)


def test_numbers_are_checked_where_a_test_builds_a_config() -> None:
    for wrong in (1.5, "0.5", True, None, {"name": "cosine", "start": 0.5}):
        with pytest.raises(ValidationError):
            number(wrong)


def test_bounds_are_for_scheduled_numbers() -> None:
    with pytest.raises(PluginError, match="Bounds is for a ScheduledNumber, and stands at"):

        class Config(ComponentConfig):
            momentum: Annotated[float, Bounds(ge=0.0, le=1.0)] = 0.9
