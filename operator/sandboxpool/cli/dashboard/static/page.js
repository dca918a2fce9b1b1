// Follows the stream of changes and puts them into the page. Nothing else needs a script.
"use strict";

const connection = document.getElementById("connection");

// Ages, as kubectl shows them.
function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const [m, h, d] = [Math.floor(s / 60), Math.floor(s / 3600), Math.floor(s / 86400)];
  if (s < 120) return `${s}s`;
  if (m < 180) return `${m}m`;
  if (h < 48) return `${h}h`;
  return `${d}d`;
}

function showAges(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const then = Date.parse(time.dateTime);
    if (Number.isNaN(then)) continue;
    const seconds = (Date.now() - then) / 1000;
    const text = seconds < 0 ? `in ${age(-seconds)}` : `${age(seconds)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// Makes the children of `old` those of `wanted`, and leaves alone what is the same: so focus,
// selection, scroll positions and open details stay.
function morph(old, wanted) {
  const kept = new Set([...wanted.children].map((child) => child.dataset.key));
  const keyed = new Map();
  for (const child of [...old.children]) {
    const key = child.dataset.key;
    if (key && !kept.has(key)) child.remove();
    else if (key) keyed.set(key, child);
  }
  let at = old.firstChild;
  for (const next of [...wanted.childNodes]) {
    const key = next.dataset?.key;
    const match = key ? keyed.get(key) : at;
    if (match && match !== at && key) old.insertBefore(match, at);
    if (match && same(match, next)) {
      update(match, next);
      at = match.nextSibling;
    } else {
      old.insertBefore(next, at);
    }
  }
  while (at) {
    const following = at.nextSibling;
    at.remove();
    at = following;
  }
}

function same(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName
    && one.dataset?.key === other.dataset?.key;
}

function update(old, wanted) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== wanted.nodeValue) old.nodeValue = wanted.nodeValue;
    return;
  }
  if (old.isEqualNode(wanted)) return;
  for (const { name, value } of [...wanted.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    // Whether details are open is the reader's choice.
    if (!wanted.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  // What is in a time is an age, which changes here.
  if (old.nodeName !== "TIME") morph(old, wanted);
}

function say(text, state) {
  if (connection.textContent !== text) connection.textContent = text;
  connection.className = state;
}

function follow() {
  const source = new EventSource(document.body.dataset.stream);
  source.addEventListener("parts", (event) => {
    const focused = document.activeElement;
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      const part = document.getElementById(id);
      const wanted = document.createElement("div");
      wanted.innerHTML = html;
      if (part) morph(part, wanted);
    }
    // What moves to another place loses the focus.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus();
    showAges(document);
    say("Live.", "good");
  });
  source.addEventListener("error", () => {
    document.body.classList.add("lost");
    say(
      "No connection to kubectl sandboxpool dashboard: what is shown does not change any more. "
        + "Start the command again and open the URL that it prints.",
      "bad",
    );
  });
  source.addEventListener("open", () => document.body.classList.remove("lost"));
}

showAges(document);
setInterval(() => showAges(document), 10000);
follow();
