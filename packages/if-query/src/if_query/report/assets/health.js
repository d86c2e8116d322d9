// Curvature health: warnings, what was fitted, the spectrum of every linear map.

const FACT_NAMES = {
  model: "model", model_class: "class", dataset: "fitted on", num_examples: "examples", num_tokens: "tokens",
  num_label_tokens: "tokens with labels", num_unlabelled_examples: "examples without labels", strategy: "approximation",
  fisher: "Fisher information", seed: "seed", dtype: "model in", covariance_dtype: "covariances in", eigen_dtype: "eigendecompositions in",
  layer_stride: "layer stride",
};
const MODULES_AT_ONCE = 40;

function healthPage() {
  const { health, reading } = DATA;
  const content = [
    heading("Curvature health"),
    element("p", { class: "prose" }, `The scores see the model through ${counted(reading.tracked_modules.length, "linear map")}, which hold `,
      element("strong", {}, percentText(reading.tracked_share)), " of its parameters."),
    element("h2", {}, "Warnings"),
    health.warnings.length
      ? element("ul", { class: "warnings prose" }, health.warnings.map((text) => element("li", {}, ...visible(text))))
      : element("p", {}, "None."),
  ];
  if (!health.found) {
    content.push(element("h2", {}, "Spectra"), element("p", { class: "prose", id: "no-factors" },
      health.reason === "none"
        ? `The factors were not found at ${reading.factors}. influence-report --factors-dir names their folder, and this page then shows the eigenvalues of every linear map.`
        : `At ${reading.factors}, ${health.reason}. influence-report --factors-dir names the right folder.`));
    return { title: "Curvature", page: "curvature", content };
  }
  content.push(element("h2", {}, "What was fitted"),
    facts(Object.entries(FACT_NAMES).map(([key, name]) => [name, health.facts[key]])),
    element("h2", {}, "Spectra"));
  if (health.modules.length === 0) {
    content.push(element("p", {}, "The identity has no eigenvalues: scores are plain products of gradients."));
  } else content.push(...spectra(health.modules));
  return { title: "Curvature", page: "curvature", content };
}

function spectra(modules) {
  const positive = modules.filter((module) => module.largest > 0);
  const top = Math.max(...positive.map((module) => module.largest), 1e-30);
  const lowest = Math.min(...positive.map((module) => Math.min(module.damping || module.median, Math.max(module.median, module.largest * 1e-8))), top);
  const range = [lowest / 10, top];
  const body = element("tbody", { role: "rowgroup" });
  const show = (part) => body.replaceChildren(...part.map((module) => moduleRow(module, range)));
  const sampled = modules.some((module) => !module.complete);
  return [
    element("p", { class: "prose small quiet" }, `Eigenvalues of the Fisher information per example, in nats² per unit weight², the largest first; both axes are logarithmic and the same for all maps (${plainNumber(range[0], 2)} to ${plainNumber(top, 2)}). The dashed line is the damping λ: directions below it count for little curvature, and their gradients are taken nearly as they are. The effective share is the mean of Λ/(Λ + λ).${sampled ? " Of large maps, marked with *, evenly spaced rows were read." : ""}`),
    downloadButton("Download table as CSV", "curvature", () => [
      ["module", "d_out", "d_in", "largest", "median", "mean", "damping", "share_below_damping", "effective_share"],
      ...modules.map((one) => [one.name, ...one.shape, one.largest, one.median, one.mean, one.damping, one.share_below_damping, one.effective_share])]),
    element("table", { class: "stacks", role: "table", "aria-label": "Spectra of the linear maps" },
      columns([["Linear map"], ["Spectrum"], ["Largest", "number"], ["Median", "number"], ["Mean", "number"], ["Damping λ", "number"], ["Below λ", "number"], ["Effective share", "number"]]), body),
    pager(modules, MODULES_AT_ONCE, show, "page of linear maps"),
  ];
}

function moduleRow(module, range) {
  const cell = (label, text) => element("td", { role: "cell", class: "number", "data-label": label }, text);
  return element("tr", { role: "row" },
    element("th", { scope: "row", role: "rowheader", class: "whole mono" }, `${module.name}${module.complete ? "" : "*"}`,
      element("span", { class: "quiet small" }, ` ${module.shape.join(" × ")}`)),
    element("td", { role: "cell", class: "whole" }, spectrum(module, range)),
    cell("Largest", plainNumber(module.largest, 3)), cell("Median", plainNumber(module.median, 3)),
    cell("Mean", plainNumber(module.mean, 3)), cell("Damping λ", plainNumber(module.damping, 3)),
    cell("Below λ", percentText(module.share_below_damping)), cell("Effective share", percentText(module.effective_share)));
}
