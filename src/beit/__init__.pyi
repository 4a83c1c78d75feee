"""The public names for editors and type checkers; written by tests/test_calls.py."""

# fmt: off
from typing import Any

from beit.calls import resume as resume
from beit.data.opening import open_image as open_image
from beit.result import Result as Result
from beit.weights.file import save as save
from beit.weights.open import load as load
from beit.weights.open import load_backbone as load_backbone
from beit.weights.open import load_tokenizer as load_tokenizer
from beit.weights.teachers import load_teacher as load_teacher

__version__: str

def demo(
    *, data: Any = ..., output: Any = ..., cache: Any = ..., budget: Any = ...,
    max_unreadable: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ...,
    **options: Any
) -> Result:
    """Train, probe and report a small model, in minutes on two CPU cores; options: help(beit.demo)."""

def fetch(
    name: Any = ..., directory: Any = ..., *, output: Any = ..., preset: Any = ...,
    config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Download a public data set: beit fetch cifar10 DIR; options: help(beit.fetch)."""

def doctor(
    data: Any = ..., *, test: Any = ..., output: Any = ..., write: Any = ..., drop: Any = ...,
    near: Any = ..., model: Any = ..., cosine: Any = ..., max_ratio: Any = ...,
    max_unreadable: Any = ..., limit: Any = ..., num_workers: Any = ..., verb: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Find what is wrong with images, the machine or a training, before it runs; options: help(beit.doctor)."""

def pack(
    data: Any = ..., output: Any = ..., *, format: Any = ..., shorter_side: Any = ...,
    quality: Any = ..., shard_megabytes: Any = ..., max_unreadable: Any = ...,
    num_workers: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Write the images of any source to tar or Parquet shards: beit pack SOURCE FOLDER; options: help(beit.pack)."""

def train_tokenizer(
    *, data: Any = ..., view: Any = ..., model: Any = ..., init: Any = ..., freeze: Any = ...,
    teacher: Any = ..., codebook: Any = ..., optim: Any = ..., crop_ratio: Any = ...,
    validate_every: Any = ..., run: Any = ..., device: Any = ..., validation: Any = ...,
    output: Any = ..., budget: Any = ..., kind: Any = ..., preset: Any = ..., config: Any = ...,
    quiet: Any = ..., on_step: Any = ..., **options: Any
) -> Result:
    """Train a visual tokenizer: from a teacher (VQ-KD), or --kind dvae, a discrete VAE; options: help(beit.train_tokenizer)."""

def pretrain(
    *, data: Any = ..., tokenizer: Any = ..., init: Any = ..., target: Any = ..., view: Any = ...,
    model: Any = ..., mask: Any = ..., predict: Any = ..., optim: Any = ..., check: Any = ...,
    crop_ratio: Any = ..., validate_every: Any = ..., run: Any = ..., device: Any = ...,
    validation: Any = ..., output: Any = ..., budget: Any = ..., preset: Any = ...,
    config: Any = ..., quiet: Any = ..., on_step: Any = ..., **options: Any
) -> Result:
    """Train a ViT to predict the tokens of masked patches; options: help(beit.pretrain)."""

def finetune(
    *, data: Any = ..., init: Any = ..., backbone: Any = ..., image_size: Any = ...,
    num_heads: Any = ..., init_classes: Any = ..., carry_classes: Any = ..., classes: Any = ...,
    num_classes: Any = ..., pooling: Any = ..., init_scale: Any = ..., drop_path: Any = ...,
    balance: Any = ..., view: Any = ..., augment: Any = ..., mix: Any = ..., optim: Any = ...,
    layer_decay: Any = ..., average: Any = ..., keep: Any = ..., crop_ratio: Any = ...,
    validate_every: Any = ..., run: Any = ..., device: Any = ..., validation: Any = ...,
    output: Any = ..., budget: Any = ..., model: Any = ..., preset: Any = ..., config: Any = ...,
    quiet: Any = ..., on_step: Any = ..., **options: Any
) -> Result:
    """Fine-tune a pretrained backbone as a classifier; options: help(beit.finetune)."""

def segment(
    *, data: Any = ..., init: Any = ..., backbone: Any = ..., image_size: Any = ...,
    num_heads: Any = ..., mean: Any = ..., std: Any = ..., head: Any = ..., drop_path: Any = ...,
    view: Any = ..., optim: Any = ..., layer_decay: Any = ..., validate_every: Any = ...,
    validation_views: Any = ..., validation_batch: Any = ..., keep: Any = ..., run: Any = ...,
    device: Any = ..., validation: Any = ..., output: Any = ..., budget: Any = ...,
    model: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., on_step: Any = ...,
    **options: Any
) -> Result:
    """Train a semantic segmenter from a pretrained backbone; options: help(beit.segment)."""

def replay(
    run: Any = ..., step: Any = ..., *, float32: Any = ..., preset: Any = ..., config: Any = ...,
    quiet: Any = ..., **options: Any
) -> Result:
    """Compute a skipped step again, and name the first module that was not finite; options: help(beit.replay)."""

def probe(
    *, model: Any = ..., train: Any = ..., test: Any = ..., untrained: Any = ...,
    limit: Any = ..., test_limit: Any = ..., image_size: Any = ..., num_heads: Any = ...,
    crop_ratio: Any = ..., layers: Any = ..., pooling: Any = ..., standardise: Any = ...,
    optimizer: Any = ..., weight_decay: Any = ..., augment: Any = ..., view: Any = ...,
    attentive: Any = ..., attentive_heads: Any = ..., attentive_rates: Any = ...,
    held_out: Any = ..., rates: Any = ..., epochs: Any = ..., batch_size: Any = ...,
    neighbours: Any = ..., seed: Any = ..., output: Any = ..., dtype: Any = ...,
    images_per_batch: Any = ..., num_workers: Any = ..., cache_gigabytes: Any = ...,
    max_unreadable: Any = ..., device: Any = ..., data: Any = ..., preset: Any = ...,
    config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Linear probe and k-NN on frozen features; options: help(beit.probe)."""

def ablate(
    plan: Any = ..., *, output: Any = ..., jobs: Any = ..., set: Any = ..., launcher: Any = ...,
    dry_run: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Run a plan's grid of trainings and tabulate the results; options: help(beit.ablate)."""

def evaluate(
    model: Any = ..., data: Any = ..., *, dataset: Any = ..., output: Any = ...,
    compare: Any = ..., limit: Any = ..., image_size: Any = ..., num_heads: Any = ...,
    crop_ratio: Any = ..., crops: Any = ..., flip: Any = ..., present_only: Any = ...,
    real_labels: Any = ..., corruptions: Any = ..., severities: Any = ..., reference: Any = ...,
    seed: Any = ..., batch_size: Any = ..., num_workers: Any = ..., max_unreadable: Any = ...,
    device: Any = ..., kind: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ...,
    **options: Any
) -> Result:
    """Measure a classifier's accuracy and robustness, or a segmenter's mIoU; options: help(beit.evaluate)."""

def tokenize(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ...,
    image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ..., batch_size: Any = ...,
    part_size: Any = ..., num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Write a table of the codes of images; options: help(beit.tokenize)."""

def embed(
    model: Any = ..., data: Any = ..., *, output: Any = ..., features: Any = ...,
    layer: Any = ..., dtype: Any = ..., limit: Any = ..., image_size: Any = ...,
    num_heads: Any = ..., crop_ratio: Any = ..., batch_size: Any = ..., part_size: Any = ...,
    num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ..., preset: Any = ...,
    config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Write a table of the features of images; options: help(beit.embed)."""

def similar(
    model: Any = ..., photos: Any = ..., *, data: Any = ..., output: Any = ...,
    neighbours: Any = ..., features: Any = ..., index: Any = ..., image_size: Any = ...,
    num_heads: Any = ..., crop_ratio: Any = ..., num_workers: Any = ...,
    max_unreadable: Any = ..., device: Any = ..., preset: Any = ..., config: Any = ...,
    quiet: Any = ..., **options: Any
) -> Result:
    """Find the nearest images of a set: beit similar MODEL PHOTO ... --data FOLDER; options: help(beit.similar)."""

def predict(
    model: Any = ..., data: Any = ..., *, output: Any = ..., picture: Any = ...,
    picture_images: Any = ..., top_k: Any = ..., limit: Any = ..., image_size: Any = ...,
    num_heads: Any = ..., crop_ratio: Any = ..., batch_size: Any = ..., part_size: Any = ...,
    num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ..., kind: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Predict classes, or label maps with a segmenter: beit predict MODEL IMAGE ...; options: help(beit.predict)."""

def visualise_codes(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ..., codes: Any = ...,
    num_codes: Any = ..., per_code: Any = ..., rank_by: Any = ..., min_uses: Any = ...,
    context: Any = ..., layout: Any = ..., explorer: Any = ..., explorer_images: Any = ...,
    seed: Any = ..., image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ...,
    batch_size: Any = ..., num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Show what each code of a tokenizer stands for; options: help(beit.visualise_codes)."""

def visualise_tokens(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ...,
    tokenizer: Any = ..., teacher: Any = ..., mask: Any = ..., seed: Any = ...,
    image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ..., device: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Draw target and predicted tokens: beit visualise tokens MODEL IMAGE ...; options: help(beit.visualise_tokens)."""

def visualise_attention(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ..., points: Any = ...,
    grid: Any = ..., cls: Any = ..., layers: Any = ..., heads: Any = ..., rollout: Any = ...,
    mass: Any = ..., panels: Any = ..., image_size: Any = ..., num_heads: Any = ...,
    crop_ratio: Any = ..., device: Any = ..., preset: Any = ..., config: Any = ...,
    quiet: Any = ..., **options: Any
) -> Result:
    """Draw attention maps: beit visualise attention MODEL IMAGE ...; options: help(beit.visualise_attention)."""

def visualise_features(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ..., patches: Any = ...,
    layer: Any = ..., image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ...,
    device: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Draw features in colours, and similar patches: beit visualise features MODEL IMAGE ...; options: help(beit.visualise_features)."""

def visualise_explorer(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ..., codes: Any = ...,
    num_codes: Any = ..., per_code: Any = ..., rank_by: Any = ..., min_uses: Any = ...,
    context: Any = ..., layout: Any = ..., explorer: Any = ..., explorer_images: Any = ...,
    seed: Any = ..., image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ...,
    batch_size: Any = ..., num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Write a page to browse a codebook; options: help(beit.visualise_explorer)."""

def visualise_embedding(
    model: Any = ..., data: Any = ..., *, output: Any = ..., limit: Any = ...,
    neighbours: Any = ..., clusters: Any = ..., features: Any = ..., index: Any = ...,
    seed: Any = ..., image_size: Any = ..., num_heads: Any = ..., crop_ratio: Any = ...,
    num_workers: Any = ..., max_unreadable: Any = ..., device: Any = ..., preset: Any = ...,
    config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Write a page of a set's map, clusters and neighbours, as a model sees them; options: help(beit.visualise_embedding)."""

def report(
    runs: Any = ..., *, output: Any = ..., metrics: Any = ..., x: Any = ..., log: Any = ...,
    samples: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Compare runs: curves, settings, metrics; options: help(beit.report)."""

def export(
    source: Any = ..., *, output: Any = ..., format: Any = ..., part: Any = ...,
    image_size: Any = ..., num_heads: Any = ..., opset: Any = ..., atol: Any = ...,
    model: Any = ..., preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Export a model: safetensors, published, timm, transformers, ONNX or torch.export; options: help(beit.export)."""

def push(
    source: Any = ..., repository: Any = ..., *, run: Any = ..., probe: Any = ...,
    license: Any = ..., private: Any = ..., dry_run: Any = ..., model: Any = ...,
    preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """Upload a run or an export to the Hugging Face hub: beit push RUN OWNER/NAME; options: help(beit.push)."""

def presets(
    name: Any = ..., *, preset: Any = ..., config: Any = ..., quiet: Any = ..., **options: Any
) -> Result:
    """List the presets, or print one; options: help(beit.presets)."""
