"""Checks of what is written: configurations, schemas, checkpoints."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from scm_core.base import merging
from scm_core.contract.fields import schema_from_dict, schema_to_dict
from scm_core.engine import checkpoint, storage
from scm_core.engine import config as configuration
from scm_core.testing.subject import Fault, Subject, point, relative, seeded

RELOADED = 0.05  # how much F may differ after a round trip in half precision


def config_round_trip(subject: Subject) -> str:
    """Configuration and schema survive YAML and JSON, as in a run directory and a checkpoint."""
    plain = configuration.plain(subject.config)
    written = OmegaConf.create(OmegaConf.to_yaml(subject.config))
    read = OmegaConf.create(json.loads(json.dumps(plain)))
    for layer in (written, read):
        merged = configuration.merge(configuration.defaults(subject.spec), ("round trip", layer))
        if configuration.plain(merged) != plain:
            raise Fault("another configuration comes back", "use plain types in your dataclasses")
    schema = json.loads(json.dumps(schema_to_dict(subject.data.condition)))
    if schema_from_dict(schema, subject.spec.fields) != subject.data.condition:
        raise Fault(
            "another schema comes back",
            "use plain types in its fields, and list kinds of your own in ModalitySpec(fields=...)",
        )
    return f"{len(merging.keys(subject.config))} keys"


def reload(subject: Subject) -> str:
    """Weights and statistics from a safetensors file: strictly loaded, the same F and media."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        try:
            storage.export(
                path,
                subject.network.state_dict(),
                stage="teacher",
                step=0,
                config=subject.config,
                shape=subject.shape,
                condition=subject.data.condition,
                statistics=subject.data.statistics,
            )
        except TypeError as error:
            raise Fault(
                str(error), "statistics travel as JSON: lists, dicts, numbers and strings only"
            ) from error
        size = path.stat().st_size
        described, weights = storage.read(path)
    with seeded(1):  # not as the first one was: what it draws and does not save shall differ
        network = subject.backbone().eval()
    checkpoint.load_weights(network, weights, path)
    x, t, given = point(subject)
    with torch.no_grad():
        error = relative(network(x, t, given), subject.network(x, t, given))
    figure = f"{size / 1e6:.1f} MB; F differs by {error:.1e}, half precision"
    if not error <= RELOADED:
        raise Fault(figure, "register what F depends on as parameters or persistent buffers")
    codec = subject.spec.codec(subject.config, described["statistics"])
    held_out = subject.held_out.x[:2]
    media, again = subject.codec.decode(held_out), codec.decode(held_out)
    if isinstance(media, Tensor) and not torch.equal(media, again):
        raise Fault("media differ", "build the codec from the statistics alone")
    return figure
