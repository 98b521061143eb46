"""Pack a folder of media into shards: `python -m scm_core.pack root=FOLDER out=FOLDER`.

Keys (key=value):
  root=FOLDER        what to pack: every file in it and its subfolders; required
  out=FOLDER         where the shards go; required
  megabytes=1000     of files in a shard, at most, but for one that is larger
To train on them: data.name=folder data.root=OUT, with the same result as from the folder.
Interrupted, the same command goes on.
"""

from scm_core.apps.sharing.pack import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
