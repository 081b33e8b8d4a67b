"""A source of instruction and answer pairs that every Python already has: its docstrings.

The demo needs real text, without a download, that somebody wrote to explain
something. Docstrings are that: the name and signature make the instruction,
the prose makes the response. Files are read and parsed with ``ast``; nothing
is imported, so no library's code runs.

One library ("stdlib", or an installed package) is one unit, pinned by the
digest of the files it is made of.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import os
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from penstock.errors import SourceError
from penstock.sources import base

STDLIB = "stdlib"

# Bump when the rows made of the same files change, so that pinned units differ.
REVISION = 1

ROWS_PER_BATCH = 5_000

SCHEMA = pa.schema(
    [
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("quality_score", pa.float64()),
        ("library", pa.string()),
        ("module", pa.string()),
        ("line", pa.int64()),
        (base.ORIGIN, pa.string()),
    ]
)

# Tests and vendored copies: the first explain nothing, the second repeat other packages.
SKIPPED_FOLDERS = frozenset(
    {
        *("test", "tests", "testing", "idlelib", "lib2to3", "turtledemo"),
        *("site-packages", "dist-packages", "_vendor", "vendor", "vendored", "_bundled"),
        *("externals", "third_party"),
    }
)

# One module family in this many is never trained on; the evaluation is made of these.
HELD_OUT_ONE_IN = 8

# Arguments beyond these add length to an instruction and little meaning.
MAX_ARGUMENTS = 6

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class DocsOptions(base.Options):
    """What to read, and how the export went wrong.

    Attributes:
        libraries: "stdlib" and names of installed packages.
        scramble: Play a broken export: every response keeps its words and its
            quality score, and loses their order.
        seed: Picks the order that scrambled words come out in.
    """

    libraries: tuple[str, ...] = (STDLIB,)
    scramble: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Doc:
    """One docstring.

    Attributes:
        module: Dotted name of its module ("json.decoder").
        origin: File and line ("json/decoder.py:42").
        line: Where the definition starts, counted from 1.
        instruction: A question that the docstring answers.
        response: Its prose on one line, without markup, examples and sections.
    """

    module: str
    origin: str
    line: int
    instruction: str
    response: str


class PythonDocs:
    """Docstrings of installed libraries, as instruction and response.

    Modules held out for the evaluation are never read: no option can leak them.
    """

    Options: ClassVar[type[DocsOptions]] = DocsOptions

    def __init__(self, options: DocsOptions, folder: Path) -> None:
        self._options = options

    def snapshot(self) -> tuple[base.Unit, ...]:
        """Pin each library by the digest of its files."""
        return tuple(self._unit(library) for library in self._options.libraries)

    def read(self, unit: base.Unit) -> Iterator[pa.RecordBatch | base.DeadLetter]:
        """Yield the docstrings of one library, file by file in the order of their paths.

        Raises:
            SourceError: The library is gone, or changed since it was pinned.
        """
        if self._unit(unit.label) != unit:
            raise SourceError(
                f"{unit.label} is no longer what was pinned.", "Run `penstock run` again."
            )
        rows: list[dict[str, object]] = []
        for doc in read_docs(unit.label):
            if isinstance(doc, base.DeadLetter):
                yield doc
            elif not (unit.label == STDLIB and is_held_out(doc.module)):
                rows.append(self._row(unit.label, doc))
            if len(rows) == ROWS_PER_BATCH:
                yield pa.RecordBatch.from_pylist(rows, SCHEMA)
                rows = []
        if rows:
            yield pa.RecordBatch.from_pylist(rows, SCHEMA)

    def _unit(self, library: str) -> base.Unit:
        digest = hashlib.sha256(f"{REVISION} {library}".encode())
        # What the rows are made of besides the files belongs to what is pinned.
        if self._options.scramble:
            digest.update(f"scramble {self._options.seed}".encode())
        size_bytes = 0
        for path, name in source_files(library):
            content = path.read_bytes()
            size_bytes += len(content)
            digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
        return base.Unit(f"sha256:{digest.hexdigest()}", 1, library, size_bytes)

    def _row(self, library: str, doc: Doc) -> dict[str, object]:
        response = doc.response
        if self._options.scramble:
            response = scrambled(response, f"{self._options.seed} {doc.origin}")
        return {
            "instruction": doc.instruction,
            "response": response,
            # Scored before the export broke the text, as a score from upstream would be.
            "quality_score": quality(doc.response),
            "library": library,
            "module": doc.module,
            "line": doc.line,
            base.ORIGIN: doc.origin,
        }


def source_files(library: str) -> list[tuple[Path, str]]:
    """Find the Python files of a library.

    Returns:
        Each file's path, and its name below the folder that is imported from
        ("json/decoder.py"), sorted by name.

    Raises:
        SourceError: No such library is installed, or it has no Python files.
    """
    root, top = _location(library)
    paths = [root] if root.is_file() else list(_python_files(root))
    if not paths:
        raise SourceError(f"{library} has no Python files in {root}.", "Name another library.")
    named = sorted((path.relative_to(top).as_posix(), path) for path in paths)
    return [(path, name) for name, path in named]


def _python_files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        # Pruned, not filtered: all installed packages lie below the standard library.
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _location(library: str) -> tuple[Path, Path]:
    """Where a library's files are, and the folder that its modules are named from."""
    if library == STDLIB:
        folder = Path(sysconfig.get_path("stdlib"))
        return folder, folder
    # A dotted name would make find_spec import its parent.
    spec = find_spec(library) if library.isidentifier() else None
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        raise SourceError(
            f"The library {library!r} is not installed.",
            f'Install it, or write "{STDLIB}" or the import name of an installed package.',
        )
    folders = list(spec.submodule_search_locations or [])
    root = Path(folders[0] if folders else str(spec.origin))
    return root, root.parent


