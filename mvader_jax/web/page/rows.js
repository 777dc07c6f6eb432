// The rows of a prompt: texts and pictures in order, each with its weight; a text's words, a picture's regions.

import { slider, theta } from "./slider.js";

export function make(tag, options = {}, ...inside) {
  const { aria, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  if (aria) element.setAttribute("aria-label", aria);
  element.append(...inside.filter((one) => one != null));
  return element;
}

function button(label, text, press, className = "") {
  const made = make("button", { type: "button", textContent: text, className, title: label, onclick: press });
  if (label !== text) made.setAttribute("aria-label", label);
  return made;
}

export class Rows {
  // changed(how): "moved" while a slider moves, "released", or "edited". weighted: whether pictures have weights here.
  constructor(list, word, { changed, choose, paint, weighted }) {
    Object.assign(this, { list, word, changed, choose, paint, weighted, parts: [] });
  }

  set(parts) {
    this.parts = structuredClone(parts);
    this.render();
  }

  add(part, focus = true) {
    this.parts.push(part);
    this.render();
    if (focus) this.list.lastElementChild?.querySelector("textarea, button")?.focus();
    this.changed("edited");
  }

  render() {
    this.list.replaceChildren(...this.parts.map((part, i) => this.row(part, i)));
  }

  row(part, i) {
    const name = `${this.word} ${i + 1}`;
    const row = make("li", { className: "row", aria: name });
    const what = part.text != null ? this.text(part, name, row) : this.picture(part, name, row);
    row.append(make("div", { className: "what" }, what, this.tools(part, i, name)));
    this.weights(part, name, row);
    return row;
  }

  // The sliders of a row; made again where a word or a region comes or goes.
  weights(part, name, row) {
    row.querySelector(".weights")?.remove();
    if (part.picture != null && !this.weighted()) return;
    const box = make("div", { className: "weights" });
    const one = (label, text, holder, ...more) => make(
      "div", { className: "weight" },
      make("span", { className: "name", textContent: text }),
      slider(label, theta, holder.weight, (value, released) => {
        holder.weight = value;
        this.changed(released ? "released" : "moved");
      }),
      ...more,
    );
    box.append(one(`weight of ${name}`, "weight", part));
    const remove = (list, item, label) => button(label, "×", () => {
      list.splice(list.indexOf(item), 1);
      this.weights(part, name, row);
      this.changed("edited");
    }, "quiet");
    for (const words of part.words ?? []) {
      const label = `weight of the words “${words.words}”`;
      box.append(one(label, `“${words.words}”`, words, remove(part.words, words, `do not weight “${words.words}”`)));
    }
    (part.regions ?? []).forEach((region, k) => {
      const edit = region.mask == null ? null : button(`paint region ${k + 1} of ${name} again`, "✎", () => this.painted(part, name, row, region), "quiet");
      const away = remove(part.regions, region, `remove region ${k + 1} of ${name}`);
      const line = one(`weight of region ${k + 1} of ${name}`, `region ${k + 1}`, region, edit, away);
      box.append(line);
    });
    row.append(box);
  }

  text(part, name, row) {
    const field = make("textarea", { value: part.text, rows: 1, aria: `text of ${name}`, placeholder: "a red hat" });
    const fit = () => { field.style.height = "auto"; field.style.height = `${field.scrollHeight + 2}px`; };
    field.addEventListener("input", () => {
      part.text = field.value;
      const before = part.words.length;
      part.words = part.words.filter((one) => part.text.includes(one.words));
      if (part.words.length < before) this.weights(part, name, row);
      fit();
      this.changed("edited");
    });
    requestAnimationFrame(fit);
    return field;
  }

  picture(part, name, row) {
    const image = make("img", { src: `pictures/${part.picture}`, alt: "", width: 72, height: 72 });
    const label = make("span", { textContent: part.name });
    image.addEventListener("error", () => {
      label.textContent = `${part.name} is not here; choose it again`;
      row.classList.add("missing");
    });
    const press = async () => {
      const chosen = await this.choose();
      if (!chosen) return;
      Object.assign(part, { picture: chosen.id, name: chosen.name, regions: [] });
      this.render();
      this.changed("edited");
    };
    return make("button", { type: "button", className: "thumb", title: "choose another picture", onclick: press,
      aria: `${name}: ${part.name}; choose another picture` }, image, label);
  }

  tools(part, i, name) {
    const move = (by, label, text) => {
      const made = button(`${label} ${name}`, text, () => {
        const [taken] = this.parts.splice(i, 1);
        this.parts.splice(i + by, 0, taken);
        this.render();
        const tools = this.list.children[i + by].querySelectorAll(".tools button");
        const again = [...tools].find((one) => one.textContent === text && !one.disabled) ?? tools[0];
        again.focus();
        this.changed("edited");
      }, "quiet");
      made.disabled = i + by < 0 || i + by >= this.parts.length;
      return made;
    };
    const row = () => this.list.children[i];
    const more = part.text != null
      ? button(`weight some words of ${name}`, "words", () => this.words(part, name, row()), "quiet")
      : this.weighted() ? button(`paint a region of ${name}`, "region", () => this.painted(part, name, row()), "quiet") : null;
    const remove = button(`remove ${name}`, "×", () => {
      this.parts.splice(i, 1);
      this.render();
      (this.list.children[Math.min(i, this.parts.length - 1)] ?? this.list).querySelector("button")?.focus();
      this.changed("edited");
    }, "quiet");
    return make("div", { className: "tools" }, more, move(-1, "move up", "↑"), move(1, "move down", "↓"), remove);
  }

  // Words to be weighted singly: those that are selected in the text, or one of a list.
  words(part, name, row) {
    const field = row.querySelector("textarea");
    const chosen = field.value.slice(field.selectionStart, field.selectionEnd).trim();
    const weight = (words) => {
      if (!part.words.some((one) => one.words === words)) part.words.push({ words, weight: 1 });
      row.querySelector(".choice")?.remove();
      this.weights(part, name, row);
      row.querySelector(".weights .weight:last-child input")?.focus();
      this.changed("edited");
    };
    if (chosen) return weight(chosen);
    const open = row.querySelector(".choice");
    if (open) return open.remove();
    const all = [...new Set(part.text.split(/\s+/).filter(Boolean))];
    const choice = make("div", { className: "choice" }, ...all.map((word) => button(`weight “${word}”`, word, () => weight(word))));
    row.querySelector(".what").after(choice);
    choice.querySelector("button")?.focus();
  }

  async painted(part, name, row, region = null) {
    const mask = await this.paint(part.picture, region?.mask);
    if (!mask) return;
    if (region) region.mask = mask;
    else part.regions.push({ mask, weight: 2 });
    this.weights(part, name, row);
    this.changed("released");
  }
}
