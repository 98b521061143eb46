"""Draw samples from a trained model: `python -m scm_core.sample modality=image steps=2 n=64`.

Keys (key=value):
  checkpoint=FILE    an exported teacher or student, a folder of python -m scm_core.hub, or
                     hub:OWNER/NAME; or modality=NAME for the shipped student,
                     or, where none is shipped, the last of runs/MODALITY-*
  steps=2            a student's evaluations; for a teacher (default 32) the sampler's steps
  sampler=dpm        a teacher's: ddim, heun or dpm
  guidance=1.5       a teacher's; default: what the student was distilled with
  n=64               how many; batch_size=64 at a time
  label=3            the condition's own names: a class by its name, or else its number, or a list
                     [0,1,2] to cycle through; default: all classes in turn
  style=0.5,-1,2     a condition that is a vector, its numbers; default: held-out ones in turn
  decoder.vocoder= ...   the decoder's own keys, where they differ from those of the training
  seed=0             the same seed draws the same samples
  out=samples        folder for the overview and one file per sample
  sign.certificate=FILE sign.key=FILE   PEM files: whose C2PA manifest every file gets
"""

from scm_core.apps.sample import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
