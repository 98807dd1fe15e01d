"""The page in a real browser, served by serve.py with a small model of random weights."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE, eventually
from served import CONFIG, add_checkpoint, begun, http, make_run
from test_adapters import make as make_adapter

from gpt2_mlx import checkpoint
from gpt2_mlx.model import GPT2

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DARKEST = 0.42  # opacity of the most surprising token's shade
PAGE = Path(__file__).parents[1] / "gpt2_mlx" / "serving" / "page"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        try:  # without one on the path: playwright's own
            yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground")
    make_run(folder / "checkpoints" / "verse")
    return folder


@pytest.fixture(scope="module")
def url(folder, browser):
    with begun(folder, "--watch", "--max-queue", "2", "--max-batch-size", "1") as (_, url):
        yield url


@pytest.fixture
def tab(browser, url):
    """A tab that has shown the page, requested nothing of another host and logged no error but those told."""
    with contextlib.closing(browser.new_context(permissions=["clipboard-read", "clipboard-write"])) as context:
        tab = context.new_page()
        hosts, errors = set(), []
        tab.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.expected_errors = []
        tab.set_default_timeout(1000 * PATIENCE)
        tab.goto(url)
        tab.wait_for_selector("#state.ready")
        yield tab
        assert hosts == {url.split("/")[2]}
        unexpected = [e for e in errors if not any(part in e for part in tab.expected_errors)]
        assert unexpected == []


def fill(tab, text: str = "KING", **fields) -> None:
    tab.fill("#text", text)
    for name, value in ({"max_tokens": 12} | fields).items():
        tab.fill(f"#{name}", str(value))


def run(tab, **fields) -> list[str]:
    """The texts of a run that has come to its end."""
    fill(tab, **fields)
    tab.press("#text", "Control+Enter")
    return finished(tab)


def finished(tab) -> list[str]:
    tab.wait_for_selector("article")
    tab.wait_for_selector("#run:not([hidden])")
    assert tab.locator(".writing").count() == 0
    return tab.eval_on_selector_all(".prose", "all => all.map(p => p.textContent)")


def test_the_page_is_small_and_names_no_other_host(url):
    assert sum(file.stat().st_size for file in PAGE.iterdir()) < 50_000
    for file in PAGE.iterdir():
        assert not re.search(r"(https?:)?//[a-z]+\.[a-z]", file.read_text()), file
    response = http.get(url)
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_seed_decides_the_text(tab):
    first, other = run(tab, seed=1), run(tab, seed=2)
    assert first != other and run(tab, seed=1) == first
    assert first[0].startswith("KING") and len(first[0]) > 4
    tab.click("#dice")
    assert finished(tab) != first and tab.input_value("#seed") not in ("1", "")


def test_text_streams_in_and_stops(tab, url):
    tab.check("[name=n][value='4']", force=True)  # one after the other, for long enough
    fill(tab, max_tokens=4096, seed=1)
    tab.press("#text", "Control+Enter")
    tab.wait_for_selector(".token:nth-of-type(7)")
    assert tab.is_visible("#stop") and not tab.is_visible("#run")
    tab.press("#text", "Escape")
    finished(tab)
    assert "stopped" in tab.locator("article header").last.inner_text()
    eventually(lambda: "gpt2_running 0.0" in http.get(url + "/metrics").text)
    n = tab.locator(".token").count()
    assert 5 < n < 4 * 4096 and tab.is_enabled("#run")


def test_a_bad_value_is_told_at_its_field_and_the_input_kept(tab):
    tab.expected_errors.append("400")
    texts = run(tab, seed=1)
    fill(tab, text="My kingdom", temperature=5)
    tab.click("#run")
    assert "temperature is 5" in tab.inner_text("#error:visible").lower()
    assert tab.get_attribute("#temperature", "aria-invalid") == "true"
    assert tab.evaluate("document.activeElement.id") == "temperature"
    assert tab.input_value("#text") == "My kingdom"
    assert tab.eval_on_selector_all(".prose", "all => all.map(p => p.textContent)") == texts
    assert run(tab, temperature=0.8) and not tab.is_visible("#error")


def test_a_full_queue_and_a_server_that_is_gone_are_told_in_words(tab, url):
    tab.expected_errors += ["429", "ERR_FAILED"]
    body = {"text": "a", "max_tokens": 4096, "n": 64, "stream": True}  # one text after the other, for minutes
    with http.stream("POST", url + "/complete-sentence", json=body) as response:
        assert response.status_code == 200
        fill(tab)
        tab.click("#run")
        assert re.search(r"busy: .*wait already.*Try again in 1 s", tab.inner_text("#error:visible"))
    tab.route("**/complete-sentence", lambda route: route.abort())
    tab.click("#run")
    tab.wait_for_selector("#error:has-text('does not answer')")
    assert tab.input_value("#text") == "KING"
    tab.unroute("**/complete-sentence")


def test_tokens_tell_what_else_might_have_stood_there(tab):
    run(tab, seed=1)
    assert tab.locator(".token").count() == 12
    shades = tab.eval_on_selector_all(".token", "all => all.map(t => +t.style.getPropertyValue('--surprise'))")
    assert all(0 < shade <= DARKEST for shade in shades)
    tab.focus(".prose")
    assert not tab.is_visible("#tip")
    tab.keyboard.press("ArrowRight")
    rows = tab.eval_on_selector_all("#tip div", "all => all.map(row => row.textContent)")
    assert len(rows) in (5, 6) and all("%" in row for row in rows)
    assert tab.locator("#tip .drawn").count() == 1
    tab.keyboard.press("End")
    assert tab.locator(".token.here").evaluate("t => [...document.querySelectorAll('.token')].indexOf(t)") == 11


def test_samples_and_checkpoints_side_by_side(tab):
    tab.check("[name=n][value='2']", force=True)
    one_by_one = [run(tab, seed=1)]
    assert len(one_by_one[0]) == 2 and len(set(one_by_one[0])) == 2
    tab.check("[name=n][value='1']", force=True)
    for name in ("step-00000002", "step-00000004"):
        tab.check(f"[value={name}]", force=True)
    texts = run(tab, seed=1)
    assert len(texts) == 2 and texts[0] != texts[1]
    assert texts[1] == one_by_one[0][0], "the best checkpoint, and the first of its samples"
    heads = tab.eval_on_selector_all("article header", "all => all.map(head => head.textContent)")
    assert ["step 2" in head for head in heads] == [True, False] and "step 4" in heads[1]


def test_adapters_side_by_side_with_their_base(browser, tmp_path):
    checkpoint.save(tmp_path / "base", GPT2(CONFIG, seed=1))
    names = ("pirate", "poet")
    for rank, name in enumerate(names, 1):
        make_adapter(tmp_path / "base", tmp_path / name, rank, 1, ("attn.c_attn", "mlp.c_fc"), CONFIG.block_size)
    flags = [part for name in names for part in ("--adapter", f"{name}={name}")]
    with begun(tmp_path, "--checkpoint", "base", *flags) as (_, url), contextlib.closing(browser.new_page()) as tab:
        tab.goto(url)
        tab.wait_for_selector("#state.ready")
        for name in ("base", *names):
            tab.check(f"[name=checkpoint][value={name}]", force=True)
        texts = run(tab, seed=1)
        heads = tab.eval_on_selector_all("article header", "all => all.map(head => head.textContent)")
        assert [name in head for name, head in zip(("base", *names), heads, strict=True)] == [True] * 3
        assert len(set(texts)) == 3
        body = {"text": "KING", "max_tokens": 12, "seed": 1}
        for name, text in zip(names, texts[1:]):
            answer = http.post(url + "/complete-sentence", json=body | {"checkpoint": name}).json()
            assert answer["completed_sentence"] == text
        if folder := os.environ.get("SCREENSHOTS"):
            tab.screenshot(path=f"{folder}/adapters.png")


def test_a_link_and_the_copies_reproduce_the_text(tab, browser):
    fields = {"text": 'A "king"\'s\nson é🎭', "seed": 3, "top_k": 7, "temperature": 1.2}
    texts = run(tab, **fields)
    copied = {}
    tab.evaluate("window.setTimeout = () => 0")  # the buttons go on saying so
    for kind in ("link", "curl", "python"):
        tab.click(f"[data-copy={kind}]")
        tab.wait_for_selector(f"[data-copy={kind}]:has-text('copied')")
        copied[kind] = tab.evaluate("navigator.clipboard.readText()")
    other = browser.new_page()
    other.goto(copied["link"])
    assert finished(other) == texts
    other.close()
    answer = subprocess.run([sys.executable, "-c", copied["python"]], capture_output=True, text=True, check=True)
    assert answer.stdout == texts[0] + "\n"
    if shutil.which("curl"):
        answer = subprocess.run(["bash", "-c", copied["curl"]], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["completed_sentence"] == texts[0]


def asked_by(tab) -> list[dict]:
    """The bodies of the requests for texts that the page sends from now on."""
    bodies = []
    tab.on("request", lambda r: bodies.append(r.post_data_json) if r.url.endswith("complete-sentence") else None)
    return bodies


GREY = "#ghost:not([hidden])"


def test_what_might_come_next_is_taken_over_with_tab_and_dismissed_with_escape(tab, url):
    bodies = asked_by(tab)
    tab.fill("#seed", "1")
    tab.type("#text", "KING")
    tab.check("#ahead")
    assert tab.get_attribute("#text", "aria-autocomplete") == "inline"
    assert not tab.is_visible(GREY) and not bodies  # nothing has been typed in this mode
    tab.type("#text", "S")
    tab.wait_for_selector(GREY)
    typed, grey = tab.eval_on_selector_all("#ghost span", "all => all.map(s => s.textContent)")
    assert typed == tab.input_value("#text") == "KINGS" and "Tab takes it over" in tab.inner_text("#live")
    whole = http.post(url + "/complete-sentence", json=bodies[-1]).json()["completed_sentence"]
    assert whole == "KINGS" + grey and len(bodies) == 1
    tab.press("#text", "Tab")
    assert tab.input_value("#text") == whole and tab.evaluate("document.activeElement.id") == "text"
    tab.wait_for_selector(GREY)  # it goes on from there
    tab.press("#text", "Escape")
    assert not tab.is_visible(GREY) and tab.input_value("#text") == whole
    tab.press("#text", "Tab")
    assert tab.input_value("#text") == whole and tab.evaluate("document.activeElement.id") != "text"
    assert tab.locator("article").count() == 0
    assert len({body["supersede"] for body in bodies}) == 1 and all(body["timeout"] == 10 for body in bodies)


def test_while_keys_come_nothing_is_asked_and_an_old_answer_is_not_shown(tab):
    bodies, held = asked_by(tab), []

    def hold_the_first(route):
        held.append(route)
        if len(held) > 1:
            route.continue_()

    tab.route("**/complete-sentence", hold_the_first)
    tab.check("#ahead")
    tab.focus("#text")
    at_once = """words => { for (const word of words) document.execCommand("insertText", false, word); }"""
    tab.evaluate(at_once, ["a", "b", "c"])
    eventually(lambda: tab.evaluate("true") and held)  # asking the page lets it tell of requests
    tab.evaluate(at_once, ["d"])
    tab.wait_for_selector(GREY)
    shown = tab.inner_text("#ghost")
    assert [body["text"] for body in bodies] == ["abc", "abcd"]
    answer = {"completed_sentence": "abcOLD", "finish_reason": "length"}
    with tab.expect_response("**/complete-sentence"):
        held[0].fulfill(json=answer)
    tab.evaluate("fetch('health').then(answer => answer.text())")  # the page has seen the old one by then
    assert tab.inner_text("#ghost") == shown and "OLD" not in shown
    tab.press("#text", "ArrowLeft")  # in the middle of a text there is none
    tab.wait_for_selector("#ghost", state="hidden")
    tab.unroute("**/complete-sentence")


def test_what_might_come_next_does_not_come_after_a_run_has_begun(tab):
    bodies, held = asked_by(tab), []
    tab.route("**/complete-sentence", lambda route: held.append(route) if not held else route.continue_())
    tab.check("#ahead")
    tab.fill("#max_tokens", "3")
    tab.type("#text", "KING")
    eventually(lambda: tab.evaluate("true") and held)
    tab.press("#text", "Control+Enter")
    eventually(lambda: tab.evaluate("true") and len(bodies) == 2)
    with tab.expect_response("**/complete-sentence"):
        held[0].fulfill(json={"completed_sentence": "KINGLATE", "finish_reason": "length"})
    tab.evaluate("fetch('health').then(answer => answer.text())")
    assert not tab.is_visible(GREY)
    tab.unroute("**/complete-sentence")


def test_a_key_is_asked_for_and_kept_out_of_the_address(browser, folder):
    with begun(folder, "--api-key", "sesame") as (_, url), contextlib.closing(browser.new_page()) as tab:
        tab.goto(url)
        fill(tab)
        tab.click("#run")
        assert "asks for a key" in tab.inner_text("#error:visible")
        assert tab.evaluate("document.activeElement.id") == "key"
        tab.fill("#key", "sesame")
        tab.press("#key", "Control+Enter")
        assert finished(tab)[0].startswith("KING") and "sesame" not in tab.url


def test_card_and_curve_follow_the_run(tab, folder):
    assert "step 4 of 8" in tab.inner_text("#facts") and "10.500, 3.500 bits per byte" in tab.inner_text("#facts")
    assert tab.evaluate("document.querySelector('#curve img').decode().then(() => true)")
    assert "step 4" in tab.get_attribute("#curve img", "alt")
    run_folder = folder / "checkpoints" / "verse"
    add_checkpoint(run_folder, 6, "latest", "best")
    try:
        tab.wait_for_selector("#state:has-text('step 6')")
        assert "step 6" in tab.inner_text("#facts") and tab.locator("[name=checkpoint]").count() == 3
    finally:
        add_checkpoint(run_folder, 4, "latest", "best")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser, url, scheme):
    """Contrast of at least 4.5 (WCAG 2.2, AA), of shaded tokens too."""
    with contextlib.closing(browser.new_context(color_scheme=scheme)) as context:
        tab = context.new_page()
        tab.goto(url)
        colours = tab.evaluate("""() => {
            const style = getComputedStyle(document.documentElement);
            return Object.fromEntries(["paper", "card", "ink", "muted", "accent", "on-accent", "tint"]
                .map(name => [name, style.getPropertyValue("--" + name).trim()]));
        }""")
    colours = {name: rgb(value) for name, value in colours.items()}
    shaded = tuple(DARKEST * a + (1 - DARKEST) * b for a, b in zip(colours["tint"], colours["card"]))
    pairs = [("ink", "paper"), ("ink", "card"), ("muted", "paper"), ("muted", "card"), ("accent", "paper")]
    for one, ground in [*pairs, ("accent", "card"), ("on-accent", "accent")]:
        assert contrast(colours[one], colours[ground]) >= 4.5, (one, ground)
    assert contrast(colours["ink"], shaded) >= 4.5


def rgb(value: str) -> tuple[float, ...]:
    if value.startswith("#"):
        digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
        return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))
    return tuple(map(float, value.split()))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    def luminance(colour):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_on_a_phone_nothing_is_cut_off(browser, url):
    with contextlib.closing(browser.new_context(viewport={"width": 360, "height": 740})) as context:
        tab = context.new_page()
        tab.goto(url + "/#text=KING&max_tokens=30&seed=1")
        assert len(finished(tab)) == 1
        for path in ("/", "/docs"):
            tab.goto(url + path)
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
