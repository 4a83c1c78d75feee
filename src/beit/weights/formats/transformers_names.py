"""Tensor names in Hugging Face transformers' BEiT (5.23): translation to the published ones."""

from beit.weights.formats.names import Architecture, Rows

# (published, transformers'), after queries, keys and values were fused. The right side has the
# names in files, which are the same in all versions; names in memory differ.
BACKBONE: Rows = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
    (
        "rel_pos_bias.relative_position_bias_table",
        "encoder.relative_position_bias.relative_position_bias_table",
    ),
    ("blocks.#.gamma_1", "encoder.layer.#.lambda_1"),
    ("blocks.#.gamma_2", "encoder.layer.#.lambda_2"),
    ("blocks.#.norm1.*", "encoder.layer.#.layernorm_before.*"),
    ("blocks.#.norm2.*", "encoder.layer.#.layernorm_after.*"),
    ("blocks.#.attn.q_bias", "encoder.layer.#.attention.attention.query.bias"),
    ("blocks.#.attn.v_bias", "encoder.layer.#.attention.attention.value.bias"),
    ("blocks.#.attn.qkv.weight", "encoder.layer.#.attention.attention.qkv.weight"),
    ("blocks.#.attn.proj.*", "encoder.layer.#.attention.output.dense.*"),
    (
        "blocks.#.attn.relative_position_bias_table",
        "encoder.layer.#.attention.attention.relative_position_bias.relative_position_bias_table",
    ),
    ("blocks.#.mlp.fc1.*", "encoder.layer.#.intermediate.dense.*"),
    ("blocks.#.mlp.fc2.*", "encoder.layer.#.output.dense.*"),
)
QKV = "attention.attention.qkv.weight"
QUERY_KEY_VALUE = (
    "attention.attention.query.weight",
    "attention.attention.key.weight",
    "attention.attention.value.weight",
)
CONV_BLOCKS = (  # a convolution and its batch norm; the same names in both
    "decode_head.psp_modules.#.1",
    "decode_head.bottleneck",
    "decode_head.lateral_convs.#",
    "decode_head.fpn_convs.#",
    "decode_head.fpn_bottleneck",
    "auxiliary_head.convs.0",
)
# (in memory since transformers 5, in files)
MODULES: Rows = (
    (
        "shared_position_bias.relative_position_bias_table",
        "encoder.relative_position_bias.relative_position_bias_table",
    ),
    ("layers.#.attention.q_proj.*", "encoder.layer.#.attention.attention.query.*"),
    ("layers.#.attention.k_proj.*", "encoder.layer.#.attention.attention.key.*"),
    ("layers.#.attention.v_proj.*", "encoder.layer.#.attention.attention.value.*"),
    ("layers.#.attention.o_proj.*", "encoder.layer.#.attention.output.dense.*"),
    (
        "layers.#.relative_position_bias.*",
        "encoder.layer.#.attention.attention.relative_position_bias.*",
    ),
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
    *(
        row
        for block in CONV_BLOCKS[2:]
        for row in (
            (f"{block}.convolution.*", f"{block}.conv.*"),
            (f"{block}.normalization.*", f"{block}.bn.*"),
        )
    ),
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
