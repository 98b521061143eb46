"""Videos as a user makes them: decoder, teacher, student, and clips that play everywhere."""

import json
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scm_core.engine import checkpoint
from scm_core.engine.sampling import cycled_condition, make_sampler, sample_all

SMOKE = ["modality=video", "preset=smoke"]


def command(name, *words):
    line = [sys.executable, "-m", f"scm_core.{name}", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fashion_root):
    """A run directory in which all three stages have been trained for four steps."""
    out = tmp_path_factory.mktemp("run") / "video"
    done = command("train", *SMOKE, f"data.root={fashion_root}", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return out


def test_three_stages_and_one_file_that_is_enough(trained, tmp_path):
    for stage in ("decoder", "teacher", "student"):
        with safe_open(trained / f"{stage}.safetensors", "pt") as file:
            described = {key: json.loads(value) for key, value in file.metadata().items()}
            has_decoder = any(name.startswith("autoencoder/") for name in file.keys())
        assert (described["stage"], described["step"]) == (stage, 4)
        assert list((trained / stage / "samples").glob("*.png"))
        assert has_decoder == (stage != "decoder")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((trained / "student.safetensors").read_bytes())
    done = command(
        "sample", f"checkpoint={alone}", "direction=left", "n=2", f"out={tmp_path}/clips"
    )
    assert done.returncode == 0, done.stderr
    for i in range(2):
        with av.open(str(tmp_path / "clips" / f"{i:05d}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.frames, stream.average_rate) == (8, 8)
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.format.name == "yuv420p"
        assert (tmp_path / "clips" / f"{i:05d}.gif").stat().st_size > 100
    assert (tmp_path / "clips" / "overview.png").stat().st_size > 100


def test_a_sample_can_be_kept_to_the_pixel(trained, tmp_path):
    words = [f"checkpoint={trained}/student.safetensors", "decoder.lossless=true", "n=1"]
    done = command("sample", *words, f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    model = checkpoint.load(trained / "student.safetensors")
    x = sample_all(model, make_sampler(model), cycled_condition(model.condition, 1), 1, 0, 64)
    with av.open(str(tmp_path / "00000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = model.codec.decode(x)[0].permute(1, 2, 3, 0)
    assert torch.equal(torch.from_numpy(np.stack(frames)), clip)


def test_a_repeated_command_does_nothing_more(trained, fashion_root):
    done = command("train", *SMOKE, f"data.root={fashion_root}", f"out={trained}")
    assert all(f"{stage}: done" in done.stdout for stage in ("decoder", "teacher", "student"))


def test_stages_need_the_ones_before(tmp_path, fashion_root):
    words = [*SMOKE, f"data.root={fashion_root}", f"out={tmp_path}/run"]
    done = command("train", *words, "stage=teacher")
    assert done.returncode == 2
    assert "train it first, by stage=decoder" in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["data.size=18"], "clips of 8 x 18 x 18 are not divisible by 4"),
        (["data.size=12"], "backbone unet: grid (2, 3, 3) is not divisible by 2"),
    ],
)
def test_sizes_that_do_not_fit_leave_nothing_behind(tmp_path, fashion_root, words, said):
    """Said before the decoder is trained, and the same folder takes the next try."""
    given = [*SMOKE, f"data.root={fashion_root}", f"out={tmp_path}/run", "stage=decoder"]
    done = command("train", *given, *words)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_stage_goes_on_with_its_own_networks_alone(trained, fashion_root, tmp_path):
    shutil.copytree(trained / "decoder", tmp_path / "run" / "decoder")
    words = [*SMOKE, f"data.root={fashion_root}", f"out={tmp_path}/run", "stage=decoder"]
    done = command("train", *words, "decoder.width=24")
    assert done.returncode == 2
    assert "holds other networks than these settings make" in done.stderr


def test_latents_of_another_decoder_are_refused(trained, fashion_root, tmp_path):
    """A teacher that was trained on the latents of one decoder is not continued on another's."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    words = [*SMOKE, f"data.root={fashion_root}", f"out={copy}"]
    more = command("train", *words, "stage=decoder", "decoder.max_steps=5")
    assert more.returncode == 0 and "decoder: done" in more.stdout, more.stderr
    assert "as the teacher learns its latents" in " ".join(more.stdout.split())
    (copy / "decoder.safetensors").unlink()
    shutil.rmtree(copy / "decoder")
    more = command("train", *words, "stage=decoder", "seed=1")
    assert more.returncode == 0, more.stderr
    done = command("train", *words, "stage=teacher", "teacher.max_steps=6")
    assert done.returncode == 2
    assert "on the latents of another decoder" in done.stderr


def test_a_student_begins_with_latents_of_its_own_decoder(trained, fashion_root, tmp_path):
    copy, other = tmp_path / "copy", tmp_path / "other.safetensors"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("student*"))
    with safe_open(trained / "student.safetensors", "pt") as file:
        weights, described = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    statistics = json.loads(described["statistics"])
    statistics["latents"]["autoencoder"] = "0" * 8
    save_file(weights, other, {**described, "statistics": json.dumps(statistics)})
    words = [*SMOKE, f"data.root={fashion_root}", f"out={copy}", "stage=student"]
    done = command("train", *words, f"student.init_from={other}")
    assert done.returncode == 2 and "latents of another decoder" in done.stderr
    own, empty = f"student.init_from={trained}/student.safetensors", tmp_path / "empty"
    done = command("train", *SMOKE, f"data.root={fashion_root}", f"out={empty}", own)
    assert done.returncode == 2 and "put the decoder.safetensors" in done.stderr
    assert not empty.exists()  # told before a decoder is trained that cannot be the same
    done = command("train", *words, own)
    assert done.returncode == 0, done.stderr


def test_images_have_no_such_stage(tmp_path, fashion_root):
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    done = command("train", *words, "stage=decoder")
    assert done.returncode == 2
    assert "stage=decoder is none of teacher, student" in done.stderr
