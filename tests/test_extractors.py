"""Feature networks: their resizes and wiring against independent code, on seeded random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import refusal
from PIL import Image
from torch import Tensor

from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.clean import clean_resize
from pagoda_bench.metrics.extractors.clip import check_activation, crop_and_resize
from pagoda_bench.metrics.extractors.dinov2 import pil_bicubic, resample_positions
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found, Original, find, state_dict
from pagoda_bench.nets.features import FeatureModel, save_half

INSTALL = "pip install 'pagoda-bench[eval]'"


def images(n: int, height: int = 32, width: int | None = None, seed: int = 0) -> np.ndarray:
    """Blocks of colour under noise: edges for the filters to overshoot at."""
    rng = np.random.default_rng(seed)
    width = width or height
    blocks = rng.integers(0, 256, (n, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)[:, :height, :width]
    return np.clip(blocks + rng.integers(-30, 31, blocks.shape), 0, 255).astype(np.uint8)


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def scrambled(network: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of `network` with weights that let a signal through, and running statistics that are not the default."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.ndim > 1:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif value.is_floating_point():
            state[name] = torch.randn(value.shape, generator=generator) * 0.1 + float(name.endswith("bn.weight"))
        else:
            state[name] = value
    return state


@pytest.fixture(scope="module")
def embedded_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("embedded") / "features.safetensors"
    save_half(FeatureModel(7, 8, 64, folded=True).state_dict(), path)
    return path


def test_the_embedded_extractor_is_the_embedded_network(embedded_weights: Path) -> None:
    extractor = load_extractor("embedded", embedded_weights)
    pixels = images(5, 16)
    found = extractor(tensor(pixels))
    features, logits = FeatureModel.load(embedded_weights, 7, 8, 64).features(pixels)
    np.testing.assert_allclose(found["features"].numpy(), features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["logits"].numpy(), logits, rtol=1e-5, atol=1e-6)
    assert extractor.protocol["weights"] == hashlib.sha256(embedded_weights.read_bytes()).hexdigest()
    assert "divides 64" in refusal(lambda: extractor(tensor(images(2, 24))))
    assert "no feature 'pool3'" in refusal(lambda: extractor(tensor(pixels), ["pool3"]))
    with pytest.raises(ValueError, match="uint8"):
        extractor(tensor(pixels).float())


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 75), (256, 256), (299, 299), (512, 400), (1024, 1024)])
def test_the_clean_resize_is_pils_on_float_channels(size: tuple[int, int]) -> None:
    pixels = images(1, *size)
    planes = [
        Image.fromarray(pixels[0, ..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)
    ]
    expected = np.stack([np.asarray(plane) for plane in planes]).clip(0, 255)
    assert np.abs(clean_resize(tensor(pixels))[0].numpy() - expected).max() <= 0.01


@pytest.mark.parametrize("size", [32, 299, 1024])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_clean_resize_is_that_of_clean_fid(size: int) -> None:
    resize = pytest.importorskip("cleanfid.resize", reason=INSTALL)
    pixels = images(1, size, seed=size)
    expected = resize.make_resizer("PIL", False, "bicubic", (299, 299))(pixels[0])
    assert np.abs(clean_resize(tensor(pixels))[0].numpy().transpose(1, 2, 0) - expected).max() <= 0.01


def cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def hub_weights(size: int, side: int) -> np.ndarray:
    """(side, size): each new position's weights on the old grid, the step taken from (side + 0.1) / size, edges repeated."""
    out = np.zeros((side, size))
    for i in range(side):
        centre = (i + 0.5) * size / (side + 0.1) - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            out[i, min(max(j, 0), size - 1)] += cubic(np.array(centre - j))
    return out


def test_position_embeddings_are_resampled_as_the_hub_model_does() -> None:
    positions = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 5))).float()
    found = resample_positions(positions, 16)
    w = hub_weights(37, 16)
    grid = positions[0, 1:].numpy().reshape(37, 37, 5)
    expected = np.einsum("ai,bj,ijd->abd", w, w, grid).reshape(256, 5)
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=2e-4)  # torch rounds the positions to float32
    np.testing.assert_array_equal(found[0, 0].numpy(), positions[0, 0].numpy())
    assert resample_positions(found, 16) is found


def test_resizes_of_eight_bits_are_pils_own() -> None:
    pixels = images(2, 40, 30)
    expected = np.stack([np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC)) for p in pixels])
    np.testing.assert_array_equal(pil_bicubic(tensor(pixels)).permute(0, 2, 3, 1).numpy(), expected)
    tall = np.stack([np.asarray(Image.fromarray(p).resize((48, 64), Image.Resampling.BICUBIC))[8:56] for p in pixels])
    np.testing.assert_array_equal(crop_and_resize(tensor(pixels), 48).permute(0, 2, 3, 1).numpy(), tall)


