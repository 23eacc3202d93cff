"""A headless ComfyUI client: graphs in over HTTP, progress over the WebSocket, pictures out."""

from __future__ import annotations

import asyncio
import io
import json
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

Graph = dict[str, dict[str, Any]]
PREVIEW_IMAGE = (1).to_bytes(4, "big")  # a binary message: this, the picture's format in 4 bytes, the picture
FINAL = {"execution_success", "execution_error", "execution_interrupted"}


class PromptError(RuntimeError):
    """A graph that the server refused, or whose run ended in an error.

    `entry` is the history entry of a run; None where the graph never ran.
    """

    def __init__(self, message: str, entry: dict | None = None) -> None:
        super().__init__(message)
        self.entry = entry


class Client:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return answer.read()

    def object_info(self) -> dict:
        return json.loads(self.get("/object_info"))

    def history(self, prompt_id: str) -> dict | None:
        """The history entry of a prompt; None while there is none."""
        return json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id)

    def queue(
        self,
        graph: Graph,
        on_progress: Callable[[int, int], None] = lambda value, total: None,
        on_preview: Callable[[np.ndarray], None] = lambda picture: None,
        timeout: float = 600.0,
    ) -> dict:
        """Run an API-format graph to its end and return its history entry; PromptError if it was refused or failed."""
        prompt_id = asyncio.run(asyncio.wait_for(self._run(graph, on_progress, on_preview), timeout))
        deadline = time.monotonic() + 10
        while (entry := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                raise PromptError(f"prompt {prompt_id} ended but is not in /history")
            time.sleep(0.01)
        if entry["status"]["status_str"] != "success":
            raise PromptError(execution_error(entry), entry)
        return entry

    def interrupt(self) -> None:
        """Stop the running prompt; `queue` then raises PromptError."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/interrupt", method="POST"), timeout=60).close()

    async def _run(
        self, graph: Graph, on_progress: Callable[[int, int], None], on_preview: Callable[[np.ndarray], None]
    ) -> str:
        """Post the graph and follow its messages; returns its prompt id once it has ended."""
        client_id = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket,
        ):
            async with session.post("/prompt", json={"prompt": graph, "client_id": client_id}) as response:
                answer = await response.json()
                if response.status != 200:
                    raise PromptError(rejection(answer))
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY and message.data[:4] == PREVIEW_IMAGE:
                    on_preview(np.asarray(Image.open(io.BytesIO(message.data[8:])).convert("RGB")))
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event["data"]
                if data.get("prompt_id") != answer["prompt_id"]:
                    continue
                if event["type"] == "progress":
                    on_progress(int(data["value"]), int(data["max"]))
                if event["type"] in FINAL:
                    return answer["prompt_id"]
        raise ConnectionError(f"{self.url} closed the connection while a prompt was running")

    def images(self, entry: dict) -> list[np.ndarray]:
        """The pictures of a run in the order of their nodes, each uint8 (H, W, 3)."""
        records = [record for node in sorted(entry["outputs"]) for record in entry["outputs"][node].get("images", [])]
        return [self._view(record) for record in records]

    def _view(self, record: dict[str, str]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.get("/view", **record))).convert("RGB"))


def cached_nodes(entry: dict) -> set[str]:
    """The nodes that the server did not run again because it had their outputs."""
    messages = dict(entry["status"]["messages"])
    return set(messages.get("execution_cached", {}).get("nodes", []))


def rejection(answer: dict) -> str:
    """What the server says about a graph that it refuses: the error, then each node's."""
    lines = [f"{answer['error']['message']}: {answer['error']['details']}".strip(": ")]
    for node, problem in (answer.get("node_errors") or {}).items():
        lines += [f"node {node} ({problem['class_type']}): {e['message']}: {e['details']}" for e in problem["errors"]]
    return "\n".join(lines)


def execution_error(entry: dict) -> str:
    """What the server says about a run that ended in an error or was interrupted."""
    messages = dict(entry["status"]["messages"])
    if "execution_error" not in messages:
        return "the run was interrupted"
    error = messages["execution_error"]
    return f"node {error['node_id']} ({error['node_type']}): {error['exception_type']}: {error['exception_message']}"
