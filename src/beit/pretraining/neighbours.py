"""The k-NN check of the backbone's features during pretraining."""

import torch
from lightning_fabric import Fabric

from beit.nn.metrics import knn_accuracy
from beit.nn.vit import VisionTransformer
from beit.run.reading import Reading


@torch.no_grad()
def knn_check(
    fabric: Fabric, backbone: VisionTransformer, train: Reading, test: Reading
) -> dict[str, float]:
    """Classify test images by their nearest training images, by [CLS] and by the mean patch.

    Returns: `knn_cls`, `knn_mean`, and `knn_images`, the number read, if some cannot be read
    """
    backbone.eval()
    features = []
    for reading in (train, test):
        cls, mean, labels = [], [], []
        for batch in reading:
            with fabric.autocast():
                output = backbone(batch.images)
            cls.append(output.cls.float())
            mean.append(output.patches.float().mean(dim=1))
            labels.append(batch.labels)
        if not labels:
            raise ValueError("no image of the k-NN check can be read; repair or replace them")
        features.append((torch.cat(cls), torch.cat(mean), torch.cat(labels)))
    (cls_train, mean_train, train_labels), (cls_test, mean_test, test_labels) = features
    accuracies = {
        "knn_cls": knn_accuracy(cls_train, train_labels, cls_test, test_labels),
        "knn_mean": knn_accuracy(mean_train, train_labels, mean_test, test_labels),
    }
    return accuracies | ({"knn_images": len(test_labels)} if test.unreadable else {})
