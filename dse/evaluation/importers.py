"""Sources of rows: JSON Lines, CSV, pandas, dspy and plain dictionaries.

Every reader yields ``(line, row)``: the line of the file (or the place in the source, from 1) and a flat
dictionary of plain JSON data. Nothing is guessed: types are taken as they are, a missing value is an error, and
fields that are not wanted are named in `drop`.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime as dt
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from dse.canonical import MAX_DEPTH, canonical_json, deeper_than, parse_json
from dse.errors import DatasetError, MalformedJSON, MalformedRow, Unserialisable

__all__ = [
    "Row", "inside", "malformed", "plain", "read_csv", "read_dspy", "read_jsonl", "read_pandas", "read_rows", "write_atomic",
]  # fmt: skip

MAX_ROW_BYTES = 16 * 2**20  # a line of JSON can take twenty times its length in memory
_MAX_LEVELS = MAX_DEPTH - 10  # rows are held, and sent, some levels deeper than they are written
MAX_CSV_BYTES = 512 * 2**20

Row = tuple[int, dict[str, Any]]
_TYPED = (BaseModel, Enum, dt.date, dt.time, dt.timedelta, Decimal, UUID)


def malformed(
    what: str, file: str, line: int, field: str | None = None, *, value: Any = None, remedy: str
) -> MalformedRow:
    """The error for one row: `what` completes "<file>, line <line>: ..."."""
    return MalformedRow(f"{file}, line {line}: {what}", value=value, remedy=remedy, file=file, line=line, field=field)


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of `value` as plain JSON data: models, dataclasses, dates and the like as pydantic's ``mode="json"``.

    Sets, bytes, arrays, what is nested too deeply and anything else are returned as they are, for `canonical_json` to
    refuse.
    """
    if depth > MAX_DEPTH:
        return value
    kind = type(value)
    if value is None or kind in (str, int, float, bool) or depth > MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {key: plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if isinstance(value, _TYPED) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        if isinstance(value, dt.date) and value != value:  # pandas' NaT
            return value
        with contextlib.suppress(PydanticSerializationError, ValueError, RecursionError):  # also one that holds itself
            return to_jsonable_python(value)
    return value


def _checked(row: Mapping[str, Any], source: str, line: int) -> dict[str, Any]:
    """`row` as plain JSON data; the first value that has no such form is named."""
    clean: dict[str, Any] = {}
    for key, value in row.items():
        if not isinstance(key, str):
            raise malformed("a field name is not a string", source, line, value=repr(key),
                            remedy="Name fields with strings.")  # fmt: skip
        clean[key] = plain(value)
        try:
            canonical_json(clean[key])
            if deeper_than(clean[key], _MAX_LEVELS):
                raise Unserialisable(f"it is nested deeper than {_MAX_LEVELS} levels")
        except Unserialisable as exc:
            raise malformed(f"the field {key!r} is not plain JSON data: {exc.what}", source, line, key, value=exc.value,
                            remedy="Convert it first; write null where there is no value.") from None  # fmt: skip
    return clean


def read_rows(rows: Iterable[Any], source: str, drop: Iterable[str] = ()) -> Iterator[Row]:
    """Dictionaries; values may also be pydantic models, dataclasses, dates, decimals, enums and UUIDs.

    Raises:
        MalformedRow: a row is not a mapping, or a value has no JSON form (NaN, sets, bytes ...).
        DatasetError: no row has a key that `drop` names.
    """
    unwanted = frozenset(_names(drop))
    unseen = set(unwanted)
    for line, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise malformed("the row is not a dictionary", source, line, value=repr(row),
                            remedy="Give one dictionary of field: value a row.")  # fmt: skip
        unseen.difference_update(row)
        yield line, _checked({k: v for k, v in row.items() if k not in unwanted} if unwanted else row, source, line)
    _all_seen(unseen, source)


def _names(drop: Iterable[str]) -> Iterable[str]:
    """`drop`; a string by itself is one name."""
    return (drop,) if isinstance(drop, str) else drop


def _all_seen(unseen: Iterable[str], source: str) -> None:
    for name in sorted(unseen):
        raise DatasetError(f"{source}: no row has the field {name!r} that is to be dropped", value=name, field=name,
                           remedy="Correct drop=; a field that stays is never left out by mistake.")  # fmt: skip


def read_jsonl(path: Path, drop: Iterable[str] = ()) -> Iterator[Row]:
    """One strict JSON object a line, UTF-8; lines end with a line feed.

    Raises:
        DatasetError: the file cannot be read, or no row has a key that `drop` names.
        MalformedRow: empty line, not JSON, not an object, duplicate key, NaN or infinity, lone surrogate, or a line of
            more than `MAX_ROW_BYTES`.
    """
    unwanted = frozenset(_names(drop))
    unseen = set(unwanted)
    file = str(path)
    with _open(path) as lines:
        for line, text in enumerate(iter(lambda: lines.readline(MAX_ROW_BYTES + 1), b""), 1):
            if len(text) > MAX_ROW_BYTES:
                raise malformed(f"the row has more than {MAX_ROW_BYTES} bytes", file, line, value=_start(text),
                                remedy="Shorten it, or keep the text elsewhere and its place in the row.")  # fmt: skip
            body = text.rstrip(b"\r\n")
            if not body.strip():
                raise malformed("the line is empty", file, line, remedy="Remove the line.")
            try:
                row = parse_json(body, source="the line")
            except MalformedJSON as exc:
                field = exc.details.get("field")
                raise malformed(exc.what[0].lower() + exc.what[1:], file, line, field, value=exc.value or _start(body),
                                remedy=exc.remedy) from None  # fmt: skip
            if not isinstance(row, dict):
                raise malformed(f"the line holds a {type(row).__name__}, not an object", file, line, value=_start(body),
                                remedy='Write {"id": ..., "<field>": ...} on each line.')  # fmt: skip
            # strict JSON needs no further check, but a row is held some levels deeper than it is written
            if body.count(b"[") + body.count(b"{") > MAX_DEPTH // 2 and deeper_than(row, _MAX_LEVELS):
                _checked(row, file, line)
            if unwanted:
                unseen.difference_update(row)
                row = {key: value for key, value in row.items() if key not in unwanted}
            yield line, row
    _all_seen(unseen, file)


def read_csv(
    path: Path, json_fields: Iterable[str] = (), drop: Iterable[str] = (), delimiter: str = ",",
    null_fields: Iterable[str] = (),
) -> Iterator[Row]:  # fmt: skip
    """A CSV file with a header line, UTF-8 (a byte-order mark is fine). Cells are strings.

    Args:
        json_fields: columns whose cells hold JSON (numbers, booleans, null, lists, objects).
        null_fields: columns whose empty cells are null; elsewhere an empty cell is the empty text.

    Raises:
        DatasetError: the file cannot be read, or the header has no, empty or repeated names or lacks a named column,
            or the file has more than `MAX_CSV_BYTES`.
        MalformedRow: too many or too few cells, a cell that is not JSON, broken quoting, a NUL character.

    A cell that begins like a formula (``=``, ``+``, ``@``) is text as any other: nothing here evaluates it.
    """
    file = str(path)
    parsed, unwanted, nulls = (frozenset(_names(some)) for some in (json_fields, drop, null_fields))
    with _open(path) as raw:
        data = raw.read(MAX_CSV_BYTES + 1)
    if len(data) > MAX_CSV_BYTES:
        raise DatasetError(f"{file} has more than {MAX_CSV_BYTES} bytes", value=file, file=file,
                           remedy="Split it, or use JSON Lines, which are read line by line.")  # fmt: skip
    if b"\0" in data:
        raise malformed("the line holds a NUL character", file, data[: data.index(b"\0")].count(b"\n") + 1,
                        remedy="This is no text file in UTF-8; save it as one.")  # fmt: skip
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise malformed("the line is not UTF-8", file, line, value=str(exc), remedy="Save the file as UTF-8.") from None
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except (TypeError, ValueError) as exc:
        raise DatasetError("A delimiter is one character", value=delimiter, remedy=f"The reader says: {exc}.") from None
    try:
        header = next(reader, [])
        repeated = [name for place, name in enumerate(header) if not name or name in header[:place]]
        if not header or repeated:
            raise DatasetError(f"{file}: the header line has {'an empty or repeated name' if repeated else 'no names'}",
                               value=repeated or None, remedy="Name every column once in the first line.",
                               file=file, line=1)  # fmt: skip
        for name in sorted((parsed | unwanted | nulls) - set(header)):
            raise DatasetError(f"{file}: there is no column {name!r}", value=header, file=file, line=1, field=name,
                               remedy="Name a column of the header.")  # fmt: skip
        for cells in reader:
            line = reader.line_num
            if len(cells) != len(header):
                raise malformed(f"the row has {len(cells)} cells, the header {len(header)}", file, line, value=cells,
                                remedy="Quote cells that hold the delimiter or a line break.")  # fmt: skip
            row: dict[str, Any] = {}
            for name, cell in zip(header, cells, strict=True):
                if name in unwanted:
                    continue
                row[name] = cell
                if name in nulls and not cell.strip():
                    row[name] = None
                elif name in parsed:
                    try:
                        row[name] = parse_json(cell, source="the cell")
                    except MalformedJSON as exc:
                        raise malformed(f"the field {name!r} is not JSON", file, line, name, value=cell,
                                        remedy=f"{exc.remedy} Write null where there is no value, or name the column "
                                               "in null_fields=, too.") from None  # fmt: skip
            yield line, _checked(row, file, line)
    except csv.Error as exc:
        raise malformed(f"the line is not CSV: {exc}", file, reader.line_num,
                        remedy="Correct the quoting, or use JSON Lines.") from None  # fmt: skip


def read_pandas(frame: Any, source: str = "DataFrame", drop: Iterable[str] = ()) -> Iterator[Row]:
    """The rows of a ``pandas.DataFrame`` (the index is not used). `line` counts rows from 1.

    Raises:
        DatasetError: not a DataFrame, column names that are not unique strings, or no column that `drop` names.
        MalformedRow: NaN, NaT or NA (None gives null), or a value without a JSON form.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DatasetError("from_pandas takes a DataFrame", value=type(frame).__name__, remedy="Use from_rows otherwise.")
    names = list(frame.columns)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DatasetError("The columns are not unique strings", value=names, remedy="Rename the columns.")
    unwanted = frozenset(_names(drop))
    _all_seen(unwanted - set(names), source)
    names = [name for name in names if name not in unwanted]
    columns = [frame[name].tolist() for name in names]
    for line in range(1, len(frame) + 1):
        row = {name: column[line - 1] for name, column in zip(names, columns, strict=True)}
        for name, value in row.items():
            if value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
                raise malformed(f"the field {name!r} has no value", source, line, name, value=repr(value),
                                remedy="Fill it, or make it null: df.astype(object).where(df.notna(), None).")  # fmt: skip
        yield line, _checked(row, source, line)


def read_dspy(
    examples: Iterable[Any], fields: dict[str, str], meta: Iterable[str], id_field: str | None, source: str = "examples"
) -> Iterator[Row]:
    """``dspy.Example`` objects; fills `fields` from the first: ``with_inputs`` names the inputs, `meta` the meta fields.

    Raises:
        DatasetError: something else than examples.
        MalformedRow: no ``with_inputs``, or other inputs than the first example's.
    """
    import dspy

    about = frozenset(meta)
    inputs: set[str] | None = None
    for line, example in enumerate(examples, 1):
        if not isinstance(example, dspy.Example):
            raise DatasetError("from_dspy takes dspy.Example objects", value=type(example).__name__,
                               remedy="Use from_rows for dictionaries.")  # fmt: skip
        try:
            given = set(example.inputs().keys())
        except ValueError:
            raise malformed("the example does not say which fields are inputs", source, line,
                            remedy="Call example.with_inputs(...).") from None  # fmt: skip
        row = dict(example.items())
        if inputs is None:
            inputs = given
            for name in sorted(about):
                if name not in row or name in given:
                    raise DatasetError(f"from_dspy: the meta field {name!r} is {'an input' if name in given else 'missing'}",
                                       value=sorted(row), field=name,
                                       remedy="Name fields that the examples have and that are not inputs.")  # fmt: skip
            for name in row:
                if name != id_field:
                    fields[name] = "input" if name in given else "meta" if name in about else "label"
        elif given != inputs:
            raise malformed("the example has other inputs than the first", source, line, value=sorted(given),
                            remedy=f"Use with_inputs({', '.join(map(repr, sorted(inputs)))}) everywhere.")  # fmt: skip
        yield line, _checked(row, source, line)


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a whole file beside `path`, make it durable, then put it in `path`'s place.

    Whatever goes wrong on the way, the old file is untouched.
    """
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            draft.chmod(path.stat().st_mode & 0o777)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a dataset folder, which may come from anybody: no link that leads elsewhere, no device or pipe.

    Raises:
        DatasetError
    """
    path = folder / name
    try:
        leads_out = not path.resolve(strict=True).is_relative_to(folder.resolve())
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as exc:  # ValueError: a NUL; RuntimeError: a loop of links
        raise DatasetError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}", value=str(path), file=str(path),
                           remedy="Name a folder with dataset.json and data.jsonl.") from None  # fmt: skip
    if leads_out or not regular:
        raise DatasetError(f"{path} is {'a link out of its folder' if leads_out else 'no file'}", value=str(path),
                           file=str(path), remedy="Put the file itself into the folder.")  # fmt: skip
    return path


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise DatasetError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}", value=str(path), file=str(path),
                           remedy="Check the path and its permissions.") from None  # fmt: skip


def _start(body: bytes) -> str:
    return body[:80].decode("utf-8", "replace")
