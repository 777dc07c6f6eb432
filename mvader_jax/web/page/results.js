// What was drawn: the pictures of now, a sweep's grid, and the history of the session.

import { make } from "./rows.js";
import { shown } from "./slider.js";

const $ = (id) => document.getElementById(id);
const MOST = 200;

function image(source, alt) {
  const made = make("img", { alt });
  // A small picture is shown in its own pixels.
  made.onload = () => made.classList.toggle("small", made.naturalWidth <= 128);
  made.src = source;
  return made;
}

export function described(asked) {
  return asked.parts.map((part) => part.text ?? part.name).join(", ");
}

export class Results {
  // again(asked), part(picture), look(picture, asked): what the buttons under a picture do.
  constructor({ again, part, look }) {
    Object.assign(this, { again, part, look, history: [] });
  }

  previews(sources) {
    this.show(sources.map((source) => make("figure", {}, image(source, "the picture as it forms"))));
  }

  show(figures) {
    const box = $("pictures");
    box.className = figures.length > 1 ? "many" : "";
    box.replaceChildren(...figures);
  }

  // pictures: as the server tells of them; asked: what they were drawn with. keep: whether they are history.
  pictures(pictures, asked, keep = true) {
    this.show(pictures.map((picture) => this.figure(picture, asked)));
    if (keep) for (const picture of pictures) this.remember(picture, asked);
  }

  figure(picture, asked) {
    const name = `mvader-${picture.seed}-${picture.index}.png`;
    const press = (text, does) => make("button", { type: "button", textContent: text, onclick: does });
    const save = make("a", { href: `pictures/${picture.id}?name=${name}`, download: name, textContent: "Save" });
    const actions = make(
      "figcaption", {},
      make("span", { textContent: `seed ${picture.seed}${picture.index ? `, number ${picture.index}` : ""}` }),
      ...(asked.task ? [] : [press("Where it looked", () => this.look(picture, asked))]),
      press("Use again", () => this.again(asked)),
      press("Add to the prompt", () => this.part({ id: picture.id, name })),
      save,
    );
    return make("figure", {}, image(`pictures/${picture.id}`, `drawn from: ${described(asked)}`), actions);
  }

  // rows: an overlay per part of the prompt, with the share of attention that it got and that its weight asks for.
  seen(rows) {
    $("seen").hidden = !rows;
    const percent = (share) => `${Math.round(100 * share)} %`;
    const bar = (share, kind) => {
      const inside = make("span", { className: kind });
      inside.style.width = `${100 * share}%`;
      return make("span", { className: "bar" }, inside);
    };
    $("seen-rows").replaceChildren(...(rows ?? []).map(({ id, name, got, asked }) => make(
      "li", {}, image(`pictures/${id}`, `where “${name}” was looked at, in red`),
      make("span", { className: "name", textContent: name }),
      bar(got, "got"), make("span", { textContent: `got ${percent(got)}` }),
      bar(asked, "asked"), make("span", { textContent: `asked for ${percent(asked)}` }),
    )));
  }

  remember(picture, asked) {
    if (this.history.some((one) => one.picture.id === picture.id)) return;
    this.history.unshift({ picture, asked: structuredClone(asked) });
    this.history.length = Math.min(this.history.length, MOST);
    $("history").hidden = false;
    const item = make(
      "li", {},
      make("button", { type: "button", className: "thumb", aria: `show the picture of seed ${picture.seed}: ${described(asked)}`,
        onclick: () => this.pictures([picture], asked, false) }, image(`pictures/${picture.id}`, "")),
      make("button", { type: "button", textContent: "Use again", onclick: () => this.again(asked) }),
    );
    $("drawn").prepend(item);
    while ($("drawn").children.length > MOST) $("drawn").lastElementChild.remove();
  }

  // An empty grid of a sweep; cells are filled in as they are drawn.
  grid(across, down) {
    const head = make("tr", {}, ...(down ? [make("td")] : []),
      ...across.values.map((value) => make("th", { scope: "col", textContent: shown(value) })));
    const rows = (down?.values ?? [null]).map((value) => make(
      "tr", {}, ...(value == null ? [] : [make("th", { scope: "row", textContent: shown(value) })]),
      ...across.values.map(() => make("td", { className: "cell" })),
    ));
    const title = `${across.label} across${down ? `, ${down.label} down` : ""}`;
    const table = make("table", {}, make("caption", { textContent: title }), make("thead", {}, head), make("tbody", {}, ...rows));
    const box = $("pictures");
    box.className = "sweep";
    box.replaceChildren(table);
    return ({ row, column, pictures, asked }) => {
      const cell = table.tBodies[0].rows[row].querySelectorAll(".cell")[column];
      const [picture] = pictures;
      cell.replaceChildren(make("button", { type: "button", className: "thumb", title: "use again",
        aria: `use again: row ${row + 1}, column ${column + 1}`, onclick: () => this.again(asked) },
        image(`pictures/${picture.id}`, "")));
      this.remember(picture, asked);
    };
  }
}
