from beit.data.imagenet_names import wordnet_ids
from beit.evaluation.imagenet_classes import compared_ids


def number(wordnet_id: str) -> int:
    return wordnet_ids().index(wordnet_id)


def test_lists_of_classes():
    ids = wordnet_ids()
    assert (len(ids), ids[0], ids[999]) == (1000, "n01440764", "n15075141")
    assert ids == sorted(set(ids))
    for name, begin in (("imagenet-a", (6, 11, 13)), ("imagenet-r", (1, 2, 4))):
        subset = compared_ids(name)
        assert len(set(subset)) == 200
        assert tuple(map(number, subset[:3])) == begin  # as in the authors' masks
    assert compared_ids("imagenet-sketch") == ids
