"""Archives that were made to do harm: refused before a byte is written, in little memory, in the time that reading headers takes."""

import io
import os
import subprocess
import sys
import tarfile
from hashlib import sha256

import pytest
from cli_tools import command_line, edit_json
from stub_bundles import write_stub

MEMORY_BYTES = 1_500_000_000  # of address space, most of it Python's and NumPy's


@pytest.fixture
def own(tmp_path):
    """A bundle."""
    return write_stub(tmp_path / "bundle")


@pytest.fixture
def archive(own, tmp_path):
    """archive(*entries, keep=…): a tar of the bundle, without the files that `keep` refuses, and then (header, content) pairs."""

    def make(*entries, keep=lambda name: True):
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(own.rglob("*"), key=lambda path: path.name != "manifest.json"):
                if path.is_file() and keep(path.name):
                    tar.add(path, f"b/{path.relative_to(own).as_posix()}")
            for header, content in entries:
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
        return tmp_path / "a.tar"

    return make


@pytest.fixture
def spoilt(fico, tmp_path):
    """spoilt(archive, *words): it is refused, and nothing remains."""

    def check(archive, *words):
        before = sorted(p.name for p in tmp_path.iterdir())
        fico("unpack", archive, "--out", tmp_path / "out").refuses(*words)
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    return check


def entry(name, kind=tarfile.REGTYPE, content=b"", **pax):
    made = tarfile.TarInfo(name)
    made.type, made.pax_headers = kind, pax
    return made, content


def block(name, size, kind=b"0"):
    """A raw header whose size field holds any number: in octal, or in base 256 where it has no octal."""
    head = bytearray(512)
    head[: len(name)] = name
    head[100:108] = b"0000644\0"
    field = (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    )
    head[124:136] = field
    head[136:148] = b"00000000000\0"
    head[156:157] = kind
    head[257:265] = b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def raw(archive, *blocks):
    """The archive with raw blocks in place of its end."""
    with tarfile.open(archive) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    archive.write_bytes(archive.read_bytes()[:end] + b"".join(blocks))
    return archive


def test_the_archive_that_these_are_made_of_is_good(fico, archive, tmp_path):
    assert fico("unpack", archive(entry("b/", tarfile.DIRTYPE)), "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("b/config.json", tarfile.DIRTYPE, ["'config.json' is a file and a folder"]),
        ("b/config.json/x", tarfile.REGTYPE, ["config.json/x is not in its manifest"]),
        ("b/CONFIG.json", tarfile.REGTYPE, ["CONFIG.json is not in its manifest"]),
        ("b/" + "x" * 300, tarfile.REGTYPE, ["has a part of more than 200 bytes"]),
        ("b/" + "x/" * 400, tarfile.REGTYPE, ["1 to 512 characters"]),
        ("b/" + "x/" * 40 + "x", tarfile.REGTYPE, ["more than 16 parts"]),
        ("b/nul", tarfile.REGTYPE, ["no plain file name"]),
        ("b//config.json", tarfile.REGTYPE, ["not written plainly"]),
        ("b/./config.json", tarfile.REGTYPE, ["not written plainly"]),
        ("b/\x1b[2Jx", tarfile.REGTYPE, ["holds a control character"]),
        ("b/trt/build.json", tarfile.REGTYPE, ["trt/build.json is not in its manifest"]),
        ("b/device", tarfile.BLKTYPE, ["is no plain file"]),
        ("b/queue", tarfile.FIFOTYPE, ["is no plain file"]),
    ],
)
def test_names_that_do_not_belong_there_are_refused(name, kind, words, archive, spoilt):
    spoilt(archive(entry(name, kind)), *words)


def test_a_folder_of_an_archive_whose_name_is_no_plain_one_is_refused(fico, own, tmp_path):
    for top in ("..b", "-rf", "~", "con", "b\tc"):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for path in own.rglob("*"):
                if path.is_file():
                    tar.add(path, f"{top}/{path.relative_to(own).as_posix()}")
        if top != "..b":
            fico("unpack", tmp_path / "a.tar").refuses("has no plain name", "--out")
        assert fico("unpack", tmp_path / "a.tar", "--out", tmp_path / "out", "--overwrite").code == 0


@pytest.mark.parametrize("size", [-1, -512, -(2**63), 2**63, 2**63 - 1, 2**80, 8 * 10**9])
def test_sizes_that_are_none_are_refused(size, archive, spoilt):
    spoilt(raw(archive(keep=lambda name: name != "config.json"), block(b"b/config.json", size)), "a.tar")


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [8 * 10**9, 2**63, -512, 10**6])
def test_headers_that_claim_gigabytes_are_refused_in_little_memory(kind, size, archive):
    made = raw(archive(), block(b"././@PaxHeader", size, kind))
    with made.open("r+b") as file:
        file.truncate(made.stat().st_size + 9 * 10**9)  # they are there: as a hole

    _refused_in_little_memory(made)


