"""A student as a pipeline of diffusers: what it draws from a noise is what ours draws from it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pipelines
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scm_core.apps import export, export_pipeline
from scm_core.base.errors import UserError
from scm_core.contract.fields import Tokens
from scm_core.engine import run
from scm_core.engine.storage import read
from scm_core.method.samplers import LAST_TIME, consistency, consistency_times
from scm_core.networks.pretrained import Pipeline, time

diffusers = pipelines.diffusers

SANA, SD3, PIXART = "SanaTransformer2DModel", "SD3Transformer2DModel", "PixArtTransformer2DModel"
FLUX, UNET = "FluxTransformer2DModel", "UNet2DConditionModel"
WITHOUT_US = """
import sys
sys.modules["scm_core"] = None  # to import it raises
import torch, diffusers
folder, (given, absent) = sys.argv[1], torch.load(sys.argv[2])
pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
torch.manual_seed(1)
torch.save(pipe(**given, output_type="latent", return_dict=False)[0], sys.argv[2])
"""


def absent(folder):
    """The parts that a tiny pipeline has not, which diffusers wants to be told."""
    index = json.loads((folder / "model_index.json").read_text())
    return {key: None for key, value in index.items() if value == [None, None]}


def opened(folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trained(name, folder):
    """A pipeline on the disk, and a student of it: the same network with other weights."""
    pipelines.build(name).save_pretrained(folder)
    case, pipeline = pipelines.CASES[name], Pipeline.open(str(folder))
    field = Tokens(pipelines.LENGTH, pipelines.WIDTH, case.pooled)
    adapter = pipeline.adapter({"prompt": field}).eval()
    with torch.no_grad():
        for parameter in adapter.network.parameters():
            parameter.mul_(1.1)
    return case, pipeline, adapter, field


def prompt(case, field):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, pipelines.LENGTH, pipelines.WIDTH, generator=generator)
    pooled = torch.randn(1, case.pooled, generator=generator)
    mask = torch.ones(1, pipelines.LENGTH, dtype=torch.long)
    given = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    given |= {"prompt_attention_mask": mask, "prompt_embeds_mask": mask}
    return {key: given[key] for key in case.asked}, {"prompt": field.pack(tokens, mask, pooled)}


def ours(adapter, case, condition, noise, steps, last=LAST_TIME):
    """Both of N(0, 1) before the first step, as `fresh` is: samples of unit variance."""
    generator = torch.Generator().manual_seed(1)

    def fresh(x):
        return torch.randn(x.shape, generator=generator)

    times = consistency_times(steps, 1.0, adapter.ends(last))
    return consistency(adapter, noise, times, 1.0, condition, fresh=fresh)


def folded(case, x):
    """Samples as the pipeline takes and gives latents."""
    if case.pipeline != "FluxPipeline":
        return x
    return diffusers.FluxPipeline._pack_latents(x, 1, *x.shape[1:])


def unfolded_noise(pipe, case, monkeypatch):
    """Fresh noise is drawn in the layout of a sample, not of the pipeline's tokens."""
    module = sys.modules[type(pipe.scheduler).__module__]

    def drawn(shape, generator=None, device=None, dtype=None):
        return folded(case, torch.randn(1, *case.shape, generator=generator, dtype=dtype))

    monkeypatch.setattr(module, "randn_tensor", drawn)


@pytest.mark.parametrize(
    ("name", "steps", "last"),
    [
        *((name, steps, LAST_TIME) for name in (SANA, SD3, PIXART, FLUX, UNET) for steps in (1, 2)),
        *((name, 2, 0.5) for name in (SANA, SD3, FLUX)),
    ],
)
def test_diffusers_draws_what_we_draw(tmp_path, monkeypatch, name, steps, last):
    case, pipeline, adapter, field = trained(name, tmp_path / "teacher")
    export_pipeline.write(adapter, pipeline, tmp_path / "student", last)
    pipe = opened(tmp_path / "student")
    unfolded_noise(pipe, case, monkeypatch)
    asked, condition = prompt(case, field)
    noise = torch.randn(1, *case.shape)
    expected = folded(case, ours(adapter, case, condition, noise, steps, last))
    torch.manual_seed(1)  # some pipelines give their scheduler no generator
    found = pipe(
        **asked,
        **case.call,
        latents=folded(case, noise),
        num_inference_steps=steps,
        output_type="latent",
        return_dict=False,
    )[0]
    rounding = 5e-3 if name == PIXART else 1e-4  # its noise is divided by a cosine of 0.006
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.slow  # it imports all of it once more
def test_it_is_sampled_where_this_package_is_not(tmp_path):
    case, pipeline, adapter, field = trained(SANA, tmp_path / "teacher")
    export_pipeline.write(adapter, pipeline, tmp_path / "student")
    asked, condition = prompt(case, field)
    noise, passed = torch.randn(1, *case.shape), tmp_path / "passed.pt"
    given = {**asked, **case.call, "latents": noise, "num_inference_steps": 2}
    torch.save((given, absent(tmp_path / "student")), passed)
    command = [sys.executable, "-c", WITHOUT_US, tmp_path / "student", passed]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    expected = ours(adapter, case, condition, noise, 2)
    torch.testing.assert_close(torch.load(passed), expected, rtol=1e-4, atol=1e-4)


