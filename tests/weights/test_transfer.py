import pytest
import torch

from beit.nn.heads import ImageClassifier, ImageClassifierConfig
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.weights.transfer import (
    backbone_for_finetuning,
    carry_backbone,
    carry_head,
    carry_norm,
)

VIT = ViTConfig((16, 24), 8, width=12, depth=2, num_heads=3, relative_bias="per_block")


def classifier(*names, count=0, pooling="mean"):
    config = ImageClassifierConfig(VIT, count or len(names), pooling, names or None)
    return ImageClassifier(config, init_scale=1.0)


def carried(start, wanted, **options):
    """What is said, and which row of the start each row of the head is; None for its own."""
    start.head.bias.data = torch.arange(1.0, 1 + len(start.head.bias))
    told = carry_head(start, wanted, "here", **options)
    return told, [int(value) - 1 if value else None for value in wanted.head.bias.tolist()]


def test_the_head_of_the_same_classes_comes_along():
    told, rows = carried(classifier("a", "b", "c"), classifier("a", "b", "c"))
    assert (told, rows) == ("the head for 3 classes came along", [0, 1, 2])
    told, rows = carried(classifier("a", "b", "c"), classifier(count=3))
    assert (told, rows) == ("the head for 3 classes came along, names unknown", [0, 1, 2])
    told, rows = carried(classifier(count=3), classifier("a", "b", "c"))
    assert rows == [0, 1, 2]  # as published: whatever has as many


def test_other_heads_are_left_out_unless_rows_are_asked_for():
    told, rows = carried(classifier("a", "b", "c"), classifier("c", "x", "a"))
    assert rows == [None] * 3
    assert told == "the head for 3 classes was left out, that for 3 started afresh"
    assert carried(classifier(count=4), classifier("a", "b"))[1] == [None] * 2
    start, wanted = classifier("a", "b", "c"), classifier("c", "x", "a")
    fresh = wanted.head.weight.detach().clone()
    told, rows = carried(start, wanted, by_name=True)
    assert (told, rows) == ("of the head for 3 classes 2 rows of 3 came along", [2, None, 0])
    assert torch.equal(wanted.head.weight[[0, 2]], start.head.weight[[2, 0]])
    assert torch.equal(wanted.head.weight[1], fresh[1])


def test_names_may_be_given_for_a_head_that_has_none():
    start = classifier(count=3)
    assert carried(start, classifier("b", "y"), names=["a", "b", "c"], by_name=True)[1] == [1, None]
    # Known by name to be others, the head is not taken for that of as many classes.
    assert carried(start, classifier("b", "y", "z"), names=["a", "b", "c"])[1] == [None] * 3


@pytest.mark.parametrize(
    ("start", "wanted", "options", "message"),
    [
        (
            VisionTransformer(VIT),
            classifier("a", "b"),
            {"by_name": True},
            "has no classes to carry",
        ),
        (classifier(count=3), classifier("a", "b"), {"names": ["a"]}, "names 1 classes, but .* 3"),
        (classifier("a", "b"), classifier("a", "c"), {"names": ["b", "a"]}, "contradicts here"),
        (classifier(count=3), classifier("a"), {"by_name": True}, "not those of here .--init_cla"),
        (classifier("a", "b"), classifier(count=3), {"by_name": True}, "not those of the data"),
        (classifier("a", "b"), classifier("c"), {"by_name": True}, "is one of here, such as a"),
    ],
)
def test_what_cannot_be_carried_is_refused(start, wanted, options, message):
    with pytest.raises(ValueError, match=message):
        carry_head(start, wanted, "here", **options)


def test_norms_go_where_there_is_a_place_for_them():
    start = classifier("a", "b")
    torch.nn.init.normal_(start.fc_norm.weight)
    same, other = classifier("a", "b"), classifier("a", "b", pooling="cls")
    for wanted in (same, other):
        carry_backbone(start.backbone, wanted.backbone, "here")
        carry_norm(start, wanted)
        for name, tensor in start.backbone.state_dict().items():
            assert torch.equal(wanted.backbone.state_dict()[name], tensor)
    assert torch.equal(same.fc_norm.weight, start.fc_norm.weight)
    assert torch.equal(other.backbone.norm.weight, torch.ones(12))
    back = classifier("a", "b")
    carry_norm(other, back)
    assert torch.equal(back.fc_norm.weight, torch.ones(12))


def test_the_backbone_takes_the_size_asked_for():
    start = classifier(count=2)
    assert backbone_for_finetuning(start, "here", None) is start.backbone
    assert backbone_for_finetuning(start, "here", (24, 24)).config.grid == (3, 3)
    with pytest.raises(ValueError, match="here holds a Linear, which has no backbone"):
        backbone_for_finetuning(torch.nn.Linear(2, 2), "here", None)
