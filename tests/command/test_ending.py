"""Every verb ends with what it made, the figure that matters, and what to type next."""

import gzip
import json
import shlex
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from beit import cli
from beit.command.ending import Ending, again, beside, run_facts, show, whole, words
from beit.command.modules import find_module
from beit.command.options import parse
from beit.command.verbs import VERBS
from beit.comparison import ablate
from beit.demonstration import demo
from beit.demonstration.sets import Sets
from beit.probing import probe
from beit.run.directory import RunDirectory
from beit.similarity.similar import Neighbour
from beit.tables import embed
from beit.tokenizer import vqkd

RUN = Path("runs/mine")
TRAINED = {"directory": RUN, "metrics": {}, "sections": []}
COLLAPSED = {**TRAINED, "metrics": {"val_usage": 0.01, "val_perplexity": 9.0, "val_choices": 1e4}}
POOR = {
    **TRAINED,
    "metrics": {
        "val_usage": 0.5,
        "val_perplexity": 9.0,
        "val_choices": 10.0,
        "val_reconstruction": 0.9,
        "val_constant": 0.6,
    },
}
EVALUATED = {"figures": {"top1": 0.5, "miou": 0.25}, "images": {"evaluated": 2000}}
CHECKED = {"failures": [], "figures": {}, "report": None}
ROW = {"features": "cls", "linear": 0.5321, "knn": 0.4}
PROBED = {"rows": [ROW], "images": 12, "chance": 5 / 12}

