"""The page of `scm_core.demo`: controls from a condition's schema, what was drawn, and its cost.

Results are HTML with the files inside: one answer of the server shows a picture or plays a sound,
and nothing is left on the disk.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import random
import re
import socket
import time
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import uvicorn
from fastapi import FastAPI
from gradio.components import Component
from starlette.middleware import Middleware

from scm_core.apps.page.live import REFERENCE, Drawn, File, Live
from scm_core.apps.web.connection import Connection
from scm_core.apps.web.guard import EVERYWHERE, Guard, bracketed, reach
from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.contract.fields import Control, Schema
from scm_core.engine.sampling import STEPS

SEEDS = 1000
STYLE = Path(__file__).with_name("page.css")
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
ABOUT = (
    "Every sample starts as noise and takes two evaluations of a network, on this machine's"
    " {device}. Drag a slider and watch; race the student against the teacher"
    " that it was distilled from."
)
# Not queued: a live request answers at once, and the model's own lock keeps them apart.
LIVE = {"show_progress": "hidden", "queue": False, "trigger_mode": "always_last"}
# All that the page asks for: gradio has many more, which take files from any site and keep them.
PATHS = re.compile(
    r"/|/(theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.+"
    r"|/gradio_api/run/\w+"
)


def serve(tabs: dict[str, Live | str], host: str, port: int, allowed_hosts: Any = None) -> None:
    """Show the page until it is interrupted; UserError where it cannot be served."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"no page at {host}:{port}: {why}; give another port=") from error
    app = gr.mount_gradio_app(
        FastAPI(middleware=[Middleware(Guard, host, allowed_hosts, PATHS)]),
        build(tabs),
        path="/",
        server_name=host,
        server_port=port,
        footer_links=[],
        ssr_mode=False,
        theme=gr.themes.Default(primary_hue="indigo", spacing_size="sm", **FONTS),
        css_paths=STYLE,
    )
    address = f"http://{'localhost' if host in EVERYWHERE else bracketed(host)}:{port}"
    console.console.print(f"Open {address} in a browser; Ctrl-C ends it.", soft_wrap=True)
    if said := reach(host, allowed_hosts):
        console.console.print(said, soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="error", http=Connection)).run([listener])


def build(tabs: dict[str, Live | str]) -> gr.Blocks:
    """One tab for each modality, or the one-line message that says why it cannot be shown."""
    about = ABOUT.format(device="GPU" if torch.cuda.is_available() else "CPU")
    with gr.Blocks(title="scm-core, live", analytics_enabled=False, fill_width=False) as blocks:
        gr.HTML(f"<h1>Two-step generators, live</h1><p>{about}</p>", elem_classes="about")
        with gr.Tabs():
            for name, live in tabs.items():
                with gr.Tab(name.capitalize()):
                    if isinstance(live, str):
                        gr.HTML(notice(live))
                    else:
                        _fill(live)
    for block in blocks.blocks.values():
        block.GRADIO_CACHE = os.devnull  # where what a request points at would be kept
    return blocks


def controls(schema: Schema) -> dict[str, Component]:
    """A control for each field of a condition, whose value `asked` understands."""
    return {key: _component(key, field.control()) for key, field in schema.items()}