def test_many_headers_one_upon_another_are_refused_in_little_memory(archive):
    record = b"30 comment=" + b"x" * 18 + b"\n"
    header = block(b"p", len(record), b"x") + record.ljust(512, b"\0")
    _refused_in_little_memory(raw(archive(), *[header] * 5000))
    many = [block(b"b/%d" % number, 0) for number in range(20_000)]
    _refused_in_little_memory(raw(archive(), *many))


def test_a_sparse_member_does_not_become_gigabytes(archive, tmp_path):
    """Thirty of them in two kilobytes, of both kinds that GNU tar writes."""
    sparse = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(30 * 10**9),
    }
    one = archive(entry("b/config.json", **sparse), keep=lambda name: name != "config.json")
    assert "is no plain file" in _refused_in_little_memory(one)
    old = bytearray(block(b"b/config.json", 0, b"S"))
    old[386:482], old[482:483], old[483:495] = b"\0" * 96, b"\0", b"%011o\0" % (8**11 - 1)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    assert "is no plain file" in _refused_in_little_memory(
        raw(archive(keep=lambda name: name != "config.json"), bytes(old))
    )


def _refused_in_little_memory(archive):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES},) * 2)\n"
    line = command_line("fico", "unpack", archive, "--out", archive.parent / "out")
    line[2] = limit + line[2].replace("; m()", "\nm()")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert str(archive) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (archive.parent / "out").exists()
    return done.stderr


def test_a_header_that_says_another_size_does_not_help(archive, spoilt):
    short = entry("b/config.json", content=b"{}", size="1000000000000")
    spoilt(archive(short, keep=lambda name: name != "config.json"), "a.tar")
    spoilt(
        archive(entry("b/config.json", content=b"{}", size="-5"), keep=lambda name: name != "config.json"),
        "a.tar",
    )
    spoilt(
        archive(entry("b/config.json", content=b"{}", size="1"), keep=lambda name: name != "config.json"),
        "config.json",
    )


def test_sizes_are_compared_with_the_manifest_before_a_byte_is_written(archive, fico, tmp_path, monkeypatch):
    made = archive(entry("b/config.json", content=b"{ }"), keep=lambda name: name != "config.json")
    monkeypatch.setattr("fico_export.bundle.unpack.written_folder", None)

    fico("unpack", made, "--out", tmp_path / "out").refuses("config.json has 3 bytes, the manifest says 2")


def test_what_follows_the_end_of_an_archive_is_refused(archive, spoilt):
    made = archive()
    made.write_bytes(made.read_bytes() + b"something else")
    spoilt(made, "goes on after its end")
    made = archive()
    made.write_bytes(made.read_bytes() * 2)
    spoilt(made, "goes on after its end")
    made = archive()
    with made.open("r+b") as file:
        file.truncate(10**12)
    spoilt(made, "follow its end")


def test_a_manifest_in_an_archive_is_read_within_limits(archive, own, spoilt):
    edit_json(own / "manifest.json", files__evil={"sha256": "0" * 64, "size": 10**15})
    spoilt(archive(), "evil is missing")
    edit_json(own / "manifest.json", files={"../evil": {"sha256": sha256(b"").hexdigest(), "size": 0}})
    spoilt(archive(), "manifest.json in", "leads out of the bundle")
    (own / "manifest.json").write_bytes(b"[" * 100_000)
    spoilt(archive(), "manifest.json in", "is damaged")
    (own / "manifest.json").write_bytes(b" " * (17 << 20))
    spoilt(archive(), "manifest.json is larger than 16 MiB")


@pytest.mark.parametrize(("command", "hint"), [("gzip", "gunzip"), ("bzip2", "bunzip2"), ("xz", "xz -d")])
def test_a_compressed_archive_says_what_unpacks_it(command, hint, archive, spoilt, fico, tmp_path):
    made = archive()
    subprocess.run([command, made], check=True)
    squeezed = next(tmp_path.glob("a.tar.*"))

    spoilt(squeezed, "it is compressed", f"{hint} {squeezed}")
    subprocess.run([*hint.split(), squeezed], check=True)
    assert fico("unpack", made, "--out", tmp_path / "out").code == 0


def test_what_is_no_file_is_not_waited_for(own, fico, tmp_path):
    fico("unpack", own).refuses("is a folder, not an archive", f"fico run {own}")
    fico("unpack", tmp_path).refuses("is a folder, not an archive")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "queue")
        fico("unpack", tmp_path / "queue").refuses("is no plain file")


@pytest.mark.skipif(sys.platform == "win32", reason="names of POSIX")
def test_engines_of_an_archive_stay_in_their_folder(archive, spoilt):
    build = b'{"schema_version": 1, "engines": {"model": {"file": "../../evil.engine"}}}'
    spoilt(archive(entry("b/trt/rtx/build.json", content=build)), "build.json in", "is damaged")
