"""The rows of published weights: configs, and the methods `dit`, `sd`, `lcm-released` and `if`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from baselines.pipelines import places
from baselines.pipelines.places import Inspected, Part
from baselines.sections import class_count
from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.recipes.base import Config, result_neutral
from pagoda_bench.recipes.data import DataConfig, EmbeddedData
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.stages import Generator, classifier_free

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale

Precision = Literal["float32", "bfloat16", "float16"]

VAE = Part("vae", ("AutoencoderKL",), "diffusers")
UNET = Part("unet", ("UNet2DConditionModel",), "diffusers")
SCHEDULER = Part("scheduler")
CLIP = (Part("text_encoder", ("CLIPTextModel",), "transformers"), Part("tokenizer"))
CLIP_2 = (Part("text_encoder_2", ("CLIPTextModelWithProjection",), "transformers"), Part("tokenizer_2"))
# The published folders were written before the class had a name of its own.
DIT = Part("transformer", ("DiTTransformer2DModel", "Transformer2DModel"), "diffusers")
IF_BASE = (UNET, Part("text_encoder", ("T5EncoderModel",), "transformers"), Part("tokenizer"), SCHEDULER)
IF_UPSCALER = (UNET, SCHEDULER, Part("image_noising_scheduler"))
PARTS: dict[str, tuple[Part, ...]] = {
    "StableDiffusionPipeline": (UNET, VAE, *CLIP, SCHEDULER),
    "StableDiffusionXLPipeline": (UNET, VAE, *CLIP, *CLIP_2, SCHEDULER),
    "LatentConsistencyModelPipeline": (UNET, VAE, *CLIP, SCHEDULER),
}


class Weights(Config):
    """Published weights. The digest over all files that are read is their identity; where they lie is not."""

    digest: str
    variant: str = ""  # "fp16" where the files are called *.fp16.safetensors
    repository: str = result_neutral("")
    revision: str = result_neutral("")  # the commit
    place: str = result_neutral("")


class Prompts(Config):
    """`template` with the name of the class for {}; `names` in the order of the labels where the data's own say nothing."""

    source: Literal["classes", "captions"] = "classes"
    template: str = "a photo of a {}"
    names: tuple[str, ...] = ()

    @field_validator("template")
    @classmethod
    def _place(cls, value: str) -> str:
        if "{}" not in value:
            raise ValueError(f"a template says {{}} where the name of the class goes: '{value}'")
        return value


class Published(Generator):
    """What all of them share. Images are made at `native` px, rounded to 8 bits, and averaged over boxes down to `size`."""

    size: int
    native: int
    precision: Precision = "float32"
    batch: int = Field(4, ge=1)  # images in a pass: float32 networks round differently at another batch
    seed: int = 0
    guidance: float = Field(1.0, ge=1)  # s of u + s (c - u) everywhere; 1 is off

    @property
    def guided_by(self) -> str:
        return classifier_free(self.guidance - 1)

    @property
    def resolution(self) -> int:
        return self.size


class DiTPublished(Published, kind="dit-published"):
    """DiT (Peebles and Xie 2023). `sampler` "published": 250 respaced steps of ancestral sampling, guidance on the first
    `guided_channels` of the latents, variance as learned. "pipeline": diffusers' `DiTPipeline` with the scheduler that lies
    with the weights, which guides all channels and leaves the learned variance out."""

    loader: ClassVar[str] = "baselines.pipelines.dit:load"

    weights: Weights
    vae: Weights | None = None  # None: the one that lies with the weights
    classes: int
    sampler: Literal["published", "pipeline"] = "published"
    steps: int = Field(250, ge=2, le=1000)
    guidance: float = Field(1.5, ge=1)
    guided_channels: int = Field(3, ge=1)
    variance: Literal["learned", "small"] = "learned"  # small: that of the posterior given x0


class TextToImage(Published, kind="text-to-image"):
    """Stable Diffusion and latent consistency models, through diffusers' pipeline of that name."""

    loader: ClassVar[str] = "baselines.pipelines.sample:text_to_image"

    pipeline: Literal["StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline"]
    weights: Weights
    data: DataConfig
    prompts: Prompts = Prompts()
    steps: int = Field(50, ge=1)
    guidance: float = Field(7.5, ge=1)  # also of consistency models, whose own w is s - 1


class DeepFloyd(Published, kind="deepfloyd-if"):
    """DeepFloyd IF: 64 px from text, and, with `upscaler`, 256 px from those and the same text."""

    loader: ClassVar[str] = "baselines.pipelines.sample:deepfloyd"

    weights: Weights
    upscaler: Weights | None = None
    data: DataConfig
    prompts: Prompts = Prompts()
    steps: int = Field(100, ge=1)
    guidance: float = Field(7.0, ge=1)
    upscaler_steps: int = Field(50, ge=1)
    upscaler_guidance: float = Field(4.0, ge=1)
    noise_level: int = Field(250, ge=0, lt=1000)  # of the conditioning augmentation, in steps of 1000


