"""Queue a workflow on a running ComfyUI with your own prompt, seed and λ, follow it, and save its pictures.

python queue_prompt.py --prompt "photo of a cat" --seed 7 --strength 1.0 --output cat.png
python queue_prompt.py --prompts prompts.txt --output pictures/fox.png

This file works alone, with ComfyUI's Python or any that has aiohttp. Without --workflow it takes the text-to-image
template of the pack from ComfyUI. A workflow of your own: in ComfyUI, File → Export (API). A line of prompts.txt is one
prompt; the pictures are numbered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import aiohttp
except ModuleNotFoundError:
    sys.exit("aiohttp is not here; run this with ComfyUI's Python, which has it, or `pip install aiohttp`")

Graph = dict[str, dict[str, Any]]
TEMPLATE = "lcm_lora_txt2img"
INPUTS = {  # setting -> the node classes that have it, each with its input's name
    "prompt": {"CLIPTextEncode": "text"},
    "seed": {"LCMLoRA_Sampler": "seed", "KSampler": "seed", "SamplerCustom": "noise_seed", "RandomNoise": "noise_seed"},
    "strength": {
        "LCMLoRA_Loader": "strength",
        "LCMLoRA_ApplyVector": "strength",
        "LoraLoader": "strength_model",
        "LoraLoaderModelOnly": "strength_model",
    },
}


class PromptError(RuntimeError):
    """A setting that does not fit the workflow, a prompt that ComfyUI refuses, or a run that fails."""


def title(node: dict[str, Any]) -> str:
    return node.get("_meta", {}).get("title", node["class_type"])


def read_workflow(path: Path) -> Graph:
    """An API-format workflow; PromptError if the file is none."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
        if all("class_type" in node for node in graph.values()):
            return graph
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PromptError(f"cannot read the workflow {path}: {error}") from None
    raise PromptError(f"{path} is not in API format: export it with File → Export (API)")


def template_of(url: str, name: str = TEMPLATE) -> Graph:
    """A template of the pack in API format, from the ComfyUI that has it; PromptError if it has none or several."""
    packs = [pack for pack, names in json.loads(fetch(f"{url}/workflow_templates")).items() if name in names]
    found = {}
    for pack in packs:
        with contextlib.suppress(PromptError):
            found[pack] = fetch(f"{url}/api/workflow_templates/{urllib.parse.quote(pack)}/api/{name}.json")
    if len(found) == 1:
        return json.loads(*found.values())
    where = f"in {', '.join(sorted(found))}" if found else "nowhere: install the nodes there"
    raise PromptError(f"{url} has the template {name} {where}; or give a workflow with --workflow FILE")


def find_input(graph: Graph, setting: str) -> tuple[str, str]:
    """(node, input) of "prompt", "seed" or "strength", by class and title, or of "NODE.input", by number or title."""
    wanted, _, field = setting.rpartition(".")
    found = [(key, field) for key, node in graph.items() if wanted in (key, title(node)) and field in node["inputs"]]
    if setting in INPUTS:
        fields = INPUTS[setting]
        keys = [key for key, node in graph.items() if node["class_type"] in fields]
        if len(keys) > 1:  # the positive prompt beside the negative one
            positive = [node["inputs"]["positive"][0] for node in graph.values() if "positive" in node["inputs"]]
            keys = [key for key in keys if key in positive or title(graph[key]).lower().startswith(setting)] or keys
        found = [(key, fields[graph[key]["class_type"]]) for key in keys]
    if len(found) != 1:
        nodes = "\n".join(f"  {key} ({title(node)}): {', '.join(node['inputs'])}" for key, node in graph.items())
        raise PromptError(
            f"{setting!r} fits {len(found)} inputs of the workflow, not one. "
            f"Say NODE.input, the node by its number or title:\n{nodes}"
        )
    return found[0]


def customise(graph: Graph, settings: dict[str, Any]) -> tuple[Graph, list[str]]:
    """A copy of the graph with these inputs set, and for each a line that says which."""
    graph, lines = copy.deepcopy(graph), []
    for setting, value in settings.items():
        key, field = find_input(graph, setting)
        graph[key]["inputs"][field] = value
        lines.append(f"node {key} ({title(graph[key])}): {field} = {value!r}")
    return graph, lines


def fetch(url: str) -> bytes:
    """What the server answers; PromptError if it refuses."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as refusal:
        raise PromptError(f"{url}: {refusal.code} {refusal.reason}") from None
    except ValueError as error:
        raise ConnectionError(f"it is not an address like http://127.0.0.1:8188 ({error})") from None


def explain(answer: bytes) -> str:
    """ComfyUI's answer to a prompt that it refuses, as text: the error, then each node's."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        problem = json.loads(answer)
        lines = [f"{problem['error']['message']}: {problem['error']['details']}"]
        for key, node in problem["node_errors"].items():
            lines += [f"node {key} ({node['class_type']}): {e['message']}: {e['details']}" for e in node["errors"]]
        return "\n".join(lines)
    return answer.decode("utf-8", "replace")[:500]


