from torch import nn

from sslkit.interfaces import ComponentConfig, Head


class Bottle(Head):
    class Config(ComponentConfig):
        out_dim: int = 8

    def __init__(self, config, *, in_dim):
        super().__init__(config)
        self.out_dim = config.out_dim
        self.net = nn.Linear(in_dim, config.out_dim)

    def forward(self, features):
        return self.net(features)

    def as_layers(self):
        return (self.net,)
