"""Recipes that name published settings run them: held against lightly's own parts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Batch, ImageAugmentation, Preprocess, Progress, RunFacts, ViewSpec
from sslkit.engine.optimization import Optimization
from sslkit.randomness import SampleRandom
from sslkit.recipe import Recipe, load_recipe, shipped_recipes

FIRST = Progress(0, 1, 1)

SIZE, BATCH = 32, 4
EPOCHS, STEPS_PER_EPOCH = 200, 97
TABLE = {
    "simclr_cifar10_r18": ("SimCLRTransform", {"cj_strength": 0.5, "gaussian_blur": 0.0}),
    "moco_v2_cifar10_r18": ("SimCLRTransform", {"cj_strength": 0.5, "gaussian_blur": 0.0}),
    "byol_cifar10_r18": ("BYOLTransform", None),
}
"""The recipes that run the settings of lightly's table, with lightly's transform for each."""
_MEAN = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)


@pytest.fixture(scope="module")
def lightly() -> SimpleNamespace:
    """The parts of lightly that its benchmarks are made of."""
    pytest.importorskip("lightly", reason="the parity group is not installed")
    from lightly import loss, models, transforms
    from lightly.models.modules import heads
    from lightly.utils.lars import LARS
    from lightly.utils.scheduler import CosineWarmupScheduler

    return SimpleNamespace(
        loss=loss,
        models=models,
        heads=heads,
        transforms=transforms,
        lars=LARS,
        scheduler=CosineWarmupScheduler,
    )


def load(name: str, *overrides: str) -> Recipe:
    if name not in shipped_recipes():
        pytest.skip("its plugin is not installed")
    return load_recipe(name, overrides)


def build(recipe: Recipe) -> Any:
    """The method of a recipe in float64 for a small batch, in training mode."""
    total = EPOCHS * STEPS_PER_EPOCH
    views = recipe.augmentation.build().views
    facts = RunFacts(50_000, 3, (SIZE, SIZE), 10, BATCH, STEPS_PER_EPOCH, total, views)
    torch.manual_seed(0)
    backbone = recipe.backbone.build(channels=3, image_size=SIZE)
    return recipe.method.build(backbone, facts).double().train()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    indices = torch.arange(BATCH)
    views = tuple(
        torch.rand(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return Batch(views, indices, SampleRandom(0, "method", 0, indices))


class LightlyNet(nn.Module):
    """lightly's ResNet-18 for CIFAR-10 with ImageNet statistics and the weights of ours, and a
    head."""

    def __init__(self, lightly: SimpleNamespace, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.net = lightly.models.ResNetGenerator("resnet-18")
        self.net.linear = nn.Identity()
        self.head = head
        names = {key.replace("downsample", "shortcut"): key for key in backbone.state_dict()}
        ours = backbone.state_dict()
        self.net.load_state_dict({name: ours[key] for name, key in names.items()})
        self.names = [names[name] for name, _ in self.net.named_parameters()]
        self.double().train()

    def mirror(self, backbone: nn.Module) -> nn.ParameterList:
        """The parameters of ours in the order of lightly's."""
        ours = dict(backbone.named_parameters())
        return nn.ParameterList([ours[name] for name in self.names])

    def take_head(self, head: nn.Module) -> None:
        for mine, theirs in zip(self.head.parameters(), head.parameters(), strict=True):
            mine.data.copy_(theirs)

    def forward(self, view: Tensor) -> Tensor:
        embeddings: Tensor = self.head(self.net((view - _MEAN) / _STD))
        return embeddings


def gradient(*parts: nn.Module) -> Tensor:
    """All gradients in one vector."""
    found = [p.grad.flatten() for part in parts for p in part.parameters() if p.grad is not None]
    return torch.cat(found)


def assert_same_gradients(mine: Tensor, theirs: Tensor) -> None:
    assert torch.linalg.norm(theirs) > 0.0
    assert torch.linalg.norm(mine - theirs) < 1e-8 * torch.linalg.norm(theirs)