# By verb: options, fields of the result, a part of what is printed.
CASES = [
    ("fetch", "cifar10 d", {"train": Path("d/train.parquet"), "test": Path("d/test.parquet")}, "d"),
    ("doctor", "", CHECKED, "nothing must be mended"),
    ("doctor", "photos", {**CHECKED, "figures": {"images": 9.0, "near": 2.0}}, "9 images; 2 near"),
    ("doctor", "p --write o.txt", {**CHECKED, "figures": {"images": 9.0}}, "o.txt"),
    ("doctor", "photos --output o", {**CHECKED, "report": Path("o/report.html")}, "o/report.html"),
    (
        "pack",
        "photos shards",
        {
            "directory": Path("shards"),
            "unreadable": 0,
            "shards": 3,
            "bytes": 2_500_000,
            "sets": {"images": 3000},
        },
        "3,000 images, 2.5 MB, all read back and compared",
    ),
    ("train-tokenizer", "--data photos --output runs/mine", TRAINED, "96.9% of the codes"),
    ("train-tokenizer", "--data photos --output runs/mine", COLLAPSED, "a collapsed codebook"),
    ("train-tokenizer", "--data photos --output runs/mine", POOR, "worse than a constant does"),
    ("train-tokenizer", "--kind dvae --data photos --output runs/mine", TRAINED, "96.9%"),
    ("pretrain", "--data 'my photos' --output runs/mine", TRAINED, "28.0% of the hidden"),
    (
        "pretrain",
        "--data p --validation q --check.every 1",
        TRAINED,
        "k-NN accuracy 41.0%, 30.0% at the start",
    ),
    ("finetune", "--data p --model m", TRAINED, "training loss 0.5"),
    (
        "finetune",
        "--data p --validation q --model m",
        {**TRAINED, "metrics": {"val_top1": 0.0}},
        "0.0%",
    ),
    (
        "finetune",
        "--data p --validation q --model m",
        {**TRAINED, "metrics": {"val_top1": 0.5, "val_images": 24.0, "val_unreadable": 1.0}},
        "50.0% on 24 validation images",
    ),
    (
        "finetune",
        "--data p --validation q --model m --data.shrink true",
        {**TRAINED, "metrics": {"val_top1": 0.5}},
        "50.0% on 2 validation images, read shrunk; evaluate reads them whole, and may differ",
    ),
    ("segment", "--data p --model m", TRAINED, "training loss 0.5"),
    (
        "segment",
        "--data p --validation q --model m",
        {**TRAINED, "metrics": {"val_miou": 0.3}},
        "mIoU 30.0%",
    ),
    (
        "probe",
        "--model runs/mine --data p --test q",
        PROBED,
        "53.2% (cls), k-NN 40.0% (cls) of 12 test images; chance 41.7%",
    ),
    ("probe", "--model teacher:x --data p --test q --output o", PROBED, "o/report.html"),
    ("ablate", "plan.yaml", {"directory": Path("o"), "table": SimpleNamespace(rows=[1])}, "1 rows"),
    ("evaluate", "--model m --data p --output o", {"record": EVALUATED}, "50.0% on 2,000 images"),
    ("evaluate", "--kind maps --model m --data p", {"record": EVALUATED}, "mIoU 25.0%"),
    ("evaluate", "--compare [a,b]", {"record": {"a": {"top1": 0.1}, "b": {"top1": 0.2}}}, "of b"),
    ("tokenize", "--model m --data p --output o.parquet", {"rows": 3000}, "3,000 images"),
    ("embed", "--model m --data p --output o.parquet", {"rows": 3000}, "o.parquet"),
    ("predict", "m a --output o.parquet --picture p.png", {"rows": 2, "labelled": 0}, "p.png"),
    ("predict", "m p --kind maps --output o", {"directory": Path("o"), "images": 2}, "o/maps"),
    (
        "visualise codes",
        "m p --output o",
        {"directory": Path("o"), "codes": 5, "vocab_size": 8, "images": 9},
        "5 of 8 codes",
    ),
    (
        "visualise explorer",
        "m p --output o",
        {"directory": Path("o"), "codes": 5, "vocab_size": 8, "images": 9},
        "o/explorer.html",
    ),
    ("visualise tokens", "m a --output o", {"report": Path("o/r.html"), "images": 6}, "o/r.html"),
    (
        "similar",
        "m a.jpg --data d --output near.png",
        {"picture": Path("near.png"), "neighbours": {"a.jpg": [Neighbour("b.jpg", 0.91, "")]}},
        "nearest b.jpg, cosine 0.910",
    ),
    (
        "visualise embedding",
        "m d --output map.html",
        {"page": Path("map.html"), "images": 9, "agreement": 0.5, "chance": 0.1},
        "50.0% of their 8 nearest have the same label (chance 10.0%)",
    ),
    ("visualise attention", "m a --output o", {"report": Path("o/r.html"), "figures": 6}, "6 fig"),
    (
        "report",
        "runs/mine",
        {"report": Path("r.html"), "markdown": Path("r.md"), "curves": 3},
        "r.html and r.md",
    ),
    (
        "export",
        "m --output o --format timm",
        {
            "output": Path("o"),
            "figures": {"largest_difference": 1e-6},
            "opened_by": 'timm.create_model("local-dir:o")',
        },
        "1.0e-06",
    ),
    (
        "visualise features",
        "runs/mine a.png --output o",
        {"images": 1, "report": Path("r.html")},
        "1 image",
    ),
    (
        "replay",
        "runs/mine 3",
        {
            "step": 3,
            "precision": "bf16-mixed",
            "fault": "the loss is nan",
            "first": SimpleNamespace(where="output of blocks.1"),
            "images": ["a.png"],
        },
        "the loss is nan; computed again: first in the output of blocks.1, of a.png",
    ),
    (
        "push",
        "m a/b --dry_run",
        {"card": Path("m/README.md"), "files": {}, "address": None},
        "nothing was pushed",
    ),
    (
        "push",
        "m a/b",
        {"card": Path("m"), "files": {}, "address": "hub.example/a/b"},
        "hub.example",
    ),
    (
        "demo",
        "",
        {
            "report": Path("runs/demo/report.html"),
            "commands": demo.next_commands(RUN, Sets("my photos", "q"), classified=True),
            "gain": "gain by pretraining, linear probe +4.8 points (85.7% of 21 images right)",
        },
        "+4.8 points (85.7% of 21 images right)",
    ),
]


