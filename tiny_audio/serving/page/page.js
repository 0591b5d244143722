"use strict";
// Sends a file or a recording to the service that this page came from, and shows the text while it is written.

const BASE = location.pathname.replace(/\/*$/, "/"); // the service may stand behind a prefix
const KEY = "tiny_audio.key"; // in sessionStorage, which ends with the tab
const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const RATE = 16000; // samples a second of what is recorded, as the model hears them
const MAX_WAV_S = 720; // 22 MiB; a longer recording is sent as the browser wrote it
let model; // the served one's name
let job; // the file that is transcribed, or was: {file, segments, request}
let recorder;

// ---- requests

/** Represents an error as the service words it, with the request's id for whoever looks into it. */
class Problem extends Error {
  constructor({ message, code }, request) {
    super(message);
    const id = request?.getResponseHeader("X-Request-ID");
    this.details = [code, id && `request ${id}`].filter(Boolean).join(", ");
  }
}

/** Sends a request, and asks for a key where the service wants one; resolves with the text of its answer. */
async function ask(method, path, { body, onStart, onUpload, onText } = {}) {
  for (;;) {
    const request = new XMLHttpRequest(); // fetch cannot tell how much of an upload is sent
    request.open(method, BASE + path);
    const key = sessionStorage.getItem(KEY);
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.upload.onprogress = (event) => onUpload?.(event.loaded / event.total);
    request.onprogress = () => request.status === 200 && onText?.(request.responseText);
    const end = new Promise((resolve) => (request.onloadend = resolve));
    request.send(body);
    onStart?.(request);
    await end;
    if (request.status === 200) return request.responseText;
    const problem = problemOf(request);
    if (request.status !== 401) throw problem;
    await askForKey(key ? "The service does not know this key." : "The service wants an API key.", problem);
  }
}

function problemOf(request) {
  if (!request.status) return new Problem({ message: "The service does not answer, or broke the connection." });
  try {
    return new Problem(JSON.parse(request.responseText).error, request);
  } catch {
    return new Problem({ message: `The service answered ${request.status} ${request.statusText}` }, request); // a gateway did
  }
}

function askForKey(why, problem) {
  ui.why.textContent = why;
  ui.door.returnValue = "";
  ui.door.showModal();
  return new Promise((resolve, reject) => {
    ui.door.onclose = () => {
      if (ui.door.returnValue) sessionStorage.setItem(KEY, ui.key.value.trim());
      ui.key.value = "";
      ui.door.returnValue ? resolve() : reject(problem);
    };
  });
}

async function knowModel() {
  model ??= JSON.parse(await ask("GET", "v1/models")).data[0].id;
}

// ---- a transcription

async function transcribe(file) {
  job?.request?.abort();
  const mine = (job = { file, segments: [] }); // what an earlier one still does, shows nowhere
  begin(file);
  try {
    await knowModel();
    if (mine !== job) return;
    const [body, read] = [new FormData(), reader(mine)];
    for (const [name, value] of Object.entries({ model, file, stream: true, response_format: "verbose_json" })) body.append(name, value);
    const onStart = (request) => (mine.request = request);
    const onUpload = (part) => mine === job && showUpload(part);
    read(await ask("POST", "v1/audio/transcriptions", { body, onStart, onUpload, onText: read }));
    if (mine.problem) throw mine.problem;
    if (!mine.done) throw new Problem({ message: "The connection ended before the text did." });
    if (mine === job) conclude(outcome(mine.done));
  } catch (problem) {
    if (mine === job) fail(problem, () => transcribe(file));
  }
}

/** Returns a function that takes a stream's text as far as it has come, and handles the events that are new in it. */
function reader(mine) {
  let position = 0;
  return (text) => {
    for (let end; mine === job && (end = text.indexOf("\n\n", position)) >= 0; position = end + 2) {
      const data = text.slice(position, end);
      if (data.startsWith("data: {")) handle(mine, JSON.parse(data.slice(6)));
    }
  };
}

function handle(mine, event) {
  if (event.error) mine.problem = new Problem(event.error, mine.request);
  if (event.type === "transcript.text.delta") write(mine, event.delta);
  if (event.type === "transcript.text.segment") finish(mine, event);
  if (event.type === "transcript.text.done") mine.done = event;
}

function outcome({ text, complete }) {
  if (!text) return "Done: no words were heard.";
  return complete ? "Done." : "Done, but the model broke off: a part of the text is missing or repeats itself.";
}

// ---- what is shown

function begin(file) {
  const chosen = new DataTransfer();
  chosen.items.add(file);
  ui.chooser.files = chosen.files; // it shows the name, wherever the file came from
  URL.revokeObjectURL(ui.player.src);
  ui.player.src = URL.createObjectURL(file);
  ui.transcript.replaceChildren();
  ui.result.className = "empty";
  ui.problem.hidden = true;
  ui.result.hidden = ui.work.hidden = false;
  ui.progress.removeAttribute("value");
  say("Uploading");
}

function say(status, detail = "") {
  if (ui.status.textContent !== status) ui.status.textContent = status; // a screen reader says it once
  ui.detail.textContent = detail;
}

function showUpload(part) {
  ui.progress.value = part;
  if (part < 1) return say("Uploading", `${Math.round(100 * part)} %`);
  ui.progress.removeAttribute("value");
  say("Transcribing");
}

function conclude(status) {
  ui.work.hidden = true;
  for (const paragraph of ui.transcript.children) paragraph.ariaBusy = "false";
  say(status);
}

function fail(problem, again) {
  conclude("");
  ui.message.textContent = problem.message;
  ui.details.textContent = problem.details;
  ui.problem.hidden = false;
  ui.again.onclick = () => {
    ui.problem.hidden = true;
    again();
  };
}

/** Returns the segment that is being written, whose times are not known yet. */
function openSegment(mine) {
  const last = mine.segments.at(-1);
  if (last && last.start === undefined) return last;
  const segment = { text: "", place: document.createElement("p") };
  mine.segments.push(segment);
  return segment;
}

function show({ text, place }, isWhole) {
  place.ariaBusy = String(!isWhole); // a screen reader waits for the whole segment
  if (!place.isConnected && text) ui.transcript.append(place);
  if (text) ui.result.className = "";
}

function write(mine, delta) {
  const segment = openSegment(mine);
  segment.text += delta;
  segment.place.textContent = segment.text;
  show(segment, false);
}

/** Ends a segment: from now on, it can be heard. A word that has no time of its own has its segment's. */
function finish(mine, { start, end, text, words }) {
  const segment = Object.assign(openSegment(mine), { start, end, text });
  const texts = text.split(/\s+/).filter(Boolean);
  const times = words?.length === texts.length ? words : texts.map(() => segment);
  const button = hearable("button", clock(start), segment);
  button.ariaLabel = `Play from ${clock(start)}`;
  segment.place.replaceChildren(button, ...texts.map((word, number) => hearable("span", `${word} `, times[number])));
  show(segment, true);
  if (!Number.isFinite(ui.player.duration)) return;
  ui.progress.value = Math.min(end / ui.player.duration, 1);
  say("Transcribing", `${clock(end)} of ${clock(ui.player.duration)}`);
}

/** Makes a place in the text at which the recording can be heard. */
function hearable(tag, text, { start, end }) {
  const place = document.createElement(tag);
  Object.assign(place, { textContent: text, tabIndex: tag === "button" ? 0 : -1, start, end });
  return place;
}

// ---- hearing

function hear(place) {
  if (place.start === undefined) return;
  ui.player.currentTime = place.start;
  ui.player.play().catch(({ name }) => name === "NotSupportedError" && say("This browser cannot play a file of this kind."));
}

ui.transcript.onclick = (event) => hear(event.target);
ui.transcript.onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const stops = [...ui.transcript.querySelectorAll("[tabindex]")];
  if (step) stops[stops.indexOf(event.target) + step]?.focus();
  else if (event.key === "Enter" || event.key === " ") hear(event.target);
  else return;
  event.preventDefault();
};
ui.player.ontimeupdate = () => {
  const now = ui.player.currentTime;
  for (const place of ui.transcript.querySelectorAll("span")) {
    place.classList.toggle("now", !ui.player.paused && place.start <= now && now < place.end);
  }
};

