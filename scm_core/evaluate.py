"""Measure a student against its teacher: `python -m scm_core.evaluate checkpoint=FILE`.

Keys (key=value):
  checkpoint=FILE    an exported student; or modality=NAME for the shipped one
  teacher=FILE       its teacher; default: teacher.safetensors beside the student
  preset=NAME        smoke, demo, cpu or gpu: how many samples and rows; default: by the device
  n=5000             samples of every row; batch_size=128 at a time, in every row
  seed=0             the same seed draws the same samples
  features=MODULE:CLASS   another feature extractor than the plugin's, or [SEVERAL,OF,THEM], of
                     which the first is the chooser and the others only report
  guidance=[1,1.5,2] the teacher under each of these too; with a teacher as checkpoint= it alone:
                     what its student is to be given as student.guidance is known in advance
  compile=true       compile the networks: worth it for thousands of samples
  out=FOLDER         for metrics.json and pictures; default: where the student lies
  data.root= ... decoder.vocoder= ... limits.seconds= ...   keys that differ from the training's
An interrupted evaluation goes on, row by row, when the same command is given again.
"""

from scm_core.apps.evaluate import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
