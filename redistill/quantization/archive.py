"""A ``.pt2`` archive from anywhere, made one that runs nothing when torch opens it.

torch's reader unpickles where it is told to, evaluates expressions and guards as Python, and looks up operators by any
name. So the archive is not handed over: its graph and weights are read as plain data, what is more than operators on
tensors is refused, and a new archive of what is left is written in memory.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from redistill.errors import QuantizationError

LARGEST = 1 << 32
"""Bytes of an archive."""
MODEL, WEIGHTS, CONSTANTS = "models/model.json", "data/weights/", "data/constants/"
INPUTS = "data/sample_inputs/model.pt"
CONFIGS = {WEIGHTS: "model_weights_config.json", CONSTANTS: "model_constants_config.json"}
FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"6\n"}
OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|quantized_decomposed)\.(?!from_file|set_|as_strided)[a-z]\w*\.\w+"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|mod|eq|ne|le|lt|ge|gt|neg)|torch\.sym_(?:sum|max|min|float|int|not)"
)
TOKEN = re.compile(
    r"Symbol\('[su]\d+'(?:, (?:positive|nonnegative|integer)=True)*\)|[su]\d+|\d{1,18}|int_oo|oo|true|false"
    r"|Integer|Add|Mul|Mod|PythonMod|FloorDiv|CleanDiv|Max|Min|Eq|Ne|Equality|Unequality|[-+/(),<>=\s]|\*(?!\*)"
)
LONGEST = 1000
"""Characters of an expression."""
CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
FORBIDDEN = frozenset({"as_custom_obj", "as_operator", "as_graph", "custom_obj", "script_objects"})
"""Keys of arguments that are no numbers, tensors or text."""


def cleaned(path: Path, extra: str) -> tuple[io.BytesIO, str]:
    """An archive that torch can open without running anything, and the text of one extra file in it.

    Raises:
        QuantizationError: something in it is not plain data, or not known here.
    """
    entries = _entries(path)
    model = json.loads(entries[MODEL])
    _check_graph(model, path)
    wanted = {MODEL: json.dumps(_without_comments(model)).encode(), INPUTS: _inputs(entries, path)}
    for folder, name in CONFIGS.items():
        wanted |= _payloads(entries, folder, name, path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**FIXED, **wanted}.items():
            archive.writestr(f"archive/{name}", content)
    buffer.seek(0)
    return buffer, entries.get(f"extra/{extra}", b"{}").decode()


def _entries(path: Path) -> dict[str, bytes]:
    """What is in an archive, by its place below the one folder that all is in."""
    if path.stat().st_size > LARGEST:
        raise QuantizationError(f"{path} is larger than {LARGEST:,} bytes")
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
        if sum(info.file_size for info in found) > LARGEST or len({info.filename for info in found}) != len(found):
            raise QuantizationError(f"{path} unpacks to more than {LARGEST:,} bytes, or names a file twice")
        entries = {info.filename.partition("/")[2]: archive.read(info) for info in found}
    if any(entries.get(name) != FIXED[name] for name in ("archive_format", "archive_version", "byteorder")):
        raise QuantizationError(f"{path} is not a .pt2 archive of this version of torch")
    return entries


def _payloads(entries: Mapping[str, bytes], folder: str, config: str, path: Path) -> dict[str, bytes]:
    """Raw tensors and the table that describes them; a pickled one is refused."""
    table = json.loads(entries[folder + config])
    files = {}
    for name, entry in table["config"].items():
        file = entry["path_name"]
        if entry["use_pickle"] or not re.fullmatch(r"(?:weight|tensor)_\d+", file):
            raise QuantizationError(f"{path}: {name} is pickled, which can run code; export the network again")
        files[folder + file] = entries[folder + file]
    return {folder + config: json.dumps(table).encode(), **files}


def _inputs(entries: Mapping[str, bytes], path: Path) -> bytes:
    """The example inputs, read as tensors and nothing else, and written anew."""
    try:
        inputs = torch.load(io.BytesIO(entries[INPUTS]), map_location="cpu", weights_only=True)
    except Exception as error:
        raise QuantizationError(f"{path}: its example inputs are no tensors, and can run code") from error
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return buffer.getvalue()


def _check_graph(model: Any, path: Path) -> None:
    """Raise where the graph has more than known operators on tensors, numbers and text."""
    for node in model["graph_module"]["graph"]["nodes"]:
        if not OPERATOR.fullmatch(node["target"]):
            raise QuantizationError(f"{path}: the operator {node['target'][:80]} is not known here")
    for key, value in _walk(model):
        if key in FORBIDDEN and value:
            raise QuantizationError(f"{path}: the graph has {key}, which is no tensor or number")
        if key == "expr_str" and (len(value) > LONGEST or TOKEN.sub("", value)):
            raise QuantizationError(f"{path}: the size {value[:80]!r} is no arithmetic")
        if key in ("in_spec", "out_spec") and value:
            _check_containers(json.loads(value), path)


def _check_containers(spec: Any, path: Path) -> None:
    for key, value in _walk(spec):
        if key == "type" and value not in CONTAINERS:
            raise QuantizationError(f"{path}: inputs or outputs in a {value}; only tuples, lists and dicts are known")


def _walk(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON tree with its key."""
    yield key, tree
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield from _walk(item, name)
    elif isinstance(tree, list):
        for item in tree:
            yield from _walk(item)


def _without_comments(model: dict[str, Any]) -> dict[str, Any]:
    """The graph without what torch would look up or run though no result depends on it: metadata and guards."""
    module = model["graph_module"]
    graph = {**module["graph"], "nodes": [{**node, "metadata": {}} for node in module["graph"]["nodes"]]}
    bare = {**module, "graph": graph, "metadata": {}, "treespec_namedtuple_fields": {}}
    return {**model, "graph_module": bare, "guards_code": []}
