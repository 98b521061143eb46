"""A local web page to play with what is trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from scm_core.apps.opening import open_checkpoint, settings_of
from scm_core.apps.page.live import Live
from scm_core.base import console
from scm_core.base.arguments import Overrides, place, several
from scm_core.base.errors import UserError
from scm_core.contract import spec as modalities

NEEDS = "the page needs the package gradio: pip install 'scm-core[demo]'"


@dataclass
class DemoConfig:
    """What the page shows, and where it is."""

    modality: Any = None
    checkpoint: str | None = place()
    port: int = 7860
    host: str = "127.0.0.1"
    allowed_hosts: Any = None


def main(arguments: list[str]) -> None:
    """Serve the page until it is interrupted."""
    settings, decoder = settings_of(DemoConfig, arguments)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
    try:
        from scm_core.apps.page import page
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UserError(NEEDS) from None
    names = several(settings.modality) or [entry.name for entry in modalities.installed()]
    with console.console.status("loading"):
        tabs = open_tabs(names, settings.checkpoint, decoder)
    page.serve(tabs, settings.host, settings.port, settings.allowed_hosts)


def open_tabs(
    names: list[str], checkpoint: str | None = None, decoder: Overrides | None = None
) -> dict[str, Live | str]:
    """A warm student for each modality, or the one-line message that says why there is none.

    A `checkpoint` is the only tab. Overrides of the section `decoder` replace the training's.
    UserError where there is no student at all.
    """
    if checkpoint:
        name = names[0] if len(names) == 1 else None
        live = Live(open_checkpoint(checkpoint, name, decoder), decoder)
        return {live.student.spec.name: live}
    tabs: dict[str, Live | str] = {}
    for name in dict.fromkeys(names):
        try:
            tabs[name] = Live(open_checkpoint(None, name, decoder), decoder)
        except UserError as error:
            tabs[name] = str(error)
        except Exception as error:  # somebody's plugin may fail in any way
            tabs[name] = f"modality {name} is broken: {type(error).__name__}: {error}"
    if not any(isinstance(tab, Live) for tab in tabs.values()):
        raise UserError("; ".join(map(str, tabs.values())) or "no modality is installed")
    return tabs