// ---- copies

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  const [hours, rest] = [Math.floor(minutes / 60), String(Math.floor(seconds) % 60).padStart(2, "0")];
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function cues(point, escape = (text) => text) {
  const time = (seconds) => new Date(Math.round(1000 * seconds)).toISOString().slice(11, 23).replace(".", point); // up to a day
  const spoken = job.segments.filter(({ start, text }) => start !== undefined && text);
  return spoken.map(({ start, end, text }) => `${time(start)} --> ${time(end)}\n${escape(text)}\n`);
}

const FORMATS = {
  txt: () => `${job.segments.map(({ text }) => text).filter(Boolean).join(" ")}\n`,
  srt: () => cues(",").map((cue, number) => `${number + 1}\n${cue}`).join("\n"),
  vtt: () => `WEBVTT\n\n${cues(".", (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")).join("\n")}`,
};

ui.copy.onclick = () => {
  if (!navigator.clipboard) return say("Browsers copy only over HTTPS or on localhost; download it instead.");
  navigator.clipboard.writeText(FORMATS[ui.format.value]()).then(() => say("Copied."), ({ message }) => say(`Not copied: ${message}`));
};
ui.download.onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([FORMATS[ui.format.value]()], { type: "text/plain" }));
  link.download = `${job.file.name.replace(/\.\w+$/, "")}.${ui.format.value}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

// ---- where files come from

async function record() {
  if (!navigator.mediaDevices) throw new Error("browsers record only over HTTPS or on localhost");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const [pieces, begun] = [[], Date.now()];
  const seconds = () => (Date.now() - begun) / 1000;
  recorder = new MediaRecorder(stream); // WebM; on Safari, MP4
  recorder.ondataavailable = (event) => pieces.push(event.data);
  const ticks = setInterval(() => say("Recording", clock(seconds())), 500);
  recorder.onstop = async () => {
    clearInterval(ticks);
    stream.getTracks().forEach((track) => track.stop());
    Object.assign(ui.record, { textContent: "Record", className: "" });
    const [type, isLong] = [recorder.mimeType.split(";")[0], seconds() > MAX_WAV_S];
    const recording = new File(pieces, `recording.${type.split("/")[1]}`, { type });
    transcribe(isLong ? recording : await asWav(recording).catch(() => recording));
  };
  recorder.start();
  Object.assign(ui.record, { textContent: "Stop", className: "on" });
}

/** Turns what a browser recorded into WAV, which every service reads: WebM and MP4 want a package that not all have. */
async function asWav(recording) {
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await recording.arrayBuffer());
  const channels = Array.from({ length: sound.numberOfChannels }, (_, number) => sound.getChannelData(number));
  const samples = new DataView(new ArrayBuffer(2 * sound.length));
  for (let place = 0; place < sound.length; place++) {
    const mean = channels.reduce((sum, channel) => sum + channel[place], 0) / channels.length;
    samples.setInt16(2 * place, Math.round(32767 * Math.max(-1, Math.min(1, mean))), true);
  }
  return new File([wavHead(samples.byteLength), samples], "recording.wav", { type: "audio/wav" });
}

/** Returns the head of a WAV file of `size` bytes of mono PCM16. */
function wavHead(size) {
  const [bytes, words] = [new TextEncoder().encode("RIFF....WAVEfmt ....................data...."), new DataView(new ArrayBuffer(44))];
  bytes.forEach((byte, place) => words.setUint8(place, byte));
  for (const [place, number] of [[4, 36 + size], [16, 16], [24, RATE], [28, 2 * RATE], [40, size]]) words.setUint32(place, number, true);
  for (const [place, number] of [[20, 1], [22, 1], [32, 2], [34, 16]]) words.setUint16(place, number, true); // PCM, channels, sizes
  return words;
}

async function recordOrStop() {
  if (recorder?.state === "recording") return recorder.stop();
  if (ui.record.ariaBusy === "true") return; // the browser asks for the microphone
  if (!ui.work.hidden) cancel();
  ui.record.ariaBusy = "true";
  await record().catch(({ message }) => fail(new Problem({ message: `No recording: ${message}` }), recordOrStop));
  ui.record.ariaBusy = "false";
}

function cancel() {
  job.request?.abort();
  job = { ...job }; // nothing more of the request is shown
  conclude("Cancelled.");
}

ui.record.onclick = recordOrStop;
ui.cancel.onclick = cancel;
ui.chooser.onclick = () => (ui.chooser.value = ""); // so that the same file can be chosen again
ui.chooser.onchange = () => ui.chooser.files.length && transcribe(ui.chooser.files[0]);
document.ondragover = (event) => {
  event.preventDefault();
  ui.drop.classList.add("over");
};
document.ondragleave = (event) => event.relatedTarget || ui.drop.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  ui.drop.classList.remove("over");
  if (event.dataTransfer.files.length) transcribe(event.dataTransfer.files[0]);
};
ui.leave.onclick = () => ui.door.close();

function greet() {
  knowModel().catch((problem) => fail(problem, greet));
}
greet(); // so a key is asked for before a file is chosen
