// Draws the plots, and keeps a page that says it is live in step with the sidecar. The page is whole without it.
"use strict";

const REFRESH_MS = 5000;
const PATIENCE_MS = 10000;
const dark = matchMedia("(prefers-color-scheme: dark)");

// -- plots ------------------------------------------------------------------------------------------------------------

/** A figure with the style sheet's colours in place of their names. */
function coloured(value, style) {
  if (typeof value === "string") {
    return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  }
  if (Array.isArray(value)) return value.map((each) => coloured(each, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, style)]));
}

function draw(plot) {
  const style = getComputedStyle(document.documentElement);
  const figure = coloured(JSON.parse(plot.querySelector("script").textContent), style);
  figure.layout.font.family = getComputedStyle(document.body).fontFamily;
  let canvas = plot.querySelector(".canvas");
  const first = canvas === null;
  if (first) {
    canvas = document.createElement("div");
    canvas.className = "canvas";
    plot.append(canvas);
  }
  canvas.style.height = `${figure.layout.height}px`;
  const drawn = Plotly.react(canvas, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  if (first) {
    canvas.on("plotly_click", (event) => {
      const place = event.points[0].customdata;
      if (place) location.assign(place);
    });
  }
  return drawn;
}

function drawAll() {
  document.querySelectorAll("[data-plot]").forEach(draw);
}

// -- staying in step --------------------------------------------------------------------------------------------------

/** Makes an element like a fresh one, touching only what differs: scroll, focus and open details stay. */
function adopt(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else if (old.hasAttribute("data-plot")) {
    const [held, told] = [old, fresh].map((plot) => plot.querySelector("script"));
    if (held.textContent !== told.textContent) {
      held.textContent = told.textContent;
      draw(old);
    }
  } else {
    adoptAttributes(old, fresh);
    adoptChildren(old, fresh);
  }
}

function adoptAttributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
}

function adoptChildren(old, fresh) {
  const named = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const known = child.id ? named.get(child.id) : null;
    if (known) {
      if (known === place) place = place.nextSibling;
      else old.insertBefore(known, place);
      adopt(known, child);
    } else if (place && !place.id && !child.id) {
      const next = place.nextSibling;
      adopt(place, child);
      place = next;
    } else {
      old.insertBefore(child, place);
      if (child.nodeType === Node.ELEMENT_NODE) child.querySelectorAll("[data-plot]").forEach(draw);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

const live = document.getElementById("live");
let since = live && live.dataset.drawn;

function say(state, text) {
  live.className = `live ${state}`;
  if (live.textContent !== text) live.textContent = text;
}

const clock = (iso) => `${iso.slice(11, 19)} UTC`;

async function refresh() {
  try {
    const answer = await fetch(location.href, {
      headers: { accept: "text/html" },
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (!answer.ok) throw new Error(`the sidecar answers ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = page.title;
    adopt(document.getElementById("fresh"), page.getElementById("fresh"));
    since = page.getElementById("live").dataset.drawn;
    say("now", "● live");
    live.title = `drawn ${clock(since)}`;
  } catch {
    say("stale", `▲ stale since ${clock(since)}: the sidecar does not answer`);
  }
}

async function follow() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, REFRESH_MS));
    if (!document.hidden) await refresh();
  }
}

document.documentElement.classList.add("js");
drawAll();
dark.addEventListener("change", drawAll);
if (live) {
  say("now", "● live");
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  follow();
}