def test_simclr_takes_the_step_of_lightly(lightly: SimpleNamespace) -> None:
    ours, data = build(load("simclr_cifar10_r18")), batch()
    theirs = LightlyNet(
        lightly, ours.backbone.model, lightly.heads.SimCLRProjectionHead(512, 512, 128)
    )
    theirs.take_head(ours.head)
    expected = lightly.loss.NTXentLoss()(*(theirs(view) for view in data.views))
    expected.backward()
    found = ours.objective(ours.embed(data), data, FIRST).loss
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradient(theirs.mirror(ours.backbone.model), ours.head), gradient(theirs))


def test_one_pass_over_both_views_is_another_step(lightly: SimpleNamespace) -> None:
    """The comparison above sees what the recipe changed."""
    data = batch()
    losses = [
        build(recipe).objective(build(recipe).embed(data), data, FIRST).loss.item()
        for recipe in (
            load("simclr_cifar10_r18"),
            load("simclr_cifar10_r18", "method.passes=joint"),
        )
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_byol_takes_the_step_of_lightly(lightly: SimpleNamespace) -> None:
    ours, data = build(load("byol_cifar10_r18")), batch()
    heads = lightly.heads
    theirs = LightlyNet(lightly, ours.backbone.model, heads.BYOLProjectionHead(512, 1024, 256))
    theirs.take_head(ours.projector)
    teacher = copy.deepcopy(theirs)
    predictor = heads.BYOLPredictionHead(256, 1024, 256).double()
    for mine, other in zip(predictor.parameters(), ours.predictor.parameters(), strict=True):
        mine.data.copy_(other)
    first, second = data.views
    criterion = lightly.loss.NegativeCosineSimilarity()
    with torch.no_grad():
        targets = teacher(first), teacher(second)
    predictions = predictor(theirs(first)), predictor(theirs(second))
    expected = 0.5 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
    expected.backward()
    found = ours.objective(ours.embed(data), data, FIRST).loss
    found.backward()
    assert found.item() == pytest.approx(1.0 + expected.item(), rel=1e-10), "up to a constant"
    mine = gradient(theirs.mirror(ours.backbone.model), ours.projector, ours.predictor)
    assert_same_gradients(mine, gradient(theirs, predictor))


def test_moco_takes_the_step_of_lightly(lightly: SimpleNamespace) -> None:
    """With whole-batch statistics: which images share a group is drawn, there as here."""
    recipe = load("moco_v2_cifar10_r18", "method.bn_groups=1", "method.queue_size=32")
    ours, data = build(recipe), batch()
    heads = lightly.heads
    theirs = LightlyNet(lightly, ours.backbone.model, heads.MoCoProjectionHead(512, 512, 128))
    theirs.take_head(ours.head)
    teacher = copy.deepcopy(theirs)
    losses = []
    for query, key in (data.views, data.views[::-1]):
        criterion = lightly.loss.NTXentLoss(temperature=0.1, memory_bank_size=(32, 128))
        criterion.memory_bank.bank = nn.functional.normalize(ours.queue.features, dim=1)
        with torch.no_grad():
            target = teacher(key)
        losses.append(criterion(theirs(query), target))
    expected = 0.5 * (losses[0] + losses[1])
    expected.backward()
    found = ours.objective(ours.embed(data), data, FIRST).loss
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-7)
    assert_same_gradients(gradient(theirs.mirror(ours.backbone.model), ours.head), gradient(theirs))


