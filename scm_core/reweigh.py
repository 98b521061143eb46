"""Rebuild EMA weights of other widths after a run: `python -m scm_core.reweigh out=FOLDER ema=0.1`.

Keys (key=value):
  out=FOLDER         the run directory, trained with trainer.ema_snapshots=16 or more; required
  ema=[0.03,0.15]    relative widths, one or several; required
  stage=student      or teacher, decoder
Each becomes STAGE-ema0.15.safetensors in the run directory, a checkpoint like any other.
"""

from scm_core.apps.reweigh import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
