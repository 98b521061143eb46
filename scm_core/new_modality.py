"""Start a plugin: `python -m scm_core.new_modality spectra` writes the package ./spectra.

It is complete and can be installed, checked, trained and sampled at once, on data that are a
stand-in for yours.
"""

from scm_core.apps.scaffold.new_modality import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
