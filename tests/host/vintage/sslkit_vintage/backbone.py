from pathlib import Path

from pydantic import PositiveInt
from sslkit.nn.depth import groups_by_module_order
from torch import nn

from sslkit.interfaces import Backbone, ComponentConfig, FeatureStage, Preprocess


class TinyConv(Backbone):
    class Config(ComponentConfig):
        width: PositiveInt = 8
        weights: Path | None = None

    def __init__(self, config, *, channels, image_size):
        super().__init__(config)
        if config.weights is not None:
            raise FileNotFoundError(f"{config.weights}")
        self.net = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, 2, 1), nn.BatchNorm2d(config.width), nn.ReLU()
        )
        self.num_features = config.width
        self.preprocess = Preprocess(
            image_size, image_size, "bilinear", (0.0,) * channels, (1.0,) * channels
        )
        self.feature_stages = (FeatureStage("net", config.width, 2),)

    def forward(self, images):
        return self.net(images).mean(dim=(2, 3))

    def feature_maps(self, images, stages=(-1,)):
        return [self.net(images) for _ in stages]

    def depth_groups(self):
        return groups_by_module_order(self)

    @classmethod
    def architecture(cls, config):
        return config.model_copy(update={"weights": None})
