"""Plans of ablations: the cells of a table, each a chain of stages (format: docs/ablations.md).

This module checks a plan's structure; the verbs check the fields of its stages.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from beit.command.messages import did_you_mean
from beit.command.verbs import VERBS
from beit.run import settings

# Verbs that measure a model, and are not resumed; the file with their figures.
MEASURES = {"probe": "probe.json", "evaluate": "evaluate.json"}
STAGE_VERBS = [name for name, verb in VERBS.items() if verb.resumable or name in MEASURES]
FIELDS = ("title", "text", "seeds", "stages", "cells", "grid", "figures", "reference", "paper")
REFERENCE = "$"  # $NAME stands for the run directory of an earlier stage


@dataclass(frozen=True)
class Stage:
    """One command of the chain."""

    name: str  # in the plan
    verb: str  # `beit VERB`
    preset: str | None  # to start from; None for the verb's defaults
    fields: Mapping[str, Any]  # values of the verb's options, by dotted name

    @property
    def references(self) -> dict[str, str]:
        """Options that take the run directory of an earlier stage, and that stage's name."""
        return {
            option: value.removeprefix(REFERENCE)
            for option, value in self.fields.items()
            if isinstance(value, str) and value.startswith(REFERENCE)
        }


class Plan(NamedTuple):
    """The content of a plan."""

    source: str  # its file, for errors
    title: str  # of the table
    text: str  # paragraphs under the title
    seeds: tuple[int, ...]  # of the runs of every cell
    cells: Mapping[str, Sequence[Stage]]  # rows of the table by name: their stages in order
    columns: Mapping[str, tuple[str, str]]  # stage and metric of each column, by its title
    reference: str  # cell with which the others are compared; empty for none
    paper: Mapping[str, Mapping[str, str]]  # published results by cell, then by column or any name


def unfold(content: Mapping[str, Any], source: str, changes: Mapping[str, Any]) -> Plan:
    """Check the structure of a plan, the content of the file `source`, and unfold its cells.

    Args:
        changes: values that replace those of the plan's stages, by `stage.field`; fields that a
            cell sets keep the cell's values

    Raises:
        ValueError: a field, stage or verb is unknown, or a value does not fit.
    """
    _refuse_unknown(content, FIELDS, source)
    if not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise ValueError(f"{source} has no stages; expected a mapping of names to settings")
    stages = {name: _stage(name, values, source) for name, values in content["stages"].items()}
    if changes:
        stages = {stage.name: stage for stage in _changed(stages, changes, f"{source}, --set")}
    cells = {}
    for name, parts in _rows(content, source).items():
        where = f"{source}, cell {name!r}"
        if not isinstance(parts, dict | None):
            raise ValueError(f"{where}: expected fields of stages, got {parts!r}")
        cells[name] = _changed(stages, parts or {}, where)
        _check_references(cells[name], stages, where)
    return Plan(
        source,
        str(content.get("title", source)),
        str(content.get("text", "")),
        _seeds(content.get("seeds", [0]), source),
        cells,
        _columns(content, stages, source),
        _reference(content, cells, source),
        _paper(content, list(cells), source),
    )


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten settings to dotted names, without empty groups; names may be dotted already."""
    return {name: value for name, value in settings.flat(nested).items() if value != {}}


def _columns(
    content: Mapping[str, Any], stages: Iterable[str], source: str
) -> dict[str, tuple[str, str]]:
    columns = {}
    for title, place in _mapping(content, "figures", source).items():
        stage, _, metric = str(place).partition(".")
        if stage not in stages or not metric:
            got = f"{place!r}{did_you_mean(stage, stages)}"
            raise ValueError(f"{source}, figure {title!r}: expected STAGE.FIGURE, got {got}")
        columns[str(title)] = (stage, metric)
    if not columns:
        raise ValueError(f"{source} has no figures; expected a mapping of titles to STAGE.FIGURE")
    return columns


def _rows(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the listed cells by name, or every combination of values of the grid's axes."""
    if ("cells" in content) == ("grid" in content):
        which = "neither" if "cells" not in content else "both"
        raise ValueError(f"{source}: expected cells or a grid, got {which}")
    if "cells" in content:
        cells = _mapping(content, "cells", source)
        if not cells:
            raise ValueError(f"{source} has no cells")
        return {str(name): parts for name, parts in cells.items()}
    axes: list[list[tuple[str, Mapping[str, Any]]]] = []
    for axis, values in _mapping(content, "grid", source).items():
        where = f"{source}, grid axis {axis!r}"
        if not isinstance(values, list | dict) or not values:
            expected = "expected a list of values or a mapping of names to fields"
            raise ValueError(f"{where}: {expected}, got {values!r}")
        if isinstance(values, list):  # of one field, which names the axis
            short = axis.rpartition(".")[2]
            axes.append([(f"{short} {value}", {axis: value}) for value in values])
        else:
            _refuse_words(values, where)
            if wrong := [parts for parts in values.values() if not isinstance(parts, dict | None)]:
                raise ValueError(f"{where}: expected fields of stages, got {wrong[0]!r}")
            axes.append([(str(name), flat(parts or {})) for name, parts in values.items()])
    rows: dict[str, Any] = {}
    for chosen in product(*axes):
        name = ", ".join(name for name, _ in chosen)
        rows[name] = {field: value for _, fields in chosen for field, value in fields.items()}
    return rows


