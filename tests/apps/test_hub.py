"""Models are shared as folders with a card, and drawn from where they lie or on the hub."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from scm_core.apps.opening import find, open_checkpoint
from scm_core.apps.sharing import hub
from scm_core.base.errors import UserError
from scm_core.engine import storage

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "image"


def command(name, *words):
    line = [sys.executable, "-m", f"scm_core.{name}", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "model"
    done = command("hub", "modality=image", "licence=apache-2.0", f"out={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_folder_has_the_models_their_figures_and_a_card(shared):
    for name in (hub.STUDENT, "teacher.safetensors", *hub.FIGURES):
        assert (shared / name).read_bytes() == (SHIPPED / name).read_bytes()
    _, head, text = (shared / "README.md").read_text().split("---\n", 2)
    about = OmegaConf.create(head)
    assert about.license == "apache-2.0" and "image" in about.tags
    assert "Data: fashion_mnist." in text and f"checkpoint={shared}" in text
    assert "| student, 2 steps | 2 |" in text and "efficientnet_lite0" in text


def test_a_shared_folder_is_drawn_from(shared, tmp_path):
    done = command("sample", f"checkpoint={shared}", "n=1", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "00000.png").exists()


def test_eight_bits_are_half_as_large_and_nearly_the_same(tmp_path):
    """Weights are off by half a level of their row at most; figures of others are left out."""
    done = command("hub", "modality=image", "bits=8", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    small, large = tmp_path / hub.STUDENT, SHIPPED / hub.STUDENT
    assert small.stat().st_size < 0.55 * large.stat().st_size
    assert not (tmp_path / "metrics.json").exists()
    assert "It has not been evaluated." in (tmp_path / "README.md").read_text()
    (described, packed), (before, weights) = storage.read(small), storage.read(large)
    assert described == before and packed.keys() == weights.keys()
    for name, value in weights.items():
        error = (packed[name].float() - value.float()).abs()
        if value.ndim > 1:
            error = error.flatten(1)
            assert (error.amax(1) <= 0.51 / 127 * value.float().flatten(1).abs().amax(1)).all()
        else:
            assert not error.any()
    assert open_checkpoint(str(tmp_path), "image").stage == "student"
    done = command("hub", "modality=image", "bits=4", f"out={tmp_path}")
    assert done.returncode == 2 and "neither 8 nor 16" in done.stderr


@pytest.mark.parametrize("bits", [8, 16])
def test_a_last_time_that_was_chosen_later_goes_along(tmp_path, bits):
    hub.main(["modality=image", f"bits={bits}", "student.last_time=0.5", f"out={tmp_path}"])
    chosen = open_checkpoint(str(tmp_path), None, device="cpu")
    assert chosen.ends[1] == 0.5 != open_checkpoint(None, "image", device="cpu").ends[1]
    _, weights = storage.read(SHIPPED / hub.STUDENT)
    if bits == 16:
        _, same = storage.read(tmp_path / hub.STUDENT)
        assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert not (tmp_path / "metrics.json").exists()  # of another sampler
    assert "It has not been evaluated." in (tmp_path / "README.md").read_text()


def test_figures_of_another_student_are_left_out(tmp_path, capsys):
    """As after more training, or an evaluation of other weights in the same folder."""
    given, out = tmp_path / "given", tmp_path / "shared"
    given.mkdir()
    for name in (hub.STUDENT, *hub.FIGURES):
        shutil.copy(SHIPPED / name, given)
    storage.restate(given / hub.STUDENT, 1.0)
    hub.main([f"checkpoint={given}", f"out={out}"])
    assert "is of another student than" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [hub.CARD, hub.STUDENT]
    assert "It has not been evaluated." in (out / hub.CARD).read_text()


def test_a_card_names_what_the_model_takes_to_be_opened(tmp_path):
    hub.main(["modality=audio", "decoder.vocoder=griffin_lim", f"out={tmp_path}"])
    opened = f"checkpoint={tmp_path} decoder.vocoder=griffin_lim steps=2"
    assert opened in (tmp_path / hub.CARD).read_text()


def test_a_model_of_the_hub_is_found_by_its_name(shared, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        return str(shared)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("hub:somebody/garments", "image").stage == "student"
    assert asked == ["somebody/garments"]

    def unreachable(name, allow_patterns):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="hub:a/b cannot be downloaded: no network$"):
        open_checkpoint("hub:a/b", None)


def test_nothing_is_uploaded_but_what_was_written(shared, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    sent = []

    class Api:
        def create_repo(self, *_, **__):
            pass

        def upload_folder(self, repo_id, folder_path, **patterns):
            files = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*")]
            sent.extend(huggingface_hub.utils.filter_repo_objects(files, **patterns))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "sub").mkdir()
    for name in (".env", "key.pem", "notes.md", "sub/student.safetensors", ".lock"):
        (tmp_path / name).write_text("secret")
    hub.main([f"checkpoint={shared}", f"out={tmp_path}", "repository=a/b"])
    assert sorted(sent) == sorted([hub.STUDENT, "teacher.safetensors", hub.CARD, *hub.FIGURES])


def test_a_folder_is_of_one_model(refused, shared, tmp_path):
    (tmp_path / "decoder.safetensors").write_text("another's")
    said = refused("hub", "modality=image", f"out={tmp_path}")
    assert "has decoder.safetensors of another model" in said
    before = (shared / hub.STUDENT).read_bytes()
    said = refused("hub", f"checkpoint={shared}", "bits=8", f"out={shared}")
    assert "where the model itself lies" in said and (shared / hub.STUDENT).read_bytes() == before


@pytest.mark.parametrize("bits", [8, 16])
def test_a_full_disk_leaves_no_empty_student(refused, tmp_path, bits):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        said = refused("hub", "modality=image", f"bits={bits}", f"out={tmp_path}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in said and not list(tmp_path.iterdir())


def test_what_cannot_be_shared_is_one_sentence(tmp_path, monkeypatch):
    done = command("hub", "modality=image")
    assert done.returncode == 2 and "give out=FOLDER" in done.stderr
    teacher = SHIPPED / "teacher.safetensors"
    done = command("hub", f"checkpoint={teacher}", f"out={tmp_path}")
    assert done.returncode == 2 and "wants a student" in done.stderr
    done = command("hub", "modality=image", f"out={tmp_path}", "student.last_time=2")
    assert done.returncode == 2 and "student.last_time=2" in done.stderr
    done = command("sample", f"checkpoint={tmp_path}")
    assert done.returncode == 2 and "no checkpoint at" in done.stderr
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[hub\]'"):
        find("hub:a/b")
