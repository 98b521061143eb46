"""What draws: LitServe's side of the server, which makes batches of requests.

One process answers HTTP and refuses what is wrong with a request (`scm_core.serving.http`); one for
each device draws. LitServe fails a whole batch when one request of it does, so what arrives here
has been checked there.
"""

import multiprocessing
import os
import signal
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
from omegaconf import DictConfig
from torch import Tensor

from scm_core import checkpoint, generate, provenance
from scm_core.conditioning import Condition
from scm_core.sample import (
    STEPS,
    TEACHER_STEPS,
    SampleConfig,
    drawer,
    parse_condition,
    provenance_of,
)
from scm_core.serving import http

Save = Callable[[Any, Path], Path]

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10  # seconds in which requests are still answered when the server stops

# No postponed annotations: LitServe and FastAPI read those of `Sampler`.


class Wanted(NamedTuple):
    """A request as tensors: `noise` (n, C, *grid), and `fresh`, as much for each later step."""

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


class Sleeping(BatchedLoop):
    """LitServe's loop, asleep while nothing is asked: its own looks a thousand times a second."""

    def get_batch_requests(self, lit_api: Any, request_queue: Any, transport: Any) -> Any:
        """The next requests, and those that waited too long, of which there are none."""
        requests = [request_queue.get()]
        deadline = time.monotonic() + lit_api.batch_timeout
        while len(requests) < lit_api.max_batch_size:
            try:
                requests.append(request_queue.get(timeout=max(0, deadline - time.monotonic())))
            except Empty:
                break
        return [(queue, uid, payload) for queue, uid, _, payload in requests], []


class Sampler(litserve.LitAPI):
    """Draws requests together where they are of one model and number of steps.

    Noise belongs to a request, fresh noise of later steps too, so that its samples are those that
    it would get alone, but for the rounding of a larger batch's arithmetic.
    """

    def __init__(self, served: dict[str, http.Served], decoder: dict, settings: DictConfig) -> None:
        super().__init__(
            settings.max_batch_size, settings.batch_timeout, http.PATH, loop=Sleeping()
        )
        self.served, self.decoder = served, decoder
        type(self).decode_request.__annotations__["request"] = http.body(served, settings.max_n)

    def setup(self, device: str) -> None:
        """Load the models in the process that draws."""
        # Ctrl-C reaches all processes; the first one ends this one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.models = {
            name: checkpoint.load(one.path, one.modality, device, self.decoder)
            for name, one in self.served.items()
        }

    def decode_request(self, request: dict[str, Any]) -> Wanted:
        """The tensors of a request that has been checked."""
        model, settings = self.models[request["modality"]], SampleConfig(**request["settings"])
        condition = parse_condition(model.condition, request["condition"], settings.n)
        settings.batch_size = settings.n
        noise = generate.seeded_noise(model.shape, settings.n, settings.seed, model.sigma_data)
        noise = noise.to(model.device)
        generator = generate.fresh_noise(settings.seed, 0)
        later = range(1, settings.steps if model.stage == "student" else 1)
        fresh = [torch.randn(noise.shape, generator=generator).to(noise) for _ in later]
        return Wanted(request["modality"], settings, request["format"], condition, noise, fresh)

    def predict(self, requests: list[Wanted]) -> list[Drawn]:
        """All samples of all requests, in their order."""
        groups: dict[tuple[str, int], list[int]] = {}
        for place, wanted in enumerate(requests):
            groups.setdefault((wanted.modality, wanted.settings.steps), []).append(place)
        drawn = {}
        for places in groups.values():
            media = self.draw([requests[place] for place in places])
            for place in places:
                one = requests[place]
                drawn[place] = Drawn(one, list(islice(media, one.settings.n)), len(places))
        return [drawn[place] for place in range(len(requests))]

    @torch.no_grad()
    def draw(self, group: list[Wanted]) -> Iterator[Any]:
        """The decoded samples of requests of one model and number of steps, one after the other."""
        model = self.models[group[0].modality]
        noise = torch.cat([one.noise for one in group])
        condition = {
            key: torch.cat([one.condition[key] for one in group]).to(model.device)
            for key in model.condition
        }
        fresh = [torch.cat(parts) for parts in zip(*(one.fresh for one in group), strict=True)]
        draw = drawer(model, steps=group[0].settings.steps)
        return iter(model.decoder.decode(draw(model.model, noise, condition, fresh=fresh)))

    def encode_response(self, drawn: Drawn) -> Response:
        """One file as it is, several as a ZIP archive."""
        wanted = drawn.wanted
        model, first = self.models[wanted.modality], self.served[wanted.modality].formats[0]
        alone = wanted.format == first and hasattr(model.decoder, "play")
        save = model.decoder.play if alone else model.decoder.save
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
        (path,) = Path(folder).glob(f"*.{ending}")
        return path.read_bytes()


def archive(files: list[bytes], ending: str) -> bytes:
    """Files in a ZIP archive by their numbers, stored as they are: media are compressed."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for i, content in enumerate(files):
            target.writestr(f"{i:05d}.{ending}", content)
    return buffer.getvalue()


def describe(model: checkpoint.Checkpoint) -> http.Served:
    """What requests to a model may ask for; its formats are the endings that its decoder saves."""
    with torch.no_grad():
        (one,) = model.decoder.decode(torch.zeros(1, *model.shape))
    with tempfile.TemporaryDirectory() as folder:
        first = model.decoder.save(one, Path(folder) / "0").suffix[1:]
        others = {path.suffix[1:] for path in Path(folder).iterdir()} - {first}
    steps = STEPS if model.stage == "student" else TEACHER_STEPS
    formats = (first, *sorted(others))
    return http.Served(model.path, model.config.modality, model.condition, steps, formats)


def run(served: dict[str, http.Served], decoder: dict[str, Any], settings: DictConfig) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    server = litserve.LitServer(
        Sampler(served, decoder, settings),
        timeout=False,
        max_payload_size=http.MAX_BYTES,
        middlewares=[(http.Gate, {"queue": settings.queue})],
    )
    http.complete(server.app, served)
    server.uvicorn_graceful_timeout = GRACE
    stop_at_signals()
    try:
        server.run(
            settings.host,
            settings.port,
            num_api_servers=1,  # which counts the requests that wait
            log_level="warning",
            generate_client_file=False,
        )
    except KeyboardInterrupt:  # LitServe handles it, but not while it starts
        for process in multiprocessing.active_children():
            process.terminate()


def stop_at_signals() -> None:
    """Make SIGTERM the same as Ctrl-C, and either of them final.

    Both may be sent to all processes, of which this one stops the others: forked ones ignore them.
    """
    first = os.getpid()

    def stop(*_: Any) -> None:
        if os.getpid() == first:
            for sent in STOPS:
                signal.signal(sent, signal.SIG_IGN)
            raise KeyboardInterrupt

    for sent in STOPS:
        signal.signal(sent, stop)
