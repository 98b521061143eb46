"""How well pictures show what their captions say, by a CLIP of the user's."""

from __future__ import annotations

import torch
from torch import Tensor

from modalities.common.text import library, located
from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Condition
from scm_core.contract.spec import DataModule, Scorer
from scm_core.data.media import rgb

BATCH = 64


class ClipScore(Scorer):
    """Scores pictures by their captions: {"clip_score": 100 * max(cos, 0), (B,)}.

    The cosine is between CLIP's embeddings of picture and text (Hessel et al. 2021, arXiv
    2104.08718, there times 2.5); media are uint8 (B, C, H, W). Real pictures' own captions give the
    score to compare with.
    """

    def __init__(self, data: DataModule, name: str) -> None:
        """By the CLIP of a folder or hub name; UserError where it cannot be read."""
        self.prompts = data.condition["prompt"]
        transformers, folder = library(), located(name, f"data.clip={name}")
        there = {"local_files_only": True}
        try:
            network = transformers.CLIPModel.from_pretrained(folder, use_safetensors=True, **there)
            self.words = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, **there
            )
            self.pixels = transformers.CLIPImageProcessor.from_pretrained(folder, **there)
        except Exception as error:  # transformers raises all kinds
            raise UserError(f"data.clip={name} cannot be read: {first_line(error)}") from error
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """Per-sample scores, float32 (B,)."""
        self.network.to(media.device)
        texts = [self.prompts.show(value) for value in condition["prompt"].cpu()]
        parts = zip(media.split(BATCH), range(0, len(media), BATCH), strict=True)
        cosines = [self._cosines(some, texts[i : i + BATCH]) for some, i in parts]
        return {"clip_score": 100 * torch.cat(cosines).clamp(min=0)}

    def _cosines(self, media: Tensor, texts: list[str]) -> Tensor:
        pictures = rgb(media).round().clamp(0, 255).to(torch.uint8).cpu()
        limit = self.network.config.text_config.max_position_embeddings
        words = self.words(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        shown = self.pixels(list(pictures), return_tensors="pt").pixel_values
        found = self.network(
            input_ids=words.input_ids.to(media.device),
            attention_mask=words.attention_mask.to(media.device),
            pixel_values=shown.to(media.device),
        )
        return torch.cosine_similarity(found.image_embeds, found.text_embeds)
