// What the page says to its server, and how it hears of a drawing.

export class Problem extends Error {}

async function answered(response) {
  let body = null;
  try { body = await response.json(); } catch { /* no JSON: the sentence below */ }
  if (!response.ok) {
    throw new Problem(body?.problem ?? `the server answered ${response.status}`);
  }
  return body;
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new Problem("the server does not answer; is `mvader web` still running?");
  }
}

export async function get(path) {
  return answered(await reached(path));
}

export async function post(path, value) {
  const headers = { "content-type": "application/json" };
  return answered(await reached(path, { method: "POST", headers, body: JSON.stringify(value) }));
}

// A picture's file -> its id and size.
export async function upload(file, most) {
  if (file.size > most) {
    throw new Problem(`the file is too large; the page takes up to ${Math.floor(most / 2 ** 20)} MB`);
  }
  return answered(await reached("pictures", { method: "POST", body: file }));
}

// The events of a drawing, one after the other (Gradio's queue: a call, and a stream of its results).
export async function* events(name, asked) {
  const { event_id: id } = await post(`gradio_api/call/${name}`, { data: [JSON.stringify(asked)] });
  const response = await reached(`gradio_api/call/${name}/${id}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const kind = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (kind === "generating") yield JSON.parse(JSON.parse(data)[0]);
      if (kind === "error") throw new Problem("the drawing failed; the reason is where `mvader web` runs");
      if (kind === "complete") return;
    }
  }
}

// A name for a drawing; `crypto.randomUUID` is there on secure pages alone.
export function newRun() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(16)).join("");
}
