"""From the command's arguments to files of samples."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

from scm_core.apps.opening import of_model, open_checkpoint
from scm_core.apps.writing import provenance_of, samples_in, signer_of, unsigned_like, write
from scm_core.base import console
from scm_core.base.arguments import Overrides, nearest, parse, section, word
from scm_core.base.errors import UserError
from scm_core.base.files import check_room
from scm_core.contract.fields import Schema, parse_condition
from scm_core.engine import config
from scm_core.engine.sampling import SampleConfig, make_sampler, refuse_null, sample_all


def main(arguments: list[str]) -> None:
    """Draw, decode and write the samples that the overrides ask for."""
    overrides = parse(arguments)
    decoder = of_model(overrides)
    where = (word(overrides, key) for key in ("checkpoint", "modality"))
    model = open_checkpoint(*where, decoder)
    known = OmegaConf.structured(SampleConfig)
    asked = condition_overrides(overrides, model.condition, known)
    try:
        settings = config.merge(known, ("command line", overrides))
    except UserError as error:
        raise UserError(f"{error} (conditions: {', '.join(model.condition) or 'none'})") from None
    if settings.n < 1 or settings.batch_size < 1:
        raise UserError("n and batch_size must be at least 1")
    check_room(Path(settings.out))
    signer = signer_of(settings.sign)
    condition = parse_condition(model.condition, asked, settings.n)
    refuse_null(model, condition)
    draw = make_sampler(model, settings.sampler, settings.steps, settings.guidance)
    started = time.perf_counter()
    with console.together() as first:
        x = sample_all(model, draw, condition, settings.n, settings.seed, settings.batch_size)
    if not first:
        return
    pictures = model.codec.decode(x.to(model.device))
    seconds = time.perf_counter() - started
    facts = provenance_of(model, settings, condition)
    out = Path(settings.out)
    before = samples_in(out)
    files = write(model, pictures, out, facts, signer)
    console.console.print(
        f"{settings.n} samples in {seconds:.2f} s from {model.path}: {files[0]}"
        f" and {len(files) - 1} files beside it"
    )
    if older := sorted(path.name for path, _ in samples_in(out).items() & before.items()):
        named = older[0] if len(older) == 1 else f"{len(older)} files, {older[0]} to {older[-1]}"
        console.console.print(
            f"{out} still has samples that were drawn before: {named}", soft_wrap=True
        )
    if signer and (unsigned := unsigned_like(files[1])):
        console.console.print(
            f"not signed, as the decoder writes them itself: {', '.join(unsigned)}"
        )


def condition_overrides(overrides: Overrides, schema: Schema, known: Iterable[str]) -> Overrides:
    """What is asked of each field, `condition.NAME` or NAME, taken out of the command's overrides.

    A bare NAME that is one of the command's `known` keys is that key. UserError for a name that
    the schema has not, or that is given in both ways.
    """
    asked = {}
    for key, text in section(overrides, "condition").items():
        asked[key.removeprefix("condition.")] = text
    for key in schema:
        if key in overrides and key not in known:
            if key in asked:
                raise UserError(f"{key} and condition.{key} are the same: give one of them")
            asked[key] = overrides.pop(key)
    for key in asked:
        if key not in schema:
            hint = nearest(key, [*schema]) if schema else "the model has none"
            raise UserError(f"no condition {key}: {hint}")
    return asked