def test_a_student_of_no_pipeline_is_refused(tmp_path):
    words = ["modality=image", "format=diffusers", f"out={tmp_path / 'student'}"]
    with pytest.raises(UserError, match="is no student of pretrained="):
        export.main(words)


def test_the_second_of_two_steps_is_ours_or_the_nearest_there_is(tmp_path):
    _, pipeline, adapter, _ = trained(SANA, tmp_path / "flow")
    assert adapter.ends(1.1) == pytest.approx((torch.pi / 2, 1.1))
    assert adapter.ends(0.4) == pytest.approx((torch.pi / 2, 0.4))
    _, pipeline, adapter, _ = trained(UNET, tmp_path / "vp")
    times = pipeline.path().low
    assert adapter.ends(1.1)[0] > times.max()
    assert abs(adapter.ends(1.1)[1] - 1.1) < 0.1


def test_a_last_time_that_no_scheduler_knows_is_refused(tmp_path):
    """LCMScheduler's two steps end near the middle of its times; ours end where one likes."""
    _, pipeline, adapter, _ = trained(UNET, tmp_path / "vp")
    assert adapter.ends(0.3)[1] == pytest.approx(0.3, abs=0.01)
    with pytest.raises(UserError, match=r"last_time=0.30: in two .* name student.last_time=\d"):
        export_pipeline.write(adapter, pipeline, tmp_path / "student", adapter.ends(0.3)[1])
    assert not (tmp_path / "student").exists()


def test_other_parts_are_the_teachers(tmp_path):
    _, pipeline, adapter, _ = trained(SANA, tmp_path / "teacher")
    (pipeline.folder / "vae").mkdir()
    (pipeline.folder / "vae" / "config.json").write_text("{}")
    (pipeline.folder / "notes").mkdir()  # of nobody's
    index = json.loads((pipeline.folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderDC"]
    (pipeline.folder / "model_index.json").write_text(json.dumps(index))
    pipeline = Pipeline.open(str(pipeline.folder))
    export_pipeline.write(adapter, pipeline, tmp_path / "student")
    found = json.loads((tmp_path / "student" / "model_index.json").read_text())
    assert found == index | {"scheduler": ["diffusers", "FlowMatchLCMScheduler"]}
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert names == {"model_index.json", "scheduler", "transformer", "vae"}
    with pytest.raises(UserError, match="is there already"):
        export_pipeline.write(adapter, pipeline, tmp_path / "student")


def test_matrices_of_a_lora_are_as_diffusers_names_them(tmp_path):
    """What `load_lora_weights` makes of them is the network with `W + alpha / rank B A`."""
    _, pipeline, adapter, _ = trained(SANA, tmp_path / "teacher")
    layer, scale = "transformer_blocks.0.attn1.to_q", 0.5
    low, high = torch.randn(2, 16), torch.randn(16, 2)
    given = {f"network.{layer}.lora_A.weight": low, f"network.{layer}.lora_B.weight": high}
    lora = export_pipeline.lora_of(pipeline.part, given, scale)
    export_pipeline.write(adapter, pipeline, tmp_path / "student", lora=lora)
    pipe = opened(tmp_path / "teacher")
    before = pipe.transformer.get_submodule(layer).weight.detach().clone()
    pytest.importorskip("peft")
    pipe.load_lora_weights(tmp_path / "student")
    pipe.fuse_lora()
    after = pipe.transformer.get_submodule(layer).base_layer.weight
    torch.testing.assert_close(after, before + scale * high @ low)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (SANA, "transformer_blocks.0.attn1.to_q"),
        (SD3, "transformer_blocks.0.attn.to_q"),
        (UNET, "mid_block.attentions.0.proj_in"),
    ],
)
def test_a_lora_brings_its_slow_embedding_of_time(tmp_path, name, layer):
    """The teacher's pipeline computes with it what the slowed network computes with the matrices of
    the training merged, though their ranks differ."""
    pytest.importorskip("peft")
    case, _, adapter, field = trained(name, tmp_path / "teacher")
    pipeline = Pipeline.open(str(tmp_path / "teacher"))
    adapter = pipeline.adapter({"prompt": field}).eval()
    _, condition = prompt(case, field)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([1.2])
    with torch.no_grad():
        before = adapter(x, t, condition)
        assert time.slow(adapter, x, condition)
        weight = adapter.network.get_submodule(layer).weight
        A, B = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        if weight.ndim == 4:
            A, B = A[..., None, None], B[..., None, None]
        given = {f"network.{layer}.lora_A.weight": A, f"network.{layer}.lora_B.weight": B}
        weight += (B.flatten(1) @ A.flatten(1)).view_as(weight)
        wanted = adapter(x, t, condition)
    lora = export_pipeline.lora_of(pipeline.part, given, 1.0)
    lora |= export_pipeline.slowed_in(adapter, pipeline)
    export_pipeline.write(adapter, pipeline, tmp_path / "student", lora=lora)
    pipe = opened(tmp_path / "teacher")
    pipe.load_lora_weights(tmp_path / "student")
    adapter.network = getattr(pipe, pipeline.part).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapter(x, t, condition), wanted, rtol=1e-3, atol=1e-4)
    assert (wanted - before).abs().max() > 1e-2


