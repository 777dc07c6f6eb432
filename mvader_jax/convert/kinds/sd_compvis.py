"""Stable Diffusion as CompVis/stable-diffusion saves it: UNet, VAE and text tower in one state dict."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvader_jax.convert import foreign
from mvader_jax.convert.engine import Abstract, Link, Skip, SourceMap
from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.kinds import schedulers
from mvader_jax.convert.kinds.base import Export, Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.kinds.clip_text import ACCEPTED, clip_text_config, text_links
from mvader_jax.convert.kinds.sd_compvis_names import UNET, VAE, unet_links, vae_links
from mvader_jax.convert.kinds.sd_parts import sd_model
from mvader_jax.convert.settings import Settings, count, shape_of, spelled
from mvader_jax.convert.tensors import Tensor, Weights, is_float
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

if TYPE_CHECKING:
    from mvader_jax.convert.export import Job

TEXT = "cond_stage_model.transformer."
COMPVIS_FILE = "model.safetensors"
BETA_SCHEDULES: tuple[Literal["linear", "scaled_linear"], ...] = ("linear", "scaled_linear")
_EMA = Skip(r"model_ema\..*", "moving average of the UNet (--ema takes it instead)")
_REPLACED = Skip(r"model\.diffusion_model\..*", "the UNet itself: its moving average was taken")
_EMA_COUNTERS = Skip(r"model_ema\.(decay|num_updates)", "counter of the moving average")
_SKIPS = (
    Skip(
        r"(betas|alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_(recip(m1)?_)?alphas_cumprod"
        r"|sqrt_recip(m1)?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights"
        r"|scale_factor|logvar)",
        "the schedule's tables",
    ),
    Skip(r"first_stage_model\.loss\..*", "loss networks of the VAE's training"),
    Skip(
        r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids", "position numbers, a buffer"
    ),
    Skip(r"(cond_stage_model\.)?logit_scale", "CLIP's projection: hidden states come before it"),
)
SPELLINGS = (
    (r"^cond_stage_model\.transformer\.(?!text_model\.)", "cond_stage_model.transformer.text_model."),
)


class CompVis(Kind):
    """One file of the whole model, with or without its moving average, VAE and text tower."""

    name = "stable-diffusion"
    signs = ((r"model\.diffusion_model\.input_blocks\.", r"model\.diffusion_model\..*attn2\.to_k\.weight"),)
    has_ema = True

    def __init__(self) -> None:
        self.export = Export("compvis", ("unet", "vae", "text_encoder"), write_compvis)

    def recognises(self, names: Collection[str]) -> bool:
        return super().recognises(names) and foreign.named(names) is None

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        tensors = spelled(weights.tensors, SPELLINGS)
        unet, vae, text = compvis_config(tensors, settings)
        if options.ema and not any(name.startswith("model_ema.diffusion_model") for name in tensors):
            raise UserError("this checkpoint has no moving average of its UNet; leave out --ema")
        schedule = schedule_of(tensors, settings)
        settings.require({"hidden_act": ACCEPTED["hidden_act"]})
        settings.done({})
        model = sd_model(unet, vae, text, schedule)
        present = (("unet", unet), ("vae", vae), ("text_encoder", text))
        abstract = abstract_of(model, *[name for name, config in present if config is not None])
        source_map = compvis_map(abstract, unet, vae, ema=options.ema)
        notes = (
            ("this kind of file has no tokenizer; add CLIP's with --tokenizer",) if text is not None else ()
        )
        return Source(self, (Part(weights, source_map),), model, abstract, None, notes)


def compvis_map(
    abstract: Abstract, unet: UNetConfig | None, vae: VAEConfig | None, *, ema: bool = False
) -> SourceMap:
    """abstract: the trees of unet, vae and text_encoder, or of some of them. ema: the moving average of
    the UNet instead of the UNet itself."""
    links: tuple[Link, ...] = ()
    if unet is not None and "unet" in abstract:
        links += unet_links(abstract["unet"], unet, ema)
    if vae is not None and "vae" in abstract:
        links += vae_links(abstract["vae"], vae)
    if "text_encoder" in abstract:
        links += text_links(abstract["text_encoder"], TEXT)
    skips = (*_SKIPS, _EMA_COUNTERS, _REPLACED) if ema else (*_SKIPS, _EMA)
    return SourceMap(
        "CompVis' Stable Diffusion",
        links,
        skips,
        spellings=SPELLINGS,
        optional=frozenset(["vae", "text_encoder"]),
    )


def compvis_config(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[UNetConfig, VAEConfig | None, ClipTextConfig | None]:
    """The architectures, from names and shapes; the text tower and the VAE may be missing.

    Stable Diffusion 1.x needs no settings; another width takes from them num_heads, norm_groups,
    vae_norm_groups and num_attention_heads (of the text tower), and optionally sample_size and
    scaling_factor. Raises UserError where they lack something.
    """
    unet = _unet_config(tensors, settings)
    vae = None
    if f"{VAE}quant_conv.weight" in tensors:
        vae = _vae_config(tensors, settings, unet)
    text = None
    if f"{TEXT}text_model.embeddings.token_embedding.weight" in tensors:
        text = clip_text_config(tensors, settings, TEXT)
    return unet, vae, text


def _unet_config(tensors: Mapping[str, Tensor], settings: Settings) -> UNetConfig:
    width, in_channels = shape_of(tensors, f"{UNET}input_blocks.0.0.weight", 4)[:2]
    known = width == 320
    if not known and not settings.given:
        raise UserError(
            f"a UNet of width {width} is not Stable Diffusion 1.x's, and its shapes do not tell its heads; "
            "pass --config FILE.json with num_heads and norm_groups"
        )
    widths: list[int] = []
    attention: list[bool] = []
    layers = 0
    for index in range(1, count(tensors, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{index}"
        if f"{block}.0.op.weight" in tensors:
            layers = layers or len(widths)
            continue
        widths.append(shape_of(tensors, f"{block}.0.out_layers.3.weight", 4)[0])
        attention.append(any(name.startswith(f"{block}.1.") for name in tensors))
    layers = layers or len(widths)
    contexts = [
        shape_of(tensors, name, 2)[1]
        for name in tensors
        if re.match(rf"{re.escape(UNET)}.*attn2\.to_k\.weight", name)
    ]
    if not contexts or not layers or len(widths) % layers:
        raise UserError(
            "its UNet has no cross-attention, or blocks of different length: not Stable Diffusion's"
        )
    return UNetConfig(
        in_channels=in_channels,
        out_channels=shape_of(tensors, f"{UNET}out.2.weight", 4)[0],
        block_out_channels=tuple(widths[::layers]),
        layers_per_block=layers,
        attention=tuple(attention[::layers]),
        cross_attention_dim=contexts[0],
        num_heads=settings.heads("num_heads", 8 if known else None),
        norm_groups=settings.whole("norm_groups", 32 if known else None),
        sample_size=settings.side("sample_size", 64),
    )


def _vae_config(tensors: Mapping[str, Tensor], settings: Settings, unet: UNetConfig) -> VAEConfig:
    known = unet.block_out_channels[0] == 320
    levels = count(tensors, rf"{re.escape(VAE)}encoder\.down\.(\d+)\.")
    widths = tuple(
        shape_of(tensors, f"{VAE}encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)
    )
    scaling = settings.number("scaling_factor", 0.18215)
    told = tensors.get("scale_factor")
    if told is not None and is_float(told.dtype) and told.shape == ():
        value = float(told.read())
        if not np.isclose(value, scaling, rtol=1e-3):
            raise UserError(
                f"its scale_factor is {value:.6g}, but latents are scaled by {scaling}; pass --config FILE.json with "
                "scaling_factor"
            )
    return VAEConfig(
        in_channels=shape_of(tensors, f"{VAE}encoder.conv_in.weight", 4)[1],
        block_out_channels=widths,
        layers_per_block=count(tensors, rf"{re.escape(VAE)}encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=shape_of(tensors, f"{VAE}post_quant_conv.weight", 4)[0],
        norm_groups=settings.whole("vae_norm_groups", 32 if known else None),
        scaling_factor=scaling,
        sample_size=unet.sample_size * 2 ** (levels - 1),
    )


def schedule_of(tensors: Mapping[str, Tensor], settings: Settings) -> ScheduleConfig:
    """The schedule that the settings name, by diffusers' keys; else that whose table the checkpoint holds; else
    Stable Diffusion 1.x's. Raises UserError for the table of another schedule, or of one not computed here.
    """
    said = settings.inner("schedule")
    table = tensors.get("alphas_cumprod")
    if said.given:
        config, _ = schedulers.schedule_config(said)
        if table is not None and not _is_table(config, _table(table)):
            raise UserError(f"its alphas_cumprod is of another noise schedule than {said.where} says")
        return dataclasses.replace(config, steps_offset=said.whole("steps_offset", 1, least=0))
    if table is None:
        return ScheduleConfig()
    held = _table(table)
    own = ScheduleConfig(num_train_steps=len(held))
    betas = _table(tensors["betas"]) if "betas" in tensors else 1 - held[1:] / np.maximum(held[:-1], 1e-30)
    for config in (own, *_schedules(len(held), betas[0], betas[-1])):
        if _is_table(config, held):
            return config
    off = int(np.argmax(np.abs(own.alphas_cumprod() - held)))
    raise UserError(
        f"its alphas_cumprod is of another noise schedule than Stable Diffusion 1.x's (at timestep {off} it says "
        f"{held[off]:.6g}, not {own.alphas_cumprod()[off]:.6g}), and of none that is computed here (linear, "
        "scaled_linear)"
    )


def _table(tensor: Tensor) -> np.ndarray:
    """alpha-bar of every training timestep, as a checkpoint holds it. Raises UserError for anything else."""
    if len(tensor.shape) != 1 or not is_float(tensor.dtype) or not 2 <= tensor.shape[0] <= 100_000:
        raise UserError(
            f"its {tensor.name} is {list(tensor.shape)} {tensor.dtype}, which is no schedule's table"
        )
    return tensor.read().astype(np.float64)


def _schedules(steps: int, start: float, end: float) -> Iterator[ScheduleConfig]:
    """Those whose betas begin and end about there: tables are kept in float32 or less, so the ends lost digits."""
    for digits in (4, 3, 2):
        ends = float(f"{start:.{digits}g}"), float(f"{end:.{digits}g}")
        if 0 < ends[0] <= ends[1] < 1:
            yield from (ScheduleConfig(steps, *ends, kind) for kind in BETA_SCHEDULES)


def _is_table(config: ScheduleConfig, held: np.ndarray) -> bool:
    """Whether a checkpoint's table is this schedule's, to the precision of the halves it may be kept in."""
    return config.num_train_steps == len(held) and np.allclose(
        config.alphas_cumprod(), held, rtol=0, atol=5e-4
    )


def compvis_settings(
    unet: UNetConfig | None,
    vae: VAEConfig | None,
    text: ClipTextConfig | None,
    schedule: ScheduleConfig | None = None,
) -> dict[str, Any]:
    """What a CompVis checkpoint's shapes do not tell, written beside an exported one."""
    settings: dict[str, Any] = {}
    if unet is not None:
        settings |= {
            "num_heads": unet.num_heads,
            "norm_groups": unet.norm_groups,
            "sample_size": unet.sample_size,
        }
    if vae is not None:
        settings |= {"vae_norm_groups": vae.norm_groups, "scaling_factor": vae.scaling_factor}
    if text is not None:
        settings |= {"num_attention_heads": text.num_heads, "hidden_act": text.activation}
    if schedule is not None and schedule != ScheduleConfig():
        settings["schedule"] = schedulers.schedule_settings(schedule)
    return settings


def write_compvis(job: Job, out: Path) -> list[str]:
    """One safetensors file, as the programs that read this format load it, and its settings beside it."""
    model = job.model
    if "unet" not in job.readers or model.unet is None:
        raise UserError("a CompVis checkpoint is told by its UNet, which this bundle lacks")
    if model.unet.distilled:
        raise UserError(
            "CompVis' UNet takes no guidance scale as an input, as this one does; diffusers holds it"
        )
    if model.unet.norm_eps != 1e-5:
        raise UserError(f"CompVis' UNet has norms of eps 1e-5, but this one {model.unet.norm_eps}")
    trees = job.trees()
    source_map = compvis_map(trees, model.unet, model.vae)
    write_safetensors(out / COMPVIS_FILE, job.described(source_map, trees), job.arrays(source_map, trees))
    text = model.text_encoder if "text_encoder" in job.readers else None
    vae = model.vae if "vae" in job.readers else None
    job.write_json(out / "config.json", compvis_settings(model.unet, vae, text, model.schedule))
    if model.schedule is not None and dataclasses.replace(model.schedule, spacing=None) != ScheduleConfig():
        return ["its noise schedule is not Stable Diffusion 1.x's: only the config.json beside it says so"]
    return []
