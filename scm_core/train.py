"""Train a two-step generator: `python -m scm_core.train modality=image`.

Keys (key=value; a section's keys as section.key):
  modality=NAME      the plugin, or package.module:SPEC; required
  preset=NAME        smoke (seconds), cpu, gpu, or a YAML file; default: what fits the device
  stage=NAME         decoder (where samples are latents), teacher or student; default: whichever
                     are not yet done
  out=FOLDER         the run directory; the same command again resumes what lies there
  seed=0             max_steps=N        max_time=DD:HH:MM:SS (for each stage)
  data.name= data.root= data.batch_size=   which data
  teacher.* student.* trainer.* backbone.*   see configs/ and the modality's config.yaml
"""

from scm_core.base import console
from scm_core.engine.run import main

if __name__ == "__main__":
    console.run(main, __doc__)
