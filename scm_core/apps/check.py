"""Check a plugin against the contract."""

from __future__ import annotations

from scm_core import testing
from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.engine import config


def main(arguments: list[str]) -> None:
    """Run every check; UserError counts those that failed."""
    spec, settings = config.load(arguments)
    console.console.print(f"modality {settings.modality}, preset {settings.preset}")
    failed = 0
    for result in testing.results(spec, *arguments):
        for line in str(result).splitlines():
            console.console.print(line, soft_wrap=True)
        failed += not result.ok
    if failed:
        raise UserError(f"{failed} of {len(testing.CHECKS)} checks failed")