@describe(
    title="DiT-XL/2, published weights",
    paper="arXiv 2212.09748",
    reference="baselines/pipelines/dit.py, by the published sampler; networks: diffusers",
    weights="facebook/DiT-XL-2-256 and -512 as safetensors; stabilityai/sd-vae-ft-ema",
    licence="CC BY-NC 4.0 (DiT), MIT (sd-vae-ft-ema)",
    tested="formulas of respacing and learned variance; diffusers' DDPMScheduler; no published weights",
    at="all",
)
def dit(scale: Scale, resolution: int) -> Generator:
    """`options: {weights: FOLDER or owner/name, revision: ..., vae: ..., vae_revision: ..., guidance: 1.5, ...}`."""
    options, where = _options(scale, "dit")
    parts = (DIT, *(() if "vae" in options else (VAE,)), *((SCHEDULER,) if options.get("sampler") == "pipeline" else ()))
    weights, found = _weights(options, where, parts, ("DiTPipeline",))
    config, values = found.configs["transformer"], {**options}
    if "vae" in options:
        place = places.locate(str(values.pop("vae")), values.pop("vae_revision", None))
        variant, inside = str(values.pop("vae_variant", "")), (place.folder / "vae").is_dir()
        of_vae = places.inspect(place, (VAE,), variant, root="" if inside else "vae")
        values["vae"] = _named(place, of_vae.digest, variant)
        factor = _factor(of_vae.configs["vae"])
    else:
        factor = _factor(found.configs["vae"])
    channels, classes = int(config.get("in_channels", 4)), int(config.get("num_embeds_ada_norm") or 1000)
    if int(config.get("out_channels") or channels) != 2 * channels:
        raise Unavailable(f"not available: {weights.place} predicts no variance: name the weights of a published DiT")
    if (own := class_count(scale.data)) != classes:
        raise Unavailable(f"not available: {weights.place} knows {classes} classes, the data of '{scale.name}' have {own}")
    if values.get("sampler") == "pipeline":
        values = {"steps": 50, **values}
    sizes = _sizes(weights, resolution, int(config.get("sample_size", 32)) * factor)
    return DiTPublished.load({**values, **sizes, "weights": weights, "classes": classes}, where)


@describe(
    title="Stable Diffusion 1.5 and XL, published weights",
    paper="arXiv 2112.10752, 2307.01952",
    reference="diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline",
    weights="stable-diffusion-v1-5/stable-diffusion-v1-5, stabilityai/stable-diffusion-xl-base-1.0",
    licence="CreativeML OpenRAIL-M (1.5), CreativeML Open RAIL++-M (XL)",
    tested="tiny pipelines of the same classes, against the pipeline called by hand; no published weights",
    at="all",
)
def stable_diffusion(scale: Scale, resolution: int) -> Generator:
    """`options: {weights: ..., revision: ..., prompts: {...}, names: FILE, steps: 50, guidance: 7.5}`; XL: guidance 5."""
    return _text_to_image(scale, resolution, "sd", ("StableDiffusionPipeline", "StableDiffusionXLPipeline"))


@describe(
    title="Latent consistency model, published weights",
    paper="arXiv 2310.04378",
    reference="diffusers' LatentConsistencyModelPipeline",
    weights="SimianLuo/LCM_Dreamshaper_v7",
    licence="MIT",
    tested="a tiny pipeline of the same classes, against the pipeline called by hand; no published weights",
    at="all",
)
def lcm(scale: Scale, resolution: int) -> Generator:
    """`options` as of `sd`, with steps 1 ... 8 (default 4); one network evaluation a step, guidance is an input (8.5)."""
    steps = scale.methods.get("lcm-released", {}).get("steps", 4)
    if not isinstance(steps, int) or not 1 <= steps <= 8:
        raise UserError(f"method 'lcm-released' of scale '{scale.name}': steps is {steps}: choose 1 to 8")
    return _text_to_image(scale, resolution, "lcm-released", ("LatentConsistencyModelPipeline",))


@describe(
    title="DeepFloyd IF, published weights",
    paper="github.com/deep-floyd/IF",
    reference="diffusers' IFPipeline and IFSuperResolutionPipeline",
    weights="DeepFloyd/IF-I-{M,L,XL}-v1.0, DeepFloyd/IF-II-{M,L}-v1.0 (gated)",
    licence="DeepFloyd IF research licence (gated, not commercial); code modified MIT",
    tested="tiny pipelines of the same classes, against the pipelines called by hand; no published weights",
    at="all",
)
def deepfloyd(scale: Scale, resolution: int) -> Generator:
    """`options: {licence: accepted, weights: ..., revision: ..., upscaler: ..., upscaler_revision: ..., prompts: {...}}`. Up to
    the size of the first stage it runs alone."""
    options, where = _options(scale, "if")
    if options.pop("licence", None) != "accepted":
        raise Unavailable(
            "not available: the weights of DeepFloyd IF are gated: read and accept their licence at "
            "huggingface.co/DeepFloyd/IF-I-XL-v1.0, then set options.licence to accepted"
        )
    weights, found = _weights(options, where, IF_BASE, ("IFPipeline",))
    prompts = _prompts(options, scale, where)
    values: dict[str, Any] = {**options, "weights": weights, "prompts": prompts, "data": scale.data}
    native = int(found.configs["unet"].get("sample_size") or 64)
    upscaler = {k.removeprefix("upscaler_"): values.pop(k) for k in ("upscaler_revision", "upscaler_variant") if k in values}
    upscaler["weights"] = values.pop("upscaler", None)
    if resolution > native:
        if upscaler["weights"] is None:
            raise Unavailable(f"not available: {resolution} px need the second stage: set options.upscaler to IF-II's weights")
        values["upscaler"], above = _weights(upscaler, where, IF_UPSCALER, ("IFSuperResolutionPipeline",))
        native = int(above.configs["unet"].get("sample_size") or 256)
    return DeepFloyd.load({**values, **_sizes(weights, resolution, native)}, where)


