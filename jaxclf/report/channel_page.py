"""The pages of what channels answer, in the form of `page`: text and figures from data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import UInt8
from matplotlib.figure import Figure
from numpy import ndarray

from jaxclf.data.transforms import Preprocessing
from jaxclf.report.channel_pictures import draw_activations, draw_filters, draw_strongest
from jaxclf.report.page import TEMPLATES, pair
from jaxclf.tools.activations import Activations, pixels
from jaxclf.tools.inversion import Inverted
from jaxclf.tools.strongest import Looked

WIDE, NARROW = {"width": 1040, "columns": 8}, {"width": 350, "columns": 4}


def render_activations(
    title: str,
    found: Sequence[Activations],
    filters: UInt8[ndarray, "d h w c"],
    preprocessing: Preprocessing,
    inverted: Mapping[str, Inverted],
    *,
    stem: str,
) -> tuple[str, dict[str, Figure]]:
    """Return the page of some files' activations, and its wide pictures by the names of their files.

    `inverted` holds, by layer, what was found for the files that could be read, or is empty.
    """
    shown, figures = {}, {}
    for number, one in enumerate(found, 1):
        if one.image is not None:
            image, name = pixels(one.image, preprocessing), f"{number:02d}_{Path(one.file).stem}"
            kept = {
                layer: (pixels(every.images[len(figures)], preprocessing), float(every.distances[len(figures)]))
                for layer, every in inverted.items()
            }
            wide, narrow = (draw_activations(image, one.layers, kept, **size) for size in (WIDE, NARROW))
            shown[one.file] = pair(name, f"Activations for {one.file}", wide, narrow)
            figures[name] = wide
    wide, narrow = (draw_filters(filters, **size) for size in ({**WIDE, "columns": 16}, {**NARROW, "columns": 6}))
    text = TEMPLATES.get_template("activations.html").render(
        table={"title": title},
        images=shown,
        broken={one.file: one.error for one in found if one.error is not None},
        filters=pair("filters", f"Filters of {stem}", wide, narrow),
        stem=stem,
        inverted=bool(inverted),
        coloured=filters.shape[3] == 3,
    )
    return text, figures | {"filters": wide}


def render_strongest(title: str, lead: str, looked: Looked) -> tuple[str, dict[str, Figure]]:
    """Return the page of the images that channels answer most to, and its wide picture by the name of its file."""
    wide, narrow = (draw_strongest(looked, **size) for size in ({**WIDE, "columns": 9}, {**NARROW, "columns": 3}))
    text = TEMPLATES.get_template("strongest.html").render(
        table={"title": title},
        lead=lead,
        picture=pair("strongest", title, wide, narrow),
        projected=looked.projected is not None,
    )
    return text, {"strongest": wide}
