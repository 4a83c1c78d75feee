"""The verbs of the command `beit`: a static table that imports none of their modules."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """One verb: the module with its Config and run, and how it is called."""

    module: str
    help: str
    positional: tuple[str, ...] = ()  # options given by position too; a last NAME+ is a list
    resumable: bool = False  # it trains, and takes `--resume RUN`
    options: tuple[str, ...] = ()  # put before the options of the caller
    kinds: Mapping[str, str] = field(default_factory=dict)  # modules by `--kind`; `module` is first
    segmenter_kind: str = ""  # the kind for a segmenter if no `--kind` is given
    # Options under the same name in every verb, by the field of this verb's Config.
    spellings: Mapping[str, str] = field(default_factory=dict)


TRAINING = {
    "data": "data.train",
    "validation": "data.validation",
    "output": "run.output",
    "budget": "run.budget",
}
FROM_MODEL = {**TRAINING, "model": "init"}

VERBS = {
    "demo": Verb(
        "beit.demonstration.demo",
        "train, probe and report a small model, in minutes on two CPU cores",
    ),
    "fetch": Verb(
        "beit.fetching.fetch",
        "download a public data set: beit fetch cifar10 DIR",
        ("name", "directory"),
        spellings={"output": "directory"},
    ),
    "doctor": Verb(
        "beit.diagnosis.doctor",
        "find what is wrong with images, the machine or a training, before it runs",
        ("data",),
    ),
    "pack": Verb(
        "beit.packing.pack",
        "write the images of any source to tar or Parquet shards: beit pack SOURCE FOLDER",
        ("data", "output"),
    ),
    "train-tokenizer": Verb(
        "beit.tokenizer.vqkd",
        "train a visual tokenizer: from a teacher (VQ-KD), or --kind dvae, a discrete VAE",
        resumable=True,
        kinds={"vqkd": "beit.tokenizer.vqkd", "dvae": "beit.tokenizer.dvae"},
        spellings=TRAINING,
    ),
    "pretrain": Verb(
        "beit.pretraining.pretrain",
        "train a ViT to predict the tokens of masked patches",
        resumable=True,
        spellings=TRAINING,
    ),
    "finetune": Verb(
        "beit.finetuning.finetune",
        "fine-tune a pretrained backbone as a classifier",
        resumable=True,
        spellings=FROM_MODEL,
    ),
    "segment": Verb(
        "beit.segmentation.segment",
        "train a semantic segmenter from a pretrained backbone",
        resumable=True,
        spellings=FROM_MODEL,
    ),
    "replay": Verb(
        "beit.replaying.replay",
        "compute a skipped step again, and name the first module that was not finite",
        ("run", "step"),
    ),
    "probe": Verb(
        "beit.probing.probe",
        "linear probe and k-NN on frozen features",
        spellings={"data": "train"},
    ),
    "ablate": Verb(
        "beit.comparison.ablate",
        "run a plan's grid of trainings and tabulate the results",
        ("plan",),
    ),
    "evaluate": Verb(
        "beit.evaluation.evaluate",
        "measure a classifier's accuracy and robustness, or a segmenter's mIoU",
        ("model", "data"),
        kinds={"classes": "beit.evaluation.evaluate", "maps": "beit.segmentation.evaluate"},
        segmenter_kind="maps",
    ),
    "tokenize": Verb(
        "beit.tables.tokenize", "write a table of the codes of images", ("model", "data")
    ),
    "embed": Verb(
        "beit.tables.embed", "write a table of the features of images", ("model", "data")
    ),
    "similar": Verb(
        "beit.similarity.similar",
        "find the nearest images of a set: beit similar MODEL PHOTO ... --data FOLDER",
        ("model", "photos+"),
    ),
    "predict": Verb(
        "beit.tables.predict",
        "predict classes, or label maps with a segmenter: beit predict MODEL IMAGE ...",
        ("model", "data+"),
        kinds={"classes": "beit.tables.predict", "maps": "beit.segmentation.predict"},
        segmenter_kind="maps",
    ),
    "visualise codes": Verb(
        "beit.codebook.visualise",
        "show what each code of a tokenizer stands for",
        ("model", "data"),
    ),
    "visualise tokens": Verb(
        "beit.pictures.tokens",
        "draw target and predicted tokens: beit visualise tokens MODEL IMAGE ...",
        ("model", "data+"),
    ),
    "visualise attention": Verb(
        "beit.pictures.attention",
        "draw attention maps: beit visualise attention MODEL IMAGE ...",
        ("model", "data+"),
    ),
    "visualise features": Verb(
        "beit.pictures.features",
        "draw features in colours, and similar patches: beit visualise features MODEL IMAGE ...",
        ("model", "data+"),
    ),
    "visualise explorer": Verb(
        "beit.codebook.visualise",
        "write a page to browse a codebook",
        ("model", "data"),
        options=("--explorer=true",),
    ),
    "visualise embedding": Verb(
        "beit.similarity.embedding",
        "write a page of a set's map, clusters and neighbours, as a model sees them",
        ("model", "data"),
    ),
    "report": Verb("beit.comparison.report", "compare runs: curves, settings, metrics", ("runs+",)),
    "export": Verb(
        "beit.exporting.export",
        "export a model: safetensors, published, timm, transformers, ONNX or torch.export",
        ("source",),
        spellings={"model": "source"},
    ),
    "push": Verb(
        "beit.exporting.push",
        "upload a run or an export to the Hugging Face hub: beit push RUN OWNER/NAME",
        ("source", "repository"),
        spellings={"model": "source"},
    ),
    "presets": Verb("beit.command.presets", "list the presets, or print one", ("name",)),
}
