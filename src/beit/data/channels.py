"""The channels of a set's images and what they mean, and whether a training takes them.

A set has three channels unless its string names two bands or more, `SOURCE?bands=1-13`. So the
number is known before an image is read, and is the same for all images of a set.
"""

import logging
from collections.abc import Sequence

from beit.data.batches import DataConfig
from beit.data.mixture import weights_of
from beit.data.spec import AS_IT_IS, Reading, split_part, split_query

_log = logging.getLogger(__name__)

_PLAIN = "no bands or range"


def channels_of(spec: str) -> int:
    """Return the number of channels that images have which are opened by a string.

    Raises:
        ValueError: the sets of a mixture differ.
    """
    numbers = {name: reading.channels for name, reading in _readings(spec).items()}
    if len({*numbers.values()}) > 1:
        found = ", ".join(f"{number} in {name}" for name, number in numbers.items())
        raise ValueError(f"{spec}: images of different channels, {found}; name as many bands")
    return min(numbers.values())


def pixel_options(data: str | Sequence[str]) -> list[str]:
    """Return how pixels are read, as `Reading.pixel_options`; of lists and mixtures all ways."""
    specs = [data] if isinstance(data, str) else data
    readings = [reading for spec in specs for reading in _readings(spec).values()]
    return sorted({reading.pixel_options for reading in readings})


def compare_pixels(wanted: Sequence[str], of: str, *specs: str) -> None:
    """Warn of images that are read with other bands or another range than wanted.

    They can have the same shape and mean something else. If nothing special is wanted, files of
    other kinds need options of their own, so that this is no warning, but a note.

    Args:
        wanted: as from `pixel_options`
        of: whose they are, in the words between "but" and the options
        specs: strings that name the images

    Raises:
        ValueError: images have another number of channels.
    """
    taken = {_channels(options) for options in wanted}
    there = " or ".join(options or _PLAIN for options in wanted)
    for options, spec in {options: s for s in specs for options in pixel_options(s)}.items():
        if options in wanted:
            continue
        what = f"{spec} has {options or _PLAIN}, but {of} {there}"
        if (found := _channels(options)) not in taken:
            example = max(wanted) if "bands=" in max(wanted) else f"bands=3,2,1&{max(wanted)}"
            raise ValueError(
                f"{what}: {found} channels, not {max(taken)}; give as many bands, as in "
                f"SOURCE?{example.rstrip('&')}"
            )
        level = logging.WARNING if any(wanted) else logging.INFO
        _log.log(level, "%s; give the same, or check that values mean the same in both", what)


def _channels(options: str) -> int:
    return Reading.parse(options, options).channels if options else 3


def _readings(spec: str) -> dict[str, Reading]:
    """Return how each set is read: one, or those of a mixture."""
    whole, _ = split_part(spec)
    if weights := weights_of(whole):
        return {name: reading for part in weights for name, reading in _readings(part).items()}
    return {spec: AS_IT_IS if whole.startswith("shapes://") else split_query(whole)[1]}


def check_channels(data: DataConfig, channels: int, option: str, color_jitter: float) -> None:
    """Check that the images of a training have the channels of its model.

    Args:
        option: that sets the model's channels; empty if a file decides them

    Raises:
        ValueError: they have others, or jitter is to change channels that are no colours.
    """
    for name, spec in (("--data", data.train), ("--validation", data.validation)):
        if spec and (found := channels_of(spec)) != channels:
            bands = "3,2,1" if channels == 3 else f"1-{channels}"
            model, advice = f"the model takes {channels}", ""
            if option:
                model = f"{option} is {channels}"
                advice = f"--{option} {found}, with mean and std as `beit doctor` prints them, or "
            raise ValueError(
                f"{name} {spec} has images of {found} channels, but {model}; give "
                f"{advice}{channels} bands, as in SOURCE?bands={bands}"
            )
    if data.validation:
        compare_pixels(pixel_options(data.train), "the training images have", data.validation)
    if channels != 3 and color_jitter:
        raise ValueError(
            f"view.color_jitter is {color_jitter:g}, which changes red, green and blue, but the "
            f"images have {channels} channels; give --view.color_jitter 0"
        )
