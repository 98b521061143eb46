"""A local web page to play with what is trained: `python -m scm_core.demo` opens a tab a modality.

Keys (key=value):
  modality=NAME      or a list, [image,audio]; default: every modality that is installed, also by
                     plugins of other packages, each with its shipped student or, where none is
                     shipped, the one trained last in runs/
  checkpoint=FILE    instead: this student, a folder of python -m scm_core.hub, or hub:OWNER/NAME
  decoder.vocoder= ...   the decoder's own keys, where they differ from those of the training
  port=7860          of the page
  host=127.0.0.1     who can open it: this machine alone; 0.0.0.0 lets in the whole network
  allowed_hosts=NAME the page's name, or a list, where it is opened by one: behind a proxy, say
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from scm_core import cli, config
from scm_core import modality as modalities
from scm_core.errors import UserError
from scm_core.live import Live
from scm_core.sample import open_checkpoint

NEEDS = "the page needs the package gradio: pip install 'scm-core[demo]'"


@dataclass
class DemoConfig:
    """What the page shows, and where it is."""

    modality: Any = None
    checkpoint: str | None = config.place()
    port: int = 7860
    host: str = "127.0.0.1"
    allowed_hosts: Any = None


def main(arguments: list[str]) -> None:
    """Serve the page until it is interrupted."""
    known = OmegaConf.structured(DemoConfig)
    words = config.parse(arguments)
    decoder = config.section(words, "decoder")
    settings = config.merge(known, ("command line", words))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
    try:
        from scm_core import page
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UserError(NEEDS) from None
    names = settings.modality or [entry.name for entry in modalities.installed()]
    names = [names] if isinstance(names, str) else list(names)
    with cli.console.status("loading"):
        tabs = open_tabs(names, settings.checkpoint, decoder)
    page.serve(tabs, settings.host, settings.port, settings.allowed_hosts)


def open_tabs(
    names: list[str], checkpoint: str | None = None, decoder: config.Words | None = None
) -> dict[str, Live | str]:
    """A warm student for each modality, or the sentence that says why there is none.

    A `checkpoint` is the only tab. Words of the section `decoder` replace those of the training.
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


if __name__ == "__main__":
    cli.run(main, __doc__)
