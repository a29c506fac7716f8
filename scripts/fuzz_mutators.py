"""What is done to files: values of a JSON or TOML text, and bytes of anything."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e-300, 1e308, "", "0", "x", "../../x",
    "/etc/passwd", "a/b", "\0", "\x1b[31m", "[red]", "a" * 5000, "é🐈\u202e", [], {}, [[]], [1], [None], ["x"], {"x": 1}, {"": None},
    [1, 2, 3], [[1, 2], [3]], "nan", "float32", "<image>", "{{ x }}", "{%", "con", ".", "..", "~", "onnx/decoder_model_merged.onnx",
]  # fmt: skip
LITERALS = [
    "9" * 5000, "-" + "9" * 5000, "1e99999", "NaN", "-Infinity", "[" * 5000 + "]" * 5000, '{"a":' * 200 + "1" + "}" * 200,
    '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "1.0", "01", "0x10", "'x'", "//", '{"a":1,"a":2}', "[" * 200_000,
]  # fmt: skip
TEXTS = (".json", ".jinja", ".toml", ".jsonl", ".txt", ".log")


def mutate(path: Path, chance: random.Random) -> str:
    """Change a file in place; returns what was done."""
    content = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.7:
        new, said = _json(content, chance)
    elif path.suffix in TEXTS and chance.random() < 0.6:
        new, said = _text(content, chance)
    else:
        new, said = _bytes(content, chance)
    path.write_bytes(new)
    return f"{path.name}: {said}"


def _json(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Another value, a key that is gone, renamed or new, or a literal that no program writes."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return _text(content, chance)
    holders = [(None, None, document), *_places(document)]
    # Shallow values are few and many files have long lists: half of the time by depth first.
    holder, key, value = chance.choice(holders[: chance.choice((8, 64, len(holders)))])
    name = "/".join(str(key)[:40] for key in ("", key) if key is not None) or "the whole"
    kind = chance.choice(("value", "value", "value", "literal", "gone", "renamed", "wrapped", "repeated"))
    marker = "\uffff"
    if kind == "gone" and holder is not None:
        del holder[key]
    elif kind == "renamed" and isinstance(holder, dict):
        holder[chance.choice(("x", "", "\0", f"{key}_"))] = holder.pop(key)
    else:
        new = {
            "literal": marker,
            "wrapped": [value] if chance.random() < 0.5 else {"x": value},
            "repeated": value * 50 if isinstance(value, str | list) else [value] * 50,
        }.get(kind, chance.choice(HOSTILE))
        if holder is None:
            document = new
        else:
            holder[key] = new
    text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    literal = chance.choice(LITERALS)
    for spelt in (json.dumps(marker), json.dumps(marker, ensure_ascii=False)):
        text = text.replace(spelt, literal)
    return text.encode("utf-8", "surrogatepass"), f"{kind} at {name}" + (
        f" {literal[:20]}" if kind == "literal" else ""
    )


def _places(document: Any) -> list[tuple[Any, Any, Any]]:
    """(holder, key, value) of each value, those near the root first."""
    found: list[tuple[Any, Any, Any]] = []
    level = [document] if isinstance(document, dict | list) else []
    while level:
        here = [
            (holder, key, value)
            for holder in level
            for key, value in (
                list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))[:200]
            )
        ]
        found += here
        level = [value for _, _, value in here if isinstance(value, dict | list)]
    return found


def _text(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A number, a word or a line that is another."""
    text = content.decode("utf-8", "replace")
    kind = chance.choice(("line", "number", "insert", "swap", "cut", "repeat"))
    at = chance.randrange(len(text) + 1)
    lines = text.split("\n")
    if kind == "line":
        lines[chance.randrange(len(lines))] = chance.choice(
            (*LITERALS, "", "x = 1", "[x]", "{% endfor %}", "\t" * 100)
        )[:5000]
        text = "\n".join(lines)
    elif kind == "swap" and len(lines) > 1:
        i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        text = "\n".join(lines)
    elif kind == "number":
        digits = [i for i, letter in enumerate(text) if letter.isdigit()]
        if digits:
            at = chance.choice(digits)
            text = (
                text[:at]
                + chance.choice(("9" * 5000, "-1", "0", "1e999", "nan", "1.2.3", "x", ""))
                + text[at + 1 :]
            )
    elif kind == "insert":
        text = text[:at] + str(chance.choice((*HOSTILE, *LITERALS)))[:5000] + text[at:]
    elif kind == "cut":
        text = text[:at]
    else:
        end = min(len(text), at + chance.randrange(1, 200))
        text = text[:at] + text[at:end] * chance.choice((2, 10, 300)) + text[end:]
    return text.encode("utf-8", "surrogatepass"), f"{kind} at {at}"


