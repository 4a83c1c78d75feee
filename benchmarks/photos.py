"""Make photos of 12 megapixels in class folders, to try things as a user with a camera would.

Each is a random crop of a picture from Debian's wallpaper packages (freely licensed), with other
light and colours, grain, 4000 x 3000 pixels, as JPEG of quality 88. Every fifth is upright, and
half of these lie on their side with an EXIF orientation, as cameras store them. A class is a
subject with several pictures. The same files come out each time.

    apt install mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 \
        plasma-workspace-wallpapers
    python benchmarks/photos.py DIR --count 3000
"""

import argparse
import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

SUBJECTS = {
    "animals": (
        "Kleiber_by_Lukas_Baubkus",
        "free_by_Peter_Nerlich",
        "friends_by_Aitzol_Berasategi",
    ),
    "evening": ("sunset_by_Aitzol_Berasategi", "Storm", "summer_1am", "EveningGlow"),
    "flowers": ("Garden", "YellowFlower", "LadyBird", "seeding_by_Clements_Engelhardt"),
    "leaves": ("Blinds", "GreenMeadow", "RainDrops", "OneStandsOut"),
    "mountains": ("aitzgorri_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi", "Altai"),
    "things": ("Picture_0B_by_freespace", "Picture_1A_by_freespace", "ColorfulCups"),
    "water": ("BytheWater", "ColdRipple", "Aqua", "Volna"),
    "woods": ("Path", "FallenLeaf", "Dragonfly_by_Bolly", "life_by_Aitzol_Berasategi"),
}
FOLDERS = ("/usr/share/backgrounds", "/usr/share/wallpapers")
SIZE = (4000, 3000)
LEAST = 0.15  # smallest area of a crop, as a share of the picture
SEED = 17
_ORIENTATION = 0x0112
_TURN_LEFT = 8  # the orientation of an image to be turned left by a quarter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--pictures", type=Path, nargs="*", default=[Path(f) for f in FOLDERS])
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    options = parser.parse_args()
    pictures = find_pictures(options.pictures, options.subjects)
    for number in range(options.count):
        subject = options.subjects[number % len(options.subjects)]
        path = options.folder / subject / f"IMG_{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # a stopped command continues
            save_photo(path, pictures[subject], number)


def find_pictures(folders: list[Path], subjects: list[str]) -> dict[str, list[Path]]:
    """Return the largest file of each picture, by subject."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.*")) if path.is_file()]
    found = dict[str, list[Path]]()
    for subject in subjects:
        for name in SUBJECTS[subject]:
            same = [path for path in files if name in (path.stem, *path.parts[-4:-3])]
            if not same:
                raise SystemExit(f"no picture {name}; install the packages named in this file")
            found.setdefault(subject, []).append(max(same, key=lambda path: path.stat().st_size))
    return found


def save_photo(path: Path, pictures: list[Path], number: int) -> None:
    """Make photo `number` of a subject. It is saved whole or not at all."""
    random = np.random.default_rng([SEED, number])
    picture = opened(pictures[random.integers(len(pictures))])
    upright, on_its_side = number % 5 == 0, number % 10 == 0
    size = SIZE[::-1] if upright else SIZE
    share = min(picture.width / size[0], picture.height / size[1])
    share *= float(np.sqrt(random.uniform(LEAST, 1)))
    width, height = (int(side * share) for side in size)
    left, top = (
        random.integers(picture.width - width + 1),
        random.integers(picture.height - height + 1),
    )
    crop = picture.crop((left, top, left + width, top + height))
    for change in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast):
        crop = change(crop).enhance(random.uniform(0.75, 1.3))
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    exif = Image.Exif()
    if on_its_side:
        crop, exif[_ORIENTATION] = crop.transpose(Image.Transpose.ROTATE_270), _TURN_LEFT
    size = SIZE if on_its_side else size
    photo = ImageChops.add(crop.resize(size, Image.Resampling.BILINEAR), grain(size), 1, -128)
    partial = path.with_suffix(".part")
    photo.save(partial, "JPEG", quality=88, exif=exif)
    partial.replace(path)


@functools.lru_cache(maxsize=64)
def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.draft("RGB", (2500, 2500))
        image = image.convert("RGB")
    image.thumbnail((4000, 4000))
    return image


@functools.cache
def grain(size: tuple[int, int]) -> Image.Image:
    """Return grain around 128, the same in all channels."""
    noise = np.random.default_rng(SEED).normal(128.5, 2.0, size[::-1]).astype(np.uint8)
    return Image.fromarray(noise).convert("RGB")


if __name__ == "__main__":
    main()
