"""The bands and ranges of the images that a model was trained on, as its weights file says.

Images of other bands or of another range have the same shape, and mean something else to a model.
"""

from collections.abc import Sequence
from pathlib import Path

from beit.data.channels import compare_pixels
from beit.weights.crop import described, described_by, weights_of


def check_bands(source: str, *data: str | Sequence[str]) -> None:
    """Warn of data with other bands or another range than a model's training images.

    Args:
        source: of the model, as for `beit.weights.open.load`, which has opened it
        data: strings that name images, or lists of files

    Raises:
        ValueError: they have another number of channels.
    """
    path = described_by(source)
    trained = None if path is None else bands_in(path)
    if trained is not None:
        specs = [spec for one in data for spec in ([one] if isinstance(one, str) else one)]
        compare_pixels(trained, f"{source} was trained with", *specs)


def bands_in(path: Path) -> list[str] | None:
    """Read the `pixel_options` of the training images from a run, a weights file or a folder.

    Returns: None if they are not recorded
    """
    about = described(weights_of(path))
    options = about.get("pixel_options") if isinstance(about, dict) else None
    if not isinstance(options, list) or not all(isinstance(text, str) for text in options):
        return None
    return options or None
