"""What docs/howto/coming_from.md says of other libraries' numbers, against their installed code.

lightly is in the parity group. The others depend on packages that do not go with ours; their files
alone are needed: `pip install --no-deps solo-learn stable-pretraining lightly-train`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import re
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sslkit
from sslkit.api import FeatureBank
from sslkit.nn.ema import EMATeacher
from sslkit.nn.functional import info_nce, normalize, nt_xent
from sslkit.nn.lars import LARS
from sslkit.nn.queue import FeatureQueue

DOUBLE = torch.float64
IMAGENET_JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


def folder_of(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed; its files alone would do (pip --no-deps)")
    return Path(spec.submodule_search_locations[0])


def load(package: str, file: str) -> Any:
    """One module of a package, without the packages that the others of it need."""
    path = folder_of(package) / file
    name = "of_" + ".".join((package, *Path(file).with_suffix("").parts)).replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defaults(package: str, file: str, cls: str) -> dict[str, Any]:
    """The plain defaults in the source of a class: of its fields, and of the arguments of its
    `__init__`."""
    tree = ast.parse((folder_of(package) / file).read_text(encoding="utf-8"))
    (found,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == cls]
    values: dict[str, Any] = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            values |= _plain(node.target.id, node.value)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            for argument, value in zip(given, node.args.defaults, strict=True):
                values |= _plain(argument.arg, value)
    return values


def _plain(name: str, value: ast.expr | None) -> dict[str, Any]:
    try:
        return {name: ast.literal_eval(value)} if value is not None else {}
    except ValueError:
        return {}


@pytest.fixture(scope="module")
def lightly() -> Any:
    return pytest.importorskip("lightly", reason="the parity group is not installed")


def pair(rows: int = 12, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, rows, width, generator=generator, dtype=DOUBLE)
    return first, second


def our_defaults(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return sslkit.component(kind, name, **fields).dump()


# --- Names ----------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "coming_from.md"
COLUMNS = {"lightly": 2, "stable_pretraining": 4, "lightly_train": 5}
"""Package -> its column of the table of names. That of solo-learn has the names of its repository,
which its last release does not have."""


@pytest.mark.parametrize("package", COLUMNS)
def test_the_names_are_theirs(package: str) -> None:
    """Each word of code in the column stands in the source of the package."""
    table = PAGE.read_text(encoding="utf-8").partition("## Names")[2].partition("## Numbers")[0]
    cells = [line.split("|")[COLUMNS[package]] for line in table.splitlines() if line[:1] == "|"]
    code = [found for cell in cells[2:] for found in re.findall(r"`([^`]+)`", cell)]
    words = {word for each in code for word in re.findall(r"[A-Za-z]\w{3,}", each)}
    files = folder_of(package).rglob("*.py")
    known = set(re.findall(r"\w+", "\n".join(f.read_text("utf-8", "ignore") for f in files)))
    assert len(words) > 8
    # `out`, `data` and the like are arguments of a command
    assert words - known - {"Trainer", "lightly"} == set()


# --- The loss -------------------------------------------------------------------------------------


def joint_embedding() -> Any:
    """stable-pretraining's losses, with their helpers for one process stubbed."""
    folder_of("stable_pretraining")
    helpers = types.ModuleType("spt_alone.utils")
    vars(helpers).update(
        all_gather=lambda x: [x], all_reduce=lambda x: x, get_rank=lambda: 0,
        get_world_size=lambda: 1,
    )  # fmt: skip
    losses = types.ModuleType("spt_alone.losses")
    losses.__path__ = []
    near = types.ModuleType("spt_alone.losses.utils")
    vars(near).update(off_diagonal=None, VCRegLoss=nn.Module)
    alone = types.ModuleType("spt_alone")
    alone.__path__ = []
    stubs = {m.__name__: m for m in (alone, helpers, losses, near)}
    path = folder_of("stable_pretraining") / "losses" / "joint_embedding.py"
    spec = importlib.util.spec_from_file_location("spt_alone.losses.joint_embedding", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        spec.loader.exec_module(module)
    return module


def test_nt_xent_is_equal_in_lightly(lightly: Any) -> None:
    from lightly.loss import NTXentLoss

    for temperature in (0.1, 0.5):
        expected = NTXentLoss(temperature)(*pair())
        torch.testing.assert_close(nt_xent(*pair(), temperature), expected)


def test_nt_xent_is_equal_in_solo_learn() -> None:
    theirs = load("solo", "losses/simclr.py").simclr_loss_func
    torch.testing.assert_close(nt_xent(*pair(), 0.2), theirs(*pair(), 0.2))


def test_nt_xent_is_equal_in_stable_pretraining() -> None:
    torch.testing.assert_close(nt_xent(*pair(), 0.2), joint_embedding().NTXEntLoss(0.2)(*pair()))


def test_default_temperatures(lightly: Any) -> None:
    from lightly.loss import NTXentLoss

    assert our_defaults("loss", "nt_xent")["temperature"] == 0.5
    assert inspect.signature(NTXentLoss).parameters["temperature"].default == 0.5
    assert inspect.signature(NTXentLoss).parameters["gather_distributed"].default is False


def test_default_temperatures_of_the_others() -> None:
    solo = load("solo", "losses/simclr.py").simclr_loss_func
    assert inspect.signature(solo).parameters["temperature"].default == 0.1
    spt = defaults("stable_pretraining", "methods/simclr.py", "SimCLR")
    assert (spt["temperature"], spt["projector_dims"]) == (0.5, (2048, 2048, 256))
    train = defaults("lightly_train", "_methods/simclr/simclr.py", "SimCLRArgs")
    assert (train["temperature"], train["hidden_dim"], train["output_dim"]) == (0.1, 2048, 128)


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    return (2.0 - 2.0 * (normalize(prediction) * normalize(target)).sum(dim=1)).mean()


def test_byol_in_lightly_is_a_quarter_less_one(lightly: Any) -> None:
    from lightly.loss import NegativeCosineSimilarity

    (p_1, p_2), (z_1, z_2) = pair(), tuple(each + 1 for each in pair())
    ours = cosine_loss(p_1, z_2) + cosine_loss(p_2, z_1)
    theirs = NegativeCosineSimilarity()
    half = 0.5 * (theirs(p_1, z_2) + theirs(p_2, z_1))
    torch.testing.assert_close(0.25 * ours, 1.0 + half)


def test_byol_is_equal_in_the_others() -> None:
    torch.testing.assert_close(
        load("solo", "losses/byol.py").byol_loss_func(*pair()), cosine_loss(*pair())
    )
    torch.testing.assert_close(joint_embedding().BYOLLoss()(*pair()), cosine_loss(*pair()))


def test_a_queue_wraps_around_where_lightlys_is_cut(lightly: Any) -> None:
    from lightly.models.modules.memory_bank import MemoryBankModule

    rows = normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    theirs = MemoryBankModule(size=(8, 3), feature_dim_first=False)
    ours = FeatureQueue(8, 3)
    for _ in range(2):
        theirs(rows, update=True)
        ours.push(rows)
    assert torch.equal(theirs.bank[:6], rows)
    assert torch.equal(theirs.bank[6:], rows[:2])  # rows 2 to 5 of the second batch are lost
    assert torch.equal(ours.features[6:], rows[:2])
    assert torch.equal(ours.features[:4], rows[2:])


def test_the_loss_with_a_queue_is_that_of_lightlys_memory_bank(lightly: Any) -> None:
    from lightly.loss import NTXentLoss

    query, key = (each.float() for each in pair())
    theirs = NTXentLoss(0.2, memory_bank_size=(20, 6))
    theirs(query, key)  # makes the bank
    bank = theirs.memory_bank.bank.clone()
    torch.testing.assert_close(info_nce(query, key, bank, 0.2), theirs(query, key))


def test_teachers_average_parameters_as_lightly_does(lightly: Any) -> None:
    from lightly.models.utils import update_momentum

    torch.manual_seed(0)
    online, start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(3, 4)
    theirs = nn.Sequential(start, nn.BatchNorm1d(4))
    ours = EMATeacher(theirs)
    online(torch.randn(8, 3))  # moves running statistics
    ours.update(online, 0.9)
    update_momentum(online, theirs, m=0.9)
    for mine, other in zip(ours.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach())
    assert torch.equal(theirs[1].running_mean, torch.zeros(4))
    assert torch.equal(ours.module[1].running_mean, torch.zeros(4))


# --- Head, stem, augmentation ---------------------------------------------------------------------


def kinds(head: nn.Module) -> list[str]:
    """The layers of a head in order, `+shift` where a BatchNorm has one."""
    named = []
    for layer in head.modules():
        if isinstance(layer, nn.Linear | nn.ReLU):
            named.append(type(layer).__name__)
        elif isinstance(layer, nn.BatchNorm1d):
            named.append("BatchNorm" + ("+shift" if layer.bias is not None else ""))
    return named


def test_heads(lightly: Any) -> None:
    from lightly.models.modules.heads import SimCLRProjectionHead

    def ours(**fields: Any) -> list[str]:
        return kinds(sslkit.component("head", "mlp", **fields).build(in_dim=16))

    assert ours() == ["Linear", "BatchNorm+shift", "ReLU", "Linear", "BatchNorm"]
    assert kinds(SimCLRProjectionHead(16, 16, 8)) == ours(output_norm="bn")
    assert inspect.signature(SimCLRProjectionHead).parameters["hidden_dim"].default == 2048
    solo = {"hidden_norm": "none", "hidden_bias": True, "output_norm": "none"}
    assert ours(**solo) == ["Linear", "ReLU", "Linear"]


def test_solo_learns_head_and_stem() -> None:
    source = (folder_of("solo") / "methods" / "simclr.py").read_text(encoding="utf-8")
    head = source[source.index("self.projector = ") :]
    layers = [line.strip() for line in head.splitlines()[1:4]]
    assert [line.partition("(")[0] for line in layers] == ["nn.Linear", "nn.ReLU", "nn.Linear"]
    base = (folder_of("solo") / "methods" / "base.py").read_text(encoding="utf-8")
    assert "kernel_size=3, stride=1, padding=2, bias=False" in base
    backbone = sslkit.component(
        "backbone", "timm", model="resnet18", stem="small", stem_padding=2
    ).build(channels=3, image_size=32)
    assert backbone.model.conv1(torch.rand(1, 3, 32, 32)).shape[-2:] == (34, 34)


def test_simclrs_augmentation_has_the_numbers_of_lightly(lightly: Any) -> None:
    from lightly.transforms import MoCoV1Transform, SimCLRTransform

    ours = our_defaults("augmentation", "simclr", size=224)
    theirs = {n: p.default for n, p in inspect.signature(SimCLRTransform).parameters.items()}
    pairs = {
        "cj_strength": "jitter_strength", "cj_prob": "jitter_probability",
        "cj_bright": "brightness", "cj_contrast": "contrast", "cj_sat": "saturation",
        "cj_hue": "hue", "random_gray_scale": "grayscale_probability",
        "gaussian_blur": "blur_probability", "hf_prob": "flip",
    }  # fmt: skip
    assert {old: ours[new] for old, new in pairs.items()} == {old: theirs[old] for old in pairs}
    assert ours["crop_scale"] == [theirs["min_scale"], 1.0]
    assert list(ours["blur_sigma"]) == list(theirs["sigmas"])
    assert {name: ours[name] for name in IMAGENET_JITTER} == IMAGENET_JITTER
    moco = {n: p.default for n, p in inspect.signature(MoCoV1Transform).parameters.items()}
    assert (moco["cj_hue"], moco["min_scale"]) == (0.4, 0.2)


def test_simclrs_augmentation_has_the_numbers_of_lightly_train() -> None:
    ours = our_defaults("augmentation", "simclr", size=224)
    file = "_methods/simclr/simclr_transform.py"
    jitter = defaults("lightly_train", file, "SimCLRColorJitterArgs")
    assert {name: jitter[name] for name in IMAGENET_JITTER} == IMAGENET_JITTER
    assert (jitter["prob"], jitter["strength"]) == (ours["jitter_probability"], 1.0)
    views = defaults("lightly_train", file, "SimCLRTransformArgs")
    assert views["random_gray_scale"] == ours["grayscale_probability"]
    crop = defaults("lightly_train", "_transforms/transform.py", "RandomResizedCropArgs")
    assert [crop["min_scale"], crop["max_scale"]] == ours["crop_scale"]


# --- Optimisation ---------------------------------------------------------------------------------


def lars_step(optimizer: Any, decay: float, **fields: Any) -> Tensor:
    """The first step of a matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=DOUBLE))
    before = weight.detach().clone()
    weight.grad = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    optimizer([weight], lr=0.3, weight_decay=decay, **fields).step()
    return before - weight.detach()


def rate(decay: float) -> tuple[float, float]:
    """eta |w| / |g + decay w|, and eta |w| / (|g| + decay |w|)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    gradient = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    norm = float(weight.norm())
    ours = 0.001 * norm / float((gradient + decay * weight).norm())
    return ours, 0.001 * norm / float(gradient.norm() + decay * norm)


def test_lars_against_lightly(lightly: Any) -> None:
    from lightly.utils.lars import LARS as Theirs

    ours, theirs = lars_step(LARS, 0.5), lars_step(Theirs, 0.5)
    by_formula = rate(0.5)
    torch.testing.assert_close(ours * by_formula[1] / by_formula[0], theirs, rtol=1e-6, atol=0.0)
    assert by_formula[0] / by_formula[1] > 1.05
    # With the decays of papers they agree.
    torch.testing.assert_close(lars_step(LARS, 1e-6), lars_step(Theirs, 1e-6), rtol=1e-5, atol=0.0)
    # Without decay lightly does not adapt.
    sgd = lars_step(torch.optim.SGD, 0.0)
    torch.testing.assert_close(lars_step(Theirs, 0.0), sgd)
    torch.testing.assert_close(lars_step(LARS, 0.0), sgd * rate(0.0)[0])


def test_lars_against_stable_pretraining() -> None:
    Theirs = load("stable_pretraining", "optim/lars.py").LARS
    ratio = rate(0.5)[1] / rate(0.5)[0]
    torch.testing.assert_close(
        lars_step(LARS, 0.5) * ratio, lars_step(Theirs, 0.5), rtol=1e-6, atol=0.0
    )
    torch.testing.assert_close(lars_step(LARS, 0.0), lars_step(Theirs, 0.0), rtol=1e-6, atol=0.0)
    clipped = lars_step(Theirs, 0.0, clip_lr=True, eta=10.0)
    torch.testing.assert_close(clipped, lars_step(torch.optim.SGD, 0.0))
    below = lars_step(Theirs, 0.0, clip_lr=True)  # the learning rate, 0.3, is no factor
    torch.testing.assert_close(below, lars_step(LARS, 0.0) / 0.3, rtol=1e-6, atol=0.0)


def test_lars_against_solo_learn() -> None:
    Wrapper = load("solo", "utils/lars.py").LARSWrapper

    def wrapped(params: Any, **fields: Any) -> Any:
        return Wrapper(torch.optim.SGD(params, **fields))

    ratio = rate(0.5)[1] / rate(0.5)[0]
    torch.testing.assert_close(
        lars_step(LARS, 0.5) * ratio, lars_step(wrapped, 0.5), rtol=1e-6, atol=0.0
    )


def test_learning_rates_follow_the_batch() -> None:
    source = (folder_of("solo") / "args" / "utils.py").read_text(encoding="utf-8")
    assert "args.lr = args.lr * args.batch_size * len(args.gpus) / 256" in source
    found = defaults("lightly_train", "_methods/method_args.py", "MethodArgs")
    assert found["lr_scale_method"] == "linear"
    assert found["reference_batch_size"] == 256
    ours = our_defaults("optimizer", "sgd", lr=0.1)
    assert (ours["lr_scaling"], ours["lr_reference_batch"]) == ("none", 256)


# --- Evaluation -----------------------------------------------------------------------------------


def features() -> FeatureBank:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 5
    rows = nn.functional.one_hot(labels, 5).float() + 0.5 * torch.randn(400, 5, generator=generator)
    return FeatureBank(rows[:300], rows[300:], labels[:300], labels[300:])


def our_knn(k: int, temperature: float) -> float:
    knn = sslkit.component("evaluator", "knn", k=k, temperature=temperature)
    return sslkit.evaluate_features(features(), knn)["knn"].metrics["top1"]


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (50, 0.1)])
def test_knn_is_equal_in_lightly(lightly: Any, k: int, temperature: float) -> None:
    from lightly.utils.benchmarking import knn_predict

    bank = features()
    train, test = normalize(bank.train), normalize(bank.test)
    predicted = knn_predict(test, train.T, bank.train_labels, 5, knn_k=k, knn_t=temperature)[:, 0]
    expected = float((predicted == bank.test_labels).double().mean())
    assert 0.5 < expected < 1.0
    assert our_knn(k, temperature) == pytest.approx(expected)
    ours = our_defaults("evaluator", "knn")
    found = inspect.signature(knn_predict).parameters
    assert (found["knn_k"].default, found["knn_t"].default) == (ours["k"], ours["temperature"])


