"""`train.parallel=fsdp`: blocks of networks in parts on the ranks, and the same numbers."""

from __future__ import annotations

from collections import Counter
from functools import cache, partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import sslkit
from sslkit.api import Callback, ComponentConfig, Slot
from sslkit.engine.display import Silent
from sslkit.engine.training import Training
from sslkit.errors import PluginError, RecipeError, SSLKitError
from sslkit.experiment import networks
from sslkit.experiment.build import build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve, resolve_compile
from sslkit.nn.mlp import mlp
from sslkit.parallel.imagined import ImaginedRank
from sslkit.parallel.sharding import blocks, gathered, is_sharded, local_part, scattered
from sslkit.parallel.world import World
from sslkit.recipe import load_recipe
from sslkit.runs.checkpoint import copy_on_host
from sslkit.runs.folder import RunFolder, held_by_first
from sslkit.workflows.plan_ranks import describe_shared
from tests.ranks.curves import LAYER_NORM, begin, cases, curve, doubled, make, slot
from tests.ranks.forked import on_ranks
from tests.ranks.networks import BlockNet
from tests.ranks.sketches import SKETCHES
from tests.ranks.test_elastic import (
    Stop,
    assert_close,
    assert_same_bits,
    final_state,
    logged,
    results,
    run_on,
)
from tests.ranks.test_messages import second_step

SHARDED = "train.parallel=fsdp"

# --- The same curve -------------------------------------------------------------------------------

PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "teacher": ("byol-layer-parts", ()),
    "queue and batch statistics": ("moco_v2-batch-parts", LAYER_NORM),  # statistics: of heads
    "weights of the objective": ("prototypes-layer-whole", ("train.max_grad_norm=0.05",)),
    "norms of tensors": ("simclr-layer-parts", ("optimizer={name: lars, lr: 0.2}",)),
    "momentum": (
        "simclr-layer-whole",
        ("optimizer={name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.01}",),
    ),
    "adam": ("simclr-layer-whole", ("optimizer={name: adam, lr: 1e-3, eps: 1e-4}",)),
    "blocks that are recomputed": ("simclr-layer-whole", ("backbone.recompute=true",)),
    "frozen": ("moco_v3-layer-whole", ()),
    "divided objective": ("dividedprototypes-layer-parts", ()),
    "batch statistics in blocks": ("byol-batch-parts", ()),
    "masks": ("masked-layer-parts", ()),
}
# Each takes ten seconds of CPU time.
QUICK = [
    name if name == "teacher" else pytest.param(name, marks=pytest.mark.slow) for name in PARTS
]


def doubled_method(*given: Any, **options: bool) -> Any:
    return networks.initial_method(*given, **options).double()


def whole_curve(
    world: World, folder: Path, case: str, more: tuple[str, ...], steps: int
) -> dict[str, Any]:
    """The curve of a case in float64, with whole tensors. Without a backbone of its own a case has
    one of blocks with BatchNorm."""
    method, overrides = next((m, o) for name, m, o in cases() if name == case)
    with (
        held_by_first(world, lambda: begin(folder)) as run,
        patch("sslkit.experiment.build.initial_method", doubled_method),
    ):
        slots = {} if "layer" in case or more else {"backbone": slot(BlockNet)}
        t = make(run, method, [*overrides, *more, SHARDED], world, slots=slots)
        found = gathered(curve(t, steps), keep=True)
        sharded = [p for p in t.method.parameters() if is_sharded(p)]
        moments = gathered(t.optimization.state_dict(), keep=True)
        kept = sum(local_part(p).numel() for p in sharded), sum(p.numel() for p in sharded)
        return {**found, "moments": moments, "kept": kept}


@cache
def trained(case: str, more: tuple[str, ...], size: int, steps: int) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        path = Path(folder)
        return results(on_ranks(lambda world: whole_curve(world, path, case, more, steps), size))


@pytest.mark.parametrize("name", QUICK)
def test_weights_in_parts_train_as_one_process_does(name: str) -> None:
    case, more = PARTS[name]
    (alone,) = trained(case, more, 1, 6)
    assert alone["losses"].std() > 1e-4  # it trains
    assert alone["kept"] == (0, 0)
    for found in trained(case, more, 2, 6):
        here, everywhere = found["kept"]
        assert 0.45 * everywhere < here < 0.55 * everywhere
        assert everywhere > 0
        assert ((found["losses"] - alone["losses"]) / alone["losses"]).abs().max() < 1e-10
        assert_close(found["gradient"], alone["gradient"], 1e-10)
        assert_close(found["state"], alone["state"], 1e-9)
        assert_close(found["moments"]["state"], alone["moments"]["state"], 1e-9)
        own, others = (
            [group["params"] for group in each["moments"]["param_groups"]]
            for each in (found, alone)
        )
        assert own == others


