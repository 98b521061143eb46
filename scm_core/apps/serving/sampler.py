"""What draws: LitServe's side of the server, which makes batches of requests.

One process answers HTTP and refuses what is wrong with a request (`serving.http`); one for each
device draws. LitServe fails a whole batch when one request of it does, so what arrives here
has been checked there. What nobody waits for any more is not drawn (`serving.gate`).
"""

import contextlib
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import litserve
import torch
from fastapi import Response
from litserve.loops.simple_loops import BatchedLoop
from litserve.utils import LitAPIStatus, LoopResponseType
from omegaconf import DictConfig
from torch import Tensor

from scm_core.apps.serving import http
from scm_core.apps.serving.gate import Places
from scm_core.apps.writing import provenance_of
from scm_core.base import distributed
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Schema, parse_condition
from scm_core.data import provenance
from scm_core.engine import checkpoint, sampling
from scm_core.engine.sampling import (
    STEPS,
    TEACHER_STEPS,
    SampleConfig,
    make_sampler,
)

Save = Callable[[Any, Path], Path]

LEFT = 499  # nginx's status of a client that has left, which reads no answer

# No postponed annotations: LitServe and FastAPI read those of `Sampler`.


class Wanted(NamedTuple):
    """A request as tensors: `noise` (n, C, *grid), and `fresh`, as much for each later step."""

    ticket: http.Ticket
    modality: str
    settings: SampleConfig
    format: str
    condition: Condition
    noise: Tensor
    fresh: list[Tensor]


class Drawn(NamedTuple):
    """A request's decoded samples, and how many requests were drawn together."""

    wanted: Wanted
    media: list[Any]
    together: int


class NobodyWaits(Exception):
    """All clients of a batch have left."""


class Sleeping(BatchedLoop):
    """LitServe's loop, asleep while nothing is asked: its own looks a thousand times a second."""

    def get_batch_requests(self, lit_api: Any, request_queue: Any, transport: Any) -> Any:
        """The next requests that somebody waits for; there are none that waited too long."""
        requests, deadline = [], None
        while len(requests) < lit_api.max_batch_size:
            timeout = deadline and max(0, deadline - time.monotonic())
            try:
                queue, uid, _, payload = request_queue.get(timeout=timeout)
            except Empty:
                break
            except (EOFError, OSError):  # the queue's process is gone, and the first one ends all
                sys.exit(1)
            if lit_api.places.waits(payload["ticket"]):
                requests.append((queue, uid, payload))
                deadline = deadline or time.monotonic() + lit_api.batch_timeout
            else:
                done = LitAPIStatus.OK, LoopResponseType.REGULAR
                self.put_response(transport, queue, uid, Response(status_code=LEFT), *done)
        return requests, []