def test_every_verb_that_makes_something_has_an_ending():
    assert {verb for verb, *_ in CASES} == VERBS.keys() - {"presets"}


def test_the_tokenizer_of_a_probed_teacher_sees_images_of_the_same_size():
    config = probe.Config("teacher:x", train="p", test="q", image_size=96)
    ending = probe.ending(config, SimpleNamespace(**PROBED))
    assert ending.then[:3] == ["embed", "teacher:x", "p"]
    for then, option in ((ending.then, "--image_size"), (*ending.others, "--teacher.image_size")):
        assert then[then.index(option) + 1] == "96"


@pytest.mark.parametrize(("verb", "options", "result", "part"), CASES, ids=lambda value: str(value))
def test_the_next_command_is_one_that_parses(
    verb, options, result, part, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("beit.command.options.following_data", lambda *_: [])  # there are no data
    RUN.mkdir(parents=True)
    log = {"step": 9, "loss": 0.5, "accuracy": 0.28}
    log |= {"usage": 0.96875, "perplexity": 4000.0, "choices": 1e6}
    log |= {"knn_cls": 0.41, "knn_mean": 0.39}
    start = {"step": 0, "knn_cls": 0.3, "knn_mean": 0.3}
    (RUN / "metrics.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(log) + "\n")
    if "shrink" in options:
        lists = {"data.validation": {"images": "a.jpg\nb.jpg", "classes": []}}
        (RUN / "images.json.gz").write_bytes(gzip.compress(json.dumps(lists).encode()))
    arguments = shlex.split(options)
    module = import_module(find_module(verb, arguments))
    config = parse(verb, module.Config, arguments)
    show(module.ending(config, SimpleNamespace(**result)))
    made, figure, *commands = capsys.readouterr().out.splitlines()
    assert (made[:8], figure[:8]) == ("made    ", "figure  ")
    assert part in f"{made} {figure}"
    assert len(commands) == (3 if verb == "demo" else 2 if "teacher:x" in options else 1)
    for then in commands:
        assert then[:8] == "next    "
        first, *command = shlex.split(then.removeprefix("next"))
        if first == "python":
            continue
        assert first == "beit"
        if "--resume" in command:  # which needs the run: of a tokenizer that is not good enough
            longer = f"--optim.epochs {4 * config.optim.epochs:g}"
            assert result in (COLLAPSED, POOR)
            assert shlex.join(command) == f"train-tokenizer --resume runs/mine {longer}"
            continue
        with pytest.raises(SystemExit) as ended:
            assert cli.main([*command, "--print_config"]) == 0, capsys.readouterr().err
        assert ended.value.code == 0


def test_a_dry_run_is_followed_by_the_same_ablation():
    said = ["p.yaml", "--output", "o", "--jobs", "2", "--launcher", "torchrun -m beit"]
    config = parse("ablate", ablate.Config, [*said, "--set", "{probe.limit: 4}", "--dry_run"])
    result = SimpleNamespace(directory=Path("o"), table=SimpleNamespace(rows=[]))
    then = ablate.ending(config, result).then
    assert parse("ablate", ablate.Config, list(then)[1:]) == replace(config, dry_run=False)


def test_the_paths_are_the_users_and_the_next_output_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/pretrained").mkdir(parents=True)
    assert beside("runs/tok", "pretrained") == "runs/pretrained-2"
    assert beside("runs/tok", "codes") == "runs/codes"
    assert words("embed", "x", ["a", "b"], data="", limit=None, output=Path("o")) == [
        *("embed", "x", "a", "b", "--output", "o")
    ]


def test_what_follows_a_held_out_part_is_for_all_images(tmp_path):
    assert whole("my photos[:90%]", "my photos[90%:]") == "my photos"
    assert whole("photos[:90%]", "others[90%:]") == "photos[:90%]"
    assert whole("photos[:90%]", "photos[80%:]") == "photos[:90%]"
    assert whole("photos", "") == "photos"
    data = ["--data", "photos[:90%]", "--validation", "photos[90%:]", "--output", "runs/tok"]
    config = parse("train-tokenizer", vqkd.Config, ["--preset", "shapes-tiny", *data])
    (tmp_path / "metrics.jsonl").touch()
    for budget in ({"budget": "10m"}, {"fitted_to": "10m"}):
        told = replace(config, run=replace(config.run, **budget))
        then = vqkd.ending(told, SimpleNamespace(directory=tmp_path, metrics={"loss": 1.0})).then
        assert list(then)[1:3] == ["--data", "photos"] and "--validation" not in then
        assert list(then)[-2:] == ["--budget", "10m"]


@pytest.mark.parametrize(
    ("output", "images"), [("f.parquet", "f.parquet"), ("f.npz", "f.npz"), ("f.csv", "p")]
)
def test_a_page_follows_a_table_that_it_can_read(output, images):
    config = parse("embed", embed.Config, ["--model=m", "--data=p", f"--output={output}"])
    then = embed.ending(config, SimpleNamespace(rows=3)).then
    assert list(then)[:4] == ["visualise", "embedding", "m", images]


def test_the_next_command_continues_the_preset(capsys):
    ending = Ending("x", "y", words("pretrain", data="my photos"))
    show(ending, ["demo", "beit1-dvae"])
    assert capsys.readouterr().out.endswith(
        "next    beit pretrain --preset=demo --data 'my photos'\n"
    )
    show(Ending("x", "y", words("pretrain", resume="runs/mine")), ["demo"])  # it has its preset
    assert capsys.readouterr().out.endswith("next    beit pretrain --resume runs/mine\n")


@pytest.mark.parametrize(("name", "rank"), [("RANK", "1"), ("LOCAL_RANK", "1")])
def test_other_processes_and_piped_data_have_no_ending(name, rank, monkeypatch, capsys):
    show(None)
    monkeypatch.setenv(name, rank)
    show(Ending("x", "y", words("embed")))
    assert capsys.readouterr().out == ""
    predict = import_module("beit.tables.predict")
    assert predict.ending(predict.Config("m", "d"), SimpleNamespace(rows=3)) is None


def test_the_command_in_a_report_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_module("beit.pretraining.pretrain")
    Path("none.yaml").write_text("{}")  # with a file, settings do not follow the data
    words = ["--config=none.yaml", "--data=p q", "--output=runs/my run"]
    config = parse("pretrain", module.Config, words)
    run = RunDirectory.create("runs/my run", asdict(config), {"verb": "pretrain"})
    beit, verb, *options = shlex.split(again("pretrain", run.path))
    assert (beit, verb) == ("beit", "pretrain")
    repeated = parse("pretrain", module.Config, options)
    assert repeated == replace(config, run=replace(config.run, output="runs/my run-again"))
    RunDirectory.check_new(repeated.run.output)


def test_a_report_says_how_long_a_run_was_and_what_was_chosen():
    data = ["--data", "photos[:90%]", "--validation", "photos[90%:]", "--output", "runs/tok"]
    config = parse("train-tokenizer", vqkd.Config, ["--preset", "shapes-tiny", *data])
    run = replace(config.run, fitted_to="10m", chosen=("96 pixels: as usual", "30 epochs"))
    facts = run_facts("train-tokenizer", Path("runs/tok"), replace(config, run=run))
    batch = config.optim.batch_size
    assert facts["length"] == f"{config.optim.epochs:g} epochs, batches of {batch}; budget 10m"
    assert facts["held out for validation"] == "photos[90%:]"
    assert facts["chosen"] == "96 pixels: as usual; 30 epochs"
    single = replace(config, optim=replace(config.optim, epochs=1.0, warmup_epochs=0.0))
    length = run_facts("train-tokenizer", Path("runs/tok"), single)["length"]
    assert length == f"1 epoch, batches of {batch}"
