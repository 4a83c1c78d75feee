"""Masked image modelling with patch aggregation (BEiT v2, section 2.3 and figure 3)."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from beit.nn.block import NORM_EPS, init_published, rescale_residual, trunc_normal_
from beit.nn.patches import can_be_read, check_indices, take
from beit.nn.vit import VisionTransformer, ViTConfig, new_block

CHUNK_ELEMENTS = 2**23  # logits in memory in a linear cross-entropy: 32 MiB
MOST_ROWS = 4096  # of a chunk: the sum of more could exceed float16
Predicts = Literal["tokens", "pixels", "features"]


@dataclass(frozen=True)
class MaskedImageModelConfig:
    """Configuration of a pretraining model.

    Attributes:
        backbone: the ViT to pretrain
        num_codes: number of codes (K); 0 takes it from the tokenizer, required for other targets
        early_layers: number of the block whose patches enter the patch aggregation (l)
        head_layers: number of patch aggregation blocks; 0 for none (BEiT v1)
        shared_head: use the same norm and linear layer for both predictions
        predicts: output of the head: logits of codes, pixels, or features of a teacher; `beit
            pretrain` sets it to target.kind
        target_width: values of a patch's pixels (c * P * P) or features (T); 0 for tokens
        normalised: targets are standardised: pixels per patch, features per vector
    """

    backbone: ViTConfig = field(default_factory=ViTConfig)
    num_codes: int = 8192
    early_layers: int = 9
    head_layers: int = 2
    shared_head: bool = True
    predicts: Predicts = "tokens"
    target_width: int = 0
    normalised: bool = False

    @property
    def head_width(self) -> int:
        """Outputs of the head for a patch: K, c * P * P or T."""
        return self.num_codes if self.predicts == "tokens" else self.target_width

    def __post_init__(self) -> None:
        early, depth = self.early_layers, self.backbone.depth
        if self.head_layers and not 1 <= early <= depth:
            raise ValueError(
                f"early_layers is the number of a backbone block, 1 to {depth}, got {early}"
            )


class MaskedPrediction(NamedTuple):
    """Predictions for masked patches: (B, M, K) logits of codes, (B, M, T) pixels or features."""

    logits: Tensor  # from the patches of the last block
    cls_logits: Tensor | None  # from the patch aggregation ([CLS], early patches); None without


class MaskedLosses(NamedTuple):
    """Losses of the predictions of codes; their sum is the training loss (Eq. 3).

    Attributes:
        patch_loss: () float32, mean cross-entropy in nats of the predictions from patches
        cls_loss: () float32, that of the predictions from [CLS]; 0 without patch aggregation
        accuracy: () float32 in [0, 1], share of right codes predicted from patches; no gradient
    """

    patch_loss: Tensor
    cls_loss: Tensor
    accuracy: Tensor


class MaskedImageModel(nn.Module):
    """Predicts the codes, pixels or features of masked patches, twice: from patches and [CLS]."""

    def __init__(self, config: MaskedImageModelConfig) -> None:
        super().__init__()
        check_head(config)
        self.config, self.image_size = config, config.backbone.image_size
        vit, K = config.backbone, config.head_width
        self.backbone = VisionTransformer(vit)
        self.mask_token = nn.Parameter(torch.empty(1, 1, vit.width))
        self.head = nn.Linear(vit.width, K)
        early, extra = config.early_layers, config.head_layers
        rate_step = vit.drop_path / max(max(vit.depth, early + extra) - 1, 1)
        self.aggregation = nn.ModuleList(
            new_block(vit, rate_step * (early + i)) for i in range(extra)
        )
        separate = extra > 0 and not config.shared_head
        self.cls_norm = nn.LayerNorm(vit.width, eps=NORM_EPS) if separate else None
        self.cls_head = nn.Linear(vit.width, K) if separate else None

        trunc_normal_(self.mask_token, vit.init_bound)
        for head in (self.head, self.cls_head):
            if head is not None:
                init_published(head, vit.init_bound)
        # The aggregation blocks keep PyTorch's default initialisation: the published code creates
        # them after initialising the rest (docs/reference/pretraining.md, "Initialisation").
        for layer, block in enumerate(self.aggregation, early + 1):
            rescale_residual(block, layer)

    def forward(
        self,
        images: Tensor,
        masked: Tensor,
        positions: Tensor | None = None,
        codes: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> MaskedPrediction | MaskedLosses:
        """Predict the targets of the masked patches, or of the patches at ``positions``.

        Args:
            images: (B, c, H, W) uint8 or float in [0, 1]
            masked: (B, M) int64, sorted indices in [0, N) of the patches hidden from the model
            positions: (B, M') int64, the patches to predict; None for the masked ones
            codes: (B, M') int64 in [0, K), the codes to predict; given, the losses are returned, of
                logits that are never in memory together (see `linear_cross_entropy`)
            weights: (B, M') of the patches in the losses; None for equal weights of patches that
                are all different (see `beit.nn.masking.not_repeated`)

        Returns: `MaskedPrediction`, or `MaskedLosses` if ``codes`` are given

        Raises:
            TypeError, ValueError: arguments are other than described. Values of indices and codes
                are checked on a CPU only, because reading them would wait for a GPU.
        """
        positions = masked if positions is None else positions
        patches, early = self.features(images, masked, positions)  # (B, M', D) each
        cls_head = self.head if self.cls_head is None else self.cls_head
        if codes is None:
            return MaskedPrediction(self.head(patches), None if early is None else cls_head(early))
        check_codes(codes, self.head.out_features, positions, weights)
        loss, accuracy = linear_cross_entropy(self.head, patches, codes, weights)
        if early is None:
            return MaskedLosses(loss, torch.zeros_like(loss), accuracy)
        cls_loss, _ = linear_cross_entropy(cls_head, early, codes, weights)
        return MaskedLosses(loss, cls_loss, accuracy)

    def features(
        self, images: Tensor, masked: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the normed patches (B, M', D) of the last block, and of the aggregation if any."""
        last, early = self.config.backbone.depth, self.config.early_layers
        layers = (early, last) if self.aggregation else ()
        chosen = None if len(set(layers)) == 1 else positions  # if l = L, all patches go on
        features = self.backbone(images, masked, self.mask_token, layers, chosen)
        if chosen is None and positions is not masked:
            check_indices("positions", positions, *features.patches.shape[:2])
        patches = take(features.patches, positions) if chosen is None else features.patches
        if not self.aggregation:
            return patches, None
        last_cls = features.layers[last][:, :1]  # (B, 1, D)
        early_patches = features.layers[early][:, 1:]  # (B, N, D)
        tokens = torch.cat([last_cls, early_patches], dim=1)  # (B, 1+N, D)
        bias = self.backbone.bias()
        for number, block in enumerate(self.aggregation, 1):
            chosen = 1 + positions if number == len(self.aggregation) else None
            tokens = block(tokens, bias, chosen)  # (B, 1+N, D); of the last block, (B, M', D)
        norm = self.backbone.norm if self.cls_norm is None else self.cls_norm
        return patches, norm(tokens)


def check_head(config: MaskedImageModelConfig) -> None:
    """Raise ValueError if the width of the head is not set, or does not fit the target."""
    if config.predicts == "tokens":
        if config.num_codes < 2:
            raise ValueError(f"num_codes must be 2 or more, got {config.num_codes}")
        if config.target_width:
            raise ValueError(f"target_width is {config.target_width}; expected 0 for tokens")
        return
    if config.num_codes:
        raise ValueError(f"num_codes is {config.num_codes}; expected 0 for {config.predicts}")
    if config.target_width < 1:
        raise ValueError(f"target_width must be 1 or more, got {config.target_width}")
    vit, width = config.backbone, config.target_width
    pixels = vit.image_channels * vit.patch_size**2
    if config.predicts == "pixels" and width != pixels:
        raise ValueError(f"target_width is {width}, but a patch has {pixels} pixel values")


def check_codes(
    codes: Tensor, num_codes: int, positions: Tensor, weights: Tensor | None = None
) -> None:
    """Raise ValueError if codes (B, M) are not those of the patches at positions (B, M).

    Values are checked on a CPU only. Without weights, patches must all be different.
    """
    if (codes.shape, codes.dtype) != (positions.shape, torch.int64):
        raise ValueError(
            f"codes are {tuple(codes.shape)} {codes.dtype}; expected {tuple(positions.shape)} "
            "int64, those of the patches to predict: tokenizer.encode(images).gather(1, masked)"
        )
    if weights is not None and weights.shape != codes.shape:
        expected = f"expected {tuple(codes.shape)}, one for each code"
        raise ValueError(f"weights are {tuple(weights.shape)}; {expected}")
    if not codes.shape[1]:
        raise ValueError("there is no patch to predict; hide at least one patch of each image")
    if not (codes.is_cpu and can_be_read(codes)):
        return
    low, high = torch.stack(codes.aminmax()).tolist()
    if low < 0 or high >= num_codes:
        raise ValueError(
            f"codes are from {low} to {high}; expected integers in [0, {num_codes}). To leave "
            "patches out of the losses, give them a weight of 0"
        )
    if weights is None and bool((positions.sort(dim=1).values.diff(dim=1) == 0).any()):
        raise ValueError(
            "masked lists a patch of an image several times, and each counts in the losses; "
            "expected different patches, or weights: with sorted masks whose last patch is "
            "repeated, weights=beit.nn.masking.not_repeated(masked).float()"
        )


def linear_cross_entropy(
    head: nn.Linear, features: Tensor, codes: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy () of head(features), and the accuracy (), float32 both.

    The same as `masked_losses` of the logits, in chunks, without keeping logits for the backward
    pass: gradients are computed together with the loss. PyTorch's own function of this name gives
    no accuracy.

    Args:
        features: (B, M, D)
        codes: (B, M) int64
        weights: (B, M) of the patches; None for equal weights
    """
    shares = torch.ones_like(codes, dtype=torch.float32) if weights is None else weights
    shares = (shares / shares.mean()).flatten()  # 1 on average: in float16, less would vanish
    rows = features.flatten(0, 1)  # (BM, D)
    return _LinearCrossEntropy.apply(  # type: ignore[no-any-return]
        rows, head.weight, head.bias, codes.flatten(), shares
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, codes: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, accuracy = shares.new_zeros(()), shares.new_zeros(())
        learns = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(part) for part in (rows, weight, bias)] if learns else []
        size = max(1, min(MOST_ROWS, CHUNK_ELEMENTS // len(weight)))
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            code, share = codes[chunk, None], shares[chunk, None]  # (n, 1)
            logits = F.linear(rows[chunk], weight, bias).float()  # (n, K)
            accuracy += ((logits.argmax(dim=1, keepdim=True) == code) * share).sum()
            total = logits.logsumexp(dim=1, keepdim=True)
            loss += ((total - logits.gather(1, code)) * share).sum()
            if learns:  # of each logit: share * (probability - 1 for the code)
                slopes = logits.sub_(total).exp_()
                slopes = slopes.scatter_add_(1, code, -torch.ones_like(share)).mul_(share)
                gradients[0][chunk] = slopes @ weight
                gradients[1] += slopes.T @ rows[chunk]
                gradients[2] += slopes.sum(dim=0)
        ctx.save_for_backward(*gradients)
        loss, accuracy = loss / len(rows), accuracy / len(rows)
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return *(gradient * (slope / len(gradients[0])) for gradient in gradients), None, None
