"""The page and the figures of what a network sees."""

import numpy as np

from jaxclf.report.gallery import bound, draw_seen, render_gallery, scaled
from jaxclf.tools.seeing import Seen, View

NAMES = ("ant", "bee <b>", "cat")


def view(size: str = "own", side: int = 8, **maps: float) -> View:
    """Return a view whose maps have the given value for the first class, and minus half of it for the second."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    values = np.array([1.0, -0.5], np.float32)[:, None, None] * np.ones((2, 2, 2), np.float32)
    logits, classes = np.array([2.0, -1.0, 0.0], np.float32), np.array([0, 1])
    return View(size, pixels, logits, classes, {method: value * values for method, value in maps.items()})


def page(seen: list[Seen], *, averaged: bool = True, costs: dict[str, float] | None = None) -> str:
    return render_gallery("Title", seen, names=NAMES, facts={"network": "tiny"}, averaged=averaged, costs=costs)


def test_class_maps_of_all_sizes_share_a_scale_and_gradients_have_their_own() -> None:
    seen = Seen("a.png", (view(maps=2.0, grad_cam=3.0), view("16", 16, maps=4.0, grad_cam=1.0)))
    assert [bound(seen, one, "maps") for one in seen.views] == [4.0, 4.0]
    assert [bound(seen, one, "grad_cam") for one in seen.views] == [3.0, 1.0]
    assert bound(Seen("a.png", (view(maps=0.0),)), view(maps=0.0), "maps") == 1.0


def test_the_page_says_class_logit_share_size_and_scale() -> None:
    html = page([Seen("a.png", (view(maps=4.0),))])
    assert "logit 2.00, 84.4 %" in html  # e^2 / (e^2 + e^-1 + e^0)
    assert "logit −1.00, 4.2 %" in html
    assert "8x8, the network’s own square; 2x2 positions" in html
    assert "scale −4.00" in html
    assert "bee &lt;b&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert "http" not in html
    assert "<script" not in html


def test_the_page_states_what_the_mean_of_a_map_is() -> None:
    seen = [Seen("a.png", (view(maps=1.0),))]
    assert "its mean over positions is the logit" in page(seen)
    assert "so their mean is not the logit" in page(seen, averaged=False)
    assert "mean over positions" not in page([Seen("a.png", (view(grad_cam=1.0),))])


def test_broken_files_are_named_and_costs_shown() -> None:
    html = page([Seen("a.png", (view(maps=1.0),)), Seen("b.png", error="no image")], costs={"maps": 1.0, "gradient": 3})
    assert "1 file could not be shown" in html
    assert "<b>b.png</b>: no image" in html
    assert "<td>3.00</td>" in html


def test_the_same_pictures_give_the_same_page() -> None:
    seen = [Seen("a.png", (view(maps=1.0, gradient=2.0),))]
    assert page(seen) == page(seen)


def test_a_figure_has_a_line_for_each_size_and_method() -> None:
    seen = Seen("a.png", (view(maps=2.0, grad_cam=3.0), view("16", 16, maps=4.0, grad_cam=1.0)))
    figure = draw_seen(seen, NAMES)
    assert len(figure.axes) == 4 * 3
    words = [text.get_text() for axes in figure.axes[:2] for text in axes.texts]
    assert words == ["class maps, full colour ±4.00", "8x8, the network’s own square", "ant", "logit 2.00"]


def test_pictures_shrink_smoothly_and_grow_by_whole_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert scaled(small, 5).shape == (4, 4, 3)
    np.testing.assert_array_equal(scaled(small, 5)[::2, ::2], small)
    assert scaled(np.zeros((100, 50, 1), np.uint8), 20).shape == (20, 10, 3)
