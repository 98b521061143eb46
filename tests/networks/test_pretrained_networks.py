"""Networks of diffusers as backbones: what their own pipelines make of a noise, ours make too."""

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pipelines
import pytest
import torch

from scm_core import TrigFlow, dual
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label, Tokens
from scm_core.method.samplers import ddim
from scm_core.networks.pretrained import FAMILIES, Pipeline, time

diffusers = pipelines.diffusers

STEPS = 4
FAST = ("PixArtTransformer2DModel", "SD3Transformer2DModel", "UNet2DConditionModel")
SLOW = partial(pytest.param, marks=pytest.mark.slow)


def saved(name, folder):
    pipelines.build(name).save_pretrained(folder)
    return folder


def text(case):
    field = pipelines.LENGTH, pipelines.WIDTH, case.pooled
    tokens, pooled = torch.randn(1, *field[:2]), torch.randn(1, case.pooled)
    mask = torch.ones(1, pipelines.LENGTH, dtype=torch.long)
    return Tokens(*field), tokens, mask, pooled


def times_of(scheduler):
    """Where its steps have been, as TrigFlow's times."""
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()
        flow = type(scheduler).__name__.startswith("FlowMatch")
        return torch.atan2(sigmas, 1 - sigmas if flow else torch.ones_like(sigmas))
    angles = scheduler.alphas_cumprod.double().sqrt().acos()
    return torch.cat([angles[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])


def folded(case, x):
    """Samples (B, C, *grid) as the pipeline takes and gives latents, and the way back."""
    if case.pipeline in ("FluxPipeline", "QwenImagePipeline"):
        pack = getattr(diffusers, case.pipeline)._pack_latents
        return pack(x, 1, *x.shape[1:])
    if case.pipeline == "Flux2KleinPipeline":
        return diffusers.Flux2KleinPipeline._unpatchify_latents(x)
    return x


@pytest.mark.parametrize("name", [name if name in FAST else SLOW(name) for name in pipelines.CASES])
def test_its_own_pipeline_ends_where_ours_does(tmp_path, name):
    """An Euler step of any of diffusers' schedulers is a DDIM step of the network as F."""
    case, pipe = pipelines.CASES[name], pipelines.build(name)
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    field, tokens, mask, pooled = text(case)
    given = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    given |= {key: mask for key in ("prompt_attention_mask", "prompt_embeds_mask")}
    given |= {"negative_prompt_embeds": tokens, "negative_prompt_attention_mask": mask}
    if case.pipeline == "ZImagePipeline":
        given["prompt_embeds"] = [tokens[0]]
    if case.pipeline == "Flux2KleinPipeline":  # which undoes a standardisation by its vae's
        pipe.vae = standard_vae()
    noise = torch.randn(1, *case.shape)
    theirs = run(case, pipe, noise, {key: given.get(key, [3]) for key in case.asked})
    schema = {"prompt": field, "label": Label(10)}
    adapter = Pipeline.open(str(tmp_path)).adapter(schema).eval()
    adapter.known["factor"] = case.factor
    condition = {"prompt": field.pack(tokens, mask, pooled), "label": torch.tensor([3])}
    times = times_of(pipe.scheduler)
    start = noise * initial(case, pipe, times[0])
    ours = ddim(adapter, start, times, 1.0, condition)[-1]
    torch.testing.assert_close(folded(case, ours), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", pipelines.CASES)
def test_each_is_slowed_by_what_it_is_told_of_time(tmp_path, name):
    """Also one whose clock is no multiple of the time; and what held out sinusoids leave in
    training is what the weights make of it without us, guidance included."""
    case, (field, tokens, mask, pooled) = pipelines.CASES[name], text(pipelines.CASES[name])
    schema = {"prompt": field, "label": Label(10)}
    adapter = Pipeline.open(str(saved(name, tmp_path))).adapter(schema).eval()
    adapter.known["factor"] = case.factor
    adapter.known["scheduler"] |= {"base_shift": 3.0}
    condition = {"prompt": field.pack(tokens, mask, pooled), "label": torch.tensor([3])}
    x, t = torch.randn(1, *case.shape), torch.tensor([0.2, 0.8, 1.2, 1.5])
    told, timesteps = [], diffusers.models.embeddings.Timesteps
    first = next((m for m in adapter.network.modules() if isinstance(m, timesteps)), None)
    if first is None:
        assert name in ("PRXTransformer2DModel", "ZImageTransformer2DModel")
        return
    hook = first.register_forward_pre_hook(
        lambda _, given: told.append(float(given[0].flatten()[0]))
    )
    with torch.no_grad():
        for one in t:
            count = len(told)
            adapter(x, one[None], condition)
            del told[count + 1 :]
        hook.remove()
        ratio = torch.tensor(told) / adapter.clock(x, t)
        torch.testing.assert_close(ratio, ratio[:1].expand(4), rtol=1e-4, atol=0)
        found = time.slow(adapter, x, condition)
        assert bool(found) == (name != "Lumina2Transformer2DModel")  # whose sinusoids are slow
        plain = adapter(x, t[2:3], condition)
        time.hold(adapter, x, condition)
        torch.testing.assert_close(adapter(x, t[2:3], condition), plain, rtol=1e-4, atol=1e-5)


def standard_vae():
    """Whose latents are standardised by nothing."""
    bn = SimpleNamespace(running_mean=torch.zeros(4), running_var=torch.ones(4))
    return SimpleNamespace(bn=bn, config=SimpleNamespace(batch_norm_eps=0.0))


def initial(case, pipe, t):
    """What the pipeline's first latents are over noise of unit variance, at TrigFlow's x."""
    if type(pipe.scheduler).__name__.startswith("FlowMatch"):
        return float(t.sin() + t.cos())
    return float(pipe.scheduler.init_noise_sigma * (t.cos() if "Euler" in case.scheduler else 1))


def run(case, pipe, noise, asked):
    if case.pipeline in ("DiTPipeline", "DDIMPipeline"):  # which decode at once
        return loop(pipe, noise, asked)
    if case.pipeline == "CogVideoXPipeline":
        noise = noise.transpose(1, 2)
    if case.pipeline == "LTXPipeline":
        noise = noise.flatten(2).transpose(1, 2)
    if case.pipeline != "Flux2KleinPipeline":
        noise = folded(case, noise)
    given = {"latents": noise, "num_inference_steps": STEPS, "output_type": "latent"}
    found = pipe(**asked, **case.call, **given, return_dict=False)[0]
    if case.pipeline == "LTXPipeline":
        found = found.transpose(1, 2).unflatten(2, case.shape[1:]) if found.ndim == 3 else found
    return found.transpose(1, 2) if case.pipeline == "CogVideoXPipeline" else found


@torch.no_grad()
def loop(pipe, x, asked):
    pipe.scheduler.set_timesteps(STEPS)
    network = getattr(pipe, "transformer", None) or pipe.unet
    labels = {"class_labels": torch.tensor(asked["class_labels"])} if asked else {}
    for t in pipe.scheduler.timesteps:
        out = network(x, t.expand(1), **labels, return_dict=False)[0][:, : x.shape[1]]
        x = pipe.scheduler.step(out, t, x).prev_sample
    return x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_network_under_edms_preconditioning(tmp_path, kind):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=kind)
    pipe = pipelines.build("UNet2DModel")
    pipe.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler")
    adapter = Pipeline.open(str(tmp_path)).adapter({}).eval()
    scheduler.set_timesteps(STEPS)
    sigma = scheduler.sigmas[1]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        sample = x * (1 + sigma**2).sqrt()  # as x0 + sigma e
        t = sigma.atan().expand(2)
        noise = scheduler.precondition_noise(sigma).expand(2)
        out = pipe.unet(scheduler.precondition_inputs(sample, sigma), noise).sample
        denoised = scheduler.precondition_outputs(sample, out, sigma)
        ours = TrigFlow(1.0).to_data(x, adapter(x, t, {}), t)
    torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)
    assert time.slow(adapter, x[:1], {}) == []  # a logarithm of the noise level is slow enough


