"""`sslkit eval` on runs and on weights: what is measured, what is kept, what is logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from sslkit.cli import main
from sslkit.engine.display import Silent
from sslkit.errors import CheckpointError, RecipeError
from sslkit.runs.folder import RunFolder
from sslkit.runs.metrics_file import read_lines
from sslkit.workflows.evaluate import evaluate_run, evaluate_weights
from sslkit.workflows.track import sync_run
from sslkit.workflows.train import start
from tests.displays import Heard

SHORT = ["train.max_steps=2"]


@pytest.fixture
def tracked(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny recipe, tracked in an MLflow store of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tiny.write_text(tiny.read_text().replace("{name: none}", "{name: mlflow}"))
    return tiny


def stored_runs(tmp_path: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "sslkit"]
    return list(client.search_runs([experiment.experiment_id]))


def artifacts(tmp_path: Path, run_id: str, folder: str = "") -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return [found.path for found in client.list_artifacts(run_id, folder or None)]


def logged(run: Path) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for line in read_lines(run / "metrics.jsonl"):
        metrics.update(line.metrics)
    return metrics


def kept(found: Path | None) -> Mapping[str, Any]:
    assert found is not None
    document: dict[str, Any] = json.loads(found.read_text())
    return document


# --- Runs -----------------------------------------------------------------------------------------


@pytest.mark.slow  # 14 seconds
def test_a_run_is_logged_to_its_own_run(tracked: Path, tmp_path: Path) -> None:
    run = start(str(tracked), SHORT, display=Silent()).run_dir
    (before,) = stored_runs(tmp_path)
    lines = list(read_lines(run / "metrics.jsonl"))
    measured = evaluate_run(run, ["knn", "linear"], [], Silent())

    (after,) = stored_runs(tmp_path)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert after.info.end_time == before.info.end_time  # the run lasted as long as it did
    assert "eval/linear/top1" not in before.data.metrics
    linear = measured.results.trained.metrics["eval/linear/top1"]
    assert after.data.metrics["eval/linear/top1"] == linear
    assert "eval/linear/top1_pixels" in after.data.metrics
    assert after.data.metrics["eval/knn/top1"] == before.data.metrics["eval/knn/top1"]
    (uploaded,) = artifacts(tmp_path, after.info.run_id, "evaluations")
    assert measured.kept == run / uploaded

    *others, last = read_lines(run / "metrics.jsonl")
    assert others == lines
    assert last.step == 2
    assert last.time_ms == lines[-1].time_ms
    assert set(last.metrics) & set(before.data.metrics) == set()
    document = kept(measured.kept)
    assert document["comparison"] == measured.to_json()["comparison"]
    assert [block["name"] for block in document["protocols"]] == ["knn", "linear"]
    assert document["data"] == json.loads((run / "environment.json").read_text())["data"]
    assert sync_run(run).points == 0  # nothing was left


@pytest.mark.slow  # 5 seconds
def test_what_is_another_measurement_is_kept_and_not_logged(tiny: Path) -> None:
    run = start(str(tiny), [*SHORT, "evaluate=[]"], display=Silent()).run_dir
    first = run / "checkpoints" / "step-00000001.pt"
    (last,) = (run / "checkpoints").glob("*.pt")
    first.write_bytes(last.read_bytes())
    before = logged(run)
    for path, overrides in (
        (run, ["evaluate.0.k=[1]"]),
        (run, ["data.num_test=40"]),
        (run, ["seed=7"]),
        (first, []),
    ):
        measured = evaluate_run(path, ["retrieval"], overrides, Silent())
        assert kept(measured.kept)["overrides"] == overrides
        assert logged(run) == before, (path, overrides)
    evaluate_run(last, ["retrieval"], [], Silent())
    assert "eval/retrieval/map" in logged(run)
    assert len(list((run / "evaluations").iterdir())) == 5


@pytest.mark.slow  # 2 seconds
def test_an_evaluator_that_only_overrides_complete_is_kept_and_not_logged(tiny: Path) -> None:
    """`data` of a dense evaluator has no default: the same metric could mean any data."""
    run = start(str(tiny), [*SHORT, "evaluate=[]"], display=Silent()).run_dir
    before = logged(run)
    scenes = "{name: scenes, size: 16, num_train: 6, num_test: 3}"
    fields = [f"evaluate.0.data={scenes}", "evaluate.0.max_iterations=3"]
    measured = evaluate_run(run, ["segmentation"], fields, Silent())
    document = kept(measured.kept)
    assert {row["metric"] for row in document["comparison"]} > {"miou", "pixel_accuracy"}
    assert document["protocols"][0]["data"]["name"] == "scenes"
    assert logged(run) == before


def test_an_untracked_run_has_nothing_to_send(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tiny, SHORT, display=Silent()).run_dir
    assert command("sync", str(run)) == 0
    assert "nothing to send" in capsys.readouterr().out


def test_data_of_other_channels_is_refused(tiny: Path) -> None:
    run = start(tiny, SHORT, display=Silent()).run_dir
    with pytest.raises(
        RecipeError, match=r"takes images with 3 channel\(s\) and those of the data"
    ):
        evaluate_run(run, ["knn"], ["data={name: digits, size: 16}"], Silent())
    (checkpoint, *_) = (run / "checkpoints").glob("*.pt")
    with pytest.raises(CheckpointError, match="checkpoint of a run; measure it without --recipe"):
        evaluate_weights(checkpoint, tiny, ["knn"], [], Silent())


@pytest.mark.slow  # 2 seconds
def test_settings_of_evaluators_are_checked_as_at_validation(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tiny, SHORT, display=Silent()).run_dir
    for protocol, field, message in (
        ("knn", "evaluate.0.k=100000", "k 100000 is above the bank of"),
        ("retrieval", "evaluate.0.k=[1, 1]", "names a number twice"),
        ("few_label", "evaluate.0.labels_per_class=[100000]", "are more than the"),
    ):
        assert command("eval", str(run), "--protocol", protocol, "-o", field) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if message in line]
        assert field.partition("=")[0] in line
    assert not (run / "evaluations").exists(), "nothing was measured"


@pytest.mark.slow  # 9 seconds
def test_a_run_that_is_going_is_left_alone(tiny: Path) -> None:
    run = start(str(tiny), SHORT, display=Silent()).run_dir
    display, files = Heard(), sorted(run.rglob("*"))
    with RunFolder.open(run, write=True):
        measured = evaluate_run(run, ["linear"], [], display)
    assert measured.kept is None
    assert measured.to_json()["kept"] is None
    assert "eval/linear/top1" in measured.results.trained.metrics
    assert any("not kept in the run" in message for message in display.messages)
    assert sorted(run.rglob("*")) == files


@pytest.mark.slow  # 7 seconds
def test_an_unfinished_run_gets_no_metrics(tiny: Path) -> None:
    """A resume must not take them for the evaluation of its last epoch."""
    run = start(str(tiny), SHORT, display=Silent()).run_dir
    (run / "results.json").unlink()
    before = logged(run)
    assert evaluate_run(run, ["linear"], [], Silent()).kept is not None
    assert logged(run) == before


@pytest.mark.slow  # 11 seconds
def test_a_tracker_that_is_away(tracked: Path, tmp_path: Path) -> None:
    run = start(str(tracked), SHORT, display=Silent()).run_dir
    store = tmp_path / "mlflow.db"
    store.rename(tmp_path / "elsewhere.db")
    store.mkdir()  # nothing can be opened there
    display = Heard()
    measured = evaluate_run(run, ["linear"], [], display)
    assert measured.kept is not None
    assert any(f"sslkit sync {run}" in message for message in display.messages)
    store.rmdir()
    (tmp_path / "elsewhere.db").rename(store)
    assert sync_run(run).points > 0
    (stored,) = stored_runs(tmp_path)
    assert "eval/linear/top1" in stored.data.metrics


# --- Weights --------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weight file of timm, with a classifier that nobody needs."""
    torch.manual_seed(1)
    path = tmp_path / "from_elsewhere.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), path)
    return path