def _text_to_image(scale: Scale, resolution: int, method: str, classes: Sequence[str]) -> Generator:
    options, where = _options(scale, method)
    place = _place(options, where)
    pipeline = places.check_pipeline(place, classes)
    weights, found = _weights(options, where, PARTS[pipeline], classes)
    unet, text = found.configs["unet"], found.configs["text_encoder"]
    states = int(text.get("hidden_size", 0)) + int(found.configs.get("text_encoder_2", {}).get("hidden_size", 0))
    if unet.get("cross_attention_dim") != states:
        raise Unavailable(
            f"not available: {weights.place} is put together of different models: its unet reads texts of width "
            f"{unet.get('cross_attention_dim')}, its encoders write {states}: download it whole"
        )
    defaults: dict[str, Any] = {
        "StableDiffusionPipeline": {},
        "StableDiffusionXLPipeline": {"guidance": 5.0},
        "LatentConsistencyModelPipeline": {"steps": 4, "guidance": 8.5},
    }[pipeline]
    prompts = _prompts(options, scale, where)
    sizes = _sizes(weights, resolution, int(unet.get("sample_size") or 64) * _factor(found.configs["vae"]))
    fixed: dict[str, Any] = {"pipeline": pipeline, "weights": weights, "prompts": prompts, "data": scale.data, **sizes}
    return TextToImage.load({**defaults, **options, **fixed}, where)


def _options(scale: Scale, method: str) -> tuple[dict[str, Any], str]:
    return dict(scale.methods.get(method, {})), f"scale '{scale.name}', methods.{method}"


def _place(options: Mapping[str, Any], where: str) -> places.Place:
    named = options.get("weights")
    if not isinstance(named, str) or not named:
        raise Unavailable(
            f"not available: {where}.weights names no weights: set it to a folder or to owner/name of a repository"
        )
    revision = options.get("revision")
    return places.locate(named, None if revision is None else str(revision))


def _weights(options: dict[str, Any], where: str, parts: Sequence[Part], classes: Sequence[str]) -> tuple[Weights, Inspected]:
    """The weights that options name, looked at; takes their keys out of `options`."""
    place = _place(options, where)
    places.need_packages()
    places.check_pipeline(place, classes)
    variant = str(options.pop("variant", ""))
    found = places.inspect(place, parts, variant)
    for key in ("weights", "revision"):
        options.pop(key, None)
    return _named(place, found.digest, variant), found


def _named(place: places.Place, digest: str, variant: str) -> Weights:
    return Weights(
        digest=digest, variant=variant, repository=place.repository, revision=place.revision, place=str(place.folder)
    )


def _prompts(options: dict[str, Any], scale: Scale, where: str) -> Prompts:
    """Captions where the data have some, unless `prompts.source` says otherwise."""
    source = "captions" if isinstance(scale.data, EmbeddedData) else "classes"
    values: dict[str, Any] = {"source": source, **(options.pop("prompts", None) or {})}
    if (file := options.pop("names", None)) is not None:
        try:
            lines = Path(str(file)).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise Unavailable(
                f"not available: {where}.names: {file} cannot be read: give a text file, one name a line"
            ) from None
        values["names"] = tuple(line.strip() for line in lines if line.strip())
        if len(values["names"]) != (count := class_count(scale.data)):
            raise UserError(f"{where}.names: {file} has {len(values['names'])} names, the data have {count} classes")
    return Prompts.load(values, f"{where}.prompts")


def _sizes(weights: Weights, resolution: int, native: int) -> dict[str, int]:
    factor, rest = divmod(native, resolution)
    if rest or factor & (factor - 1):
        raise Unavailable(
            f"not available: {weights.place} makes {native} px images, which do not average down to {resolution} px: mend `at` "
            "of the row"
        )
    return {"size": resolution, "native": native}


def _factor(vae: Mapping[str, Any]) -> int:
    """Pixels to a latent along a side: every level of an AutoencoderKL but the last halves."""
    factor: int = 2 ** (len(vae.get("block_out_channels") or (0, 0, 0, 0)) - 1)
    return factor
