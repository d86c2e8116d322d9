// How to read this: what a number means, what the run was, how to repeat it.

function readingPage() {
  const { reading, counts } = DATA;
  const paragraph = (...text) => element("p", { class: "prose" }, ...text);
  const damping = reading.damping_kind === "relative"
    ? `λ is ${reading.damping} of each linear map's mean eigenvalue`
    : `λ is ${reading.damping} for every linear map`;
  const curvature = reading.strategy === "identity"
    ? "No curvature was used: a score is the plain product g_qᵀ g_t of two gradients, without damping."
    : `F is the ${reading.fisher} Fisher information, approximated by ${reading.strategy}, averaged per example; ${damping}.`;
  return {
    title: "How to read this",
    page: "reading",
    content: [
      heading("How to read this"),
      element("h2", {}, "A score"),
      paragraph("For a query q and a training example t: score = g_qᵀ (F + λI)⁻¹ g_t, with g the gradient of an example's loss. ", curvature),
      element("h3", {}, "Sign"),
      paragraph(`${capital(reading.sign)}. A negative score is harmful: training more on the example raises the query's loss. Purple, a bar to the right and a plus sign are helpful; orange, a bar to the left and a minus sign harmful.`),
      element("h3", {}, "Unit"),
      paragraph(`${capital(reading.unit)}. Giving t an extra weight ε in the mean training loss changes the loss of q by −ε · score nats, to first order.`),
      element("h3", {}, "What to rely on"),
      paragraph("Compare scores within one query: their order and their ratios. Long or surprising examples have large gradients and so large scores with every query; the heat map can divide by the root of self-influence where it was computed. A score is a first-order estimate on a part of the model, no proof of cause."),
      element("h3", {}, "Rank, percentile, spread"),
      paragraph(`Rank 1 of ${counts.train.toLocaleString("en")} is the most helpful. The percentile is the percentage of training examples whose score is lower, half of the equal ones included. Spread is the standard deviation of a query's scores.`),
      element("h3", {}, "Tokens and parts of the model"),
      paragraph("A token's number is what its position adds to the score through the layer inputs and output gradients there; the numbers of all tokens add up to the score, and so do those of all linear maps. On this page they are rounded to a 30,000th of the largest."),
      element("h2", {}, "What this report leaves out"),
      capNote(),
      element("p", { class: "prose small quiet" }, `Of a training example, at most ${counts.num_tokens.toLocaleString("en")} tokens are shown. In downloads, texts are as they are on the page.`),
      element("h2", {}, "This run"),
      facts([
        ["model", reading.model], ["revision", reading.revision], ["fingerprint of the parameters", reading.model_fingerprint],
        ["model ran in", reading.dtype], ["approximation", reading.strategy], ["Fisher information", reading.fisher],
        ["damping", `${reading.damping}, ${reading.damping_kind}`],
        ["parameters covered", `${percentText(reading.tracked_share)} in ${counted(reading.tracked_modules.length, "linear map")}`],
        ["longest example", counted(reading.max_length, "token")], ["rank of query gradients", reading.query_rank],
        ["rows kept per side (top-k)", reading.top_k],
        ["queries × training examples", `${counts.queries.toLocaleString("en")} × ${counts.train.toLocaleString("en")}`],
        ["factors", reading.factors], ["results", DATA.folder],
        ...Object.entries(reading.other_arguments).map(([name, value]) => [name, String(value)]),
      ]),
      element("h3", {}, "Linear maps that were tracked"),
      element("details", { class: "prose" }, element("summary", {}, "Their names"),
        element("ul", { class: "mono" }, reading.tracked_modules.map((name) => element("li", {}, name)))),
      element("h3", {}, "Versions"),
      facts(Object.entries(reading.versions)),
      element("h3", {}, reading.commands.length > 1 ? "The exact commands" : "The exact command"),
      reading.commands.map((line) => element("pre", { class: "card" }, ...visible(line))),
    ],
  };
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
