"""Ways to spoil a file, for `fuzz.py`: bytes of any file, values of JSON and TOML, headers of an archive, pieces of a template.

Not a script. Each takes a random generator and content, and gives back other content; the same generator gives the same.
"""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from typing import Any

_DEEP = "[" * 500 + "]" * 500
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**9, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.5, 1e-300, 1e308, "", " ", "x", "0",
    "\x00", "\x1b[31mred", "[red]red[/red]", "..", "../../etc/passwd", "/etc/passwd", "C:\\windows", "a" * 5000, "\ud800", "é" * 300,
    [], {}, [[]], [None], [1, 2, 3], [0.5, "x", None], {"": {}}, {"a": 1}, ["a"] * 100, {"content": 5}, {"__type": "AddedToken"},
)  # fmt: skip
SNIPPETS = (
    "{{ 'a' * 8000000000 }}", "{{ 10 ** 10 ** 10 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "{{ 'a' | center(1000000000) }}", "{{ '%1000000000d' % 1 }}", "{{ messages[9] }}",
    "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages | tojson }}", "{% break %}", "{{ image_token * 9 }}",
    "{{ bos_token }}", "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ strftime_now('%999999999Y') }}", "{%", "{{", "{#", "}}",
    "{{ cycler('a', 'b').next() }}", "{{ messages.append(1) }}", "{% set a = [a, a] %}{{ a }}", "{{ 1 / 0 }}", "{{ undefined.x.y }}",
)  # fmt: skip


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat or move bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] = rng.choice((0, 1, 127, 128, 255, data[at] ^ (1 << rng.randrange(8))))
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif kind == 3:
            data[at:at] = data[at:end] * rng.choice((2, 100))
        elif kind == 4:
            del data[at:]
        else:
            data[at:end] = rng.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff", b"99999999"))
    return bytes(data)


def spoil_json(rng: random.Random, content: bytes) -> bytes:
    """Replace, drop, add or move values of a JSON text; now and then its bytes."""
    if rng.random() < 0.1:
        return rng.choice(
            (
                spoil_bytes(rng, content),
                b"",
                b"null",
                b"[]",
                b"3",
                b'"x"',
                b"{}",
                _DEEP.encode(),
                b"\xef\xbb\xbf" + content,
            )
        )
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(tree)
        if not places:
            break
        # Few levels down are the settings; far down are vocabularies, of which one entry is like another.
        weights = [4.0**-depth for _, _, depth in places]
        holder, key, _ = rng.choices(places, weights)[0]
        _spoil_value(rng, holder, key, tree)
    text = json.dumps(tree)
    if rng.random() < 0.05:
        text = re.sub(
            r"\d+", lambda digits: rng.choice((digits[0], "NaN", "1e999", "9" * 400)), text, count=3
        )
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any, int]]:
    found: list[tuple[Any, Any, int]] = []
    level, depth = [tree], 0
    while level and len(found) < 20_000:
        following = []
        for holder in level:
            for key in [*holder] if isinstance(holder, dict) else range(len(holder)):
                found.append((holder, key, depth))
                if isinstance(holder[key], dict | list):
                    following.append(holder[key])
        level, depth = following, depth + 1
    return found


