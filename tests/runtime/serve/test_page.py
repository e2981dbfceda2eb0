"""The page at `/` in Chromium, against a real server."""

import json
import re
from base64 import b64encode

import jsonschema
import pytest
from PIL import Image

from ..html_page import CONTRAST
from .server import CHAT, running, until

QUESTION = "Read the text."
WIDTHS = {"phone": (360, 740), "wide": (1200, 900)}
LONG = json.dumps({"type": "string", "pattern": "^[ab]{1500}$"})
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
WRONG_SCHEMA = '{"type": "object", "properties": {"total": {"type": "numbr"}}}'


@pytest.fixture
def show(browse):
    """Open the page of a server."""

    def opened(server, width="wide", scheme="light", **options):
        page = browse(server.url + "/", WIDTHS[width], scheme, **options)
        page.wait_for_function("() => document.querySelector('#model').textContent !== 'Connecting…'")
        return page

    return opened


@pytest.fixture
def page(show, server):
    return show(server)


def ask(page, text=QUESTION, thinking=False, schema=None):
    """Ask with the mouse, as far as the answer's begin."""
    page.set_checked("#thinking", thinking)
    if schema is not None:
        page.locator("#format").evaluate("one => { one.open = true; }")
        page.fill("#schema", schema)
    page.fill("#question", text)
    page.click("#go")


def ended(page, status="Answer complete"):
    page.wait_for_function("text => document.querySelector('#status').textContent === text", arg=status)


def by_api(server, messages, thinking=False):
    body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": thinking}}
    status, _, text = server.get(CHAT, body)
    assert status == 200, text
    return json.loads(text)


def uri(file, kind):
    return f"data:{kind};base64,{b64encode(file.read_bytes()).decode()}"


def figures(page):
    rows = page.locator(".turn:last-child dl div").all()
    return {row.locator("dt").inner_text(): row.locator("dd").inner_text() for row in rows}


@pytest.mark.parametrize("thinking", [False, True])
def test_a_picture_is_answered_as_by_the_api(page, server, picture, thinking):
    page.set_input_files("#chosen", picture)
    page.wait_for_selector("#files li")
    ask(page, thinking=thinking)
    ended(page)
    image = {"type": "image_url", "image_url": {"url": uri(picture, "image/png")}}
    content = [image, {"type": "text", "text": QUESTION}]
    answer = by_api(server, [{"role": "user", "content": content}], thinking)
    message = answer["choices"][0]["message"]
    assert page.locator(".answer").text_content() == message["content"]
    details = page.locator(".turn details")
    assert details.is_visible() == thinking
    assert details.locator(".text").text_content() == (message["reasoning"] or "")
    assert details.get_attribute("open") is None
    usage, shown = answer["usage"], figures(page)
    assert shown["Prompt"].startswith(f"{usage['prompt_tokens']} tokens")
    assert shown["Answer"].startswith(f"{usage['completion_tokens']} tokens")
    assert re.fullmatch(r"\d+\.\d\d s", shown["First token"])
    assert re.fullmatch(r"\d+\.\d tokens/s", shown["Speed"])
    assert page.get_by_role("img", name=picture.name).is_visible()
    assert page.said == []
    assert {url.partition(":")[0] for url in page.asked if not url.startswith(server.url + "/")} <= {"data"}


