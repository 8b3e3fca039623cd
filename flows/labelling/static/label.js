// What the pages can do more with a script: keys, and ranking by dragging. Everything they send, they send through the form.
"use strict";

const form = document.getElementById("answer");
const guidelines = document.querySelector("details.guidelines");
let sent = false;

if (form) form.addEventListener("submit", (event) => {
  // A second click while the first is on its way. The server would take the form once anyway.
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => { sent = false; });

function typing(target) {
  return target instanceof HTMLElement && (target.matches("textarea, select") || (target.matches("input") && target.type !== "radio"));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (guidelines.open) { guidelines.open = false; guidelines.querySelector("summary").focus(); }
    else if (document.activeElement) document.activeElement.blur();
    return;
  }
  if (typing(event.target) || event.repeat) return;
  if (event.key === "?") { guidelines.open = !guidelines.open; event.preventDefault(); return; }
  if (!form) return;
  if (event.key === "/") { document.getElementById("comment").focus(); event.preventDefault(); return; }
  if (ranker && ranker.onKey(event)) { event.preventDefault(); return; }
  const target = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (target) { event.preventDefault(); target.click(); }
});

document.addEventListener("click", (event) => {
  if (guidelines && guidelines.open && !guidelines.contains(event.target)) guidelines.open = false;
});

// A long conversation begins with its last turn in sight: that is what the answers answer.
const turns = document.querySelectorAll(".prompt .turn");
if (turns.length > 1) {
  const box = document.querySelector(".prompt");
  const last = turns[turns.length - 1];
  if (last.offsetTop - box.offsetTop > box.clientHeight / 2) box.scrollTop = last.offsetTop - box.offsetTop - 12;
}

// Ranking: the radio buttons of the answers hold the places; the track at the bottom shows them as D > G > A = B and changes them.
class Ranker {
  constructor(root) {
    this.root = root;
    this.letters = root.dataset.letters.split(" ");
    this.radios = this.letters.map((_, at) => [...form.querySelectorAll(`input[name="place-${at}"]`)]);
    this.save = form.querySelector('button[name="save"]');
    this.chosen = 0;
    this.drag = null;
    root.hidden = false;
    this.track = this.element("div", "track");
    this.tray = this.element("div", "track tray");
    this.tools = this.element("div", "tools");
    this.said = this.element("p", "said");
    this.said.setAttribute("role", "status");
    root.append(this.track, this.tray, this.tools, this.said);
    this.addTool("← better", () => this.move(-1));
    this.addTool("worse →", () => this.move(1));
    this.addTool("= tie", () => this.tie());
    form.addEventListener("change", (event) => {
      const at = this.radios.findIndex((group) => group.includes(event.target));
      if (at >= 0) { this.chosen = at; this.draw(); }
    });
    for (const [at] of this.letters.entries()) {
      document.getElementById(`answer-${at}`).addEventListener("click", () => { this.chosen = at; this.draw(); });
    }
    // A drag is no scroll: after one, the browser would take a quick tap for the end of its own fling, and swallow it.
    root.addEventListener("touchmove", (event) => { if (this.drag) event.preventDefault(); }, { passive: false });
    root.addEventListener("pointermove", (event) => this.onMove(event));
    root.addEventListener("pointerup", (event) => this.onDrop(event));
    root.addEventListener("pointercancel", () => this.endDrag());
    this.draw();
  }

  element(tag, name, text = "") {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  }

  addTool(text, action) {
    const button = this.element("button", "tool", text);
    button.type = "button";
    button.addEventListener("click", action);
    this.tools.append(button);
  }

  // The places as tiers of answers, best first, and the answers without a place.
  read() {
    const places = this.radios.map((group) => Number(group.find((radio) => radio.checked)?.value ?? 0));
    const used = [...new Set(places.filter((place) => place))].sort((a, b) => a - b);
    const at = (place) => places.flatMap((own, index) => (own === place ? [index] : []));
    return { tiers: used.map(at), unplaced: at(0) };
  }

  write(tiers) {
    for (const group of this.radios) for (const radio of group) radio.checked = false;
    tiers.filter((tier) => tier.length).forEach((tier, place) => { for (const at of tier) this.radios[at][place].checked = true; });
    this.draw();
  }

  without(at) {
    return this.read().tiers.map((tier) => tier.filter((other) => other !== at));
  }

  move(step) {
    const { tiers } = this.read();
    const from = tiers.findIndex((tier) => tier.includes(this.chosen));
    const rest = this.without(this.chosen);
    if (from < 0) rest.splice(step < 0 ? 0 : rest.length, 0, [this.chosen]);
    else if (tiers[from].length > 1) rest.splice(step < 0 ? from : from + 1, 0, [this.chosen]);
    else rest.splice(step < 0 ? Math.max(from - 1, 0) : from + 2, 0, [this.chosen]);
    this.write(rest);
  }

