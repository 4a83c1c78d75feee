import torch

from beit.data.reader import Reader
from beit.data.sources import open_source
from beit.diagnosis.reading import CUTS, _seconds_of_views


def test_views_are_cut_anew_for_each_time_that_is_measured():
    cut = []

    def view(image, generator):
        cut.append(tuple(image.shape))
        return image[:, :4, :5], image[:, :6, :7]

    reader = Reader(open_source("shapes://3?size=24"), view, ("images", "target_images"), 0)
    images = [torch.zeros(3, 9, 9 + number, dtype=torch.uint8) for number in range(2)]
    seconds, shapes = _seconds_of_views(reader, None, images, 8, on_gpu=False)
    assert cut == [(3, 9, 9), (3, 9, 10)] * (1 + CUTS) and seconds > 0
    assert shapes == [(3, 4, 5), (3, 6, 7)]
