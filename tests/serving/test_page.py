"""The page at `/`, in a browser with a microphone, as people use it: at a phone's width, and for a service that wants a key."""

import base64
import hashlib
import io
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests
import soundfile

from tests.serving.browser import CHROMIUM, chromium
from tests.serving.conftest import TONES, audio_file, error_of, tone, transcribe

KEY = "key-of-tests"
FILES = {
    "tone.wav": TONES[0],
    "longer & <other>.wav": audio_file(tone(880, 4.0)),
    "letter.wav": b"Dear sir,\n" * 500,
    "large.wav": bytes(3 << 20),
    "voice.wav": audio_file(tone(300, 2.0)),
}
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def tab(files, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium"), f"--use-file-for-fake-audio-capture={files / 'voice.wav'}") as tab:
        tab.command("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
        tab.command("Emulation.setFocusEmulationEnabled", enabled=True)
        yield tab
    said = [message["params"] for message in tab.log if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    refusals = re.compile("the server responded with a status of 4")
    assert not [params for params in said if not refusals.search(str(params))], "the page failed, or broke its own policy"


@pytest.fixture(scope="module")
def page(tab, url):
    """The page once it has a key, as in the test of the key."""
    enter(tab, url)
    return tab


def enter(tab, url: str) -> None:
    tab.open(url)
    tab.wait_for("ui.door.open")
    tab.run(f"ui.key.value = ' {KEY} '; document.querySelector('[value=use]').click()")
    tab.wait_for("model")


def text_of(page, path) -> str:
    """Chooses a file and returns its transcript as the page shows it once it is done."""
    page.choose("#chooser", path)
    page.wait_for(f"ui.chooser.files[0].name === {path.name!r} && ui.status.textContent.startsWith('Done')")
    return page.run("[...ui.transcript.querySelectorAll('span')].map((word) => word.textContent).join('').trim()")


def test_the_page_is_for_everybody_and_has_nothing_from_outside(url):
    answer = requests.get(url, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.+?)</{tag}>", answer.text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert set(re.findall(r"\w+://[^'\"]+", answer.text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    head = requests.head(url, timeout=60)
    assert (head.status_code, head.content) == (200, b"")
    assert error_of(requests.post(url, timeout=60))["code"] == "method_not_allowed"


@in_a_browser
def test_a_key_is_asked_for_and_stays_in_the_tab(tab, url):
    tab.open(url)
    tab.wait_for("ui.door.open")
    tab.run("ui.key.value = 'wrong'; document.querySelector('[value=use]').click()")
    assert tab.wait_for("ui.door.open && ui.why.textContent") == "The service does not know this key."
    tab.press("Escape", 27)
    assert "no valid API key" in tab.wait_for("ui.message.textContent")
    tab.run("ui.again.click()")
    tab.wait_for("ui.door.open")
    tab.run(f"ui.key.value = '{KEY}'; document.querySelector('[value=use]').click()")
    tab.wait_for("model")
    tab.open(url)
    tab.wait_for("model")  # without another question
    assert tab.run("[ui.key.value, localStorage.length, document.cookie]") == ["", 0, ""]
    assert not [message for message in tab.log if KEY in str(message["params"].get("request", {}).get("url"))]
    tab.run("sessionStorage.clear()")


@in_a_browser
def test_a_file_becomes_text_that_can_be_heard_and_taken_away(page, client, files):
    page.run(
        "globalThis.seen = new Set();"
        "new MutationObserver(() => seen.add(ui.transcript.innerText)).observe(ui.transcript, {childList: true, subtree: true})"
    )
    for name in ("tone.wav", "longer & <other>.wav"):
        expected = {form: transcribe(client, FILES[name], response_format=form) for form in ("text", "srt", "vtt")}
        assert text_of(page, files / name) == " ".join(expected["text"].split())
        for form in ("srt", "vtt"):
            assert page.run(f"FORMATS.{form}()") == expected[form]
        assert page.run("FORMATS.txt()") == expected["text"] + "\n"
    assert page.run("seen.size") > 3  # piece by piece
    page.run("ui.transcript.querySelectorAll('span')[1].click()")
    page.wait_for("ui.player.currentTime > 0.1 && !ui.player.paused")
    assert page.run("document.documentElement.scrollWidth") == 320


@in_a_browser
def test_the_text_is_copied_and_downloaded(page, files, tmp_path):
    text_of(page, files / "longer & <other>.wav")
    page.run("ui.format.value = 'vtt'")
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.run("ui.copy.click()")
    page.wait_for("ui.status.textContent === 'Copied.'")
    assert page.run("navigator.clipboard.readText()") == page.run("FORMATS.vtt()")
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("ui.download.click()")
    while not (downloaded := list(tmp_path.glob("*.vtt"))):
        time.sleep(0.05)
    assert downloaded[0].read_text() == page.run("FORMATS.vtt()")


@in_a_browser
def test_every_control_has_a_name(page, files):
    text_of(page, files / "tone.wav")
    nodes = [node for node in page.command("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    names = {(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node}
    controls = {role: {name for its_role, name in names if its_role == role} for role in ("button", "combobox", "log", "slider")}
    assert {"Audio file", "Record", "Play from 0:00", "Copy", "Download"} <= controls["button"]
    assert controls["log"] == {"Transcript"}
    assert not [role for role, its_names in controls.items() if "" in its_names]


@in_a_browser
def test_words_are_heard_at_their_own_times_where_they_have_some(page, files):
    text_of(page, files / "longer & <other>.wav")
    words = '[{word: "a", start: 1.5, end: 2}, {word: "b", start: 2.5, end: 3}]'
    page.run(
        f"ui.transcript.replaceChildren(); job.segments = []; finish(job, {{start: 1, end: 3, text: 'A, b.', words: {words}}})"
    )
    page.run("ui.transcript.querySelector('button').focus()")
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    assert page.run("[document.activeElement.textContent, document.activeElement.start]") == ["b. ", 2.5]
    page.press("Enter", 13)
    assert page.wait_for("ui.player.currentTime") >= 2.5
    page.wait_for("ui.transcript.querySelector('.now')?.textContent === 'b. '")
    page.run("ui.player.pause()")


@in_a_browser
def test_a_recording_and_a_dropped_file_are_transcribed(page):
    page.run("ui.record.click()")
    page.wait_for("recorder?.state === 'recording' && ui.detail.textContent === '0:01'")
    page.run("ui.record.click()")
    page.wait_for("job.file.name === 'recording.wav' && ui.status.textContent.startsWith('Done')")
    assert page.run("job.segments[0].end") == pytest.approx(1.2, abs=0.8)
    data = page.run("job.file.arrayBuffer().then((data) => btoa(String.fromCharCode(...new Uint8Array(data))))")
    recorded = soundfile.SoundFile(io.BytesIO(base64.b64decode(data)))
    assert (recorded.format, recorded.subtype, recorded.samplerate, recorded.channels) == ("WAV", "PCM_16", 16_000, 1)
    spectrum = np.abs(np.fft.rfft(recorded.read()))
    assert spectrum.argmax() * 16_000 / recorded.frames == pytest.approx(300, abs=20)  # what the microphone heard
    page.run(
        "globalThis.data = new DataTransfer(); data.items.add(new File([job.file], 'dropped.wav'));"
        "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: data}))"
    )
    page.wait_for("job.file.name === 'dropped.wav' && ui.status.textContent.startsWith('Done')")


@in_a_browser
@pytest.mark.parametrize(
    ("name", "says", "code"), [("letter.wav", "audio", "not_audio"), ("large.wav", "over 1 MiB", "file_too_large")]
)
def test_errors_are_said_in_the_services_words(page, files, name, says, code):
    page.choose("#chooser", files / name)
    page.wait_for("!ui.problem.hidden")
    assert says in page.run("ui.message.textContent")
    assert re.fullmatch(rf"{code}, request [\w-]+", page.run("ui.details.textContent"))
    assert page.run("ui.work.hidden")


@in_a_browser
def test_a_request_can_be_cancelled(page, files, client):
    page.choose("#chooser", files / "longer & <other>.wav")
    page.run("ui.cancel.click()")
    assert page.run("[ui.status.textContent, ui.work.hidden, ui.problem.hidden]") == ["Cancelled.", True, True]
    assert page.run("job.request.readyState") == 0  # the connection is closed, which tells the service
    assert text_of(page, files / "tone.wav") == transcribe(client, FILES["tone.wav"]).text


class Gateway(BaseHTTPRequestHandler):
    """Passes requests below a prefix on to the service."""

    service = ""

    def do_GET(self):
        if not self.path.startswith("/speech"):
            self.send_error(404)
            return
        path = self.path.removeprefix("/speech")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "accept-encoding")}
        answer = requests.request(self.command, self.service + path, data=body, headers=headers, timeout=60)
        self.send_response(answer.status_code)
        for name in ("content-type", "content-security-policy"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@in_a_browser
@pytest.mark.parametrize("path", ["/speech", "/speech/"])
def test_it_works_behind_a_prefix(tab, url, client, files, path):
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), type("GatewayOfTest", (Gateway,), {"service": url}))
    threading.Thread(target=gateway.serve_forever, daemon=True).start()
    try:
        enter(tab, f"http://127.0.0.1:{gateway.server_port}{path}")
        assert text_of(tab, files / "tone.wav") == transcribe(client, FILES["tone.wav"]).text
    finally:
        gateway.shutdown()
