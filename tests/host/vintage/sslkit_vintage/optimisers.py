import torch

from sslkit.interfaces import Facts, Optimizer, OptimizerConfig


class PlainSgd(Optimizer):
    usual_lr = (0.01, 1.0)

    class Config(OptimizerConfig):
        momentum: float = 0.9

    def create(self, groups):
        return torch.optim.SGD(groups, lr=self.config.lr, momentum=self.config.momentum)


class DecaySgd(Optimizer):
    """Hands the decay on, as a default that the groups override."""

    def create(self, groups):
        return torch.optim.SGD(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)


class RuleSgd(Optimizer):
    """Judges its own fields."""

    @classmethod
    def problems(cls, config, facts: Facts):
        if config.weight_decay > 0.1:
            yield "weight_decay", "is too much"

    def create(self, groups):
        return torch.optim.SGD(groups, lr=self.config.lr)


class OwnGroups(Optimizer):
    """Decays in its own way."""

    def create(self, groups):
        for group in groups:
            group["weight_decay"] = 0.5 * self.config.weight_decay
        return torch.optim.SGD(groups, lr=self.config.lr)
