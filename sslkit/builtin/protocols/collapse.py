"""Whether the representation uses its dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, Subject
from sslkit.nn.representation import alignment, feature_std, rankme, uniformity
from sslkit.randomness import SampleRandom

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Collapse(Evaluator):
    """Watches for collapse on the representation of the test split (of the training split where
    there is no test split). Needs no labels.

    Metrics: `collapse/std`, the mean deviation of a dimension of L2-normalised features: about
    1 / sqrt(F) when healthy, 0 when collapsed (Chen and He 2020, arXiv:2011.10566, 4.1);
    `collapse/rankme`, the effective number of dimensions, 1 to F (Garrido et al. 2022,
    arXiv:2210.02885); `collapse/uniformity`, 0 when all features are equal, towards -4 when they
    are spread out; `collapse/alignment`, the squared distance of two views of an image, 0 when
    they agree, 2 when they are unrelated (both Wang and Isola 2020, arXiv:2005.10242).
    Alignment is left out where no augmented views are at hand.

    Figure: `spectrum`, the singular values of the centred features."""

    requires_labels = False
    baselines = False
    uses_train = False

    class Config(EvaluatorConfig):
        num_images: Annotated[int, Field(ge=2)] = 2048
        """Images for `std`, `rankme` and `uniformity`, chosen by the seed; all where there are
        fewer. RankMe is at most this number; the paper takes 25,600."""
        num_pairs: Annotated[int, Field(ge=2)] = 512
        """Pairs of augmented views for `alignment`."""

    def evaluate(self, subject: Subject) -> Evaluation:
        features = subject.bank.test if len(subject.bank.test) else subject.bank.train
        if len(features) < 2:
            return Evaluation(skipped=f"needs two images, there is {len(features)}")
        features = _subset(features, self.config.num_images, subject.seed)
        features = features.to(subject.bank.compute_device)
        metrics = {
            "collapse/std": float(feature_std(features)),
            "collapse/rankme": float(rankme(features)),
            "collapse/uniformity": float(uniformity(features)),
        }
        if subject.positive_pairs is not None:
            first, second = subject.positive_pairs(self.config.num_pairs)
            metrics["collapse/alignment"] = float(alignment(first, second))
        return Evaluation(metrics=metrics, figures={"spectrum": _spectrum(features)})


def _subset(features: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows chosen by the seed, the same at every evaluation."""
    if len(features) <= count:
        return features
    words = SampleRandom(seed, "collapse", 0, torch.arange(len(features))).bits("order", 1)
    rows = words[:, 0].argsort(stable=True)[:count].sort().values
    return features[rows.to(features.device)]


def _spectrum(features: Tensor) -> Figure:
    """Singular values of the centred features, largest first. A tail many orders below the head
    is dimensional collapse (Jing et al. 2021, arXiv:2110.09348)."""
    from matplotlib.figure import Figure

    centred = (features - features.mean(dim=0)).cpu().double()
    gram = centred.T @ centred if len(centred) >= centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(0)
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    ranks = range(1, len(values) + 1)
    floor = max(float(values[0]), 1e-12) * 1e-8
    axes.plot(ranks, values.clamp_min(floor).tolist())
    axes.set(yscale="log", xlabel="rank", ylabel="singular value", title="Spectrum of the features")
    axes.grid(alpha=0.3)
    return figure
