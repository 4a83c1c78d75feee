"""Tensor names in Hugging Face transformers' BEiT (5.23): translation to the published ones."""

from beit.weights.formats import published_segmentation
from beit.weights.formats.names import Architecture, Rows
from beit.weights.formats.published_names import TABLE

DATA2VEC = "data2vec_vision."  # where BEiT has "beit."
ATTENTION = "encoder.layer.#.attention.attention"
# (published, transformers'), after queries, keys and values were fused. The right side has the
# names in files, which are the same in all versions; names in memory differ.
BACKBONE: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
    (f"rel_pos_bias.{TABLE}", f"encoder.relative_position_bias.{TABLE}"),
    ("blocks.#.gamma_#", "encoder.layer.#.lambda_#"),
    ("blocks.#.norm1.*", "encoder.layer.#.layernorm_before.*"),
    ("blocks.#.norm2.*", "encoder.layer.#.layernorm_after.*"),
    ("blocks.#.attn.q_bias", f"{ATTENTION}.query.bias"),
    ("blocks.#.attn.v_bias", f"{ATTENTION}.value.bias"),
    ("blocks.#.attn.qkv.weight", f"{ATTENTION}.qkv.weight"),
    ("blocks.#.attn.proj.*", "encoder.layer.#.attention.output.dense.*"),
    (f"blocks.#.attn.{TABLE}", f"{ATTENTION}.relative_position_bias.{TABLE}"),
    ("blocks.#.mlp.fc1.*", "encoder.layer.#.intermediate.dense.*"),
    ("blocks.#.mlp.fc2.*", "encoder.layer.#.output.dense.*"),
)
QKV = "attention.attention.qkv.weight"
QUERY_KEY_VALUE = tuple(QKV.replace("qkv", part) for part in ("query", "key", "value"))
# A convolution and its batch norm, by the published names, which are the same.
CONV_BLOCKS = tuple(published for _, published in published_segmentation.CONV_BLOCKS)
# (in memory since transformers 5, in files)
MODULES: Rows = (
    (f"shared_position_bias.{TABLE}", f"encoder.relative_position_bias.{TABLE}"),
    ("layers.#.attention.q_proj.*", f"{ATTENTION}.query.*"),
    ("layers.#.attention.k_proj.*", f"{ATTENTION}.key.*"),
    ("layers.#.attention.v_proj.*", f"{ATTENTION}.value.*"),
    ("layers.#.attention.o_proj.*", "encoder.layer.#.attention.output.dense.*"),
    ("layers.#.relative_position_bias.*", f"{ATTENTION}.relative_position_bias.*"),
    ("layers.#.mlp.fc1.*", "encoder.layer.#.intermediate.dense.*"),
    ("layers.#.mlp.fc2.*", "encoder.layer.#.output.dense.*"),
    ("layers.#.*", "encoder.layer.#.*"),
)
SEGMENTER_MODULES: Rows = (
    ("fpn.fpn1.conv_transpose1.*", "fpn1.0.*"),
    ("fpn.fpn1.normalization.*", "fpn1.1.*"),
    ("fpn.fpn1.conv_transpose2.*", "fpn1.3.*"),
    ("fpn.fpn2.*", "fpn2.0.*"),
    ("decode_head.psp_modules.blocks.#.conv.convolution.*", "decode_head.psp_modules.#.1.conv.*"),
    ("decode_head.psp_modules.blocks.#.conv.normalization.*", "decode_head.psp_modules.#.1.bn.*"),
    ("decode_head.psp_bottleneck.convolution.*", "decode_head.bottleneck.conv.*"),
    ("decode_head.psp_bottleneck.normalization.*", "decode_head.bottleneck.bn.*"),
    *((f"{block}.convolution.*", f"{block}.conv.*") for block in CONV_BLOCKS[2:]),
    *((f"{block}.normalization.*", f"{block}.bn.*") for block in CONV_BLOCKS[2:]),
)


def _prefixed(rows: Rows, left: str, right: str) -> Rows:
    return tuple((left + one, right + other) for one, other in rows)


FILES: Rows = (*_prefixed(MODULES, "beit.", "beit."), *MODULES, *SEGMENTER_MODULES)

MASKED = Architecture(
    "BeitForMaskedImageModeling",
    (
        *_prefixed(BACKBONE, "", "beit."),
        ("mask_token", "beit.embeddings.mask_token"),
        ("norm.*", "layernorm.*"),
        ("lm_head.*", "lm_head.*"),
    ),
)
CLASSIFIER = Architecture(
    "BeitForImageClassification",
    (
        *_prefixed(BACKBONE, "", "beit."),
        ("norm.*", "beit.layernorm.*"),
        ("fc_norm.*", "beit.pooler.layernorm.*"),
        ("head.*", "classifier.*"),
    ),
    ignored=("beit.embeddings.mask_token",),
)
SEGMENTER = Architecture(
    "BeitForSemanticSegmentation",
    (
        *_prefixed(BACKBONE, "backbone.", "beit."),
        ("backbone.fpn1.#.*", "fpn1.#.*"),
        ("backbone.fpn2.0.*", "fpn2.0.*"),
        *((f"{block}.conv.weight", f"{block}.conv.weight") for block in CONV_BLOCKS),
        *((f"{block}.bn.*", f"{block}.bn.*") for block in CONV_BLOCKS),
        ("decode_head.conv_seg.*", "decode_head.classifier.*"),
        ("auxiliary_head.conv_seg.*", "auxiliary_head.classifier.*"),
    ),
    ignored=("beit.embeddings.mask_token",),
)
BARE = Architecture(
    "BeitModel",
    (*BACKBONE, ("norm.*", "layernorm.*")),
    # The norm of the patches' mean: a backbone returns the patches themselves.
    ignored=("embeddings.mask_token", "pooler.layernorm.weight", "pooler.layernorm.bias"),
)
