"""What a network sees in pictures, as a self-contained HTML page and as figures. Pure.

A map is painted over the picture in grey: orange where it is above zero, blue below, bare at zero. Full colour is the
largest magnitude of the maps beside each other, so that they can be compared.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image
from scipy.special import softmax

from jaxclf.report.map_pictures import overlay
from jaxclf.report.page import TEMPLATES, number
from jaxclf.report.pictures import axes_at, canvas, short, write
from jaxclf.tools.localisation import bilinear
from jaxclf.tools.seeing import ORIGINAL, OWN, Seen, View

PANEL = 320
"""Long side of a picture on the page, in pixels."""
TITLES = {"maps": "class maps", "grad_cam": "Grad-CAM", "grad_cam_plus_plus": "Grad-CAM++", "gradient": "gradient"}


def bound(seen: Seen, view: View, method: str) -> float:
    """Return the magnitude of full colour: 1 where all is zero.

    Class maps are logits, so it is the largest of the picture at any size; what gradients make has a scale of its own
    at each size.
    """
    views = seen.views if method == "maps" else (view,)
    return float(max(np.abs(one.maps[method]).max() for one in views)) or 1.0


def scaled(pixels: UInt8[ndarray, "h w c"], side: int) -> UInt8[ndarray, "a b 3"]:
    """Return a picture in RGB with a long side of about `side`: smaller smoothly, larger by whole pixels."""
    h, w = pixels.shape[:2]
    rgb = np.broadcast_to(pixels, (h, w, 3)) if pixels.shape[2] == 1 else pixels
    if (times := side // max(h, w)) >= 2:
        return rgb.repeat(times, axis=0).repeat(times, axis=1)
    share = min(1, side / max(h, w))
    size = (max(1, round(w * share)), max(1, round(h * share)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.BICUBIC))


def painted(base: UInt8[ndarray, "a b 3"], values: Float32[ndarray, "i j"], full: float) -> UInt8[ndarray, "a b 3"]:
    """Return a map over a picture."""
    return overlay(base, bilinear(values, base.shape[:2]), full)


def named_size(view: View) -> str:
    """Return the size of a view in words."""
    h, w = view.pixels.shape[:2]
    kind = {OWN: "the network’s own square", ORIGINAL: "as it is"}.get(view.size, "the whole picture")
    return f"{w}x{h}, {kind}"


def class_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or its number where there are no names."""
    return names[index] if names else str(index)


def draw_seen(seen: Seen, names: Sequence[str] | None, *, panel: int = 220) -> Figure:
    """Draw a line for each size and method: the picture, and the map of each class over it with the class's logit."""
    lines = [(view, method) for view in seen.views for method in view.maps]
    gap, head, foot = 10, 22, 22
    heights = [max(1, round(panel * min(1, view.pixels.shape[0] / view.pixels.shape[1]))) for view, _ in lines]
    columns = 1 + max(len(view.classes) for view, _ in lines)
    figure = canvas(columns * (panel + gap) - gap, sum(heights) + len(lines) * (head + foot))
    figure.set_facecolor("white")
    top = 0
    for (view, method), height in zip(lines, heights, strict=True):
        base, full = scaled(view.pixels, 2 * panel), bound(seen, view, method)
        scale = f"\N{PLUS-MINUS SIGN}{number(full)}" if method == "maps" else number(full, ".3g")
        shown = [(base, f"{TITLES[method]}, full colour {scale}", named_size(view))]
        for c, values in zip(view.classes, view.maps[method], strict=True):
            logit = f"logit {number(float(view.logits[c]))}"
            shown.append((painted(base, values, full), class_name(names, int(c)), logit))
        for column, (pixels, above, below) in enumerate(shown):
            axes = axes_at(figure, column * (panel + gap), top + head, panel, height)
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.imshow(pixels, interpolation="auto", aspect="equal")
            write(axes, 0, 1 + 6 / height, short(above, 36), transform=axes.transAxes, size=9.5)
            write(axes, 0, -6 / height, short(below, 36), transform=axes.transAxes, size=8.5, va="top", colour="muted")
        top += head + height + foot
    return figure


def render_gallery(
    title: str,
    seen: Sequence[Seen],
    *,
    names: Sequence[str] | None,
    facts: Mapping[str, str],
    averaged: bool,
    costs: Mapping[str, float] | None = None,
) -> str:
    """Return the page.

    `facts` stand at its end. `averaged` says that the network pools by the average, so that a class map's mean is the
    logit; `costs` are those of `seeing.costs`.
    """
    return TEMPLATES.get_template("gallery.html").render(
        table={"title": title},
        pictures=[_picture(one, names) for one in seen if one.error is None],
        broken=[one for one in seen if one.error is not None],
        maps=any("maps" in view.maps for one in seen for view in one.views),
        peers=any(set(view.maps) - {"maps"} for one in seen for view in one.views),
        averaged=averaged,
        costs={TITLES[method]: cost for method, cost in (costs or {}).items()},
        facts=facts,
    )


def _picture(seen: Seen, names: Sequence[str] | None) -> dict[str, Any]:
    lines = [_line(view, method, bound(seen, view, method), names) for view in seen.views for method in view.maps]
    return {"file": seen.file, "name": Path(seen.file).name, "lines": lines}


def _line(view: View, method: str, full: float, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the panels of a size and a method: the bare picture, and a map for each class."""
    base, shares = scaled(view.pixels, PANEL), softmax(view.logits.astype(np.float64))
    panels: list[dict[str, Any]] = []
    for c, values in zip(view.classes, view.maps[method], strict=True):
        panels.append(
            {
                "image": data_uri(painted(base, values, full)),
                "name": class_name(names, int(c)),
                "logit": float(view.logits[c]),
                "share": 100 * float(shares[c]),
            }
        )
    return {
        "method": TITLES[method],
        "signed": method == "maps",
        "size": named_size(view),
        "positions": "x".join(str(length) for length in reversed(view.maps[method].shape[1:])),
        "bound": full,
        "image": data_uri(base),
        "panels": panels,
    }


def data_uri(pixels: UInt8[ndarray, "a b 3"]) -> str:
    """Return a picture as the text of an address: JPEG, whose bytes hang on the pixels alone."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