  tie() {
    const { tiers } = this.read();
    const from = tiers.findIndex((tier) => tier.includes(this.chosen));
    const rest = this.without(this.chosen);
    const to = from < 0 ? tiers.length - 1 : from > 0 ? from - 1 : 1;
    if (!rest[to]) return;
    rest[to].push(this.chosen);
    this.write(rest);
  }

  place(number) {
    const radio = this.radios[this.chosen][number - 1];
    if (radio) { radio.checked = true; this.draw(); }
  }

  onKey(event) {
    const at = this.letters.indexOf(event.key.toUpperCase());
    if (at >= 0 && event.key.length === 1) { this.chosen = at; this.draw(); return true; }
    if (/^[1-9]$/.test(event.key)) { this.place(Number(event.key)); return true; }
    if (event.key === "ArrowLeft") { this.move(-1); return true; }
    if (event.key === "ArrowRight") { this.move(1); return true; }
    if (event.key === "=") { this.tie(); return true; }
    const onControl = event.target instanceof HTMLElement && event.target.closest("button:not(.chip), a, summary");
    if (event.key === "Enter" && !onControl) { if (!this.save.disabled) this.save.click(); return true; }
    return false;
  }

  chip(at) {
    const chip = this.element("button", "chip", this.letters[at]);
    chip.type = "button";
    chip.dataset.at = at;
    chip.setAttribute("aria-pressed", String(at === this.chosen));
    chip.addEventListener("pointerdown", (event) => this.onGrab(event, chip, at));
    chip.addEventListener("click", () => { this.chosen = at; this.draw(); });
    return chip;
  }

  gap(index, text) {
    const gap = this.element("span", text.length > 1 ? "gap whole" : "gap", text);
    gap.dataset.gap = index;
    return gap;
  }

  draw() {
    const focused = document.activeElement?.classList.contains("chip");
    const { tiers, unplaced } = this.read();
    const parts = tiers.flatMap((tier, index) => {
      const box = this.element("span", "tier");
      tier.forEach((at, n) => box.append(...(n ? [this.element("span", "sign", "="), this.chip(at)] : [this.chip(at)])));
      return [this.gap(index, index ? ">" : ""), box];
    });
    this.track.replaceChildren(...parts, this.gap(tiers.length, tiers.length ? "" : "Drag here, best first; onto another for a tie"));
    this.tray.replaceChildren(...unplaced.map((at) => this.chip(at)));
    this.tray.hidden = !unplaced.length;
    this.save.disabled = unplaced.length > 0;
    this.said.textContent = tiers.map((tier) => tier.map((at) => this.letters[at]).join(" = ")).join(" > ");
    this.letters.forEach((_, at) => document.getElementById(`answer-${at}`).classList.toggle("chosen", at === this.chosen));
    if (focused) this.root.querySelector(`.chip[data-at="${this.chosen}"]`)?.focus();
  }

  // Dragging, with a mouse, a pen or a finger.
  onGrab(event, chip, at) {
    if (event.button !== 0) return;
    chip.setPointerCapture(event.pointerId);
    this.drag = { at, chip, x: event.clientX, y: event.clientY, ghost: null };
  }

  onMove(event) {
    if (!this.drag) return;
    const { chip, x, y } = this.drag;
    if (!this.drag.ghost) {
      if (Math.hypot(event.clientX - x, event.clientY - y) < 6) return;
      this.drag.ghost = this.element("span", "chip ghost", chip.textContent);
      document.body.append(this.drag.ghost);
      chip.classList.add("dragged");
    }
    this.drag.ghost.style.left = `${event.clientX}px`;
    this.drag.ghost.style.top = `${event.clientY}px`;
    for (const old of this.root.querySelectorAll(".over")) old.classList.remove("over");
    this.target(event)?.classList.add("over");
  }

  target(event) {
    const under = document.elementFromPoint(event.clientX, event.clientY)?.closest(".chip, .gap, .tray");
    return under && this.root.contains(under) && under !== this.drag.chip ? under : null;
  }

  onDrop(event) {
    if (!this.drag) return;
    const { at, ghost } = this.drag;
    const target = ghost ? this.target(event) : null;
    this.endDrag();
    if (!target) return;
    this.chosen = at;
    const rest = this.without(at);
    if (target.dataset.gap !== undefined) rest.splice(Number(target.dataset.gap), 0, [at]);
    else if (target.dataset.at !== undefined) {
      const tier = rest.find((other) => other.includes(Number(target.dataset.at)));
      if (tier) tier.push(at);
      else rest.push([Number(target.dataset.at), at]);
    }
    this.write(rest);
  }

  endDrag() {
    this.drag?.ghost?.remove();
    this.drag?.chip.classList.remove("dragged");
    for (const old of this.root.querySelectorAll(".over")) old.classList.remove("over");
    this.drag = null;
  }
}

const rankerRoot = document.querySelector(".ranker");
const ranker = rankerRoot ? new Ranker(rankerRoot) : null;
