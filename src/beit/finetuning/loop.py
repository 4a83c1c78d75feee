"""The training loop of fine-tuning (BEiT v2, section 3.2).

The whole network is trained, with lower learning rates for earlier layers. Views are augmented, and
images and labels are mixed in pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from beit.data.order import seed_torch, seeded, step_generator
from beit.finetuning.validation import Validated, validate
from beit.nn.heads import ImageClassifier
from beit.nn.patches import as_float, unchecked
from beit.run.averaging import BestWeights, WeightAverage
from beit.run.journal import Journal
from beit.run.optim import OptimConfig, clip_gradients, set_learning_rate
from beit.run.reading import ImageBatches


class Finetuning(NamedTuple):
    """The built parts of a fine-tuning run.

    Attributes:
        classifier: the unwrapped model
        model: the same, wrapped by Fabric for training
        average: moving average of the weights, validated and kept instead of them; None for none
        best: the best weights so far, part of checkpoints
        keeps_best: keep the weights that are best on the validation set, not the last
        mixer: maps images (B, 3, H, W) in [0, 1] and labels (B,) to mixed images and targets
            (B, Y); None for no mixing
        smoothing: label smoothing without a mixer
        validation: this process's share of the validation set; None without one
        validate_every: steps between two validations
    """

    fabric: Fabric
    classifier: ImageClassifier
    model: _FabricModule
    optimizer: Optimizer
    average: WeightAverage | None
    best: BestWeights
    keeps_best: bool
    mixer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    smoothing: float
    optim: OptimConfig
    seed: int
    validation: ImageBatches | None
    validate_every: int

    @property
    def kept(self) -> ImageClassifier:
        """The model to validate and keep: the average if there is one."""
        model = self.classifier if self.average is None else self.average.model
        assert isinstance(model, ImageClassifier)
        return model


def train(parts: Finetuning, journal: Journal) -> Validated | None:
    """Train from the journal's first step to its last, then load the weights to keep.

    Returns: their validation; None without a validation set
    """
    fabric, model, optimizer, optim = parts.fabric, parts.model, parts.optimizer, parts.optim
    seed, rank, mixer = parts.seed, parts.fabric.global_rank, parts.mixer
    validated: Validated | None = None
    with journal.recording():
        if journal.resumed:  # repeat the validation that follows the checkpoint
            validated = evaluate(parts, journal, validated)
        for step in journal.steps():
            rate = optim.rate(step, journal.steps_per_epoch)
            set_learning_rate(optimizer, rate)
            seed_torch(step_generator(seed, step, f"drop path {rank}"))
            model.train()
            for micro, batch in enumerate(journal.micro_batches()):
                images, targets = batch.images, batch.labels
                if mixer is not None:
                    with seeded(step_generator(seed, step, f"mix {rank} {micro}")):
                        images, targets = mixer(as_float(images), targets)  # targets: (B, Y)
                with fabric.no_backward_sync(model, enabled=micro + 1 < optim.accumulate):
                    with unchecked():
                        logits = model(images).float()  # (B, Y)
                    loss = F.cross_entropy(logits, targets, label_smoothing=parts.smoothing)
                    fabric.backward(loss / optim.accumulate)
                journal.measure({"loss": loss})
                if mixer is None:
                    hits = logits.argmax(dim=1) == targets
                    journal.measure({"accuracy": hits.float().mean()})
            norm = clip_gradients(fabric, model, optimizer, optim.clip)
            kept = journal.keep_if_finite(norm, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            if parts.average is not None and kept:
                parts.average.update(parts.classifier)

            if journal.logs:
                journal.log({"rate": rate}, journal.means.read())
            journal.end_step()
            validated = evaluate(parts, journal, validated)
        if parts.best.step not in (0, journal.last_step):
            parts.kept.load_state_dict(parts.best.weights)
            assert parts.validation is not None
            with journal.aside("validation of the best weights"):
                validated = validate(fabric, parts.kept, journal.read(parts.validation))
    return validated


def evaluate(parts: Finetuning, journal: Journal, validated: Validated | None) -> Validated | None:
    """Validate after a step, at its interval. Returns: the last validation."""
    if parts.validation is None or not journal.at_interval(parts.validate_every):
        return validated
    with journal.aside("validation"):
        validated = validate(parts.fabric, parts.kept, journal.read(parts.validation))
    journal.log_result(validated.metrics)
    if parts.keeps_best:
        parts.best.offer(validated.metrics["val_top1"], journal.step, parts.kept)
    return validated
