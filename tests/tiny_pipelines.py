"""Pipelines of published classes at a size that samples in a second: random weights, saved as diffusers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "an", "photo", "of", "disc", "ring", "bar", "pillar", "cross", "on", "dark", "light", "red", "orange", "green")
WORDS += ("teal", "blue", "purple", "with", "faint", "stripes")
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def autoencoder() -> Any:
    """8 pixels to a latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def dit(folder: Path, classes: int = 10, seed: int = 0, size: int = 4) -> Path:
    """A DiT whose last layers are not zero, as they are before training; with the scheduler that diffusers publishes."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(seed)
    net = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=size,
        num_embeds_ada_norm=classes,
        norm_num_groups=2,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    DiTPipeline(net, autoencoder(), scheduler).save_pretrained(folder, safe_serialization=True)
    return folder


def unet(width: int, size: int = 4, **other: Any) -> Any:
    from diffusers import UNet2DConditionModel

    values: dict[str, Any] = {
        "sample_size": size,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
        "cross_attention_dim": width,
    }
    net = UNet2DConditionModel(**{**values, **other})
    for name, parameter in net.named_parameters():
        if "attn2" in name:  # otherwise random texts hardly show in random images
            parameter.data.mul_(4)
    return net


def clip_text(projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _clip_vocabulary() -> dict[str, int]:
    letters = sorted({letter for word in WORDS for letter in word})
    tokens = [*CLIP_SPECIALS, *letters, *(f"{letter}</w>" for letter in letters)]
    return {token: number for number, token in enumerate(tokens)}


def clip_tokenizer() -> Any:
    """Letters are the tokens: no merges."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_clip_vocabulary(), merges=[], model_max_length=77)


def stable_diffusion(folder: Path, seed: int = 0) -> Path:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        unet=unet(8),
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path, seed: int = 0) -> Path:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    net = unet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=8 + 6 * 2,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        unet=net,
        vae=autoencoder(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def lcm(folder: Path, seed: int = 0) -> Path:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    torch.manual_seed(seed)
    LatentConsistencyModelPipeline(
        unet=unet(8, time_cond_proj_dim=8),
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def deepfloyd(folder: Path, seed: int = 0, sizes: tuple[int, int] = (16, 32)) -> tuple[Path, Path]:
    """Both stages, each in a folder of its own."""
    from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    text = T5EncoderModel(config).eval()
    ancestral = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, sample_max_value=1.5
    )
    off: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        unet=unet(8, sizes[0], in_channels=3, out_channels=6),
        scheduler=ancestral,
        requires_safety_checker=False,
        **off,
    ).save_pretrained(folder / "one")
    IFSuperResolutionPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        unet=unet(8, sizes[1], in_channels=6, out_channels=6, class_embed_type="timestep"),
        scheduler=ancestral,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        requires_safety_checker=False,
        **off,
    ).save_pretrained(folder / "two")
    return folder / "one", folder / "two"


def edit(path: Path, **values: Any) -> None:
    """Changes a JSON file in place."""
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **values}), encoding="utf-8")
