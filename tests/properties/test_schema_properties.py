"""Whatever the parser accepts, the JSON Schema accepts: an editor never marks a file that runs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import assume, event, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sidecar.config import sidecar_yaml
from sidecar.config.reference import FileKind, file_schema
from sidecar.documents.document import DataPath, Document, part, parts
from sidecar.documents.problems import Problems
from sidecar.documents.yaml12 import parse_yaml
from sidecar.identity.reasons import UsageError
from sidecar.policy import mesh_yaml
from tests.specimens import FILES, FULL, MESH_TEXT, WHOLE_MESH, WITH_FINGERPRINT

VALIDATORS = {kind: Draft202012Validator(file_schema(kind)) for kind in ("mesh", "sidecar")}
FILES_OF: dict[FileKind, list[Any]] = {
    "mesh": [parse_yaml(text, "m").data for text in (MESH_TEXT, WHOLE_MESH)],
    "sidecar": [parse_yaml(text, "s").data for text in (FULL, FILES, WITH_FINGERPRINT)],
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 70_000)
    | st.floats(allow_nan=False)
    | st.sampled_from(["web", "api", "api:http", "*", "http", "5432", "30s", "1d", "a:1", "127.0.0.1:80", "10.0.0.0/8"])
    | st.sampled_from(
        ["", "allow", "deny", "dry-run", "auto", "json", "2027-01-31", "unix:/x", "https://ca", "ab" * 32]
    )
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(["http", "to", "api:http"]), SCALARS)


def paths(data: Any, path: DataPath = ()) -> list[DataPath]:
    return [path, *(found for step, inner in parts(data) for found in paths(inner, (*path, step)))]


def accepted(kind: FileKind, data: Any) -> bool:
    """By the shapes alone: what names stand for does not count where there is no mesh."""
    document = Document("x.yaml", data, dict.fromkeys(paths(data), 1))
    try:
        if kind == "mesh":
            mesh_yaml.parse_shape(document)
        else:
            sidecar_yaml.parse_shape(data, Problems(document), None)
    except UsageError:
        return False
    return True


@given(st.sampled_from(["mesh", "sidecar"]), st.data())
def test_what_runs_is_never_marked(kind: FileKind, draw: st.DataObject) -> None:
    data = deepcopy(draw.draw(st.sampled_from(FILES_OF[kind])))
    for _ in range(draw.draw(st.integers(1, 2))):
        path = draw.draw(st.sampled_from(paths(data)[1:]))
        outer = part(data, *path[:-1])
        if isinstance(outer, dict) and draw.draw(st.booleans()):
            del outer[path[-1]]
        else:
            outer[path[-1]] = draw.draw(VALUES)
        assume(len(paths(data)) > 1)
    runs = accepted(kind, data)
    event(f"{kind}: {'accepted' if runs else 'refused'}")
    if runs:
        assert VALIDATORS[kind].is_valid(data)
