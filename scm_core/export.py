"""A student as one graph, or as a pipeline of diffusers: `python -m scm_core.export out=FILE ...`.

Keys (key=value):
  checkpoint=FILE    an exported student, a folder of python -m scm_core.hub, or hub:OWNER/NAME
  modality=NAME      instead: the shipped student, or where none is shipped the one trained last
  format=onnx        for onnxruntime and others; torch writes a .pt2 of torch.export; diffusers the
                     folder of the pipeline that it is a student of, with its weights
  pretrained=FOLDER  that pipeline, or OWNER/NAME of the hub
  steps=2            evaluations of the network that are in the graph; a folder takes any number
  out=FILE           what to write, a file or with diffusers a new folder; required
  decoder.pretrained= ...   the decoder's own keys, where they differ from those of the training
The graph has all steps and, as far as it can be had as one, the decoder. Its inputs are `noise`,
N(0, 1) of shape (steps, B, C, *grid), and the condition's own names. What was written is compared
with PyTorch on a batch of noise, in float32, and both are timed on the CPU.
"""

from scm_core.apps.export import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