def _bytes(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Bytes that are others, gone, or twice there."""
    data = bytearray(content)
    kind = chance.choice(
        ("flip", "flip", "number", "cut", "drop", "double", "zero", "noise", "empty", "front")
    )
    near = chance.choice((64, 4096, max(1, len(data))))  # heads of files say more than their middles
    at = chance.randrange(min(near, max(1, len(data))))
    length = chance.choice((1, 4, 8, 64, 1000))
    if kind == "flip":
        for _ in range(chance.choice((1, 3, 20))):
            if data:
                data[chance.randrange(min(near, len(data)))] ^= 1 << chance.randrange(8)
    elif kind == "number":
        size = chance.choice((1, 2, 4, 8))
        value = chance.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)))
        data[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")))
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + length]
    elif kind == "double":
        data[at:at] = data[at : at + length] * chance.choice((1, 50))
    elif kind == "zero":
        data[at : at + length] = bytes(length)
    elif kind == "noise":
        data[at : at + length] = chance.randbytes(length)
    elif kind == "empty":
        data.clear()
    else:
        data[:0] = chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 8, b"%!PS\n", b"[", b"<html>"))
    return bytes(data), f"{kind} at byte {at}"


def hash_again(bundle: Path) -> None:
    """Write the right sizes and hashes into a manifest, as the author of a hostile bundle does."""
    path = bundle / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            content = (bundle / name).read_bytes()
            entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        path.write_text(json.dumps(manifest), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # what is damaged so far is damaged enough


def rewrite_tar(path: Path, chance: random.Random) -> None:
    """An archive whose headers are whole, and one of whose members is not as it should be."""
    with tarfile.open(path) as archive:
        members = [(member, archive.extractfile(member)) for member in archive]
        held = [(member, file.read() if file else b"") for member, file in members]
    top = held[0][0].name.split("/")[0]
    member, content = chance.choice(held)
    kind = chance.choice(("name", "name", "type", "size", "twice", "gone", "sparse", "order", "content"))
    odd = tarfile.TarInfo(member.name)
    odd.size = len(content)
    if kind == "name":
        names = (
            f"{top}/../x", "/tmp/x", f"{top}/" + "a" * 300, f"{top}/" + "a/" * 3000 + "b", f"{top}/onnx", f"{member.name}/x", "x", "",
            ".", "..", f"{top}//config.json", f"{top}/./config.json", f"{top}/C\u0000x", f"{top}/é🐈", f"other/{member.name}",
            f"{top}/\x1b[31mx", f"{top}/CONFIG.JSON", f"{top}/manifest.json/x",
        )  # fmt: skip
        odd.name = chance.choice(names)
    elif kind == "type":
        odd.type = chance.choice(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, b"Z")
        )
        odd.linkname, odd.size = chance.choice(("/etc/passwd", "../../x", member.name, "")), 0
    elif kind == "sparse":
        odd.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(30 * 10**9),
        }
        content = f"1\n{30 * 10**9 - 1}\n1\n".encode().ljust(512, b"\0") + b"x"
        odd.size = len(content)
    elif kind == "content":
        content = content[: len(content) // 2] + b"x" + content[len(content) // 2 + 1 :]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        listed = (
            [one for one in held if one[0] is not member]
            if kind in ("gone", "type", "name", "sparse")
            else held
        )
        if kind == "order":
            listed = chance.sample(held, len(held))
        for one, its in listed:
            archive.addfile(one, io.BytesIO(its))
        if kind in ("name", "type", "sparse", "twice", "content"):
            archive.addfile(odd, io.BytesIO(content))
    whole = bytearray(made.getvalue())
    if (
        kind == "size"
    ):  # the header's field of octal digits, or of a binary number, with the sum that goes with it
        at = 512 * (len(whole) // 512 // 2) if chance.random() < 0.2 else 0
        sizes = (
            b"777777777777",
            b"-0000000001\0",
            b"\x80" + b"\x7f" + b"\xff" * 10,
            b"\xff" * 12,
            b"00000000000\0",
            b"xxxxxxxxxxxx",
        )
        whole[at + 124 : at + 136] = chance.choice(sizes)
        whole[at + 148 : at + 156] = b" " * 8
        whole[at + 148 : at + 156] = b"%06o\0 " % (sum(whole[at : at + 512]) & 0o777777)
    path.write_bytes(whole)
