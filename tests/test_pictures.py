"""Pictures of rollouts: every frame is seen, in its colours."""

import numpy as np
import pytest
from PIL import Image

from ups_data.evaluation import pictures
from ups_data.evaluation.forecast import Forecast, Forecasts


@pytest.mark.parametrize(("seed", "mode"), [(None, "P"), (0, "RGB")])
def test_no_colour_of_a_picture_is_falsified(seed, mode):
    """A large flat part, and a small colour bar; `seed`: beside them as many colours as no palette has."""
    pixels = np.full((200, 300, 3), 255, np.uint8)
    pixels[:, :100] = [0, 0, 80]
    pixels[:, 290:] = (255 * pictures.plt.cm.viridis(np.linspace(0, 1, 200))[:, None, :3]).astype(np.uint8)
    if seed is not None:
        pixels[:, 100:200] = np.random.default_rng(seed).integers(0, 256, (200, 100, 3))
    made = pictures.compact(Image.fromarray(pixels))
    assert made.mode == mode
    assert np.abs(np.asarray(made.convert("RGB"), int) - pixels).max() <= 8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frames", [1, 2])
def test_every_frame_of_a_line_has_its_place_in_the_picture(tmp_path, monkeypatch, frames):
    truth = np.linspace(1, 2, 4 * frames).reshape(1, frames, 4, 1)
    times = 2.0 + np.arange(frames)
    forecasts = Forecasts(["u"], np.ones(1), times, np.zeros((1, 0)), [], ["a"], iter(()))
    kept = [Forecast([0], truth, {"operator": truth + 0.1}, {"x": np.array([0.125, 0.375, 0.625, 0.875])})]
    saved = []
    monkeypatch.setattr(pictures, "_save", lambda path, figure: saved.append(figure))
    pictures.draw(tmp_path / "rollout.png", "waves", "grid", forecasts, kept)
    for axes in saved[0].axes[:3]:
        assert axes.images[0].get_extent() == pytest.approx([0.0, 1.0, 1.5, 1.5 + frames])
