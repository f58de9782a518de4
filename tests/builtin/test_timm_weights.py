"""Weights of other programs: prefixes and containers, folders and repositories of timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslkit.api import RunFacts, ViewSpec
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.errors import CheckpointError

MODEL = "test_resnet"
FACTS = RunFacts(100, 3, None, None, 8, 12, 120, (ViewSpec(32), ViewSpec(32)))


def fresh(seed: int = 1, **arguments: Any) -> nn.Module:
    import timm

    torch.manual_seed(seed)
    return timm.create_model(MODEL, **{"num_classes": 0, **arguments})


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def loaded(**fields: Any) -> dict[str, Tensor]:
    torch.manual_seed(99)
    config = TimmBackbone.Config(model=fields.pop("model", MODEL), **fields)
    assert list(TimmBackbone.problems(config, FACTS)) == []
    return TimmBackbone(config, channels=3, image_size=32).model.state_dict()


def refused(**fields: Any) -> tuple[str, str]:
    """The one problem of a backbone, which cannot be built either."""
    config = TimmBackbone.Config(model=fields.pop("model", MODEL), **fields)
    ((field, message),) = TimmBackbone.problems(config, FACTS)
    assert "\n" not in message
    with pytest.raises(CheckpointError):
        TimmBackbone(config, channels=3, image_size=32)
    return field, message


def said(**fields: Any) -> list[str]:
    config = TimmBackbone.Config(**{"model": MODEL, **fields})
    return [text for path, text in TimmBackbone.warnings(config, FACTS) if path == "weights"]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "container", [(), ("state_dict",), ("model",), ("teacher",), ("checkpoint", "network", "ema")]
)
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "module.module.", "_orig_mod.", "backbone.", "module.encoder_q.",
     "module.base_encoder.", "module._orig_mod.backbone.model."],
)  # fmt: skip
def test_prefixes_and_containers(prefix: str, container: tuple[str, ...], tmp_path: Path) -> None:
    state = fresh().state_dict()
    content: Any = prefixed(prefix, state)
    for name in reversed(container):
        content = {name: content}
    file = tmp_path / "w.pth"
    torch.save({**content, "epoch": 3}, file)
    assert equal(loaded(weights=file), state)
    whole = ".".join(container) + "." * bool(container) + prefix.replace("_orig_mod.", "")
    assert said(weights=file) == ([f"the names in the file begin with '{whole}'"] if whole else [])


def test_wrappers_in_the_middle_of_names(tmp_path: Path) -> None:
    state, file = fresh().state_dict(), tmp_path / "w.safetensors"
    save_file({n.replace("layer1.", "layer1._orig_mod."): v for n, v in state.items()}, file)
    assert equal(loaded(weights=file), state)


def test_two_networks_that_fit_are_told_apart_by_the_recipe(tmp_path: Path) -> None:
    query, key = fresh(1).state_dict(), fresh(2).state_dict()
    file = tmp_path / "moco.pth"
    both = {**prefixed("module.encoder_q.", query), **prefixed("module.encoder_k.", key)}
    torch.save({"state_dict": {**both, "module.queue": torch.zeros(4)}}, file)
    field, message = refused(weights=file)
    assert field == "weights"
    assert "'state_dict.module.encoder_q.' and 'state_dict.module.encoder_k.'" in message
    assert "set weights_prefix" in message
    chosen = "state_dict.module.encoder_k."
    assert equal(loaded(weights=file, weights_prefix=chosen), key)
    field, message = refused(weights=file, weights_prefix="encoder_k.")
    assert (
        f"stand behind 'state_dict.module.encoder_q.' and '{chosen}', not 'encoder_k.'" in message
    )


def test_heads_are_left_out_and_said(tmp_path: Path) -> None:
    state = prefixed("module.base_encoder.", fresh(num_classes=5).state_dict())
    state["module.base_encoder.projector.0.weight"] = torch.zeros(2, 2)
    file = tmp_path / "w.pth"
    torch.save(state, file)
    assert loaded(weights=file).keys() == fresh().state_dict().keys()
    assert said(weights=file) == [
        "the names in the file begin with 'module.base_encoder.'; left out: fc.weight, fc.bias, "
        "projector.0.weight"
    ]


@pytest.mark.slow  # 2 seconds
def test_what_is_no_head_is_a_misfit(tmp_path: Path) -> None:
    """Layers of a larger network are not dropped, whatever they stand behind."""
    state, file = fresh().state_dict(), tmp_path / "w.pth"
    for more in ("layer1.7.conv1.weight", "norm_pre.weight"):
        torch.save({"model": {**state, more: torch.zeros(1)}}, file)
        assert f"{more} is not in the model" in refused(weights=file)[1]
    torch.save({"model": {**state, "layer1.0.conv1.weight": torch.zeros(3, 3)}}, file)
    _, message = refused(weights=file)
    assert "layer1.0.conv1.weight is (3, 3), the model's" in message
    torch.save({"a.b.c": torch.zeros(1)}, file)
    assert (
        "no name in it ends as one of the model's does, the first is 'a.b.c'"
        in (refused(weights=file)[1])
    )


def test_position_embeddings_are_resampled_behind_a_prefix(tmp_path: Path) -> None:
    import timm

    file = tmp_path / "dino.pth"
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=3).state_dict()
    torch.save({"teacher": prefixed("backbone.", state)}, file)
    found = loaded(model="test_vit", weights=file)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert found["pos_embed"].shape != state["pos_embed"].shape


# --- local-dir: and hf-hub: -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as `timm.save_for_hf` writes it."""
    path = tmp_path / "saved"
    path.mkdir()
    save_file(fresh(num_classes=7).state_dict(), path / "model.safetensors")
    known = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 9, 9], "num_classes": 7}
    config = {
        "architecture": MODEL,
        "model_args": {"global_pool": "avg"},
        "pretrained_cfg": {**known, "classifier": "fc", "first_conv": "conv1.0"},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_local_folder_is_loaded_as_timm_loads_it(folder: Path) -> None:
    import timm

    model = f"local-dir:{folder}"
    theirs = timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    assert equal(loaded(model=model, pretrained=True), theirs)
    config = TimmBackbone.Config(model=model, pretrained=True)
    ((field, message),) = TimmBackbone.warnings(config, FACTS)
    assert field == "normalize"
    assert message.endswith("set normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}")
    block = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = TimmBackbone.Config(model=model, pretrained=True, normalize=block)
    assert list(TimmBackbone.warnings(config, FACTS)) == []


def test_weights_of_a_folder_are_never_left_out_in_silence(folder: Path) -> None:
    field, message = refused(model=f"local-dir:{folder}")
    assert field == "model"
    assert message.endswith(
        f"set pretrained: true, or, to start from random weights, model: {MODEL}"
    )
    state = fresh().state_dict()
    del state["layer4.0.conv1.weight"]  # timm itself would leave it random
    save_file(state, folder / "model.safetensors")
    field, message = refused(model=f"local-dir:{folder}", pretrained=True)
    assert "layer4.0.conv1.weight is missing" in message


def test_the_untrained_baseline_of_a_folder_is_untrained(folder: Path) -> None:
    config = TimmBackbone.Config(model=f"local-dir:{folder}", pretrained=True)
    bare = TimmBackbone.without_weights(config)
    (folder / "config.json").unlink()  # a finished run needs the folder no more
    assert (bare.model, bare.pretrained, bare.weights) == (MODEL, False, None)
    assert bare.model_args == {"global_pool": "avg"}
    torch.manual_seed(3)
    mine = TimmBackbone(bare, channels=3, image_size=32).model.state_dict()
    assert equal(mine, fresh(3).state_dict())


def test_a_folder_of_a_stranger(folder: Path, tmp_path: Path) -> None:
    """Nothing is run, nothing outside the folder is read, and nothing takes memory."""
    model, config = f"local-dir:{folder}", folder / "config.json"

    class Pickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    torch.save(Pickled(), folder / "pytorch_model.bin")
    assert "holds Python objects" in refused(model=model, pretrained=True)[1]
    assert not (tmp_path / "executed").exists()
    weights.symlink_to(tmp_path / "outside.safetensors")
    assert "is a link out of its folder" in refused(model=model, pretrained=True)[1]
    for text, expected in (
        ("{", "Expecting property name"),
        ("[" * 100_000, "config.json is not that of a model"),
        ("[1]", "config.json is not that of a model"),
        ('{"architecture": "os.system"}', "no model of timm"),
        ('{"architecture": "local-dir:x"}', "no model of timm"),
        (f'{{"architecture": "{MODEL}", "model_args": {{"block": [1]}}}}', "is a list"),
        ('{"model_args": {}}', "no 'architecture'"),
        (" " * (1 << 21), "more than 1 MiB"),
    ):
        config.write_text(text)
        assert expected in refused(model=model, pretrained=True)[1]
    (folder / "config.json").unlink()
    assert "holds no config.json" in refused(model=model, pretrained=True)[1]
    assert "is no folder" in refused(model="local-dir:/nowhere", pretrained=True)[1]


def test_the_hub_from_the_cache_and_without_internet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--net" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--someone--net" / "refs").mkdir()
    (cache / "models--someone--net" / "refs" / "main").write_text("a" * 40)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(snapshot / name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    expected = fresh(num_classes=7).state_dict()
    found = loaded(model="hf-hub:someone/net", pretrained=True)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "set pretrained: true" in refused(model="hf-hub:someone/net")[1]
    field, message = refused(model="hf-hub:someone/else", pretrained=True)
    assert field == "model"
    assert message.startswith("hf-hub:someone/else: cannot be had: ")
    assert message.endswith("without internet, copy the folder here and write local-dir:FOLDER")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("timm/resnet18", "write hf-hub:timm/resnet18 or local-dir:timm/resnet18, or resnet18 for"),
        ("./folder", "write hf-hub:./folder or local-dir:./folder"),
        ("hf_hub:a/b", "write hf-hub:a/b"),
        ("http://x/y", "timm has no model 'http://x/y'"),
    ],
)
def test_names_that_timm_would_not_take(model: str, expected: str) -> None:
    assert expected in refused(model=model, pretrained=True)[1]
