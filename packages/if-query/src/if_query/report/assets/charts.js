// Colours of the diverging scale, bars, the distribution of scores, spectra.

const SYSTEM_DARK = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : SYSTEM_DARK.matches;
}

// Purple for positive, orange for negative; |share| of the largest gives the strength.
function shade(share, strongest = 1) {
  const [plus, minus] = isDark()
    ? ["156, 126, 226", "232, 128, 44"]
    : ["94, 60, 153", "230, 97, 1"];
  const strength = Math.min(1, Math.abs(share)) * strongest;
  return `rgba(${share >= 0 ? plus : minus}, ${strength.toFixed(3)})`;
}

// A bar from the middle: to the right for positive. The number always stands beside it.
function signedBar(value, largest) {
  const inner = element("i", { class: value >= 0 ? "plus-fill" : "minus-fill" });
  inner.style.width = `${largest > 0 ? (50 * Math.abs(value)) / largest : 0}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, inner);
}

function scoreCell(value, largest) {
  return element("span", { class: "score" },
    element("span", { class: value >= 0 ? "plus" : "minus" }, signedNumber(value)),
    signedBar(value, largest));
}

// All scores of a query as a histogram, heights logarithmic; the shown ones as triangles.
function distribution(query, rows) {
  const width = window.innerWidth < 700 ? 360 : 700;
  const floor = 120;
  const { low, high, counts } = query;
  const range = high - low || 1;
  const at = (score) => 20 + ((width - 40) * (score - low)) / range;
  const highest = Math.log1p(Math.max(...counts));
  const step = (width - 40) / counts.length;
  const bins = counts.map((count, place) => {
    const tall = highest ? ((floor - 14) * Math.log1p(count)) / highest : 0;
    const from = low + (range * place) / counts.length;
    return drawing("rect", { class: "bins", x: 20 + place * step, y: floor - tall, width: Math.max(1, step - 1), height: tall },
      drawing("title", {}, `${counted(count, "training example")} from ${signedNumber(from)} to ${signedNumber(from + range / counts.length)}`));
  });
  const marks = rows.map((row) => {
    const x = at(row.score);
    const points = row.helpful
      ? `${x - 4},${floor + 12} ${x + 4},${floor + 12} ${x},${floor + 4}`
      : `${x - 4},${floor + 4} ${x + 4},${floor + 4} ${x},${floor + 12}`;
    return drawing("polygon", { class: row.helpful ? "mark-plus" : "mark-minus", points },
      drawing("title", {}, `${row.train.id}: ${signedNumber(row.score)}`));
  });
  const zero = low < 0 && high > 0
    ? [drawing("line", { class: "axis", x1: at(0), x2: at(0), y1: 4, y2: floor + 16 }),
      drawing("text", { x: at(0), y: floor + 30, "text-anchor": "middle" }, "0")]
    : [];
  const farFromZero = (x) => zero.length === 0 || Math.abs(at(0) - x) > 90;
  const ends = [
    farFromZero(20) ? drawing("text", { x: 20, y: floor + 30 }, signedNumber(low, 3)) : null,
    farFromZero(width - 20) ? drawing("text", { x: width - 20, y: floor + 30, "text-anchor": "end" }, signedNumber(high, 3)) : null,
  ];
  return drawing("svg", {
    viewBox: `0 0 ${width} ${floor + 36}`, role: "img",
    "aria-label": `Histogram of all ${DATA.counts.train} scores, from ${signedNumber(low)} to ${signedNumber(high)}; the table of quantiles says the same`,
  }, drawing("line", { class: "axis", x1: 20, x2: width - 20, y1: floor, y2: floor }), bins, zero, marks, ends);
}

// An eigenvalue spectrum, both axes logarithmic; the dashed line is the damping.
function spectrum(module, range, properties = {}) {
  const width = 240;
  const height = 64;
  const [bottom, top] = range.map(Math.log10);
  const across = (percent) => 4 + ((width - 8) * Math.log10(percent / module.places[0])) / (Math.log10(100 / module.places[0]) || 1);
  const up = (value) => {
    const share = (Math.log10(Math.max(value, range[0])) - bottom) / (top - bottom || 1);
    return height - 4 - (height - 8) * Math.min(1, Math.max(0, share));
  };
  const points = module.values.map((value, place) => `${across(module.places[place]).toFixed(1)},${up(value).toFixed(1)}`);
  return drawing("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", class: "spark", ...properties,
    "aria-label": `Spectrum of ${module.name}: largest ${plainNumber(module.largest)}, median ${plainNumber(module.median)}, damping ${plainNumber(module.damping)}`,
  },
  drawing("line", { class: "axis", x1: 4, x2: width - 4, y1: height - 3, y2: height - 3 }),
  module.damping > 0 ? drawing("line", { class: "rule", x1: 4, x2: width - 4, y1: up(module.damping), y2: up(module.damping) }) : null,
  drawing("polyline", { class: "curve", points: points.join(" ") }));
}
