from beit.draw.names import is_share, name_of, percent, value_of


def test_names_and_values_as_people_read_them() -> None:
    assert name_of("val_top1") == "validation top-1 accuracy"
    assert name_of("loss_of_mine") == "loss of mine"  # not in the table
    assert name_of("knn_cls") == "k-NN, [CLS]"
    assert value_of("val_usage", 0.99658) == "99.7%"
    assert value_of("val_loss", 1.23456) == "1.235"
    assert not is_share("val_rank")
    assert percent(0.1) == "10.0%"