def exported(tmp_path, monkeypatch, *words):
    """A student of a tiny DiT from the commands: its pipeline's folder and its file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    pipelines.build("DiTTransformer2DModel", vae=pipelines.vae()).save_pretrained(teacher)
    for i in range(40):
        path = tmp_path / "pictures" / f"class{i % 10}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (6 * i, 0, 0)).save(path)
    words = ["modality=image", "preset=smoke", "data.name=folder", "data.batch_size=4", *words]
    words += [f"data.root={tmp_path / 'pictures'}", "data.size=16", "trainer.accelerator=cpu"]
    words += ["student.phases=[{consistency: 1, steps: 2}]", "student.options={}"]
    run.main([*words, f"out={out}", f"pretrained={teacher}"])
    given = [f"checkpoint={out / 'student.safetensors'}", f"pretrained={teacher}"]
    export.main(["format=diffusers", *given, f"out={tmp_path / 'student'}"])
    return tmp_path / "student", out / "student.safetensors"


def graph(name, folder):
    """A student of a pipeline as what is exported, and an example of n samples."""
    case, _, adapter, field = trained(name, folder)
    codec = SimpleNamespace(autoencoder=None, traced=lambda x: x)
    about = {"sigma_data": 0.5, "ends": adapter.ends(LAST_TIME), "shape": case.shape}
    model = SimpleNamespace(backbone=adapter, codec=codec, **about)

    def example(n):
        pooled = torch.randn(n, case.pooled)
        tokens = torch.randn(n, pipelines.LENGTH, pipelines.WIDTH)
        given = field.pack(tokens, torch.ones(tokens.shape[:2]), pooled)
        return torch.randn(2, n, *case.shape), {"prompt": given}

    return export.StudentGraph(model, 2).eval(), example


@pytest.mark.parametrize("name", [PIXART, FLUX, UNET])
def test_a_student_of_a_pipeline_is_a_graph_of_many_batches(tmp_path, name):
    student, example = graph(name, tmp_path / "teacher")
    drawn = export.write_torch(student, example(3), tmp_path / "student.pt2")
    noise, condition = example(5)
    assert export.difference(drawn(noise, condition), student(noise, condition)) < export.BAR


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "ZImageTransformer2DModel"])
def test_a_network_that_computes_by_its_batch_is_no_graph(tmp_path, name, capsys):
    student, example = graph(name, tmp_path / "teacher")
    with pytest.raises(UserError, match="no graph that takes any batch.* by format=diffusers"):
        export.write_torch(student, example(3), tmp_path / "student.pt2")
    assert "def forward" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "guided"),
    [("DDPMPipeline", False), ("DDIMPipeline", False), ("SanaPipeline", True), ("None", False)],
)
def test_guidance_is_advised_where_a_pipeline_takes_it(kind, guided):
    assert export_pipeline.guided(kind) == guided


def test_from_a_training_to_a_pipeline(tmp_path, monkeypatch, capsys):
    """The command writes what the student's file holds, and draws it in two steps."""
    folder, file = exported(tmp_path, monkeypatch)
    assert "num_inference_steps=2 and guidance_scale=1\n" in capsys.readouterr().out
    pipe = opened(folder)
    _, weights = read(file)
    found = {f"network.{key}": value for key, value in pipe.transformer.state_dict().items()}
    assert {*found} == {*weights}
    assert all(torch.equal(found[key], weights[key].float()) for key in found)
    assert len(pipe([3], num_inference_steps=2, guidance_scale=1).images) == 1


def test_from_a_lora_to_a_pipeline(tmp_path, monkeypatch):
    """Beside the whole weights lie the matrices of the training and those of its embedding."""
    pytest.importorskip("peft")
    folder, file = exported(tmp_path, monkeypatch, "student.lora.rank=2")
    matrices, (_, trained_ones) = load_file(folder / export_pipeline.LORA), read(file)
    mlp = "transformer.transformer_blocks.0.norm1.emb.timestep_embedder"
    brought = {f"{mlp}.linear_{i}.lora_{k}.weight" for i in (1, 2) for k in "AB"}
    named = {key.replace("network.", "transformer.", 1) for key in trained_ones}
    assert {*matrices} == named | brought
    assert len(opened(folder)([3], num_inference_steps=2, guidance_scale=1).images) == 1
