"""One whole generator step and one whole discriminator step of the official training, and the parts of its discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from pagoda_bench.nets.multiscale_discriminator import MiniDiscriminator, MultiscaleDiscriminator, ScaledLinear, SpectralConv2d
from pagoda_bench.nets.projection import CHANNELS, BatchNorm, ProjectedFeatures, resize
from pagoda_bench.pagoda.official_step import discriminator_step, generator_step, logits, reconstruction_terms
from tests.official import TINY, arrays, filled_net
from tests.official_eyes import check_fill, filled_discriminator, filled_eyes
from tests.test_projection import NEEDS_TIMM, image, small_eyes

LOSS, LOGITS, GRADIENT = 1e-5, 5e-5, 2e-3  # absolute, absolute, relative: stated with the fixture


def close(found: Tensor, stated: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found.detach(), stated, atol=atol, rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["official", "cleanbn"])
def test_steps_are_the_official_ones(batch_norm: BatchNorm) -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    case, net, eyes = arrays("steps"), filled_net(TINY), filled_eyes(batch_norm)
    stated = {key.removeprefix(f"{batch_norm}_"): value for key, value in case.items() if key.startswith(batch_norm)}
    image, labels = case["image"], case["labels"]

    judge = filled_discriminator().requires_grad_(False)
    g = generator_step(net, judge, eyes, (image, case["z"], labels), case["generator_noise"], augmented=False)
    close(g.l_rec, stated["l_rec"], atol=LOSS)
    close(g.terms, stated["l_rec_terms"], atol=LOSS)
    close(g.fake_logits, stated["fake_logits_g"], atol=LOGITS)
    close(g.l_adv, stated["generator_loss"], atol=LOGITS)
    close(g.norm_rec, stated["grad_norm_rec"], rtol=GRADIENT)
    close(g.norm_adv, stated["grad_norm_gen"], rtol=GRADIENT)
    close(g.factor, stated["ratio"], rtol=GRADIENT)
    close(g.loss - g.l_rec.mean(), stated["weighted_generator_loss"], rtol=GRADIENT)

    judge = filled_discriminator()
    d = discriminator_step(net, judge, eyes, (image, labels), case["discriminator_noise"], augmented=False)
    close(d.fake_logits, stated["fake_logits_d"], atol=LOGITS)
    close(d.real_logits, stated["real_logits_d"], atol=LOGITS)
    close(d.loss, stated["discriminator_loss"], atol=LOSS)
    d.loss.backward()
    assert all(p.grad is not None for p in judge.parameters())


@pytest.mark.slow
def test_the_discriminator_has_the_official_names_and_weights() -> None:
    judge = filled_discriminator()
    check_fill("discriminator", judge.state_dict())
    assert sum(p.numel() for p in judge.parameters() if p.requires_grad) == 27_515_776


def test_the_discriminator_has_the_official_size_and_a_logit_for_every_place() -> None:
    with torch.device("meta"):
        judge = MultiscaleDiscriminator()
        assert sum(p.numel() for p in judge.parameters()) == 27_515_776
        for finest, places in ((112, 16), (128, 25)):
            maps = [torch.zeros(2, c, finest >> i, finest >> i) for i, c in enumerate(CHANNELS)] * 2
            assert judge(maps, torch.zeros(2, dtype=torch.int64)).shape == (4, 4 * places)


def test_spectral_norm_is_pytorchs_and_tends_to_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    mine, theirs = SpectralConv2d(3, 5, 4, stride=2, padding=1), spectral_norm(nn.Conv2d(3, 5, 4, stride=2, padding=1))
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):  # the vectors of one call are where the next one starts
        torch.testing.assert_close(mine(x), theirs(x))
    for _ in range(100):
        mine(x)
    kept = mine.weight_u.clone()
    mine.eval()
    mine(x)
    assert torch.equal(kept, mine.weight_u)  # in evaluation mode they stay
    largest = np.linalg.svd(mine._weight().detach().flatten(1).numpy(), compute_uv=False)[0]
    np.testing.assert_allclose(largest, 1.0, rtol=1e-4)


def test_the_class_map_is_the_written_formula() -> None:
    layer = ScaledLinear(320, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3, -0.4]))
    x = torch.randn(3, 320)
    y = x.numpy() @ layer.weight.detach().numpy().T / np.sqrt(320) + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), np.where(y > 0, y, 0.2 * y) * np.sqrt(2), rtol=1e-4, atol=1e-6)


def test_a_class_table_is_taken_over_and_logits_depend_on_the_class() -> None:
    torch.manual_seed(0)
    table = torch.randn(3, 320)
    mini = MiniDiscriminator(256, 1, 3, table).eval()
    assert torch.equal(mini.embed.weight, table)
    maps = torch.randn(2, 256, 14, 14)
    one, two = (mini(maps, torch.tensor([0, label])) for label in (1, 2))
    assert one.shape == (2, 16)
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


def test_seeded_discriminators_agree() -> None:
    first, again, other = (MultiscaleDiscriminator(2, kinds=("cnn",), seed=seed).state_dict() for seed in (0, 0, 1))
    key = "tf_efficientnet_lite0.mini_discs.3.cls.weight_orig"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_augmentation_draws_are_shared_by_the_two_arguments_of_the_distance() -> None:
    """Equal images stay at distance zero however they are augmented; the draws differ from call to call."""
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    eyes, x = small_eyes(0), image(2, 32)
    assert float(reconstruction_terms(eyes, x, x, augmented=True).abs().max()) < 1e-6
    torch.manual_seed(0)
    one, two = (reconstruction_terms(eyes, x, -x, augmented=True) for _ in range(2))
    assert not torch.allclose(one, two, atol=1e-3)


def test_augmentation_comes_after_resizing_for_the_distance_and_before_it_for_the_discriminator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def spy(x: Tensor, _draws: object) -> Tensor:
        seen.append(x.shape[-1])
        return x

    class Plain(ProjectedFeatures):
        def __init__(self) -> None:
            nn.Module.__init__(self)

        def maps(self, x: Tensor) -> list[Tensor]:
            return [resize(x)]

    class PlainEyes:
        def each(self) -> list[Plain]:
            return [Plain()]

    monkeypatch.setattr("pagoda_bench.pagoda.looks.augment", spy)
    eyes: object = PlainEyes()
    reconstruction_terms(eyes, image(1, 32), image(1, 32), augmented=True)  # type: ignore[arg-type]
    logits(lambda maps, labels: maps[0], eyes, image(1, 32), torch.zeros(1), augmented=True)  # type: ignore[arg-type]
    assert seen == [224, 224, 32]
