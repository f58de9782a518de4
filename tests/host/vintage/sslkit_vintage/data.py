import numpy as np

from sslkit.interfaces import IGNORED_PIXEL, Boxes, Dataset, DatasetConfig, ImageReader


class _Reader(ImageReader):
    channels = 3
    image_size = (16, 16)

    def __init__(self, split, n):
        rng = np.random.default_rng(n)
        self.labels = (np.arange(n) % 2).astype(np.int64)
        self.class_names = ["a", "b"]
        self._images = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        self._images[self.labels == 1, :8] //= 4

    def __len__(self):
        return len(self._images)

    def read(self, index):
        return self._images[index]

    def fingerprint(self):
        return f"vintage{len(self)}"


class Plain(Dataset):
    reader = _Reader

    class Config(DatasetConfig):
        num: int = 64

    def open(self, split):
        return self.reader(split, self.config.num if split == "train" else 32)


class _Pixels(_Reader):
    def __init__(self, split, n):
        super().__init__(split, n)
        self.pixels = np.ascontiguousarray(self._images.transpose(0, 3, 1, 2))


class Pixels(Plain):
    reader = _Pixels


class _Masks(_Reader):
    mask_classes = ("ground", "thing")

    def mask(self, index):
        mask = np.zeros((16, 16), np.uint8)
        mask[:8] = self.labels[index]
        mask[0, 0] = IGNORED_PIXEL
        return mask


class Masks(Plain):
    reader = _Masks


class _Boxes(_Reader):
    box_classes = ("thing",)

    def boxes(self, index):
        return Boxes(
            np.array([[0, 0, 8, 8]], np.float32),
            np.zeros(1, np.int64),
            np.zeros(1, bool),
            np.zeros(1, bool),
        )


class Boxed(Plain):
    reader = _Boxes


class _Encoded(_Reader):
    def encoded(self, index):
        return self._images[index].tobytes()

    def encoded_sizes(self):
        return np.full(len(self), 768)


class Encoded(Plain):
    reader = _Encoded
