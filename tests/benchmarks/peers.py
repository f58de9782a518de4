"""The loops we are compared with: Pillow transforms in a torch DataLoader, with torchvision's
transforms and a loss of a few lines, or with lightly's `SimCLRTransform` and `NTXentLoss`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from sslkit.builtin.timm_backbone import TimmBackbone

from .arms import Unavailable, synchronize
from .cases import Case
from .images import Images
from .ours import build_experiment

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Transform = Callable[[Any], Any]

_TEMPERATURE = 0.5


@dataclass(frozen=True)
class LoopSettings:
    """What a plain loop leaves to its author."""

    workers: int
    precision: str
    channels_last: bool
    joint_forward: bool
    """One forward pass over both views, as ours does; False: one each, as lightly's examples do."""
    device: torch.device


def lightly_parts(case: Case) -> tuple[Transform, nn.Module]:
    """lightly's transform, with the parameters of the case, and loss. Raises Unavailable."""
    return lightly_transform(case), lightly_loss(_TEMPERATURE)


def lightly_transform(case: Case, *, normalize: bool = True) -> Transform:
    """lightly's `SimCLRTransform`. Raises Unavailable."""
    try:
        from lightly.transforms.simclr_transform import SimCLRTransform
    except ImportError as error:
        raise Unavailable(f"lightly is not installed: {error}") from error
    transform: Transform = SimCLRTransform(
        input_size=case.size,
        cj_strength=case.jitter_strength,
        gaussian_blur=0.5 if case.blur else 0.0,
        normalize=IMAGENET if normalize else None,
    )
    return transform


def lightly_loss(temperature: float) -> nn.Module:
    """lightly's `NTXentLoss`. Raises Unavailable."""
    try:
        from lightly.loss.ntx_ent_loss import NTXentLoss  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unavailable(f"lightly is not installed: {error}") from error
    loss: nn.Module = NTXentLoss(temperature=temperature)
    return loss


def plain_parts(case: Case) -> tuple[Transform, nn.Module]:
    """The same views from torchvision's transforms, and NT-Xent in five lines."""
    return TwoViews(plain_view(case)), DenseNTXent(_TEMPERATURE)


def plain_view(case: Case, *, normalize: bool = True) -> Transform:
    """One view of SimCLR, Pillow image to tensor, as tutorials write it."""
    from torchvision import transforms as T

    s, size = case.jitter_strength, case.size
    steps: list[Any] = [
        T.RandomResizedCrop(size, scale=(0.08, 1.0)),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
        T.RandomGrayscale(p=0.2),
    ]
    if case.blur:
        kernel = 2 * (size // 10 // 2) + 1
        steps.append(T.RandomApply([T.GaussianBlur(kernel, (0.1, 2.0))], p=0.5))
    steps.append(T.ToTensor())
    if normalize:
        steps.append(T.Normalize(**IMAGENET))
    transform: Transform = T.Compose(steps)
    return transform


class TwoViews:
    """A transform applied twice."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> list[Tensor]:
        return [self.transform(image), self.transform(image)]


class DenseNTXent(nn.Module):
    """NT-Xent with its whole matrix of logits, as most repositories have it."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z = F.normalize(torch.cat([first, second]), dim=1)
        logits = z @ z.T / self.temperature
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -1e9)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(first)))


class TransformedImages(Dataset[Any]):
    """Image i through a transform."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return self.images.num

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images.open(index))


class Endless(Sampler[int]):
    """Shuffled epochs without end, so that a block never meets the end of one."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.num).tolist()


class PlainRun:
    """Blocks of steps of a plain loop. The workers live as long as a block, and are gone while the
    other arms are timed."""

    def __init__(
        self,
        case: Case,
        make_recipe: Callable[[], Any],
        images: Images,
        parts: tuple[Transform, nn.Module],
        settings: LoopSettings,
    ) -> None:
        transform, self.criterion = parts
        self.settings, self.case = settings, case
        self.encoder, self.head = _networks(make_recipe(), settings)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=5e-4)
        self.loader: DataLoader[Any] = DataLoader(
            TransformedImages(images, transform),
            batch_size=case.batch_size,
            sampler=Endless(images.num),
            num_workers=settings.workers,
            drop_last=True,
            pin_memory=settings.device.type == "cuda",
        )

    def block(self) -> float:
        lead, steps = self._length()
        batches = iter(self.loader)
        for _ in range(lead):
            self.step(next(batches))
        synchronize(self.settings.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step(next(batches))
        synchronize(self.settings.device)
        seconds = time.perf_counter() - start
        del batches  # ends the workers
        return seconds * self.case.steps / steps

    def step(self, views: list[Tensor]) -> None:
        """One optimiser step."""
        settings = self.settings
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        first, second = (
            view.to(settings.device, non_blocking=True).contiguous(memory_format=layout)
            for view in views
        )
        bf16 = settings.precision == "bf16"
        with torch.autocast(settings.device.type, dtype=torch.bfloat16, enabled=bf16):
            if settings.joint_forward:
                z_first, z_second = self.head(self.encoder(torch.cat([first, second]))).chunk(2)
            else:
                z_first = self.head(self.encoder(first))
                z_second = self.head(self.encoder(second))
        loss = self.criterion(z_first.float(), z_second.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self) -> None:
        del self.loader, self.encoder, self.head, self.optimizer

    def _length(self) -> tuple[int, int]:
        """(lead steps, timed steps). All workers begin a batch at the same moment and so deliver in
        bursts: a block has to hold whole bursts, or it times the luck of where it begins."""
        workers = self.settings.workers
        if workers == 0:
            return self.case.lead_steps, self.case.steps
        return max(3, workers), -(-self.case.steps // workers) * workers


def _networks(recipe: Any, settings: LoopSettings) -> tuple[nn.Module, nn.Module]:
    """The encoder without the normalisation, which is in the transforms here, and the head."""
    experiment = build_experiment(recipe)
    experiment.folder.close()
    method: Any = experiment.method
    backbone = method.backbone
    assert isinstance(backbone, TimmBackbone)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    modules = [
        module.to(settings.device).to(memory_format=layout).train()
        for module in (backbone.model, method.head)
    ]
    return modules[0], modules[1]
