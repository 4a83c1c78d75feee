"""The module that runs a verb; for a verb of several kinds the kind, or the model, decides."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from beit.command import presets
from beit.command.messages import did_you_mean
from beit.command.options import Layer, name_positionals, read_layers, take
from beit.command.verbs import VERBS


def find_module(verb: str, arguments: Sequence[str]) -> str:
    """Name the module for a command line.

    The kind is that of `--kind`, else of the files, else of the preset. If none of them has one,
    some verbs look at the model: a segmenter or not.
    """
    entry = VERBS[verb]
    if not entry.kinds:
        return entry.module
    layers, options = read_layers(verb, arguments)
    kinds, options = take(options, "--kind")
    layers += [Layer("--kind", {"kind": kind}) for kind in kinds]
    if entry.segmenter_kind and not any("kind" in layer.values for layer in layers):
        models = [layer.values["model"] for layer in layers if "model" in layer.values]
        models += take(name_positionals(verb, options), "--model")[0]
        if models:
            from beit.weights.open import holds_segmenter  # imports torch

            if holds_segmenter(str(models[-1])):
                return entry.kinds[entry.segmenter_kind]
    return _module_of_kind(verb, layers)


def module_of_run(verb: str, run: Path) -> str:
    """Name the module that made a run, by the kind in its config.yaml."""
    if verb not in VERBS or not VERBS[verb].resumable:
        raise ValueError(f"{run} is a run of beit {verb}, expected a training")
    file = run / "config.yaml"
    if not VERBS[verb].kinds or not file.is_file():
        return VERBS[verb].module
    return _module_of_kind(verb, [Layer(str(run), presets.read_yaml(file))])


def run_to_resume(arguments: Iterable[str]) -> tuple[str, bool, list[str]] | None:
    """Read `--resume RUN [--accept_changed_data BOOL]`.

    Returns: RUN; whether its images may differ; the other options, which only RUN auto may have.
        None without `--resume`
    """
    runs, rest = take(arguments, "--resume")
    if not runs or "--help" in rest or "-h" in rest:
        return None
    values, rest = take(rest, "--accept_changed_data")
    if unknown := set(values) - {"true", "false"}:
        raise ValueError(f"--accept_changed_data is {unknown.pop()!r}; expected true or false")
    if (rest and runs != ["auto"]) or len(runs) > 1:
        raise ValueError(
            f"--resume takes no other option, got {' '.join(rest) or 'a second --resume'}: a run "
            "resumes with the config.yaml in its directory; start a new run to change settings"
        )
    return runs[0], values[-1:] == ["true"], rest


def _module_of_kind(verb: str, layers: Iterable[Layer]) -> str:
    kinds, module = VERBS[verb].kinds, VERBS[verb].module
    for source, values in layers:  # the last one decides
        if "kind" in values:
            kind, known = values["kind"], ", ".join(kinds)
            if not isinstance(kind, str) or kind not in kinds:
                hint = did_you_mean(str(kind), kinds)
                raise ValueError(f"{source}: unknown kind {kind!r}, expected one of {known}{hint}")
            module = kinds[kind]
    return module
