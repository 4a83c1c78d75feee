import pytest
import torch

from beit.nn.code_ranks import CodeRanks, code_ranks

VECTORS = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])


def test_ranks_count_what_is_more_probable_and_half_of_what_is_as_probable() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0], [1.0, 1.0, 0.0, 2.0]]])
    assert code_ranks(logits, torch.tensor([[1, 2, 1]])).tolist() == [[2, 1, 1]]
    random = torch.rand(3, 5, 7)
    codes = random.argmax(2)
    assert not code_ranks(random, codes).any()
    assert (code_ranks(-random, codes) == 6).all()


def test_figures_by_hand() -> None:
    ranks = CodeRanks(VECTORS)
    logits = torch.tensor([[[9.0, 1, 0, 2], [9.0, 1, 0, 2], [0, 9.0, 1, 2], [0, 9.0, 2, 1]]])
    codes = torch.tensor([[0, 3, 0, 1]])  # ranks 1, 2, 4, 1
    figures = ranks.figures(ranks.count(logits, codes))
    half = 2**-0.5
    assert figures == pytest.approx(
        {
            "chance": 0.5,  # always code 0
            "rank": 1.0,
            "first5": 1.0,
            "first5_chance": 1.0,
            "wrong_cosine": half / 2,  # code 0 for 3, and code 1 for 0
            # pairs of different codes by frequency: 0 and 1, 0 and 3, 1 and 3
            "random_cosine": (2 * 0.125 * half + 2 * 0.0625 * half) / (1 - 0.375),
        }
    )


def test_counts_of_parts_add_up_and_weights_leave_patches_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 11, generator=generator)
    codes = torch.randint(11, (6, 5), generator=generator)
    ranks = CodeRanks(torch.randn(11, 3, generator=generator))
    whole = ranks.count(logits, codes)
    parts = ranks.count(logits[:2], codes[:2]) + ranks.count(logits[2:], codes[2:])
    torch.testing.assert_close(parts, whole)
    weights = torch.ones(6, 5)
    weights[4:] = 0
    torch.testing.assert_close(
        ranks.count(logits, codes, weights), ranks.count(logits[:4], codes[:4])
    )
    figures, order = ranks.figures(whole), code_ranks(logits, codes).flatten()
    assert figures["rank"] == order.median() + 1
    assert figures["first5"] == pytest.approx(float((order < 5).float().mean()))


def test_codes_drawn_at_random_have_the_figures_of_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    ranks = CodeRanks(torch.randn(50, 8, generator=generator))
    codes = torch.randint(50, (200, 40), generator=generator)
    figures = ranks.figures(ranks.count(torch.randn(200, 40, 50, generator=generator), codes))
    assert figures["first5"] == pytest.approx(0.1, abs=0.02)
    assert figures["rank"] == pytest.approx(25, abs=2)
    assert figures["wrong_cosine"] == pytest.approx(figures["random_cosine"], abs=0.02)


def test_without_a_patch_nothing_fails() -> None:
    figures = CodeRanks(VECTORS).figures(torch.zeros(4, 4))
    assert figures["chance"] == figures["first5"] == figures["wrong_cosine"] == 0
