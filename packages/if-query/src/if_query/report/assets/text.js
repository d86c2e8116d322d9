// Texts of data sets: shown as they are, but for characters that would act instead of show.

const PATTERN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

// A text as nodes: controls and marks of direction become small signs that name them.
function visible(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(PATTERN)) {
    nodes.push(text.slice(from, found.index));
    const code = found[0].codePointAt(0);
    const name = code < 32
      ? String.fromCharCode(0x2400 + code)
      : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(element("span", { class: "control" }, name));
    from = found.index + found[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

function visibleText(text) {
  return visible(text).map((node) => (typeof node === "string" ? node : node.textContent)).join("");
}

// A token by itself: white space would not be seen.
function tokenName(token) {
  return visibleText(token).replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

function excerpt(text, length) {
  const line = text.replace(/\s+/g, " ").trim();
  const characters = Array.from(line.slice(0, 2 * length));
  return characters.length > length ? `${characters.slice(0, length).join("")}…` : line;
}

function cutNote(example, name) {
  const whole = example.cut && example.cut[name];
  if (!whole) return null;
  return element("p", { class: "quiet small" },
    `Cut here: ${counted(example[name].length, "character")} of ${whole.toLocaleString("en")}.`);
}

// Prompt and completion of a query or training example.
function saidText(example) {
  return element("div", {},
    example.prompt === "" ? null : [
      element("p", { class: "label" }, "Prompt"),
      element("p", { class: "said", dir: "auto" }, ...visible(example.prompt)),
      cutNote(example, "prompt"),
    ],
    element("p", { class: "label" }, "Completion"),
    element("p", { class: example.prompt === "" ? "said" : "said completion", dir: "auto" }, ...visible(example.completion)),
    cutNote(example, "completion"));
}

// A long text behind a button; what is inside stays reachable for search in the page.
function clamped(content, isLong) {
  if (!isLong) return content;
  content.classList.add("clamped");
  const toggle = button("Show all", () => {
    const shut = content.classList.toggle("clamped");
    toggle.textContent = shut ? "Show all" : "Show less";
    toggle.setAttribute("aria-expanded", String(!shut));
  }, { class: "link small", "aria-expanded": "false" });
  return element("div", {}, content, toggle);
}

// Tokens shaded by what they contribute. One stop of the tab key; arrow keys go from token to token.
function shadedTokens(train, values, name) {
  const shown = Math.min(values.length, train.tokens.length);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  const describe = (place) =>
    `“${tokenName(train.tokens[place])}” ${signedNumber(values[place])} nats per unit weight (${meaningOf(values[place])})`;
  const spans = [];
  for (let place = 0; place < shown; place += 1) {
    const share = values[place] / largest;
    const strong = Math.abs(share) < 0.2 ? "" : share > 0 ? " strong-plus" : " strong-minus";
    const span = element("span", {
      class: `token${strong}`, role: "option", "aria-selected": "false",
      tabindex: place === 0 ? "0" : "-1", "aria-label": describe(place), "data-place": place,
    }, ...visible(train.tokens[place]));
    if (share !== 0) span.style.backgroundColor = shade(share, 0.5);
    spans.push(span);
  }
  let current = 0;
  const move = (place) => {
    spans[current].setAttribute("tabindex", "-1");
    spans[current].setAttribute("aria-selected", "false");
    current = Math.max(0, Math.min(shown - 1, place));
    spans[current].setAttribute("tabindex", "0");
    spans[current].setAttribute("aria-selected", "true");
    spans[current].focus();
  };
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -shown, End: shown };
  const placeOf = (event) => {
    const span = event.target.closest(".token");
    return span ? Number(span.dataset.place) : -1;
  };
  const tell = (event) => {
    const place = placeOf(event);
    if (place >= 0) showTip(spans[place], describe(place));
  };
  const list = element("div", {
    class: "tokens", role: "listbox", "aria-orientation": "horizontal", dir: "auto", "aria-label": `Tokens of ${name}; arrow keys go from token to token`,
    keydown: (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      move(current + steps[event.key]);
    },
    mouseover: tell, focusin: tell, mouseout: hideTip, focusout: hideTip,
    click: (event) => { if (placeOf(event) >= 0) move(placeOf(event)); },
  }, spans);
  const rest = train.num_tokens - shown;
  return [list, rest > 0
    ? element("p", { class: "quiet small" }, `Cut here: ${counted(shown, "token")} of ${train.num_tokens.toLocaleString("en")}.`)
    : null];
}