@pytest.mark.slow  # 9 seconds
def test_weights_get_a_run_of_their_own(tracked: Path, tmp_path: Path, weights: Path) -> None:
    measured = evaluate_weights(weights, tracked, ["knn", "linear"], [], Silent())
    assert measured.kept is not None
    assert measured.kept.name.startswith("eval-from_elsewhere-")
    document = json.loads((measured.kept / "results.json").read_text())
    assert document["comparison"] == measured.to_json()["comparison"]

    (run,) = stored_runs(tmp_path)
    assert run.info.run_name == "eval-from_elsewhere"
    assert run.info.status == "FINISHED"
    found = measured.results.trained.metrics["eval/linear/top1"]
    assert run.data.metrics["eval/linear/top1"] == found
    assert "eval/knn/top1_untrained" in run.data.metrics
    assert run.data.tags["sslkit.weights"] == "from_elsewhere"
    assert run.data.tags["sslkit.backbone"] == "test_resnet"
    assert "sslkit.method" not in run.data.tags
    assert "sslkit.recipe_hash" not in run.data.tags
    assert not [key for key in run.data.params if key.startswith(("method", "optimizer"))]
    assert run.data.params["evaluate.1.name"] == "linear"
    assert set(artifacts(tmp_path, run.info.run_id)) == {
        "environment.json", "evaluation.yaml", "results.json"
    }  # fmt: skip
    assert sync_run(measured.kept).points == 0


