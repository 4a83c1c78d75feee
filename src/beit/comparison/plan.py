"""Plans of ablations: a table's cells, each a chain of stages (docs/ablations.md has the format).

A plan is read and unfolded here; what the fields of its stages mean is for the verbs to judge.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, NamedTuple

FIELDS = ("title", "text", "seeds", "stages", "cells", "grid", "figures", "paper")
REFERENCE = "$"  # before the name of an earlier stage: its run directory


@dataclass(frozen=True)
class Stage:
    """One command of the chain.

    Attributes:
        name: what the plan calls it
        verb: the command, `beit VERB`
        preset: what it starts from; None for the verb's defaults
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
    """One row of the table: a name, and the stages that it runs, in order."""

    name: str
    stages: tuple[Stage, ...]


class Plan(NamedTuple):
    """What a plan asks for.

    Attributes:
        title: of the table
        text: paragraphs under the title
        seeds: with which every cell is run
        cells: rows of the table
        figures: title of a column, and the stage and figure that it shows
        paper: what a publication reports for a cell: by cell and column, or a name of its own
    """

    title: str
    text: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    figures: Mapping[str, tuple[str, str]]
    paper: Mapping[str, Mapping[str, str]]


def unfold(
    content: Mapping[str, Any],
    source: str,
    verbs: Sequence[str],
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Check a plan's structure and unfold its cells.

    Args:
        content: what its YAML holds
        source: its file, named in errors
        verbs: commands that a stage may be
        changes: by `stage.field`, values that take the place of those of the plan's stages; what a
            cell says itself stays

    Raises:
        ValueError: a field, stage or verb that is unknown, or a value that does not fit.
    """
    _known(content, FIELDS, source)
    if not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise ValueError(f"{source} has no stages; expected a mapping of names to settings")
    stages = {name: _stage(name, given, source, verbs) for name, given in content["stages"].items()}
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
    figures = {}
    for title, place in _mapping(content, "figures", source).items():
        stage, _, figure = str(place).partition(".")
        if stage not in stages or not figure:
            raise ValueError(
                f"{source}, figure {title!r}: expected STAGE.FIGURE, got {place!r}"
                f"{_nearest(stage, stages)}"
            )
        figures[str(title)] = (stage, figure)
    if not figures:
        raise ValueError(f"{source} has no figures; expected a mapping of titles to STAGE.FIGURE")
    return Plan(
        str(content.get("title", source)),
        str(content.get("text", "")),
        _seeds(content.get("seeds", [0]), source),
        tuple(cells),
        figures,
        _paper(_mapping(content, "paper", source), [cell.name for cell in cells], source),
    )


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Write nested settings by dotted names; a name may be dotted already."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        inside = flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {}
        found |= inside if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _rows(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Name the cells: those listed, or every choice of one value on each axis of the grid."""
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


def _stage(name: str, given: Any, source: str, verbs: Sequence[str]) -> Stage:
    where = f"{source}, stage {name!r}"
    if not isinstance(given, dict | None) or "." in name:
        raise ValueError(f"{where}: expected a name without a dot, and fields, got {given!r}")
    fields = flat(given or {})
    verb = fields.pop("verb", name)
    if verb not in verbs:
        raise ValueError(
            f"{where}: unknown verb {verb!r}{_nearest(str(verb), verbs)} "
            f"A stage is one of: {', '.join(verbs)}"
        )
    return Stage(name, verb, fields.pop("preset", None), fields)


def _changed(stages: Mapping[str, Stage], changes: Mapping[str, Any], where: str) -> list[Stage]:
    """Return the stages with some fields changed; one that is set to null is left out."""
    by_stage: dict[str, dict[str, Any]] = {name: {} for name in stages}
    left_out = set()
    for place, value in flat(changes).items():
        name, _, field = place.partition(".")
        if name not in stages:
            raise ValueError(f"{where}: unknown stage {name!r}{_nearest(name, stages)}")
        if field:
            by_stage[name][field] = value
        elif value is None:
            left_out.add(name)
        else:
            raise ValueError(
                f"{where}: expected fields of stage {name!r}, or null to leave it out, "
                f"got {value!r}"
            )
    found = []
    for stage in stages.values():
        fields = by_stage[stage.name]
        if "verb" in fields:
            raise ValueError(f"{where}: the verb of stage {stage.name!r} cannot be changed")
        preset = fields.pop("preset", stage.preset)
        if stage.name not in left_out:
            found.append(replace(stage, preset=preset, fields={**stage.fields, **fields}))
    return found


def _check_references(cell: Cell, stages: Iterable[str], where: str) -> None:
    earlier: list[str] = []
    for stage in cell.stages:
        for option, wanted in stage.references.items():
            if wanted not in earlier:
                why = _nearest(wanted, earlier)
                if wanted in stages:
                    why = ", which this cell leaves out or which comes later."
                raise ValueError(
                    f"{where}, stage {stage.name!r}: {option} is {REFERENCE}{wanted}, "
                    f"expected an earlier stage{why}"
                )
        earlier.append(stage.name)


def _seeds(given: Any, source: str) -> tuple[int, ...]:
    fits = isinstance(given, list) and all(type(seed) is int and seed >= 0 for seed in given)
    if not fits or not given or len(set(given)) < len(given):
        raise ValueError(f"{source}: seeds is {given!r}, expected a list of different numbers")
    return tuple(given)


def _paper(
    given: Mapping[str, Any], cells: Sequence[str], source: str
) -> dict[str, dict[str, str]]:
    _known(given, cells, f"{source}, paper", "cell")
    for cell, reported in given.items():
        if not isinstance(reported, dict):
            raise ValueError(f"{source}, paper, {cell!r}: expected columns, got {reported!r}")
    return {
        str(cell): {str(column): str(value) for column, value in reported.items()}
        for cell, reported in given.items()
    }


def _mapping(content: Mapping[str, Any], field: str, source: str) -> dict[str, Any]:
    value = content.get(field) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {field} is {value!r}, expected a mapping")
    _refuse_words(value, f"{source}, {field}")
    return value


def _refuse_words(names: Iterable[Any], source: str) -> None:
    """Refuse what YAML made of a name without quotes: off is False to it."""
    for name in names:
        if name is None or isinstance(name, bool):
            raise ValueError(f"{source}: a name reads as {name}; put off, on, yes, no in quotes")


def _known(given: Iterable[str], known: Sequence[str], source: str, what: str = "field") -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{source} has an unknown {what} {name!r}{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(map(str, known)), n=1)
    return f"; did you mean {near[0]}?" if near else "."