@pytest.mark.parametrize(
    "name, options, none",
    [("DiTTransformer2DModel", {}, 10), ("UNet2DModel", {"num_class_embeds": 5}, 4)],
)
def test_no_class_of_fewer_classes_is_the_networks_own(tmp_path, monkeypatch, name, options, none):
    case = pipelines.CASES[name]
    case = replace(case, options=case.options | options)
    monkeypatch.setitem(pipelines.CASES, name, case)
    opened = Pipeline.open(str(saved(name, tmp_path)))
    few, all_of_them = (opened.adapter({"label": Label(classes)}).eval() for classes in (2, none))
    x, t = torch.randn(1, *case.shape), torch.tensor([0.7])
    with torch.no_grad():
        two, third, own = (
            adapter(x, t, {"label": torch.tensor([label])})
            for adapter, label in ((few, 2), (all_of_them, 2), (all_of_them, none))
        )
    assert torch.equal(two, own) and not torch.allclose(own, third)


def test_no_label_is_dropped_at_random_in_training(tmp_path):
    adapter = Pipeline.open(str(saved("DiTTransformer2DModel", tmp_path)))
    adapter = adapter.adapter({"label": Label(10)}).train()
    x, t = torch.randn(1, 4, 8, 8).expand(64, -1, -1, -1), torch.full((64,), 0.7)
    with torch.no_grad():
        found = adapter(x, t, {"label": torch.full((64,), 3)})
    torch.testing.assert_close(found, found[:1].expand_as(found))


