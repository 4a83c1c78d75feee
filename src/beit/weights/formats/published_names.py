"""Tensor names in published BEiT checkpoints: translation to ours, and which are left out."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from beit.nn.relative_bias import relative_position_index
from beit.weights.formats.names import Rows, renamed, swapped, translated

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
COUNTS, INITTED = "quantize.cluster_size", "quantize.embedding.initted"
STALE = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg")
UNUSED = {  # beginnings of names of training, and what they are
    "teacher_model.": "teacher_model.*: the teacher",
    "scaling_layer.": "scaling_layer.*: for the teacher's input",
    "loss": "loss*: of the training loss",
}

BLOCK = (  # the same names in both
    "gamma_#",
    "norm#.*",
    "attn.q_bias",
    "attn.v_bias",
    "attn.qkv.weight",
    "attn.proj.*",
    "mlp.fc#.*",
)
STEM = ("cls_token", "pos_embed", "patch_embed.proj.*")


def block_rows(ours: str, theirs: str) -> Rows:
    """Return the rows of blocks with prefixes such as `backbone.blocks.#.`."""
    table = (f"{ours}attn.rel_pos_bias.table", f"{theirs}attn.{TABLE}")
    return (*((f"{ours}{name}", f"{theirs}{name}") for name in BLOCK), table)


def vit_rows(ours: str, theirs: str, norm: str = "norm") -> Rows:
    """Return the rows of a ViT with prefixes such as `backbone.`; `norm` names its final norm."""
    return (
        *((f"{ours}{name}", f"{theirs}{name}") for name in STEM),
        (f"{ours}rel_pos_bias.table", f"{theirs}rel_pos_bias.{TABLE}"),
        *block_rows(f"{ours}blocks.#.", f"{theirs}blocks.#."),
        (f"{ours}norm.*", f"{theirs}{norm}.*"),
    )


# (ours, published)
VQKD_ROWS: Rows = (
    *vit_rows("encoder.", "encoder.", "fc_norm"),
    *vit_rows("decoder.", "decoder.", "fc_norm"),
    ("encode_task.#.*", "encode_task_layer.#.*"),
    ("decode_task.#.*", "decode_task_layer.#.*"),
    ("quantizer.codebook", "quantize.embedding.weight"),
    ("quantizer.initialised", INITTED),
    ("quantizer.counts", COUNTS),
)
MIM_ROWS: Rows = (
    *vit_rows("backbone.", ""),
    ("mask_token", "mask_token"),
    ("head.*", "lm_head.*"),
    *block_rows("aggregation.#.", "cls_pt_layers.#."),
    ("cls_norm.*", "cls_pt_norm.*"),
    ("cls_head.*", "cls_pt_lm_head.*"),
)
CLASSIFIER_ROWS: Rows = (
    *vit_rows("backbone.", ""),
    ("fc_norm.*", "fc_norm.*"),
    ("head.*", "head.*"),
)
BACKBONE_ROWS: Rows = vit_rows("", "")


def to_ours(tensors: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Rename tensors to our names; unknown ones get a mark, with which they fit no row."""
    return renamed(tensors, swapped(rows), unknown="{} (published name)")


def to_theirs(tensors: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Rename the tensors of a model of ours to their published names."""
    names = translated(tensors, rows)
    return {names[name]: tensor for name, tensor in tensors.items()}


def add_indices(state: dict[str, Tensor], grid: tuple[int, int]) -> None:
    """Add the position index that the published code saves beside every bias table."""
    for name in [name for name in state if name.endswith(TABLE)]:
        index = relative_position_index(grid).to(state[name].device)
        state[name.removesuffix(TABLE) + INDEX] = index


def unused(names: Iterable[str]) -> dict[str, str]:
    """Select the names of tensors that a published model does not use, with the reason of each."""
    reasons = {name: _reason(name) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(name: str) -> str:
    for prefix, reason in UNUSED.items():
        if name.startswith(prefix):
            return reason
    if name in STALE:
        return f"{name}: never read"
    return f"{INDEX}: follows from the grid" if name.endswith(INDEX) else ""


def counted(reasons: Iterable[str]) -> list[str]:
    """Combine equal reasons, since a teacher has hundreds of tensors: `x.*: reason (7 tensors)`."""
    counts = Counter(reasons).items()
    return [reason if count == 1 else f"{reason} ({count} tensors)" for reason, count in counts]
