"""Text encoders of transformers: alone, or as a pipeline of diffusers calls its own.

Weights are read from safetensors alone, and no code that a file names is run: classes are those of
the two libraries.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.base.device import best_device
from scm_core.base.errors import UserError, first_line, reason
from scm_core.base.hub import downloaded
from scm_core.contract.fields.tokens import Unpacked

NEEDS = "prompts need the package transformers: pip install 'scm-core[text]'"
LENGTH = 77  # tokens of a prompt, at most, by an encoder without a pipeline: what CLIP takes
INDEX = "model_index.json"  # of a pipeline
WEIGHTS = "model.safetensors"
PARTS = ("text_encoder", "tokenizer")  # and, of some pipelines, text_encoder_2 and so on
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


class TextEncoder:
    """What is named by the configuration's `key`: an encoder's folder, a pipeline's, or a hub name.

    Nothing is loaded before it is used, but its files are hashed.
    """

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key, self.said = name, key, f"{key}={name}"
        self.folder = located(name, self.said)
        self.of_pipeline = (self.folder / INDEX).exists()

    @property
    def exists(self) -> bool:
        """Whether there is one: a pipeline may do without."""
        return not self.of_pipeline or (self.folder / PARTS[0]).is_dir()

    @cached_property
    def identity(self) -> str:
        """A hash of all files that it is read from."""
        folders = [self.folder]
        if self.of_pipeline:
            children = sorted(self.folder.iterdir())
            folders = [p for p in children if p.is_dir() and p.name.startswith(PARTS)]
        digest = hashlib.sha256(_kind(self.folder).encode() if self.of_pipeline else b"")
        for folder in folders:
            for path in self._files(folder):
                digest.update(f"{path.relative_to(self.folder).as_posix()}\n".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @cached_property
    def loaded(self) -> Alone | OfPipeline:
        """The encoder itself; UserError where it cannot be read."""
        library()
        try:
            return (OfPipeline if self.of_pipeline else Alone)(self.folder)
        except UserError:
            raise
        except Exception as error:  # the libraries raise all kinds
            why = first_line(error)
            raise UserError(f"{self.said}: its text encoder cannot be read: {why}") from error

    def release(self) -> None:
        """Give back the memory of the encoder, which is loaded again where it is asked again."""
        vars(self).pop("loaded", None)

    def _files(self, folder: Path) -> list[Path]:
        """What is read of a folder: configurations, vocabularies and weights."""
        found = [path for form in FILES[:-1] for path in sorted(folder.glob(form))]
        index = folder / f"{WEIGHTS}.index.json"
        if index.exists():
            try:
                names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} cannot be read: {reason(error)}") from error
        else:
            names = {WEIGHTS} if (folder / "config.json").exists() else set()
        for name in sorted(names):
            if not (folder / name).is_file():
                raise UserError(
                    f"{self.said} has no {name} in {folder}: no weights are read but safetensors"
                )
            found.append(folder / name)
        return found


def library() -> Any:
    """Transformers, which takes seconds to import; UserError where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(NEEDS) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


@functools.cache
def opened(name: str, key: str) -> TextEncoder:
    """One for this process, which keeps it once it is loaded."""
    return TextEncoder(name, key)


def located(name: str, said: str) -> Path:
    """The folder of that name, or of the hub's OWNER/NAME, with what is read of it alone."""
    if (folder := Path(name)).is_dir():
        return folder
    if name.startswith((".", "/", "~")):  # which no name on the hub does
        raise UserError(f"{said} is no folder")
    of_pipeline = [INDEX, *(f"{part}*/{form}" for part in PARTS for form in FILES)]
    complaint = f"{said} is no folder, and not to be downloaded"
    found = downloaded(name, complaint, allow_patterns=of_pipeline)
    if (found / INDEX).exists():
        return found
    return downloaded(name, complaint, allow_patterns=list(FILES))


