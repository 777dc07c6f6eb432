// A slider with a number beside it. Theta is 0 to 3: logarithmic from 0.001 to 1, then linear.

const STEPS = 1000, ONE = 650, LEAST = 0.001, MOST = 3;

export const theta = {
  toValue(place) {
    if (place <= 0) return 0;
    if (place >= ONE) return rounded(1 + ((place - ONE) / (STEPS - ONE)) * (MOST - 1));
    return rounded(LEAST ** (1 - place / ONE));
  },
  toPlace(value) {
    if (value <= 0) return 0;
    if (value >= 1) return Math.min(STEPS, ONE + ((value - 1) / (MOST - 1)) * (STEPS - ONE));
    return Math.max(1, ONE * (1 - Math.log(value) / Math.log(LEAST)));
  },
};

export function linear(least, most) {
  return {
    toValue: (place) => rounded(least + (place / STEPS) * (most - least)),
    toPlace: (value) => ((value - least) / (most - least)) * STEPS,
  };
}

// Two figures: what a hand can set.
function rounded(value) {
  return Number(value.toPrecision(value < 1 ? 2 : 3));
}

export function shown(value) {
  return String(Number(value.toPrecision(4)));
}

// told(value, released): while it moves, and when it is let go or a number is entered.
export function slider(label, scale, value, told) {
  const box = document.createElement("div");
  box.className = "slider";
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: 0, max: STEPS, step: 1, value: scale.toPlace(value) });
  range.setAttribute("aria-label", label);
  const number = document.createElement("input");
  Object.assign(number, { type: "number", min: 0, step: "any", value: shown(value) });
  number.setAttribute("aria-label", `${label}, as a number`);
  const say = (now) => range.setAttribute("aria-valuetext", shown(now));
  say(value);
  const moved = (released) => {
    const now = scale.toValue(Number(range.value));
    number.value = shown(now);
    say(now);
    told(now, released);
  };
  range.addEventListener("input", () => moved(false));
  range.addEventListener("change", () => moved(true));
  number.addEventListener("change", () => {
    const now = Number(number.value);
    if (number.value === "" || !(now >= 0)) {
      number.value = shown(scale.toValue(Number(range.value)));
      return;
    }
    range.value = scale.toPlace(now);
    say(now);
    told(now, true);
  });
  box.append(range, number);
  return box;
}