@pytest.mark.slow  # four processes, two of which wait for the others on a machine of two cores
def test_four_processes_keep_a_quarter_each() -> None:
    case, more = PARTS["teacher"]
    (alone,) = trained(case, more, 1, 6)
    for found in trained(case, more, 4, 6):
        here, everywhere = found["kept"]
        assert 0.2 * everywhere < here < 0.3 * everywhere
        assert_close(found["state"], alone["state"], 1e-9)


# --- Whole runs -----------------------------------------------------------------------------------

MOMENTUM = (
    "augmentation.size=32",
    "backbone={name: timm, model: test_vit, patch_size: 8}",
    "method={name: moco_v2, queue_size: 48, head: {name: mlp, hidden_dim: 16, out_dim: 8, "
    "hidden_norm: none, output_norm: none}, bn_groups: 1}",
    # The eps is above rounding errors, of which AdamW makes steps where a gradient is zero.
    "optimizer={name: adamw, lr: 1e-3, weight_decay: 0.01, eps: 1e-4}",
    "train.epochs=2",
    "train.micro_batch_size=8",
)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that was never stopped."""
    return tiny_run(tmp_path_factory.mktemp("sharded"), 2, SHARDED)


def tiny_run(folder: Path, size: int, *overrides: str) -> Path:
    from tests.conftest import TINY

    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {folder / 'runs'}\n")
    return run_on(size, recipe, *MOMENTUM, *overrides).run_dir


@pytest.mark.slow  # a run more, on one process
def test_a_run_in_parts_is_that_of_one_process(sharded_run: Path, tmp_path: Path) -> None:
    alone = tiny_run(tmp_path, 1)
    assert_close(final_state(sharded_run), final_state(alone), 1e-4)  # float32, 12 steps
    assert_same_encoder(sharded_run, alone)
    found, expected = dict(logged(sharded_run)), dict(logged(alone))
    assert found.keys() == expected.keys()
    last = max(expected)
    assert found[last]["eval/knn/top1"] == pytest.approx(expected[last]["eval/knn/top1"], abs=0.05)
    baseline = "eval/untrained/knn/top1"
    assert found[last].get(baseline) == expected[last].get(baseline)


@pytest.mark.slow  # two runs more on two processes
def test_saved_on_two_and_resumed_on_two_has_the_same_bits(
    sharded_run: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run_until(4, tiny, monkeypatch)
    finished = run_on(2, tiny, resume=stopped).run_dir
    assert_same_bits(final_state(finished), final_state(sharded_run))
    assert logged(finished) == logged(sharded_run)


@pytest.mark.slow  # runs on two processes and on one, a quarter of a minute
def test_saved_on_two_and_resumed_on_one_exports_the_same_encoder(
    sharded_run: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run_until(4, tiny, monkeypatch)
    finished = run_on(1, tiny, resume=stopped).run_dir
    assert_same_encoder(finished, sharded_run)


@pytest.mark.slow  # two runs more on two processes
def test_in_bf16_a_run_in_parts_is_that_with_whole_weights(tmp_path: Path) -> None:
    found = []
    for parallel in ("fsdp", "ddp"):
        (tmp_path / parallel).mkdir()
        short = ("train.precision=bf16", "train.max_steps=4", "evaluate=[]")
        run = tiny_run(tmp_path / parallel, 2, f"train.parallel={parallel}", *short)
        found.append([metrics["train/loss"] for _, metrics in logged(run)])
    in_parts, whole = found
    assert len(whole) == 2
    assert in_parts == pytest.approx(whole, rel=1e-3)  # bf16 has 3 digits; both pass alike


def run_until(step: int, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in parts that is asked to stop after a step."""
    with monkeypatch.context() as patched:
        stop = Stop(patched, step)
        stopped = run_on(2, recipe, *MOMENTUM, SHARDED, *stop.overrides)
    assert stopped.status == "stopped"
    assert final_state(stopped.run_dir)["step"] == step
    return stopped.run_dir


def assert_same_encoder(one: Path, other: Path) -> None:
    found, expected = (sslkit.load_encoder(run).state_dict() for run in (one, other))
    assert_close(found, expected, 1e-6)


