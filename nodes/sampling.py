"""Consistency sampling: the sampler in one node, and its parts for the host's custom sampling."""

from comfy_api.latest import io

from . import host

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


class LCMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Sampler",
            display_name="LCM Sampler",
            category="LCM-LoRA",
            description="Few-step sampling of a latent consistency model, exact to the paper: x ← f_θ(x, t), then "
            "noise of the next timestep. Use it after Load LCM-LoRA, at 1–8 steps and cfg 1.",
            inputs=[
                io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show. Unused, and free, at cfg 1."),
                io.Latent.Input("latent", tooltip="An empty latent, or an encoded picture with denoise below 1."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Fixes every noise, the first and each step's."),
                STEPS,
                io.Float.Input("cfg", default=1.0, min=0.0, max=30.0, step=0.1,
                               tooltip="Guidance. An LCM-LoRA carries its guidance inside: stay at 1, or at most 2. "
                               "Above 1 each step costs two UNet evaluations."),
                DENOISE,
                ORIGINAL_STEPS,
                GAMMA,
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, latent, seed, steps, cfg, denoise, original_steps, gamma):
        host.check_finite(cfg=cfg)
        model = host.with_consistency_sampling(model)
        sigmas = host.lcm_sigmas(model, steps, original_steps, denoise)
        sampler = host.consistency_sampler(gamma, latent)
        return io.NodeOutput(host.sample_latent(model, positive, negative, latent, sampler, sigmas, seed, cfg))


class ConsistencySamplerSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SamplerSelect",
            display_name="LCM Sampler Select",
            category="LCM-LoRA/custom sampling",
            description="The consistency sampler for SamplerCustom and SamplerCustomAdvanced. Give it LCM Schedule's "
            "sigmas and a model with LCM Model Sampling.",
            inputs=[
                GAMMA,
                io.Latent.Input("latent", optional=True,
                                tooltip="Only for images picked with LatentFromBatch: keeps their noise their own."),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )  # fmt: skip

    @classmethod
    def execute(cls, gamma, latent=None):
        return io.NodeOutput(host.consistency_sampler(gamma, latent))


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
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
        )

    @classmethod
    def execute(cls, model, steps, denoise, original_steps):
        return io.NodeOutput(host.lcm_sigmas(model, steps, original_steps, denoise))


class ConsistencyModelSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_ModelSampling",
            display_name="LCM Model Sampling",
            category="LCM-LoRA/custom sampling",
            description="Makes the model predict f_θ = c_skip·x + c_out·x̂₀, for noise- and v-prediction alike. Load "
            "LCM-LoRA and LCM Sampler do this themselves.",
            inputs=[io.Model.Input("model", tooltip="A model with an LCM-LoRA, or a full LCM.")],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(host.with_consistency_sampling(model))
