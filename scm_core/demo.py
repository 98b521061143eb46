"""A local web page to play with what is trained: `python -m scm_core.demo` opens a tab a modality.

Keys (key=value):
  modality=NAME      or a list, [image,audio]; default: every modality that is installed, also by
                     plugins of other packages, each with its shipped student or, where none is
                     shipped, the last of runs/MODALITY-*
  checkpoint=FILE    instead: this student, a folder of python -m scm_core.hub, or hub:OWNER/NAME
  decoder.vocoder= ...   the decoder's own keys, where they differ from those of the training
  port=7860          of the page
  host=127.0.0.1     who can open it: this machine alone; 0.0.0.0 lets in the whole network
  allowed_hosts=NAME the page's name, or a list, where it is opened by one: behind a proxy, say
"""

from scm_core.apps.page.demo import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
