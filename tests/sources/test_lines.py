import gzip
import io
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import SourceError
from penstock.sources.lines import (
    MAX_LINE_BYTES,
    DigestingFile,
    as_utf8,
    binary_kind,
    plain_chunks,
    split_lines,
)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=8), st.lists(st.integers(0, 40), max_size=6))
def test_lines_do_not_depend_on_where_the_chunks_are_cut(lines, cuts):
    content = b"\n".join(lines)
    ends = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    chunks = [content[a:b] for a, b in pairwise(ends)]
    whole = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = whole if whole[-1] else whole[:-1]
    assert list(split_lines(chunks)) == expected


def test_a_line_of_200_MiB_is_cut_and_never_held_in_memory():
    chunk = b"x" * (1 << 20)

    def chunks():
        yield b"first\n"
        for _ in range(200):
            yield chunk
        yield b"\nlast\n"

    tracemalloc.start()
    lengths = [len(line) for line in split_lines(chunks())]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths == [5, MAX_LINE_BYTES + 1, 4]
    assert peak_bytes < 5 * MAX_LINE_BYTES


def test_the_byte_order_mark_is_removed_from_the_first_line_only():
    lines = list(split_lines([b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"]))
    assert lines == [b"a", b"\xef\xbb\xbfb"]


def test_the_digest_covers_what_was_never_asked_for():
    file = DigestingFile(io.BytesIO(b"abcdef"))
    file.read(2)
    whole = DigestingFile(io.BytesIO(b"abcdef"))
    assert file.digest_to_end() == whole.digest_to_end()


def test_two_gzip_members_in_one_file_are_both_read():
    data = gzip.compress(b"a\n") + gzip.compress(b"b\n")
    assert b"".join(plain_chunks(io.BytesIO(data), "x.jsonl.gz")) == b"a\nb\n"


def test_a_character_cut_between_chunks_is_recoded_whole():
    data = "naïve €".encode("utf-16")
    chunks = [data[i : i + 1] for i in range(len(data))]
    assert b"".join(as_utf8(chunks, "utf-16", "x")).decode() == "naïve €"


def test_bytes_that_are_not_of_the_encoding_are_an_error_that_names_it():
    with pytest.raises(SourceError, match="x: not ascii text"):
        list(as_utf8([b"\xff"], "ascii", "x"))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1....", "a Parquet file"),
        (b"\x1f\x8b\x08", "gzip-compressed data"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\xff\xfea\0", "UTF-16 text"),
        (b"ab\0cd", "binary data"),
        (b'{"a": 1}', None),
    ],
)
def test_binary_data_is_told_from_text(head, kind):
    assert binary_kind(head) == kind