@pytest.mark.parametrize("name", [name if name in FAST else SLOW(name) for name in pipelines.CASES])
def test_dual_passes_through(tmp_path, name):
    case = pipelines.CASES[name]
    adapter = Pipeline.open(str(saved(name, tmp_path)))
    field, tokens, mask, pooled = text(case)
    adapter = adapter.adapter({"prompt": field, "label": Label(10)})
    condition = {"prompt": field.pack(tokens, mask, pooled), "label": torch.tensor([3])}
    x, dx, t = torch.randn(1, *case.shape), torch.randn(1, *case.shape), torch.tensor([0.7])
    F, tangent = dual.jvp(adapter, (x, t), (dx, 1e-2 * torch.ones(1)), condition=condition)
    h = 1e-2
    with torch.no_grad():
        more, less = (adapter(x + s * h * dx, t + s * h * 1e-2, condition) for s in (1, -1))
    torch.testing.assert_close(F, adapter(x, t, condition))
    assert F.requires_grad and not tangent.requires_grad
    assert (tangent - (more - less) / (2 * h)).norm() < 0.02 * tangent.norm()


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def broken(tmp_path, **what):
    folder = saved("UNet2DModel", tmp_path)
    change(folder, "unet/config.json", **what)
    return str(folder)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is no pipeline of diffusers: it has no model_index.json"):
        Pipeline.open(str(tmp_path))
    with pytest.raises(UserError, match="pretrained=nobody/nothing cannot be read"):
        Pipeline.open("nobody/nothing")
    with pytest.raises(UserError, match="UNet3DConditionModel, .* the nearest .* UNet2DCond"):
        Pipeline.open(broken(tmp_path / "a", _class_name="UNet3DConditionModel"))
    folder = broken(tmp_path / "b", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match="is quantised"):
        Pipeline.open(folder).network()
    folder = saved("UNet2DModel", tmp_path / "c")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="in pickles alone, which can execute code"):
        Pipeline.open(str(folder)).network()
    change(folder, "scheduler/scheduler_config.json", _class_name="ScoreSdeVeScheduler")
    with pytest.raises(UserError, match="a ScoreSdeVeScheduler with .* are not supported"):
        Pipeline.open(str(folder)).path()
    (folder / "unet" / "config.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        Pipeline.open(str(folder))
    folder = saved("UNet2DModel", tmp_path / "f")
    change(folder, "model_index.json", unet=["diffusers", "UNet2DConditionModel"])
    with pytest.raises(UserError, match="names a UNet2DConditionModel where its unet is a UNet2DM"):
        Pipeline.open(str(folder))
    with pytest.raises(UserError, match="asked by texts, which the data have not"):
        Pipeline.open(str(saved("WanTransformer3DModel", tmp_path / "d"))).adapter({})
    found = Pipeline.open(str(saved("UNet2DModel", tmp_path / "e")))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[diffusers\]'"):
        found.network()


def test_the_source_is_a_hash_of_weights_and_of_how_they_are_read(tmp_path):
    folder = saved("UNet2DModel", tmp_path)
    before = Pipeline.open(str(folder)).source
    assert Pipeline.open(str(saved("UNet2DModel", tmp_path / "again"))).source == before
    change(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert Pipeline.open(str(folder)).source != before


def test_every_row_is_a_class_of_diffusers():
    assert all(hasattr(diffusers, name) for name in FAMILIES)
    assert {case.kind or name for name, case in pipelines.CASES.items()} == {*FAMILIES}
