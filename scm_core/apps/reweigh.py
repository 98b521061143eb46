"""EMA weights of a width that is chosen after the run (EDM2, arXiv 2312.02696, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scm_core.base import console
from scm_core.base.arguments import parse, place
from scm_core.base.errors import UserError
from scm_core.engine import config, snapshots, storage
from scm_core.engine.refusals import STAGES, trained

MISSED = 0.1  # of a profile, from which it is another one


@dataclass
class ReweighConfig:
    """Which run, which stage of it, and which widths."""

    out: str | None = place()
    ema: Any = None
    stage: str = "student"


def main(arguments: list[str]) -> None:
    """Write a checkpoint per width."""
    known = OmegaConf.structured(ReweighConfig)
    settings = config.merge(known, ("command line", parse(arguments)))
    widths = OmegaConf.to_container(OmegaConf.create({"ema": settings.ema}))["ema"]
    widths = widths if isinstance(widths, list) else [widths]
    if not settings.out or not all(isinstance(width, float) for width in widths):
        raise UserError("which widths of which run? give out=FOLDER ema=[0.05,0.1]")
    if settings.stage not in STAGES:
        raise UserError(f"stage={settings.stage} is none of {', '.join(STAGES)}")
    folder = Path(settings.out)
    exported = trained(folder, settings.stage)
    kept = snapshots.found(folder / settings.stage / "ema")
    for width in widths:
        try:
            weights, missed = snapshots.rebuilt(kept, width)
        except ValueError as error:
            raise UserError(str(error)) from error
        if missed > MISSED:
            raise UserError(
                f"ema={width} cannot be rebuilt: {missed:.0%} of its profile is missed by the "
                f"{len(kept)} snapshots of widths {', '.join(map(str, snapshots.WIDTHS))}"
            )
        path = exported.with_name(f"{settings.stage}-ema{width:g}.safetensors")
        storage.rewrite(exported, path, weights, ema=width)
        console.console.print(f"{path}: {missed:.1%} of its profile is missed")