def test_the_longer_side_is_whole_as_torchvision_has_it() -> None:
    """336 * 650 / 480 is 455; in floats 650 * (336 / 480) is a little less, which was cut off to 454."""
    pixels = images(1, 650, 480)
    tall = np.stack([np.asarray(Image.fromarray(p).resize((336, 455), Image.Resampling.BICUBIC))[60:396] for p in pixels])
    np.testing.assert_array_equal(crop_and_resize(tensor(pixels), 336).permute(0, 2, 3, 1).numpy(), tall)


@pytest.mark.parametrize("model", ["ViT-L-14", "ViT-L-14-quickgelu"])
def test_the_wrong_gelu_is_an_error(model: str) -> None:
    quick = model.endswith("quickgelu")
    check_activation(model, quick, quick, "openai")
    check_activation(model, quick, None, None)
    right = "ViT-L-14" if quick else "ViT-L-14-quickgelu"
    assert refusal(lambda: check_activation(model, quick, not quick, "tag")).endswith(f"use '{right}'")


class Look:
    """An extractor as a user writes one."""

    protocol = "mean colour"

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"mean": pixels.float().mean((2, 3))}


look = Look()


def wrong(pixels: Tensor) -> Tensor:
    return pixels.flatten(1)


def test_a_function_of_the_users_is_an_extractor() -> None:
    extractor = load_extractor("test_extractors:look")
    pixels = images(3, 8)
    np.testing.assert_allclose(extractor(tensor(pixels))["mean"].numpy(), pixels.mean((1, 2)), rtol=1e-5)
    assert extractor.dimensions == {"mean": 3}
    assert extractor.protocol["resize"] == "mean colour"
    assert len(extractor.weights) == 64
    assert "must be a float tensor" in refusal(lambda: load_extractor("test_extractors:wrong"))
    assert "cannot be imported" in refusal(lambda: load_extractor("no_such_module:x"))
    assert "did you mean 'inception'" in refusal(lambda: load_extractor("incepton"))


