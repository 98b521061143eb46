"""What is installed: `python -m scm_core.plugins`, or one of them: `... plugins audio`.

Without a word, one line for each plugin: its name, package, version, version of the contract, and
`ok` or why it cannot be used. With a name, or package.module:SPEC, that plugin alone is imported:
its configuration keys with types, defaults and documentation, its conditions and its shapes.
Further words are key=value, as for training: `... plugins image data.name=folder data.root=FOLDER`.
"""

from scm_core.apps.plugins import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
