"use strict";
// The numbers that the page embeds, as xcope/inspect/encode.py packs them.
const Numbers = (() => {
  const text = (id) => document.getElementById(id)?.textContent;
  const facts = JSON.parse(text("facts"));
  const keys = facts.labels.length;
  const before = keys - facts.queries; // keys that can be no query
  const NAMES = ["gates", "saturated", "attention", "bias"];
  const NARROW = new Set(["gates", "attention"]); // a byte each, others two
  const tables = new Map();

  async function unpacked(name, layer, head) {
    const packed = text(`${name}-${layer}-${head}`);
    if (packed === undefined) return null;
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    const whole = await new Response(stream).arrayBuffer();
    return NARROW.has(name) ? new Uint8Array(whole) : new Uint16Array(whole);
  }

  /** A promise of what a head has; null for what it lacks. */
  function of(layer, head) {
    const id = `${layer}-${head}`;
    if (!tables.has(id)) {
      const about = facts.layers[layer][head];
      const names = [...NAMES, ...about.maps.map((_, k) => `map${k}`)];
      tables.set(id, Promise.all(names.map((name) => unpacked(name, layer, head))).then((found) => ({
        ...Object.fromEntries(NAMES.map((name, k) => [name, found[k]])),
        maps: found.slice(NAMES.length),
        about,
      })));
    }
    return tables.get(id);
  }

  /** What the head does with keys 0 … query, in arrays of their own. */
  function row(t, query) {
    const i = query - before, size = query + 1;
    const start = i * (before + 1) + (i * (i - 1)) / 2;
    const read = (value) => {
      const values = new Float32Array(size);
      for (let key = 0; key < size; key++) values[key] = value(start + query - key);
      return values;
    };
    const found = { attention: read((at) => (t.attention[at] / 255) ** 2) };
    if (t.gates) {
      found.gate = read((at) => t.gates[at] / 255);
      found.position = new Float32Array(size);
      found.sum = 0;
      for (let key = query; key >= 0; key--) {
        found.sum += found.gate[key];
        found.position[key] = Math.min(found.sum, t.about.maxPos - 1);
      }
      found.full = query - t.saturated[i]; // keys up to this one are at the last position
    }
    const steps = (table, [low, high]) =>
      read((at) => (table[at] > 65534 ? NaN : low + (table[at] / 65534) * (high - low)));
    if (t.bias) found.bias = steps(t.bias, t.about.bias);
    t.about.maps.forEach(([name, ...range], k) => { found[`map:${name}`] = steps(t.maps[k], range); });
    return found;
  }

  return { facts, keys, before, of, row };
})();

