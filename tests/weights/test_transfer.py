import pytest
import torch

from beit.data.imagenet_names import imagenet_words, wordnet_ids
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


def carried(source, target, **options):
    """The message, and for each row of the target's head its row in the source, or None."""
    source.head.bias.data = torch.arange(1.0, 1 + len(source.head.bias))
    message = carry_head(source, target, "here", **options)
    return message, [int(value) - 1 if value else None for value in target.head.bias.tolist()]


def test_the_head_of_the_same_classes_is_copied():
    message, rows = carried(classifier("a", "b", "c"), classifier("a", "b", "c"))
    assert (message, rows) == ("its head for 3 classes was copied", [0, 1, 2])
    message, rows = carried(classifier("a", "b", "c"), classifier(count=3))
    said = "the data has no class names: numbers are taken as those of here"
    assert message.startswith(f"its head for 3 classes was copied, {said} (0 is a, 1 is b, ")
    assert rows == [0, 1, 2]
    message, rows = carried(classifier(count=3), classifier("a", "b", "c"))
    assert rows == [0, 1, 2]  # as published: whatever has as many
    message, rows = carried(classifier(count=3), classifier(count=3))
    assert (message, rows) == ("its head for 3 classes was copied, class names unknown", [0, 1, 2])


def test_a_head_that_reads_another_vector_now_says_so():
    message, rows = carried(classifier("a", "b", pooling="cls"), classifier("a", "b"))
    moved = "; it reads the mean patch now, and was trained on [CLS]"
    assert (message, rows) == (f"its head for 2 classes was copied{moved}", [0, 1])
    source, target = classifier("a", "b"), classifier("b", "c", pooling="cls")
    message, _ = carried(source, target, by_name=True)
    assert message.endswith("2 classes; it reads [CLS] now, and was trained on the mean patch")


def test_a_head_of_the_same_classes_is_copied_by_name():
    message, rows = carried(classifier("a", "e\u0301", "c"), classifier("c", "a", "\xe9"))
    assert (message, rows) == ("its head for 3 classes was copied", [2, 0, 1])
    folders = sorted(map(str, range(11)))  # 0, 1, 10, 2, ...
    message, rows = carried(classifier(*folders), classifier(count=11))
    assert [folders[row] for row in rows] == [*map(str, range(11))]
    assert "here names its classes by the numbers of the data" in message
    message, rows = carried(classifier("1", "2", "none"), classifier(count=3))
    assert rows == [None] * 3
    assert "here has the class 1 as its number 0" in message


def test_imagenets_words_and_ids_are_the_same_classes():
    words, ids = imagenet_words(), wordnet_ids()
    for options in ({}, {"names": ids}):  # the latter: --init_classes timm:imagenet-1k
        message, rows = carried(classifier(*words), classifier(*reversed(ids)), **options)
        assert message == "its head for 1000 classes was copied"
        assert rows == [*reversed(range(1000))]


def test_other_heads_are_left_out_unless_rows_are_copied_by_name():
    message, rows = carried(classifier("a", "b", "c"), classifier("c", "x", "a"))
    assert rows == [None] * 3
    assert message == "its head for 3 classes was left out; that for 3 is new"
    assert carried(classifier(count=4), classifier("a", "b"))[1] == [None] * 2
    source, target = classifier("a", "b", "c"), classifier("c", "x", "a")
    fresh = target.head.weight.detach().clone()
    message, rows = carried(source, target, by_name=True)
    assert (message, rows) == ("2 of 3 rows were copied from its head for 3 classes", [2, None, 0])
    assert torch.equal(target.head.weight[[0, 2]], source.head.weight[[2, 0]])
    assert torch.equal(target.head.weight[1], fresh[1])


def test_names_may_be_given_for_a_head_that_has_none():
    source = classifier(count=3)
    assert carried(source, classifier("b", "y"), names=["a", "b", "c"], by_name=True)[1] == [
        1,
        None,
    ]
    # With names, a head of as many other classes is not copied.
    assert carried(source, classifier("b", "y", "z"), names=["a", "b", "c"])[1] == [None] * 3


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (
            VisionTransformer(VIT),
            classifier("a", "b"),
            {"by_name": True},
            "has no classes to carry",
        ),
        (classifier(count=3), classifier("a", "b"), {"names": ["a"]}, "names 1 classes, but .* 3"),
        (
            classifier("a", "b"),
            classifier("a", "c"),
            {"names": ["b", "a"]},
            "contradicts the class names in here",
        ),
        (
            classifier(count=3),
            classifier("a"),
            {"by_name": True},
            "that of here .--init_classes FILE. is",
        ),
        (
            classifier("a", "b"),
            classifier(count=3),
            {"by_name": True},
            "that of the data is unknown",
        ),
        (
            classifier("a", "b"),
            classifier("c"),
            {"by_name": True},
            "is one of those of here, such as a",
        ),
    ],
)
def test_what_cannot_be_copied_is_refused(source, target, options, message):
    with pytest.raises(ValueError, match=message):
        carry_head(source, target, "here", **options)


def test_norms_are_copied_where_both_models_have_them():
    source = classifier("a", "b")
    torch.nn.init.normal_(source.fc_norm.weight)
    same, other = classifier("a", "b"), classifier("a", "b", pooling="cls")
    for target in (same, other):
        carry_backbone(source.backbone, target.backbone, "here")
        carry_norm(source, target)
        for name, tensor in source.backbone.state_dict().items():
            assert torch.equal(target.backbone.state_dict()[name], tensor)
    assert torch.equal(same.fc_norm.weight, source.fc_norm.weight)
    assert torch.equal(other.backbone.norm.weight, torch.ones(12))
    back = classifier("a", "b")
    carry_norm(other, back)
    assert torch.equal(back.fc_norm.weight, torch.ones(12))


def test_the_backbone_is_resized():
    source = classifier(count=2)
    assert backbone_for_finetuning(source, "here", None) is source.backbone
    assert backbone_for_finetuning(source, "here", (24, 24)).config.grid == (3, 3)
    with pytest.raises(ValueError, match="here holds a Linear, which has no backbone"):
        backbone_for_finetuning(torch.nn.Linear(2, 2), "here", None)
