from pydantic import PositiveFloat, PositiveInt

from sslkit.interfaces import Augmentation, ComponentConfig, Geometry, ViewSpec
from sslkit.nn.image import random_resized_crop_boxes


class CropGamma(Augmentation):
    """A random resized crop and a random gamma, twice."""

    class Config(ComponentConfig):
        size: PositiveInt
        gamma: PositiveFloat = 2.0

    @property
    def views(self):
        return (ViewSpec(self.config.size), ViewSpec(self.config.size, role="local"))

    def draw(self, random, sizes):
        return [self._draw_view(random.substream("view", view), sizes) for view in range(2)]

    def _draw_view(self, random, sizes):
        return {
            "box": random_resized_crop_boxes(random, sizes, (0.4, 1.0), (3 / 4, 4 / 3)),
            "flip": random.uniform("flip", 1)[:, 0] < 0.0,
            "gamma": self.config.gamma ** random.uniform("gamma", 1, -1.0, 1.0)[:, 0],
        }

    def geometry(self, view, params, sizes):
        return Geometry(params["box"], params["flip"], self.config.size)

    def photometric(self, view, images, params):
        return images ** params["gamma"].view(-1, 1, 1, 1)

    def targets(self, params):
        return {"flipped": params[0]["flip"].long()}