def _component(key: str, control: Control) -> Component:
    choices = control.choices
    if control.kind == "text":
        return gr.Textbox(label=key, placeholder=control.hint)
    if control.kind == "choice":
        return gr.Dropdown([("any, in turn", ""), *choices], value="", label=key)
    first, middle, last = choices[0] - 1, choices[len(choices) // 2], choices[-1]
    return gr.Slider(first, last, middle, step=1, label=f"{key} (leftmost: any, in turn)")


def asked(schema: Schema, values: tuple[Any, ...]) -> dict[str, str]:
    """The condition's overrides, from the controls' values; what goes in turn is left out."""
    given = {}
    for (key, field), value in zip(schema.items(), values, strict=True):
        control = field.control()
        in_turn = control.kind == "slider" and value < control.choices[0]
        if value not in ("", None) and not in_turn:
            given[key] = str(value)
    return given


def surprise(schema: Schema, values: tuple[Any, ...]) -> list[Any]:
    """Another seed, and another value where there are choices; texts stay as they are."""
    controls = [field.control() for field in schema.values()]
    chosen = [
        random.choice(control.choices) if control.choices else value
        for control, value in zip(controls, values, strict=True)
    ]
    return [random.randrange(SEEDS), *chosen]


def _fill(live: Live) -> None:
    """A tab's controls on the left, and what they draw on the right."""
    schema, still = live.student.condition, live.first.lasts is None
    many = 4 if still else 1
    with gr.Row():
        with gr.Column(scale=2, min_width=270):
            fields = list(controls(schema).values())
            seed = gr.Slider(0, SEEDS - 1, 0, step=1, label="seed", elem_classes="seed")
            steps = gr.Slider(1, 8, STEPS, step=1, label="steps (network evaluations)")
            count = gr.Radio([1, 4, 16], value=many, label="how many")
            dragged = gr.Checkbox(True, label="generate as I drag")
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", min_width=80)
                surprised = gr.Button("Surprise me", min_width=80)
            race = gr.Button("Race the teacher", visible=live.teacher is not None)
        with gr.Column(scale=3, min_width=300):
            first = live.draw(asked(schema, tuple(field.value for field in fields)), n=many)
            result = gr.HTML(shown(first, plays=False), elem_classes="result")
            gr.HTML(f"<p class='from'>{escape(described(live))}</p>")
    inputs = [seed, steps, count, *fields]

    def draw(seed: int, steps: int, count: int, *values: Any) -> str:
        try:
            return shown(live.draw(asked(schema, values), seed, steps, count))
        except UserError as error:
            return notice(str(error))

    def follow(dragged: bool, *values: Any) -> Any:
        return draw(*values) if dragged else gr.skip()

    def surprising(steps: int, count: int, *values: Any) -> list[Any]:
        seed, *chosen = surprise(schema, values)
        return [draw(seed, steps, count, *chosen), seed, *chosen]

    def racing(seed: int, *values: Any) -> str:
        try:
            return raced(*live.race(asked(schema, values), seed))
        except UserError as error:
            return notice(str(error))

    gr.on([generate.click], draw, inputs, result, **LIVE)
    changed = [part.submit if isinstance(part, gr.Textbox) else part.input for part in inputs]
    gr.on(changed, follow, [dragged, *inputs], result, **LIVE)
    surprised.click(surprising, [steps, count, *fields], [result, seed, *fields], **LIVE)
    race.click(racing, [seed, *fields], result, **LIVE)


def shown(drawn: Drawn, plays: bool = True) -> str:
    """Samples in a grid above what they cost; the first sound starts by itself if it `plays`."""
    columns = math.isqrt(len(drawn.files) - 1) + 1
    figures = [_figure(file, plays and not i) for i, file in enumerate(drawn.files)]
    return (
        f"<p class='cost'><b>{_ms(drawn.seconds)}</b> {_detail(drawn)}</p>"
        f"<div class='grid' style='--columns: {columns}'>{''.join(figures)}</div>"
    )


def raced(teacher: Drawn, student: Drawn) -> str:
    """A sample of each side by side, their times as bars, and by how much the student wins."""
    sampler, steps = REFERENCE
    lanes = {
        f"Teacher, {sampler.capitalize()} {steps} steps": teacher,
        f"Student, {STEPS} steps": student,
    }
    longest = max(teacher.seconds, student.seconds)
    columns = [
        f"<section><h3>{name}</h3><p class='cost'><b>{_ms(drawn.seconds)}</b> {_detail(drawn)}</p>"
        f"<div class='bar' style='width: {100 * drawn.seconds / longest:.2f}%'></div>"
        f"{_figure(drawn.files[0], plays=False)}</section>"
        for name, drawn in lanes.items()
    ]
    ratio = teacher.seconds / student.seconds
    alone = teacher.network_seconds / student.network_seconds
    return (
        f"<p class='verdict'>From the same noise and condition, the student takes "
        f"<b>{ratio:.3g} times</b> less time; {alone:.3g} times without the decoding, which"
        " both need.</p>"
        f"<div class='race'>{''.join(columns)}</div>"
    )


def notice(sentence: str) -> str:
    """A message in place of a result."""
    return f"<p class='notice'>{escape(sentence)}</p>"


def described(live: Live) -> str:
    """Which model draws, and what it was trained on."""
    student = live.student
    source = student.statistics.get("source")
    trained = f", trained on {source}" if source else ""
    return f"{student.path.parent.name}/{student.path.name}, step {student.step}{trained}"


def _figure(file: File, plays: bool) -> str:
    """A picture, a clip that loops, or a sound below its preview; its title is a download."""
    source, medium = _uri(file.kind, file.data), file.kind.partition("/")[0]
    picture = source if medium == "image" else _uri("image/png", file.preview or b"")
    body = f"<img src='{picture}' alt='{escape(file.title)}' decoding='sync'>"
    if medium == "video":
        body = f"<video src='{source}' autoplay loop muted playsinline></video>"
    elif medium == "audio":
        again = time.monotonic_ns()  # the page keeps what has not changed, which would stay silent
        body += f"<audio src='{source}#{again}' controls {'autoplay' * plays}></audio>"
    save = f"<a href='{source}' download='{escape(file.name)}'>save</a>"
    return f"<figure>{body}<figcaption>{escape(file.title)} {save}</figcaption></figure>"


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _detail(drawn: Drawn) -> str:
    of = f"for {len(drawn.files)} samples, " * (len(drawn.files) > 1)
    lasts = "" if drawn.lasts is None else f", for {drawn.lasts:.2g} s to play"
    return (
        f"{of}{drawn.nfe:g} NFE: network {_ms(drawn.network_seconds)}"
        f" + decoding {_ms(drawn.decoding_seconds)}{lasts}"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{int(seconds < 0.01)}f} ms"