def test_states_keep_what_torch_notes_beside_them() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    versions = state._metadata  # type: ignore[attr-defined]
    assert versions[""] == {"version": 2}
    assert gathered(state, keep=True) is state  # nothing lies in parts
    assert scattered(state, state) is state
    copied = copy_on_host({"method": state})["method"]
    assert copied._metadata == versions
    assert copied["weight"] is not state["weight"]


# --- What lies in parts ---------------------------------------------------------------------------


def named_blocks(network: nn.Module) -> list[str]:
    names = {module: name for name, module in network.named_modules()}
    return [names[block] for block in blocks(network)]


def test_the_blocks_of_a_transformer_lie_in_parts() -> None:
    import timm

    vit = timm.create_model("test_vit", num_classes=0)
    assert named_blocks(vit) == [f"blocks.{n}" for n in range(len(vit.blocks))]


def test_networks_of_several_stages_lie_in_blocks_not_stages() -> None:
    import timm

    with torch.device("meta"):
        convnext, resnet = (timm.create_model(name) for name in ("convnext_atto", "resnet18"))
    assert named_blocks(convnext)[-1] == "stages.3.blocks.1"
    assert named_blocks(resnet) == [f"layer{n}.{k}" for n in range(1, 5) for k in range(2)]


def test_a_head_is_no_list_of_blocks() -> None:
    head, lists = mlp(4, 4, 4, num_layers=3), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    assert blocks(nn.ModuleDict({"head": head, "lists": lists})) == []


def test_blocks_of_torch_are_blocks() -> None:
    layer = nn.TransformerEncoderLayer(4, 1, dim_feedforward=4)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert named_blocks(encoder) == ["layers.0", "layers.1"]


# --- What is sent ---------------------------------------------------------------------------------


def sent(world: World, folder: Path, case: str) -> Counter[tuple[str, int]]:
    """Operation, numbers of one rank -> how many gloo was given in the second step."""
    with held_by_first(world, lambda: begin(folder)) as run:
        profile = second_step(sharded_training(run, case, world))
    found = Counter[tuple[str, int]]()
    for event in profile.events():
        if event.name.startswith("gloo:"):
            found[event.name.removeprefix("gloo:"), prod(event.input_shapes[0])] += 1
    return found


def sharded_training(run: RunFolder, case: str, world: World) -> Training:
    method, overrides = next((m, o) for name, m, o in cases() if name == case)
    with patch("sslkit.experiment.build.initial_method", doubled_method):
        t = make(run, method, [*overrides, SHARDED], world)
    augment = t.loader.epoch
    t.loader.epoch = lambda *given: map(doubled, augment(*given))  # type: ignore[method-assign]
    return t


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize(
    "case",
    ["simclr-layer-whole", "byol-layer-parts"],
)
def test_the_plan_counts_what_weights_in_parts_send(case: str, tmp_path: Path) -> None:
    real, imagined = tmp_path / "real", tmp_path / "imagined"
    real.mkdir(), imagined.mkdir()
    world, (found, _) = ImaginedRank(2), results(on_ranks(lambda w: sent(w, real, case)))
    with held_by_first(world, lambda: begin(imagined)) as run:
        t = sharded_training(run, case, world)
        plan = describe_shared(t, world, next(iter(t.loader.epoch(0))), sharded=True)
    noted = Counter((m.about, m.operation, m.nbytes // 8) for m in world.messages)
    ((_, operation, rows), gathered_times), *others = (
        pair for pair in noted.items() if pair[0][0] == "weights"
    )
    assert (operation, others) == ("all_gather", [])
    # After a pass whose activations were dropped torch looks ahead to a block too many.
    more = 1 if case.endswith("parts") else 0
    assert found["all_gather", rows] == gathered_times + more
    # gloo adds up all of it and takes its part.
    divided = noted["gradients", "reduce_scatter", 2 * rows]
    assert found["all_reduce", 2 * rows] == divided > 0
    whole = next(m for m in plan.messages if m["operation"] == "all_reduce")
    assert found["all_reduce", whole_numbers(t)] == 1
    assert whole["bytes"] == 8 * (whole_numbers(t) + whole_parameters(t))
    assert plan.sharded_parameters == sum(
        p.numel() for block in blocks(t.method) for p in block.parameters()
    )


def whole_numbers(t: Training) -> int:
    return sum(p.numel() for p in whole_trained(t))


def whole_parameters(t: Training) -> int:
    return len(whole_trained(t))


def whole_trained(t: Training) -> list[nn.Parameter]:
    inside = {p for block in blocks(t.method) for p in block.parameters()}
    return [p for p in t.method.parameters() if p.requires_grad and p not in inside]


# --- What does not go with it ---------------------------------------------------------------------


class Norms(Callback):
    """Reads gradients."""

    def on_gradients(self, run: Any, gradients: Any, progress: Any) -> dict[str, float]:
        return {"norm": float(gradients["head.weight"].norm())}


class Weights(Callback):
    """Reads weights."""

    def on_start(self, run: Any, method: Any) -> None:
        list(method.parameters())


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Norms, "callbacks.0: norms sees gradients"),
        (Weights, "asks for 'parameters' of the method"),
    ],
)
def test_callbacks_that_need_what_is_elsewhere_are_refused(
    tmp_path: Path, callback: type[Callback], message: str
) -> None:
    def work(world: World) -> None:
        slot = Slot(callback, callback.__name__.lower(), ComponentConfig(), "tests", "1")
        with held_by_first(world, lambda: begin(tmp_path)) as run:
            recipe = resolve(load_recipe(tmp_path / "ranks.yaml", [*LAYER_NORM, SHARDED]))
            recipe = recipe.model_copy(update={"callbacks": (slot,)})
            t = build(recipe, check(recipe), run, Silent(), world).training
            t.output.callbacks.on_start(t)
            world.barrier()

    first = on_ranks(work)[0]
    assert isinstance(first, SSLKitError)
    assert message in str(first)
    assert "train.parallel=ddp" in str(first)


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    """All of it would be whole on every process, without a word."""

    def work(world: World) -> None:
        with held_by_first(world, lambda: begin(tmp_path)) as run:
            make(run, "simclr", [SHARDED], world)

    first, _ = on_ranks(work)
    assert isinstance(first, RecipeError)
    assert "SimCLR has none in its networks; set train.parallel=ddp" in str(first)


