"""Plans of ablations: the cells of a table, each a chain of stages (format: docs/ablations.md).

This module checks a plan's structure; the verbs check the fields of its stages.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from beit.command.messages import did_you_mean

FIELDS = ("title", "text", "seeds", "stages", "cells", "grid", "figures", "paper")
REFERENCE = "$"  # $NAME stands for the run directory of an earlier stage


@dataclass(frozen=True)
class Stage:
    """One command of the chain.

    Attributes:
        name: in the plan
        verb: the command, `beit VERB`
        preset: to start from; None for the verb's defaults
        fields: values of the verb's options, by dotted name
    """

    name: str
    verb: str
    preset: str | None
    fields: Mapping[str, Any]

    @property
    def references(self) -> dict[str, str]:
        """Options that take the run directory of an earlier stage, and that stage's name."""
        return {
            option: value.removeprefix(REFERENCE)
            for option, value in self.fields.items()
            if isinstance(value, str) and value.startswith(REFERENCE)
        }


class Cell(NamedTuple):
    """One row of the table: a name, and its stages in order."""

    name: str
    stages: tuple[Stage, ...]


class Plan(NamedTuple):
    """The content of a plan.

    Attributes:
        title: of the table
        text: paragraphs under the title
        seeds: of the runs of every cell
        cells: rows of the table
        columns: stage and metric of each column, by the column's title
        paper: published results by cell, then by column or a name that is no column
    """

    title: str
    text: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    columns: Mapping[str, tuple[str, str]]
    paper: Mapping[str, Mapping[str, str]]


def unfold(
    content: Mapping[str, Any],
    source: str,
    verbs: Sequence[str],
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Check a plan's structure and unfold its cells.

    Args:
        content: of its YAML file
        source: the file, for errors
        verbs: allowed for a stage
        changes: values that replace those of the plan's stages, by `stage.field`; fields that a
            cell sets keep the cell's values

    Raises:
        ValueError: a field, stage or verb is unknown, or a value does not fit.
    """
    _refuse_unknown(content, FIELDS, source)
    if not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise ValueError(f"{source} has no stages; expected a mapping of names to settings")
    stages = {
        name: _stage(name, settings, source, verbs) for name, settings in content["stages"].items()
    }
    if changes:
        stages = {stage.name: stage for stage in _changed(stages, changes, f"{source}, --set")}
    cells = []
    for name, parts in _rows(content, source).items():
        where = f"{source}, cell {name!r}"
        if not isinstance(parts, dict | None):
            raise ValueError(f"{where}: expected fields of stages, got {parts!r}")
        cell = Cell(name, tuple(_changed(stages, parts or {}, where)))
        _check_references(cell, stages, where)
        cells.append(cell)
    return Plan(
        str(content.get("title", source)),
        str(content.get("text", "")),
        _seeds(content.get("seeds", [0]), source),
        tuple(cells),
        _columns(content, stages, source),
        _paper(_mapping(content, "paper", source), [cell.name for cell in cells], source),
    )


def _columns(
    content: Mapping[str, Any], stages: Iterable[str], source: str
) -> dict[str, tuple[str, str]]:
    columns = {}
    for title, place in _mapping(content, "figures", source).items():
        stage, _, metric = str(place).partition(".")
        if stage not in stages or not metric:
            raise ValueError(
                f"{source}, figure {title!r}: expected STAGE.FIGURE, got {place!r}"
                f"{did_you_mean(stage, stages)}"
            )
        columns[str(title)] = (stage, metric)
    if not columns:
        raise ValueError(f"{source} has no figures; expected a mapping of titles to STAGE.FIGURE")
    return columns


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; a name may be dotted already."""
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        is_group = isinstance(value, Mapping)
        settings |= flat(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return settings


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
        if isinstance(values, list):  # of one field, which names the axis
            short = axis.rpartition(".")[2]
            axes.append([(f"{short} {value}", {axis: value}) for value in values])
        elif isinstance(values, dict):
            _refuse_words(values, f"{source}, grid axis {axis!r}")
            axes.append([(str(name), flat(parts or {})) for name, parts in values.items()])
        if not isinstance(values, list | dict) or not values:
            raise ValueError(
                f"{source}, grid axis {axis!r}: expected a list of values or a mapping of names to "
                f"fields, got {values!r}"
            )
    rows: dict[str, Any] = {}
    for chosen in product(*axes):
        parts: dict[str, Any] = {}
        for _, fields in chosen:
            parts |= fields
        rows[", ".join(name for name, _ in chosen)] = parts
    return rows


def _stage(name: str, settings: Any, source: str, verbs: Sequence[str]) -> Stage:
    where = f"{source}, stage {name!r}"
    if not isinstance(settings, dict | None) or "." in name:
        raise ValueError(f"{where}: expected a name without a dot, and fields, got {settings!r}")
    fields = flat(settings or {})
    verb = fields.pop("verb", name)
    if verb not in verbs:
        raise ValueError(
            f"{where}: unknown verb {verb!r}{did_you_mean(str(verb), verbs)} "
            f"A stage is one of: {', '.join(verbs)}"
        )
    return Stage(name, verb, fields.pop("preset", None), fields)


def _changed(stages: Mapping[str, Stage], changes: Mapping[str, Any], where: str) -> list[Stage]:
    """Return the stages with changed fields; a stage set to null is left out."""
    by_stage: dict[str, dict[str, Any]] = {name: {} for name in stages}
    left_out = set()
    for place, value in flat(changes).items():
        name, _, field = place.partition(".")
        if name not in stages:
            raise ValueError(f"{where}: unknown stage {name!r}{did_you_mean(name, stages)}")
        if field:
            by_stage[name][field] = value
        elif value is None:
            left_out.add(name)
        else:
            raise ValueError(
                f"{where}: expected fields of stage {name!r}, or null to leave it out, "
                f"got {value!r}"
            )
    changed = []
    for stage in stages.values():
        fields = by_stage[stage.name]
        if "verb" in fields:
            raise ValueError(f"{where}: the verb of stage {stage.name!r} cannot be changed")
        preset = fields.pop("preset", stage.preset)
        if stage.name not in left_out:
            changed.append(replace(stage, preset=preset, fields={**stage.fields, **fields}))
    return changed


def _check_references(cell: Cell, stages: Iterable[str], where: str) -> None:
    earlier: list[str] = []
    for stage in cell.stages:
        for option, target in stage.references.items():
            if target not in earlier:
                hint = did_you_mean(target, earlier)
                if target in stages:
                    hint = "; this cell leaves it out, or it comes later."
                raise ValueError(
                    f"{where}, stage {stage.name!r}: {option} is {REFERENCE}{target}, "
                    f"expected an earlier stage{hint}"
                )
        earlier.append(stage.name)


def _seeds(seeds: Any, source: str) -> tuple[int, ...]:
    fits = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not fits or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{source}: seeds is {seeds!r}, expected a list of different numbers")
    return tuple(seeds)


def _paper(
    results: Mapping[str, Any], cells: Sequence[str], source: str
) -> dict[str, dict[str, str]]:
    _refuse_unknown(results, cells, f"{source}, paper", "cell")
    for cell, columns in results.items():
        if not isinstance(columns, dict):
            raise ValueError(f"{source}, paper, {cell!r}: expected columns, got {columns!r}")
    return {
        str(cell): {str(column): str(value) for column, value in columns.items()}
        for cell, columns in results.items()
    }


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