def run_prompt(
    url: str, graph: Graph, on_step: Callable[[int, int], None] = lambda step, steps: None, timeout: float = 600.0
) -> list[bytes]:
    """Run an API-format graph; returns its pictures as file contents, in the order of the graph's nodes.

    PromptError if it is refused or fails; OSError if the server isn't there, goes away or is silent for `timeout` s.
    """
    try:
        images = asyncio.run(follow(url, graph, on_step, timeout))
    except asyncio.TimeoutError:
        raise ConnectionError(f"it has said nothing for {timeout:g} s") from None
    except aiohttp.ClientError as error:
        raise ConnectionError(f"it broke off, or is no ComfyUI: {error}") from None
    saved = [image for key in graph for image in images.get(key, []) if image["type"] == "output"]
    if not saved:
        raise PromptError("the run saved no picture: the workflow needs a Save Image node")
    return [fetch(f"{url}/view?{urllib.parse.urlencode(image)}") for image in saved]


async def follow(
    url: str, graph: Graph, on_step: Callable[[int, int], None], timeout: float
) -> dict[str, list[dict[str, str]]]:
    """Queue the graph and hear its events to the end: node -> its pictures, as /view takes them."""
    client, images = uuid.uuid4().hex, {}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws", params={"clientId": client}, max_msg_size=0) as events,
    ):
        async with session.post(f"{url}/prompt", json={"prompt": graph, "client_id": client}) as answer:
            if answer.status != 200:
                said = explain(await answer.read())
                raise PromptError(f"{url}/prompt: {answer.status} {answer.reason}\n{said}")
            prompt_id = (await answer.json())["prompt_id"]
        while True:
            message = await events.receive(timeout)
            if message.type is aiohttp.WSMsgType.BINARY:  # a preview
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionError("it closed the connection before the prompt had ended")
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "progress":
                on_step(data["value"], data["max"])
            elif kind == "executed":
                images[data["node"]] = (data["output"] or {}).get("images", [])
            elif kind == "execution_error":
                what = f"{data['exception_type']}: {data['exception_message'].strip()}"
                raise PromptError(f"node {data['node_id']} ({data['node_type']}): {what}")
            elif kind == "execution_interrupted":
                raise PromptError("the run was interrupted")
            elif kind == "execution_success":
                return images


def save(pictures: list[bytes], path: Path) -> list[Path]:
    """Write a single picture to `path`, several to NAME_1, NAME_2 … beside it; returns their paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [f"_{i}" for i in range(1, len(pictures) + 1)] if len(pictures) > 1 else [""]
    files = [path.with_name(f"{path.stem}{number}{path.suffix}") for number in numbers]
    for file, picture in reversed(list(zip(files, pictures, strict=True))):  # once the first is there, all are
        part = file.with_name(f"{file.name}.part")
        part.write_bytes(picture)
        os.replace(part, file)
    return files


def assignment(text: str) -> tuple[str, Any]:
    """ "NODE.input=value" as a pair; the value is JSON, else text."""
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


def jobs(prompts: Path | None, output: Path) -> list[tuple[dict[str, str], Path]]:
    """(settings, path of the picture) of each run: one, or one for each line of a file; PromptError if it has none."""
    if prompts is None:
        return [({}, output)]
    try:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise PromptError(f"cannot read the prompts in {prompts}: {error}") from None
    texts = [line for line in lines if line]
    if not texts:
        raise PromptError(f"{prompts} has no prompt: write one in each line")
    return [({"prompt": text}, output.with_stem(f"{output.stem}_{i:03}")) for i, text in enumerate(texts, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="of the ComfyUI (default: %(default)s)")
    parser.add_argument("--workflow", type=Path, help="in API format (default: the template text to image)")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--prompt")
    several.add_argument("--prompts", type=Path, metavar="FILE", help="a text file with a prompt in each line")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--strength", type=float, help="λ of the LoRA")
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="NODE.input=value")
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in INPUTS if getattr(args, name) is not None} | dict(args.set)
    url = args.url.rstrip("/")
    try:
        workflow = read_workflow(args.workflow) if args.workflow else template_of(url)
        for own, path in jobs(args.prompts, args.output):
            graph, lines = customise(workflow, settings | own)
            print(*lines, sep="\n")
            pictures = run_prompt(url, graph, lambda step, steps: print(f"step {step} of {steps}"))
            print(*save(pictures, path), sep="\n")
    except PromptError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{args.url}: {error}. Start ComfyUI there, or give its address with --url")


if __name__ == "__main__":
    main()
