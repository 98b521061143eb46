"""What this machine has and what is missing: `python -m scm_core.doctor`.

Versions, devices and the precision that they are fast at, the extras of scm-core and of every
plugin's package, and for each plugin whether it loads, where its data are, and whether it can be
evaluated. Nothing is downloaded. The exit code is 0 whatever is missing.
"""

from scm_core.apps.doctor import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