def _stage(name: str, values: Any, source: str) -> Stage:
    where = f"{source}, stage {name!r}"
    if not isinstance(values, dict | None) or "." in name:
        raise ValueError(f"{where}: expected a name without a dot, and fields, got {values!r}")
    fields = flat(values or {})
    verb = fields.pop("verb", name)
    if verb not in STAGE_VERBS:
        hint = f"{did_you_mean(str(verb), STAGE_VERBS)} A stage is one of: {', '.join(STAGE_VERBS)}"
        raise ValueError(f"{where}: unknown verb {verb!r}{hint}")
    return Stage(name, verb, fields.pop("preset", None), fields)


def _changed(stages: Mapping[str, Stage], changes: Mapping[str, Any], where: str) -> list[Stage]:
    """Return the stages with changed fields; a stage set to null is left out."""
    changed = dict(stages)
    for place, value in flat(changes).items():
        name, _, field = place.partition(".")
        if name not in stages:
            raise ValueError(f"{where}: unknown stage {name!r}{did_you_mean(name, stages)}")
        if not field and value is not None:
            expected = f"expected fields of stage {name!r}, or null to leave it out"
            raise ValueError(f"{where}: {expected}, got {value!r}")
        if field == "verb":
            raise ValueError(f"{where}: the verb of stage {name!r} cannot be changed")
        stage = changed[name]
        if field == "preset":
            changed[name] = replace(stage, preset=value)
        elif field:
            changed[name] = replace(stage, fields={**stage.fields, field: value})
    left_out = {name for name, value in flat(changes).items() if value is None}
    return [stage for name, stage in changed.items() if name not in left_out]


def _check_references(cell: Iterable[Stage], stages: Iterable[str], where: str) -> None:
    earlier: list[str] = []
    for stage in cell:
        for option, target in stage.references.items():
            if target not in earlier:
                hint = did_you_mean(target, earlier)
                if target in stages:
                    hint = "; this cell leaves it out, or it comes later."
                got = f"{option} is {REFERENCE}{target}, expected an earlier stage{hint}"
                raise ValueError(f"{where}, stage {stage.name!r}: {got}")
        earlier.append(stage.name)


def _seeds(seeds: Any, source: str) -> tuple[int, ...]:
    fits = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not fits or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{source}: seeds is {seeds!r}, expected a list of different numbers")
    return tuple(seeds)


def _reference(content: Mapping[str, Any], cells: Iterable[str], source: str) -> str:
    name = str(content.get("reference", ""))
    if name and name not in cells:
        hint = did_you_mean(name, cells)
        raise ValueError(f"{source}: reference is {name!r}, expected the name of a cell{hint}")
    return name


def _paper(
    content: Mapping[str, Any], cells: Sequence[str], source: str
) -> dict[str, dict[str, str]]:
    results = _mapping(content, "paper", source)
    _refuse_unknown(results, cells, f"{source}, paper", "cell")
    paper = {}
    for cell, columns in results.items():
        if not isinstance(columns, dict):
            raise ValueError(f"{source}, paper, {cell!r}: expected columns, got {columns!r}")
        paper[str(cell)] = {str(column): str(value) for column, value in columns.items()}
    return paper


def _mapping(content: Mapping[str, Any], field: str, source: str) -> dict[str, Any]:
    value = content.get(field) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {field} is {value!r}, expected a mapping")
    _refuse_words(value, f"{source}, {field}")
    return value


def _refuse_words(names: Iterable[Any], source: str) -> None:
    """Refuse names that YAML reads as other values, such as an unquoted off as False."""
    for name in names:
        if name is None or isinstance(name, bool):
            raise ValueError(f"{source}: a name reads as {name}; put off, on, yes, no in quotes")


def _refuse_unknown(
    names: Iterable[str], known: Sequence[str], source: str, what: str = "field"
) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise ValueError(f"{source} has an unknown {what} {name!r}{hint}")
