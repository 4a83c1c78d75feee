from typing import Any

import torch
from torch import nn

import beit
from beit.rows.compute import about_table, fingerprint
from beit.run.device import DeviceConfig, launch
from beit.tables.tokenize import Config


def test_facts_common_to_all_tables_frame_those_of_the_verb() -> None:
    device = DeviceConfig(accelerator="cpu")
    config = Config("m.safetensors", "images", "t.npz", limit=7, crop_ratio=0.9, device=device)
    model = nn.Linear(3, 2)
    about: dict[str, Any] = about_table(
        "tokenize", config, model, launch(device), {"grid": (2, 3), "num_heads": None}
    )
    assert list(about.items()) == [
        ("beit", beit.__version__),
        ("verb", "tokenize"),
        ("model", "m.safetensors"),
        ("kind", "Linear"),
        ("weights", fingerprint(model)),
        ("grid", (2, 3)),
        ("num_heads", None),
        ("crop_ratio", 0.9),
        ("data", "images"),
        ("limit", 7),
        ("device", "cpu"),
        ("precision", "32-true"),
        ("compile", False),
    ]


def test_fingerprint_depends_on_the_weights_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # with a counter of no dimension
    twin = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert fingerprint(model) != fingerprint(twin)
    twin.load_state_dict(model.state_dict())
    assert fingerprint(model) == fingerprint(twin)
    assert len(fingerprint(model)) == 16
    with torch.no_grad():
        twin[0].bias[1].add_(1e-7)
    assert fingerprint(model) != fingerprint(twin)
