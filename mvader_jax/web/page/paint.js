// A region painted over a picture: a mask, white where it lies, which goes to the server as a picture.

import { upload } from "./talk.js";

const $ = (id) => document.getElementById(id);
const COLOUR = "rgb(255 96 64)", LARGEST = 1024;

function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the picture is not on the server any longer"));
    image.src = source;
  });
}

// The id of a mask over the picture `id`; null where none was painted. before: the id of one to go on from.
export async function paint(id, before, most) {
  const image = await loaded(`pictures/${id}`);
  const scale = Math.min(1, LARGEST / Math.max(image.naturalWidth, image.naturalHeight));
  const width = Math.max(1, Math.round(image.naturalWidth * scale));
  const height = Math.max(1, Math.round(image.naturalHeight * scale));
  // Small pictures are painted more finely than their pixels.
  const times = Math.max(1, Math.round(256 / Math.max(width, height)));
  const mask = Object.assign(document.createElement("canvas"), { width: width * times, height: height * times });
  const view = $("canvas"), marks = mask.getContext("2d");
  Object.assign(view, { width: mask.width, height: mask.height });
  if (before) await again(marks, `pictures/${before}`, mask);
  const show = () => {
    const context = view.getContext("2d");
    context.imageSmoothingEnabled = times === 1;
    context.clearRect(0, 0, view.width, view.height);
    context.drawImage(image, 0, 0, view.width, view.height);
    context.globalAlpha = 0.6;
    context.drawImage(mask, 0, 0);
    context.globalAlpha = 1;
  };
  show();
  const dialog = $("paint");
  dialog.showModal();
  const end = new AbortController();
  const on = (target, kind, does) => target.addEventListener(kind, does, { signal: end.signal });
  brush(view, marks, on, show);
  on($("box-add"), "click", () => {
    const [left, top, right, bottom] = ["left", "top", "right", "bottom"].map((side) => $(`box-${side}`).value / 100);
    marks.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
    marks.fillStyle = COLOUR;
    marks.fillRect(left * mask.width, top * mask.height, (right - left) * mask.width, (bottom - top) * mask.height);
    show();
  });
  on($("paint-clear"), "click", () => { marks.clearRect(0, 0, mask.width, mask.height); show(); });
  on($("paint-done"), "click", () => dialog.close("done"));
  on($("paint-cancel"), "click", () => dialog.close(""));
  on(dialog, "cancel", () => { dialog.returnValue = ""; });
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  end.abort();
  const done = dialog.returnValue === "done";
  dialog.returnValue = "";
  return done ? finished(mask, most) : null;
}

function brush(view, marks, on, show) {
  let from = null;
  const place = (event) => {
    const box = view.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * view.width, ((event.clientY - box.top) / box.height) * view.height];
  };
  const stroke = (to) => {
    marks.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
    Object.assign(marks, { strokeStyle: COLOUR, lineCap: "round", lineJoin: "round" });
    marks.lineWidth = ($("brush").value / 100) * Math.max(view.width, view.height);
    marks.beginPath();
    marks.moveTo(...from);
    marks.lineTo(to[0] + 0.01, to[1]);
    marks.stroke();
    from = to;
    show();
  };
  on(view, "pointerdown", (event) => {
    view.setPointerCapture(event.pointerId);
    from = place(event);
    stroke(from);
  });
  on(view, "pointermove", (event) => { if (from) stroke(place(event)); });
  on(view, "pointerup", () => { from = null; });
  on(view, "pointercancel", () => { from = null; });
}

// A mask of before as marks: what is white in it is painted.
async function again(marks, source, { width, height }) {
  marks.drawImage(await loaded(source), 0, 0, width, height);
  const data = marks.getImageData(0, 0, width, height);
  for (let i = 0; i < data.data.length; i += 4) {
    data.data[i + 3] = data.data[i];
    [data.data[i], data.data[i + 1], data.data[i + 2]] = [255, 96, 64];
  }
  marks.putImageData(data, 0, 0);
}

async function finished(mask, most) {
  const [white, whole] = [0, 1].map(() => Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height }));
  const one = white.getContext("2d"), all = whole.getContext("2d");
  one.drawImage(mask, 0, 0);
  one.globalCompositeOperation = "source-in";
  one.fillStyle = "white";
  one.fillRect(0, 0, mask.width, mask.height);
  all.fillStyle = "black";
  all.fillRect(0, 0, mask.width, mask.height);
  all.drawImage(white, 0, 0);
  const file = await new Promise((resolve) => whole.toBlob(resolve, "image/png"));
  return (await upload(file, most)).id;
}
