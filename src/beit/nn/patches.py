"""Images, patches and the grid between them (BEiT v2, section 2.1)."""

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # (height, width), of images in pixels or of grids in patches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def grid_of(image_size: Size, patch_size: int) -> Size:
    """Return the patch grid (Gh, Gw) of an image (height, width) in multiples of the patch."""
    height, width = image_size
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        near = tuple(max(patch_size, side // patch_size * patch_size) for side in image_size)
        raise ValueError(
            f"image size ({height}, {width}) is not a multiple of patch size {patch_size}; "
            f"resize or crop to {near}, or choose a patch size that divides it"
        )
    return height // patch_size, width // patch_size


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 images in 0..255 to float in [0, 1]; float images are returned as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, c, H, W) into patches (B, N, P*P*c), row by row."""
    B, c, H, W = images.shape
    P, (Gh, Gw) = patch_size, grid_of((H, W), patch_size)
    tiles = images.reshape(B, c, Gh, P, Gw, P).permute(0, 2, 4, 3, 5, 1)  # (B, Gh, Gw, P, P, c)
    return tiles.reshape(B, Gh * Gw, P * P * c)  # (B, N, P*P*c)


class PatchEmbed(nn.Module):
    """Linear embedding of patches; its weight is stored as the published strided convolution."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, c, H, W) as patches (B, N, D).

        One matrix product gives the same sums as the convolution, several times as fast on CPUs.
        """
        if self.patch_size == 1:  # nothing to reorder: gradients keep the strides of the weight
            pixels = images.flatten(2).transpose(1, 2)  # (B, N, c)
            return nn.functional.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
        patches = patchify(images, self.patch_size)  # (B, N, P*P*c)
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P*P*c)
        return nn.functional.linear(patches, weight, self.proj.bias)
