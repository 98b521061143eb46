"""Tiny networks of diffusers: every transformer and U-Net class that can be built small.

`NETWORKS[name].build()` is the network; `.arguments(x, t)` are its keyword arguments for x of
`.shape` and t (B,) in (0, 1), all else constant; `first(out)` is the tensor that it returns.
"""

import importlib
import pkgutil

from diffusers.models import ModelMixin, transformers, unets
from diffusers_images import IMAGES
from diffusers_tiny import Tiny, find, first
from diffusers_videos import VIDEOS

__all__ = ["FLOAT32", "LEFT_OUT", "NETWORKS", "TRAINED", "Tiny", "classes", "find", "first"]

NETWORKS: dict[str, Tiny] = IMAGES | VIDEOS

FLOAT32 = {"Kandinsky5Transformer3DModel", "MotifVideoTransformer3DModel"}
"""They cast to float32 inside and do not run in float64."""
FLOAT32 |= {"OmniGenTransformer2DModel"}  # its mask becomes NaN there

TRAINED = {"HiDreamImageTransformer2DModel"}
"""In eval mode its experts run under no_grad."""

LEFT_OUT = {
    "AnyFlowFARTransformer3DModel": "flex_attention, which has no backward pass on CPUs",
    "Cosmos3OmniTransformer": "text, video and sound packed into one sequence by index lists",
    "Kandinsky6SRTransformer3DModel": "flex_attention, which has no backward pass on CPUs",
    "MiniMaxH3Transformer3DModel": "text, video and sound packed into one sequence by index lists",
    "MiniMaxMusic3RVQDepthDecoder": "predicts tokens one after the other; it has no time",
    "MotionAdapter": "weights for UNetMotionModel; it has no forward",
    "RFD4ProteinaTransformer": "proteins: structures with dozens of features each",
    "SanaWMTransformer3DModel": "camera rays and chunks, whose tensors the pipeline makes",
    "UVit2DModel": "takes token indices, which have no derivative",
    "WanAnimate2Transformer3DModel": "needs a cache of keys and values from another forward",
}
"""Classes without a tiny network here, and why."""


def classes() -> set[str]:
    """The names of all transformer and U-Net classes of the installed diffusers."""
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for package in (transformers, unets)
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.endswith("_flax")
    ]
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, ModelMixin)
        and value.__module__ == module.__name__
    }