@pytest.mark.slow  # 2 seconds
def test_the_encoder_of_a_run_gives_the_results_of_the_run(tiny: Path, tmp_path: Path) -> None:
    run = start(str(tiny), SHORT, display=Silent())
    for place in (run.run_dir, run.run_dir / "encoder.safetensors"):
        measured = evaluate_weights(place, tiny, None, [], Silent())
        assert measured.kept is not None
        assert measured.kept.name.startswith(f"eval-{run.run_dir.name}-")
        for key in ("eval/knn/top1", "eval/knn/top1_pixels"):
            found = {**measured.results.trained.metrics, **measured.results.baselines.metrics}
            assert found[key] == run.metrics[key]


def test_a_backbone_of_timm_for_a_file(tiny: Path, tmp_path: Path) -> None:
    """`--backbone` brings the normalisation that timm has for the model."""
    torch.manual_seed(2)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), path)
    measured = evaluate_weights(
        path, tiny, ["knn"], ["augmentation.size=32"], Silent(), model="test_vit"
    )
    assert measured.kept is not None
    backbone = yaml.safe_load((measured.kept / "evaluation.yaml").read_text())["backbone"]
    known = timm.get_pretrained_cfg("test_vit")
    assert backbone["model"] == "test_vit"
    assert backbone["normalize"] == {"mean": list(known.mean), "std": list(known.std)}
    assert backbone["interpolation"] == known.interpolation
    with pytest.raises(RecipeError, match=r"does not fit the model"):
        evaluate_weights(path, tiny, ["knn"], [], Silent())  # the recipe's backbone


def test_weights_are_measured_without_looking_at_training(tiny: Path, weights: Path) -> None:
    """Batches beyond the data, a warm-up beyond the run, and a compiler that is not needed."""
    training = ["train.batch_size=4096", "schedule.warmup_epochs=50", "train.compile=true"]
    measured = evaluate_weights(weights, tiny, ["knn"], training, Silent())
    assert measured.results.trained.metrics["eval/knn/top1"] >= 0.0
    with pytest.raises(RecipeError, match=r"evaluate\.0\.k"):
        evaluate_weights(weights, tiny, ["knn"], [*training, "evaluate.0.k=500"], Silent())


@pytest.mark.slow  # 12 seconds
@pytest.mark.parametrize(
    ("field", "override"),
    [
        ("data", "data={name: synthetic, num_train: 96, num_test: 48, size: 16}"),
        ("backbone", "backbone={name: timm, model: test_resnet, drop_path_rate: 0.2}"),
        ("method", "method={name: simclr, head: {name: mlp, hidden_dim: 16, out_dim: 8}}"),
        ("augmentation", "augmentation={name: simclr, size: 16, blur: false}"),
    ],
)
@pytest.mark.parametrize("protocols", [None, ["knn"]])
def test_a_recipe_that_overrides_complete(
    tiny: Path, weights: Path, field: str, override: str, protocols: list[str] | None
) -> None:
    """It is measured as the whole recipe is, as `sslkit run` takes it."""
    expected = evaluate_weights(weights, tiny, protocols, [], Silent()).results.trained.metrics
    tree = yaml.safe_load(tiny.read_text())
    del tree[field]
    tiny.write_text(yaml.safe_dump(tree))
    found = evaluate_weights(weights, tiny, protocols, [override], Silent())
    assert found.results.trained.metrics == expected
    with pytest.raises(RecipeError, match=f"{field}: is required"):
        evaluate_weights(weights, tiny, protocols, [], Silent())


