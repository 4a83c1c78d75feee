import pytest
import torch

from beit.nn.pooling import Kind, Tokens, kinds_of, pooled


def test_what_is_read_of_tokens() -> None:
    tokens = Tokens(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 5.0], [5.0, 9.0]]]))
    assert pooled(tokens, "cls").tolist() == [[1, 2]]
    assert pooled(tokens, "mean").tolist() == [[4, 7]]
    assert pooled(tokens, "both").tolist() == [[1, 2, 4, 7]]
    assert torch.equal(pooled(tokens, "attentive"), tokens.patches)


def test_means_are_taken_in_float32() -> None:
    patches = torch.full((1, 300, 1), 1000.0, dtype=torch.float16)  # their sum is no float16
    assert pooled(Tokens(None, patches), "mean").item() == 1000


def test_kinds_come_by_depth_and_the_final_features_last() -> None:
    assert kinds_of("last", None, 2, True) == [Kind(None, "cls"), Kind(None, "mean")]
    everything = kinds_of("all", ["both"], 2, True)
    assert everything == [Kind(1, "both"), Kind(2, "both"), Kind(None, "both")]
    assert [kind.name for kind in everything] == ["both@1", "both@2", "both"]
    assert kinds_of((3, 1), ["mean"], 3, True) == [Kind(1, "mean"), Kind(3, "mean")]
    assert kinds_of("last", None, 0, False) == [Kind(None, "mean")]


def test_what_a_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="layers names block 4, but the model has blocks 1 to 3"):
        kinds_of((1, 4), None, 3, True)
    with pytest.raises(ValueError, match="block 0, but the model has blocks 1 to 3"):
        kinds_of((0,), None, 3, True)
    with pytest.raises(ValueError, match="layers is all, but the model gives its final features"):
        kinds_of("all", None, 0, False)
    with pytest.raises(ValueError, match=r"block 1, but the model gives its final features only"):
        kinds_of((1,), None, 0, False)
    with pytest.raises(ValueError, match=r"pooling is both, mean, but .* no \[CLS\] token"):
        kinds_of("last", ["both", "mean"], 0, False)
