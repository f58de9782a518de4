import torch
from pydantic import NonNegativeFloat

from sslkit.interfaces import ComponentConfig, Loss, LossInput
from sslkit.nn.functional import normalize


class AlignUniform(Loss):
    class Config(ComponentConfig):
        weight: NonNegativeFloat = 1.0

    def forward(self, inputs: LossInput):
        a, b = (normalize(view) for view in inputs.views)
        alignment = (a - b).square().sum(dim=1).mean()
        return alignment + self.config.weight * (self._potential(a) + self._potential(b)) / 2

    def _potential(self, z):
        return torch.pdist(z).square().mul(-2.0).exp().mean().log()

    def metrics(self, inputs):
        return {"norm": inputs.views[0].norm(dim=1).mean()}
