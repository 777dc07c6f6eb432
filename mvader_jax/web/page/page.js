// The page: its state is what is asked for, and everything on it follows from that.

import { paint } from "./paint.js";
import { Results, described } from "./results.js";
import { Rows, make } from "./rows.js";
import { linear, slider, theta } from "./slider.js";
import { Problem, events, get, newRun, post, upload } from "./talk.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["steps", "guidance_scale", "height", "width", "seed"];
const about = await get("about");
//: What is asked for, as the server reads it; `rows` and `away` hold its parts.
const asked = { settings: structuredClone(about.settings), num_images: 1, task: null, strength: 0.6, fraction: 0.5, first: 0, fast: false };

const parts = { changed, choose, paint: painted, weighted: () => asked.task === null };
const rows = new Rows($("parts"), "part", parts);
const away = new Rows($("negative"), "negative part", { ...parts, weighted: () => true });
const results = new Results({ again: use, part: ({ id, name }) => rows.add(picturePart(id, name)), look });

function snapshot() {
  return structuredClone({ ...asked, parts: rows.parts, negative: away.parts });
}

const textPart = (text = "") => ({ text, weight: 1, words: [] });
const picturePart = (id, name) => ({ picture: id, name, weight: 1, regions: [] });

// ---- drawing

let running = null, again = false;

async function draw(quick = false) {
  if (quick && running) {
    again = true; // the newest place of the slider, when this one is done
    return;
  }
  stop();
  if (!quick && $("new-seed").checked) {
    asked.settings.seed = crypto.getRandomValues(new Uint32Array(1))[0];
    $("seed").value = asked.settings.seed;
    say();
  }
  const wanted = snapshot();
  await follow("draw", { asked: wanted, quick }, (event) => {
    if (event.previews) results.previews(event.previews);
    if (event.pictures) results.pictures(event.pictures, wanted, !quick);
  }, quick);
  if (again && !running) {
    again = false;
    draw(true);
  }
}