def test_a_pdf_is_read(page, server, picture, tmp_path):
    pdf = tmp_path / "line.pdf"
    with Image.open(picture) as image:
        image.convert("RGB").save(pdf, "PDF", resolution=150)
    page.set_input_files("#chosen", pdf)
    page.wait_for_selector("#files li")
    ask(page)
    ended(page)
    file = {"type": "file", "file": {"file_data": uri(pdf, "application/pdf"), "filename": pdf.name}}
    answer = by_api(server, [{"role": "user", "content": [file, {"type": "text", "text": QUESTION}]}])
    assert page.locator(".answer").text_content() == answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_files_are_dropped_and_pasted(page, way):
    page.evaluate(
        """way => {
            const dataTransfer = new DataTransfer();
            for (const [name, type] of [["a.png", "image/png"], ["b.docx", "application/msword"], ["c.pdf", ""]])
                dataTransfer.items.add(new File(["x"], name, { type }));
            const event = way === "drop" ? new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: dataTransfer, bubbles: true, cancelable: true });
            document.querySelector("#question").dispatchEvent(event);
        }""",
        way,
    )
    page.wait_for_selector("#files li")
    assert page.locator("#files li span").all_inner_texts() == ["a.png", "c.pdf"]
    assert page.locator("#wrong").inner_text() == "Neither image nor PDF: b.docx"
    page.get_by_role("button", name="Remove a.png").click()
    assert page.locator("#files li span").all_inner_texts() == ["c.pdf"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove c.pdf"


def test_turns_are_kept_until_a_new_conversation(page, server):
    history = []
    for question in (QUESTION, "Again.", "And again."):
        history.append({"role": "user", "content": [{"type": "text", "text": question}]})
        ask(page, question)
        page.wait_for_function("n => document.querySelectorAll('.turn dl').length === n", arg=(len(history) + 1) // 2)
        answer = by_api(server, history)
        assert page.locator(".answer").last.text_content() == answer["choices"][0]["message"]["content"]
        assert figures(page)["Prompt"].startswith(f"{answer['usage']['prompt_tokens']} tokens")
        history.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    ask(page)
    ended(page)
    tokens = by_api(server, history[:1])["usage"]["prompt_tokens"]
    assert figures(page)["Prompt"].startswith(f"{tokens} tokens")


def test_an_answer_matches_a_schema(page):
    ask(page, schema=json.dumps(SCHEMA))
    assert page.locator("#format-name").inner_text() == "JSON schema (in use)"
    ended(page)
    jsonschema.validate(json.loads(page.locator(".answer").text_content()), SCHEMA)


@pytest.mark.parametrize(("schema", "says"), [("{", "not JSON"), (WRONG_SCHEMA, "numbr"), ("[1]", "dictionary")])
def test_a_wrong_schema_is_shown_at_its_box_and_loses_nothing(page, picture, schema, says):
    page.set_input_files("#chosen", picture)
    page.wait_for_selector("#files li")
    ask(page, schema=schema)
    page.wait_for_selector("#schema-wrong:not(:empty)")
    assert says in page.locator("#schema-wrong").inner_text()
    assert page.locator("#schema").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "schema"
    assert page.input_value("#question") == QUESTION
    assert page.locator("#files li").count() == 1
    assert page.locator(".turn").count() == 0
    page.fill("#schema", "")
    page.click("#go")
    ended(page)


def test_a_problem_of_the_question_is_shown(page):
    page.click("#go")
    assert page.locator("#wrong").inner_text() == "Write a question first."
    ask(page, "long " * 3000)
    page.wait_for_function("() => document.querySelector('#wrong').textContent.includes('context')")
    assert page.input_value("#question").startswith("long long")


@pytest.mark.parametrize("way", ["button", "Escape", "New conversation"])
def test_stop_frees_the_row(page, server, way):
    ask(page, schema=LONG)
    page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 5")
    assert server.metric("exaone_answers_running") == 1
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#go" if way == "button" else "#new")
    ended(page, "New conversation" if way == "New conversation" else "Stopped")
    server.idle(5)
    assert page.locator("#go").inner_text() == "Ask"
    if way == "New conversation":
        assert page.locator(".turn").count() == 0
    else:
        assert len(page.locator(".answer").text_content()) < 1500
        assert page.locator(".note").inner_text() == "Stopped."


@pytest.mark.parametrize("scrolled_up", [False, True])
def test_the_page_follows_an_answer_unless_the_reader_has_left_its_end(show, server, picture, scrolled_up):
    page = show(server, "phone")
    page.set_input_files("#chosen", [picture] * 12)
    page.wait_for_selector("#files li")
    ask(page, schema=LONG.replace("1500", "400"))
    page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 5")
    if scrolled_up:
        page.evaluate("document.scrollingElement.scrollTop = 0")
    ended(page)
    page.wait_for_selector(".turn dl")
    place = page.evaluate("(one => [one.scrollTop, one.scrollHeight - innerHeight])(document.scrollingElement)")
    assert place[1] > 100
    assert place[0] == (0 if scrolled_up else pytest.approx(place[1], abs=2))


def test_a_server_that_ends_is_said(show, exported):
    with running(exported("fp16"), "--max-rows", 1, "--max-context", 2048) as own:
        page = show(own)
        ask(page, schema=LONG)
        page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 5")
        own.process.kill()
        ended(page, "Not answered")
        assert page.locator(".note.wrong").count() == 1
        assert page.input_value("#question") == QUESTION
        page.click("#go")
        page.wait_for_function("() => document.querySelector('#wrong').textContent.startsWith('The server does not')")


def test_a_key_is_asked_for_where_the_server_has_one(show, server, exported):
    assert not show(server).locator("#unlock").is_visible()
    with running(exported("fp16"), "--max-rows", 1, "--max-context", 512, "--api-key", "secret") as locked:
        page = show(locked)
        field = page.get_by_label("This server asks for an API key.")
        for key, works in (("wrong", False), ("secret", True)):
            field.fill(key)
            field.press("Enter")
            if not works:
                page.wait_for_selector("#key-wrong:not(:empty)")
        page.wait_for_selector("#unlock", state="hidden")
        ask(page)
        ended(page)


def test_all_of_it_by_keyboard(page):
    press = page.keyboard.press
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("First line")
    press("Shift+Enter")
    page.keyboard.type("second line")
    assert page.input_value("#question") == "First line\nsecond line"
    reached = []
    for _ in range(4):
        press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["format-name", "choose", "thinking", "go"]
    press("Shift+Tab")
    press("Space")
    assert not page.is_checked("#thinking")
    press("Tab")
    press("Enter")
    ended(page)
    assert page.evaluate("document.activeElement.id") == "go"
    assert page.locator(".turn .text").first.text_content() == "First line\nsecond line"
    page.focus("#question")
    page.keyboard.type("Next")
    press("Control+Enter")
    page.wait_for_function("() => document.querySelectorAll('.turn dl').length === 2")


def test_enter_that_ends_a_syllable_does_not_ask(page):
    page.fill("#question", "합계는")
    for composes in ({"isComposing": True}, {"keyCode": 229}):
        page.dispatch_event("#question", "keydown", {"key": "Enter", "bubbles": True} | composes)
        assert page.locator(".turn").count() == 0
    page.dispatch_event("#question", "keydown", {"key": "Enter", "bubbles": True})
    assert page.locator(".turn").count() == 1


def test_a_screen_reader_hears_the_state_and_not_each_token(page):
    ask(page, thinking=True)
    ended(page)
    assert page.get_by_role("status").inner_text() == "Answer complete"
    assert page.locator("main [aria-live], main [role=status], main [role=log], main [role=alert]").count() == 0
    assert page.get_by_role("heading", name="Answer 1").count() == 1
    for role, name in (
        ("textbox", "Question"),
        ("checkbox", "Think first"),
        ("button", "Ask"),
        ("main", "Conversation"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    unnamed = page.evaluate("""() => [...document.querySelectorAll("textarea, input:not([hidden])")].filter(
        one => !one.labels.length).map(one => one.id)""")
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read(show, server, picture, width, scheme):
    page = show(server, width, scheme, reduced_motion="reduce")
    page.set_input_files("#chosen", [picture] * 3)
    page.wait_for_selector("#files li")
    ask(page, "x0" * 200, thinking=True)
    ended(page)
    page.locator(".turn summary").click()
    page.set_input_files("#chosen", picture)
    page.wait_for_selector("#files li")
    ask(page, schema=WRONG_SCHEMA)
    page.wait_for_selector("#schema-wrong:not(:empty)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= WIDTHS[width][0]
    out = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one => one.checkVisibility()
        && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))""")
    assert out == []
    low = [pair for pair in page.locator("body *").evaluate_all(CONTRAST) if pair[0] < 4.5]
    assert low == []
    assert page.evaluate("document.getAnimations().length") == 0


def test_the_page_may_reach_its_own_server_alone(server):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, text = server.get(path)
        assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert rules["default-src"] == "'none'"
        assert (rules["script-src"], rules["style-src"], rules["connect-src"]) == ("'self'",) * 3
        assert "//" not in re.sub(r"^.* // .*$", "", text, flags=re.M)


def test_a_page_that_is_closed_frees_its_row(page, server):
    ask(page, schema=LONG)
    until(lambda: server.metric("exaone_answers_running") == 1, 10)
    page.close()
    server.idle(5)