def test_weights_behind_a_prefix_and_in_a_folder_of_timm(tiny: Path, tmp_path: Path) -> None:
    """What is done with names, and statistics that are not the weights', are said."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, tmp_path / "a.pth")
    display = Heard()
    first = evaluate_weights(tmp_path / "a.pth", tiny, ["knn"], [], display)
    assert any("begin with 'state_dict.module.'" in line for line in display.messages)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    known = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "test_resnet", "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(config))
    display = Heard()
    second = evaluate_weights(None, tiny, ["knn"], [], display, model=f"local-dir:{folder}")
    assert any("warning: backbone.normalize: " in line for line in display.messages)
    assert second.results.trained.metrics == first.results.trained.metrics  # imagenet's, both


def test_published_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file `--backbone` takes timm's own; here they are what a download would give."""
    torch.manual_seed(3)
    ours = timm.create_model("test_resnet", num_classes=0)
    honest = timm.create_model

    def downloaded(name: str, pretrained: bool = False, **fields: Any) -> torch.nn.Module:
        model: torch.nn.Module = honest(name, pretrained=False, **fields)
        if pretrained:
            model.load_state_dict(ours.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", downloaded)
    display = Heard()
    measured = evaluate_weights(None, tiny, ["knn"], [], display, model="test_resnet")
    assert measured.kept is not None
    assert measured.kept.name.startswith("eval-test_resnet-")
    size = timm.get_pretrained_cfg("test_resnet").input_size[-1]
    expected = f"trained at {size} px and sees 16 px here; -o augmentation.size={size}"
    assert any(expected in message for message in display.messages)


def test_a_folder_that_cannot_be_made_loses_no_result(tiny: Path, weights: Path) -> None:
    (tiny.parent / "runs").write_text("a file, where folders should go")
    display = Heard()
    measured = evaluate_weights(weights, tiny, ["knn"], [], display)
    assert measured.kept is None
    assert "eval/knn/top1" in measured.results.trained.metrics
    assert any(message.startswith("warning: not kept: ") for message in display.messages)


@pytest.mark.slow  # 2 seconds
def test_an_export_for_timm(tiny: Path, tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "exports" / "mine"
    folder.mkdir(parents=True)
    weights.rename(folder / "model.safetensors")
    by_folder, by_file = (
        evaluate_weights(path, tiny, ["knn"], [], Silent())
        for path in (folder, folder / "model.safetensors")
    )
    assert by_folder.results.trained.metrics == by_file.results.trained.metrics
    for found in (by_folder, by_file):
        assert found.kept is not None
        assert found.kept.name.startswith("eval-mine-")


def test_nothing_is_kept_of_what_fails(tiny: Path, tmp_path: Path, weights: Path) -> None:
    with pytest.raises(RecipeError, match="starts from no weights; give a weight file"):
        evaluate_weights(None, tiny, ["knn"], [], Silent())
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such weight file or run folder$"):
        evaluate_weights(tmp_path / "nowhere.pth", tiny, ["knn"], [], Silent())
    with pytest.raises(CheckpointError, match="measured by --backbone resnet18 --recipe"):
        evaluate_weights(Path("resnet18"), tiny, ["knn"], [], Silent())
    with pytest.raises(CheckpointError, match=(
        r"^--backbone test_resnett: no installed backbone has a model of this name, did you mean "
        r"'test_resnet'\?$"
    )):  # fmt: skip
        evaluate_weights(weights, tiny, ["knn"], [], Silent(), model="test_resnett")
    with pytest.raises(RecipeError, match=r"^--protocol clusterin: evaluate.0: unknown"):
        evaluate_weights(weights, tiny, ["clusterin"], [], Silent())
    (text := tmp_path / "text.pth").write_text("hello weights")
    with pytest.raises(RecipeError, match=r"^--recipe .*: backbone.weights: .*text.pth: not"):
        evaluate_weights(text, tiny, ["knn"], [], Silent())
    with pytest.raises(RecipeError, match="would replace"):
        evaluate_weights(weights, tiny, ["knn"], ["backbone.weights=null"], Silent())
    assert not (tmp_path / "runs").exists()


# --- The command ----------------------------------------------------------------------------------


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return int(exit_.value.code or 0)


@pytest.mark.slow  # 3 seconds
def test_command(tiny: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", str(weights), "--recipe", str(tiny), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["kept"]).is_dir()
    assert [row["protocol"] for row in document["comparison"]] == ["knn", "knn"]
    assert command("eval", str(weights), "--recipe", str(tiny)) == 0
    assert "kept in: " in capsys.readouterr().out

    words = ("eval", str(weights), "--recipe", str(tiny), "--protocol", "segmentation")
    assert command(*words, "-o", "evaluate.0.data={name: scenes, num_train: 2, num_test: 2}",
                   "-o", "evaluate.0.stage=99") == 1  # fmt: skip
    assert "segmentation: skipped: " in capsys.readouterr().out
    assert command("eval", str(weights), "--recipe", str(tiny), "--protocol", "") == 2
    assert "unknown evaluator" in capsys.readouterr().err  # not: all of the recipe
    for words in (["eval"], ["eval", str(weights), "--backbone", "resnet18"]):
        assert command(*words) == 2
        assert "--recipe" in capsys.readouterr().err
    assert command("eval", str(weights)) == 2
    assert "--recipe" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        evaluate_run("nowhere.pt", None, [], Silent())