@pytest.mark.parametrize("name", TABLE)
def test_the_network_starts_as_that_of_lightly(lightly: SimpleNamespace, name: str) -> None:
    """The same law for each convolution, uniform in +- 1 / sqrt(fan in), and BatchNorm at one."""
    ours = build(load(name)).backbone.model
    theirs = lightly.models.ResNetGenerator("resnet-18")
    other = {key: value for key, value in theirs.named_parameters() if not key.startswith("linear")}
    mine = {key.replace("downsample", "shortcut"): p for key, p in ours.named_parameters()}
    assert mine.keys() == other.keys()
    for key, value in other.items():
        if value.ndim == 1:
            assert torch.equal(mine[key].float(), value), key
            continue
        bound, weight = 1.0 / math.sqrt(value[0].numel()), mine[key].detach()
        assert 0.99 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(float(value.detach().std()), rel=0.05)


@pytest.mark.parametrize("name", TABLE)
def test_the_optimiser_is_that_of_lightly(name: str) -> None:
    """Weight decay on every parameter, and torch's cosine advanced once an epoch."""
    recipe = load(name)
    method = build(recipe)
    optimization = Optimization(
        method, recipe.optimizer.build(), recipe.schedule.build(), batch_size=512
    )
    (group,) = optimization.optimizer.param_groups
    assert len(group["params"]) == sum(p.requires_grad for p in method.parameters())
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (5e-4, 0.9, False)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=6e-2 * 512 / 128)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(reference, EPOCHS)
    for epoch in range(EPOCHS):
        for step in (0, STEPS_PER_EPOCH - 1):
            done = epoch * STEPS_PER_EPOCH + step
            lr = optimization.set_rules(Progress(done, EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH))
            assert lr == pytest.approx(reference.param_groups[0]["lr"], abs=1e-12)
        reference.step()
        cosine.step()


@pytest.mark.parametrize("name", TABLE)
def test_the_augmentation_is_that_of_lightly(lightly: SimpleNamespace, name: str) -> None:
    made, settings = TABLE[name]
    if settings is None:
        views = lightly.transforms.BYOLView1Transform, lightly.transforms.BYOLView2Transform
        parts = [view(input_size=SIZE, gaussian_blur=0.0).transform.transforms for view in views]
    else:
        transform = getattr(lightly.transforms, made)(input_size=SIZE, **settings)
        parts = [view.transform.transforms for view in transform.transforms]
    recipe = load(name)
    preprocess = recipe.backbone.build(channels=3, image_size=SIZE).preprocess
    assert_same_augmentation(recipe, preprocess, parts)


def assert_same_augmentation(
    recipe: Recipe, preprocess: Preprocess, parts: Sequence[Sequence[Any]]
) -> None:
    """parts: for each view the steps of lightly's transform."""
    blocks = [b for b in recipe.augmentation.config.blocks() for _ in range(b.count)]
    for block, steps in zip(blocks, parts, strict=True):
        found = {type(step).__name__: step for step in steps}
        crop, jitter = found["RandomResizedCrop"], found["RandomApply"]
        assert {*crop.size} == {block.size}
        assert str(getattr(crop.interpolation, "value", crop.interpolation)) == block.interpolation
        assert (tuple(crop.scale), tuple(crop.ratio)) == (block.crop_scale, block.crop_ratio)
        assert found["RandomHorizontalFlip"].p == block.flip
        assert found["RandomVerticalFlip"].p == block.rotation_rate == 0.0
        assert jitter.p == block.jitter_probability
        (colour,) = jitter.transforms
        for field in ("brightness", "contrast", "saturation"):
            assert getattr(colour, field)[1] == pytest.approx(1.0 + block.strengths[field])
        assert colour.hue[1] == pytest.approx(block.strengths["hue"])
        assert found["RandomGrayscale"].p == block.grayscale_probability
        assert found["GaussianBlur"].prob == block.blur_rate
        solarize = found.get("RandomSolarization")
        assert (solarize.prob if solarize else 0.0) == block.solarize_probability
        normalize = found["Normalize"]
    assert preprocess.mean == pytest.approx(tuple(normalize.mean))
    assert preprocess.std == pytest.approx(tuple(normalize.std))