class Sampler(litserve.LitAPI):
    """Draws requests together where they are of one model and number of steps.

    Noise belongs to a request, fresh noise of later steps too, so that its samples are those that
    it would get alone, but for the rounding of a larger batch's arithmetic.
    """

    def __init__(
        self, served: dict[str, http.Served], decoder: dict, settings: DictConfig, places: Places
    ) -> None:
        super().__init__(
            settings.max_batch_size, settings.batch_timeout, http.PATH, loop=Sleeping()
        )
        self.served, self.decoder, self.places = served, decoder, places
        type(self).decode_request.__annotations__["request"] = http.body(served, settings.max_n)

    def setup(self, device: str) -> None:
        """Load the models in the process that draws."""
        # Ctrl-C reaches all processes; the first one ends this one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        distributed.end_with_parent()
        distributed.limit_threads()
        self.models = {
            name: checkpoint.load(one.path, one.modality, device, self.decoder)
            for name, one in self.served.items()
        }
        for model in self.models.values():
            prepare(model.condition, encode=True)

    def decode_request(self, request: dict[str, Any]) -> Wanted:
        """The tensors of a request that has been checked."""
        ticket, name, ending = request["ticket"], request["modality"], request["format"]
        model, settings = self.models[name], SampleConfig(**request["settings"])
        condition = parse_condition(model.condition, request["condition"], settings.n)
        settings.batch_size = settings.n
        noise = sampling.seeded_noise(model.shape, settings.n, settings.seed, model.sigma_data)
        noise = noise.to(model.device)
        fresh = sampling.fresh_noise(settings.seed, 0)
        later = range(1, settings.steps if model.stage == "student" else 1)
        added = [fresh(noise) for _ in later]
        return Wanted(ticket, name, settings, ending, condition, noise, added)

    def predict(self, requests: list[Wanted]) -> list[Drawn]:
        """All samples of all requests, in their order."""
        groups: dict[tuple[str, int], list[int]] = {}
        for place, wanted in enumerate(requests):
            groups.setdefault((wanted.modality, wanted.settings.steps), []).append(place)
        drawn = {}
        for places in groups.values():
            try:
                media = self.draw([requests[place] for place in places])
            except NobodyWaits:
                media = iter(())
            for place in places:
                one = requests[place]
                drawn[place] = Drawn(one, list(islice(media, one.settings.n)), len(places))
        return [drawn[place] for place in range(len(requests))]

    @torch.no_grad()
    def draw(self, group: list[Wanted]) -> Iterator[Any]:
        """The decoded samples of requests of one model and number of steps, one after the other.

        NobodyWaits between two steps, where all clients have left.
        """
        model = self.models[group[0].modality]

        def network(*given: Any) -> Tensor:
            if not any(self.places.waits(one.ticket) for one in group):
                raise NobodyWaits
            return model.model(*given)

        noise = torch.cat([one.noise for one in group])
        condition = {
            key: torch.cat([one.condition[key] for one in group]).to(model.device)
            for key in model.condition
        }
        fresh = map(torch.cat, zip(*(one.fresh for one in group), strict=True))
        draw = make_sampler(model, steps=group[0].settings.steps)
        return iter(model.codec.decode(draw(network, noise, condition, lambda _: next(fresh))))

    def encode_response(self, drawn: Drawn) -> Response:
        """One file as it is, several as a ZIP archive; nothing for a client that has left."""
        wanted = drawn.wanted
        if not self.places.waits(wanted.ticket):
            return Response(status_code=LEFT)
        model, first = self.models[wanted.modality], self.served[wanted.modality].formats[0]
        save = model.codec.play if wanted.format == first else model.codec.save
        _, *facts = provenance_of(model, wanted.settings, wanted.condition)
        files = [
            encoded(save, one, wanted.format, said)
            for one, said in zip(drawn.media, facts, strict=True)
        ]
        content, kind = files[0], http.media_type(wanted.format)
        if len(files) > 1:
            content, kind = archive(files, wanted.format), http.ZIP
        return Response(content, media_type=kind, headers={http.TOGETHER: str(drawn.together)})


def encoded(save: Save, media: Any, ending: str, facts: provenance.Facts) -> bytes:
    """One decoded sample as the file with that ending, one of those that `save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        with provenance.stating(facts):
            save(media, Path(folder) / "0")
        return (Path(folder) / f"0.{ending}").read_bytes()


def archive(files: list[bytes], ending: str) -> bytes:
    """Files in a ZIP archive by their numbers, stored as they are: media are compressed."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for i, content in enumerate(files):
            target.writestr(f"{i:05d}.{ending}", content)
    return buffer.getvalue()


def prepare(schema: Schema, encode: bool) -> None:
    """Load what checking a condition takes, or encoding it, such as a text encoder: now, rather
    than when somebody waits for it."""
    for field in schema.values():
        with contextlib.suppress(UserError):  # without its encoder a prompt cannot be asked for
            example = field.show(field.cycle(1)[0])
            (field.parse_json if encode else field.check)(example)


def describe(model: checkpoint.Checkpoint) -> http.Served:
    """What requests to a model may ask for; its formats are the endings that its decoder saves."""
    prepare(model.condition, encode=False)  # before the process that answers is forked from here
    with torch.no_grad():
        (one,) = model.codec.decode(torch.zeros(1, *model.shape))
    with tempfile.TemporaryDirectory() as folder:
        first = model.codec.save(one, Path(folder) / "0").suffix[1:]
        others = {path.suffix[1:] for path in Path(folder).glob("0.*")} - {first}
    steps = STEPS if model.stage == "student" else TEACHER_STEPS
    formats = (first, *sorted(others))
    return http.Served(model.path, model.config.modality, model.condition, steps, formats)
