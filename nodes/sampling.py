"""Consistency sampling: the sampler in one node, and its parts for the host's custom sampling."""

from comfy_api.latest import io

from .acceleration import AUTO, expert_of_part, run_of, said_of
from .checks import numbers
from .host.files import full_lcm_files
from .host.guidance import Guidance, load_projection, with_guidance_embedding
from .host.levels import run_sigmas
from .host.model_sampling import with_consistency_sampling
from .host.noise import ImageNoise
from .host.report import tell
from .host.sampler import Rules, Task, batch_places, consistency_sampler, part, sample_latent
from .host.stream import stream_sampler
from .inputs import aliases, expert

SEED = io.Int.Input(
    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
    tooltip="Fixes every noise, the first and each step's.",
)  # fmt: skip
CFG = io.Float.Input(
    "cfg", default=-1.0, min=-1.0, max=30.0, step=0.1, optional=True,
    tooltip="Guidance. −1: the recipe's, mostly 1, as an accelerator has its guidance inside. Above 1 each step costs "
    "two UNet evaluations.",
)  # fmt: skip
STEPS = io.Int.Input(
    "steps", default=0, min=0, max=50, optional=True,
    tooltip="Number of UNet evaluations. 0: as the model's recipe says, 4 without one. More is finer where the LoRA "
    "takes it, 1 or 2 are drafts.",
)  # fmt: skip
DENOISE = io.Float.Input(
    "denoise", default=1.0, min=0.02, max=1.0, step=0.01, optional=True,
    tooltip="Strength. 1 starts from noise; at 0.7 the input latent shows through. The LCM grid makes all steps below "
    "timestep 699 then; of a trailing grid the last 0.7 of the steps are made.",
)  # fmt: skip
ORIGINAL_STEPS = io.Int.Input(
    "original_steps", default=0, min=0, max=1000, optional=True,
    tooltip="Points of the LCM grid that an LCM was distilled on. 0: the recipe's, 50 for the released LCM-LoRAs.",
)  # fmt: skip
GAMMA = io.Float.Input(
    "gamma", default=-1.0, min=-1.0, max=1.0, step=0.01, optional=True,
    tooltip="How much fresh noise each step gets. −1: the recipe's. 1 is the LCM paper's multistep sampling, 0 is "
    "deterministic (DDIM, Euler), between is TCD's strategic stochastic sampling.",
)  # fmt: skip
GUIDANCE_UNTIL = io.Float.Input(
    "guidance_until", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
    tooltip="With cfg above 1: guide only this share of the steps, from the first. 0.25 of 4 steps costs 5 UNet "
    "evaluations in place of 8. For plain guidance; DualCFG evaluates all its prompts at every step.",
)  # fmt: skip
TIMESTEPS = io.String.Input(
    "timesteps", default="", optional=True,
    tooltip="Your own timesteps, descending, such as 999, 759, 499, 259; then steps is unused. On every model they are "
    "thousandths of its range. Empty: the grid's.",
)  # fmt: skip
GRID = io.Combo.Input(
    "grid", options=[AUTO, "lcm", "trailing"], default=AUTO, optional=True,
    tooltip="Which timesteps. auto: the recipe's, and the LCM grid without one or with original_steps set. lcm: 999, "
    "759, 499, 259 in 4 steps. trailing: 999, 749, 499, 249, as Lightning and Hyper-SD take.",
)  # fmt: skip
GUIDANCE_FROM = io.Float.Input(
    "guidance_from", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
    tooltip="With cfg above 1: this share of the steps, from the first, stays without guidance. 0.25 of 4 steps leaves "
    "the first one alone, where guidance burns most.",
)  # fmt: skip


class LCMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Sampler",
            display_name="LCM Sampler",
            category="LCM-LoRA",
            description="Few-step sampling of a latent consistency model, exact to the paper: x ← f_θ(x, t), then "
            "noise of the next timestep; and of Lightning, Hyper-SD and other accelerators by the recipe that Load "
            "Acceleration LoRA found. For text to image, image to image and inpainting.",
            **aliases("few steps", "acceleration", "fast", "turbo", "lightning", "ksampler", "tcd"),
            inputs=[
                io.Model.Input("model", tooltip="A model with an acceleration LoRA, or a full LCM."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Unused, and free, at cfg 1."),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded picture with denoise below 1."),
                SEED,
                STEPS,
                CFG,
                DENOISE,
                *map(expert, [
                    ORIGINAL_STEPS,
                    GAMMA,
                    GUIDANCE_UNTIL,
                    TIMESTEPS,
                    io.String.Input("seeds", default="", optional=True,
                                    tooltip="A seed for each image of the batch, such as 7, 21, 8: each image is what "
                                    "that seed makes by itself. Empty: seed for all."),
                    io.Int.Input("start_at_step", default=0, min=0, max=10000, optional=True,
                                 tooltip="As in KSampler (Advanced): the first of the steps that this node makes. "
                                 "Those before it are another sampler's; then turn add_noise off here."),
                    io.Int.Input("end_at_step", default=10000, min=0, max=10000, optional=True,
                                 tooltip="The step before which this node ends, for another sampler to go on with."),
                    io.Boolean.Input("add_noise", default=True, optional=True,
                                     tooltip="Off for a latent that has its noise already, from the sampler before."),
                    io.Boolean.Input("return_with_leftover_noise", default=False, optional=True,
                                     tooltip="With end_at_step: hand the noise on to the next sampler. Off: end "
                                     "clean."),
                    GUIDANCE_FROM,
                    GRID,
                ]),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps=0, cfg=-1.0, denoise=1.0, original_steps=0, gamma=-1.0,
        guidance_until=1.0, timesteps="", seeds="", start_at_step=0, end_at_step=10000, add_noise=True,
        return_with_leftover_noise=False, guidance_from=0.0, grid=AUTO,
    ):  # fmt: skip
        model = with_consistency_sampling(model)
        run = run_of(model, steps, original_steps, gamma, cfg, grid)
        whole = run_sigmas(model, run, denoise, timesteps)
        sigmas = part(whole, start_at_step, end_at_step, return_with_leftover_noise)
        noise = ImageNoise(tuple(numbers("seeds", seeds, int)), batch_places(latent))
        guidance = Guidance(guidance_from, guidance_until)
        sampler = consistency_sampler(Rules(run.gamma.default, guidance, noise, tuple(whole[:-1].tolist())))
        task = Task(model, positive, negative, latent, seed, run.cfg.default)
        expert = expert_of_part(len(whole) - 1, start_at_step, end_at_step)
        said = said_of(model, run, whole, denoise, timesteps, positive, expert)
        return io.NodeOutput(sample_latent(task, sampler, sigmas, noise, said=said, add_noise=add_noise))


class ConsistencySamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SamplerSelect",
            display_name="LCM Sampler Select",
            category="LCM-LoRA/custom sampling",
            description="The consistency sampler for SamplerCustom and SamplerCustomAdvanced. Give it LCM Schedule's "
            "sigmas, all or a part of them, and a model with LCM Model Sampling.",
            **aliases("tcd", "few steps"),
            inputs=[
                GAMMA,
                io.Latent.Input("latent", optional=True,
                                tooltip="Only for images picked with LatentFromBatch: keeps their noise their own."),
                GUIDANCE_UNTIL,
                GUIDANCE_FROM,
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma=-1.0, latent=None, guidance_until=1.0, guidance_from=0.0):
        guidance, noise = Guidance(guidance_from, guidance_until), ImageNoise((), batch_places(latent or {}))
        return io.NodeOutput(consistency_sampler(Rules(None if gamma < 0 else gamma, guidance, noise)))


class LCMSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Schedule",
            display_name="LCM Schedule",
            category="LCM-LoRA/custom sampling",
            description="The sigmas of the model's recipe, or of the LCM grid: 4 steps are timesteps 999, 759, 499, "
            "259, as in diffusers.",
            **aliases("lcm scheduler", "tcd", "timesteps", "sigmas"),
            inputs=[
                io.Model.Input("model", tooltip="Its own noise schedule turns timesteps into sigmas."),
                STEPS,
                DENOISE,
                ORIGINAL_STEPS,
                TIMESTEPS,
                GRID,
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(cls, model, steps=0, denoise=1.0, original_steps=0, timesteps="", grid=AUTO):
        run = run_of(model, steps, original_steps, grid=grid)
        sigmas = run_sigmas(model, run, denoise, timesteps)
        tell(said_of(model, run, sigmas, denoise, timesteps))
        return io.NodeOutput(sigmas)


class ConsistencyModelSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_ModelSampling",
            display_name="LCM Model Sampling",
            category="LCM-LoRA/custom sampling",
            description="Makes the model predict f_θ = c_skip·x + c_out·x̂₀, for noise-, v- and sample-prediction "
            "alike; a flow model does so already. Load Acceleration LoRA and LCM Sampler do this themselves.",
            **aliases("lcm", "c_skip", "ModelSamplingDiscrete"),
            inputs=[io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM.")],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(with_consistency_sampling(model))


class FullLCMGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_GuidanceEmbedding",
            display_name="Full LCM Guidance",
            category="LCM-LoRA",
            description="Tells a full LCM checkpoint its guidance ω, through the time_embed.cond_proj weight that the "
            "checkpoint loader leaves out. Not for LCM-LoRAs, whose guidance is trained in.",
            **aliases("w embedding", "cond_proj", "lcm dreamshaper"),
            inputs=[
                io.Model.Input("model", tooltip="A full LCM, such as LCM Dreamshaper v7."),
                io.Combo.Input("file", options=full_lcm_files(),
                               tooltip="The file that holds cond_proj: the checkpoint that the model was loaded from, "
                               "or its UNet in diffusers' format."),
                io.Float.Input("omega", default=7.5, min=0.0, max=30.0, step=0.1,
                               tooltip="ω of the paper, with cfg staying at 1. It is diffusers' guidance_scale − 1: "
                               "guidance_scale 8.5 is ω 7.5."),
                io.String.Input("omega_per_image", default="", optional=True,
                                tooltip="An ω for each image of the batch, such as 3, 5, 7.5. Empty: omega for all."),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, file, omega, omega_per_image=""):
        each = numbers("omega_per_image", omega_per_image) or [omega]
        return io.NodeOutput(with_guidance_embedding(model, load_projection(file), each))


class StreamBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_StreamBatch",
            display_name="LCM Stream Batch",
            category="LCM-LoRA",
            description="LCM Sampler for a sequence of frames or a video, one UNet evaluation a frame: each evaluation "
            "is a batch of successive frames at successive timesteps. The frames are those that LCM Sampler makes one "
            "by one.",
            **aliases("video", "stream diffusion", "real time", "frames"),
            inputs=[
                io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM."),
                io.Conditioning.Input("positive", tooltip="What the frames should show, one prompt for all."),
                io.Conditioning.Input("negative", tooltip="What they should not show. Unused, and free, at cfg 1."),
                io.Latent.Input("latent", tooltip="The frames as a batch: encoded video with denoise below 1."),
                SEED,
                STEPS,
                CFG,
                DENOISE,
                *map(expert, [ORIGINAL_STEPS, GAMMA, TIMESTEPS, GRID]),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps=0, cfg=-1.0, denoise=1.0, original_steps=0, gamma=-1.0,
        timesteps="", grid=AUTO,
    ):  # fmt: skip
        model = with_consistency_sampling(model)
        run = run_of(model, steps, original_steps, gamma, cfg, grid)
        sigmas = run_sigmas(model, run, denoise, timesteps)
        noise = ImageNoise((), batch_places(latent))
        sampler = stream_sampler(Rules(run.gamma.default, noise=noise), model, latent, positive, negative)
        task, frames = Task(model, positive, negative, latent, seed, run.cfg.default), latent["samples"].shape[0]
        said = said_of(model, run, sigmas, denoise, timesteps, positive)
        return io.NodeOutput(sample_latent(task, sampler, sigmas, noise, said=said, progress=frames))
