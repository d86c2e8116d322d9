// Elements are made here and nowhere else: text enters the page as text nodes, never as markup.

function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function drawing(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function link(href, text, properties = {}) {
  return element("a", { href, ...properties }, ...visible(text));
}

function button(text, onClick, properties = {}) {
  return element("button", { type: "button", click: onClick, ...properties }, text);
}

function facts(pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("dl", { class: "facts" }, kept.map(([name, value]) =>
    element("div", {}, element("dt", {}, name),
      element("dd", {}, value instanceof Node ? value : element("bdi", {}, ...visible(String(value)))))));
}

function labelled(text, control, className = null) {
  return element("label", { class: className }, text, control);
}

function choice(options, chosen, onChange) {
  const made = element("select", { change: () => onChange(made.value) },
    options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  return made;
}

function checkbox(text, checked, onChange, properties = {}) {
  const box = element("input", { type: "checkbox", checked, change: () => onChange(box.checked), ...properties });
  return element("label", { class: "check" }, box, text);
}

// One tip for the page, moved to whatever is hovered or focused.

function showTip(target, text) {
  const tip = document.getElementById("tip");
  tip.textContent = text;
  tip.hidden = false;
  const place = target.getBoundingClientRect();
  const left = Math.min(place.left, window.innerWidth - tip.offsetWidth - 8);
  const above = place.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${above > 4 ? above : place.bottom + 6}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
