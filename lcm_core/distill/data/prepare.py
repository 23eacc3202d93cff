"""From a teacher and a source to the examples of a training: what `lcm-lora distill` does before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...text import listed
from ..identity import digest_of, fingerprint, schedule_identity
from ..losses import Cond
from .cache import Make, Stored, store
from .encoding import drawings_by, pictures_by
from .examples import StoredExamples, check_share
from .folder import SUFFIXES, folder_parts, names_below
from .pictures import Views, bucket_sizes
from .source import Part, prompt_parts
from .tars import expanded, tar_parts

if TYPE_CHECKING:
    from ..flow_pipeline import FlowTeacher
    from ..pipeline import Teacher

Bars = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class DataSettings:
    """batch, size (the side in pixels of a square with the pictures' area), frames of a video; how pictures are seen
    (`Views`); the share of empty prompts; how many are encoded at once."""

    batch: int = 4
    size: int = 512
    frames: int = 1
    views: int = 1
    crop: str = "center"
    flip: bool = False
    empty_share: float = 0.0
    encode_batch: int = 8

    def __post_init__(self) -> None:
        if self.encode_batch < 1:
            raise ValueError(f"encode_batch {self.encode_batch} must be at least 1")
        check_share(self.empty_share)
        self.seen  # noqa: B018

    @property
    def seen(self) -> Views:
        return Views(self.views, self.crop, self.flip)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The examples, what they were made of as the identity of a training, and how many were made just now."""

    examples: StoredExamples
    identity: dict[str, str]
    made: int


def parts_of(data: str) -> list[Part]:
    """The source that a path means: a folder of pictures or of tar files, or tar files, with braces as in {00..99}.tar.

    Errors are those of `folder_parts` and `tar_parts`, and ValueError for a folder that has both.
    """
    folder = Path(data)
    if not folder.is_dir():
        if "{" not in data and folder.suffix not in (".tar", ".tgz", ".gz"):
            raise FileNotFoundError(f"{data} is no folder of pictures and no .tar file; correct --data")
        return tar_parts(expanded(data))
    names = names_below(folder)
    tars = sorted(name for name in names if name.endswith(".tar"))
    pictures = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    if tars and pictures:
        raise ValueError(
            f"{data} has pictures ({listed(pictures)}) and tar files ({listed(tars)}); keep one kind, or give the tar "
            "files themselves"
        )
    return tar_parts([folder / name for name in tars]) if tars else folder_parts(folder)


@dataclass(frozen=True, eq=False)
class Preparing:
    """What makes a teacher's examples in the folder `cache`, with what was made there before.

    guided: whether the training asks for the empty prompt's conditions; seed: of the order, of the empty prompts and of
    drawings; device: where a batch is put; progress(what) gives report(done, total).
    """

    teacher: Teacher | FlowTeacher
    settings: DataSettings
    cache: Path
    seed: int
    guided: bool
    device: str
    progress: Bars

    def of_pictures(self, data: str) -> Prepared:
        """The pictures that `parts_of` finds, encoded."""
        settings = self.settings
        views = settings.seen
        sizes = bucket_sizes(settings.size**2, 8 * self.teacher.cell)
        recipe = ["pictures", self.teacher.identity, sizes, asdict(views)]
        make = pictures_by(self.teacher, sizes, views, settings.encode_batch)
        stored = self._stored("encode", parts_of(data), recipe, make)
        seen = {name: str(getattr(settings, name)) for name in ("views", "crop", "flip")} if views != Views() else {}
        return self._prepared(stored, {"pictures": stored.contents, "captions": stored.captions, **seen})

    def of_prompts(self, prompts: Sequence[str], steps: int) -> Prepared:
        """Latents that the teacher draws for prompts, in so many DDIM steps."""
        settings, teacher = self.settings, self.teacher
        shape = teacher.shape(settings.size, settings.frames)
        network = fingerprint(dict(teacher.network.named_parameters()))
        process = [schedule_identity(teacher.schedule), teacher.prediction]
        recipe = ["drawings", teacher.identity, network, process, shape, steps, self.seed, self.guided]
        make = drawings_by(
            teacher, self._empty(shape) if self.guided else (), shape, (settings.size, settings.size), steps=steps,
            seed=self.seed, batch=settings.encode_batch, device=self.device,
        )  # fmt: skip
        stored = self._stored("draw", prompt_parts(prompts), recipe, make)
        return self._prepared(stored, {"prompts": digest_of(prompts), "teacher steps": str(steps)})

    def _stored(self, what: str, parts: Sequence[Part], recipe: Any, make: Make) -> Stored:
        with self.progress(what) as report:
            return store(self.cache, parts, recipe, make, report)

    def _prepared(self, stored: Stored, identity: dict[str, str]) -> Prepared:
        share = self.settings.empty_share
        uncond = self._empty if self.guided or share else None
        examples = StoredExamples(
            stored.shards, self.settings.batch, self.seed, uncond, self.guided, share, self.device
        )
        return Prepared(examples, identity | ({"empty_share": f"{share:g}"} if share else {}), stored.made)

    def _empty(self, shape: tuple[int, ...]) -> Cond:
        """The empty prompt's conditions, for a picture whose latent has this shape."""
        height, width = (side * self.teacher.cell for side in shape[-2:])
        return self.teacher.conditions("", (width, height), empty=True)
