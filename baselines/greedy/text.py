"""Captions as conditions: a small encoder that is trained with the core, or the states of a pretrained one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from baselines.greedy.recipes import TextConfig
from pagoda_bench.errors import UserError

PADDING, START = 0, 1  # rows of the word table; every caption begins with START, the empty one too


class TextEncoder(Protocol):
    """From captions to what `Core.conditions` takes; no gradients. An empty caption is the null condition of guidance."""

    def encode(self, captions: Sequence[str]) -> Tensor: ...


class Words:
    """(B, tokens) int64: each word by a hash of its letters, without a vocabulary file. What does not fit is cut off."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config

    def encode(self, captions: Sequence[str]) -> Tensor:
        out = np.full((len(captions), self.config.tokens), PADDING, np.int64)
        out[:, 0] = START
        for row, caption in zip(out, captions, strict=True):
            words = re.findall(r"[a-z0-9]+", caption.lower())[: self.config.tokens - 1]
            row[1 : 1 + len(words)] = [2 + zlib.crc32(word.encode()) % (self.config.words - 2) for word in words]
        return torch.from_numpy(out)


class TokenLayers(nn.Module):
    """The text layers of the core: (B, L) words or (B, L, W) states to tokens (B, L, width), and where there are some."""

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.small = config.encoder == "small"
        if self.small:
            self.words = nn.Embedding(config.words, config.width, padding_idx=PADDING)
            self.place = nn.Parameter(0.02 * torch.randn(1, config.tokens, config.width))
            heads = max(1, config.width // 32)
            layer = nn.TransformerEncoderLayer(
                config.width, heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.mix = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.project = nn.Linear(config.width, width)

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        if self.small:
            there = condition != PADDING
            hidden = self.mix(self.words(condition) + self.place, src_key_padding_mask=~there)
        else:
            there = condition.abs().sum(2) > 0  # padding of a pretrained encoder comes as zeros
            hidden = condition.to(self.project.weight.dtype)
        return self.project(hidden), there


class Pretrained:
    """The last hidden states of a frozen encoder, (B, tokens, width) float32, zero where the caption has ended."""

    def __init__(self, config: TextConfig, states: Any) -> None:
        self.config, self.states = config, states

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        hidden, there = self.states(list(captions))
        if hidden.shape[1:] != (self.config.tokens, self.config.width):
            raise UserError(
                f"text encoder '{self.config.name}' gives {tuple(hidden.shape[1:])} states, the recipe says "
                f"({self.config.tokens}, {self.config.width}): set text.tokens and text.width"
            )
        out: Tensor = hidden.float() * there[:, :, None]
        return out


def encoder(config: TextConfig) -> TextEncoder:
    """The encoder of a config. `UserError`, "not available: ...", when its package or its weights are not here."""
    if config.encoder == "small":
        return Words(config)
    package = {"t5": "transformers", "clip": "open-clip-torch"}[config.encoder]
    try:
        return Pretrained(config, _t5(config) if config.encoder == "t5" else _clip(config))
    except ImportError:
        raise UserError(f"not available: the text encoder '{config.name}' needs the package {package}: install it") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"not available: the weights of the text encoder '{config.name}' ({reason}): download them where {package} "
            "looks, or name a folder that holds them"
        ) from None


def _t5(config: TextConfig) -> Any:
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(config.name)
    model = T5EncoderModel.from_pretrained(config.name, use_safetensors=True).eval().requires_grad_(False)

    def states(captions: list[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(captions, padding="max_length", truncation=True, max_length=config.tokens, return_tensors="pt")
        return model(**found).last_hidden_state, found.attention_mask

    return states


def _clip(config: TextConfig) -> Any:
    import open_clip

    architecture, _, weights = config.name.partition("/")
    model = open_clip.create_model(architecture, pretrained=weights or None).eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(architecture)

    def states(captions: list[str]) -> tuple[Tensor, Tensor]:
        words = tokenizer(captions)
        cast = model.transformer.get_cast_dtype()
        hidden = model.token_embedding(words).to(cast) + model.positional_embedding.to(cast)
        hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
        # The end token has the highest number; what stands behind it is padding.
        there = torch.arange(words.shape[1])[None] <= words.argmax(1, keepdim=True)
        return hidden, there

    return states


def captions_of(data: Any, numbers: np.ndarray, split: str) -> list[str]:
    """The captions of images, or, of data that have none, "a photo of a" with the name of the class."""
    own = getattr(data, "captions", None)
    if own is not None:
        found: list[str] = own(numbers, split)
        return found
    return [f"a photo of a {data.classes[label]}" for label in data.labels(numbers, split).tolist()]
