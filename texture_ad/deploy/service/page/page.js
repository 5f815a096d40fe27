"use strict";

// The page of the service: photographs are sent to /predict, and judged anew here when the threshold moves.

const AT_ONCE = 2; // requests under way
const SIDE = 640; // pixels of the longer side of a shown picture
const OWN = 0.5; // level of the detector's own threshold
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // of levels 0 to 1

const get = (id) => document.getElementById(id);
const photographs = []; // {file, card, answer, error, photo, map, mask}
let about = { calibration_levels: [], max_mb: Infinity };
let waiting = [];
let running = 0;

// --- the service -------------------------------------------------------------------------------------

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function connect() {
  const response = await fetch("detector", { headers: headers() });
  get("login").hidden = response.status !== 401;
  get("main").hidden = response.status === 401;
  if (response.status === 401) {
    get("denied").textContent = sessionStorage.getItem("token") ? "The service refused this token." : "";
    get("about").textContent = "";
    get("token").focus();
    return;
  }
  about = await response.json();
  get("about").textContent = `${about.source}, method ${about.method}, texture_ad ${about.version}`;
  update();
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(file) {
  if (file.size > 1e6 * about.max_mb) {
    throw new Error(`the file has more than ${about.max_mb} MB`);
  }
  for (;;) {
    const response = await fetch(`predict?mask=true&map=true&name=${encodeURIComponent(file.name.slice(0, 255))}`, {
      method: "POST",
      headers: { ...headers(), "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
      body: file,
    });
    if (response.ok) {
      return response.json();
    }
    const wait = Number(response.headers.get("Retry-After"));
    if (!wait) {
      throw new Error((await response.json()).error || `HTTP ${response.status}`);
    }
    await pause(wait);
  }
}

async function picture(source) {
  const bitmap = await createImageBitmap(source);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

async function levels(png) {
  const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
  const canvas = await picture(new Blob([bytes], { type: "image/png" }));
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return { width, height, values: data.filter((_, i) => i % 4 === 0) };
}

async function score(one) {
  one.photo = await picture(one.file).catch(() => null); // a format that only the service knows, such as TIFF
  try {
    one.answer = await ask(one.file);
    one.map = one.answer.map ? await levels(one.answer.map) : null;
    one.mask = one.answer.mask ? await levels(one.answer.mask) : null;
    delete one.answer.map;
    delete one.answer.mask;
  } catch (error) {
    one.error = error.message;
  }
  show(one);
  if (get("order").value !== "added") {
    sort();
  }
  summarise();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    score(waiting.shift()).finally(() => {
      running -= 1;
      next();
    });
  }
}

function add(files) {
  for (const file of files) {
    const card = get("card").content.firstElementChild.cloneNode(true);
    const one = { file, card, number: photographs.length };
    card.querySelector("h3").textContent = file.name;
    get("cards").append(card);
    photographs.push(one);
    waiting.push(one);
  }
  summarise();
  next();
}

// --- what is shown -----------------------------------------------------------------------------------

const threshold = () => Number(get("threshold").value);

function label(answer, level) {
  if (answer.label === "unsure") {
    return "unsure";
  }
  return isAbove(answer, level) ? "anomalous" : "normal";
}

// Moved to its own place, the threshold is exactly the detector's.
function isAbove(answer, level) {
  return level === OWN && answer.label !== "unsure" ? answer.label === "anomalous" : answer.level > level;
}

const isChanged = (one) => one.answer && label(one.answer, threshold()) !== one.answer.label;

function show(one) {
  const { card, answer, error } = one;
  const part = (name) => card.querySelector(name);
  if (error) {
    part(".verdict").textContent = "not scored";
    part(".warning").textContent = error;
    part(".warning").hidden = false;
  }
  if (!answer) {
    return;
  }
  const found = label(answer, threshold());
  card.className = `card ${found}`;
  part(".verdict").textContent = found;
  part(".was").textContent = isChanged(one) ? `${answer.label} at the detector's own threshold` : "";
  part(".numbers").textContent = `level ${answer.level.toFixed(3)}, score ${answer.score.toPrecision(5)}`;
  part(".warning").textContent = answer.warning && `Unlike the training images: ${answer.warning}`;
  part(".warning").hidden = !answer.warning;
  part(".pictures").hidden = !one.map && !one.photo;
  drawPhoto(one, part(".photo"));
  drawMap(one, part(".map"));
  drawMask(one, part(".mask"));
}

function describe(canvas, width, height, text) {
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", text);
  return canvas.getContext("2d");
}

function drawPhoto({ answer, photo }, canvas) {
  const [height, width] = photo ? [photo.height, photo.width] : answer.size;
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const count = answer.regions.length;
  const found = count === 1 ? "1 region" : `${count} regions`;
  const text = about.pixel_threshold === null ? "this method says nothing of regions" : found;
  const note = photo ? text : `${text}; this browser can't show the photograph`;
  canvas.nextElementSibling.textContent = threshold() === OWN ? note : `${note} at the detector's own threshold`;
  const context = describe(canvas, width * scale, height * scale, `${answer.name}, ${note}`);
  if (photo) {
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  }
  context.lineWidth = 3;
  context.strokeStyle = "#ffdd00";
  for (const { box: [x, y, w, h] } of answer.regions) {
    const across = canvas.width / answer.size[1];
    const down = canvas.height / answer.size[0];
    context.strokeRect(x * across, y * down, w * across, h * down);
  }
}

function colour(level) {
  const position = level / 255 * (COLOURS.length - 1);
  const low = Math.min(Math.floor(position), COLOURS.length - 2);
  return COLOURS[low].map((value, i) => value + (position - low) * (COLOURS[low + 1][i] - value));
}

// A pixel of each level, as an image's bytes lie in memory.
function palette(rgb) {
  const pixels = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level += 1) {
    pixels.set([...rgb(level), 255], 4 * level);
  }
  return new Uint32Array(pixels.buffer);
}

const HEAT = palette(colour);

function paint(canvas, map, text, colours) {
  const context = describe(canvas, map.width, map.height, text);
  const image = context.createImageData(map.width, map.height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(map.values, (level) => colours[level]));
  context.putImageData(image, 0, 0);
}

function drawMap({ answer, map }, canvas) {
  canvas.parentNode.hidden = !map;
  if (map) {
    paint(canvas, map, `anomaly map of ${answer.name}`, HEAT);
  }
}

// At the detector's own threshold the service's mask, which leaves small regions out; else what the map says.
function drawMask({ answer, map, mask }, canvas) {
  const own = threshold() === OWN;
  const shown = own ? mask : map;
  canvas.parentNode.hidden = !shown;
  if (shown) {
    const called = isAbove(answer, threshold());
    const least = !called ? 255 : own ? 127 : 255 * threshold();
    const share = shown.values.filter((level) => level > least).length / shown.values.length;
    const small = !own && about.min_area > 1 ? ", small regions as well" : "";
    const told = `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} % above the threshold${small}`;
    const text = called && share ? told : "nothing is marked";
    canvas.nextElementSibling.textContent = text;
    paint(canvas, shown, `mask of ${answer.name}: ${text}`, palette((level) => Array(3).fill(level > least ? 255 : 40)));
  }
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function expected(level) {
  const scores = about.calibration_levels;
  const above = scores.filter((one) => one > level).length;
  return scores.length ? Math.min(1, (above + 1) / (scores.length + 1)) : null;
}

function update() {
  const level = threshold();
  get("level").textContent = level.toFixed(2);
  const share = expected(level);
  get("promise").textContent = level === OWN
    ? capital(about.promise || "")
    : share === null ? "" : `About ${(100 * share).toFixed(1)} % of normal photographs are expected above it.`;
  photographs.forEach(show);
  summarise();
}

function summarise() {
  const counts = {};
  for (const one of photographs) {
    const found = one.answer ? label(one.answer, threshold()) : one.error ? "not scored" : "waiting";
    counts[found] = (counts[found] || 0) + 1;
    one.card.hidden = get("changed").checked && !isChanged(one);
  }
  const changed = photographs.filter(isChanged).length;
  const told = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
  get("summary").textContent = photographs.length
    ? `${photographs.length} photographs: ${told}${changed ? `; the moved threshold changes ${changed}` : ""}.`
    : "None yet.";
  for (const id of ["csv", "json", "clear"]) {
    get(id).disabled = !photographs.length;
  }
}

const ORDERS = {
  added: (a, b) => a.number - b.number,
  high: (a, b) => (b.answer?.level ?? -1) - (a.answer?.level ?? -1),
  low: (a, b) => (a.answer?.level ?? 2) - (b.answer?.level ?? 2),
};

function sort() {
  const sorted = [...photographs].sort(ORDERS[get("order").value]);
  get("cards").append(...sorted.map((one) => one.card));
}

// --- the list as a file ------------------------------------------------------------------------------

function rows() {
  return photographs.map(({ file, answer, error }) => ({
    name: file.name,
    label: answer ? label(answer, threshold()) : "",
    level: answer ? answer.level : null,
    score: answer ? answer.score : null,
    threshold_level: threshold(),
    regions_at_own_threshold: answer ? answer.regions : [],
    warning: answer ? answer.warning : "",
    error: error || "",
  }));
}

function csv() {
  const quote = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const counted = (row) => ({ ...row, regions_at_own_threshold: row.regions_at_own_threshold.length });
  const lines = rows().map((row) => Object.values(counted(row)).map(quote).join(","));
  return ["name,label,level,score,threshold_level,regions_at_own_threshold,warning,error", ...lines, ""].join("\n");
}

function save(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- what a person does ------------------------------------------------------------------------------

get("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", get("token").value);
  connect();
});
get("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  get("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    get("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") {
      add(event.dataTransfer.files);
    }
  });
}
get("threshold").addEventListener("input", update);
get("changed").addEventListener("change", summarise);
get("order").addEventListener("change", sort);
get("reset").addEventListener("click", () => {
  get("threshold").value = OWN;
  update();
});
get("csv").addEventListener("click", () => save("photographs.csv", "text/csv", csv()));
get("json").addEventListener("click", () => save("photographs.json", "application/json", JSON.stringify(rows(), null, 2)));
get("clear").addEventListener("click", () => {
  photographs.length = 0;
  waiting = [];
  get("cards").replaceChildren();
  summarise();
});
connect().catch(() => {
  get("about").textContent = "The service does not answer.";
});