# --- ImageNet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "transform"), [("dcl_r50", "SimCLRTransform"), ("tico_r50", "BYOLTransform")]
)
def test_recipes_of_lightlys_imagenet_benchmark(
    lightly: SimpleNamespace, name: str, transform: str
) -> None:
    """Views, torchvision's start of the network (last BatchNorm of a block at one), and steps of
    LARS through warm-up and cosine; its norms differ by the weight decay, a millionth. The network
    that TiCo trains there has the second view, here the first."""
    recipe = load(name)
    backbone: Any = recipe.backbone.build(channels=3, image_size=224)
    views = getattr(lightly.transforms, transform)().transforms
    parts = [view.transform.transforms for view in views][:: -1 if name == "tico_r50" else 1]
    assert_same_augmentation(recipe, backbone.preprocess, parts)
    assert all(bool((block.bn3.weight == 1.0).all()) for block in backbone.model.layer1)

    steps, total = 300, 300 * int(recipe.train.epochs)
    schedule, parameter = recipe.schedule.build(), [nn.Parameter(torch.zeros(1))]
    theirs = lightly.scheduler(torch.optim.SGD(parameter), warmup_epochs=3000, max_epochs=total)
    for step in (*range(0, total, 997), total - 1):  # lightly's warm-up is one step ahead
        found = schedule.factor(Progress(step, total, steps))
        assert found == pytest.approx(theirs.scale_lr(step), abs=4e-4)

    config = recipe.optimizer.config
    start = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    mine, other = (nn.Parameter(start.clone()) for _ in range(2))
    decay = config.weight_decay.start
    group = {"params": [mine], "lr": 0.0, "weight_decay": decay}
    optimizers = [
        recipe.optimizer.build().create([group]),
        lightly.lars([other], lr=0.0, momentum=0.9, weight_decay=decay),
    ]
    for step in range(10):
        for optimizer, own in zip(optimizers, (mine, other), strict=True):
            optimizer.param_groups[0]["lr"] = config.peak_lr(recipe.train.batch_size) * step
            own.grad = torch.sin(start + step)
            optimizer.step()
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_images_are_evaluated_with_the_filter_that_they_are_trained_with(name: str) -> None:
    recipe = load(name)
    if not issubclass(recipe.augmentation.cls, ImageAugmentation):
        return
    views: tuple[ViewSpec, ...] = recipe.augmentation.build().views
    if max(view.size for view in views) > 96:  # smaller images are evaluated as they are
        config = recipe.augmentation.config
        blocks = config.blocks() if hasattr(config, "blocks") else [config]
        filters = {block.interpolation for block in blocks}
        assert filters == {recipe.backbone.config.interpolation}


@pytest.mark.parametrize("name", ["simclr_r50", "simclr_r50_voc", "simclr_r50_coco"])
def test_simclr_on_imagenet_has_the_loss_of_the_reference_code(name: str) -> None:
    """objective.py: the cross entropy of each half, a mean over B rows, and their sum."""
    recipe = load(name)
    slot = recipe.method
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(BATCH, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    views = (ViewSpec(SIZE), ViewSpec(SIZE))
    facts = RunFacts(60, 3, (SIZE, SIZE), None, BATCH, 10, 10, views)
    tiny = load_recipe("quickstart").backbone.build(channels=3, image_size=SIZE)
    found = slot.build(tiny, facts).objective({"z": z}, batch(), FIRST).loss
    found.backward()
    gradient, z.grad = z.grad, None

    a, b = nn.functional.normalize(z, dim=2).unbind(dim=1)
    masked = torch.eye(BATCH, dtype=torch.float64) * 1e9
    rows = torch.arange(BATCH)
    halves = [
        nn.functional.cross_entropy(
            torch.cat([one @ other.T, one @ one.T - masked * 0.1], dim=1) / 0.1, rows
        )
        for one, other in ((a, b), (b, a))
    ]
    expected = halves[0] + halves[1]
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, z.grad)
