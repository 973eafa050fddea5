"use strict";
// Extras only: the page says everything without them.

// The point under the pointer, on every curve.
for (const plot of document.querySelectorAll(".plot")) {
  const points = JSON.parse(plot.dataset.plot), svg = plot.querySelector("svg");
  const dot = document.createElement("div"), say = document.createElement("div");
  dot.className = "at";
  say.className = "say";
  const leave = () => { dot.remove(); say.remove(); };
  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), outer = plot.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width;
    if (place < -0.02 || place > 1.02) return leave();
    let best = points[0];
    for (const p of points) if (Math.abs(p[0] - place) < Math.abs(best[0] - place)) best = p;
    const x = box.left - outer.left + best[0] * box.width;
    const y = box.top - outer.top + best[1] * box.height;
    plot.append(dot, say);
    say.textContent = best[2];
    const half = say.offsetWidth / 2;
    dot.style.left = x + "px";
    dot.style.top = say.style.top = y + "px";
    say.style.left = Math.min(Math.max(x, half), outer.width - half) + "px";
  });
  plot.addEventListener("pointerleave", leave);
}

// One click copies the command, where the browser lets it.
for (const command of document.querySelectorAll(".command")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button"), text = command.textContent;
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  command.append(button);
}

// Where the reader is, in the list of sections.
const links = [...document.querySelectorAll("nav a")];
const watch = () => {
  const here = links.filter((a) => document.querySelector(a.hash).getBoundingClientRect().top < innerHeight / 3).pop();
  for (const a of links) a.classList.toggle("here", a === here);
};
if (links.length) {
  addEventListener("scroll", watch, { passive: true });
  watch();
}
