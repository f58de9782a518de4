"""An autoencoder whose latents are codes of a codebook: the network of a tokenizer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import Backbone, ComponentConfig, Preprocess
from sslkit.nn.clustering import nearest_centres
from sslkit.nn.image import Interpolation
from sslkit.nn.numerics import full_precision, without_autocast

_MIDDLE, _SCALE = 0.5, 0.25
"""Pixels are normalised by these: about unit variance for photographs."""
_SMALL_IMAGE = 96


class VQAutoencoder(Backbone):
    """Convolutions from images to a grid of latents, one for each square of `stride` pixels; the
    codes that lie nearest to them; convolutions back to images.

    Features are the mean over the grid of the encoder's last hidden layer. What stands behind it is
    frozen until a method trains it (`vq_tokenizer`), and the codebook is no parameter: that method
    moves it. Source: van den Oord et al. 2017, arXiv 1711.00937.
    """

    class Config(ComponentConfig):
        stride: Literal[2, 4, 8, 16] = 8
        """Side of the square that a code stands for, pixels."""
        codes: int = Field(default=8192, ge=2, le=1 << 16)
        """K, codes of the codebook."""
        code_dim: int = Field(default=32, ge=1, le=1024)
        """Width of a latent and of a code."""
        width: int = Field(default=256, ge=1, le=4096)
        """Channels of the hidden layers."""
        blocks: int = Field(default=2, ge=0, le=64)
        """Residual blocks of the encoder, and of the decoder."""
        interpolation: Interpolation = "bilinear"
        """How images are resized at evaluation and in use."""

    config: Config
    codebook: Tensor
    """(K, code_dim) in float32."""

    def __init__(self, config: Config, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.channels, self.num_codes, self.stride = channels, config.codes, config.stride
        self.num_features = config.width
        self.encode = _encoder(config, channels)
        self.to_latent = nn.Conv2d(config.width, config.code_dim, 1)
        self.decode = _decoder(config, channels)
        for behind in (self.to_latent, self.decode):  # features do not pass these
            behind.requires_grad_(False)
        # Registered before it is filled: a description of a stranger's may name any size.
        self.register_buffer("codebook", torch.empty(config.codes, config.code_dim))
        self.codebook.normal_()
        small = image_size <= _SMALL_IMAGE
        self.preprocess = Preprocess(
            size=image_size,
            resize=image_size if small else round(image_size * 256 / 224),
            interpolation=config.interpolation,
            mean=(_MIDDLE,) * channels,
            std=(_SCALE,) * channels,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.hidden(images).mean((2, 3))

    def hidden(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, width, H / stride, W / stride)."""
        found: Tensor = self.encode(self.normalized(images))
        return found

    def normalized(self, images: Tensor) -> Tensor:
        """Images on the scale of the autoencoder."""
        return (images - _MIDDLE) / _SCALE

    def latents(self, hidden: Tensor) -> Tensor:
        """(B, rows, columns, code_dim) of what `hidden` gave, in float32 at least."""
        return full_precision(self.to_latent(hidden)).permute(0, 2, 3, 1)

    def nearest(self, latents: Tensor) -> Tensor:
        """(...,) int64: the numbers of the codes that lie nearest to latents (..., code_dim)."""
        with torch.no_grad(), without_autocast(latents):
            rows = latents.detach().flatten(0, -2)
            return nearest_centres(rows, self.codebook.to(rows))[0].view(latents.shape[:-1])

    def reconstruct(self, quantised: Tensor) -> Tensor:
        """(B, rows, columns, code_dim) -> (B, C, H, W), normalised, in float32 at least."""
        return full_precision(self.decode(quantised.permute(0, 3, 1, 2)))

    # --- As a tokenizer -----------------------------------------------------------------------

    @torch.no_grad()
    def codes_of(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, rows, columns) int64, the same in any precision of the
        run."""
        with without_autocast(images):
            images = images.to(self.codebook.dtype)
            return self.nearest(self.latents(self.hidden(images)))

    @torch.no_grad()
    def images_of(self, codes: Tensor) -> Tensor:
        """(B, rows, columns) int64 -> images (B, C, H, W) in [0, 1]."""
        with without_autocast(self.codebook):
            made = self.reconstruct(self.codebook[codes])
        return (made * _SCALE + _MIDDLE).clamp(0.0, 1.0)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, width, 3, padding=1)
        self.narrow = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.narrow(F.relu(self.wide(F.relu(x))))
        return x + inner


def _encoder(config: VQAutoencoder.Config, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(round(math.log2(config.stride))):
        layers += [nn.Conv2d(channels, config.width, 4, stride=2, padding=1), nn.ReLU()]
        channels = config.width
    layers.append(nn.Conv2d(config.width, config.width, 3, padding=1))
    layers += [_Residual(config.width) for _ in range(config.blocks)]
    return nn.Sequential(*layers, nn.ReLU())


def _decoder(config: VQAutoencoder.Config, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(config.code_dim, config.width, 3, padding=1)]
    layers += [_Residual(config.width) for _ in range(config.blocks)]
    steps = round(math.log2(config.stride))
    for step in range(steps):
        out = channels if step == steps - 1 else config.width
        layers += [nn.ReLU(), nn.ConvTranspose2d(config.width, out, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)
