"""The number of channels of a set's images, and whether a training takes them.

A set has three channels unless its string names two bands or more, `SOURCE?bands=1-13`. So the
number is known before an image is read, and is the same for all images of a set.
"""

from beit.data.batches import DataConfig
from beit.data.mixture import weights_of
from beit.data.spec import split_part, split_query


def channels_of(spec: str) -> int:
    """Return the number of channels that images have which are opened by a string.

    Raises:
        ValueError: the sets of a mixture differ.
    """
    whole, _ = split_part(spec)
    if weights := weights_of(whole):
        numbers = {name: channels_of(name) for name in weights}
        if len({*numbers.values()}) > 1:
            found = ", ".join(f"{number} in {name}" for name, number in numbers.items())
            raise ValueError(f"{spec}: images of different channels, {found}; name as many bands")
        return min(numbers.values())
    return 3 if whole.startswith("shapes://") else split_query(whole)[1].channels


def check_channels(data: DataConfig, channels: int, option: str, color_jitter: float) -> None:
    """Check that the images of a training have the channels of its model.

    Args:
        option: that sets the model's channels; empty if a file decides them

    Raises:
        ValueError: they have others, or jitter is to change channels that are no colours.
    """
    for name, spec in (("data.train", data.train), ("data.validation", data.validation)):
        if spec and (found := channels_of(spec)) != channels:
            bands = "3,2,1" if channels == 3 else f"1-{channels}"
            model = f"{option} is {channels}" if option else f"the model takes {channels}"
            advice = f"--{option} {found}, with mean and std as `beit doctor` prints them, or "
            advice *= bool(option)
            raise ValueError(
                f"{name} {spec} has images of {found} channels, but {model}; give "
                f"{advice}{channels} bands, as in SOURCE?bands={bands}"
            )
    if channels != 3 and color_jitter:
        raise ValueError(
            f"view.color_jitter is {color_jitter:g}, which changes red, green and blue, but the "
            f"images have {channels} channels; give --view.color_jitter 0"
        )