def test_fp16_is_refused(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="fsdp does not go with precision fp16"):
        load_recipe(tiny, [SHARDED, "train.precision=fp16"])


@pytest.mark.slow  # 2 seconds
def test_an_optimiser_that_cannot_is_refused(tmp_path: Path) -> None:
    def work(world: World) -> None:
        fused = partial(torch.optim.SGD, lr=0.1, fused=True)
        with (
            held_by_first(world, lambda: begin(tmp_path)) as run,
            patch("sslkit.builtin.optimizers.AdamW.create", lambda self, groups: fused(groups)),
        ):
            curve(sharded_training(run, "simclr-layer-whole", world), 1)

    first, _ = on_ranks(work)
    assert isinstance(first, PluginError)
    assert "SGD does not compute on weights in parts" in str(first)
    assert "\n" not in str(first)


class Fickle(SKETCHES["centred"]):  # type: ignore[misc]
    """Freezes a part of itself on the way."""

    def after_step(self, progress: Any, carry: Any) -> None:
        super().after_step(progress, carry)
        next(self.backbone.parameters()).requires_grad_(False)


@pytest.mark.slow  # 2 seconds
def test_a_method_that_trains_other_parameters_later_is_refused(tmp_path: Path) -> None:
    def work(world: World) -> None:
        with (
            held_by_first(world, lambda: begin(tmp_path)) as run,
            patch.dict(SKETCHES, {"centred": Fickle}),
            patch("sslkit.experiment.build.initial_method", doubled_method),
        ):
            curve(make(run, "centred", [*LAYER_NORM, SHARDED], world), 2)

    first, second = on_ranks(work)
    assert isinstance(first, PluginError)
    for end in (first, second):
        assert "Fickle trains other parameters than in its first step" in str(end)


@pytest.mark.slow  # the compiler takes a minute of CPU time on each of two processes
@pytest.mark.timeout(600)
def test_compiled_blocks_train_alike() -> None:
    """Compiled code rounds some functions to float32; this was 2e-8 of the first loss."""
    case, more = "simclr-layer-whole", ("train.compile=true",)
    if not resolve_compile("if_available"):
        pytest.skip("no C++ compiler is installed")
    (alone,) = trained(case, (), 1, 3)
    for found in trained(case, more, 2, 3):
        assert_close(found["losses"], alone["losses"], 1e-6)
        assert_close(found["state"], alone["state"], 1e-5)
