"""Whether a run directory is of these data: a run goes on with its own, on whatever machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scm_core.base.errors import UserError, reason

SPREAD = 1e-3  # of a standard deviation, within which means and deviations are the same
ROUNDING = 1e-5  # of any other number that is not whole
CALLED = "statistics.source"  # the name that data have, for which a folder's may stand


def agreed(path: Path, measured: dict[str, Any], other: str) -> dict[str, Any]:
    """What is ``measured``, as ``path`` in a run directory has it where that is there.

    The last digits of a sum are each machine's own: what is near enough is the same, and what the
    run began with holds. UserError where it is of something ``other``, or says nothing of the kind.
    """
    measured = json.loads(json.dumps(measured))
    try:
        if not path.exists():
            return measured
        if not path.is_file():
            raise ValueError("it is no file")
        stored = json.loads(path.read_text())
        known = {key: stored[key] for key in measured if key in stored}
        if not known:
            raise ValueError("it says nothing that a run says")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not what a run wrote ({reason(error)}): put it back, or choose another out="
        ) from error
    found = differences(known, {key: measured[key] for key in known})
    if different := next((name for name in found if name != CALLED), None):
        raise UserError(
            f"{path.parent} holds a run {other}: choose another out= ({different} differs)"
        )
    return {**measured, **known}


def differences(one: Any, two: Any, name: str = "", spread: Any = None) -> Iterator[str]:
    """The dotted names under which two plain values differ by more than rounding.

    What is called ``mean`` or ``std`` may differ by `SPREAD` of the ``std`` beside it, which is
    ``spread``: one for all, or one for each of a list.
    """
    if one == two:
        return
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            own = one.get("std") if key in ("mean", "std") else None
            yield from differences(one.get(key), two.get(key), f"{name}.{key}".strip("."), own)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        each = isinstance(spread, list) and len(spread) == len(one)
        spreads = spread if each else [spread] * len(one)
        for first, second, own in zip(one, two, spreads, strict=True):
            yield from differences(first, second, name, own)
    elif {type(one), type(two)} in ({float}, {float, int}):
        within = SPREAD * abs(spread) if isinstance(spread, int | float) else 0.0
        if not math.isclose(one, two, rel_tol=ROUNDING, abs_tol=within):
            yield name
    else:
        yield name
