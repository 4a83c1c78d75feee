"""Masked image modelling with patch aggregation (BEiT v2, section 2.3 and figure 3)."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from beit.nn.block import NORM_EPS, Block, cut_normal_, init_published, rescale_residual
from beit.nn.vit import VisionTransformer, ViTConfig

Predicts = Literal["tokens", "pixels", "features"]


@dataclass(frozen=True)
class MaskedImageModelConfig:
    """The numbers of a pretraining model.

    Attributes:
        backbone: the ViT that is pretrained
        num_codes: codes of the tokenizer (K); 0 takes them from the tokenizer; 0 where it
            predicts something else
        early_layers: number of the block whose patches go to the aggregation (l)
        head_layers: blocks of the aggregation; 0 leaves it out (BEiT v1)
        shared_head: both predictions use one norm and one linear layer
        predicts: what its head says of a patch: logits of codes, its pixels, or a teacher's
            features; `beit pretrain` takes it from target.kind
        target_width: numbers of a patch's pixels (c * P * P) or features (T); 0 for tokens
        normalised: pixels are predicted less the patch's mean and over its deviation, features
            less their mean and over their deviation
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
        """Numbers that the head gives for a patch: K, c * P * P or T."""
        return self.num_codes if self.predicts == "tokens" else self.target_width

    def __post_init__(self) -> None:
        if self.head_layers and not 1 <= self.early_layers <= self.backbone.depth:
            raise ValueError(
                f"early_layers is the number of a backbone block, 1 to {self.backbone.depth}, "
                f"got {self.early_layers}"
            )


class MaskedPrediction(NamedTuple):
    """Logits over the codes at the masked patches, or the numbers of another target there.

    Attributes:
        logits: (B, M, K) from the last block's patches; of pixels or features (B, M, T)
        cls_logits: likewise, from the aggregation, which sees the last [CLS] and early patches
    """

    logits: Tensor
    cls_logits: Tensor | None


class MaskedImageModel(nn.Module):
    """Predicts the tokens of hidden patches, twice: from the patches and through [CLS].

    Or their pixels, or a teacher's features of them: the head is as wide as what it predicts.
    """

    def __init__(self, config: MaskedImageModelConfig) -> None:
        super().__init__()
        check_head(config)
        self.config = config
        vit, K = config.backbone, config.head_width
        self.backbone = VisionTransformer(vit)
        self.mask_token = nn.Parameter(torch.empty(1, 1, vit.width))
        self.head = nn.Linear(vit.width, K)
        early, extra = config.early_layers, config.head_layers
        rate_step = vit.drop_path / max(max(vit.depth, early + extra) - 1, 1)
        self.aggregation = nn.ModuleList(
            Block(
                vit.width,
                vit.num_heads,
                vit.mlp_ratio,
                vit.layer_scale,
                rate_step * (early + i),
                vit.grid if vit.relative_bias == "per_block" else None,
            )
            for i in range(extra)
        )
        own = extra > 0 and not config.shared_head
        self.cls_norm = nn.LayerNorm(vit.width, eps=NORM_EPS) if own else None
        self.cls_head = nn.Linear(vit.width, K) if own else None

        bound = vit.init_bound
        cut_normal_(self.mask_token, bound)
        for head in (self.head, self.cls_head):
            if head is not None:
                init_published(head, bound)
        # The aggregation blocks keep PyTorch's own initial weights: the published code makes them
        # after it has initialised the rest (FACTS 2.4).
        for layer, block in enumerate(self.aggregation, early + 1):
            assert isinstance(block, Block)
            rescale_residual(block, layer)

    def forward(
        self, images: Tensor, masked: Tensor, asked: Tensor | None = None
    ) -> MaskedPrediction:
        """Predict the tokens of the masked patches, or of those asked for.

        Args:
            images: (B, 3, H, W) uint8 in 0..255 or float in [0, 1]
            masked: (B, M) int64, sorted patch indices in [0, N), hidden from the model
            asked: (B, M') int64, the patches to predict; None: the masked ones
        """
        if asked is None:
            asked = masked
        depth, early = self.config.backbone.depth, self.config.early_layers
        wanted = (early, depth) if self.aggregation else ()
        features = self.backbone(images, masked, self.mask_token, layers=wanted)
        logits = self.head(take(features.patches, asked))  # (B, M, K)
        if not self.aggregation:
            return MaskedPrediction(logits, None)

        late_cls = features.layers[depth][:, :1]
        tokens = torch.cat([late_cls, features.layers[early][:, 1:]], dim=1)  # (B, 1+N, D)
        bias = self.backbone.bias()
        for block in self.aggregation:
            tokens = block(tokens, bias)
        norm = self.backbone.norm if self.cls_norm is None else self.cls_norm
        head = self.head if self.cls_head is None else self.cls_head
        return MaskedPrediction(logits, head(norm(take(tokens[:, 1:], asked))))


def check_head(config: MaskedImageModelConfig) -> None:
    """Refuse a head that fits nothing: its width is still open, or not that of a patch's pixels."""
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
    pixels = config.backbone.in_channels * config.backbone.patch_size**2
    if config.predicts == "pixels" and config.target_width != pixels:
        raise ValueError(
            f"target_width is {config.target_width}, but a patch has {pixels} values of pixels"
        )


def take(patches: Tensor, masked: Tensor) -> Tensor:
    """Pick the masked (B, M) of patches (B, N, D) or codes (B, N): (B, M, D) or (B, M)."""
    if patches.ndim == 2:
        return patches.gather(1, masked)
    return patches.gather(1, masked[..., None].expand(-1, -1, patches.shape[-1]))
