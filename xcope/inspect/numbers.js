"use strict";
// The numbers that the page embeds, as xcope/inspect/encode.py packs them.
const Numbers = (() => {
  const text = (id) => document.getElementById(id)?.textContent;
  const facts = JSON.parse(text("facts"));
  const keys = facts.labels.length;
  const before = keys - facts.queries; // keys that can be no query
  const NAMES = ["gates", "saturated", "attention", "bias"];
  const WIDE = new Set(["saturated", "bias"]); // two bytes each
  const tables = new Map();

  async function unpacked(name, layer, head) {
    const packed = text(`${name}-${layer}-${head}`);
    if (packed === undefined) return null;
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    const whole = await new Response(stream).arrayBuffer();
    return WIDE.has(name) ? new Uint16Array(whole) : new Uint8Array(whole);
  }

  /** A promise of what a head has; null for what it lacks. */
  function of(layer, head) {
    const id = `${layer}-${head}`;
    if (!tables.has(id)) {
      tables.set(id, Promise.all(NAMES.map((name) => unpacked(name, layer, head))).then((found) => ({
        ...Object.fromEntries(NAMES.map((name, k) => [name, found[k]])),
        about: facts.layers[layer][head],
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
    if (t.bias) {
      const [low, high] = t.about.bias;
      found.bias = read((at) => (t.bias[at] > 65534 ? NaN : low + (t.bias[at] / 65534) * (high - low)));
    }
    return found;
  }

  return { facts, keys, before, of, row };
})();