def _spoil_value(rng: random.Random, holder: Any, key: Any, tree: Any) -> None:
    kind, value = rng.randrange(8), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "..", key + "_", "\x1b"))] = value
    elif kind == 2 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[key] = rng.choice((-value, value + 1, value * 1000, value / 3, str(value), [value], value - 1))
    elif kind == 3 and isinstance(value, str):
        holder[key] = rng.choice(
            (value * 50, value[: len(value) // 2], value.upper(), [value], {"content": value}, "../" + value)
        )
    elif kind == 4:
        other, name, _ = rng.choice(_places(tree))
        holder[key] = (
            other[name] if other[name] is not holder and not isinstance(other[name], dict | list) else None
        )
    else:
        holder[key] = rng.choice(ODD_VALUES)


def spoil_toml(rng: random.Random, content: bytes) -> bytes:
    """Replace a value of a TOML text, or a piece of it."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition("=")[0].strip() or "x"
    odd = rng.choice(
        (
            "9" * 400,
            "-1",
            "0",
            "1e999",
            "nan",
            '""',
            "[]",
            "{}",
            "true",
            '"\\u0000"',
            '"x"',
            "1979-05-27",
            "[" * 300,
            "{a = 1}",
            "'''",
        )
    )
    lines[at] = rng.choice((f"{name} = {odd}", f"[{name}]", name, f"{name}.a = {odd}", lines[at] * 2, ""))
    text = "\n".join(lines).encode()
    return spoil_bytes(rng, text) if rng.random() < 0.2 else text


def spoil_template(rng: random.Random, content: bytes) -> bytes:
    """Put pieces into a template, or take some out."""
    pieces = re.split(r"(\{[{%].*?[%}]\})", content.decode())
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(pieces) + 1)
        if rng.random() < 0.7:
            pieces.insert(at, rng.choice(SNIPPETS))
        else:
            del pieces[at : at + 1]
    return "".join(pieces).encode("utf-8", "replace")


def spoil_archive(rng: random.Random, content: bytes) -> bytes:
    """Change headers of a tar, or its bytes."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, content)
    out = io.BytesIO()
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as whole,
        tarfile.open(fileobj=out, mode="w", format=form) as spoilt,
    ):
        members = whole.getmembers()
        chosen = rng.randrange(len(members))
        for i, member in enumerate(members):
            held = whole.extractfile(member)
            data = held.read() if held else b""
            if i == chosen:
                _spoil_member(rng, member, members)
                data = rng.choice((data, data + b"x", data[:-1], spoil_bytes(rng, data)))
            if rng.random() < 0.02:
                continue
            member.size = len(data) if member.isreg() else 0
            spoilt.addfile(member, io.BytesIO(data))
    data = bytearray(out.getvalue())
    if rng.random() < 0.3:  # a size that only the header says
        size = rng.choice(
            (
                b"77777777777\x00",
                b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
                b"\xff" * 12,
                b"-0000000001\x00",
            )
        )
        data[124:136] = size
        total = sum(data[:148]) + sum(data[156:512]) + 8 * 32
        data[148:156] = f"{total:06o}\x00 ".encode()
    return bytes(data)


def _spoil_member(rng: random.Random, member: tarfile.TarInfo, members: list[tarfile.TarInfo]) -> None:
    kind = rng.randrange(4)
    if kind == 0:
        top = member.name.partition("/")[0]
        member.name = rng.choice((
            "../x", "/etc/x", f"{top}/../../x", f"{top}/" + "d/" * 300 + "x", f"{top}/" + "n" * 400, "", ".", f"{top}/a\\b", f"{top}/C:x",
            f"{top}/CON", rng.choice(members).name, rng.choice(members).name + "/x", member.name.upper(), f"{top}/\x1b[31m", f"other/{member.name}",
        ))  # fmt: skip
    elif kind == 1:
        member.type = rng.choice(
            (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.DIRTYPE,
                tarfile.FIFOTYPE,
                tarfile.CHRTYPE,
                tarfile.BLKTYPE,
                tarfile.CONTTYPE,
            )
        )
        member.linkname = rng.choice(("/etc/passwd", "..", member.name))
    elif kind == 2:
        member.pax_headers = {
            rng.choice(
                (
                    "size",
                    "path",
                    "mtime",
                    "linkpath",
                    "GNU.sparse.major",
                    "GNU.sparse.realsize",
                    "GNU.sparse.map",
                )
            ): rng.choice(("-1", "9" * 30, "x", "../x", "nan", "", "0,99999999999"))
        }
    else:
        member.mtime = rng.choice((-1, 2**40, 0))
