"""jaxclf maps: where a network sees each class in image files."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxclf.cli.weights import OfWeights
from jaxclf.errors import UsageError, one_line
from jaxclf.storage import require_local

if TYPE_CHECKING:
    from jaxclf.tools.seeing import Asked, Seen
    from jaxclf.training.weights import Weights

AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps(OfWeights):
    """Draw where a network sees each class in image files: index.html and a PNG file a picture."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files of any size and mode, turned as their EXIF says."""
    weights: Path
    """A weight file or directory, or a run directory."""
    classes: tuple[str, ...] = (AUTO,)
    """Classes by name or number; auto: the strongest of each picture."""
    top: int = 3
    """Classes of a picture under auto."""
    size: tuple[str, ...] = ("own",)
    """own: the square that the network is used on; N: the whole picture, its short side resized to N pixels; original:
    the whole picture as it is. Several are drawn below each other."""
    method: tuple[str, ...] = ("maps",)
    """maps, grad_cam, grad_cam_plus_plus, gradient. With several, what each costs is measured."""
    layer: str | None = None
    """Layer that Grad-CAM and Grad-CAM++ take, as layer3_0/conv2; None is the last feature map."""
    stride: int | None = None
    """Pixels from one position of the class maps to the next, a divisor of the network's stride: finer maps, from as
    many passes as positions more; None is the network's stride."""
    out: Path = Path("maps")
    """Directory for the page and the pictures."""

    def run(self) -> None:
        """Write the page; if a file could not be shown, raise `UsageError` after the others."""
        from jaxclf.report.gallery import draw_seen
        from jaxclf.tools.seeing import Asked, see
        from jaxclf.training import weights
        from jaxclf.training.progress import Lines

        require_local(self.out)
        if not self.images:
            raise UsageError("there is no image to look at: give files")
        if AUTO in self.classes and len(self.classes) > 1:
            raise UsageError(f"classes {', '.join(self.classes)} given: {AUTO} stands alone")
        loaded = weights.read(self.weights, **self.given(self.weights))
        classes = () if self.classes == (AUTO,) else self.classes
        asked = Asked(classes, self.top, self.size, self.method, self.layer, self.stride)
        seen, names = [], picture_names(self.images)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for one, name in zip(see(loaded, self.images, asked, Lines()), names, strict=True):
                seen.append(one)
                if one.error is None:
                    draw_seen(one, loaded.record.class_names).savefig(self.out / name, dpi=144)
                else:
                    print(f"{one.file}: {one.error}")
            (self.out / "index.html").write_text(self._page(loaded, seen, asked))
        except OSError as error:
            raise UsageError(f"cannot write to {self.out}: {one_line(error)}") from error
        print(self.out / "index.html")
        if broken := [one.file for one in seen if one.error is not None]:
            raise UsageError(f"{len(broken)} of {len(seen)} files could not be shown: {', '.join(broken)}")

    def _page(self, loaded: "Weights", seen: "Sequence[Seen]", asked: "Asked") -> str:
        from jaxclf.models.pooling import average
        from jaxclf.report.gallery import render_gallery

        record = loaded.record
        facts: dict[str, Any] = {"network": record.model, "head": record.head, "classes": record.num_classes}
        facts |= {"weights": self.weights, "preprocessing": record.preprocessing}
        return render_gallery(
            f"Where {record.model} sees its classes",
            seen,
            names=record.class_names,
            facts={name: str(value) for name, value in facts.items()},
            averaged=loaded.model.pool is average and asked.stride is None,
            costs=self._costs(loaded, seen, asked),
        )

    def _costs(self, loaded: "Weights", seen: "Sequence[Seen]", asked: "Asked") -> dict[str, float] | None:
        """Measure what several methods cost on the first picture that was seen."""
        from jaxclf.data.transforms import standardise
        from jaxclf.tools.seeing import costs

        shown = [one.views[0].pixels for one in seen if one.views]
        if len(asked.methods) == 1 or not shown or loaded.record.preprocessing is None:
            return None
        image = standardise(shown[0], loaded.record.preprocessing)[None]
        return costs(loaded.model, loaded.variables, image, asked.methods, layer=asked.layer)


def picture_names(files: Sequence[Path]) -> list[str]:
    """Return the names of the PNG files: those of the images, with a number where two are the same.

    >>> picture_names([Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.gif")])
    ['cat-1.png', 'cat-2.png', 'dog.png']
    """
    stems = [re.sub(r"[^\w.-]", "_", file.stem) for file in files]
    return [
        f"{stem}-{stems[: n + 1].count(stem)}.png" if stems.count(stem) > 1 else f"{stem}.png"
        for n, stem in enumerate(stems)
    ]