// A drawing on the server, from its first event to its last; of one that another has taken over nothing is shown.
async function follow(name, body, told, quick = false) {
  const run = newRun(), began = performance.now();
  running = { run, quick };
  busy(true);
  note(quick ? "" : "Waiting for its turn …");
  problem("");
  results.seen(null);
  let ended = "";
  try {
    for await (const event of events(name, { ...body, run })) {
      if (running?.run !== run) continue;
      if (event.problem) problem(event.problem);
      if (event.cancelled) ended = "Cancelled.";
      if (event.total) progress(event.step / event.total, `Step ${event.step} of ${event.total}`);
      if (event.cells) progress(event.cell / event.cells, `Picture ${event.cell} of ${event.cells}`);
      told(event);
      if (event.pictures) ended = `Drawn in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
    }
  } catch (error) {
    if (running?.run === run) problem(sentence(error));
  }
  if (running?.run !== run) return;
  running = null;
  busy(false);
  note(ended);
}

// Where each part of the prompt was looked at in a picture.
function look(picture, before) {
  stop();
  return follow("attend", { asked: before, seed: picture.seed, index: picture.index }, (event) => {
    if (event.seen) results.seen(event.seen);
  });
}

function stop() {
  again = false;
  if (!running) return;
  post("cancel", running.run).catch(() => {});
  running = null;
  busy(false);
}

function busy(is) {
  $("cancel").disabled = !is;
  $("progress").hidden = !is;
  if (is) $("progress").removeAttribute("value");
  $("stage").setAttribute("aria-busy", is);
}

function progress(part, text) {
  $("progress").value = part;
  note(text);
}

function note(text) { $("status").textContent = text; }

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

function sentence(error) {
  if (!(error instanceof Problem)) console.error(error);
  return error.message;
}

// ---- what changed

function changed(how) {
  if (how === "moved") {
    if (about.fast && $("live").checked) draw(true);
  } else if (how === "released" && $("live").checked) {
    draw();
  }
  say();
}

let saying = 0;
async function say() {
  sliders();
  const mine = ++saying;
  await new Promise((resolve) => setTimeout(resolve, 120));
  if (mine !== saying) return;
  try {
    const said = await post("say", snapshot());
    if (mine !== saying) return;
    for (const part of ["command", "python"]) $(part).textContent = said[part];
    const files = Object.entries(said.files).map(([name, id]) => make("a", { href: `pictures/${id}?name=${name}`, download: name, textContent: name }));
    $("files").replaceChildren(...(files.length ? ["They read: ", ...files.flatMap((one) => [one, " "])] : []));
  } catch (error) {
    if (mine !== saying) return;
    for (const part of ["command", "python"]) $(part).textContent = `# ${sentence(error)}`;
    $("files").replaceChildren();
  }
}

// A prompt and settings of before.
function use(before) {
  const { parts: own, negative, ...rest } = structuredClone(before);
  Object.assign(asked, rest);
  asked.settings = { ...about.settings, ...rest.settings };
  rows.set(own);
  away.set(negative ?? []);
  $("away").open ||= Boolean(negative?.length);
  $("new-seed").checked = false;
  fields();
  say();
  note(`The prompt is back: ${described(before)}`);
}

// ---- the fields

function fields() {
  for (const name of NUMBERS) $(name).value = asked.settings[name] ?? about.size[name];
  for (const name of ["num_images", "first"]) $(name).value = asked[name];
  $("sampler").value = asked.settings.sampler;
  $("balance").value = String(asked.settings.balance ?? false);
  $("site").value = asked.settings.site ?? "both";
  $("fast").checked = asked.fast;
  task();
  strength();
}

function task() {
  const box = $("task-options");
  box.hidden = asked.task === null;
  if (asked.task === null) return box.replaceChildren();
  const one = (name, text) => make("div", { className: "weight" }, make("span", { className: "name", textContent: text }),
    slider(text, linear(0, 1), asked[name], (value, released) => { asked[name] = value; changed(released ? "released" : "moved"); }));
  box.replaceChildren(
    make("p", { className: "hint", textContent: asked.task === "img2img"
      ? "A baseline: sampling starts from the picture, noised to the strength; it is no part of the prompt."
      : "A baseline: sampling starts from both pictures, noised to the strength and mixed." }),
    one("strength", "strength of the noise"), ...(asked.task === "interpolation" ? [one("fraction", "the second one's part")] : []));
}

function strength() {
  const told = (value, released) => { asked.settings.negative_strength = value; changed(released ? "released" : "moved"); };
  $("away-strength").replaceChildren(make("div", { className: "weight" }, make("span", { className: "name", textContent: "strength" }),
    slider("strength of the negative prompt", theta, asked.settings.negative_strength, told)));
}

function wire() {
  for (const name of NUMBERS) {
    $(name).addEventListener("change", () => {
      const value = Number($(name).value);
      // A size that is the model's own is not said.
      if ($(name).value !== "" && Number.isFinite(value)) asked.settings[name] = value === about.size[name] ? null : value;
      $(name).value = asked.settings[name] ?? about.size[name];
      say();
    });
  }
  for (const name of ["height", "width"]) Object.assign($(name), { min: about.multiple, step: about.multiple });
  $("num_images").max = about.limits.pictures;
  const on = (id, kind, does) => $(id).addEventListener(kind, does);
  for (const [name, usual] of [["num_images", 1], ["first", 0]]) {
    on(name, "change", () => { asked[name] = Number($(name).value) || usual; say(); });
  }
  on("sampler", "change", () => { asked.settings.sampler = $("sampler").value; say(); });
  on("site", "change", () => { asked.settings.site = $("site").value; changed("released"); });
  on("balance", "change", () => {
    const value = $("balance").value;
    asked.settings.balance = value === "attention" ? value : value === "true";
    changed("released");
  });
  $("fast-field").hidden = !about.fast;
  on("fast", "change", () => {
    asked.fast = $("fast").checked;
    Object.assign(asked.settings, asked.fast ? about.fast : { steps: about.settings.steps, sampler: about.settings.sampler });
    fields();
    say();
  });
  $("sampler").append(...[...about.samplers, ...(about.fast ? [about.fast.sampler] : [])].map((name) => make("option", { value: name, textContent: name })));
  on("draw", "click", () => draw());
  on("cancel", "click", () => { stop(); note("Cancelled."); });
  on("add-text", "click", () => rows.add(textPart()));
  on("away-text", "click", () => away.add(textPart()));
  for (const [id, list] of [["add-picture", rows], ["away-picture", away]]) {
    on(id, "click", async () => { const chosen = await choose(); if (chosen) list.add(picturePart(chosen.id, chosen.name)); });
  }
  on("draw-sweep", "click", sweep);
  for (const copy of document.querySelectorAll("[data-copy]")) {
    copy.addEventListener("click", async () => {
      try { // not there on pages of other machines without encryption
        await navigator.clipboard.writeText($(copy.dataset.copy).textContent);
        note("Copied.");
      } catch {
        getSelection().selectAllChildren($(copy.dataset.copy));
        note("Selected; Ctrl-C copies it.");
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
  });
  addEventListener("pagehide", () => { if (running) navigator.sendBeacon("cancel", JSON.stringify(running.run)); });
  $("preset").append(...about.presets.map((one, i) => make("option", { value: i, textContent: one.title })));
  on("preset", "change", () => preset(about.presets[$("preset").value]));
}

function preset({ parts: own, task: name }) {
  asked.task = name;
  rows.set(own);
  fields();
  say();
}

// ---- sweeps

let known = [];

// The sliders of now, as a sweep may move them.
function sliders() {
  known = [];
  const add = (label, of, row = 0, index = 0) => known.push({ label, of, row, index });
  const named = (part, i) => `${i + 1}: ${(part.text ?? part.name).slice(0, 40)}`;
  rows.parts.forEach((part, i) => {
    if (part.text != null || asked.task === null) add(`weight of ${named(part, i)}`, "parts", i);
    (part.words ?? []).forEach((one, k) => add(`weight of “${one.words}”`, "words", i, k));
    (part.regions ?? []).forEach((_, k) => add(`weight of region ${k + 1} of ${named(part, i)}`, "regions", i, k));
  });
  away.parts.forEach((part, i) => add(`weight of negative ${named(part, i)}`, "negative", i));
  if (away.parts.length) add("strength of the negative prompt", "negative_strength");
  add("guidance", "guidance_scale");
  if (asked.task) add("strength of the noise", "strength");
  if (asked.task === "interpolation") add("the second one's part", "fraction");
  for (const [id, none] of [["across", false], ["down", true]]) {
    const before = $(id).selectedOptions[0]?.textContent;
    const options = known.map((one, i) => make("option", { value: i, textContent: one.label, selected: one.label === before }));
    $(id).replaceChildren(...(none ? [make("option", { value: "", textContent: "nothing" })] : []), ...options);
  }
}

function axis(id) {
  if ($(id).value === "") return null;
  const values = $(`${id}-values`).value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (!values.length || values.some((one) => !Number.isFinite(one))) {
    throw new Problem(`the values ${id} are numbers with commas between them, as in 0, 0.1, 1`);
  }
  return { ...known[$(id).value], values };
}

async function sweep() {
  try {
    const across = axis("across"), down = axis("down");
    stop();
    const wire = (one) => one && { of: one.of, row: one.row, index: one.index, values: one.values };
    const fill = results.grid(across, down);
    await follow("sweep", { asked: snapshot(), across: wire(across), down: wire(down) }, (event) => {
      if (event.pictures?.length) fill(event);
    });
  } catch (error) {
    problem(sentence(error));
  }
}

// ---- pictures from outside

// A picture of the gallery, or a file: {id, name}; null where none was chosen. More files become rows of their own.
function choose() {
  const gallery = [...about.examples, ...results.history.slice(0, 24).map(({ picture }) => ({ id: picture.id, name: `mvader-${picture.seed}-${picture.index}.png` }))];
  return new Promise((resolve) => {
    const end = (chosen) => { $("choose").onclose = null; $("choose").close(); resolve(chosen); };
    $("gallery").replaceChildren(...gallery.map((one) => make("li", {}, make("button", { type: "button", className: "thumb", aria: `choose ${one.name}`,
      onclick: () => end(one) }, make("img", { src: `pictures/${one.id}`, alt: "" })))));
    $("choose-file").onclick = () => $("file").click();
    $("choose-cancel").onclick = () => end(null);
    $("choose").onclose = () => resolve(null);
    $("file").onchange = async () => {
      const files = [...$("file").files];
      $("file").value = "";
      const [first, ...rest] = await taken(files);
      end(first ?? null);
      for (const one of rest) rows.add(picturePart(one.id, one.name), false);
    };
    $("choose").showModal();
  });
}

// Files on the server, those that it can read.
async function taken(files) {
  const found = [];
  problem("");
  for (const file of files) {
    try {
      found.push({ name: file.name || "pasted.png", ...await upload(file, about.limits.bytes) });
    } catch (error) {
      problem(`${file.name || "the pasted picture"}: ${sentence(error)}`);
    }
  }
  return found;
}

async function dropped(files) {
  for (const one of await taken(files)) {
    if (!one.asked) {
      rows.add(picturePart(one.id, one.name), false);
      continue;
    }
    use(one.asked);
    results.show([results.figure({ id: one.id, seed: one.asked.settings.seed, index: one.asked.first }, one.asked)]);
  }
}

async function painted(id, before) {
  try {
    return await paint(id, before, about.limits.bytes);
  } catch (error) {
    problem(sentence(error));
    return null;
  }
}

document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  dropped([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); dropped(files); }
});

$("bundle").textContent = `Drawn by the bundle ${about.bundle}; pictures are marked as made by AI.`;
wire();
preset(about.presets[0]);
