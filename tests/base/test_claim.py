"""A run directory is of its data, whatever machine measures them, and of no others."""

import json
from pathlib import Path

import pytest
import torch

from scm_core.apps.sharing import pack
from scm_core.base.claim import agreed
from scm_core.base.errors import UserError
from scm_core.base.files import Lock
from scm_core.contract.fields import Label
from scm_core.data.batches import InMemory
from scm_core.data.media import write_png, write_sound
from scm_core.engine import config
from scm_core.engine.run import Run

MEASURED = {
    "shape": [1, 8],
    "condition": {"label": ["a", "b"]},
    "statistics": {"mean": [1e-9, 5.0], "std": [0.5, 2.0], "fps": 8.0, "rate": 16000},
    "identity": {"files": "abc", "probe": {"mean": 0.0, "std": 1.0}},
}


def rounded(value, by=1e-6):
    """Plain values as another machine measures them: floats that differ a little."""
    if isinstance(value, dict):
        return {key: rounded(one, by) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, by) for one in value]
    return value + by * max(abs(value), 0.5) if isinstance(value, float) else value


def changed(key, value):
    """What was measured, with another value at a dotted key."""
    *above, last = key.split(".")
    copy = json.loads(json.dumps(MEASURED))
    place = copy
    for name in above:
        place = place[name]
    place[last] = value
    return copy


def test_what_differs_by_rounding_is_the_same_and_the_stored_holds(tmp_path):
    path = tmp_path / "data.json"
    assert agreed(path, MEASURED, "on other data") == MEASURED
    path.write_text(json.dumps(rounded(MEASURED)))
    assert agreed(path, MEASURED, "on other data") == rounded(MEASURED) != MEASURED
    path.write_text(json.dumps({key: MEASURED[key] for key in ("shape", "statistics")}))
    assert agreed(path, MEASURED, "on other data") == MEASURED  # as older versions wrote it


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [1, 9]),
        ("condition.label", ["a", "c"]),
        ("statistics.mean", [1e-9, 5.01]),
        ("statistics.std", [0.501, 2.0]),
        ("statistics.std", [0.5]),
        ("statistics.fps", 8.1),
        ("statistics.rate", 16001),
        ("identity.files", "abd"),
        ("identity.probe.mean", 0.01),
    ],
)
def test_what_differs_by_more_is_other_data_and_named(tmp_path, key, value):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(changed(key, value)))
    with pytest.raises(UserError, match=f"on other data: choose another out= .{key} differs"):
        agreed(path, MEASURED, "on other data")


@pytest.mark.parametrize("content", [b"\x80\xff", b"", b"[]", b"7", b'{"a": 1}', b"[" * 99999])
def test_a_data_json_of_something_else_is_one_sentence(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="data.json is not what a run wrote"):
        agreed(path, MEASURED, "on other data")


def pictures(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            write_png(torch.randint(256, (8, 8, 3)).to(torch.uint8), folder / name / f"{i}.png")


def sounds(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            write_sound(0.3 * torch.randn(16384), folder / name / f"{i}.wav", 22050)


WORDS = {
    "image": ["data.name=folder", "data.batch_size=2", "backbone.patch=1"],
    "audio": ["data.name=folder", "data.batch_size=2", "data.frames=64"],
    "video": ["data.name=sprites", "data.clips=32"],
}


def opened(words):
    """A run directory as a training opens it."""
    spec, settings = config.load(words)
    with Lock(Path(settings.out)) as lock:
        return Run(spec, settings, lock)


@pytest.fixture(params=WORDS)
def run(request, tmp_path, fashion_root):
    """A function that opens a run directory on the data of a modality; those of `data` differ."""

    def run(data="data"):
        name, root = request.param, tmp_path / data
        if name != "video" and not root.exists():
            torch.manual_seed(len(data))
            {"image": pictures, "audio": sounds}[name](root)
        words = [f"modality={name}", "preset=smoke", f"out={tmp_path / 'run'}", *WORDS[name]]
        root = fashion_root if name == "video" else root
        words += [f"data.root={root}", *(["data.seed=1"] * (name == "video" and data != "data"))]
        return opened(words)

    return run


def test_a_run_goes_on_on_another_machine_with_the_statistics_that_it_began_with(run):
    first = run()
    path = first.folder / "data.json"
    described = json.loads(path.read_text())
    stored = described["statistics"]
    stored |= rounded({key: stored[key] for key in ("mean", "std")}, 1e-5)
    path.write_text(json.dumps(described))
    second = run()
    assert second.statistics == second.data.statistics == stored != first.data.statistics
    assert json.loads(path.read_text()) == described
    ours, theirs = (r.data.train_set.__getitems__([0, 1]).x for r in (second, first))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    second.data.setup()  # as Lightning does once more
    assert torch.equal(second.data.train_set.__getitems__([0, 1]).x, ours)
    with pytest.raises(UserError, match="on other data: choose another out="):
        run("others")


def test_pictures_of_the_same_statistics_are_other_pictures(tmp_path):
    pictures(tmp_path / "data")
    words = ["modality=image", "preset=smoke", f"out={tmp_path / 'run'}", *WORDS["image"]]
    opened([*words, f"data.root={tmp_path / 'data'}"])
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    opened([*words, f"data.root={tmp_path / 'elsewhere'}"])
    first, second = (tmp_path / "elsewhere" / name / "0.png" for name in ("a", "b"))
    first.rename(tmp_path / "kept"), second.rename(first), (tmp_path / "kept").rename(second)
    with pytest.raises(UserError, match="on other data: choose another out= .identity"):
        opened([*words, f"data.root={tmp_path / 'elsewhere'}"])


@pytest.mark.parametrize("kind", ["image", "loose images", "audio"])
def test_data_may_lie_elsewhere_or_be_packed(tmp_path, kind):
    name = "audio" if kind == "audio" else "image"
    {"image": pictures, "audio": sounds}[name](tmp_path / "data")
    root = tmp_path / "data" / ("a" if "loose" in kind else "")
    words = [f"modality={name}", "preset=smoke", f"out={tmp_path / 'run'}", *WORDS[name]]
    first = opened([*words, f"data.root={root}"])
    elsewhere = root.rename(tmp_path / "elsewhere")
    pack.main([f"root={elsewhere}", f"out={tmp_path / 'packed'}"])
    for place in (elsewhere, tmp_path / "packed"):
        assert opened([*words, f"data.root={place}"]).statistics == first.statistics


def in_memory(noise=0.0):
    media = {n: torch.randn(n, 1, 8, generator=torch.Generator().manual_seed(n)) for n in (64, 16)}

    def read(split):
        values = media[64 if split == "train" else 16] * (1 + noise)
        return values, {"label": torch.arange(len(values)) % 2}

    class Plain:
        def __init__(self, statistics):
            self.std = statistics["std"]

        def encode(self, media):
            return media / self.std / 2

    return InMemory(read, {"label": Label(2)}, Plain, 16)


def test_media_in_memory_are_the_same_but_for_rounding(tmp_path):
    def about(noise):
        data = in_memory(noise)
        data.setup()
        return {"statistics": data.statistics, "identity": data.identity}

    (tmp_path / "data.json").write_text(json.dumps(about(0.0)))
    assert agreed(tmp_path / "data.json", about(1e-6), "on other data")
    with pytest.raises(UserError, match="on other data"):
        agreed(tmp_path / "data.json", about(0.01), "on other data")
    data = in_memory()
    data.setup()
    data.standardise({"mean": 0.0, "std": 4.0})
    assert torch.equal(data.sets["train"].x, data.media["train"][0] / 8)
