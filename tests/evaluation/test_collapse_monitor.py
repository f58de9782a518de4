"""The policy of the `collapse` evaluator, in whole runs on scikit-learn's digits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslkit.api import (
    Apart,
    Batch,
    Evaluation,
    FeatureInput,
    MethodEmbeddings,
    Progress,
    StepOutput,
)
from sslkit.builtin.evaluators.branches import Branch, read_branches
from sslkit.builtin.evaluators.collapse import Collapse
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Display
from sslkit.engine.embedding_monitor import worth_watching
from sslkit.errors import TrainingError
from sslkit.evaluation.features import state_digest
from sslkit.nn.functional import normalize
from sslkit.runs.state import read_state
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start
from tests.evaluation.features import Pairs, unlabelled

RECIPE = """\
name: digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: simclr
  head: {name: mlp, hidden_dim: 64, out_dim: 32, output_norm: none}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
train: {epochs: 5, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""


class Messages(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


def attract(
    self: SimCLR, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
) -> StepOutput:
    """A Siamese network without stop-gradient, predictor or negatives: views of an image are
    pulled together, and nothing keeps images apart."""
    first, second = (normalize(view) for view in embeddings["z"].unbind(dim=1))
    return StepOutput(-(first * second).sum(dim=1).mean())


def run(recipe: Path, *overrides: str, display: Display | None = None) -> RunResult:
    return start(recipe, overrides, display=display or Messages())


def only_run(recipe: Path) -> Path:
    (path,) = (recipe.parent / "runs").iterdir()
    return path


def logged(run_dir: Path, key: str) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found = (json.loads(line).get("metrics", {}) for line in lines)
    return [metrics[key] for metrics in found if key in metrics]


def test_a_collapsing_run_is_stopped(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCLR, "objective", attract)
    with pytest.raises(TrainingError) as stopped:
        run(recipe)
    folder, message = only_run(recipe), str(stopped.value)
    found = re.match(r"epoch ([123]): stopped by collapse: the embeddings of different", message)
    assert found, message
    assert "\n" not in message
    checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
    assert str(checkpoint) in message
    assert f"sslkit run --resume {folder}" in message
    state = read_state(folder)
    assert state["step"] == int(found[1]) * state["steps_per_epoch"]
    assert len(logged(folder, "collapse/embedding_spread")) == int(found[1])
    assert not (folder / "results.json").exists()

    # A resume goes on from there and is stopped at its next evaluation.
    with pytest.raises(TrainingError, match=f"epoch {int(found[1]) + 1}: stopped by collapse"):
        start(None, [], resume=str(folder), display=Messages())


@pytest.mark.slow  # 6 seconds
def test_warn_goes_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCLR, "objective", attract)
    display = Messages()
    warned = run(recipe, "evaluate.0.policy=warn", "train.epochs=3", display=display)
    assert warned.status == "finished"
    text = "\n".join(display.lines)
    assert "warning: epoch 2: collapse: the embeddings" in text
    assert "warning: the last epoch: collapse: the embeddings" in text
    assert "- collapse: warning: " in (warned.run_dir / "report.md").read_text()
    results = json.loads((warned.run_dir / "results.json").read_text())
    assert results["trained"]["warnings"]["collapse"].startswith("the embeddings")


def test_a_healthy_run_is_not_stopped(recipe: Path) -> None:
    watched = run(recipe, "train.epochs=3")
    assert watched.status == "finished"
    spreads = logged(watched.run_dir, "collapse/embedding_spread")
    assert len(spreads) == 3
    assert min(spreads) > 0.6


@pytest.mark.slow  # 6 seconds
def test_watching_changes_no_bit_of_the_training(tiny: Path) -> None:
    block = "{name: collapse, every_epochs: 1, num_pairs: 8, policy: %s}"
    overrides = [f"evaluate=[{block % policy}]" for policy in ("stop", "off")] + ["evaluate=[]"]
    watched, measured, alone = (run(tiny, override).run_dir for override in overrides)
    states = [read_state(path)["method"] for path in (watched, measured, alone)]
    for name, value in states[2].items():
        assert torch.equal(states[0][name], value), name
        assert torch.equal(states[1][name], value), name
    key = "collapse/embedding_spread"
    assert logged(watched, key) == logged(measured, key)
    assert len(logged(watched, key)) == 3


# --- Thresholds -----------------------------------------------------------------------------------


def test_policies_at_a_collapse() -> None:
    bank = unlabelled(torch.empty(0, 8), torch.ones(50, 8))
    given = FeatureInput("trained", bank, 0, views=Pairs(bank.test, bank.test))
    found = {
        policy: Collapse(Collapse.Config(policy=policy)).evaluate(given)
        for policy in ("warn", "stop", "off")
    }
    assert "min_std" in (found["warn"].warning or "")
    assert found["warn"].stop is None
    assert "min_std" in (found["stop"].stop or "")
    assert found["stop"].warning is None
    assert found["off"].warning is found["off"].stop is None
    assert found["off"].metrics == found["stop"].metrics


class Known(MethodEmbeddings):
    """Embeddings that are known."""

    def __init__(
        self,
        now: Mapping[str, Tensor],
        untrained: Mapping[str, Tensor],
        must_not_collapse: Mapping[str, Apart] | None,
    ) -> None:
        self._found = now, untrained
        self._must_not_collapse = must_not_collapse

    @property
    def must_not_collapse(self) -> Mapping[str, Apart] | None:
        return self._must_not_collapse

    def now(self) -> Mapping[str, Tensor]:
        return self._found[0]

    def untrained(self) -> Mapping[str, Tensor]:
        return self._found[1]


def evaluate(
    features: Tensor,
    now: Mapping[str, Tensor] | None = None,
    untrained: Mapping[str, Tensor] | None = None,
    must_not_collapse: Mapping[str, Apart] | None = None,
    **fields: object,
) -> Evaluation:
    given = FeatureInput(
        "trained",
        unlabelled(features[:0], features),
        0,
        views=Pairs(features, features),
        embeddings=Known(now or {}, untrained or {}, must_not_collapse),
    )
    found = Collapse(Collapse.Config(policy="stop", **fields)).evaluate(given)
    assert found.warning is None
    return found


def judge(
    features: Tensor,
    now: Mapping[str, Tensor] | None = None,
    untrained: Mapping[str, Tensor] | None = None,
    **fields: object,
) -> str | None:
    return evaluate(features, now, untrained, **fields).stop


def spread_out(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def around(mean: float, *shape: int) -> Tensor:
    """Rows around one point, with a relative deviation of about 1 / mean."""
    return spread_out(*shape) + mean


def test_features_alone_are_judged_without_embeddings() -> None:
    assert judge(spread_out(300, 16)) is None
    assert judge(around(30.0, 300, 16)) is None  # 3 %: as in healthy networks' first epochs
    assert "min_std" in (judge(around(1000.0, 300, 16)) or "")
    line = spread_out(300, 1) * spread_out(1, 16)
    assert "min_rankme" in (judge(line) or "")
    assert judge(line, min_rankme=0.5) is None
    assert judge(around(1000.0, 300, 16), min_std=0.0, min_rankme=0.0) is None


def test_embeddings_are_judged_against_the_untrained_ones() -> None:
    healthy, features = {"z": spread_out(64, 2, 16)}, spread_out(300, 16)
    assert judge(features, healthy, healthy) is None
    near = {"z": around(10.0, 64, 2, 16)}
    assert "was 1 before training" in (judge(features, near, healthy) or "")
    assert judge(features, near, near) is None  # a network without BatchNorm begins like this
    assert judge(features, near, healthy, min_embedding_spread=0.05) is None


def test_embeddings_of_one_image_are_left_out_and_the_features_measured() -> None:
    one = {"features": spread_out(1, 2, 16), "target": spread_out(1, 2, 8)}
    found = evaluate(spread_out(300, 16), one, one, {"target": "prototypes"})
    assert found.skipped is None
    assert found.metrics["collapse/rankme"] > 10
    assert not any("embedding_spread" in name for name in found.metrics)
    (note,) = found.notes
    assert "they are of 1 image" in note
    assert "raise train.batch_size" in note
    line = spread_out(300, 1) * spread_out(1, 16)
    assert "min_rankme" in (evaluate(line, one, one, {"target": "prototypes"}).stop or "")
    assert not evaluate(spread_out(300, 16), {"z": spread_out(2, 8)}).notes


def least_spread(
    embeddings: Mapping[str, Tensor], named: Mapping[str, Apart] | None = None
) -> float:
    return min(min(branch.spread) for branch in read_branches(embeddings, named)[1])


def branch(name: str, entry: Tensor, kind: Apart | None = None) -> Branch:
    return read_branches({name: entry}, {name: kind} if kind else None)[1][0]


def test_spread_of_embeddings() -> None:
    assert least_spread({"z": spread_out(2000, 32)}) == pytest.approx(1.0, rel=0.02)
    assert least_spread({"z": torch.ones(64, 2, 32)}) == pytest.approx(0.0, abs=1e-6)
    # Positions that differ from each other and not between images are collapsed too.
    positions = spread_out(1, 4, 32).expand(64, 4, 32)
    assert least_spread({"z": positions}) == pytest.approx(0.0, abs=1e-6)
    wide, narrow = spread_out(64, 32), torch.ones(64, 32)
    assert least_spread({"features": wide, "z": narrow}) == pytest.approx(0.0, abs=1e-6)
    assert least_spread({"features": wide}) > 0.9
    assert least_spread({"prediction": narrow, "target": wide}) == pytest.approx(0.0, abs=1e-6)
    assert least_spread({"prediction": narrow, "target": wide}, {"target": "spread"}) > 0.9
    assert read_branches({"mask": torch.ones(64, 4, dtype=torch.bool)}) == ([], [])
    assert read_branches({"weight": torch.ones(64)}) == ([], [])
    with pytest.raises(ValueError, match="names 'z', and embed gives target"):
        read_branches({"target": wide}, {"z": "spread"})


# --- Two branches ---------------------------------------------------------------------------------


def assigned(prototypes: Tensor, width: int = 512) -> Tensor:
    return torch.nn.functional.one_hot(prototypes, width).float()


def test_a_healthy_branch_hides_no_collapsed_one() -> None:
    """The case of the review: 5 of 512 prototypes in use, beside embeddings with a spread of 1."""
    healthy = spread_out(256, 2, 64)
    few, many = (assigned(torch.arange(512).view(256, 2) % number) for number in (5, 512))
    features, before = spread_out(300, 16), {"z": healthy, "prototypes": many}
    assert judge(features, before, before) is None

    found = evaluate(features, {"z": healthy, "prototypes": few}, before)
    assert found.stop is not None
    assert "few of 512 prototypes are in use ('prototypes', view 0): 0.016" in found.stop
    assert found.metrics["collapse/embedding_spread/z"] > 0.95
    assert found.metrics["collapse/prototypes/prototypes"] == pytest.approx(4 / 255, rel=0.01)
    assert "collapse/prototypes/z" not in found.metrics
    # The least of those that must not collapse, which tables show.
    assert found.metrics["collapse/prototypes"] == pytest.approx(4 / 255, rel=0.01)
    assert "collapse/prototypes" not in evaluate(features, {"z": healthy}, before).metrics

    found = evaluate(features, {"z": torch.ones(256, 2, 64), "prototypes": many}, before)
    assert found.stop is not None
    assert "nearly equal ('z', view 0)" in found.stop
    assert found.metrics["collapse/embedding_spread"] == pytest.approx(0.0, abs=1e-6)


def test_one_view_hides_no_other() -> None:
    healthy, features = spread_out(64, 2, 32), spread_out(300, 16)
    one = healthy.clone()
    one[:, 1] = 1.0
    found = evaluate(features, {"z": one}, {"z": healthy})
    assert "nearly equal ('z', view 1)" in (found.stop or "")
    assert found.metrics["collapse/embedding_spread/z/0"] > 0.9
    assert found.metrics["collapse/embedding_spread/z/1"] == pytest.approx(0.0, abs=1e-6)
    assert (
        found.metrics["collapse/embedding_spread/z"]
        == (found.metrics["collapse/embedding_spread/z/1"])
    )


def test_the_method_names_what_must_not_collapse() -> None:
    features, narrow = spread_out(300, 16), torch.ones(64, 32)
    now = before = {"prediction": spread_out(64, 32), "target": spread_out(64, 32)}
    now = {**now, "prediction": narrow}
    assert "'prediction'" in (evaluate(features, now, before).stop or "")
    found = evaluate(features, now, before, {"target": "spread"})
    assert found.stop is None
    assert found.metrics["collapse/embedding_spread"] > 0.9
    assert found.metrics["collapse/embedding_spread/prediction"] < 1e-6  # reported all the same


def test_every_way_to_lose_prototypes() -> None:
    """Shares by hand, of probabilities and of other scores."""
    everyone = torch.arange(64) % 16
    assert branch("q", assigned(everyone, 16)).in_use == [pytest.approx(1.0)]
    assert branch("q", assigned(everyone * 0, 16)).in_use == [0.0]
    assert branch("q", assigned(everyone % 2, 16)).in_use == [pytest.approx(1 / 15)]
    own = branch("q", assigned(torch.arange(64)))  # fewer images than prototypes
    assert own.in_use == [pytest.approx(1.0)]
    assert own.spread[0] > 0.95
    uneven = torch.tensor([0] * 48 + [1] * 16)  # entropy of (3/4, 1/4): effectively 1.755
    assert branch("q", assigned(uneven, 16)).in_use[0] == pytest.approx(0.7548 / 15, rel=1e-3)

    logits = 3.0 * assigned(everyone % 5) + 0.1 * spread_out(64, 512)
    assert branch("scores", logits).kind == "spread"
    scores = branch("scores", logits, "prototypes")
    assert scores.in_use == [pytest.approx(4 / 63, rel=0.01)]

    uniform = torch.full((64, 16), 1 / 16)  # the mean uses all; no image differs from another
    assert branch("q", uniform).in_use == [pytest.approx(1.0)]
    assert branch("q", uniform).spread == [pytest.approx(0.0, abs=1e-6)]
    found = evaluate(spread_out(300, 16), {"q": uniform}, {"q": assigned(everyone, 16)})
    assert "nearly equal ('q')" in (found.stop or "")


def test_the_figure_shows_the_part_of_each_prototype() -> None:
    """Of two views: three quarters of one and a half of the other go to prototype 0."""
    first = assigned(torch.tensor([0] * 48 + [1] * 16), 4)
    second = assigned(torch.tensor([0] * 32 + [2] * 32), 4)
    entry = torch.stack([first, second], dim=1)
    expected = [0.625, 0.125, 0.25, 0.0]
    assert branch("q", entry).shares == pytest.approx(expected)
    found = evaluate(spread_out(300, 16), {"q": entry, "z": spread_out(64, 8)}).figures
    lines = found["prototypes"].axes[0].lines
    in_effect = "q: 2.46 of 4 in effect"  # the exponential of 5/8 ln 8/5 + 1/8 ln 8 + 1/4 ln 4
    assert [line.get_label() for line in lines] == [in_effect, "equal parts"]
    assert list(lines[0].get_ydata()) == pytest.approx([2.5, 1.0, 0.5, 0.0])
    assert set(evaluate(spread_out(300, 16), {"z": spread_out(64, 8)}).figures) == {"spectrum"}


def test_codes_of_patches_are_shown_as_their_parts_of_each_image() -> None:
    """A codebook: each image has two codes, half its patches each."""
    codes = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(64, 4)
    found = evaluate(spread_out(300, 16), {"codes": codes}, must_not_collapse={})
    lines = found.figures["prototypes"].axes[0].lines
    assert lines[0].get_label() == "codes: 2 of 4 in effect"
    assert list(lines[0].get_ydata()) == pytest.approx([2.0, 2.0, 0.0, 0.0])


def test_rows_of_patches_that_nothing_judges_are_not_kept() -> None:
    """iBOT's and DINOv2's scores of patches on all ranks would take a hundred gigabytes."""
    sizes = {"features": (4, 3), "views": (4, 2, 8, 3), "patches": (4, 2, 9, 3), "z": (4, 17, 3)}
    found = {name: torch.zeros(size) for name, size in sizes.items()}
    assert list(worth_watching(found, {"z": "spread"})) == ["features", "views", "z"]
    assert worth_watching(found, None) == found  # all are judged


def test_names_and_many_positions_are_kept_within_bounds() -> None:
    found = evaluate(
        spread_out(300, 16), {"z:1": spread_out(8, 40, 4)}, {"z:1": spread_out(8, 40, 4)}
    )
    names = {name for name in found.metrics if "embedding_spread" in name}
    assert names == {"collapse/embedding_spread", "collapse/embedding_spread/z_1"}


@pytest.mark.slow  # 2 seconds
def test_a_run_with_a_collapsed_branch_is_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = SimCLR.embed

    def with_prototypes(self: SimCLR, batch: Batch) -> dict[str, Tensor]:
        found = embed(self, batch)
        return {**found, "assigned": assigned(batch.indices % 5)}

    monkeypatch.setattr(SimCLR, "embed", with_prototypes)
    with pytest.raises(TrainingError, match=r"epoch 1: stopped by collapse: few of 512 prototypes"):
        run(recipe)
    folder = only_run(recipe)
    assert logged(folder, "collapse/embedding_spread/z")[0] > 0.6
    assert logged(folder, "collapse/embedding_spread/z/1")[0] > 0.6
    assert logged(folder, "collapse/prototypes/assigned")[0] < 0.05


@pytest.mark.parametrize("micro_batch", [None, 32])
def test_looking_leaves_the_method_as_it_was(recipe: Path, micro_batch: int | None) -> None:
    """And takes no more images at a time than training does."""
    from sslkit.experiment.build import build
    from sslkit.experiment.check import check
    from sslkit.experiment.resolve import resolve
    from sslkit.parallel.world import OneProcess
    from sslkit.recipe import load_recipe
    from sslkit.runs.folder import RunFolder

    size = "null" if micro_batch is None else micro_batch
    loaded = resolve(load_recipe(recipe, [f"train.micro_batch_size={size}"]))
    facts = check(loaded)
    with RunFolder.create(loaded.runs_dir, loaded.name) as folder:
        experiment = build(loaded, facts, folder, Messages(), OneProcess())
        method = experiment.method.train()
        method.head.eval()
        modes, digest = [module.training for module in method.modules()], state_digest(method)
        generator = torch.get_rng_state()
        subject = embeddings_seen_by_protocols(experiment)
        assert subject["z"].shape == (micro_batch or 128, 2, 32)
        assert not subject["z"].requires_grad
        assert [module.training for module in method.modules()] == modes
        assert state_digest(method) == digest
        assert torch.equal(torch.get_rng_state(), generator)
        # Before the first step the method is the untrained one.
        assert torch.equal(
            subject["z"], embeddings_seen_by_protocols(experiment, trained=False)["z"]
        )


def embeddings_seen_by_protocols(experiment: object, trained: bool = True) -> Mapping[str, Tensor]:
    embeddings = experiment.suite._own._embeddings
    return embeddings.now() if trained else embeddings.untrained()
