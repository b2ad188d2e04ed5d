"""The demo's corpus: the Python standard library as installed, one document per module, function and class."""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import re
import sys
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator

from zerogr_ray.demo.queries import stdlib_queries
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document

MODULES = """
    abc argparse array ast asyncio base64 bisect builtins bz2 calendar cmath codecs collections colorsys
    concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal difflib email.message
    email.utils enum filecmp fnmatch fractions ftplib functools gc getpass gettext glob graphlib gzip hashlib heapq hmac
    html html.parser http.client http.cookies http.server imaplib importlib.metadata importlib.util inspect io ipaddress
    itertools json linecache locale logging logging.handlers lzma math mimetypes multiprocessing operator os os.path
    pathlib pickle pkgutil platform pprint queue random re sched secrets selectors shelve shlex shutil signal smtplib
    socket socketserver sqlite3 ssl statistics string struct subprocess sys tarfile tempfile textwrap threading time
    timeit tokenize tomllib traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.parse
    urllib.request uuid warnings weakref webbrowser xml.etree.ElementTree xmlrpc.client zipfile zlib zoneinfo
""".split()

OWNERS = {
    "builtins": ("io", "_io"),
    "hashlib": ("_blake2", "_md5", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512"),
    "os": ("posix", "nt"),
    "os.path": ("posixpath", "ntpath", "genericpath", "nt"),
    "threading": ("_thread",),
}
"""Modules other than `_name` in which members of a module are written."""

DOC_CHARS = 20
"""A shorter docstring says nothing worth finding."""
CODE_LINES = 12
"""Functions and classes of at most so many lines, without their docstring, are shown with their source."""


def stdlib_documents(limit: int | None = None) -> list[Document]:
    """The standard library's documents, sorted by docno.

    limit:  keep so many: first every document that a demo query is judged by, then the rest, spread over the modules.
            A smaller limit keeps a subset of what a larger one keeps.
    """
    if sys.flags.optimize > 1:
        raise InputError("python -OO drops the docstrings that the demo's corpus is made of; run it without -OO")
    members = dict(_members())
    docnos = list(members) if limit is None else _spread(members, limit)
    return [Document(docno, _text(docno, members[docno]), title=docno) for docno in sorted(docnos)]


def _members() -> Iterator[tuple[str, object]]:
    """Every documented module and public member under its qualified name, each object once."""
    seen = set()
    with warnings.catch_warnings():  # deprecated names warn when they are looked up
        warnings.simplefilter("ignore")
        for name in MODULES:
            try:
                module = importlib.import_module(name)
            except ImportError:  # an optional part that this Python was built without
                continue
            public = {key: getattr(module, key, None) for key in getattr(module, "__all__", dir(module))}
            own = [key for key, value in public.items() if key[0] != "_" and _belongs(value, name)]
            own.sort(key=lambda key: (getattr(public[key], "__name__", "") != key, key))  # an alias loses to the name
            for docno, value in [(name, module), *((f"{name}.{key}", public[key]) for key in own)]:
                if id(value) not in seen and _says_something(value):
                    seen.add(id(value))
                    yield docno, value


def _belongs(value: object, module: str) -> bool:
    """Whether `value` is a function or class of `module`, not something that it imported."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return False
    owner = getattr(value, "__module__", None) or ""
    return owner in (module, f"_{module}", *OWNERS.get(module, ())) or (
        owner.startswith(f"{module}.") and owner not in MODULES
    )


def _doc(value: object) -> str:
    """The docstring that `value` has of its own, for a class at least its constructor's; "" where there is none."""
    doc = getattr(value, "__doc__", None)
    if doc is None and isinstance(value, type):
        doc = getattr(vars(value).get("__init__"), "__doc__", None)
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _says_something(value: object) -> bool:
    """Whether the docstring is more than a signature."""
    doc = _doc(value)
    return len(doc) >= DOC_CHARS and not re.fullmatch(r"[\w.]+\([^()]*\)", doc)


def _spread(members: dict[str, object], limit: int) -> list[str]:
    """The judged docnos and then, module after module, one more of each until there are `limit`."""
    judged = {docno for docnos in stdlib_queries()[1].values() for docno in docnos} & members.keys()
    if limit < len(judged):
        raise InputError(f"limit {limit} is less than the {len(judged)} documents that the demo's queries need")
    by_module = defaultdict(list)
    for docno in sorted(members.keys() - judged, key=_shuffled):
        by_module[docno if inspect.ismodule(members[docno]) else docno.rpartition(".")[0]].append(docno)
    rounds = [(turn, _shuffled(docno), docno) for rest in by_module.values() for turn, docno in enumerate(rest)]
    return [*sorted(judged), *(docno for _, _, docno in sorted(rounds))][:limit]


def _shuffled(docno: str) -> int:
    """A key that orders docnos arbitrarily and always the same."""
    return zlib.crc32(docno.encode())


def _text(docno: str, value: object) -> str:
    """Signature, docstring and, where it is short, the source."""
    parts = [_signature(docno, value), _doc(value), _source(value)]
    return "\n\n".join(part for part in parts if part)


def _signature(docno: str, value: object) -> str:
    if not callable(value):
        return ""
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError, NameError):  # C code that does not tell; an annotation that cannot be resolved
        return ""
    same_everywhere = re.sub(r"<[^<>]*(<[^<>]*>[^<>]*)*>", "...", signature)  # not <function <lambda> at 0x7f...>
    return docno + same_everywhere.replace(repr(sys.executable), "...")


def _source(value: object) -> str:
    """The lines of a short top-level function or class without its docstring, or ""."""
    name, module = getattr(value, "__name__", ""), sys.modules.get(getattr(value, "__module__", None) or "")
    lines = linecache.getlines(getattr(module, "__file__", None) or "")
    heads = tuple(f"{kind} {name}{end}" for kind in ("def", "async def", "class") for end in "(:[")
    start = next((number for number, line in enumerate(lines) if line.startswith(heads)), None)
    if start is None:
        return ""
    block = lines[start : start + 1]
    for line in lines[start + 1 :]:
        if line[0] not in " \t\n)":  # the next statement at the margin
            break
        block.append(line)
    try:
        (node,) = ast.parse("".join(block)).body
    except (SyntaxError, ValueError):  # a string with lines at the margin cut the block short
        return ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        del block[node.body[0].lineno - 1 : node.body[0].end_lineno]
    code = [line.rstrip() for line in block if line.strip()]
    return "\n".join(code) if 1 < len(code) <= CODE_LINES else ""