def test_weights_are_found_checked_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    original = Original("net.pth", "https://example.org/net.pth", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("PAGODA_BENCH_OFFLINE", "1")
    monkeypatch.setenv("PAGODA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PAGODA_BENCH_WEIGHTS", raising=False)
    message = refusal(lambda: find(original))
    assert all(word in message for word in ("net.pth", "https://example.org", str(tmp_path / "cache"), "PAGODA_BENCH_WEIGHTS"))
    monkeypatch.setenv("PAGODA_BENCH_WEIGHTS", str(tmp_path))
    (tmp_path / "net.pth").write_bytes(content)
    assert find(original) == Found(tmp_path / "net.pth", original.sha256 or "")
    (tmp_path / "net.pth").write_bytes(b"other")
    assert "has SHA-256" in refusal(lambda: find(original))
    assert "has SHA-256" in refusal(lambda: find(original, tmp_path / "net.pth"))
    (tmp_path / "mine.pth").write_bytes(b"other")
    assert find(original, tmp_path / "mine.pth").sha256 == hashlib.sha256(b"other").hexdigest()
    assert "cannot be read" in refusal(lambda: find(original, tmp_path / "none.pth"))


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(b"weights")
    monkeypatch.setenv("PAGODA_BENCH_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.delenv("PAGODA_BENCH_OFFLINE", raising=False)
    good = hashlib.sha256(b"weights").hexdigest()
    assert "has SHA-256" in refusal(lambda: find(Original("net.pth", source.as_uri(), "0" * 64)))
    assert "cannot be downloaded" in refusal(lambda: find(Original("net.pth", (tmp_path / "none").as_uri(), good)))
    assert "no hash is pinned" in refusal(lambda: find(Original("net.pth", source.as_uri(), None)))
    assert not list((tmp_path / "kept").iterdir())
    assert find(Original("net.pth", source.as_uri(), good)).path.read_bytes() == b"weights"


def test_every_pinned_hash_is_a_hash_and_only_two_are_missing() -> None:
    missing = [name for name, original in ORIGINALS.items() if original.sha256 is None]
    assert missing == ["lpips-vgg16", "dinov2-vitg14"]
    assert all(len(o.sha256) == 64 and int(o.sha256, 16) for o in ORIGINALS.values() if o.sha256)


def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path) -> None:
    for name, value in {"a.pth": [1, 2], "b.pth": {"a": 1}}.items():
        torch.save(value, tmp_path / name)
        assert name in refusal(lambda name=name: state_dict(Found(tmp_path / name, "")))
    (tmp_path / "c.pth").write_bytes(b"nothing")
    (tmp_path / "d.safetensors").write_bytes(b"nothing")
    for name in ("c.pth", "d.safetensors"):
        assert "read safely" in refusal(lambda name=name: state_dict(Found(tmp_path / name, "")))
    torch.save({"a": torch.zeros(1)}, tmp_path / "e.pth")
    assert "no embedded feature network" in refusal(lambda: load_extractor("embedded", tmp_path / "e.pth"))


@pytest.mark.slow
def test_inception_is_torch_fidelitys_with_the_spatial_features_beside(tmp_path: Path) -> None:
    theirs: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=INSTALL)
    from pagoda_bench.metrics.extractors.inception import Network

    path = tmp_path / "inception.pth"
    torch.save(scrambled(Network()), path)
    oracle = theirs.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased", "logits"], str(path))
    seen: list[Tensor] = []
    oracle.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.append(out))
    pixels = tensor(images(2))
    pool3, unbiased, logits = oracle(pixels)
    found = load_extractor("inception", path)(pixels)
    torch.testing.assert_close(found["pool3"], pool3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits_unbiased"], unbiased, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["probabilities"], logits.softmax(1), rtol=1e-3, atol=1e-6)
    spatial = seen[0].permute(0, 2, 3, 1)[..., :7].reshape(2, 2023)
    torch.testing.assert_close(found["spatial"], spatial, rtol=1e-4, atol=1e-5)
    clean = load_extractor("clean", path)(pixels)["pool3"]
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

    assert not torch.allclose(clean, pool3, rtol=1e-3)
    same = load_extractor("inception", path).network(tf1(pixels.float(), (299, 299), align_corners=False), ["pool3"])["pool3"]
    torch.testing.assert_close(same, pool3, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_vgg_is_torch_fidelitys(tmp_path: Path) -> None:
    theirs: Any = pytest.importorskip("torch_fidelity.feature_extractor_vgg16", reason=INSTALL)
    models: Any = pytest.importorskip("torchvision.models", reason=INSTALL)
    path = tmp_path / "vgg.pth"
    torch.save(scrambled(models.vgg16(weights=None, init_weights=False)), path)
    pixels = tensor(images(1))
    fc2, relu = theirs.FeatureExtractorVGG16("x", ["fc2", "fc2_relu"], str(path))(pixels)
    found = load_extractor("vgg16", path)(pixels)
    torch.testing.assert_close(found["fc2"], fc2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["fc2_relu"], relu, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_dinov2_takes_hub_checkpoints_and_gives_the_class_token(tmp_path: Path) -> None:
    timm: Any = pytest.importorskip("timm", reason=INSTALL)
    name = "vit_small_patch14_dinov2"
    hub = scrambled(timm.create_model(name, pretrained=False, img_size=518, num_classes=0))
    path = tmp_path / "dino.pth"
    torch.save({**hub, "mask_token": torch.zeros(1, 384)}, path)
    oracle = timm.create_model(name, pretrained=False, img_size=224, num_classes=0).eval()
    w = hub_weights(37, 16)
    grid = np.einsum("ai,bj,ijd->abd", w, w, hub["pos_embed"][0, 1:].numpy().reshape(37, 37, -1)).reshape(1, 256, -1)
    positions = torch.cat([hub["pos_embed"][:, :1], torch.from_numpy(grid).float()], 1)
    oracle.load_state_dict({**hub, "pos_embed": positions})
    pixels = images(2, 64)
    resized = np.stack([np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC)) for p in pixels])
    x = (resized / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        tokens = oracle.forward_features(torch.from_numpy(x).permute(0, 3, 1, 2).float())
    found = load_extractor("dinov2-vits14", path)(tensor(pixels))["cls"]
    torch.testing.assert_close(found, tokens[:, 0], rtol=1e-3, atol=1e-3)


def test_clip_towers_of_a_small_model(tmp_path: Path) -> None:
    clip: Any = pytest.importorskip("open_clip", reason=INSTALL)
    from pagoda_bench.metrics.extractors.clip import CLIP

    config = json.dumps(
        {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
        }
    )
    (tmp_path / "tiny-quickgelu.json").write_text(config)
    (tmp_path / "tiny.json").write_text(config.replace("true", "false"))
    clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    oracle = clip.create_model("tiny-quickgelu").eval()
    torch.save(oracle.state_dict(), tmp_path / "clip.pth")
    found = Found(tmp_path / "clip.pth", "ab")
    extractor = CLIP(found, "tiny-quickgelu", "openai")
    pixels = images(2, 32)
    transform = clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        expected = oracle.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]))
        words = oracle.encode_text(clip.get_tokenizer("tiny-quickgelu")(["a cat", "two dogs"]))
    torch.testing.assert_close(extractor(tensor(pixels))["image"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extractor.text(["a cat", "two dogs"]), words, rtol=1e-4, atol=1e-5)
    assert "use 'tiny-quickgelu'" in refusal(lambda: CLIP(found, "tiny", "openai"))
