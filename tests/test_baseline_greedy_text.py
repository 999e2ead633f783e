"""Greedy growing on captions: the words of the data, the text layers of the core, and encoders that come with weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.greedy import sample, train
from baselines.greedy.net import Core
from baselines.greedy.recipes import Greedy, TextConfig
from baselines.greedy.text import Pretrained, Words, encoder
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.samplers import SamplerConfig
from tests.test_baseline_greedy import CORE, DATA, LOW, run


def test_every_word_of_the_captions_has_a_row_of_its_own() -> None:
    captions = open_dataset(DATA, lambda digest: Path()).captions(np.arange(3000), "train")  # type: ignore[attr-defined]
    words = sorted({word for caption in captions for word in re.findall(r"\w+", caption)})
    config = TextConfig()
    rows = Words(config).encode(words)[:, 1]
    assert len(set(rows.tolist())) == len(words) > 20
    assert max(len(caption.split()) for caption in captions) < config.tokens
    assert Words(config).encode(["", "red Ring, red"]).tolist()[0] == [1] + [0] * 15
    second = Words(config).encode(["red Ring, red"])[0]
    assert second[1] == second[3] != second[2]


def test_captions_condition_and_guide(tmp_path: Path) -> None:
    core = CORE.model_copy(update={"text": TextConfig(width=32)})
    recipe = LOW.model_copy(update={"core": core})
    _, ctx = run(recipe, tmp_path)
    inputs = StageContext.for_test(tmp_path / "o", tmp_path / "w", {recipe.key: ctx.out})
    indices = np.arange(20, 26)
    for guidance, nfe in ((0.0, 5), (2.0, 10)):
        source = sample.load(Greedy(of=recipe, sampler=SamplerConfig(points=3), guidance=guidance), inputs)
        images, counted = source.sample(indices, indices % 10)
        assert counted == nfe
        other, _ = source.sample(indices[3:4], indices[3:4] % 10)
        assert np.abs(other.astype(int) - images[3:4].astype(int)).max() <= 1
    net = train.network(core, recipe.outer, ctx.out / train.WEIGHTS)
    words = Words(core.text or TextConfig()).encode(["a red ring", "a red disc", "a red ring"])
    emb, tokens, there = net.core.conditions(torch.zeros(3), words)
    assert tokens is not None
    assert there is not None
    assert there.sum(1).tolist() == [4, 4, 4]
    assert torch.equal(emb[0], emb[2])
    assert not torch.allclose(emb[0], emb[1])


def test_states_of_a_pretrained_encoder_end_with_the_caption() -> None:
    """Whatever stands behind the end of a caption reaches neither the mean nor the attention."""
    config = TextConfig(encoder="t5", name="any", tokens=6, width=8)
    noise = iter([7.0, -3.0, 0.0])

    def states(captions: list[str]) -> tuple[Tensor, Tensor]:
        there = torch.tensor([[i <= len(c.split()) for i in range(6)] for c in captions])
        kept = torch.randn(len(captions), 6, 8, generator=torch.Generator().manual_seed(0))
        return torch.where(there[:, :, None], kept, next(noise)), there

    core = Core(CORE.model_copy(update={"text": config}))
    for block in core.blocks:
        torch.nn.init.normal_(block.cross.out.weight)  # type: ignore[union-attr,arg-type]
    pretrained, h = Pretrained(config, states), torch.randn(2, 16, 4, 4)
    first, second = (core.conditions(torch.zeros(2), pretrained.encode(["a red ring", ""])) for _ in range(2))
    torch.testing.assert_close(first.emb, second.emb)
    torch.testing.assert_close(core(h, first), core(h, second))
    assert first.padding is not None
    assert first.padding.sum(1).tolist() == [4, 1]
    with pytest.raises(UserError, match=r"gives \(6, 8\) states, the recipe says \(6, 9\): set text.tokens and text.width"):
        Pretrained(config.model_copy(update={"width": 9}), lambda _: states(["a"])).encode(["a"])


def test_a_pretrained_encoder_that_is_not_here_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"not available: .* 't5-nowhere'"):
        encoder(TextConfig(encoder="t5", name="t5-nowhere"))
