"""Groups of images that share BatchNorm statistics: MoCo's shuffled and split BatchNorm.

With statistics over the whole batch a network can tell a key of this batch from the keys of the
queue by traces of the batch that both carry, and solves the task without looking at the image
(He et al. 2020, arXiv 1911.05722, section 3.3). So queries and keys are normalised in small groups,
and a query's group holds other images than its key's. The paper's groups are the devices of a
cluster; here they are drawn by image, and only the BatchNorm layers see them.
"""

from __future__ import annotations

from torch import Tensor

from sslkit.randomness import SampleRandom


def random_order(random: SampleRandom) -> Tensor:
    """(B,) int64: the rows of the batch in a random order of their images, which depends on the
    images and on nothing else, neither on their order in the batch nor on who holds them."""
    words = random.bits("group", 2)
    # 63 bits: ties, which a stable sort would break by position, do not happen in practice.
    return ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)
