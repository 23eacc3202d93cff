"""Queue a workflow on a running ComfyUI with your own prompt, seed and λ, follow it, and save its pictures.

python scripts/queue_prompt.py --prompt cat --seed 7 --strength 1.0 --output cat.png

Standard library only: copy this file. A workflow of your own: in ComfyUI, File → Export (API).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]
WORKFLOW = Path(__file__).resolve().parent.parent / "workflows" / "api" / "lcm_lora_txt2img.json"
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


def listen(url: str, client: str, timeout: float) -> Iterator[dict[str, Any]]:
    """ComfyUI's events: the JSON text messages of its WebSocket (RFC 6455). Binary ones, the previews, are dropped."""
    server = urllib.parse.urlsplit(url)
    secure = server.scheme == "https"
    if not server.hostname:
        raise ConnectionError("it is not an address like http://127.0.0.1:8188")
    with contextlib.ExitStack() as stack:
        peer = socket.create_connection((server.hostname, server.port or (443 if secure else 80)), timeout)
        if secure:
            peer = ssl.create_default_context().wrap_socket(peer, server_hostname=server.hostname)
        stream = stack.enter_context(stack.enter_context(peer).makefile("rb"))

        def read(size: int) -> bytes:
            if len(data := stream.read(size)) < size:
                raise ConnectionError("it closed the connection before the prompt had ended")
            return data

        key = base64.b64encode(os.urandom(16))
        peer.sendall(
            f"GET {server.path}/ws?clientId={client} HTTP/1.1\r\nHost: {server.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = stream.readline().decode("latin-1").strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        if http.client.parse_headers(stream)["Sec-WebSocket-Accept"] != accept:
            raise ConnectionError(f"it answers {status!r} in place of a WebSocket, so it is no ComfyUI")
        kind, message = 0, b""
        while True:
            head, length = read(2)
            if length > 125:  # 126 and 127 say that the length follows, in 2 or 8 bytes
                length = int.from_bytes(read(2 if length == 126 else 8), "big")
            data, opcode = read(length), head & 0x0F
            if opcode == 0x8:
                raise ConnectionError("it closed the WebSocket before the prompt had ended")
            if opcode == 0x9:  # a ping; its pong is masked, as all that a client sends
                mask = os.urandom(4)
                peer.sendall(bytes([0x8A, 0x80 | length, *mask, *(byte ^ mask[i % 4] for i, byte in enumerate(data))]))
            if opcode < 0x3:  # 1 (text) or 2 (binary) begins a message, 0 continues it
                kind, message = (opcode, data) if opcode else (kind, message + data)
                if head & 0x80 and kind == 1:
                    yield json.loads(message)


def fetch(url: str, body: dict[str, Any] | None = None) -> bytes:
    """GET, or POST of a JSON body. PromptError with what the server says if it refuses."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as refusal:
        raise PromptError(f"{url}: {refusal.code} {refusal.reason}\n{explain(refusal.read())}") from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"it broke off: {error!r}") from None


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
    client, images = uuid.uuid4().hex, {}
    with contextlib.closing(listen(url, client, timeout)) as events:
        next(events)  # ComfyUI greets, so from here on it sends this client's events
        prompt_id = json.loads(fetch(f"{url}/prompt", {"prompt": graph, "client_id": client}))["prompt_id"]
        for event in events:
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
                break
    saved = [image for key in graph for image in images.get(key, []) if image["type"] == "output"]
    if not saved:
        raise PromptError("the run saved no picture: the workflow needs a Save Image node")
    return [fetch(f"{url}/view?{urllib.parse.urlencode(image)}") for image in saved]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="of the ComfyUI (default: %(default)s)")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="API format (default: text-to-image)")
    parser.add_argument("--prompt")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--strength", type=float, help="λ of the LoRA")
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="NODE.input=value")
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in INPUTS if getattr(args, name) is not None} | dict(args.set)
    try:
        graph, lines = customise(read_workflow(args.workflow), settings)
        print(*lines, sep="\n")
        pictures = run_prompt(args.url.rstrip("/"), graph, lambda step, steps: print(f"step {step} of {steps}"))
    except PromptError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{args.url}: {error}. Start ComfyUI there, or give its address with --url")
    print(*save(pictures, args.output), sep="\n")


if __name__ == "__main__":
    main()