def test_knn_of_the_others() -> None:
    solo = defaults("solo", "utils/knn.py", "WeightedKNNClassifier")
    assert (solo["k"], solo["T"], solo["distance_fx"]) == (20, 0.07, "cosine")
    assert solo["epsilon"] == 0.00001
    during = (folder_of("solo") / "methods" / "base.py").read_text(encoding="utf-8")
    assert 'WeightedKNNClassifier(k=self.knn_k, distance_fx="euclidean")' in during
    spt = defaults("stable_pretraining", "callbacks/knn.py", "OnlineKNN")
    assert (spt["k"], spt["temperature"], spt["distance_metric"]) == (5, 0.07, "euclidean")


def test_lightlys_linear_classifier(lightly: Any) -> None:
    from lightly.utils.benchmarking import LinearClassifier

    module = LinearClassifier(nn.Identity(), batch_size_per_device=512, feature_dim=4)
    module._trainer = types.SimpleNamespace(world_size=2, estimated_stepping_batches=10)
    (optimizer,), _ = module.configure_optimizers()
    assert math.isclose(optimizer.defaults["lr"], 0.1 * 512 * 2 / 256)
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["weight_decay"] == 0.0


def test_the_page_names_the_versions_that_are_installed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = {"lightly": "1.6.0", "solo-learn": "1.0.2", "stable-pretraining": "0.1.8",
             "lightly-train": "0.18.0"}  # fmt: skip
    assert all(f"{name} {number}" in page for name, number in named.items())
    found = {}
    for name in named:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    if not found:
        pytest.skip("none of them is installed")
    assert all(number.split(".")[0] == named[name].split(".")[0] for name, number in found.items())