class Alone:
    """An encoder with its tokenizer: the last hidden state of each token, CLIP's pooled one too."""

    def __init__(self, folder: Path) -> None:
        import transformers

        options = {"trust_remote_code": False, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        known = transformers.AutoModelForTextEncoding
        kind = known if type(config) in known._model_mapping else transformers.AutoModel
        kind = transformers.CLIPTextModel if config.model_type == "clip" else kind
        options = {} if config.model_type == "clip" else options
        network = kind.from_pretrained(folder, use_safetensors=True, dtype="auto", **options)
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.limit = min(LENGTH, self.tokenizer.model_max_length)
        self.dtype = network.dtype

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Unpacked:
        """Tokens (B, n, width), n at most `limit`, their mask, and the pooled vector or none."""
        network = self.network.to(best_device())
        cut = {"padding": True, "truncation": True, "max_length": self.limit}
        tokens = self.tokenizer(texts, return_tensors="pt", **cut).to(network.device)
        mask = tokens.attention_mask
        found = network(input_ids=tokens.input_ids, attention_mask=mask)
        hidden = found.last_hidden_state
        pooled = found.pooler_output if "clip" in network.config.model_type else hidden[:, 0, :0]
        return Unpacked(hidden.float().cpu(), mask.bool().cpu(), pooled.float().cpu())

    def empty(self) -> Unpacked:
        """The same of no text, which some tokenizers leave without any token."""
        return self.encode(["" if self.count("") else self.tokenizer.eos_token])

    @property
    def length(self) -> int:
        """How many tokens a prompt may have."""
        return self.limit


class OfPipeline:
    """What a pipeline gives its transformer for a prompt, by its own `encode_prompt`.

    That has the defaults of the pipeline's call: length, templates, instructions.
    """

    def __init__(self, folder: Path) -> None:
        import diffusers

        kind = getattr(diffusers, _kind(folder), None)
        known = isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)
        if not known or not hasattr(kind, "encode_prompt"):
            raise UserError(f"{folder} is a {_kind(folder)}, which is no pipeline with prompts")
        index, parts = json.loads((folder / INDEX).read_text()), {}
        for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
            given = index.get(name)
            if name.startswith(PARTS) and isinstance(given, list) and given[0] is not None:
                parts[name] = _part(folder / name, *given)
            elif isinstance(given, bool | int | float | str):
                parts[name] = given
            elif parameter.default is inspect.Parameter.empty:
                parts[name] = None
        self.pipeline = kind(**parts)
        self.networks = [part for part in parts.values() if isinstance(part, nn.Module)]
        self.tokenizer = [part for key, part in parts.items() if key.startswith(PARTS[1])][-1]
        called = inspect.signature(kind.__call__).parameters
        wanted = inspect.signature(kind.encode_prompt).parameters
        self.options = {
            key: called[key].default
            for key in wanted
            if key in called and called[key].default is not inspect.Parameter.empty
        }
        self.guided = {"do_classifier_free_guidance"} & set(wanted)
        if "clean_caption" in wanted:  # or it would depend on packages that may be there or not
            self.options["clean_caption"] = False
        self.dtype = self.networks[0].dtype
        first = self._run([""], False)[0][0]
        self.limit = self.options.get("max_sequence_length") or first.shape[1]
        self.length = first.shape[1] if isinstance(first, Tensor) else self.limit

    def count(self, text: str) -> int:
        """How many tokens a text has, of the longer of two encoders."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def encode(self, texts: list[str]) -> Unpacked:
        """As `Alone`; what the pipeline does not mask is all there."""
        return self._unpacked([part[0] for part in self._run(texts, False)])

    def empty(self) -> Unpacked:
        """What the pipeline is guided away from where no negative prompt is given."""
        return self._unpacked([part[-1] for part in self._run([""], True)])

    @torch.inference_mode()
    def _run(self, texts: list[str], guided: bool) -> list[list[Any]]:
        """Tokens, masks and pooled vectors, each of the prompt, and of its negative if `guided`."""
        device = best_device()
        for network in self.networks:
            network.to(device)
        options = {**self.options, **dict.fromkeys(self.guided, guided)}
        found = self.pipeline.encode_prompt(**{**options, "prompt": texts, "device": device})
        found = [one for one in (found if isinstance(found, tuple) else (found,)) if _given(one)]
        ragged = [one for one in found if isinstance(one, list)]
        whole = [one for one in found if isinstance(one, Tensor)]
        tokens = ragged or [one for one in whole if one.ndim == 3]
        flat = [one for one in whole if one.ndim == 2 and len(one) == len(texts)]
        size = None if ragged else tokens[0].shape[:2]
        masks = [one for one in flat if one.shape == size]
        pooled = [one for one in flat if one.shape != size and one.is_floating_point()]
        return [tokens, masks or [None], pooled or [None]]

    def _unpacked(self, parts: list[Any]) -> Unpacked:
        tokens, mask, pooled = parts
        if isinstance(tokens, list):
            mask = [one.new_ones(len(one)) for one in tokens]
            tokens, mask = (
                nn.utils.rnn.pad_sequence(one, batch_first=True) for one in (tokens, mask)
            )
        mask = tokens.new_ones(tokens.shape[:2]) if mask is None else mask
        pooled = tokens[:, 0, :0] if pooled is None else pooled
        return Unpacked(tokens.float().cpu(), mask.bool().cpu(), pooled.float().cpu())


def _given(one: Any) -> bool:
    return isinstance(one, Tensor) or (isinstance(one, list) and len(one) > 0)


def _kind(folder: Path) -> str:
    """The class of a pipeline."""
    try:
        return str(json.loads((folder / INDEX).read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} names no pipeline: {first_line(error)}") from error


def _part(folder: Path, library: str, kind: str) -> Any:
    """A pipeline's text encoder or tokenizer, of transformers' own class."""
    import transformers

    found = getattr(transformers, str(kind), None)
    if library != "transformers":
        raise UserError(f"{folder} is of {library}, and only transformers' own classes are loaded")
    if folder.name.startswith(PARTS[1]):
        known = isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
        found = found if known else transformers.AutoTokenizer
        return found.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UserError(f"{folder} is a {kind}, which is no model of transformers")
    options = {"use_safetensors": True, "dtype": "auto", "local_files_only": True}
    return found.from_pretrained(folder, **options).eval().requires_grad_(False)
