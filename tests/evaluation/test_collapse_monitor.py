"""The policy of the `collapse` protocol, in whole runs on scikit-learn's digits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslkit.builtin.protocols.collapse import Collapse, embedding_spread
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Display
from sslkit.errors import TrainingError
from sslkit.evaluation.features import state_digest
from sslkit.interfaces import Batch, FeatureBank, StepOutput, Subject
from sslkit.nn.functional import normalize
from sslkit.runs import RunResult, start
from sslkit.saved_runs import read_state

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


def attract(self: SimCLR, embeddings: Mapping[str, Tensor], batch: Batch) -> StepOutput:
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
    bank = FeatureBank(torch.empty(0, 8), torch.ones(50, 8))
    found = {
        policy: Collapse(Collapse.Config(policy=policy)).evaluate(Subject("trained", bank, 0))
        for policy in ("warn", "stop", "off")
    }
    assert "min_std" in (found["warn"].warning or "")
    assert found["warn"].stop is None
    assert "min_std" in (found["stop"].stop or "")
    assert found["stop"].warning is None
    assert found["off"].warning is found["off"].stop is None
    assert found["off"].metrics == found["stop"].metrics


def judge(
    features: Tensor,
    now: Mapping[str, Tensor] | None = None,
    untrained: Mapping[str, Tensor] | None = None,
    **fields: object,
) -> str | None:
    bank = FeatureBank(features[:0], features)
    subject = Subject(
        "trained",
        bank,
        0,
        embeddings=None if now is None else lambda: now,
        untrained_embeddings=None if untrained is None else lambda: untrained,
    )
    found = Collapse(Collapse.Config(policy="stop", **fields)).evaluate(subject)
    assert found.warning is None
    return found.stop


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


def test_spread_of_embeddings() -> None:
    assert embedding_spread({"z": spread_out(2000, 32)}) == pytest.approx(1.0, rel=0.02)
    assert embedding_spread({"z": torch.ones(64, 2, 32)}) == pytest.approx(0.0, abs=1e-6)
    # Positions that differ from each other and not between images are collapsed too.
    assert embedding_spread({"z": spread_out(1, 4, 32).expand(64, 4, 32)}) == pytest.approx(
        0.0, abs=1e-6
    )
    wide, narrow = spread_out(64, 32), torch.ones(64, 32)
    assert embedding_spread({"features": wide, "z": narrow}) == pytest.approx(0.0, abs=1e-6)
    assert embedding_spread({"features": wide}) > 0.9
    assert embedding_spread({"prediction": narrow, "target": wide}) > 0.9
    assert embedding_spread({"mask": torch.ones(64, 4, dtype=torch.bool)}) is None
    assert embedding_spread({"weight": torch.ones(64)}) is None


@pytest.mark.parametrize("micro_batch", [None, 32])
def test_looking_leaves_the_method_as_it_was(recipe: Path, micro_batch: int | None) -> None:
    """And takes no more images at a time than training does."""
    from sslkit.experiment import build, check, resolve
    from sslkit.recipe import load_recipe
    from sslkit.tracking.folder import RunFolder

    size = "null" if micro_batch is None else micro_batch
    loaded = resolve(load_recipe(recipe, [f"train.micro_batch_size={size}"]))
    facts = check(loaded)
    with RunFolder.create(loaded.runs_dir, loaded.name) as folder:
        experiment = build(loaded, facts, folder, Messages())
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
    now, untrained = experiment.suite._embeddings
    return (now if trained else untrained)()
