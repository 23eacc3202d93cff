"""Consistency sampling: the sampler in one node, and its parts for the host's custom sampling."""

from comfy_api.latest import io

from .checks import numbers
from .host.files import full_lcm_files
from .host.guidance import Guidance, load_projection, with_guidance_embedding
from .host.model_sampling import lcm_sigmas, with_consistency_sampling
from .host.noise import ImageNoise
from .host.sampler import Rules, Task, batch_places, consistency_sampler, part, sample_latent
from .host.stream import stream_sampler

SEED = io.Int.Input(
    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
    tooltip="Fixes every noise, the first and each step's.",
)  # fmt: skip
CFG = io.Float.Input(
    "cfg", default=1.0, min=0.0, max=30.0, step=0.1,
    tooltip="Guidance. An LCM-LoRA carries its guidance inside: stay at 1, or at most 2. Above 1 each step costs two "
    "UNet evaluations.",
)  # fmt: skip
STEPS = io.Int.Input(
    "steps", default=4, min=1, max=50, tooltip="Number of UNet evaluations. 4 is usual, 8 is finer, 1 or 2 are drafts."
)
DENOISE = io.Float.Input(
    "denoise", default=1.0, min=0.02, max=1.0, step=0.01,
    tooltip="Strength on the LCM grid. 1 starts from noise; 0.7 with 4 steps starts at timestep 699 and still makes 4 "
    "steps, so the input latent shows through.",
)  # fmt: skip
ORIGINAL_STEPS = io.Int.Input(
    "original_steps", default=50, min=1, max=1000,
    tooltip="Points of the grid that the LCM was distilled on. 50 for the released LCM-LoRAs.",
)  # fmt: skip
GAMMA = io.Float.Input(
    "gamma", default=1.0, min=0.0, max=1.0, step=0.01,
    tooltip="How much fresh noise each step gets. 1 is the LCM paper's multistep sampling, 0 is deterministic, "
    "between is TCD's strategic stochastic sampling.",
)  # fmt: skip
GUIDANCE_UNTIL = io.Float.Input(
    "guidance_until", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
    tooltip="With cfg above 1: guide only this share of the steps, from the first. 0.25 of 4 steps costs 5 UNet "
    "evaluations in place of 8. For plain guidance; DualCFG evaluates all its prompts at every step.",
)  # fmt: skip
TIMESTEPS = io.String.Input(
    "timesteps", default="", optional=True,
    tooltip="Your own timesteps, descending, such as 999, 759, 499, 259; then steps is unused. On every model they are "
    "thousandths of its range. Empty: the LCM grid's.",
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
            "noise of the next timestep. Use it after Load LCM-LoRA, at 1–8 steps and cfg 1, for text to image, image "
            "to image and inpainting.",
            inputs=[
                io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Unused, and free, at cfg 1."),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded picture with denoise below 1."),
                SEED,
                STEPS,
                CFG,
                DENOISE,
                ORIGINAL_STEPS,
                GAMMA,
                GUIDANCE_UNTIL,
                TIMESTEPS,
                io.String.Input("seeds", default="", optional=True,
                                tooltip="A seed for each image of the batch, such as 7, 21, 8: each image is what that "
                                "seed makes by itself. Empty: seed for all."),
                io.Int.Input("start_at_step", default=0, min=0, max=10000, optional=True,
                             tooltip="As in KSampler (Advanced): the first of the steps that this node makes. Those "
                             "before it are another sampler's; then turn add_noise off here."),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000, optional=True,
                             tooltip="The step before which this node ends, for another sampler to go on with."),
                io.Boolean.Input("add_noise", default=True, optional=True,
                                 tooltip="Off for a latent that has its noise already, from the sampler before."),
                io.Boolean.Input("return_with_leftover_noise", default=False, optional=True,
                                 tooltip="With end_at_step: hand the noise on to the next sampler. Off: end clean."),
                GUIDANCE_FROM,
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, cfg, denoise, original_steps, gamma, guidance_until=1.0,
        timesteps="", seeds="", start_at_step=0, end_at_step=10000, add_noise=True, return_with_leftover_noise=False,
        guidance_from=0.0,
    ):  # fmt: skip
        model = with_consistency_sampling(model)
        whole = lcm_sigmas(model, steps, original_steps, denoise, timesteps)
        sigmas = part(whole, start_at_step, end_at_step, return_with_leftover_noise)
        noise = ImageNoise(tuple(numbers("seeds", seeds, int)), batch_places(latent))
        guidance = Guidance(guidance_from, guidance_until)
        sampler = consistency_sampler(Rules(gamma, guidance, noise, tuple(whole[:-1].tolist())))
        task = Task(model, positive, negative, latent, seed, cfg)
        return io.NodeOutput(sample_latent(task, sampler, sigmas, noise, add_noise=add_noise))


class ConsistencySamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SamplerSelect",
            display_name="LCM Sampler Select",
            category="LCM-LoRA/custom sampling",
            description="The consistency sampler for SamplerCustom and SamplerCustomAdvanced. Give it LCM Schedule's "
            "sigmas, all or a part of them, and a model with LCM Model Sampling.",
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
    def execute(cls, gamma, latent=None, guidance_until=1.0, guidance_from=0.0):
        guidance = Guidance(guidance_from, guidance_until)
        return io.NodeOutput(consistency_sampler(Rules(gamma, guidance, ImageNoise((), batch_places(latent or {})))))


class LCMSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Schedule",
            display_name="LCM Schedule",
            category="LCM-LoRA/custom sampling",
            description="The sigmas of the LCM grid: 4 steps are timesteps 999, 759, 499, 259, as in diffusers.",
            inputs=[
                io.Model.Input("model", tooltip="Its own noise schedule turns timesteps into sigmas."),
                STEPS,
                DENOISE,
                ORIGINAL_STEPS,
                TIMESTEPS,
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(cls, model, steps, denoise, original_steps, timesteps=""):
        return io.NodeOutput(lcm_sigmas(model, steps, original_steps, denoise, timesteps))


class ConsistencyModelSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_ModelSampling",
            display_name="LCM Model Sampling",
            category="LCM-LoRA/custom sampling",
            description="Makes the model predict f_θ = c_skip·x + c_out·x̂₀, for noise-, v- and sample-prediction "
            "alike; a flow model does so already. Load LCM-LoRA and LCM Sampler do this themselves.",
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
            inputs=[
                io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM."),
                io.Conditioning.Input("positive", tooltip="What the frames should show, one prompt for all."),
                io.Conditioning.Input("negative", tooltip="What they should not show. Unused, and free, at cfg 1."),
                io.Latent.Input("latent", tooltip="The frames as a batch: encoded video with denoise below 1."),
                SEED,
                STEPS,
                CFG,
                DENOISE,
                ORIGINAL_STEPS,
                GAMMA,
                TIMESTEPS,
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, cfg, denoise, original_steps, gamma, timesteps=""
    ):  # fmt: skip
        model = with_consistency_sampling(model)
        sigmas = lcm_sigmas(model, steps, original_steps, denoise, timesteps)
        noise = ImageNoise((), batch_places(latent))
        sampler = stream_sampler(Rules(gamma, noise=noise), model, latent, positive, negative)
        task, frames = Task(model, positive, negative, latent, seed, cfg), latent["samples"].shape[0]
        return io.NodeOutput(sample_latent(task, sampler, sigmas, noise, progress=frames))
