"""Whether files are signed, and what they say of how they were made."""

from __future__ import annotations

import json

from scm_core.apps.sharing import signing
from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.data.provenance import has_manifest, read

TRUST = "trust="


def main(arguments: list[str]) -> None:
    """Print whether each of the files is signed, and what it says."""
    trust = [word.removeprefix(TRUST) for word in arguments if word.startswith(TRUST)]
    names = [word for word in arguments if not word.startswith(TRUST)]
    if not names or len(trust) > 1 or "" in trust:
        raise UserError("which file? python -m scm_core.provenance FILE ... [trust=FILE]")
    for name in names:
        signed, facts = _signed_by(name, *trust), read(name)
        console.console.print(name, style="bold", soft_wrap=True)
        console.console.print(f"  signature: {signed}", soft_wrap=True)
        console.console.print("  It says of itself:")
        for fact in facts.items():  # in quotes: whatever it is, it is no line like the one above
            key, value = (json.dumps(part, ensure_ascii=False) for part in fact)
            console.console.print(f"    {key}: {value}", soft_wrap=True)


def _signed_by(path: str, trust: str | None = None) -> str:
    if not has_manifest(path):
        if trust:
            raise UserError(f"{path} is not signed")
        return "none"
    try:
        signing.library()
    except UserError as missing:
        if trust:
            raise
        return f"not checked: {missing}"
    return signing.verify(path, trust)
