from beit.nn.target import explained_from_error


def test_explained_is_a_share_of_the_whole_set_not_a_mean_of_shares():
    figures = {"val_loss": 3.0, "val_error": 1.0, "val_spread": 4.0, "error": 0.0, "spread": 0.0}
    assert explained_from_error(figures) == {
        "val_loss": 3.0,
        "val_explained": 0.75,
        "explained": 0.0,
    }
