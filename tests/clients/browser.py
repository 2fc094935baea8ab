"""The pages in a browser: Debian's chromium without a window, driven over its DevTools protocol.

A person uploads a model and data, starts a job, watches it, reads the report, sends a request, promotes, rolls back and
deletes. Every page is held against what people with a keyboard or a screen reader need, in light and dark, wide and as
wide as a phone. Screenshots go to target/screenshots.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import websocket

import support

SCREENSHOTS = support.ROOT / "target/screenshots"
WIDTHS = {"wide": 1280, "phone": 390}
CONTRAST_MIN = 4.5  # WCAG 2.2, 1.4.3 (AA)

# Runs in every page before its own scripts: notes which phases of a job were shown.
WATCH = """
window.phases = new Set();
const note = () => document.querySelectorAll('.phases .now').forEach((step) => window.phases.add(step.dataset.step));
document.addEventListener('DOMContentLoaded', () => {
  note();
  new MutationObserver(note).observe(document.body, {subtree: true, childList: true, attributes: true});
});
"""

# Text whose colour stands too little apart from what is behind it, as «text: ratio».
FAINT = """
(() => {
  const parse = (text) => (text.match(/[0-9.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const wrong = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest('noscript,option,:disabled,.skip')) continue;
    const style = getComputedStyle(element);
    const back = behind(element);
    const color = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [light, dark] = [luminance(over(parse(color), back)), luminance(back)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < LEAST) wrong.add(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [...wrong];
})()
""".replace("LEAST", str(CONTRAST_MIN))

# What is wrong with ids, headings, tables and regions, in sentences.
OUTLINE = """
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const twice = (list) => [...new Set(list.filter((x, i) => list.indexOf(x) !== i))];
  const wrong = twice(all('[id]').map((e) => e.id)).map((id) => `the id ${id} is there twice`);
  const levels = all('h1, h2, h3, h4').map((e) => Number(e.tagName[1]));
  if (levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1)) wrong.push(`headings leave a level out: ${levels}`);
  for (const table of all('table')) {
    if (!table.tHead || !table.querySelector('tbody tr')) wrong.push('a table without head and body');
    if (table.querySelector('thead th:not([scope=col])')) wrong.push('a heading that does not say it is of a column');
  }
  // People who are told of a page go from region to region.
  const named = (e) => e.ariaLabel ?? e.getAttribute('aria-labelledby')?.split(' ').map((id) => document.getElementById(id)?.textContent).join(' ');
  const regions = all('section[aria-labelledby], section[aria-label], form[aria-labelledby], form[aria-label], [role=region]');
  for (const name of twice(regions.map((e) => `${e.tagName === 'FORM' ? 'form' : 'region'} ${named(e)}`))) wrong.push(`two are called ${name}`);
  if (regions.some((e) => !named(e))) wrong.push('a region without a name');
  return wrong;
})()
"""

FOCUSABLE = "a[href], button:enabled, input:enabled, select:enabled, textarea:enabled, summary, [tabindex='0']"


def chromium():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "chromium is missing: install Debian's package chromium, or name a program in CHROMIUM"
    return found


class Browser:
    """One page of a chromium with an empty profile."""

    def __init__(self, url):
        self.url = url
        self.profile = tempfile.TemporaryDirectory(prefix="octet-chromium-", ignore_cleanup_errors=True)
        command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   "--disable-component-update", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
                   "--force-color-profile=srgb", "--remote-debugging-port=0", "--remote-allow-origins=*",
                   f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        stdin=subprocess.DEVNULL)
        self.errors, self.count = [], 0
        try:
            self.socket = websocket.create_connection(self.page(), timeout=60, suppress_origin=True)
            for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
                self.send(f"{domain}.enable")
            self.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            self.look(WIDTHS["wide"], "light")
        except BaseException:
            self.close()
            raise

    def page(self):
        """Where the page listens. Chromium writes the port into its profile once it listens."""
        written = pathlib.Path(self.profile.name) / "DevToolsActivePort"
        until(lambda: written.exists() and written.read_text().count("\n") >= 1, "chromium listens", 60)
        port = int(written.read_text().split()[0])

        def pages():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/json/list")
                return [t for t in json.loads(connection.getresponse().read()) if t["type"] == "page"]
            return []

        until(pages, "chromium has a page", 60)
        return pages()[0]["webSocketDebuggerUrl"]

    def close(self):
        with contextlib.suppress(Exception):
            self.send("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.hear(message)

    def hear(self, event):
        """Notes what went wrong in the page. A refusal that a form shows is no fault of the page."""
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:600])
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"])[:600])
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            refusal = entry["source"] == "network" and "/v" in entry.get("url", "")
            if not refusal:
                self.errors.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")

    def js(self, expression):
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}\n{json.dumps(answer['exceptionDetails'])[:800]}"
        return answer["result"].get("value")

    def until(self, expression, timeout=30):
        """Waits until something holds in the page."""
        end = time.monotonic() + timeout
        while True:
            # While a page goes and the next comes there is nothing to ask.
            with contextlib.suppress(AssertionError):
                # An element is no value that could come over, whether there is one is.
                if self.js(f"!!({expression})"):
                    return
            assert time.monotonic() < end, f"after {timeout} s not yet: {expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.03)

    def go(self, path):
        self.send("Page.navigate", url=self.url + path)
        self.until(f"location.pathname === {json.dumps(path.split('?')[0])} && document.readyState === 'complete'")

    def look(self, width, scheme, motion="no-preference"):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme},
                                                          {"name": "prefers-reduced-motion", "value": motion}])

    def click(self, selector):
        """With the mouse, in the middle of the element: what lies over it gets the click."""
        box = self.js(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key, code=0):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, selector, text):
        self.js(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select?.(); }})()")
        self.send("Input.insertText", text=text)

    def choose(self, selector, value):
        self.js(f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};
            if (e.value !== {json.dumps(value)}) throw new Error('no such option');
            e.dispatchEvent(new Event('change', {{bubbles: true}})); }})()""")

    def file(self, selector, path):
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def text(self, selector="body"):
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def shoot(self, name, whole=True):
        """Four pictures of the page, whole or as far as it is seen: wide and phone, light and dark."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.js("""document.activeElement.matches('dialog *') || document.activeElement.blur();
            document.querySelectorAll('.wrap').forEach((wrap) => (wrap.scrollLeft = 0)); scrollTo(0, 0)""")
        for size, width in WIDTHS.items():
            for scheme in ("light", "dark"):
                self.look(width, scheme, "reduce")
                self.js("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
                height = min(self.js("document.documentElement.scrollHeight"), 4000) if whole else 900
                picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                                    clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
                (SCREENSHOTS / f"{name}-{size}-{scheme}.png").write_bytes(base64.b64decode(picture["data"]))
        self.look(WIDTHS["wide"], "light")

    def sound(self, where, current=1):
        """What every page must have, whoever looks at it and however. `current` is 0 for one outside of the navigation."""
        wrong = []
        if self.js("document.documentElement.lang") != "en":
            wrong.append("no lang")
        if not self.js("document.title"):
            wrong.append("no title")
        if self.js("document.querySelectorAll('h1').length") != 1:
            wrong.append("not one h1")
        for landmark in ("header", "nav[aria-label]", "main", "footer", "a.skip[href='#main']"):
            if not self.js(f"!!document.querySelector({json.dumps(landmark)})"):
                wrong.append(f"no {landmark}")
        if self.js("document.querySelectorAll('nav a[aria-current=page]').length") != current:
            wrong.append("the navigation does not say where one is")
        self.looks_well(where, wrong)

    def looks_well(self, where, wrong=()):
        """What every page must have that people read, a report as well as those with a frame."""
        wrong = list(wrong)
        wrong += self.js(OUTLINE)
        wrong += [f"a control without a name: {node}" for node in self.nameless()]
        for width in WIDTHS.values():
            for scheme in ("light", "dark"):
                self.look(width, scheme, "reduce")
                wrong += [f"{scheme}: too faint: {text}" for text in self.js(FAINT)]
            if (wide := self.js("document.documentElement.scrollWidth")) > width:
                wrong.append(f"{wide} px wide on {width} px")
        self.look(WIDTHS["wide"], "light")
        assert not wrong, f"{where}: " + "; ".join(wrong)
        assert not self.errors, f"{where}: {self.errors}"

    def prints_light(self, where):
        """Paper is white, whatever the screen is."""
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        self.send("Emulation.setEmulatedMedia", media="print", features=dark)
        ground, ink = self.js("(({backgroundColor: b, color: c}) => [b, c])(getComputedStyle(document.body))")
        self.send("Emulation.setEmulatedMedia", media="", features=[])
        luminance = lambda colour: sum(int(part) for part in colour.strip("rgb()").split(",")[:3]) / 765
        assert luminance(ground) > 0.9 and luminance(ink) < 0.3, f"{where} prints {ink} on {ground}"

    def nameless(self):
        roles = {"button", "link", "textbox", "combobox", "checkbox", "spinbutton", "progressbar", "image", "dialog"}
        for node in self.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if not node.get("ignored") and role in roles and not node.get("name", {}).get("value"):
                yield f"{role} {node.get('properties', '')}"[:200]

    def tabs_through(self, where):
        """Tab reaches every control, and what has the focus shows it."""
        self.js("document.activeElement.blur(); window.reached = new Set(); scrollTo(0, 0)")
        count = self.js(f"[...document.querySelectorAll({json.dumps(FOCUSABLE)})].filter((e) => e.checkVisibility()).length")
        for _ in range(count + 12):
            self.press("Tab", 9)
            shown = self.js("""(() => { const e = document.activeElement; window.reached.add(e);
                const s = getComputedStyle(e);
                return e === document.body || s.outlineStyle !== 'none' || s.boxShadow !== 'none'; })()""")
            assert shown, f"{where}: no focus is to be seen on {self.js('document.activeElement.outerHTML')[:300]}"
        missed = self.js(f"""[...document.querySelectorAll({json.dumps(FOCUSABLE)})]
            .filter((e) => e.checkVisibility() && !window.reached.has(e)).map((e) => e.outerHTML.slice(0, 160))""")
        assert not missed, f"{where}: Tab does not reach {missed}"


def until(holds, what, timeout):
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"after {timeout} s not yet: {what}"
        time.sleep(0.03)


def upload(browser, page, path, name):
    browser.go(page)
    browser.file("#file", path)
    browser.until("document.querySelector('#name').value !== ''")
    browser.type("#name", name)
    browser.click("form[data-upload] [type=submit]")
    browser.until(f"document.querySelector('main table')?.innerText.includes('{name}@1')")


def check_a_model_from_upload_to_answer(server):
    with Browser(server.url) as browser:
        browser.go("/")
        assert "First steps" in browser.text() and f"curl -T model.onnx {server.url}" in browser.text()
        browser.sound("/")
        browser.shoot("first-steps")
        for page in ("/models", "/datasets", "/jobs", "/jobs/new", "/artifacts", "/endpoints"):
            browser.go(page)
            browser.sound(f"{page}, empty")

        upload(browser, "/models", support.model_path("fm_lenet"), "lenet")
        upload(browser, "/datasets", support.calibration_path("fm_lenet"), "calib")
        with tempfile.TemporaryDirectory() as folder:
            # Enough to judge by, and few enough that the job takes seconds.
            pixels, labels = support.images()
            few = pathlib.Path(folder) / "few.npz"
            np.savez(few, input=pixels[:500], labels=labels[:500])
            upload(browser, "/datasets", few, "eval")

        browser.go("/jobs/new")
        # What is held out is not taken, nor deleted, by pressing the button.
        assert browser.js("document.querySelector('#calibration').value") == ""
        browser.click("form[data-job] [type=submit]")
        assert "Calibration data" in browser.text("form[data-job] .problem")
        assert browser.js("document.querySelector('[name=keep]').checked")
        browser.choose("#model", "lenet@1")
        browser.choose("#calibration", "calib@1")
        browser.choose("#evaluation", "eval@1")
        browser.type("#endpoint", "lenet")
        browser.type("#max_drop", "2")
        browser.click("[data-dry]")
        browser.until("!document.querySelector('[data-predicted]').hidden")
        assert "Nodes on integers" in browser.text("[data-predicted]")
        browser.sound("/jobs/new")
        browser.tabs_through("/jobs/new")
        browser.shoot("new-job")
        browser.click("form[data-job] [type=submit]")
        browser.until("location.pathname.startsWith('/jobs/job_') && document.readyState === 'complete'")
        job = browser.js("location.pathname")
        browser.until("document.querySelector('main .kept, main .fail')", timeout=120)
        phases = browser.js("[...window.phases]")
        assert phases, "no phase of the job was shown"
        assert "The gate is kept." in browser.text(), browser.text()
        for said in ("Top-1 accuracy", "Same decision as float", "Speed", "Signal to noise", "lenet@1"):
            assert said in browser.text(), f"no «{said}» in\n{browser.text()}"
        browser.sound("a job")
        browser.tabs_through("a job")
        browser.shoot("job")

        browser.click("main a[href$='report.html']")
        browser.until("location.pathname.endsWith('report.html') && document.readyState === 'complete'")
        assert "in INT8" in browser.text("h1") and "gate kept" in browser.text()
        assert "One model was tried, and it keeps the gate." in browser.text(), browser.text()
        browser.looks_well("a report")
        browser.tabs_through("a report")
        browser.prints_light("a report")
        browser.shoot("report")
        browser.go(job)
        browser.click("main a[href='/endpoints/lenet']")
        browser.until("location.pathname === '/endpoints/lenet' && document.readyState === 'complete'")
        server.until(lambda: server.get("/v2/models/lenet/ready").status == 200, "lenet is ready")
        browser.go("/endpoints/lenet")
        browser.until("document.querySelectorAll('[data-plot] svg').length === 3")
        for fill in ("random", "zeros"):
            browser.choose("[data-fill]", fill)
            browser.js("document.querySelector('[data-answer]').hidden = true")
            browser.click("form[data-try] [type=submit]")
            browser.until("!document.querySelector('[data-answer]').hidden")
        answer = browser.text("form[data-try]")
        for said in ("200 OK", "compute", "Softmax", "FP32 1 × 10"):
            assert said in answer, f"no «{said}» in\n{answer}"
        assert browser.js("document.querySelectorAll('.output tbody tr').length") == 10
        command = browser.js("document.querySelector('[data-command]').dataset.whole")
        done = subprocess.run(["bash", "-c", f"{command} --silent --fail-with-body"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "outputs" in done.stdout, f"{command[:200]}\n{done.stdout}{done.stderr}"
        # A picture goes in as well, scaled to the shape.
        picture = SCREENSHOTS / "job-phone-light.png"
        browser.choose("[data-fill]", "picture")
        browser.file("[data-picture]", picture)
        browser.js("document.querySelector('[data-answer]').hidden = true")
        browser.click("form[data-try] [type=submit]")
        browser.until("!document.querySelector('[data-answer]').hidden")
        # Some seconds of traffic, until the lines of the charts have some length.
        for i in range(3000):
            server.infer("lenet", "input", pixels[i % 7:i % 7 + 1 + i % 3])
            if i % 50 == 49 and browser.js("""(document.querySelector('[data-chart=latency] .line')?.getAttribute('d')
                    .match(/L/g) ?? []).length >= 8"""):
                break
        browser.until("""/(µs|ms)/.test(document.querySelector('[data-chart=latency] [data-now]').innerText)
            && /average/.test(document.querySelector('[data-chart=batch] [data-now]').innerText)
            && document.querySelectorAll('[data-chart=batch] .column').length >= 3""")
        browser.until("document.querySelectorAll('[data-chart=latency] path').length === 2")
        browser.sound("an endpoint")
        browser.tabs_through("an endpoint")
        browser.shoot("endpoint")
        assert not browser.errors, browser.errors
    return f"phases seen: {', '.join(phases)}"


def check_a_job_is_watched_and_cancelled(server):
    with np.load(support.EVALUATION_PATH) as z:
        # So many that the job outlasts what is looked at, also on a fast machine.
        arrays = {name: np.concatenate([z[name]] * 5) if z[name].ndim else z[name] for name in z.files}
    many = io.BytesIO()
    np.savez(many, **arrays)
    answer = server.put("/v1/datasets/many", many.getvalue())
    assert answer.status == 201, answer.text()
    with Browser(server.url) as browser:
        browser.go("/jobs/new?model=lenet@1&calibration=calib@1")
        assert browser.js("document.querySelector('#calibration').value") == "calib@1"
        browser.choose("#evaluation", "many@1")
        browser.click("form[data-job] [type=submit]")
        browser.until("location.pathname.startsWith('/jobs/job_') && window.phases.has('evaluate')", timeout=120)
        browser.until("Number(document.querySelector('.live progress')?.value) > 0 || document.querySelector('main .kept')")
        browser.sound("a running job")
        browser.shoot("running")
        browser.click("[data-act=POST]")
        browser.until("document.querySelector('dialog[open]')")
        browser.click("dialog .button:last-child")
        browser.until("document.querySelector('[data-state]').innerText === 'cancelled'", timeout=60)
        assert not browser.errors, browser.errors


# Notes the streams of events of a page, and gives the first one an address that answers 404.
STREAMS = """
window.streams = [];
const Stream = window.EventSource;
window.EventSource = class extends Stream {
  constructor(url) {
    super(window.streams.length ? url : '/v1/nothing');
    window.streams.push(this);
  }
};
"""


def check_a_job_is_watched_again_after_a_stream_was_refused(server):
    """A proxy, a server that stops: after an answer that is no stream a browser does not try again by itself."""
    with Browser(server.url) as browser:
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=STREAMS)
        job = server.submit(model="lenet", calibration="calib", evaluation="many", keep=True)
        browser.go(f"/jobs/{job}")
        browser.until("streams.length === 2 && streams[0].readyState === 2")
        # A tab that nobody sees leaves its connection to others.
        seen = """Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }});
            document.dispatchEvent(new Event('visibilitychange'))"""
        browser.js(seen.format("true"))
        assert browser.js("streams.every((stream) => stream.readyState === 2)")
        browser.js(seen.format("false"))
        browser.until("streams.length === 3 && document.querySelector('.phases .now')")
        assert server.request("POST", f"/v1/jobs/{job}/cancel").status in (200, 202)
        browser.until("document.querySelector('[data-state]').innerText === 'cancelled'", timeout=60)


def check_a_job_from_what_an_earlier_one_found(server):
    with Browser(server.url) as browser:
        browser.go("/jobs/new?model=lenet@1")
        of = browser.js("[...document.querySelector('#calibration').options].map((o) => o.value).find((v) => v.startsWith('of:'))")
        browser.choose("#calibration", of)
        browser.choose("#ranges", "entropy")
        browser.type("#min_agreement", "100")
        browser.js("document.querySelector('details').open = true")
        browser.type("#recipe", '{"search": "off", "gate": {"min_sqnr_db": 90}}')
        browser.click("form[data-job] [type=submit]")
        browser.until("location.pathname.startsWith('/jobs/job_') && document.querySelector('main .fail')", timeout=120)
        job = server.job(browser.js("location.pathname.split('/').pop()"))
        assert job["state"] == "gate_failed" and job["calibration_of"] == of[3:], job
        assert job["recipe"]["ranges"] == "entropy" and job["recipe"]["gate"]["min_sqnr_db"] == 90, job
        assert job["recipe"]["gate"]["min_agreement"] == 1, job
        browser.until("/gate failed/.test(document.querySelector('[data-state]').innerText)")
        browser.sound("a job that failed its gate")
        browser.shoot("gate-failed")
        browser.click("main a[href^='/artifacts/art_']")
        browser.until("location.pathname.startsWith('/artifacts/') && document.readyState === 'complete'")
        assert "Compare with" in browser.text() and "The gate is not kept." in browser.text(), browser.text()
        browser.click("main a[href*='/diff/']")
        browser.until("location.pathname.includes('/diff/') && document.querySelector('h1')")
        assert not browser.errors, browser.errors


def check_lists_after_a_job(server):
    with Browser(server.url) as browser:
        for page, shows in [("/", "lenet"), ("/models", "lenet@1"), ("/datasets", "calib@1"), ("/jobs", "succeeded"),
                            ("/artifacts", "lenet@1"), ("/endpoints", "ready")]:
            browser.go(page)
            assert shows in browser.text("main"), f"{page}: no «{shows}» in\n{browser.text('main')}"
            browser.sound(page)
            browser.tabs_through(page)
            browser.shoot("overview" if page == "/" else page[1:])
        browser.go("/artifacts")
        browser.click("main td a.name")
        browser.until("location.pathname.startsWith('/artifacts/art_') && document.readyState === 'complete'")
        browser.sound("an artifact")
        browser.tabs_through("an artifact")
        browser.shoot("artifact")
        browser.go("/jobs/job_0")
        assert "job_0" in browser.text("main"), browser.text()


def check_every_operation_is_found_and_its_command_works(server):
    with Browser(server.url) as browser:
        browser.go("/docs")
        browser.sound("/docs")
        browser.shoot("docs")
        count = "[...document.querySelectorAll('article.op')].filter((e) => e.checkVisibility()).length"
        all_of_them = browser.js(count)
        assert all_of_them > 50, all_of_them
        for words, least, most, first in [("canary", 0, 3, None), ("delete model", 1, 3, "/v1/models/{name}"),
                                          ("Idempotency-Key", 1, 2, "/v1/jobs"), ("zebra", 0, 0, None)]:
            browser.type("#find", words)
            found = browser.js(count)
            assert least <= found <= most and f"{found} of {all_of_them}" in browser.text("[data-found]"), f"{words}: {found}"
            if first:
                assert first in browser.text("article.op:not([hidden]) h3"), words
        browser.js("document.querySelector('#find').value = ''")
        browser.press("Backspace", 8)
        commands = browser.js("[...document.querySelectorAll('article.op [data-curl]')].map((e) => e.textContent)")
    # With the names of the README there is something behind them.
    for kind, name, path in [("models", "resnet8", support.model_path("fm_lenet")), ("datasets", "calib", support.calibration_path("fm_lenet")),
                             ("datasets", "eval", support.calibration_path("fm_lenet")),
                             ("datasets", "resnet8", support.calibration_path("fm_lenet"))]:
        assert server.put(f"/v1/{kind}/{name}", path).status in (200, 201)
    tried = 0
    # An endpoint is made before it is asked, and unloaded when all have asked it.
    for command in sorted(commands, key=lambda command: ("-X PUT" not in command) + 2 * ("/unload" in command)):
        # What needs an id, a file, or shared memory cannot be tried as it stands; a stream has no end.
        if any(word in command for word in ("/ID", "FILE", "sharedmemory", "/OTHER", " -N", "DELETE", "Upload-", "/statistics")):
            continue
        command = command.replace("NAME", "resnet8").replace("VERSION", "1")
        done = subprocess.run(["bash", "-c", f"{command} -sS -o /dev/null -w '%{{http_code}}'"], capture_output=True, text=True, timeout=60)
        # The tensor of the example is no picture.
        want = ("400",) if command.endswith("/infer") else ("200", "201", "202", "204")
        assert done.stdout in want, f"{command}: {done.stdout} {done.stderr}"
        tried += 1
    return f"{tried} of {len(commands)} commands"


def check_a_canary_is_watched_promoted_and_taken_back(server):
    pixels, _ = support.images()
    endpoint = "/v1/endpoints/canary"

    def routes():
        return {v["version"]: v["weight"] for v in server.get(endpoint).json()["versions"]}

    def confirm():
        browser.until("document.querySelector('dialog[open]')")
        # What is in the page comes anew, and what is clicked before that is lost.
        changes = "document.querySelector('[aria-labelledby=changes]').innerText"
        before = browser.js(changes)
        browser.click("dialog .button:last-child")
        browser.until(f"!document.querySelector('dialog') && {changes} !== {json.dumps(before)}")

    with Browser(server.url) as browser:
        first = server.get("/v1/endpoints/lenet").json()["versions"][0]
        artifact, model = first["artifact"], first["model"]
        assert server.put(endpoint, json.dumps({"artifact": artifact}).encode()).status == 201
        browser.go("/endpoints/canary")
        browser.type("#fraction", "100")
        browser.click("#statistics")
        browser.type("#min_agreement", "7")
        browser.type("#queue_limit", "77")
        browser.click("form[data-settings] [type=submit]")
        browser.until("document.querySelector('[aria-labelledby=changes]').innerText.includes('agreement below 7 %')")
        kept = server.get(endpoint).json()["settings"]
        assert kept["shadow"] == {"fraction": 1.0, "statistics": True} and kept["queue_limit"] == 77, kept
        assert kept["rollback"]["min_agreement"] == 0.07 and "required" not in kept, kept
        # An empty field leaves it to the server again.
        browser.js("document.querySelector('#queue_limit').value = ''")
        browser.click("form[data-settings] [type=submit]")
        browser.until("document.querySelector('[aria-labelledby=changes]').innerText.includes('Requests that may wait: as the server')")
        assert "queue_limit" not in server.get(endpoint).json()["settings"]

        browser.choose("#what", json.dumps({"artifact": artifact}, separators=(",", ":")))
        browser.type("#weight", "20")
        browser.click("form[data-promote] [type=submit]")
        browser.until("document.querySelectorAll('[aria-labelledby=versions] tbody tr').length === 2", timeout=60)
        assert routes() == {1: 80, 2: 20}, routes()
        table = browser.text("[aria-labelledby=versions] table")
        assert "80 %" in table and "20 %" in table, table
        compared = r"/%\s*[0-9]{2,} compared/.test(document.querySelector(`[data-agreement=\"${v}\"]`)?.innerText)"
        for i in range(2000):
            server.infer("canary", "input", pixels[i % 50:i % 50 + 1])
            if i % 50 == 49 and browser.js(f"[1, 2].every((v) => {compared})"):
                break
        browser.until(f"[1, 2].every((v) => {compared})")
        browser.until("/version 1, 80 %.*version 2, 20 %/.test(document.querySelector('[data-chart=throughput] [data-key]').textContent)")
        browser.go("/endpoints/canary")
        assert "Statistics of live traffic" in browser.text("form[data-settings]")
        assert "that calibration saw" in browser.text(), browser.text()
        assert server.get(f"{endpoint}/statistics").status == 200
        for i in range(200):
            server.infer("canary", "input", pixels[i % 50:i % 50 + 1])
            time.sleep(0.02)
        browser.sound("a canary")
        browser.tabs_through("a canary")
        browser.shoot("rollout")

        # Shares that do not add up are refused beside the form, and nothing is changed.
        browser.type("#share-1", "70")
        browser.click("form[data-routes] [type=submit]")
        browser.until("document.querySelector('form[data-routes] .problem').innerText.includes('90')")
        browser.type("#share-2", "30")
        browser.click("form[data-routes] [type=submit]")
        confirm()
        assert routes() == {1: 70, 2: 30}, routes()
        send_all = "[aria-labelledby=versions] tbody tr:nth-child({}) [data-act=PUT]"
        browser.click(send_all.format(1))
        confirm()
        assert routes() == {1: 0, 2: 100}, routes()
        browser.click(send_all.format(2))
        confirm()
        assert routes() == {1: 100, 2: 0}, routes()
        record = browser.text("[aria-labelledby=changes]")
        for said in (f"Version 2 came: {model} in INT8. Requests: 80 % to version 1, 20 % to version 2.",
                     "100 % to version 2", "100 % to version 1", "100 % of the requests, with statistics"):
            assert said in record, f"no «{said}» in\n{record}"
        assert server.request("DELETE", endpoint).status == 204
        assert not browser.errors, browser.errors


def check_changes_of_an_endpoint_ask_first(server):
    with Browser(server.url) as browser:
        browser.go("/endpoints/lenet")
        browser.choose("#what", json.dumps({"model": "lenet@1"}, separators=(",", ":")))
        browser.click("form[data-promote] [type=submit]")
        browser.until("document.querySelector('[aria-labelledby=versions] tbody tr').innerText.startsWith('2 default')")
        assert server.get("/v1/endpoints/lenet").json()["default_version"] == 2
        browser.click("[data-act=PUT]")
        browser.until("document.querySelector('dialog[open]')")
        assert "Roll back" in browser.text("dialog") and "version 1" in browser.text("dialog")
        browser.press("Escape", 27)
        browser.until("!document.querySelector('dialog')")
        assert browser.js("document.activeElement.dataset.act") == "PUT", "the focus goes back to the button"
        assert server.get("/v1/endpoints/lenet").json()["default_version"] == 2
        browser.click("[data-act=PUT]")
        browser.until("document.querySelector('dialog[open]')")
        browser.shoot("dialog", whole=False)
        browser.click("dialog .button:last-child")
        browser.until("!document.querySelector('dialog')")
        endpoint = server.get("/v1/endpoints/lenet").json()
        assert endpoint["default_version"] == 3 and endpoint["versions"][-1]["precision"] == "int8", endpoint
        # Somebody else changes it while the page is open: the page says so, and nothing is changed.
        server.put("/v1/endpoints/lenet", b'{"model": "lenet"}')
        browser.click("[data-act=DELETE]")
        browser.until("document.querySelector('dialog[open]')")
        browser.click("dialog .button:last-child")
        browser.until("document.querySelector('dialog .problem')?.innerText.includes('changed meanwhile')")
        browser.go("/endpoints/lenet")
        browser.click("[data-act=DELETE]")
        browser.until("document.querySelector('dialog[open]')")
        browser.click("dialog .button:last-child")
        browser.until("location.pathname === '/endpoints'")
        assert server.get("/v1/endpoints/lenet").status == 404


def check_refusals_stand_beside_the_form(server):
    with Browser(server.url) as browser, tempfile.TemporaryDirectory() as folder:
        no_model = pathlib.Path(folder) / "no model.onnx"
        no_model.write_bytes(b"this is no model")
        browser.go("/models")
        browser.click("form[data-upload] [type=submit]")
        browser.until("!document.querySelector('.problem').hidden")
        assert browser.js("document.activeElement.id") == "file"
        assert browser.js("document.activeElement.getAttribute('aria-describedby').split(' ')[0] === document.querySelector('.problem').id")
        browser.file("#file", no_model)
        browser.until("document.querySelector('#name').value === 'no-model'")
        browser.click("form[data-upload] [type=submit]")
        browser.until("document.querySelector('.problem').innerText.length > 20 && !document.querySelector('[type=submit]').disabled")
        said = browser.text(".problem")
        assert "File" not in said and browser.js("document.querySelector('.problem').getAttribute('role')") == "alert", said
        browser.shoot("refusal")
        browser.go("/jobs/new?calibration=calib@1")
        for recipe, says in [("{", "not JSON"), ('{"rangs": "mse"}', "rangs")]:
            browser.js("document.querySelector('details').open = true")
            browser.type("#recipe", recipe)
            browser.click("form[data-job] [type=submit]")
            browser.until(f"document.querySelector('.problem').innerText.includes({json.dumps(says)})")
            if recipe == "{":
                assert browser.js("document.activeElement.matches('#recipe[aria-invalid=true]')")
        # Names that a stranger chose are text.
        evil = "<img src=x onerror=\"document.title='pwned'\">"
        npz = io.BytesIO()
        np.savez(npz, **{evil: np.zeros((2, 3), np.float32)})
        assert server.put("/v1/datasets/evil", npz.getvalue()).status == 201
        browser.go("/datasets")
        assert evil in browser.text("main") and browser.js("document.querySelectorAll('main img').length") == 0
        assert browser.js("document.title") != "pwned"
        browser.sound("/datasets with markup in names")
    return said


def check_a_person_signs_in_with_a_key(binary):
    with support.Server(binary, settings={"OCTET_AUTH__MODE": "keys"}) as server, Browser(server.url) as browser:
        made = support.run_octet(binary, "key", "create", "--name", "person", "--scope", "read,write", "--data-dir",
                                 server.data_dir).strip()
        server.until(lambda: server.request("GET", "/v2", headers={"X-Api-Key": made}).status == 200, "the key is known")
        browser.go("/models")
        assert "Sign in" in browser.text("main") and browser.js("document.title").startswith("Sign in")
        # The browser notes 401 for the page itself, which is as it should be.
        browser.errors.clear()
        browser.sound("/login", current=0)
        browser.shoot("sign-in")
        browser.type("#key", "octet_0123456789abcdef_" + "0" * 64)
        browser.click("form [type=submit]")
        browser.until("document.querySelector('main .problem')?.textContent.includes('not known')")
        browser.errors.clear()
        browser.type("#key", made)
        browser.click("form [type=submit]")
        browser.until("location.pathname === '/models' && document.readyState === 'complete' && !document.querySelector('#key')")
        assert browser.js("document.cookie") == "", "scripts can read the cookie"
        # What the pages send by script has the cookie and comes from the same origin.
        upload(browser, "/models", support.model_path("fm_mlp"), "mlp")
        assert server.request("GET", "/v1/models/mlp", headers={"X-Api-Key": made}).status == 200
        browser.go("/login")
        assert "person" in browser.text("main")
        browser.sound("/login, signed in", current=0)
        browser.click("form [type=submit]")
        browser.until("document.querySelector('#key')")
        assert not browser.errors, browser.errors
        browser.go("/jobs")
        assert "Sign in" in browser.text("main")


if __name__ == "__main__":
    support.main(sys.modules[__name__])
