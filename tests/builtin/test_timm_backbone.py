"""The timm backbone: stems, sizes, normalisation, weights in and out, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from sslkit.api import RunFacts, ViewSpec
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.errors import CheckpointError
from sslkit.nn.stem import use_small_stem


def backbone(size: int = 32, channels: int = 3, **fields: Any) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(TimmBackbone.Config(**fields), channels=channels, image_size=size).eval()


def problems(*sizes: int, channels: int = 3, **fields: Any) -> list[tuple[str, str]]:
    views = tuple(ViewSpec(size) for size in sizes or (32, 32))
    facts = RunFacts(100, channels, None, None, 8, 12, 120, views)
    found = list(TimmBackbone.problems(TimmBackbone.Config(**fields), facts))
    assert not any("\n" in message for _, message in found)
    return found


def map_sizes(network: TimmBackbone, size: int, *names: str) -> list[int]:
    """Side of the output of these modules, for images of `size` pixels."""
    sides: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sides.append(output.shape[-1])

    handles = [network.model.get_submodule(n).register_forward_hook(note) for n in names]
    network(torch.rand(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return sides


# --- Stems and sizes -----------------------------------------------------------------------------


def test_small_stem_keeps_the_resolution() -> None:
    network = backbone(model="resnet18", stem="small")
    assert map_sizes(network, 32, "conv1", "layer1", "layer4") == [32, 32, 4]
    first = network.model.conv1
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert first.bias is None


@pytest.mark.parametrize(
    ("fields", "size", "expected"),
    [
        ({"stem": "default"}, 32, [16, 8, 1]),
        ({"stem": "small_pool"}, 96, [96, 48, 6]),
        ({"stem": "small", "stem_padding": 2}, 32, [34, 34, 5]),  # solo-learn's maps
    ],
)
def test_other_stems(fields: dict[str, Any], size: int, expected: list[int]) -> None:
    network = backbone(model="resnet18", **fields)
    assert map_sizes(network, size, "conv1", "layer1", "layer4") == expected


def test_small_stem_on_a_deep_stem_only_removes_the_stride() -> None:
    plain, small = backbone(model="resnet10t"), backbone(model="resnet10t", stem="small")
    assert map_sizes(small, 32, "conv1", "layer4") == [32, 4]
    for (name, a), (other, b) in zip(
        plain.model.state_dict().items(), small.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)


def test_small_stem_changes_the_first_convolution_only() -> None:
    plain, small = backbone(model="resnet18"), backbone(model="resnet18", stem="small")
    others = small.model.state_dict()
    for name, value in plain.model.state_dict().items():
        assert (name == "conv1.weight") or torch.equal(value, others[name])
    assert others["conv1.weight"].shape == (64, 3, 3, 3)


def test_vit_at_32_pixels() -> None:
    network = backbone(model="vit_tiny_patch16_224", patch_size=4)
    assert network.model.pos_embed.shape == (1, 65, 192)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 192)


def test_pooling_of_a_vit() -> None:
    images = torch.rand(2, 3, 32, 32)
    token, mean = (
        backbone(model="vit_tiny_patch16_224", patch_size=8, pool=pool) for pool in ("token", "avg")
    )
    tokens = token.model.forward_features(token.normalized(images))
    torch.testing.assert_close(token(images), tokens[:, 0])
    assert mean.model.global_pool == "avg"
    assert mean(images).shape == (2, 192)


@pytest.mark.parametrize(
    ("model", "size", "channels"),
    [("resnet18", 28, 1), ("mobilenetv3_small_050", 32, 3), ("convnext_atto", 64, 4)],
)
def test_num_features_is_the_width_of_the_output(model: str, size: int, channels: int) -> None:
    network = backbone(model=model, size=size, channels=channels, normalize="none")
    assert network(torch.rand(2, channels, size, size)).shape == (2, network.num_features)


def test_model_args_and_drop_path_reach_timm() -> None:
    zero, one = (
        backbone(model="resnet18", model_args={"zero_init_last": value}) for value in (True, False)
    )
    assert not zero.model.layer1[0].bn2.weight.any()
    assert one.model.layer1[0].bn2.weight.all()
    dropping = backbone(model="resnet18", drop_path_rate=0.2)
    assert dropping.model.layer4[1].drop_path.drop_prob == pytest.approx(0.2)


# --- Normalisation and preprocessing -------------------------------------------------------------


def test_the_backbone_normalises() -> None:
    images = torch.rand(2, 3, 32, 32)
    network = backbone(model="resnet18", stem="small", normalize="cifar10")
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    torch.testing.assert_close(network(images), network.model((images - mean) / std))
    assert network.preprocess.mean == pytest.approx((0.4914, 0.4822, 0.4465))
    raw = backbone(model="resnet18", stem="small", normalize="none")
    assert torch.equal(raw(images), raw.model(images))


def test_own_statistics_for_one_channel() -> None:
    network = backbone(
        model="resnet18", channels=1, normalize={"mean": [0.3], "std": [0.4]}, stem="small"
    )
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(network(images), network.model((images - 0.3) / 0.4))


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (96, 96), (224, 256)])
def test_preprocess(size: int, resize: int) -> None:
    preprocess = backbone(model="resnet10t", size=size).preprocess
    assert (preprocess.size, preprocess.resize) == (size, resize)
    assert preprocess.interpolation == "bilinear"


# --- Weights out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"model": "resnet18"}, {}),
        ({"model": "resnet18", "stem": "small"}, {}),
        ({"model": "resnet10t", "stem": "small"}, {}),
        (
            {"model": "vit_tiny_patch16_224", "patch_size": 8, "pool": "avg"},
            {"img_size": 32, "patch_size": 8, "global_pool": "avg"},
        ),
    ],
)
def test_export_loads_into_plain_timm(
    tmp_path: Path, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    import timm

    network = backbone(**fields).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()(torch.rand(4, 3, 32, 32))  # moves the running statistics
    file = tmp_path / "encoder.safetensors"
    save_file(network.export_state(), file)

    if fields.get("stem") == "small":  # the stem is ours: adapt it, then load
        plain = timm.create_model(fields["model"], num_classes=0, **arguments)
        use_small_stem(plain)
        timm.models.load_checkpoint(plain, str(file))
    else:
        plain = timm.create_model(
            fields["model"], num_classes=0, checkpoint_path=str(file), **arguments
        )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain.eval()(network.normalized(images))
        torch.testing.assert_close(network.eval()(images), expected)


def test_import_takes_back_what_export_gave() -> None:
    fields: dict[str, Any] = {"model": "resnet10t", "stem": "small"}
    trained, fresh = backbone(**fields), backbone(**fields)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.1)
    fresh.import_state(trained.export_state())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(fresh(images), trained(images))


def test_the_architecture_needs_no_starting_weights() -> None:
    config = TimmBackbone.Config(model="resnet18", stem="small", weights=Path("gone.pth"))
    rebuilt = TimmBackbone.without_weights(config)
    assert rebuilt == TimmBackbone.Config(model="resnet18", stem="small")


# --- Weights in ----------------------------------------------------------------------------------


def test_starts_from_a_run_folder_and_from_torch_files(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("resnet10t", num_classes=7)
    run, pth, wrapped = tmp_path / "run", tmp_path / "a.pth", tmp_path / "b.pth"
    run.mkdir()
    bare = timm.create_model("resnet10t", num_classes=0)
    bare.load_state_dict(source.state_dict(), strict=False)
    save_file(bare.state_dict(), run / "encoder.safetensors")
    torch.save(source.state_dict(), pth)  # with a classifier, as timm's files have one
    torch.save({"state_dict": {f"module.{n}": v for n, v in source.state_dict().items()}}, wrapped)
    for path in (run, pth, wrapped):
        assert problems(model="resnet10t", stem="small", weights=path) == []
        network = backbone(model="resnet10t", stem="small", weights=path)
        assert torch.equal(network.model.layer4[0].conv1.weight, source.layer4[0].conv1.weight)


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    import timm

    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), file)
    assert problems(64, 64, model="vit_tiny_patch16_224", weights=file) == []
    network = backbone(model="vit_tiny_patch16_224", size=64, weights=file)
    assert network.model.pos_embed.shape == (1, 17, 192)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    import timm

    stem, depth = tmp_path / "stem.safetensors", tmp_path / "depth.safetensors"
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    save_file(state, stem)
    ((field, message),) = problems(model="resnet18", stem="small", weights=stem)
    assert field == "weights"
    assert "conv1.weight is (64, 3, 7, 7), the model's (64, 3, 3, 3)" in message
    with pytest.raises(CheckpointError, match=r"does not fit the model: conv1\.weight"):
        backbone(model="resnet18", stem="small", weights=stem)
    save_file({n: v for n, v in state.items() if not n.startswith("layer4")}, depth)
    ((field, message),) = problems(model="resnet18", weights=depth)
    assert "layer4.0.conv1.weight is missing" in message
    assert "more" in message


def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*args: Any, **kwargs: Any) -> nn.Module:
        raise OSError("Name or service not known\nmore lines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"backbone\.weights$") as caught:
        backbone(model="resnet18", pretrained=True)
    assert "Name or service not known; without internet" in str(caught.value)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    class Pickled:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    text, code, numbers, garbage, cut = (
        tmp_path / name for name in ("a.safetensors", "b.pth", "c.pth", "d.pth", "e.pth")
    )
    text.write_text("not weights")
    garbage.write_text("hello weights\n")  # opcodes of pickle, as it happens
    torch.save({"weight": torch.zeros(99)}, cut)
    cut.write_bytes(cut.read_bytes()[:500])
    torch.save({"state_dict": Pickled()}, code)
    torch.save([1, 2, 3], numbers)
    for path, expected in (
        (text, "not a readable weight file"),
        (code, "holds Python objects ("),
        (garbage, "damaged, or not written by torch.save"),
        (cut, "damaged, or not written by torch.save"),
        (numbers, "expected a mapping of names to tensors"),
        (tmp_path / "none.pth", "no such file"),
        (tmp_path, "a run folder holds it once its run has finished"),
    ):
        ((field, message),) = problems(model="resnet18", weights=path)
        assert field == "weights"
        assert expected in message
        assert "weights_only" not in message  # torch advises to run what is in the file
    assert not (tmp_path / "executed").exists()


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"model": "resnt18"}, "model", "no model 'resnt18', did you mean resnet18"),
        ({"model": "resnet18.nonsense"}, "model", "Invalid pretrained tag"),
        ({"model": "resnet18", "pool": "token"}, "pool", "Invalid pool type: token"),
        ({"model": "resnet18", "patch_size": 4}, "patch_size", "unexpected keyword"),
        ({"model": "resnet18", "model_args": {"foo": 1}}, "model_args.foo", "unexpected keyword"),
        ({"model": "vit_tiny_patch16_224", "stem": "small"}, "stem", "is for ResNets"),
        ({"model": "resnet18", "pretrained": True, "stem": "small"}, "stem", "pretrained weights"),
        ({"model": "resnet10t", "pretrained": True, "stem": "small"}, None, ""),
        ({"model": "vgg11", "drop_path_rate": 0.1}, "drop_path_rate", "unexpected keyword"),
        ({"model": "vit_tiny_patch16_224", "patch_size": 5}, "model", "not a multiple"),
        ({"model": "vit_tiny_patch16_224", "patch_size": 64}, "model", "32 px views"),
        ({"model": "resnet18", "normalize": {"mean": [0.5], "std": [0.5]}}, "normalize", "have 3"),
    ],
)
def test_problems_name_the_field(fields: dict[str, Any], field: str | None, message: str) -> None:
    found = problems(**fields)
    if field is None:
        assert found == []
        return
    assert [name for name, _ in found] == [field]
    assert message in found[0][1]


def test_views_of_a_second_size_must_fit_too() -> None:
    ((field, message),) = problems(64, 64, 32, model="vit_tiny_patch16_224")
    assert field == "model"
    assert "32 px" in message
    assert problems(64, 64, 32, model="resnet18") == []


def test_channels_must_match_the_statistics() -> None:
    ((field, message),) = problems(model="resnet18", channels=1)
    assert field == "normalize"
    assert "3 channel(s), but the images have 1" in message
    assert problems(model="resnet18", channels=1, normalize="none") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_args": {"in_chans": 3}}, "in_chans cannot be set here: it follows from the data"),
        ({"pretrained": True, "weights": "a.pth"}, "exclude each other"),
        ({"normalize": {"mean": [0.1, 0.2], "std": [0.1]}}, "2 values"),
        ({"normalize": {"mean": [0.1], "std": [0.0]}}, "greater than 0"),
        ({"normalize": "imagnet"}, "'none', 'imagenet' or 'cifar10'"),
        ({"normalize": 3}, "'none', 'imagenet' or 'cifar10'"),
        ({"stem": "tiny"}, "small_pool"),
        ({"stem_padding": 3}, "1 or 2"),
    ],
)
def test_config_mistakes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        TimmBackbone.Config(model="resnet18", **fields)


@pytest.mark.slow  # 5 seconds
def test_importing_the_module_does_not_import_timm() -> None:
    code = "import sys, sslkit.builtin.timm_backbone; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_without_that_stem_is_named() -> None:
    with pytest.raises(ValueError, match="Linear has no ResNet stem"):
        use_small_stem(nn.Linear(2, 2))


# --- Initialisation ------------------------------------------------------------------------------


def test_layers_start_as_torch_makes_them() -> None:
    """Uniform in +- 1 / sqrt(fan in), the stem for small images too; BatchNorm at one."""
    network = backbone(model="resnet18", stem="small", init="torch")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.98 * bound < float(module.weight.detach().abs().max()) <= bound
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert bool((module.weight == 1.0).all())


def test_a_network_that_starts_trained_is_not_initialised() -> None:
    for trained in ({"pretrained": True}, {"weights": "somewhere.pth"}):
        with pytest.raises(ValueError, match="init: it is for networks that start untrained"):
            TimmBackbone.Config(model="resnet18", init="torch", **trained)