// The page: the text, its shades, what one chooses.
(() => {
  const $ = (id) => document.getElementById(id);
  const { facts, keys, before, row } = Numbers;
  const SHOWN = { gates: "Gates", positions: "Positions", attention: "Attention", bias: "Bias" };
  const MOST_BIAS = 10; // beyond a factor of e^10 in attention darker shades would tell nothing

  const state = { layer: 0, head: 0, view: null, query: keys - 1, held: false, table: null };

  // -- numbers as shades and words ---------------------------------------------------------------

  /** Whether the view has numbers of any size and sign: the bias, or a map by the scheme's name. */
  const ranged = () => state.view === "bias" || state.view.startsWith("map:");

  function range(t) {
    if (state.view === "bias") return t.about.bias;
    return t.about.maps.find(([name]) => `map:${name}` === state.view).slice(1);
  }

  /** The number that has the darkest shade. */
  function darkest(t) {
    const [low, high] = range(t);
    return Math.min(Math.max(-low, high), state.view === "bias" ? MOST_BIAS : Infinity) || 1;
  }

  /** A number of a ranged view; with a sign where some are below zero, or are added. */
  function written(t, x, digits) {
    if (Number.isNaN(x)) return "–";
    return state.view === "bias" || range(t)[0] < 0 ? signed(x, digits) : x.toFixed(digits);
  }

  function signed(x, digits) {
    const size = Math.abs(x).toFixed(digits);
    return Number(size) === 0 ? size : (x < 0 ? "−" : "+") + size;
  }

  const percent = (a) => (a >= 0.0995 ? (100 * a).toFixed(0) : (100 * a).toFixed(1));

  /** [how dark, whether below zero, what is written] of a key. */
  function look(t, found, key) {
    if (state.view === "attention") {
      return [Math.sqrt(found.attention[key]), false, percent(found.attention[key])];
    }
    if (ranged()) {
      const x = found[state.view][key], scale = darkest(t);
      const shade = Number.isNaN(x) ? 0 : Math.min(Math.abs(x) / scale, 1);
      return [shade, x < 0, written(t, x, Math.abs(x) >= 99.95 ? 0 : scale > 1 || state.view === "bias" ? 1 : 2)];
    }
    const last = t.about.maxPos - 1;
    const position = key <= found.full ? `${last}+` : found.position[key].toFixed(1);
    const shade = state.view === "gates" ? found.gate[key] : found.position[key] / (last || 1);
    return [shade, false, position];
  }

  const called = (key) => `${key} “${facts.labels[key]}”`;

  function status(t, found) {
    const query = `Query ${called(state.query)}${state.held ? " (held)" : ""}`;
    if (found.gate && (state.view === "gates" || state.view === "positions")) {
      const last = t.about.maxPos - 1;
      const full = found.full < 0 ? `position ${last} is not reached`
        : `saturated (${last}+) from ${called(found.full)} backwards`;
      return `${query}: gates sum to ${found.sum.toFixed(1)}; ${full}`;
    }
    return query;
  }

  function detail(t, found, key) {
    if (key === null || key > state.query) {
      const by = ranged() ? found[state.view] : state.view === "attention" ? found.attention : found.gate;
      const top = [...by.keys()].sort((a, b) => by[b] - by[a] || b - a).slice(0, 5);
      const word = ranged() ? `Largest ${state.view.replace("map:", "")}`
        : state.view === "attention" ? "Most attention" : "Widest open gates";
      return `${word}: ${top.map((k) => `${called(k)} ${value(t, by[k])}`).join(", ")}`;
    }
    const parts = [`attention ${percent(found.attention[key])}%`];
    if (found.bias) parts.unshift(`bias ${signed(found.bias[key], 2)}`);
    t.about.maps.forEach(([name]) => parts.unshift(`${name} ${found[`map:${name}`][key].toFixed(2)}`));
    if (found.gate) parts.unshift(`gate ${found.gate[key].toFixed(2)}`, `position ${found.position[key].toFixed(2)}`);
    return `Token ${called(key)}: ${parts.join(", ")}`;
  }

  function value(t, x) {
    if (ranged()) return written(t, x, 2);
    return state.view === "attention" ? `${percent(x)}%` : x.toFixed(2);
  }

  // -- drawing -----------------------------------------------------------------------------------

  const cells = [];

  function build() {
    const breaks = new Set(facts.breaks), unseen = new Set(facts.unseen);
    const text = document.createDocumentFragment();
    facts.labels.forEach((label, key) => {
      const cell = document.createElement("span"), name = document.createElement("b");
      const under = document.createElement("i");
      cell.className = "token";
      cell.dataset.key = key;
      name.textContent = label;
      cell.append(name, under);
      cells.push({ cell, under: under.appendChild(document.createTextNode("")), classes: "", shade: "" });
      if (unseen.has(key)) name.classList.add("unseen");
      text.append(cell);
      if (breaks.has(key)) text.append(Object.assign(document.createElement("span"), { className: "break" }));
    });
    $("tokens").append(text);
  }

  let turn = 1; // shades from here on take light text, in dark mode dark text

  function paint(pointed = null) {
    const t = state.table, found = row(t, state.query);
    const counts = t.gates && (state.view === "gates" || state.view === "positions");
    cells.forEach((one, key) => {
      let shade = 0, below = false, written = "";
      if (key <= state.query) [shade, below, written] = look(t, found, key);
      const classes = "token" + (key > state.query ? " later" : "") + (key === state.query ? " query" : "")
        + (below ? " below" : "") + (shade > turn ? " strong" : "")
        + (counts && key <= found.full && key <= state.query ? " saturated" : "");
      if (classes !== one.classes) one.cell.className = one.classes = classes;
      const a = shade.toFixed(3);
      if (a !== one.shade) one.cell.style.setProperty("--a", (one.shade = a));
      if (written !== one.under.data) one.under.data = written;
    });
    $("status").textContent = status(t, found);
    $("detail").textContent = detail(t, found, pointed);
    document.body.classList.toggle("held", state.held);
    $("line").style.top = `${(100 * (state.query - before + 0.5)) / facts.queries}%`;
  }

  function legend() {
    const t = state.table, box = $("legend"), steps = [0, 0.25, 0.5, 0.75, 1];
    const below = ranged() && (state.view === "bias" || range(t)[0] < 0); // shades on both sides of 0
    const ends = ranged() ? (below ? [-1, -0.5, 0, 0.5, 1] : steps).map((s) => +(s * darkest(t)).toFixed(2)) : [];
    const words = {
      gates: () => ["Shade: the gate. Under a token: its position, the gates counted back from the query.", steps],
      positions: () => ["Shade and number: the position, counted back from the query.",
        steps.map((s) => +(s * (t.about.maxPos - 1)).toFixed(1))],
      attention: () => ["Shade and number: attention, in % of the query’s.", steps.map((s) => `${Math.round(100 * s * s)}%`)],
      bias: () => ["Shade and number: what is added to the logit."
        + (darkest(t) === MOST_BIAS ? ` Beyond ±${MOST_BIAS} the shade stays the same.` : ""), ends],
      map: () => [`Shade and number: ${state.view.replace("map:", "")}, as the scheme tells it.`, ends],
    };
    const [said, marks] = words[state.view.split(":")[0]]();
    const scale = document.createElement("div");
    scale.className = "scale";
    marks.forEach((mark, k) => {
      const shade = below ? Math.abs(k - 2) / 2 : steps[k];
      const one = Object.assign(document.createElement("span"), { textContent: String(mark).replace("-", "−") });
      one.className = `token${below && k < 2 ? " below" : ""}${shade > turn ? " strong" : ""}`;
      one.style.setProperty("--a", shade);
      scale.append(one);
    });
    box.replaceChildren(said, scale);
    if (t.gates && (state.view === "gates" || state.view === "positions")) {
      const last = t.about.maxPos - 1;
      const mark = Object.assign(document.createElement("span"), { className: "mark", textContent: `${last}+` });
      box.append(mark, ` position ${last} is the table’s last: from here on back, positions no longer differ.`);
    }
  }

  function matrix() {
    const canvas = $("matrix"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim().split(/\s+/).map(Number);
    const above = colour(state.view.split(":")[0]), beneath = colour("below");
    canvas.width = keys;
    canvas.height = facts.queries;
    const image = new ImageData(keys, facts.queries);
    for (let query = before; query < keys; query++) {
      const found = row(state.table, query);
      for (let key = 0; key <= query; key++) {
        const [shade, below] = look(state.table, found, key);
        const at = 4 * ((query - before) * keys + key);
        image.data.set(below ? beneath : above, at);
        image.data[at + 3] = 255 * Math.max(shade, 0.04);
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // -- choosing ----------------------------------------------------------------------------------

  function choices(id, entries, chosen, choose) {
    $(id).replaceChildren(...entries.map(([key, word, possible = true]) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: id, value: key, checked: key === chosen, disabled: !possible });
      input.addEventListener("change", () => choose(key));
      label.append(input, Object.assign(document.createElement("span"), { textContent: word }));
      return label;
    }));
  }

  async function show() {
    const heads = facts.layers[state.layer];
    state.head = Math.min(state.head, heads.length - 1);
    const about = heads[state.head];
    const has = { gates: "gates" in about, positions: "gates" in about, attention: true, bias: "bias" in about };
    const maps = about.maps.map(([name]) => [`map:${name}`, name[0].toUpperCase() + name.slice(1)]);
    maps.forEach(([view]) => { has[view] = true; });
    const usual = Object.entries(SHOWN).filter(([k]) => has[k] || !has[`map:${k}`]);
    if (!has[state.view]) state.view = has.gates ? "gates" : "attention";
    // a choice is drawn again, and keeps the keyboard's focus
    const focused = document.activeElement, group = focused && focused.name;
    choices("layers", facts.layers.map((_, k) => [k, k]), state.layer, (k) => { state.layer = k; show(); });
    choices("heads", heads.map((_, k) => [k, k]), state.head, (k) => { state.head = k; show(); });
    choices("views", [...usual, ...maps].map(([k, word]) => [k, word, has[k]]), state.view,
      (k) => { state.view = k; show(); });
    if (group) document.querySelector(`input[name="${group}"]:checked`).focus();
    $("scheme").textContent = `Layer ${state.layer}, head ${state.head}: ${about.scheme}`;
    const asked = `${state.layer}-${state.head}-${state.view}`;
    const loaded = await Numbers.of(state.layer, state.head);
    if (asked !== `${state.layer}-${state.head}-${state.view}`) return;
    state.table = loaded;
    document.body.dataset.view = state.view.split(":")[0];
    turn = Number(getComputedStyle(document.documentElement).getPropertyValue("--turn"));
    paint();
    legend();
    matrix();
    document.body.dataset.ready = asked;
  }

  function choose(key) {
    state.query = Math.min(Math.max(key, before), keys - 1);
    if (state.table) paint();
  }

  function keyOf(event) {
    const cell = event.target.closest(".token");
    return cell ? Number(cell.dataset.key) : null;
  }

  function listen() {
    const tokens = $("tokens");
    tokens.addEventListener("pointerover", (event) => {
      const key = keyOf(event);
      if (key === null || event.pointerType === "touch" || !state.table) return;
      if (state.held) paint(key);
      else if (key >= before) choose(key);
    });
    tokens.addEventListener("click", (event) => {
      const key = keyOf(event);
      if (key === null) return;
      const touched = event.pointerType === "touch";
      state.held = !touched && !(state.held && key === state.query) && key >= before;
      if (key >= before) choose(key);
      else paint(key);
    });
    tokens.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -keys, End: keys };
      if (event.key === "Enter") state.held = !state.held;
      else if (!(event.key in steps)) return;
      event.preventDefault();
      choose(state.query + (steps[event.key] || 0));
      cells[state.query].cell.scrollIntoView({ block: "nearest" });
    });
    $("matrix").addEventListener("click", (event) => {
      const box = $("matrix").getBoundingClientRect();
      state.held = true;
      choose(before + Math.floor(((event.clientY - box.top) / box.height) * facts.queries));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  }

  build();
  listen();
  if ("DecompressionStream" in window) show();
  else $("status").textContent = "This browser is too old to unpack the numbers; one from 2023 or later can.";
})();
