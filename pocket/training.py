"""One loop for every stage of the recipe: fixed seed and length, progress, resuming after a kill, GPU or several CPUs.

A stage runs on the GPU if there is one, in bfloat16 autocast. On CPUs start it with `torchrun --nproc-per-node 2 -m
pocket.<stage>` to share each batch between processes: on a small model two processes of one thread do twice what one
process of two threads does.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lcm_core.distill.processes import average_gradients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AUTOCAST = torch.bfloat16 if DEVICE.type == "cuda" else None
torch.set_float32_matmul_precision("high")


def processes() -> tuple[int, int]:
    """(rank, number) of the processes that `torchrun` or `accelerate launch` started; (0, 1) without."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=DEVICE.type == "cpu")
    if accelerator.num_processes > 1:
        torch.set_num_threads(1)
    return accelerator.process_index, accelerator.num_processes


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning-rate factor: linear warm-up, then a half cosine down to 0.02."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fast(network: nn.Module) -> Callable[..., Tensor]:
    """The network compiled on a GPU, as it is on CPUs."""
    return torch.compile(network) if DEVICE.type == "cuda" else network


def train(
    name: str,
    modules: dict[str, nn.Module],
    loss_of: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    lr: float,
    state: Path,
    seed: int = 0,
    after_step: Callable[[], None] = lambda: None,
    save_every: int = 500,
) -> None:
    """Minimise `loss_of(generator)` over the trainable parameters of `modules` with Adam and a cosine rate.

    Every `save_every` steps the modules and the optimizer go to `state` (written beside, then renamed), and a later
    call goes on from there. The generator, on DEVICE, is seeded anew by (seed, step, process). `modules` may hold
    averaged copies: they are saved, and trained only if they require gradients. `after_step` runs after each update.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=DEVICE.type == "cpu")
    rank = accelerator.process_index
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=True)
    done = 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=DEVICE)
        for key, module in modules.items():
            module.load_state_dict(saved["modules"][key])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
    average = None
    progress = tqdm(range(done, steps), initial=done, total=steps, desc=name, mininterval=10, disable=rank > 0)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step, steps)
        generator = torch.Generator(DEVICE).manual_seed((seed * 1_000_003 + step) * 64 + rank)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, AUTOCAST, enabled=AUTOCAST is not None):
            loss = loss_of(generator)
        loss.backward()
        if accelerator.num_processes > 1:
            average_gradients(accelerator, parameters, loss.detach())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step()
        if step % 20 == 0:
            average = loss.item() if average is None else 0.8 * average + 0.2 * loss.item()
            progress.set_postfix(loss=f"{average:.5f}", refresh=False)
        if rank == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            beside = state.with_suffix(".part")
            weights = {key: module.state_dict() for key, module in modules.items()}
            torch.save({"modules": weights, "optimizer": optimizer.state_dict(), "done": step + 1}, beside)
            os.replace(beside, state)


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters: average <- decay * average + (1 - decay) * live."""
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
