"""Check a plugin against the contract: `python -m scm_core.check modality=spectra`.

Further words are key=value, as for training: what is checked is what they would train, so
preset=smoke is quick. One line for each check, with what it measured and, where it failed, what to
change. Exit code 0 where all passed, else 2.
"""

from __future__ import annotations

from scm_core import cli, config, testing
from scm_core.errors import UserError


def main(arguments: list[str]) -> None:
    """Run every check; UserError counts those that failed."""
    spec, settings = config.load(arguments)
    cli.console.print(f"modality {settings.modality}, preset {settings.preset}")
    failed = 0
    for result in testing.results(spec, *arguments):
        for line in str(result).splitlines():
            cli.console.print(line, soft_wrap=True)
        failed += not result.ok
    if failed:
        raise UserError(f"{failed} of {len(testing.CHECKS)} checks failed")


if __name__ == "__main__":
    cli.run(main, __doc__)
