"""The page is whole HTML, fetches nothing, lets no name act as markup, and says what is missing."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import report_records as records
from pages import Page
from programs import chromium

from fico_export.bundle import output
from fico_export.errors import ConfigError
from fico_export.report import charts, evidence
from fico_export.report.gallery import Item, Shown
from fico_export.report.page import Bundle, Content, render

HOSTILE = "<script>alert(1)</script>\"'&$x^{$ </svg> {{ 7*7 }} 漢字"
SECTIONS = ["bundles", "latency", "memory", "graphs", "gallery", "environment"]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


def picture(caption="seen"):
    return Shown(PIXEL, 1, 1, caption, caption)


def content(name="tiny"):
    """Two bundles measured and evaluated, one image in each."""
    bundles = [records.manifest("whole", "none", 64), records.manifest(name, "uniform", 16)]
    entries = [records.measured(bundles[0], prefill=40.0), records.measured(bundles[1])]
    results = [
        evidence.Evaluated(
            method="none", keep=None, policy="original", right={"colour": [1, 1], "place": [1, 0]}
        ),
        evidence.Evaluated(
            method="uniform", keep=16, policy="original", right={"colour": [1, 0], "place": [0, 0]}
        ),
    ]
    gallery = [
        Item(m.name, f"{name}.png", "16 of 64", picture(name), picture(), [picture(), picture()], [name])
        for m in bundles
    ]
    return Content(
        bundles=[Bundle(Path(m.name), m, None) for m in bundles], runs=[records.run(*entries)], results=results,
        gallery=gallery, prompt=name, notes={"graphs": [name]}, made="now",
    )  # fmt: skip


def test_every_section_is_there_with_its_numbers():
    page = Page(render(content()))

    assert [v for tag, key, v in page.attributes if (tag, key) == ("section", "id")] == SECTIONS
    for words in (
        "Waterfall to the first token", "K sweep", "Accuracy against latency", "Peak memory", "Weights and caches", "MAXN",
        "2000 MHz, at the end 1990 MHz", "uniform, 16", "31.5 (28.4–37.8)", "75.0 ±", "25.0 ±", "torch 2.13", "64 → 16",
        "0.512", "150 MiB",
    ):  # fmt: skip
        assert words in page.words, words
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 8
    assert all(page.values("alt"))
    assert len(page.values("alt")) == 8
    labelled = {v for tag, key, v in page.attributes if (tag, key) == ("figure", "aria-label")}
    assert len(labelled) == 4


@pytest.mark.parametrize("name", ["tiny", HOSTILE])
def test_nothing_is_fetched_and_nothing_runs(name):
    text = render(content(name))
    page = Page(text)

    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    addresses = [v for key in ("src", "href", "xlink:href", "action", "srcset") for v in page.values(key)]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert set(re.findall(r"url\((.*?)\)", text)) <= {f"#{i}" for i in page.values("id")}
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_hostile_names_are_shown_as_they_are():
    page = Page(render(content(HOSTILE)))

    assert "<script>alert(1)</script>" in page.words
    assert "{{ 7*7 }}" in page.words
    assert "漢字" in page.words


def test_one_drawing_serves_light_and_dark():
    text = render(content())
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))

    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)  # every colour is a variable of the page
    for variable in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert text.count(f"{variable}:") == 3  # light, dark, print


def test_what_is_missing_is_said():
    few = content()
    bare = Page(render(Content(bundles=few.bundles, notes={"latency": ["none lies in the bundles"]}))).words
    single = Page(render(Content(bundles=few.bundles, runs=[records.run(few.runs[0].bundles[0])]))).words

    assert "none lies in the bundles" in bare
    assert "Waterfall" not in bare
    assert "One budget was measured" in single
    assert "No evaluation was given" in single


def test_a_profile_without_what_a_machine_may_not_tell():
    run = content().runs[0]
    entries = [entry.model_copy(update={"tpot": None, "host_peak_bytes": None, "vision_parts": {}, "tokens_per_second": None,
                                        "stages": {"vision": records.spread(3.0)}}) for entry in run.bundles]  # fmt: skip
    page = Page(
        render(
            Content(
                bundles=content().bundles, runs=[run.model_copy(update={"bundles": entries, "ratios": {}})]
            )
        )
    )

    assert "The machine did not tell the peak memory." in page.words
    assert "Ratios to the first bundle" not in page.words


def test_a_bundle_alone_has_no_ratios_and_a_static_cache_its_own_size():
    made = records.manifest()
    cache = {"name": "past_key_values.0.key", "dtype": "float16", "shape": [1, 2, 100, 16]}
    graph = {"file": "onnx/decoder.onnx", "inputs": [cache], "outputs": [], "weight_bytes": 0}
    fixed = made.model_validate(made.model_dump() | {"graphs": {"decoder_model_merged": graph}})
    alone = Content([Bundle(Path("engines/tiny"), fixed, None)], [records.run(records.measured(made))])
    page = Page(render(alone))

    assert "Ratios to the first bundle" not in page.words
    # 2 layers of 2 heads of 16 keys and values, FP16: 256 bytes a row, 100 rows.
    assert "256 B" in page.words
    assert "25 KiB" in page.words


def test_the_frontier_is_what_nothing_beats():
    made = records.manifest()
    points = [
        (records.measured(made, ttft=records.spread(ms)), evidence.Evaluated(method="m", keep=1, policy="p", right={"k": [1] * n + [0] * (10 - n)}))
        for ms, n in ((10, 5), (20, 9), (30, 9), (15, 4), (40, 10))
    ]  # fmt: skip

    assert [m.ttft.median for m, _ in charts.frontier(points)] == [10, 20, 40]


def test_a_profile_of_other_bundles_is_refused(tmp_path):
    mine, other = records.manifest(), records.manifest("other")
    records.run(records.measured(other)).save(tmp_path / "other.json")
    with pytest.raises(
        ConfigError, match="is of other bundles: it measured other, and this report is of tiny"
    ):
        evidence.profiles([(tmp_path, mine)], [tmp_path / "other.json"])
    records.run(records.measured(other), records.measured(mine)).save(tmp_path / "both.json")

    assert len(evidence.profiles([(tmp_path, mine)], [tmp_path / "both.json"])) == 1
    assert not evidence.measures(records.measured(records.manifest(keep=8)), mine)


def test_profiles_that_lie_in_the_bundles_are_found_once(tmp_path):
    mine, other = records.manifest(), records.manifest("other")
    folders = [(tmp_path / "a", mine), (tmp_path / "b", other)]
    for folder, _ in folders:
        folder.mkdir()
        records.run(records.measured(mine), records.measured(other)).save(folder / "profile.json")

    assert len(evidence.profiles(folders, [])) == 1
    assert len(evidence.profiles(folders, [tmp_path / name / "profile.json" for name in "ab"])) == 1
    with pytest.raises(
        ConfigError, match="is of other bundles"
    ) as refused:  # what was there is another bundle now
        evidence.profiles([(tmp_path / "a", records.manifest(keep=8))], [])
    assert "delete the file" in refused.value.fix
    (tmp_path / "b" / "profile.json").write_text("{")
    with pytest.raises(ConfigError, match="is no profile"):
        evidence.profiles(folders, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no evaluation"),
        ("{}", "is no evaluation"),
        ("[]", "holds no results"),
        ('[{"method": "m"}]', "0.keep"),
        ('[{"method": "m", "keep": 1, "policy": "original", "right": {}}]', "0.right"),
        (
            '[{"method": "m", "keep": 1, "policy": "original", "right": {"colour": []}}]',
            "not a list of 0 and 1",
        ),
        (
            '[{"method": "m", "keep": 1, "policy": "original", "right": {"colour": [1, 2]}}]',
            "not a list of 0 and 1",
        ),
    ],
)
def test_an_evaluation_that_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        evidence.evaluation(tmp_path / "results.json")


def test_an_evaluation_is_matched_by_method_budget_and_positions():
    results = content().results

    assert evidence.accuracy_of(results, "uniform", 16, "original").accuracy == 0.25
    assert evidence.accuracy_of(results, "uniform", 16, "compact") is None
    assert evidence.accuracy_of(results, "none", 64, "compact").accuracy == 0.75


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need matplotlib") as refused:
        render(content())

    assert refused.value.fix == "in a clone of fico_export: pip install '.[report]'"


def browse(page, width, scheme, folder):
    """Console lines, and addresses that the page itself asked for, in headless Chromium; 0 is dark, 1 light."""
    log = folder / "net.json"
    command = [
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--log-net-log={log}",
        f"--user-data-dir={folder / 'user'}", f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},900",
        "--virtual-time-budget=2000", f"--screenshot={folder / 'shot.png'}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = json.loads(log.read_text())["events"]
    asked = [e["params"] for e in events if isinstance(e.get("params"), dict) and "initiator" in e["params"]]
    own = {
        p["url"] for p in asked if p["initiator"] != "not an origin"
    }  # that is what the browser asks for itself
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line], own


@pytest.mark.slow
def test_a_browser_logs_nothing_and_asks_for_nothing(tmp_path):
    (tmp_path / "page.html").write_text(render(content(HOSTILE)), encoding="utf-8")
    shots = []
    for width, scheme in ((1100, 1), (1100, 0), (390, 1)):
        assert browse(tmp_path / "page.html", width, scheme, tmp_path) == ([], set())
        shots.append((tmp_path / "shot.png").read_bytes())
    assert len(set(shots)) == 3
    # What would be seen if it were there:
    (tmp_path / "bad.html").write_text(
        '<img src="http://127.0.0.1:9/x.png"><script>console.error("boo")</script>'
    )
    lines, asked = browse(tmp_path / "bad.html", 390, 1, tmp_path)
    assert "boo" in " ".join(lines)
    assert asked == {"http://127.0.0.1:9/x.png"}
