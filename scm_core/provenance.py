"""How a file was made: `python -m scm_core.provenance FILE ...` prints it.

Every picture, sound and clip that `scm_core.sample` writes says which model drew it, by its hash,
and from which seed, steps and condition: in a PNG's text, a GIF's comment, the tags of WAV and
FLAC, the metadata of MP4. It is a note, not a proof: whoever edits the file can edit it too, unless
it is signed. A file that was changed after it was signed is refused. With trust=FILE, a PEM file of
CAs, so is one that is not signed, or by somebody for whom none of them vouches.
"""

from scm_core.apps.provenance import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
