"""The host's front end as a user works with it: a page of Chromium, its menus, its canvas and its dialogs."""

from __future__ import annotations

import base64
import json
import mimetypes
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page

PROBE = Path(__file__).with_name("probe.js")
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no template browser at the start
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Locale": "en",
    "Comfy.Pointer.DoubleClickTime": 1000,
    "LiteGraph.Node.TooltipDelay": 50,
}
# What the front end asks for and does without, such as the size of a file that it offers for download.
HOSTS_OWN = ("api.comfy.org", "/api/userdata", "/templates/", "huggingface.co", "Error fetching file size")
JPEG: dict[str, Any] = {"type": "jpeg", "quality": 80}
README_PICTURES = {"template_browser", "lcm_lora_txt2img", "lcm_lora_style_mix"}
ASIDE = (800, 998)  # where the mouse points at nothing: the canvas's lower edge
CANVAS_ALONE = ".splitter-overlay-root, .selection-toolbox { opacity: 0 !important }"
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))
  const transfer = new DataTransfer()
  transfer.items.add(new File([bytes], name, { type }))
  return transfer
}"""


class FrontEnd:
    """One page. Its waits are on conditions and end in playwright's TimeoutError."""

    def __init__(self, context: BrowserContext, url: str, pack: str, kept: Path, stored: Path | None) -> None:
        """`pack` is the folder's name below custom_nodes, which the template browser shows.

        All pictures are kept in `kept`, the README's in `stored` too.
        """
        self.url, self.pack, self.kept, self.stored = url, pack, kept, stored
        context.add_init_script(path=PROBE)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        for name, value in SETTINGS.items():
            self.set(name, value)
        self.post("history", {"clear": True})  # other tests may have run prompts with NaN, which the page can't read
        self.load()

    def _hear(self, message: ConsoleMessage) -> None:
        said = message.text.splitlines()[:1]  # without the stack
        text = f"{' '.join(said)} ({message.location.get('url', '')})"
        ours = "LCMLoRA_" in text or f"/{self.pack}/" in text
        heard = message.type == "error" or (message.type == "warning" and ours)
        if heard and not any(part in text for part in HOSTS_OWN):
            self.errors.append(text)

    def set(self, name: str, value: object) -> None:
        """Change a setting on the host; the page knows it after `load`."""
        self.post("settings", {name: value})

    def post(self, path: str, data: dict[str, object]) -> None:
        body = json.dumps(data).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def load(self) -> None:
        """Open the page as in a new browser: on the front end's default graph."""
        self.page.goto(self.url)
        self.page.wait_for_function("probe.ready()")
        self.ask("probe.still()")
        self.errors.clear()

    def ask(self, expression: str, argument: object = None) -> Any:
        """The value of a JavaScript expression, or of a function of `argument`."""
        return self.page.evaluate(expression, argument)

    @property
    def dialog(self) -> Locator:
        return self.page.locator(".p-dialog")

    @property
    def toasts(self) -> Locator:
        return self.page.locator(".p-toast-message")

    def offered_models(self) -> dict[str, str]:
        """`folder / name` -> address of the files that a dialog offers to download; it is closed then."""
        files = self.dialog.locator(".comfy-missing-models")
        files.locator("button[title]:enabled").first.wait_for()
        assert files.locator("button[title]:disabled").count() == 0, files.inner_text()
        names = files.locator("span[title]").all()
        offered = {name.inner_text(): str(name.get_attribute("title")) for name in names}
        self.close_dialog()
        return offered

    def close_dialog(self) -> None:
        self.dialog.locator(".p-dialog-close-button").click()
        self.dialog.wait_for(state="hidden")

    def open_menu(self) -> Locator:
        self.page.locator(".comfy-menu-button-wrapper").click()
        return self.page.locator(".comfy-command-menu")

    def browse_templates(self) -> Locator:
        """The template browser's cards for the pack."""
        self.page.get_by_role("button", name="Templates", exact=True).click()
        self.page.get_by_text(self.pack, exact=True).click()
        return self.page.get_by_test_id("template-workflows-content")

    def template_card(self, cards: Locator, name: str) -> Locator:
        """The card of a template, once its name and its thumbnail are seen."""
        card = cards.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()  # out of sight no thumbnail is loaded
        card.get_by_role("heading", name=name, exact=True).wait_for()
        card.locator("img").wait_for()
        return card

    def open_template(self, name: str, nodes: int) -> None:
        """Open it from the template browser and wait until its graph is on the canvas."""
        self.errors.clear()
        self.ask("probe.mark()")
        self.template_card(self.browse_templates(), name).click()
        self.wait_for_graph(nodes)
        self.page.get_by_test_id("template-workflows-content").wait_for(state="hidden")

    def wait_for_graph(self, nodes: int) -> None:
        self.page.wait_for_function("count => probe.replaced(count)", arg=nodes)
        self.ask("probe.still()")

    def tooltip(self, node: str, name: str) -> str:
        """What appears when the mouse rests on a node's title, input or widget."""
        x, y = self.ask("([id, name]) => probe.point(id, name)", [node, name])
        tip = self.page.locator(".node-tooltip")
        self.page.mouse.move(*ASIDE)
        tip.wait_for(state="hidden")
        self.page.mouse.move(x - 2, y)
        self.page.mouse.move(x, y)
        tip.wait_for()
        return tip.inner_text()

    def click(self, node: str, name: str) -> None:
        self.page.mouse.click(*self.ask("([id, name]) => probe.point(id, name)", [node, name]))

    def type_into(self, node: str, widget: str, text: str) -> None:
        """Type a value into a widget that is drawn on the canvas."""
        self.click(node, widget)
        self.page.fill(".graphdialog .value", text)
        self.page.keyboard.press("Enter")
        self.page.locator(".graphdialog").wait_for(state="detached")

    def export_api(self) -> dict:
        """The file that File → Export (API) writes."""
        menu = self.open_menu()
        menu.get_by_text("File", exact=True).hover()
        menu.get_by_text("Export (API)", exact=True).click()
        with self.page.expect_download() as download:
            self.dialog.get_by_role("button", name="Confirm").click()
        self.dialog.wait_for(state="hidden")
        return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))

    def press_run(self) -> None:
        self.ask("probe.watchRun()")
        self.page.get_by_test_id("queue-button").get_by_role("button", name="Run", exact=True).click()

    def run(self) -> str:
        """Press Run and wait for the end: 'success', 'error' or 'interrupted'; what a dialog says if it never ran."""
        self.press_run()
        self.page.wait_for_function("probe.run || document.querySelector('.p-dialog')", timeout=120_000)
        return self.ask("probe.run") or self.dialog.inner_text()

    def pictures(self) -> list[dict]:
        """The output nodes that show pictures, once all are loaded: {id, files}."""
        self.page.wait_for_function("probe.pictures().every((shown) => shown.loaded)")
        return self.ask("probe.pictures()")

    def download(self, file: dict[str, str]) -> bytes:
        """An output picture's file."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(file)}", timeout=60) as answer:
            return answer.read()

    def drop(self, name: str, data: bytes, nodes: int) -> None:
        """Drop a picture on the canvas and wait for the graph of `nodes` nodes that is in it."""
        self.ask("probe.mark()")
        file = [name, mimetypes.guess_type(name)[0], base64.b64encode(data).decode()]
        transfer = self.page.evaluate_handle(DROP, file)
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
        self.wait_for_graph(nodes)

    def workflow(self) -> list[dict]:
        """The graph's nodes as a workflow file has them, but their sizes, which previews change."""
        nodes = self.ask("app.graph.serialize().nodes")
        return sorted(({k: v for k, v in node.items() if k != "size"} for node in nodes), key=lambda node: node["id"])

    def keep(self, name: str, picture: bytes | None = None) -> None:
        """Write a JPEG picture, or one of the whole page, into the folders."""
        picture = picture or self.page.screenshot(**JPEG)
        for folder in filter(None, (self.kept, self.stored if name in README_PICTURES else None)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jpg").write_bytes(picture)

    def picture_of(self, node: str | None = None, **options: Any) -> bytes:
        """A screenshot of one node, or of the whole graph, without the menus around the canvas."""
        left, top, right, bottom = self.ask("id => probe.area(id ?? undefined)", node)
        margin = 12 if node is None else 0
        size = self.page.viewport_size or {"width": 0, "height": 0}
        left, top = max(left - margin, 0), max(top - margin, 0)
        right, bottom = min(right + margin, size["width"]), min(bottom + margin, size["height"])
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return self.page.screenshot(clip=clip, style=CANVAS_ALONE, **options)

    def fit_view(self) -> None:
        self.page.mouse.move(*ASIDE)
        self.ask("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.ask("probe.still()")

    def choose_setting(self, setting: str, option: str) -> None:
        """Open the settings and choose an option of the setting of that id."""
        self.page.locator("#graph-canvas").press("Control+,")
        self.dialog.locator(f'[id="{setting}"]').click()
        with self.page.expect_response(lambda answer: answer.url.endswith(f"/settings/{setting}")):
            self.page.get_by_role("option", name=option, exact=True).click()
        self.close_dialog()

    def add_by_search(self, words: str) -> None:
        """Double-click the canvas, search a node and add it to an empty graph."""
        self.ask("app.graph.clear()")
        self.ask("probe.still()")  # as long as the old nodes are drawn, a click meets them
        self.page.locator("#graph-canvas").dblclick(position={"x": 1000, "y": 600})
        search = self.page.locator(".comfy-vue-node-search-box input")
        search.fill(words)
        self.page.locator(".comfy-vue-node-search-box .option-container").filter(has_text=words).first.click()
        self.page.wait_for_function("app.graph.nodes.length === 1")

    def search_library(self, words: str) -> None:
        """Open the node library and search in it; it stays open."""
        if not self.page.locator(".sidebar-content-container").is_visible():
            self.page.locator("#graph-canvas").press("n")
        self.page.locator(".sidebar-content-container .search-box-input").fill(words)

    def found_in_library(self, display_name: str) -> Locator:
        """A node among those that the node library's search has found."""
        name = self.page.get_by_text(display_name, exact=True)
        return self.page.locator(".sidebar-content-container .node-lib-node-container").filter(has=name).first

    def open_help_in_library(self, display_name: str) -> None:
        node = self.found_in_library(display_name)
        node.hover()
        node.locator(".help-button").click()