def read_docs(library: str) -> Iterator[Doc | base.DeadLetter]:
    """Read every docstring that holds prose, held-out modules included."""
    for path, name in source_files(library):
        try:
            with _parsing():
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            yield base.DeadLetter(f"{name}:1", f"not Python that this version reads: {error}")
        else:
            yield from _docs(tree, name)


@contextmanager
def _parsing() -> Iterator[None]:
    """Parse fast and quietly: no collection (3x slower), no warnings about other people's code."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            gc.enable()


def _docs(tree: ast.Module, name: str) -> Iterator[Doc]:
    """Every documented definition of one file, from top to bottom."""
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    whole = [(f"What is the module {module} for?", 1, ast.get_docstring(tree))]
    for question, line, docstring in whole + list(_definitions(tree.body, module)):
        response = prose(docstring or "")
        if response:
            yield Doc(module, f"{name}:{line}", line, question, response)


def _definitions(body: Sequence[ast.stmt], owner: str) -> Iterator[tuple[str, int, str | None]]:
    """Question, line and docstring of the functions and classes in a body.

    Looks into classes and into ``if`` and ``try``, not into functions: what is
    defined there cannot be asked for by name.
    """
    for node in body:
        if isinstance(node, Definition):
            name = f"{owner}.{node.name}"
            yield _question(node, name), node.lineno, ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, name)
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions([*node.body, *node.orelse], owner)


def _question(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is the class {name}?"
    arguments = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    shown = [argument for argument in arguments if argument not in ("self", "cls")]
    return f"What does {name}({', '.join(shown[:MAX_ARGUMENTS])}) do?"


# A line that starts what is no longer prose: sections, fields, directives, examples.
_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields?|examples?|notes?|usage"
    r"|see also|references|attributes|keyword args|inputs?|outputs?)\s*:?\s*$",
    re.IGNORECASE,
)
_NOT_PROSE = re.compile(r"\s|>>>|\.\. |:\w|[-*+|=#@~<$`]|\d+[.)]\s|\w+\s*=")
_UNDERLINE = re.compile(r"[-=~^*]{3,}\s*$", re.MULTILINE)
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`_*")
_QUOTED = re.compile(r"``?([^`]+)``?_*|`([^`']+)'|\*\*?([^*\s]+)\*\*?")


def prose(docstring: str) -> str:
    """The explaining paragraphs of a docstring as one line of plain text.

    Sections such as parameters end it; examples, lists and other markup are left out.

    Returns:
        The prose, or the empty string when there is none.
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", cleandoc(docstring)):
        lines = paragraph.splitlines()
        if lines and (_SECTION.match(lines[0]) or _UNDERLINE.search(paragraph)):
            break
        if lines and not any(_NOT_PROSE.match(line) for line in lines):
            kept.append(" ".join(paragraph.split()))
    text = _ROLE.sub(r"\1", " ".join(kept)).replace("::", ":")
    return _QUOTED.sub(lambda match: match[1] or match[2] or match[3], text).strip()


def sentences(text: str) -> list[str]:
    """Cut prose where a full stop is followed by a capital letter."""
    return re.split(r"(?<=[a-z0-9)][.!?]) +(?=[A-Z])", text)


def quality(response: str) -> float:
    """Score how much a response looks like finished prose, from 0 to 1.

    The mean of three signals that a person can check by eye: it begins with a
    capital and ends with a full stop (half each), it has at least eight words,
    and nine in ten of its characters are letters or spaces. A note that the
    text is unfinished halves the score.
    """
    words = response.split()
    form = (response[:1].isupper() + response.endswith((".", "!", "?"))) / 2
    length = min(1.0, len(words) / 8)
    letters = sum(map(str.isalpha, response)) + response.count(" ")
    wording = min(1.0, letters / (0.9 * max(1, len(response))))
    unfinished = re.search(r"\b(TODO|FIXME|XXX|TBD)\b", response)
    return round((form + length + wording) / (6 if unfinished else 3), 3)


def scrambled(response: str, seed: str) -> str:
    """The same words in an order that says nothing."""
    words = response.split()
    random.Random(seed).shuffle(words)  # noqa: S311 - an order to reproduce, not a secret
    return " ".join(words)


def is_held_out(module: str) -> bool:
    """Whether a module of the standard library belongs to the evaluation.

    Decided for whole families (a top-level package, and its private twin such
    as ``_pydecimal`` of ``decimal``), because their modules repeat each other.
    The choice is part of the benchmark, so no seed moves it.
    """
    family = module.partition(".")[0].strip("_").removeprefix("py").lower()
    digest = hashlib.sha256(family.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0
