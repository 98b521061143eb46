"""Check a plugin against the contract: `python -m scm_core.check modality=spectra`.

Further words are key=value, as for training: what is checked is what they would train, so
preset=smoke is quick. One line for each check, with what it measured and, where it failed, what to
change. Exit code 0 where all passed, else 2.
"""

from scm_core.apps.check import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
