"""Where the files that the templates name are to be had: what the front end offers to download.

An address is the one of ComfyUI's own templates, or of the authors' repository where those have none.
"""

from __future__ import annotations

HUB = "https://huggingface.co"
LCM_SD15 = f"{HUB}/latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors"
LCM_SDXL = f"{HUB}/latent-consistency/lcm-lora-sdxl/resolve/main/pytorch_lora_weights.safetensors"
FLUX_TURBO = f"{HUB}/alimama-creative/FLUX.1-Turbo-Alpha/resolve/main/diffusion_pytorch_model.safetensors"
QWEN = f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
QWEN_LIGHTNING = f"{HUB}/lightx2v/Qwen-Image-Lightning/resolve/main"
WAN21 = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
# Folder below models/ -> addresses.
FOLDERS = {
    "checkpoints": [
        f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
        f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        f"{HUB}/Lykon/DreamShaper/resolve/main/DreamShaper_7_pruned.safetensors",
        f"{HUB}/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors",
    ],
    "diffusion_models": [
        f"{HUB}/SimianLuo/LCM_Dreamshaper_v7/resolve/main/LCM_Dreamshaper_v7_4k.safetensors",
        f"{QWEN}/diffusion_models/qwen_image_fp8_e4m3fn.safetensors",
        f"{WAN22}/diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        f"{WAN22}/diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    ],
    "text_encoders": [
        f"{QWEN}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
        f"{WAN21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ],
    "vae": [
        f"{QWEN}/vae/qwen_image_vae.safetensors",
        f"{WAN22}/vae/wan_2.1_vae.safetensors",
    ],
    "loras": [
        LCM_SD15,
        LCM_SDXL,
        f"{HUB}/TheLastBen/Papercut_SDXL/resolve/main/papercut.safetensors",
        f"{HUB}/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step_lora.safetensors",
        f"{HUB}/ByteDance/Hyper-SD/resolve/main/Hyper-SDXL-8steps-lora.safetensors",
        f"{HUB}/tianweiy/DMD2/resolve/main/dmd2_sdxl_4step_lora_fp16.safetensors",
        FLUX_TURBO,
        f"{QWEN_LIGHTNING}/Qwen-Image-Lightning-4steps-V1.0.safetensors",
        f"{QWEN_LIGHTNING}/Qwen-Image-Lightning-8steps-V1.0.safetensors",
        f"{WAN22}/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors",
        f"{WAN22}/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors",
    ],
}
# What the templates call files that are published under a name of no meaning.
NAMES = {
    LCM_SD15: "lcm-lora-sdv1-5.safetensors",
    LCM_SDXL: "lcm-lora-sdxl.safetensors",
    FLUX_TURBO: "FLUX.1-Turbo-Alpha.safetensors",
}
# Name -> the entry of a node's `properties.models`.
MODELS = {
    (name := NAMES.get(url, url.rpartition("/")[2])): {"name": name, "url": url, "directory": folder}
    for folder, urls in FOLDERS.items()
    for url in urls
}


def downloads(*names: str) -> str:
    """A Markdown list of files with their addresses and folders, and which of them have another name there."""
    lines = []
    for model in (MODELS[name] for name in names):
        there = model["url"].rpartition("/")[2]
        renamed = "" if there == model["name"] else f"; rename it, it is called {there} there"
        lines.append(f"- models/{model['directory']}: [{model['name']}]({model['url']}){renamed}")
    return "\n".join(lines)
