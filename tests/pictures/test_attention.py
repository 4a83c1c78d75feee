from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from beit.data.sources import open_source
from beit.nn.attention_maps import attention_maps, rollout
from beit.nn.vit import VisionTransformer, ViTConfig
from beit.pictures import attention as visualise_attention
from beit.pictures.attention import Config, queries_of, query_attention
from beit.run.device import DeviceConfig
from beit.weights.file import save_weights

CPU = DeviceConfig(accelerator="cpu")
DATA = "shapes://1?size=24"


@pytest.fixture(scope="module")
def backbone(vit: Callable[..., ViTConfig]) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(vit())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, backbone: VisionTransformer) -> str:
    path = tmp_path_factory.mktemp("attention") / "backbone.safetensors"
    save_weights(path, backbone)
    return str(path)


def config(model: str, output: Path, **changes: Any) -> Config:
    return Config(
        **({"model": model, "data": DATA, "output": str(output), "device": CPU} | changes)
    )


def test_figures_and_the_page_for_each_layer_and_query(model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = {"points": ((9, 20),), "cls": False, "heads": (2,), "panels": True, "rollout": True}
    result = visualise_attention.run(config(model, output, **settings))
    assert result == (output / "report.html", 2)
    names = ["image01-layer02-row02-col03", "image01-rollout"]
    for name in names:
        assert (output / f"{name}.png").is_file()
        assert (output / f"{name}.svg").is_file()
    separate = sorted(path.name for path in (output / names[0]).iterdir())
    assert separate == ["attn-head1.png", "img.png", "mask_th0.6_head1.png", "select.png"]
    assert "Attention of patch (2, 3), layer 2 of 2" in result.report.read_text()


def test_query_attention_selects_layers_and_queries(
    backbone: VisionTransformer, tmp_path: Path
) -> None:
    settings = config("m", tmp_path, points=((0, 0), (1, 2), (15, 23)))
    queries = queries_of(settings, backbone.config)
    assert [query.patch for query in queries] == [None, 0, 5]  # two points in one patch
    image = torch.randint(256, (3, 16, 24), dtype=torch.uint8)
    found, rolled = query_attention(backbone, image, queries, [1], with_rollout=True)
    maps = dict(attention_maps(backbone, image[None]))
    assert list(found) == [1]
    torch.testing.assert_close(found[1], maps[1][0][:, [0, 1, 6], 1:])
    torch.testing.assert_close(rolled, rollout(maps.values())[0][[0, 1, 6], 1:])


def test_grid_points_are_evenly_spaced(backbone: VisionTransformer, tmp_path: Path) -> None:
    queries = queries_of(config("m", tmp_path, grid=(2, 3), cls=False), backbone.config)
    assert [query.patch for query in queries] == list(range(6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": ((16, 0),)}, r"point \[16, 0\] is outside .* 16 x 24 .* row in 0..15"),
        ({"points": ((0, -1),)}, r"point \[0, -1\] is outside"),
        ({"layers": (3,)}, "layers has 3, but there is no such block: the model has 1 to 2"),
        ({"heads": (0,)}, "heads has 0, but there is no such head: the model has 1 to 3"),
        ({"image_size": (4, 24)}, r"image size \(4, 24\) is not a multiple of patch size 8"),
    ],
)
def test_missing_points_layers_and_heads_are_refused_and_nothing_is_written(
    model: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        visualise_attention.run(config(model, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_nothing_to_draw_and_an_existing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw: give points or grid"):
        config("m", tmp_path, cls=False)
    with pytest.raises(ValueError, match=r"mass is 0.0"):
        config("m", tmp_path, mass=0.0)
    (tmp_path / "kept.txt").touch()
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        visualise_attention.run(config("m", tmp_path))


def test_small_and_unreadable_images_are_listed_and_odd_names_are_text(
    model: str, tmp_path: Path
) -> None:
    odd = tmp_path / "<img src=x onerror=alert(1)>\"'&字.png"
    pixels = open_source(DATA).image(0).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(odd)
    tiny, broken = tmp_path / "tiny<b>.png", tmp_path / "broken.png"
    Image.fromarray(pixels[:7]).save(tiny)
    broken.write_bytes(b"no")
    files = [str(tiny), str(broken)]
    with pytest.raises(ValueError, match=r"none of 2 images .* 7 x 24 pixels, smaller"):
        visualise_attention.run(config(model, tmp_path / "none", data=files))
    assert not (tmp_path / "none").exists()
    settings = {"data": [*files, str(odd)], "heads": (1,), "image_size": (24, 24)}
    report = visualise_attention.run(config(model, tmp_path / "out", **settings)).report
    page = report.read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "字" in page
    assert "<b>" not in page
    assert "smaller than a patch" in page
    assert "cannot be read" in page
